"""Eigenpairs at the ends of the spectrum by Lanczos with full reorthogonalisation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.probes import gaussian, generator
from landscape.operators.base import Operator
from landscape.results import Cost, Meter, Progress

Which = Literal["largest", "smallest", "magnitude", "both"]
End = tuple[Literal["largest", "smallest", "magnitude"], int]
Array = NDArray[np.float64]
CHECK_EVERY = 5  # steps between two looks at the tridiagonal matrix


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues with their vectors and how far each is from being exact.

    `values` (k,), `vectors` (P, k) of unit length, `residuals` (k,) = ‖Av − λv‖, which bounds the
    distance of each value from an eigenvalue of A; `converged` (k,) says whether the residual is within
    the tolerance. The order is largest first, but smallest first for "smallest" and largest magnitude
    first for "magnitude".
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    steps: int
    cost: Cost


def eigenpairs(
    A: Operator,
    k: int = 1,
    *,
    which: Which = "largest",
    tolerance: float = 1e-4,
    max_steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The k eigenpairs of A at the wanted end of the spectrum.

    Lanczos from one random vector, every new vector orthogonalised twice against all earlier ones by two
    matrix products, so that no eigenvalue is returned twice by rounding (Parlett 1998, ch. 13; "twice is
    enough": Giraud et al. 2005, doi:10.1007/s00211-005-0615-4). When the Krylov space closes, a fresh
    random vector orthogonal to it goes on, so that multiplicities are found. Values are Rayleigh
    quotients; residuals are computed from k further products, not from the recurrence.

    Args:
        A: the operator, order P.
        k: number of eigenpairs, at most P.
        which: "largest" or "smallest" (algebraically), "magnitude", or "both" ends (the larger half of
            an odd k from the top).
        tolerance: largest accepted residual, relative to the largest |λ| of A.
        max_steps: largest basis, vectors of length P held in memory (default max(300, 20·k)).
        seed: of the starting vector.
        progress: called with (products done, products at most).

    Returns:
        The pairs, whether or not they converged: look at `converged`.

    Raises:
        InputError: k is not between 1 and P, or `max_steps` is less than k.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([3.0, 1.0, 3.0, -2.0])))
        >>> ls.eigenpairs(A, 2).values
        tensor([3., 3.], dtype=torch.float64)
    """
    size = A.shape[0]
    if not 1 <= k <= size:
        raise InputError(f"k is {k}: it must lie between 1 and the order {size} of the operator")
    if which not in ("largest", "smallest", "magnitude", "both"):
        raise InputError(f"which is {which!r}: choose 'largest', 'smallest', 'magnitude' or 'both'")
    top = {"largest": k, "both": (k + 1) // 2}.get(which, 0)
    ends: list[End] = [("largest", top), ("smallest", k - top)]
    if which == "magnitude":
        ends = [("magnitude", k)]
    return extreme_eigenpairs(
        A, ends, tolerance=tolerance, max_steps=max_steps, seed=seed, progress=progress
    )


def extreme_eigenpairs(
    A: Operator,
    ends: list[End],
    *,
    tolerance: float = 1e-4,
    max_steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """Eigenpairs for several ends at once, such as [("largest", 5), ("smallest", 1)].

    One Krylov space serves them all; the pairs come in the order of `ends`. Everything else is as for
    `eigenpairs`.
    """
    ends = [(end, count) for end, count in ends if count]
    k = sum(count for _, count in ends)
    limit = min(A.shape[0], max_steps if max_steps is not None else max(300, 20 * k))
    if limit < k:
        raise InputError(f"max_steps is {max_steps}: {k} eigenpairs need at least {k} steps")
    meter = Meter(A)
    basis, coefficients, size = _krylov(A, ends, tolerance, limit, seed, progress)
    vectors = basis.T @ torch.as_tensor(coefficients).to(basis)
    return _measure(A, vectors, tolerance * size, basis.shape[0], meter)


def remeasure(pairs: Eigenpairs, A: Operator, *, tolerance: float = 1e-4) -> Eigenpairs:
    """The same vectors measured with another operator: Rayleigh quotients and residuals by k products.

    Measured in float64, the pairs of a float32 operator get residuals that include the rounding of all
    the float32 arithmetic before, and values whose error is of second order in them.
    """
    largest = float(pairs.values.abs().max())
    return _measure(A, pairs.vectors.to(A.dtype), tolerance * largest, pairs.steps, Meter(A))


def _measure(A: Operator, vectors: Tensor, accepted: float, steps: int, meter: Meter) -> Eigenpairs:
    vectors = vectors / vectors.norm(dim=0)
    products = A @ vectors
    values = (vectors * products).sum(0)
    residuals = (products - vectors * values).norm(dim=0)
    return Eigenpairs(values, vectors, residuals, residuals <= accepted, steps, meter.read())


def _krylov(
    A: Operator,
    ends: list[End],
    tolerance: float,
    limit: int,
    seed: int,
    progress: Progress | None,
) -> tuple[Tensor, Array, float]:
    """Basis (m, P), the wanted Ritz vectors in it (m, k), and the largest |Ritz value|."""
    source = generator(seed)
    k = sum(count for _, count in ends)
    basis = torch.empty(min(limit, 64), A.shape[0], dtype=A.dtype, device=A.device)
    diagonal: list[float] = []
    coupling: list[float] = []  # 0 where a Krylov space closed and a fresh one began
    scale, fresh = 0.0, 0  # fresh: where the current space began
    q = _fresh_vector(A, basis[:0], source)
    for step in range(limit):
        if step == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis[: limit - step])])
        basis[step] = q
        known = basis[: step + 1]
        w = A @ q
        diagonal.append(float(q @ w))
        for _ in range(2):
            w -= known.T @ (known @ w)
        beta = float(w.norm())
        scale = max(scale, abs(diagonal[-1]) + beta)
        closed = beta <= 50 * torch.finfo(A.dtype).eps * scale
        coupling.append(0.0 if closed else beta)
        if progress is not None:
            progress(step + 1, limit + k)
        last = step + 1 == limit
        if last or ((closed or (step + 1) % CHECK_EVERY == 0) and step + 1 >= k):
            values, vectors = _tridiagonal(diagonal, coupling[:-1])
            bounds = coupling[-1] * np.abs(vectors[-1])
            largest = float(np.abs(values).max())
            accepted = 0.5 * tolerance * largest
            wanted = np.concatenate([_best(values, end, count) for end, count in ends])
            done = bounds[wanted].max() <= accepted
            if closed or fresh:
                # A closed space holds one vector of each eigenspace: it proves nothing about
                # multiplicities, until a fresh one has been searched and holds nothing better.
                current = np.flatnonzero((vectors[fresh:] ** 2).sum(0) > 0.5)
                done &= fresh > 0 and all(
                    _holds_nothing_better(values, bounds, current, end, count, accepted)
                    for end, count in ends
                )
            if last or done:
                return known, vectors[:, wanted], largest
        if closed:
            q, fresh = _fresh_vector(A, known, source), step + 1
        else:
            q = w / beta
    raise AssertionError("unreachable: the last step returns")


