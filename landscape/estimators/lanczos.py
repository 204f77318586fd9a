"""Eigenpairs at the ends of the spectrum by thick-restart Lanczos, in bounded memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.batches import digest
from landscape.checkpoint import Resume, Stage, State, stage_of
from landscape.errors import InputError
from landscape.estimators.krylov import Krylov, Ritz
from landscape.estimators.probes import generator
from landscape.estimators.sums import dots, norms
from landscape.estimators.verification import Verification
from landscape.operators.base import Operator, require_operator
from landscape.results import Cost, Meter, Progress

Which = Literal["largest", "smallest", "magnitude", "both"]
End = tuple[Literal["largest", "smallest", "magnitude"], int]
Array = NDArray[np.float64]
CHECK_EVERY = 5  # steps between two looks at numbers on a device that would have to be waited for
FREE = 2**24  # bytes of basis that are not worth saving
WIDEST = 300  # vectors; with more, the small dense problems would cost as much as the products
MISSING = 1e-3  # accepted probability that an eigenvalue is missing


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues with their vectors and how far each is from being exact.

    Attributes:
        values: (k,).
        vectors: (P, k), of unit length.
        residuals: (k,), bounds of ‖Av − λv‖, which is at least the distance of a value from an eigenvalue
            of A.
        converged: (k,), whether the residual is within the tolerance.
        gaps: (k,), distance of each value from the nearest other one that was seen, returned or not.
        complete: whether a search in the rest of the space was made and found nothing better; without it
            an eigenvalue may be missing, such as a further copy of a multiple one.
        missing: bound on the probability that the search overlooked one all the same; 1 where the bound
            says nothing, and only its convergence speaks for it.
        norm: the largest |λ| seen, to which the tolerance is relative.
        steps: products of the search.
        ends: what was asked for.
        cost: of everything.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    gaps: Tensor
    complete: bool
    missing: float
    norm: float
    steps: int
    ends: tuple[End, ...]
    cost: Cost

    @property
    def vector_errors(self) -> Tensor:
        """Bounds (k,) of sin ∠(v, eigenvector): residual over gap (Davis & Kahan 1970,
        doi:10.1137/0707001); 1 where eigenvalues lie too close to tell their vectors apart."""
        room = self.gaps - self.residuals
        return torch.where(room > 0, self.residuals / room, 1).clamp(max=1)


def eigenpairs(
    A: Operator,
    k: int = 1,
    *,
    which: Which = "largest",
    tolerance: float = 1e-4,
    basis: int | None = None,
    block: int = 1,
    max_steps: int | None = None,
    start: Tensor | None = None,
    verify: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    resume: Resume = None,
) -> Eigenpairs:
    """The k eigenpairs of A at the wanted end of the spectrum.

    Lanczos in a basis of bounded size, thick-restarted when it is full (Wu & Simon 2000,
    doi:10.1137/S0895479898334605), with full reorthogonalisation, so that no eigenvalue is returned twice
    by rounding. A Krylov space from one vector holds one direction of each eigenspace: a small residual
    proves an eigenpair, never completeness. So when the pairs have converged, a fresh random vector
    searches the rest of the space. If it finds better ones the pairs are locked and the search goes on;
    else it stops when an eigenvalue that was overlooked would be improbable (Kuczyński & Woźniakowski
    1992, doi:10.1137/0613066) or its own best value has converged. Residuals are those of the recurrence;
    one more product, with a random combination of the vectors, measures how far the recurrence is from
    the truth, rounding included, and this is added to each. (After a second search, k products measure
    them.)

    Args:
        A: the operator, order P.
        k: number of eigenpairs, at most P.
        which: "largest" or "smallest" (algebraically), "magnitude", or "both" ends (the larger half of
            an odd k from the top). The wanted come first: smallest first for "smallest", largest
            magnitude first for "magnitude", else largest first.
        tolerance: largest accepted residual, relative to the largest |λ| of A.
        basis: vectors of length P in the basis, at least k + 2·block (default 2k + 8, at least 20,
            and up to 300 as long as they take less than 16 MiB). About six more are at work beside it.
        block: vectors that are multiplied at once; more than one helps with clusters, and where a product
            with several costs little more than one with a single vector.
        max_steps: products of the search at most (default max(1000, 100·k)).
        start: (P,) or (P, j), vectors near the wanted ones, such as those of the same network a little
            earlier in training; the search begins with their sum, or with each where `block` is j.
        verify: search the rest of the space for better ones; without it `complete` is False.
        seed: of the random starting vectors.
        progress: called with (products done, products at most, as far as is known).
        resume: a file that keeps the state, so that the same call goes on after a kill; see `Checkpoint`.

    Returns:
        The pairs, whether or not they converged: look at `converged` and `complete`.

    Raises:
        InputError: k is not between 1 and P, `max_steps` or `basis` is too small, `start` does not fit, or
            the tolerance is not positive.

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
        A,
        ends,
        tolerance=tolerance,
        basis=basis,
        block=block,
        max_steps=max_steps,
        start=start,
        verify=verify,
        seed=seed,
        progress=progress,
        resume=resume,
    )
    return _ordered(found, found.values.argsort(descending=True)) if which == "both" else found


