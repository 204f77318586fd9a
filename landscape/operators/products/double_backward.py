"""Products by differentiating backward twice; one retained graph serves every column of a block.

Works for everything that autograd differentiates twice, recurrent kernels included.
(Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147; the transposed-transpose form of the Jacobian product
is due to Townsend 2017.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

from landscape.evaluation import Evaluation


def hessian_products(run: Evaluation, scalar: Tensor, block: Tensor) -> Tensor:
    """∇²(scalar) times a block (P, K), by ∇(∇scalar · v)."""
    result, layout = torch.zeros_like(block), run.problem.layout
    if not scalar.requires_grad:
        return result
    gradients = torch.autograd.grad(scalar, run.leaves, create_graph=True, allow_unused=True)
    run.require_second_derivative(gradients, "hessian")
    # A gradient that is constant in the parameters has no graph and adds no curvature.
    live = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
    for k in range(block.shape[1] if live else 0):
        vectors = layout.split(block[:, k])
        products = torch.autograd.grad(
            [gradients[i] for i in live],
            run.leaves,
            [vectors[i] for i in live],
            retain_graph=True,
            allow_unused=True,
        )
        result[:, k] = layout.flatten(products, block)
    return result


def sandwich_products(
    run: Evaluation, outputs: Tensor, block: Tensor, middle: Callable[[Tensor], Tensor]
) -> Tensor:
    """Jᵀ M J times a block (P, K): J the Jacobian of `outputs`, M given by `middle` on its tangents."""
    result, layout = torch.zeros_like(block), run.problem.layout
    if not outputs.requires_grad:
        return result
    # Jᵀu is linear in u, so differentiating (Jᵀu)·v by u gives J v.
    dummy = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, run.leaves, dummy, create_graph=True, allow_unused=True)
    run.require_second_derivative(pulled, "jacobian")
    live = [i for i, g in enumerate(pulled) if g is not None and g.requires_grad]
    for k in range(block.shape[1] if live else 0):
        vectors = layout.split(block[:, k])
        (tangent,) = torch.autograd.grad(
            [pulled[i] for i in live], dummy, [vectors[i] for i in live], retain_graph=True
        )
        products = torch.autograd.grad(
            outputs, run.leaves, middle(tangent).detach(), retain_graph=True, allow_unused=True
        )
        result[:, k] = layout.flatten(products, block)
    return result
