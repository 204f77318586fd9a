"""The loss at points around the model's weights: θ plus combinations of given directions."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from landscape.batches import join
from landscape.errors import InputError
from landscape.estimators.pace import Pace, Way
from landscape.evaluation import Evaluation
from landscape.memory import is_out_of_memory
from landscape.problem import Problem
from landscape.reestimation import reestimate, running_statistics
from landscape.results import Measured
from landscape.slots import buffer_places

NormStats = Literal["running", "batch", "reestimated"]
NORM_STATS: tuple[NormStats, ...] = ("running", "batch", "reestimated")
HANDOVER = 0.2  # seconds of work between points that are handed over, about
PLAIN = Way()
LONGEST = 64  # groups of points handed over together at most


class Losses(NamedTuple):
    """What was found at K points, each float64 of shape (K,); NaN or infinite as it comes.

    Attributes:
        loss: L at the point.
        standard_error: of L, over the samples as a draw from a population.
        rise: L minus its value at the model's weights.
        rise_standard_error: of that difference, sample by sample: how certain the shape is.
        accuracy: share of right classes; None where there are no classes to be right.
        accuracy_standard_error: of that share, its cases taken as independent.
    """

    loss: Tensor
    standard_error: Tensor
    rise: Tensor
    rise_standard_error: Tensor
    accuracy: Tensor | None
    accuracy_standard_error: Tensor | None = None


def joined(parts: Sequence[Losses]) -> Losses:
    """What was found at all points of some parts."""
    kinds = zip(*parts, strict=True)
    return Losses(*(None if None in kind else torch.cat(kind) for kind in kinds))  # type: ignore[arg-type]


class _Sums(NamedTuple):
    """Of k points: loss terms of every unit summed, (k, n); right classes (k,), and of how many."""

    units: Tensor
    hits: Tensor
    cases: int


class LossAt:
    """L(θ + D c) over all the data of a problem, for the coordinates c of any number of points.

    Points are evaluated one by one, or several at once by `torch.vmap` over the parameters; batches as they
    are, or several as one where samples stand for themselves. What is the fastest here, and gives the same,
    is found out with the first points: `pace`.
    Standard errors are over samples, or over batches where a sample has no loss of its own (closures,
    losses that return a scalar, batch statistics); NaN for a single batch.

    Args:
        problem: the loss; θ are its model's weights.
        directions: D, of shape (P, d).
        norm_stats: of batch normalisation, at every point: "running" (those of the model), "batch" (of
            every batch), or "reestimated": the running statistics are estimated anew at the point, as the
            mean of the batches' weighted by their rows (Izmailov et al. 2018, arXiv:1803.05407, section
            3.2). Default: as in the problem.
        statistics_of: the problem on whose data the statistics are estimated anew (default: the same).
        buffers: how buffers of the model move with the coordinates, by name, of shape (*buffer, d).
        at_once: points evaluated together, batches as they are (default: what is the fastest).

    Raises:
        InputError: directions of another shape, or statistics that cannot be estimated.

    Example:
        >>> import torch, landscape as ls
        >>> from landscape.estimators.loss_at import LossAt
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> torch.nn.init.ones_(model.weight).numel()
        1
        >>> problem = ls.Problem(model, "mse", (torch.ones(3, 1), torch.zeros(3, 1)))
        >>> LossAt(problem, torch.ones(1, 1))(torch.tensor([[0.0], [1.0]])).loss.tolist()
        [1.0, 4.0]
    """

    def __init__(
        self,
        problem: Problem,
        directions: Tensor,
        *,
        norm_stats: NormStats | None = None,
        statistics_of: Problem | None = None,
        buffers: Mapping[str, Tensor] | None = None,
        at_once: int | None = None,
    ) -> None:
        if directions.ndim != 2 or directions.shape[0] != problem.size:
            raise InputError(
                f"the directions have shape {tuple(directions.shape)}: expected ({problem.size}, d)"
            )
        self.norm_stats: NormStats = norm_stats or problem.norm_stats
        self.problem = copy.copy(problem)
        self.problem.norm_stats = "batch" if self.norm_stats == "batch" else "running"
        self.directions = directions.to(problem.device, problem.dtype)
        self.evaluations = 0
        self._statistics = running_statistics(problem) if self.norm_stats == "reestimated" else []
        self._statistics_of = problem if statistics_of is None else statistics_of
        self._buffers = buffer_places(problem, buffers or {})
        self._by_sample = (
            problem.objective is not None
            and problem.objective.recognised
            and not self.problem.uses_batch_statistics()
        )
        # Where every point has statistics of its own, they are not estimated together.
        alone = bool(self._statistics or self._buffers)
        self.pace = Pace(
            PLAIN if alone else Way(at_once) if at_once else None,
            batches=problem.batch_count,
            join=self._by_sample,
        )
        self._terms = self._center = torch.empty(0)

    def __call__(
        self, coordinates: Tensor, *, progress: Callable[[int, int], None] | None = None
    ) -> Losses:
        """Evaluate points.

        Args:
            coordinates: (K, d).
            progress: called with (points done, points).
        """
        found, done = [], 0
        for part in self.parts(coordinates):
            found.append(part)
            done += len(part.loss)
            if progress is not None:
                progress(done, len(coordinates))
        return joined(found)

    def parts(self, coordinates: Tensor) -> Iterator[Losses]:
        """Evaluate points, and hand over those that were evaluated together at once, in their order.

        Args:
            coordinates: (K, d).
        """
        c, done = self._checked(coordinates), 0
        with self.problem.evaluation() as run, torch.no_grad():
            if not len(self._terms):
                self._terms = self._count(run)
                self._center = self._sums(run, torch.zeros_like(c[:1])).units
            groups = 1
            while done < len(c):
                start = time.perf_counter()
                if self.pace.trial is not None and 2 * self.pace.trial.points <= len(c) - done:
                    sums = self._try(run, c[done:], self.pace.trial)
                else:
                    sums = self._several(run, c[done : done + groups * self.pace.best.points])
                if sums is None:
                    continue
                done += len(sums.units)
                self.evaluations += len(sums.units)
                yield self._losses(sums)
                if time.perf_counter() - start < HANDOVER / 2:
                    groups = min(2 * groups, LONGEST)

    def gradient_norms(
        self, coordinates: Tensor, *, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """‖∇L‖ at points, with respect to all selected parameters, (K,) float64.

        Args:
            coordinates: (K, d).
            progress: called with (points done, points).
        """
        found = []
        with self.problem.evaluation() as run:
            for c in self._checked(coordinates):
                self._move(run, c)
                length = run.gradient().gradient.double().norm()
                found.append(length.cpu() / self.problem.terms)
                run.place(run.values)
                self.evaluations += 1
                if progress is not None:
                    progress(len(found), len(coordinates))
        return torch.stack(found)

    def contrast(self, coordinates: Tensor, weights: Tensor) -> Measured:
        """Σ_k w_k L at a few points, its standard error unit by unit: what the points share cancels.

        Args:
            coordinates: (K, d).
            weights: w, (K,).
        """
        c = self._checked(coordinates)
        with self.problem.evaluation() as run, torch.no_grad():
            if not len(self._terms):
                self._terms = self._count(run)
            sums = [
                float(w) * self._sums(run, one[None]).units
                for w, one in zip(weights, c, strict=True)
            ]
        self.evaluations += len(c)
        value, error = self._ratio(torch.stack(sums).sum(0))
        return Measured(float(value), float(error))

    def _checked(self, coordinates: Tensor) -> Tensor:
        c = coordinates.to(self.directions)
        if c.ndim != 2 or c.shape[1] != self.directions.shape[1]:
            raise InputError(
                f"the coordinates have shape {tuple(c.shape)}: expected (K, {self.directions.shape[1]})"
            )
        return c

    def _ratio(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Means, and standard errors of ratios: sums over units by the numbers of their terms."""
        terms, total = self._terms, self._terms.sum()
        n = len(terms)
        mean = units.sum(1) / total
        off = (units - mean[:, None] * terms).square().sum(1)
        return mean, (off * n / (n - 1)).sqrt() / total if n > 1 else mean * torch.nan

    def _losses(self, sums: _Sums) -> Losses:
        loss, error = self._ratio(sums.units)
        rise, rise_error = self._ratio(sums.units - self._center)
        if not sums.cases:
            return Losses(loss, error, rise, rise_error, None)
        share = sums.hits / sums.cases
        spread = share * (1 - share) / (sums.cases - 1) if sums.cases > 1 else share * torch.nan
        return Losses(loss, error, rise, rise_error, share, spread.sqrt())

    def _count(self, run: Evaluation) -> Tensor:
        """The number of loss terms of every unit, (n,) float64."""
        if not self._by_sample:
            counts = [run.total(batch)[1] for batch in run.batches()]
            return torch.tensor(counts, dtype=torch.float64)
        objective = self.problem.supervised()
        return torch.cat([objective.row_terms(*run.output(batch)) for batch in run.batches()])

    def _several(self, run: Evaluation, c: Tensor) -> _Sums | None:
        """Sums at some points; None after running out of memory, for which less is taken from now on."""
        try:
            return self._sums(run, c, self.pace.best)
        except Exception as error:
            if not is_out_of_memory(error) or not self.pace.slow_down():
                raise
            return None

    def _try(self, run: Evaluation, c: Tensor, way: Way) -> _Sums | None:
        """Sums at the first points in some way, and its time; None if it fails or gives something else."""
        n = way.points
        try:
            warm = self._sums(run, c[:n], way)
            start = time.perf_counter()
            found = self._sums(run, c[n : 2 * n], way)
            seconds = (time.perf_counter() - start) / n
            right = warm if way == PLAIN else self._sums(run, c[:1])
        except Exception:  # vmap fails in many ways, joined batches in some; the plain way must not
            if way == PLAIN:
                raise
            self.pace.report(math.inf)
            return None
        off = (warm.units[0] - right.units[0]).nan_to_num(0, 0, 0).abs().amax()
        slack = torch.finfo(self.problem.dtype).eps ** 0.5
        same = bool(off <= slack * right.units[0].nan_to_num(0, 0, 0).abs().amax())
        self.pace.report(seconds if same else math.inf)
        return _joined([warm, found]) if same else None

    def _sums(self, run: Evaluation, c: Tensor, way: Way = PLAIN) -> _Sums:
        """Sums at some points, evaluated in some way."""
        parts = []
        for some in c.split(way.points):
            alone = way.points == 1
            parts.append((self._one if alone else self._together)(run, some, way.batches))
        return _joined(parts)

    def _one(self, run: Evaluation, c: Tensor, joined: int) -> _Sums:
        """Sums at one point, (1, d)."""
        try:
            self._move(run, c[0])
            parts = [self._measure(run, batch) for batch in self._batches(run, joined)]
        finally:
            run.place(run.values)
        units = torch.cat([units for units, _, _ in parts])
        hits = torch.cat([hit for _, hit, _ in parts]).sum()
        return _Sums(units[None], hits[None], sum(cases for *_, cases in parts))

    def _batches(self, run: Evaluation, joined: int) -> Iterator[Any]:
        """All batches, so many of them as one."""
        if joined == 1:
            yield from run.batches()
            return
        rest = run.batches()
        while group := list(islice(rest, joined)):
            yield join(group)

    def _move(self, run: Evaluation, c: Tensor) -> None:
        """Let weights, buffers and statistics be those of a point; `run.place(run.values)` ends it."""
        run.move(self.directions @ c, [(place, step @ c) for place, step in self._buffers])
        if self._statistics:
            reestimate(run, self._statistics, self._statistics_of.batches())

    def _together(self, run: Evaluation, c: Tensor, joined: int) -> _Sums:
        """Sums at several points by `torch.vmap` over the selected parameters."""
        own = [leaf.detach() for leaf in run.leaves]
        moved = (self.directions @ c.T).T.split(self.problem.layout.sizes, dim=1)
        leaves = [
            leaf + part.reshape(-1, *leaf.shape) for leaf, part in zip(own, moved, strict=True)
        ]
        cases = 0
        units, hits = [], torch.zeros(len(c), device=c.device)

        def at(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal cases
            run.place_tracked(leaves)
            found, hit, number = self._measure(run, batch)
            cases += number
            return found, hit

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                for batch in self._batches(run, joined):
                    found, hit = torch.vmap(at)(leaves)
                    units.append(found)
                    hits = hits + hit.reshape(-1)
        finally:
            run.place(run.values)
        return _Sums(torch.cat(units, dim=1), hits, cases)

    def _measure(self, run: Evaluation, batch: Any) -> tuple[Tensor, Tensor, int]:
        """Of a batch: loss terms summed by unit, number of right classes (1,), and of how many."""
        nothing = torch.zeros(1, device=self.problem.device)
        objective = self.problem.objective
        if objective is None:
            return run.total(batch)[0][None], nothing, 0
        output, target = run.output(batch)
        if self._by_sample:
            units = objective.rows(output, target)
        else:
            units = objective.total(output, target)[0][None]
        found = objective.hits(output, target)
        if found is None:
            return units, nothing, 0
        right, cases = found
        return units, right.float()[None], cases


def _joined(parts: Sequence[_Sums]) -> _Sums:
    """Sums at the points of all parts, float64 on the CPU."""
    units = torch.cat([part.units for part in parts]).double().cpu()
    hits = torch.cat([part.hits for part in parts]).double().cpu()
    return _Sums(units, hits, parts[0].cases)
