"""Products by differentiating backward twice; one retained graph serves every vector.

Works for everything that autograd differentiates twice, recurrent kernels included.
(Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147; the transposed-transpose form of the Jacobian product
is due to Townsend 2017.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

from landscape.evaluation import Evaluation

Product = Callable[[Tensor], Tensor]


def hessian_product(run: Evaluation, scalar: Tensor) -> Product:
    """v ↦ ∇²(scalar) v, both of shape (P,), by ∇(∇scalar · v)."""
    if not scalar.requires_grad:
        return torch.zeros_like
    gradients = torch.autograd.grad(scalar, run.leaves, create_graph=True, allow_unused=True)
    run.require_second_derivative(gradients, "hessian")
    # A gradient that is constant in the parameters has no graph and adds no curvature.
    live = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
    if not live:
        return torch.zeros_like
    layout = run.problem.layout

    def product(vector: Tensor) -> Tensor:
        vectors = layout.split(vector)
        products = torch.autograd.grad(
            [gradients[i] for i in live],
            run.leaves,
            [vectors[i] for i in live],
            retain_graph=True,
            allow_unused=True,
        )
        return layout.flatten(products, vector)

    return product


def jacobian_products(run: Evaluation, outputs: Tensor) -> tuple[Product, Product]:
    """v ↦ J v and u ↦ Jᵀ u, J the Jacobian of `outputs`; v of shape (P,), u of that of `outputs`."""
    layout = run.problem.layout
    if not outputs.requires_grad:
        return (
            lambda vector: torch.zeros_like(outputs),
            lambda cotangent: cotangent.new_zeros(layout.size),
        )
    # Jᵀu is linear in u, so differentiating (Jᵀu)·v by u gives J v.
    dummy = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, run.leaves, dummy, create_graph=True, allow_unused=True)
    run.require_second_derivative(pulled, "jacobian")
    live = [i for i, g in enumerate(pulled) if g is not None and g.requires_grad]

    def forward(vector: Tensor) -> Tensor:
        vectors = layout.split(vector)
        (tangent,) = torch.autograd.grad(
            [pulled[i] for i in live], dummy, [vectors[i] for i in live], retain_graph=True
        )
        return tangent

    def backward(cotangent: Tensor) -> Tensor:
        products = torch.autograd.grad(
            outputs, run.leaves, cotangent, retain_graph=True, allow_unused=True
        )
        return layout.flatten(products, cotangent)

    return forward, backward
