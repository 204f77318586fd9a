"""Leading eigenvalues of every diagonal block, each with a residual that was measured."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from landscape.estimators.block_recurrences import block_products
from landscape.estimators.lanczos import End, extreme_eigenpairs
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator
from landscape.results import Progress


@dataclass(frozen=True)
class BlockEigenvalues:
    """Eigenvalues of one block, the largest first, and last the smallest if it is not among them.

    A true eigenvalue of the block lies within the residual of each; `converged` says whether that is
    within the tolerance, relative to `norm`, the largest |λ| of the block. `complete` says whether none
    can be missing. `vectors` (p, k) belong to the values.
    """

    values: list[float]
    residuals: list[float]
    converged: list[bool]
    complete: bool
    norm: float
    vectors: Tensor


def products_of(top: int) -> int:
    """About how many products the eigenvalues of one block take."""
    return 10 * (top + 1) + 30


def block_eigenvalues(
    A: Operator,
    places: Sequence[Tensor],
    dense: Sequence[Tensor | None],
    *,
    zero: Collection[int] = (),
    top: int = 3,
    exact: Operator | None = None,
    tolerance: float = 1e-3,
    max_steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[BlockEigenvalues]:
    """The largest eigenvalues, and the smallest one, of every diagonal block.

    Args:
        A: the operator, order P.
        places: positions (p,) of every block.
        dense: a block (p, p) itself where `block_spectra` built it, else None.
        zero: blocks that are known to be zero.
        top: number of largest eigenvalues; all of a smaller block.
        exact: the same matrix in float64: all pairs are measured with it once more, all blocks together.
        tolerance, max_steps, seed: see `extreme_eigenpairs`; relative to the largest |λ| of each block.
        progress: called with (products done, products expected).
    """
    searched = [b for b, matrix in enumerate(dense) if matrix is None and b not in zero]
    guess = products_of(top) * len(searched)
    before, found = A.products, []
    for b, (indices, matrix) in enumerate(zip(places, dense, strict=True)):
        k = min(top, len(indices))
        ends: list[End] = [("largest", k), ("smallest", min(1, len(indices) - k))]
        if b in searched:
            found.append(_by_lanczos(A.restrict(indices), ends, tolerance, max_steps, seed))
        else:
            known = torch.zeros(0, 0) if matrix is None else matrix
            found.append(_of_matrix(known, len(indices), ends))
        if progress is not None:
            progress(A.products - before, max(guess, A.products - before))
    if exact is not None:
        measured = [b for b in range(len(places)) if b not in zero]
        for b, pair in zip(
            measured, _measure(exact, places, found, measured, tolerance), strict=True
        ):
            found[b] = pair
    return found


def _by_lanczos(
    block: Operator, ends: list[End], tolerance: float, max_steps: int | None, seed: int
) -> BlockEigenvalues:
    pairs = extreme_eigenpairs(block, ends, tolerance=tolerance, max_steps=max_steps, seed=seed)
    return BlockEigenvalues(
        pairs.values.tolist(),
        pairs.residuals.tolist(),
        pairs.converged.tolist(),
        pairs.complete,
        pairs.norm,
        pairs.vectors,
    )


def _of_matrix(matrix: Tensor, size: int, ends: list[End]) -> BlockEigenvalues:
    """Of a matrix in float64, the residuals with it; of none, of the zero matrix of that size."""
    (_, largest), (_, smallest) = ends
    k = largest + smallest
    if not len(matrix):
        zeros = [0.0] * k
        return BlockEigenvalues(zeros, zeros, [True] * k, True, 0.0, torch.zeros(size, 0))
    values, vectors = torch.linalg.eigh(matrix)
    order = [*range(size - 1, size - 1 - largest, -1), *range(smallest)]
    chosen = vectors[:, order]
    residuals = norms(matrix @ chosen - chosen * values[order]).tolist()
    norm = float(values.abs().max())
    return BlockEigenvalues(values[order].tolist(), residuals, [True] * k, True, norm, chosen)


def _measure(
    exact: Operator,
    places: Sequence[Tensor],
    found: Sequence[BlockEigenvalues],
    chosen: Sequence[int],
    tolerance: float,
) -> list[BlockEigenvalues]:
    """The pairs of the chosen blocks as the exact operator sees them: Rayleigh quotients, residuals."""
    vectors = [found[b].vectors.to(exact.device, exact.dtype) for b in chosen]
    vectors = [block / norms(block) for block in vectors]
    products = [torch.empty_like(block) for block in vectors]
    columns = list(zip(chosen, vectors, strict=True))
    for i, taken, product in block_products(exact, places, columns):
        products[i][:, taken] = product[places[chosen[i]]]
    measured = []
    for b, block, product in zip(chosen, vectors, products, strict=True):
        exact.require_finite(product)
        values = dots(block, product)
        residuals = norms(product - block * values)
        last = len(values) - 1 if len(found[b].values) < len(places[b]) else len(values)
        # Rayleigh quotients may stand in another order than the values did.
        order = [*values[:last].argsort(descending=True).tolist(), *range(last, len(values))]
        measured.append(
            replace(
                found[b],
                values=values[order].tolist(),
                residuals=residuals[order].tolist(),
                converged=(residuals[order] <= tolerance * found[b].norm).tolist(),
                vectors=found[b].vectors[:, order],
            )
        )
    return measured
