"""The generalised Gauss–Newton matrix."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.errors import InputError
from landscape.objective import Objective
from landscape.operators.base import CurvatureOperator
from landscape.operators.products.double_backward import sandwich_products
from landscape.problem import Problem


class GaussNewton(CurvatureOperator):
    """G = (1/N) Σ Jᵀ (∇²ℓ) J, J the Jacobian of the model's output, ∇²ℓ the loss's Hessian in it.

    (Schraudolph 2002, doi:10.1162/08997660260028683, section 3.) Positive semi-definite when the loss is
    convex in the output; N is the number of loss terms.

    Args:
        problem: the loss whose curvature is meant, with model and loss apart.

    Raises:
        InputError: the problem was made from a closure, or the loss is linear in the model's output
            (`nll_loss`), which would make G zero.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if problem.supervised().function is F.nll_loss:
            raise InputError(
                "nll_loss is linear in the log-probabilities, so this Gauss–Newton matrix is zero: "
                "return logits and use cross_entropy, or use Fisher"
            )

    def _multiply(self, block: Tensor) -> Tensor:
        result = torch.zeros_like(block)
        with self.problem.evaluation() as run:
            for batch in run.batches():
                output, target = run.output(batch)
                require_tensor(output)
                middle = output_hessian(self.problem.supervised(), output.detach(), target)
                result += sandwich_products(run, output, block, middle)
        return result / self.problem.terms


def output_hessian(objective: Objective, output: Tensor, target: Any) -> Callable[[Tensor], Tensor]:
    """Product with the Hessian of the sum of loss terms in the model's output."""
    leaf = output.requires_grad_()
    total, _ = objective.total(leaf, target)
    if not total.requires_grad:  # a batch without terms
        return torch.zeros_like
    (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)

    def product(tangent: Tensor) -> Tensor:
        if not gradient.requires_grad:  # a loss linear in the output
            return torch.zeros_like(tangent)
        return torch.autograd.grad(gradient, leaf, tangent, retain_graph=True)[0]

    return product


def require_tensor(output: Any) -> None:
    """Refuse outputs that are not one tensor."""
    if not isinstance(output, Tensor):
        raise InputError(
            f"the model returns a {type(output).__name__}: Gauss–Newton and Fisher matrices need one "
            "output tensor; wrap the model so that it returns the logits alone"
        )
