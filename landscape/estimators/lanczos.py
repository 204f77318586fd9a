"""Eigenpairs at the ends of the spectrum by Lanczos with full reorthogonalisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.probes import gaussian, generator
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator, require_operator
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
    the tolerance. `complete` says whether a search in the orthogonal complement found nothing better;
    without it an eigenvalue may be missing, such as a further copy of a multiple one. `norm` is the
    largest |λ| seen, to which the tolerance is relative; `ends` says what was asked for.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    complete: bool
    norm: float
    steps: int
    ends: tuple[End, ...]
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

    Lanczos from a random vector, every new vector orthogonalised twice against all earlier ones by two
    matrix products, so that no eigenvalue is returned twice by rounding (Parlett 1998, ch. 13; "twice is
    enough": Giraud et al. 2005, doi:10.1007/s00211-005-0615-4). A Krylov space holds one vector of each
    eigenspace, so converged pairs are locked and a fresh random vector, orthogonal to them, searches the
    rest, until it finds nothing better: multiplicities are found on purpose. Values are Rayleigh
    quotients; residuals are computed from k further products, not from the recurrence.

    Args:
        A: the operator, order P.
        k: number of eigenpairs, at most P.
        which: "largest" or "smallest" (algebraically), "magnitude", or "both" ends (the larger half of
            an odd k from the top). The wanted come first: smallest first for "smallest", largest
            magnitude first for "magnitude", else largest first.
        tolerance: largest accepted residual, relative to the largest |λ| of A.
        max_steps: largest Krylov basis, vectors of length P held in memory (default max(300, 20·k)).
        seed: of the starting vectors.
        progress: called with (products done, products at most, as far as is known).

    Returns:
        The pairs, whether or not they converged: look at `converged` and `complete`.

    Raises:
        InputError: k is not between 1 and P, `max_steps` is less than k, or the tolerance is not
            positive.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([3.0, 1.0, 3.0, -2.0])))
        >>> [round(value, 9) for value in ls.eigenpairs(A, 2).values.tolist()]
        [3.0, 3.0]
    """
    if which not in ("largest", "smallest", "magnitude", "both"):
        raise InputError(f"which is {which!r}: choose 'largest', 'smallest', 'magnitude' or 'both'")
    top = {"largest": k, "both": (k + 1) // 2}.get(which, 0)
    ends: list[End] = [("largest", top), ("smallest", k - top)]
    if which == "magnitude":
        ends = [("magnitude", k)]
    found = extreme_eigenpairs(
        A, ends, tolerance=tolerance, max_steps=max_steps, seed=seed, progress=progress
    )
    return _ordered(found, found.values.argsort(descending=True)) if which == "both" else found


def extreme_eigenpairs(
    A: Operator,
    ends: Sequence[End],
    *,
    tolerance: float = 1e-4,
    max_steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """Eigenpairs for several ends at once, such as [("largest", 5), ("smallest", 1)].

    One Krylov space serves them all; the pairs come in the order of `ends`, the most wanted first.
    Everything else is as for `eigenpairs`.
    """
    require_operator(A)
    limit = checked_limit(A, ends, tolerance, max_steps)
    wanted = tuple((end, count) for end, count in ends if count)
    meter = Meter(A)
    A.expect(min(limit, 10 * sum(count for _, count in wanted) + 30))
    search = _Search(A, wanted, tolerance, limit, seed, progress)
    search.run()
    return _measure(A, search.vectors, tolerance, search, meter)


def checked_limit(A: Operator, ends: Sequence[End], tolerance: float, max_steps: int | None) -> int:
    """The largest basis that `extreme_eigenpairs` may use.

    Raises:
        InputError: what it was asked for is out of range.
    """
    k = sum(count for _, count in ends)
    if not 1 <= k <= A.shape[0] or any(count < 0 for _, count in ends):
        raise InputError(f"k is {k}: it must lie between 1 and the order {A.shape[0]}")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise InputError(f"tolerance is {tolerance}: it must be positive, for example 1e-4")
    limit = min(A.shape[0], max_steps if max_steps is not None else max(300, 20 * k))
    if limit < k:
        raise InputError(f"max_steps is {max_steps}: {k} eigenpairs need at least {k} steps")
    return limit


def remeasure(pairs: Eigenpairs, A: Operator, *, tolerance: float = 1e-4) -> Eigenpairs:
    """The same vectors measured with another operator: Rayleigh quotients and residuals by k products.

    Measured in float64, the pairs of a float32 operator get residuals that include the rounding of all
    the float32 arithmetic before, and values whose error is of second order in them.
    """
    return _measure(A, pairs.vectors.to(A.dtype), tolerance, pairs, Meter(A))


def _measure(
    A: Operator, vectors: Tensor, tolerance: float, search: "_Search | Eigenpairs", meter: Meter
) -> Eigenpairs:
    vectors = vectors / norms(vectors).to(vectors)
    products = A @ vectors
    # Divided by the squared length once more: in float32 that is 1 only to seven digits.
    values = (dots(vectors, products) / dots(vectors, vectors)).to(vectors)
    residuals = norms(products - vectors * values).to(vectors)
    converged = residuals <= tolerance * search.norm
    found = Eigenpairs(
        values,
        vectors,
        residuals,
        converged,
        search.complete,
        search.norm,
        search.steps,
        search.ends,
        meter.read(),
    )
    # Rayleigh quotients may stand in another order than the Ritz values did.
    order, start = [], 0
    for end, count in search.ends:
        group = values[start : start + count].double().cpu().numpy()
        order += [start + int(i) for i in _best(group, end, count)]
        start += count
    return _ordered(found, torch.tensor(order, device=values.device))


def _ordered(pairs: Eigenpairs, order: Tensor) -> Eigenpairs:
    return replace(
        pairs,
        values=pairs.values[order],
        vectors=pairs.vectors[:, order],
        residuals=pairs.residuals[order],
        converged=pairs.converged[order],
    )


class _Search:
    """Krylov spaces one after another, each orthogonal to the pairs locked before it."""

    def __init__(
        self,
        A: Operator,
        ends: tuple[End, ...],
        tolerance: float,
        limit: int,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.A, self.ends, self.tolerance, self.limit = A, ends, tolerance, limit
        self.source, self.progress = generator(seed), progress
        self.locked = torch.empty(0, A.shape[0], dtype=A.dtype, device=A.device)
        self.locked_values: Array = np.empty(0)
        self.norm, self.steps, self.complete = 0.0, 0, False

    @property
    def vectors(self) -> Tensor:
        """The wanted vectors, shape (P, k), after `run`."""
        return self.locked.T

    def run(self) -> None:
        """Search until a space holds nothing better than what is locked, or the limit is reached."""
        while not self.complete:
            go_on = self._explore()
            if len(self.locked) == self.A.shape[0]:
                self.complete = True
            if not go_on:
                return

    def _explore(self) -> bool:
        """Grow one Krylov space, and lock the best of it; whether the search should go on."""
        k = sum(count for _, count in self.ends)
        # The memory that locked vectors take is part of the limit.
        limit = max(self.limit - len(self.locked), 1)
        basis = self.locked.new_empty(min(limit, 64), self.A.shape[0])
        q = self._fresh_vector()
        entries = []  # of the tridiagonal matrix, one pair (diagonal, coupling) a step
        for step in range(limit):
            if step == len(basis):
                basis = torch.cat([basis, torch.empty_like(basis[: limit - step])])
            basis[step] = q
            w = self.A.product(q[:, None])[:, 0]
            self.steps += 1
            alpha = dots(q, w)
            self._orthogonalise(w, basis[: step + 1])
            beta = norms(w)
            entries.append(torch.stack([alpha, beta]))
            q = torch.where(beta > 0, w / beta, 0)
            if self.progress is not None:
                self.progress(self.steps, self.steps - step - 1 + limit)
            last = step + 1 == limit
            if not last and (step + 1) % CHECK_EVERY:
                continue
            # The only numbers that leave the device. Steps after the space has closed do not count.
            matrix = torch.stack(entries)
            self.A.require_finite(matrix)
            diagonal, coupling = matrix.double().cpu().numpy().T
            size = self._closes_at(diagonal, coupling)
            closed = size is not None
            size = size or step + 1
            if last or closed or size + len(self.locked) >= k:
                coupling = coupling[:size] * [*[1] * (size - 1), not closed]
                values, vectors = _eigh(diagonal[:size], coupling[:-1])
                bounds = coupling[-1] * np.abs(vectors[-1])
                self.norm = max(self.norm, float(np.abs(values).max()))
                if len(self.locked) >= k and self._nothing_better(values, bounds):
                    self.complete = True
                    return False
                if self._lock(basis[:size], values, vectors, bounds, force=last or closed):
                    return closed or not last
        raise AssertionError("unreachable: the last step locks")

    def _closes_at(self, diagonal: Array, coupling: Array) -> int | None:
        """After how many steps the space was invariant, up to rounding; None if it was not."""
        scale = np.maximum.accumulate(np.abs(diagonal) + coupling)
        small = 50 * torch.finfo(self.A.dtype).eps * np.maximum(scale, self.norm)
        found = np.flatnonzero(coupling <= small)
        return int(found[0]) + 1 if len(found) else None

    def _lock(
        self, basis: Tensor, values: Array, vectors: Array, bounds: Array, *, force: bool
    ) -> bool:
        """Keep the best of locked and new pairs, if the new among them have converged."""
        union = np.concatenate([self.locked_values, values])
        accepted = 0.5 * self.tolerance * self.norm
        # What is locked stays, unless something is better by more than the tolerance.
        bonus = np.where(np.arange(len(union)) < len(self.locked), accepted, 0.0)
        chosen: list[int] = []
        for end, count in self.ends:  # no pair for two ends, even where values are equal
            ranked = np.argsort(-(_rank(union, end) + bonus), kind="stable").tolist()
            chosen += [i for i in ranked if i not in chosen][:count]
        new = [i - len(self.locked) for i in chosen if i >= len(self.locked)]
        if not force and (not new or bounds[new].max() > accepted):
            return False
        coefficients = torch.as_tensor(vectors).to(basis)
        ritz = [
            self.locked[i]
            if i < len(self.locked)
            else basis.T @ coefficients[:, i - len(self.locked)]
            for i in chosen
        ]
        self.locked, self.locked_values = torch.stack(ritz), union[chosen]
        return True

    def _nothing_better(self, values: Array, bounds: Array) -> bool:
        """Whether this space's best values are settled, and no better than the last ones locked."""
        accepted = 0.5 * self.tolerance * self.norm
        for end, count in self.ends:
            rank, locked = _rank(values, end), _rank(self.locked_values, end)
            best, last = int(np.argmax(rank)), np.sort(locked)[::-1][count - 1]
            # A tenth of the distance to the last one locked is as good as convergence.
            settled = bounds[best] <= max(accepted, 0.1 * (last - rank[best]))
            if not settled or rank[best] > last + accepted:
                return False
        return True

    def _fresh_vector(self) -> Tensor:
        """A random unit vector orthogonal to the locked ones."""
        q = gaussian(self.A, 1, self.source)[:, 0]
        for _ in range(2):
            self._orthogonalise(q, self.locked[:0])
            q /= norms(q)
        return q

    def _orthogonalise(self, w: Tensor, basis: Tensor) -> None:
        """Remove from w, twice and in place, what lies along the locked and the basis vectors."""
        for known in (self.locked, basis) * 2:
            if len(known):
                w -= known.T @ (known @ w)


def _eigh(diagonal: Array, coupling: Array) -> tuple[Array, Array]:
    """Eigenvalues (m,), ascending, and eigenvectors (m, m) of a symmetric tridiagonal matrix."""
    values, vectors = eigh_tridiagonal(diagonal, coupling)
    return values.astype(np.float64), vectors.astype(np.float64)


def _rank(values: Array, end: str) -> Array:
    """How much each value is wanted at an end: higher is better."""
    return {"largest": values, "smallest": -values, "magnitude": np.abs(values)}[end]


def _best(values: Array, end: str, count: int) -> NDArray[np.int64]:
    """Positions of the `count` most wanted values, the best first."""
    return np.argsort(-_rank(values, end), kind="stable")[:count]
