"""The Hessian of the loss."""

import torch
from torch import Tensor

from landscape.operators.base import CurvatureOperator
from landscape.operators.products.double_backward import hessian_products


class Hessian(CurvatureOperator):
    """H = ∇²L(θ), symmetric, of order P, exact for the whole data set.

    Args:
        problem: the loss whose curvature is meant.

    Example:
        >>> import torch, landscape as ls
        >>> x, y = torch.eye(3)[:2], torch.zeros(2, 1)
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> ls.Hessian(ls.Problem(model, "mse", (x, y))).dense()
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """

    def _multiply(self, block: Tensor) -> Tensor:
        result = torch.zeros_like(block)
        with self.problem.evaluation() as run:
            for batch in run.batches():
                total, _ = run.total(batch)
                result += hessian_products(run, total, block)
        return result / self.problem.terms