def extreme_eigenpairs(
    A: Operator,
    ends: Sequence[End],
    *,
    tolerance: float = 1e-4,
    basis: int | None = None,
    block: int = 1,
    max_steps: int | None = None,
    start: Tensor | None = None,
    verify: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    resume: Resume = None,
) -> Eigenpairs:
    """Eigenpairs for several ends at once, such as [("largest", 5), ("smallest", 1)].

    One Krylov space serves them all; the pairs come in the order of `ends`, the most wanted first.
    Everything else is as for `eigenpairs`.
    """
    require_operator(A)
    limit = checked_limit(A, ends, tolerance, max_steps)
    wanted = tuple((end, count) for end, count in ends if count)
    size = _basis(A, sum(count for _, count in wanted), basis, block)
    first = None if start is None else _starting(A, start, block)
    work = {"ends": wanted, "tolerance": tolerance, "basis": size, "block": block, "limit": limit}
    work |= {"verify": verify, "seed": seed, "start": None if first is None else digest(first)}
    stage = stage_of(resume, A, "eigenpairs", work)
    if stage.state is not None and "result" in stage.state:
        return _loaded(stage, A)
    meter = stage.meter(A)
    A.expect(min(limit, 10 * sum(count for _, count in wanted) + 30), width=block)
    search = _Search(A, wanted, tolerance, limit, size, block, verify, generator(seed), progress)
    if stage.state is None:
        search.begin(first)
    else:
        search.restore(stage.state)
    while not search.done:
        search.advance()
        stage.offer(meter, search.state)
    found = search.result(meter)
    if search.cut:  # what was cut off is known too roughly
        measured = remeasure(found, A, tolerance=tolerance)
        found = replace(measured, cost=found.cost + measured.cost)
    stage.offer(meter, lambda: _saved(found), done=True)
    return found


def _saved(found: Eigenpairs) -> State:
    return {"result": {f.name: getattr(found, f.name) for f in fields(found) if f.name != "cost"}}


def _loaded(stage: Stage, A: Operator) -> Eigenpairs:
    assert stage.state is not None
    assert stage.earlier is not None
    saved = stage.state["result"]
    tensors = {k: v.to(A.device) for k, v in saved.items() if isinstance(v, Tensor)}
    ends = tuple((end, count) for end, count in saved["ends"])
    return Eigenpairs(**saved | tensors | {"ends": ends, "cost": stage.earlier})


def checked_limit(A: Operator, ends: Sequence[End], tolerance: float, max_steps: int | None) -> int:
    """The most products that `extreme_eigenpairs` may use for its search.

    Raises:
        InputError: what it was asked for is out of range.
    """
    k = sum(count for _, count in ends)
    if not 1 <= k <= A.shape[0] or any(count < 0 for _, count in ends):
        raise InputError(f"k is {k}: it must lie between 1 and the order {A.shape[0]}")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise InputError(f"tolerance is {tolerance}: it must be positive, for example 1e-4")
    limit = max_steps if max_steps is not None else max(1000, 100 * k)
    if limit < k:
        raise InputError(f"max_steps is {max_steps}: {k} eigenpairs need at least {k} steps")
    return limit


def _basis(A: Operator, k: int, asked: int | None, block: int) -> int:
    """Vectors in the basis."""
    if block < 1:
        raise InputError(f"block is {block}: it must be at least 1")
    if asked is None:
        affordable = FREE // (A.dtype.itemsize * A.shape[0])
        asked = max(2 * k + 8, 20, k + 4 * block, min(WIDEST, affordable))
    elif asked < min(k + 2 * block, A.shape[0]):
        raise InputError(
            f"basis is {asked}: {k} eigenpairs in blocks of {block} need at least {k + 2 * block} vectors"
        )
    return asked


def _starting(A: Operator, start: Tensor, width: int) -> Tensor:
    """Starting vectors as a block of some width, or their sum."""
    block = start.detach().reshape(len(start), -1) if start.ndim in (1, 2) else start
    if block.ndim != 2 or len(block) != A.shape[0] or not block.shape[1]:
        raise InputError(
            f"start has shape {tuple(start.shape)}: give vectors of length {A.shape[0]} as columns"
        )
    if not bool(torch.isfinite(block).all()):
        raise InputError("start holds numbers that are not finite: leave it out")
    block = block.to(A.device, A.dtype)
    return block if block.shape[1] == width else block.sum(1, keepdim=True)


