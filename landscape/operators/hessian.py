"""The Hessian of the loss."""

from landscape.evaluation import Evaluation
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.products.double_backward import hessian_product
from landscape.operators.products.preparation import Form


class Hessian(CurvatureOperator):
    """H = ∇²L(θ), symmetric, of order P, exact for the whole data set.

    Args and errors: those of `CurvatureOperator`.

    Example:
        >>> import torch, landscape as ls
        >>> x, y = torch.eye(3)[:2], torch.zeros(2, 1)
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> ls.Hessian(ls.Problem(model, "mse", (x, y))).dense()
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """

    def form(self) -> Form:
        return Form(Evaluation.scalar, lambda run, loss: [hessian_product(run, loss)])
