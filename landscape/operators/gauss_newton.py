"""The generalised Gauss–Newton matrix."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.batches import unpack
from landscape.errors import InputError
from landscape.evaluation import Evaluation
from landscape.objective import Objective
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.products.double_backward import jacobian_products
from landscape.operators.products.preparation import Form, Middle
from landscape.problem import Problem


class GaussNewton(CurvatureOperator):
    """G = (1/N) Σ Jᵀ (∇²ℓ) J, J the Jacobian of the model's output, ∇²ℓ the loss's Hessian in it.

    (Schraudolph 2002, doi:10.1162/08997660260028683, section 3.) Positive semi-definite when the loss is
    convex in the output; N is the number of loss terms.

    Args:
        problem: the loss whose curvature is meant, with model and loss apart.
        settings: those of `CurvatureOperator`.

    Raises:
        InputError: the problem was made from a closure, or the loss is linear in the model's output
            (`nll_loss`), which would make G zero.
    """

    def __init__(self, problem: Problem, **settings: Any) -> None:
        super().__init__(problem, **settings)
        if problem.supervised().function is F.nll_loss:
            raise InputError(
                "nll_loss is linear in the log-probabilities, so this Gauss–Newton matrix is zero: "
                "return logits and use cross_entropy, or use Fisher"
            )

    def form(self) -> Form:
        def middle(place: int, batch: Any, output: Tensor) -> Middle:
            return output_hessian(self.problem.supervised(), output, unpack(batch)[-1])

        return Form(output_of, jacobian_products, middle)


def output_of(run: Evaluation, batch: Any) -> Tensor:
    """The model's output, which must be one tensor."""
    output, _ = run.output(batch)
    if not isinstance(output, Tensor):
        raise InputError(
            f"the model returns a {type(output).__name__}: Gauss–Newton and Fisher matrices need one "
            "output tensor; wrap the model so that it returns the logits alone"
        )
    return output


def output_hessian(objective: Objective, output: Tensor, target: Any) -> Middle:
    """Product with the Hessian of the sum of loss terms in the model's output."""
    if objective.likelihood == "categorical":
        return categorical(objective, output, target)
    if objective.function is F.mse_loss and objective.options.get("weight") is None:
        return lambda tangent: 2 * tangent
    leaf = output.detach().requires_grad_()
    total = objective.sum(leaf, target)
    if not total.requires_grad:  # a batch without terms
        return torch.zeros_like
    (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)

    def product(tangent: Tensor) -> Tensor:
        if not gradient.requires_grad:  # a loss linear in the output
            return torch.zeros_like(tangent)
        return torch.autograd.grad(gradient, leaf, tangent, retain_graph=True)[0]

    return product


def categorical(objective: Objective, output: Tensor, target: Any) -> Middle:
    """Product with m (diag(p) − ppᵀ), p = softmax(output), m the mass of the term's target.

    Hessian of cross-entropy in the logits, and the exact Fisher matrix of the softmax.
    """
    dim = objective.class_dim
    weights = objective.term_masses(output, target).unsqueeze(dim)
    p = output.softmax(dim)

    def product(tangent: Tensor) -> Tensor:
        return weights * (p * tangent - p * (p * tangent).sum(dim, keepdim=True))

    return product
