"""All diagonal blocks of a matrix in one pass: traces, densities, and the norms of all its blocks."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.block_recurrences import (
    WIDTH,
    Follow,
    advance,
    block_products,
    first_moments,
    squares_of,
    start,
)
from landscape.estimators.probes import generator, rademacher
from landscape.estimators.slq import Measure
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator, require_operator
from landscape.results import Cost, Meter, Progress, student_quantile

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BlockSpectra:
    """What one pass finds about the B diagonal blocks of A, and about the blocks between them.

    `ritz[b]` holds a measure for every probe of block b, a single one where the block is known exactly;
    `dense[b]` is then the block itself (p, p), else None. `own[b]` (probes,) are samples zᵀA_bb z of its
    trace, `shared` (shared probes, B) samples of every trace from the same full vectors. `squares` (B, B)
    are ‖A_bc‖_F² with their standard errors `squares_error`, 0 where they are exact; `left` (B,) are those
    of the diagonal blocks without the eigenpairs that `deflated` took out of the samples.
    """

    sizes: list[int]
    dense: list[Tensor | None]
    ritz: list[list[Measure]]
    own: list[Array]
    shared: Array
    squares: Array
    squares_error: Array
    left: Array
    seed: int
    cost: Cost

    def exact(self, b: int) -> bool:
        """Whether nothing about block b is estimated."""
        return not len(self.own[b])


def block_spectra(
    A: Operator,
    blocks: Sequence[Tensor],
    *,
    probes: int = 5,
    steps: int = 30,
    shared_probes: int = 30,
    dense_up_to: int = 0,
    zero: Collection[int] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> BlockSpectra:
    """Traces and densities of all diagonal blocks, and the Frobenius norms of all blocks.

    A product with the block diagonal of A takes one column per block, zero outside it; the columns of
    all blocks and probes are multiplied together, and kept at the block's length in between. The first
    step of quadrature also gives the traces, E zᵀA_bb z = tr A_bb, and, since its columns of A are whole,
    the norms between blocks: E ‖A_cb z‖² = ‖A_cb‖_F² for random signs z (Hutchinson 1990,
    doi:10.1080/03610919008812866). Densities are by stochastic Lanczos quadrature as in `spectral_density`.

    A full vector z serves the traces of all blocks at once, E z_bᵀ(Az)_b = tr A_bb, at the price of noise
    Σ_c ‖A_bc‖_F² from the other blocks; `block_traces` takes whichever is better.

    Args:
        A: the operator, order P.
        blocks: int64 positions (p,) of every block; each of the P positions lies in exactly one.
        probes, steps: of quadrature, per block: probes × steps products.
        shared_probes: full vectors for the traces, one product each; none if 0.
        dense_up_to: blocks of at most this order are built by p products, and then exact.
        zero: blocks that are known to be zero, with all that stands beside and above them: no products.
        seed: of the probes.
        progress: called with (products done, products expected).

    Returns:
        What was found; nothing in it holds a vector of length P.

    Raises:
        InputError: the blocks do not partition the positions, or a number is out of range.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 5.0]]))
        >>> found = block_spectra(A, [torch.tensor([0, 1]), torch.tensor([2])], dense_up_to=2)
        >>> block_traces(found).values, found.ritz[0][0].nodes.round(9)
        (array([4., 5.]), array([1., 3.]))
    """
    require_operator(A)
    if probes < 1 or steps < 1:
        raise InputError(f"probes={probes} and steps={steps} must both be at least 1")
    if shared_probes < 0 or shared_probes == 1:
        raise InputError(f"shared_probes is {shared_probes}: choose 0, or at least 2 for an error")
    _require_partition(A, blocks)
    places = [torch.as_tensor(indices, device=A.device) for indices in blocks]
    sizes = [len(indices) for indices in places]
    dense = [b for b, size in enumerate(sizes) if size <= dense_up_to and b not in zero]
    iterated = [b for b in range(len(sizes)) if b not in zero and b not in dense]
    full = shared_probes if iterated else 0  # what is exact needs no probes
    expected = sum(sizes[b] for b in dense) + full
    expected += sum(probes * min(steps, sizes[b]) for b in iterated)
    meter, source, before = Meter(A), generator(seed), A.products
    A.expect(expected)

    def follow() -> None:
        if progress is not None:
            progress(A.products - before, expected)

    squares = [torch.zeros(len(sizes), 1, dtype=torch.float64)] * len(sizes)
    matrices: list[Tensor | None] = [None] * len(sizes)
    ritz = [[Measure(np.zeros(1), np.ones(1), np.zeros(1))]] * len(sizes)  # of a zero block
    own = [np.zeros(0)] * len(sizes)
    for b, (matrix, square) in zip(dense, _build(A, places, dense, follow), strict=True):
        matrices[b], squares[b], ritz[b] = matrix, square, [_of_matrix(matrix)]
    shared = _shared_traces(A, places, full, source, follow)
    states = [start(A, places[b], b, probes, min(steps, sizes[b]), source) for b in iterated]
    for b, square in zip(iterated, advance(A, places, states, follow), strict=True):
        squares[b] = square
    for state in states:
        ritz[state.block] = [part.measure() for part in state.going.tridiagonals()]
        own[state.block] = first_moments(state)
    value, error = _pairwise(squares, exact=[b not in iterated for b in range(len(sizes))])
    left = value.diagonal().copy()
    cost = meter.read()
    return BlockSpectra(sizes, matrices, ritz, own, shared, value, error, left, seed, cost)


def deflated(
    found: BlockSpectra,
    A: Operator,
    places: Sequence[Tensor],
    pairs: Sequence[tuple[Sequence[float], Tensor]],
) -> BlockSpectra:
    """The same samples of the traces with less variance, since eigenpairs (λ, v) are known; no products.

    For a fixed v, (vᵀz)² has mean ‖v‖² over random signs z, so that zᵀA_bb z − Σ λ((vᵀz)² − ‖v‖²) is as
    unbiased, whatever λ and v; where they are eigenpairs it no longer varies with them (the deflation of
    Gambhir, Stathopoulos & Orginos 2017, doi:10.1137/16M1066361).

    Args:
        found: of `block_spectra`, with the same A and places (the positions of its blocks).
        pairs: (values (k,), vectors (p, k)) of every block, found independently of the probes.
    """
    source = generator(found.seed)
    shared, own, left = found.shared.copy(), [samples.copy() for samples in found.own], found.left
    for begin in range(0, len(shared), WIDTH):
        z = rademacher(A, min(WIDTH, len(shared) - begin), source)
        for b, indices in enumerate(places):
            if not found.exact(b):
                shared[begin : begin + z.shape[1], b] -= _excess(z[indices], *pairs[b])
    for b, indices in enumerate(places):
        if not found.exact(b):
            z = rademacher(A, len(own[b]), source, size=len(indices))
            own[b] -= _excess(z, *pairs[b])
    taken = np.array([sum(value**2 for value in values) for values, _ in pairs])
    return replace(found, shared=shared, own=own, left=np.maximum(left - taken, 0))


def _excess(z: Tensor, values: Sequence[float], vectors: Tensor) -> Array:
    """Σ λ((vᵀz)² − ‖v‖²) for every column of z."""
    vectors = vectors.to(z)
    overlaps = (vectors.T @ z).double().cpu().numpy()
    lengths = norms(vectors).double().cpu().numpy()
    excess: Array = np.array(values) @ (overlaps**2 - lengths[:, None] ** 2)
    return excess


@dataclass(frozen=True)
class BlockTraces:
    """The trace of every block (B,) with its standard error (B,), and their sum with its own.

    `probes` (B,) says over how many independent samples, 0 where the trace is exact: intervals are those
    of Student's t with one degree of freedom less.
    """

    values: Array
    standard_errors: Array
    probes: list[int]
    total: float
    total_error: float


def block_traces(found: BlockSpectra) -> BlockTraces:
    """The trace of every block by the better of its own probes and the shared ones.

    A probe of random signs on block b alone has variance 2‖A_bb‖_F², without what was deflated, less twice
    the squares of the diagonal; a shared one Σ_{c≠b} ‖A_bc‖_F² more. The norms that were measured decide, not the samples of
    the trace themselves, which would bias the errors. The total follows the same choice, and its error
    the correlation of what was shared.
    """
    count = len(found.sizes)
    values, errors, probes = np.zeros(count), np.zeros(count), [0] * count
    together, variance = [], 0.0
    for b in range(count):
        matrix, own = found.dense[b], found.own[b]
        if matrix is not None:
            values[b] = float(matrix.diagonal().double().sum())
        if found.exact(b):
            continue
        alone = 2 * found.left[b]
        beside = found.squares[b].sum() - found.squares[b, b]
        if _width(alone + beside, len(found.shared)) < _width(alone, len(own)):
            samples = found.shared[:, b]
            together.append(b)
        else:
            samples = own
        values[b], errors[b] = mean_and_error(samples)
        probes[b] = len(samples)
        variance += 0.0 if b in together else errors[b] ** 2
    if together:
        variance += mean_and_error(found.shared[:, together].sum(1))[1] ** 2
    return BlockTraces(values, errors, probes, math.fsum(values), math.sqrt(variance))


def _width(variance: float, samples: int) -> float:
    """Of the 95 % interval around the mean of so many samples, infinite where there is none."""
    return (
        variance**0.5 * student_quantile(0.95, samples - 1) / samples**0.5
        if samples > 1
        else math.inf
    )


def mean_and_error(samples: Array) -> tuple[float, float]:
    """The mean of independent samples and its standard error, NaN for a single one."""
    count = len(samples)
    error = float(np.std(samples, ddof=1)) / count**0.5 if count > 1 else math.nan
    return float(np.mean(samples)), error


def _require_partition(A: Operator, blocks: Sequence[Tensor]) -> None:
    if not blocks or any(len(indices) == 0 for indices in blocks):
        raise InputError("every block needs at least one position")
    every = torch.cat([torch.as_tensor(indices).cpu() for indices in blocks])
    expected = torch.arange(A.shape[0])
    if len(every) != len(expected) or not torch.equal(every.sort().values, expected):
        raise InputError(
            f"the blocks hold {len(every):,} positions, {len(every.unique()):,} of them different: each of "
            f"the {A.shape[0]:,} positions of {A!r} must lie in exactly one block"
        )


def _build(
    A: Operator, places: Sequence[Tensor], dense: Sequence[int], follow: Follow
) -> list[tuple[Tensor, Tensor]]:
    """Every block (p, p), float64, with Σ over its columns of `squares_of`, shape (B, 1)."""
    units = [torch.eye(len(places[b]), dtype=A.dtype, device=A.device) for b in dense]
    matrices = [torch.empty_like(unit) for unit in units]
    squares: list[list[Tensor]] = [[] for _ in dense]
    for i, taken, product in block_products(A, places, list(zip(dense, units, strict=True))):
        matrices[i][:, taken] = product[places[dense[i]]]
        squares[i].append(squares_of(places, product))
        follow()
    found = []
    for matrix, parts in zip(matrices, squares, strict=True):
        square = torch.cat(parts, dim=1).sum(1, keepdim=True)
        A.require_finite(square)
        wide = matrix.cpu().double()
        found.append(((wide + wide.T) / 2, square.cpu().double()))
    return found


def _of_matrix(matrix: Tensor) -> Measure:
    """The density of a block that is known: all its eigenvalues, with equal weights."""
    nodes = torch.linalg.eigvalsh(matrix).numpy()
    return Measure(nodes, np.full(len(nodes), 1 / len(nodes)), np.zeros(len(nodes)))


def _shared_traces(
    A: Operator, places: Sequence[Tensor], count: int, source: torch.Generator, follow: Follow
) -> Array:
    """Samples z_bᵀ(Az)_b of the trace of every block from the same full vectors, (count, B)."""
    found = [np.zeros((0, len(places)))]
    for begin in range(0, count, WIDTH):
        z = rademacher(A, min(WIDTH, count - begin), source)
        z *= A.product(z)
        samples = torch.stack([_total(z[indices]) for indices in places], dim=1)
        A.require_finite(samples)
        found.append(samples.cpu().double().numpy())
        follow()
    return np.concatenate(found)


def _total(block: Tensor) -> Tensor:
    """The sum of every column, in float64."""
    return dots(block, torch.ones_like(block))


def _pairwise(squares: Sequence[Tensor], exact: Sequence[bool]) -> tuple[Array, Array]:
    """‖A_bc‖_F² and its standard error, (B, B) each, from both sides of the diagonal.

    Where one side is exact it counts alone; otherwise every probe gives the mean of its two samples.
    """
    count = len(squares)
    value, error = np.zeros((count, count)), np.zeros((count, count))
    for b in range(count):
        for c in range(b + 1):
            if exact[b] or exact[c]:
                known, other = (b, c) if exact[b] else (c, b)
                mean, deviation = float(squares[known][other]), 0.0
            else:
                samples = (squares[b][c] + squares[c][b]) / 2
                mean, deviation = mean_and_error(samples.numpy())
            value[b, c] = value[c, b] = mean
            error[b, c] = error[c, b] = deviation
    return value, error