def remeasure(
    pairs: Eigenpairs, A: Operator, *, tolerance: float = 1e-4, stage: Stage | None = None
) -> Eigenpairs:
    """The same vectors measured with another operator: Rayleigh quotients and residuals by k products.

    Measured in float64, the pairs of a float32 operator get residuals that include the rounding of all
    the float32 arithmetic before, and values whose error is of second order in them.
    """
    stage = stage or Stage()
    meter = stage.meter(A)
    vectors = pairs.vectors.to(A.dtype)
    vectors = vectors / norms(vectors).to(vectors)
    numbers = torch.empty(2, 0, dtype=A.dtype, device=A.device)  # values and residuals
    if stage.state is not None:
        numbers = stage.state["numbers"].to(numbers)
    # A few at once: they lie in memory beside their products.
    for part in vectors[:, numbers.shape[1] :].split(4, dim=1):
        products = A @ part
        # Divided by the squared length once more: in float32 that is 1 only to seven digits.
        values = (dots(part, products) / dots(part, part)).to(vectors)
        residuals = norms(products.sub_(part * values)).to(vectors)
        numbers = torch.cat([numbers, torch.stack([values, residuals])], dim=1)
        done = numbers.shape[1] == vectors.shape[1]
        stage.offer(meter, lambda found=numbers: {"numbers": found}, done=done)  # type: ignore[misc]
    found = replace(
        pairs,
        values=numbers[0],
        vectors=vectors,
        residuals=numbers[1],
        converged=numbers[1] <= tolerance * pairs.norm,
        gaps=pairs.gaps.to(vectors),
        cost=meter.read(),
    )
    # Rayleigh quotients may stand in another order than the Ritz values did.
    order, start = [], 0
    for end, count in pairs.ends:
        group = found.values[start : start + count].double().cpu().numpy()
        order += [start + int(i) for i in _best(group, end, count)]
        start += count
    return _ordered(found, torch.tensor(order, device=vectors.device))


def _ordered(pairs: Eigenpairs, order: Tensor) -> Eigenpairs:
    return replace(
        pairs,
        values=pairs.values[order],
        vectors=pairs.vectors[:, order],
        residuals=pairs.residuals[order],
        converged=pairs.converged[order],
        gaps=pairs.gaps[order],
    )


