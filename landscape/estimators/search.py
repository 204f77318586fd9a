"""The search for extreme eigenpairs: a space that grows until they have converged, then the rest."""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.checkpoint import State
from landscape.estimators.krylov import Krylov, Ritz
from landscape.estimators.probes import generator
from landscape.estimators.verification import Verification
from landscape.operators.base import Operator
from landscape.results import Progress

End = tuple[Literal["largest", "smallest", "magnitude"], int]
Array = NDArray[np.float64]
CHECK_EVERY = 5  # steps between two looks at numbers on a device that would have to be waited for
PATIENCE = 10  # steps by which a space may grow after the wanted pairs have converged
LEAST = 10  # steps before the rest of the space is believed on convergence alone
MISSING = 1e-3  # accepted probability that an eigenvalue is missing
_STATE = ("norm", "steps", "missing", "settled", "complete", "patience", "owed")


class Search:
    """A Krylov space that grows until the wanted pairs have converged, then a look at the rest."""

    def __init__(
        self,
        A: Operator,
        ends: tuple[End, ...],
        tolerance: float,
        limit: int,
        basis: int,
        block: int,
        verify: bool,
        source: torch.Generator,
        progress: Progress | None,
    ) -> None:
        self.A, self.ends, self.tolerance, self.limit = A, ends, tolerance, limit
        self.block, self.verify, self.source, self.progress = block, verify, source, progress
        self.k = sum(count for _, count in ends)
        self.space = Krylov(A, min(basis, A.shape[0] + block))
        self.rest: Verification | None = None
        self.norm, self.steps, self.missing = 0.0, 0, 1.0
        self.settled = self.complete = False
        self.patience = PATIENCE
        # Ranks that the last pair of each end must reach, since better ones were seen.
        self.owed = [-math.inf] * len(ends)
        self.every = look_every(A)

    @property
    def accepted(self) -> float:
        """Largest residual bound of a pair that is done; half is left to rounding."""
        return 0.5 * self.tolerance * self.norm

    @property
    def exhausted(self) -> bool:
        return self.steps >= self.limit and self.space.size >= self.k

    @property
    def done(self) -> bool:
        return self.settled or self.complete or self.exhausted

    @property
    def cut(self) -> bool:
        """Whether the vectors have residuals that only their bounds are known of."""
        return bool(self.space.cut.any())

    def begin(self, start: Tensor | None) -> None:
        """Begin with a block (P, K), or anywhere."""
        if start is None:
            self.space.begin_afresh(self.block, self.source)
        else:
            self.space.begin(start.T)

    def advance(self) -> None:
        """A few steps, until the rest of the space holds nothing better or the limit is reached."""
        if self.rest is None:
            self._grow()
        else:
            self._look_elsewhere(self.rest)

    def result(self) -> tuple[Tensor, Array, Array, Array]:
        """Vectors (P, k), values, bounds of residuals and gaps as they are now; the space is given up."""
        values, residuals = self.ritz.values[self.chosen], self.ritz.bounds[self.chosen]
        gaps = self._gaps()
        self.rest = None
        self.space.restart(self.ritz, self.chosen)
        if not self.cut:
            residuals = residuals + self.space.discrepancy(self.source)
        vectors = self.space.basis[: self.k].clone().T
        self.space.basis = vectors.T  # lets go of the rest
        return vectors, values, residuals, gaps

    def state(self) -> State:
        """What has to be saved to go on later."""
        return {name: getattr(self, name) for name in _STATE} | {
            "space": self.space.state(),
            "rest": None if self.rest is None else self.rest.state(),
            "source": self.source.get_state(),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.space.restore(state["space"])
        self.source.set_state(state["source"])
        if len(self.space.matrix) >= self.k:
            self.ritz = self.space.look()
            self.chosen = self._choose(self.ritz.values)
        if state["rest"] is not None:
            known = self.space.basis[: self.space.size]
            self.rest = Verification(self.A, known, generator(0))
            self.rest.restore(state["rest"])

    def _grow(self) -> None:
        """A few steps of the space, and what follows from a look at it."""
        space = self.space
        for _ in range(self.every):
            if space.room < space.width or self.exhausted:
                break
            self.steps += space.width
            space.step()
        self._tell()
        ritz = self.ritz = space.look()
        self.norm = max(self.norm, float(np.abs(ritz.values).max()))
        self.chosen = self._choose(ritz.values)
        everything = space.size == self.A.shape[0]
        if everything or (len(ritz.values) >= self.k and self._converged(ritz)):
            self._turn_to_the_rest()
        elif space.closed:
            space.begin_afresh(self.block, self.source)
        elif space.room < space.width and not self.exhausted:
            space.restart(ritz, self._kept(ritz))

    def _converged(self, ritz: Ritz) -> bool:
        """Whether the wanted pairs have converged, and are as good as any that were seen."""
        ranks = [np.sort(rank(ritz.values[self.chosen], end))[-n] for end, n in self.ends]
        enough = all(r >= o - self.accepted for r, o in zip(ranks, self.owed, strict=True))
        return enough and bool(ritz.bounds[self.chosen].max() <= self.accepted)

    def _choose(self, values: Array) -> list[int]:
        """Positions of the wanted values; no pair for two ends, even where values are equal."""
        chosen: list[int] = []
        for end, count in self.ends:
            ranked = best(values, end, len(values)).tolist()
            chosen += [i for i in ranked if i not in chosen][:count]
        return chosen

    def _kept(self, ritz: Ritz) -> list[int]:
        """Which Ritz vectors survive a restart: the wanted, and the next in line where they are needed."""
        kept = list(self.chosen)
        room = len(kept) + (len(self.space.basis) - 2 * self.space.width - len(kept)) // 2
        start, queues = 0, []
        for (end, count), owed in zip(self.ends, self.owed, strict=True):
            own = self.chosen[start : start + count]
            short = rank(ritz.values[own], end).min() < owed - self.accepted
            if short or ritz.bounds[own].max() > self.accepted:
                queues.append(best(ritz.values, end, len(ritz.values)).tolist())
            start += count
        for turn in range(len(ritz.values)):
            for queue in queues:
                if queue[turn] not in kept and len(kept) < room:
                    kept.append(queue[turn])
        return kept

    # The rest of the space.

    def _turn_to_the_rest(self) -> None:
        """Look for eigenvalues outside the space, or outside the wanted pairs where it hides too much.

        A few more steps of the space cost less than the second, which has to start from nothing.
        """
        if not self.verify:
            self.settled = True
            return
        self.patience -= 1
        hides = any(self._hides(*side, self._expected(*side)) for side in self._sides())
        if hides and self.patience > 0 and self.space.room >= self.space.width > 0:
            return
        if hides:
            self._lock()
        self.rest = Verification(self.A, self.space.basis[: self.space.size], self.source)

    def _lock(self) -> None:
        """Give up everything but the wanted pairs."""
        self.space.lock(self.ritz, self.chosen)
        self.ritz = self.space.look()
        self.chosen = self._choose(self.ritz.values)

    def _expected(self, sign: int, threshold: float) -> float:
        """A guess of the largest eigenvalue outside the space, from the Ritz values that are not wanted."""
        others = np.sort(sign * np.delete(self.ritz.values, self.chosen))
        return (threshold + float(others[-4] if len(others) > 3 else others.min(initial=0))) / 2

    def _look_elsewhere(self, rest: Verification) -> None:
        for _ in range(self.every):
            if rest.closed or self.exhausted:
                break
            self.steps += 1
            rest.step()
        self._tell()
        values, bounds = rest.look()
        verdicts = [self._verdict(rest, values, bounds, *side) for side in self._sides()]
        if None not in verdicts:
            self.complete, self.missing = True, min(1.0, sum(v for v in verdicts if v is not None))
        elif any(sign * value > t for sign, t in self._sides() for value in values):
            known = np.append(self.ritz.values[self.chosen], values)
            self.owed = [float(np.sort(rank(known, end))[-n]) for end, n in self.ends]
            self._lock()
            self.space.begin_afresh(self.block, self.source)
            self.rest, self.patience = None, PATIENCE

    def _verdict(
        self, rest: Verification, values: Array, bounds: Array, sign: int, threshold: float
    ) -> float | None:
        """How probable it is, at most, that something beyond the threshold is missing; None: go on."""
        if not len(values):
            return 0.0
        order = np.argsort(sign * values)
        largest = float(sign * values[order[-1]])
        if largest > threshold:
            return None
        probability = 1.0
        for share in (0.9, 0.7, 0.5, 0.3):
            between = largest + share * (threshold - largest)
            if not self._hides(sign, threshold, between):
                probability = rest.missing(between, sign * values)
                break
        converged = rest.steps >= LEAST and bounds[order[-1]] <= self.accepted
        settled = probability <= MISSING or rest.closed or converged
        return probability if settled else None

    def _hides(self, sign: int, threshold: float, outside: float) -> bool:
        """Whether A may have more eigenvalues beyond the threshold than the wanted ones.

        Outside the space all are below `outside`. A = [T Eᵀ; E B] has as many above t > max λ(B) as
        T + Eᵀ (t − B)⁻¹ E (Haynsworth 1968, doi:10.1016/0024-3795(68)90050-5), which is no larger than
        T + EᵀE / (t − outside).
        """
        space = self.space
        if not space.coupling.any() and not space.cut.any():
            return False
        if not outside < threshold:
            return True
        squares = np.zeros_like(space.matrix)
        if space.coupling.size:
            last = space.coupling.shape[1]
            squares[-last:, -last:] = space.coupling.T @ space.coupling
        cut = float(np.sum(space.cut**2))
        if cut:  # |x + y|² ≤ 2 |x|² + 2 |y|²
            squares = 2 * squares + 2 * cut * np.eye(len(squares))
        most = np.linalg.eigvalsh(sign * space.matrix + squares / (threshold - outside))
        wanted = sign * self.ritz.values[self.chosen]
        return int((most > threshold).sum()) > int((wanted > threshold).sum())

    def _sides(self) -> list[tuple[int, float]]:
        """(sign, t): no eigenvalue λ with sign · λ > t may be missing."""
        sides, start = [], 0
        for end, count in self.ends:
            last = rank(self.ritz.values[self.chosen[start : start + count]], end).min()
            signs = {"largest": [1], "smallest": [-1], "magnitude": [1, -1]}[end]
            sides += [(sign, float(last) + self.accepted) for sign in signs]
            start += count
        return sides

    def _gaps(self) -> Array:
        """Distance of every wanted value from where the nearest other one may be that was seen."""
        values, bounds = self.ritz.values, self.ritz.bounds
        others, blur = values, bounds
        if self.rest is not None:
            found, residuals = self.rest.look()
            others, blur = np.append(values, found), np.append(bounds, residuals)
        gaps = np.abs(values[self.chosen][:, None] - others) - blur
        gaps[np.arange(self.k), self.chosen] = math.inf
        return gaps.min(axis=1)

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.steps, max(self.steps, self.limit))


def look_every(A: Operator) -> int:
    """Steps between two looks: where nothing has to be waited for, none is wasted."""
    return 1 if A.device.type == "cpu" else CHECK_EVERY


def rank(values: Array, end: str) -> Array:
    """How much each value is wanted at an end: higher is better."""
    return {"largest": values, "smallest": -values, "magnitude": np.abs(values)}[end]


def best(values: Array, end: str, count: int) -> NDArray[np.int64]:
    """Positions of the `count` most wanted values, the best first."""
    return np.argsort(-rank(values, end), kind="stable")[:count]