def _tridiagonal(diagonal: list[float], coupling: list[float]) -> tuple[Array, Array]:
    values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(coupling))
    return values.astype(np.float64), vectors.astype(np.float64)


def _fresh_vector(A: Operator, known: Tensor, source: torch.Generator) -> Tensor:
    """A random unit vector orthogonal to the rows of `known`."""
    q = gaussian(A, 1, source)[:, 0]
    for _ in range(2):
        q = q - known.T @ (known @ q)
        q = q / q.norm()
    return q


def _rank(values: Array, end: str) -> Array:
    """How much each value is wanted at an end: higher is better."""
    return {"largest": values, "smallest": -values, "magnitude": np.abs(values)}[end]


def _best(values: Array, end: str, count: int) -> NDArray[np.int64]:
    """Positions of the `count` most wanted values, the best first."""
    return np.argsort(-_rank(values, end), kind="stable")[:count]


def _holds_nothing_better(
    values: Array,
    bounds: Array,
    current: NDArray[np.int64],
    end: str,
    count: int,
    accepted: float,
) -> bool:
    """Whether the current space's best value has converged and is no better than the last one wanted."""
    rank = _rank(values, end)
    best = current[np.argmax(rank[current])]
    last = _best(values, end, count)[-1]
    return bool(bounds[best] <= accepted and rank[best] <= rank[last] + accepted)