class _Search:
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
        self.norm, self.steps, self.missing, self.complete = 0.0, 0, 1.0, False
        # Ranks that the last pair of each end must reach, since better ones were seen.
        self.owed = [-math.inf] * len(ends)
        self.every = _every(A)

    @property
    def accepted(self) -> float:
        """Largest residual bound of a pair that is done; half is left to rounding."""
        return 0.5 * self.tolerance * self.norm

    @property
    def exhausted(self) -> bool:
        return self.steps >= self.limit and self.space.size >= self.k

    @property
    def done(self) -> bool:
        found = self.complete or (self.rest is not None and not self.verify)
        return found or self.exhausted

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

    def result(self, meter: Meter) -> Eigenpairs:
        """The wanted pairs as they are now; everything else is given up."""
        values, residuals = self.ritz.values[self.chosen], self.ritz.bounds[self.chosen]
        gaps = self._gaps()
        self.rest = None
        self.space.restart(self.ritz, self.chosen)
        if not self.cut:
            residuals = residuals + self.space.discrepancy(self.source)
        vectors = self.space.basis[: self.k].clone().T
        self.space.basis = vectors.T
        return Eigenpairs(
            torch.as_tensor(values).to(vectors),
            vectors,
            torch.as_tensor(residuals).to(vectors),
            torch.as_tensor(residuals <= self.tolerance * self.norm).to(vectors.device),
            torch.as_tensor(gaps).to(vectors),
            self.complete,
            self.missing,
            self.norm,
            self.steps,
            self.ends,
            meter.read(),
        )

    def state(self) -> State:
        """What has to be saved to go on later."""
        names = ("norm", "steps", "missing", "complete", "owed")
        return {name: getattr(self, name) for name in names} | {
            "space": self.space.state(),
            "rest": None if self.rest is None else self.rest.state(),
            "source": self.source.get_state(),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        for name in ("norm", "steps", "missing", "complete", "owed"):
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
        if everything or (len(ritz.values) >= self.k and self._settled(ritz)):
            self._turn_to_the_rest()
        elif space.closed:
            space.begin_afresh(self.block, self.source)
        elif space.room < space.width and not self.exhausted:
            space.restart(ritz, self._kept(ritz))

    def _settled(self, ritz: Ritz) -> bool:
        """Whether the wanted pairs have converged, and are as good as any that were seen."""
        ranks = [np.sort(_rank(ritz.values[self.chosen], end))[-n] for end, n in self.ends]
        enough = all(r >= o - self.accepted for r, o in zip(ranks, self.owed, strict=True))
        return enough and bool(ritz.bounds[self.chosen].max() <= self.accepted)

    def _choose(self, values: Array) -> list[int]:
        """Positions of the wanted values; no pair for two ends, even where values are equal."""
        chosen: list[int] = []
        for end, count in self.ends:
            ranked = _best(values, end, len(values)).tolist()
            chosen += [i for i in ranked if i not in chosen][:count]
        return chosen

    def _kept(self, ritz: Ritz) -> list[int]:
        """Which Ritz vectors survive a restart: the wanted, and the next in line where they are needed."""
        kept = list(self.chosen)
        room = len(kept) + (len(self.space.basis) - 2 * self.space.width - len(kept)) // 2
        start, queues = 0, []
        for end, count in self.ends:
            if ritz.bounds[self.chosen[start : start + count]].max() > self.accepted:
                queues.append(_best(ritz.values, end, len(ritz.values)).tolist())
            start += count
        for turn in range(len(ritz.values)):
            for queue in queues:
                if queue[turn] not in kept and len(kept) < room:
                    kept.append(queue[turn])
        return kept

    # The rest of the space.

    def _turn_to_the_rest(self) -> None:
        """Look for eigenvalues outside the space; where it hides too much, outside the wanted pairs."""
        for sign, threshold in self._sides():
            values = np.sort(sign * np.delete(self.ritz.values, self.chosen))
            nearest = values[-1] if len(values) else -math.inf
            if self._hides(sign, threshold, (threshold + nearest) / 2):
                self.space.lock(self.ritz, self.chosen)
                self.ritz = self.space.look()
                self.chosen = self._choose(self.ritz.values)
                break
        self.rest = Verification(self.A, self.space.basis[: self.space.size], self.source)

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
            self.owed = [float(np.sort(_rank(known, end))[-n]) for end, n in self.ends]
            self.space.lock(self.ritz, self.chosen)
            self.space.begin_afresh(self.block, self.source)
            self.rest = None

    def _verdict(
        self, rest: Verification, values: Array, bounds: Array, sign: int, threshold: float
    ) -> float | None:
        """How probable it is, at most, that something beyond the threshold is missing; None: go on."""
        if not len(values):
            return 0.0
        order = np.argsort(sign * values)
        smallest, largest = (sign * values[order])[[0, -1]]
        if largest > threshold:
            return None
        probability = 1.0
        for share in (0.9, 0.7, 0.5, 0.3):
            between = largest + share * (threshold - largest)
            if not self._hides(sign, threshold, between):
                reach = smallest - bounds[order[0]]
                probability = rest.missing(between, largest, reach)
                break
        settled = probability <= MISSING or rest.closed or bounds[order[-1]] <= self.accepted
        return probability if settled else None

    def _hides(self, sign: int, threshold: float, outside: float) -> bool:
        """Whether A may have more eigenvalues beyond the threshold than the wanted ones.

        Outside the space all are below `outside`. A = [T Eᵀ; E B] has as many above t > max λ(B) as
        T + Eᵀ (t − B)⁻¹ E (Haynsworth 1968, doi:10.1016/0024-3795(68)90050-5), which is no larger than
        T + EᵀE / (t − outside).
        """
        space = self.space
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
            last = _rank(self.ritz.values[self.chosen[start : start + count]], end).min()
            signs = {"largest": [1], "smallest": [-1], "magnitude": [1, -1]}[end]
            sides += [(sign, float(last) + self.accepted) for sign in signs]
            start += count
        return sides

    def _gaps(self) -> Array:
        """Distance of every wanted value from the nearest other one that was seen."""
        values = self.ritz.values
        others = values if self.rest is None else np.append(values, self.rest.look()[0])
        gaps = np.abs(values[self.chosen][:, None] - others)
        gaps[np.arange(self.k), self.chosen] = math.inf
        return gaps.min(axis=1)

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.steps, max(self.steps, self.limit))


def _every(A: Operator) -> int:
    """Steps between two looks: where nothing has to be waited for, none is wasted."""
    return 1 if A.device.type == "cpu" else CHECK_EVERY


def _rank(values: Array, end: str) -> Array:
    """How much each value is wanted at an end: higher is better."""
    return {"largest": values, "smallest": -values, "magnitude": np.abs(values)}[end]


def _best(values: Array, end: str, count: int) -> NDArray[np.int64]:
    """Positions of the `count` most wanted values, the best first."""
    return np.argsort(-_rank(values, end), kind="stable")[:count]
