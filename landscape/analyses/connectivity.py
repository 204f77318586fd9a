"""Does a path of low loss join two models?"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from landscape.analyses.axes import State
from landscape.analyses.curves import SHAPES, Curve, Shape, train_bends
from landscape.analyses.other_model import difference
from landscape.batches import as_batches
from landscape.errors import InputError
from landscape.estimators.loss_at import NORM_STATS, LossAt, Losses, NormStats
from landscape.problem import Problem
from landscape.results import (
    CONNECTIVITY_SCHEMA,
    Cost,
    atomic,
    cost_of_time,
    provenance,
    write_tensors,
)
from landscape.saved import NOT_SAVED, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Phase = Literal["bend", "points"]
EPOCHS, LEARNING_RATE = 30, 0.01


@dataclass(frozen=True)
class Barrier:
    """How far the loss rises on the way, and where: NaN if it is not finite somewhere.

    `standard_error` is that of the same difference of losses sample by sample, at this t, as if t had
    been chosen beforehand.
    """

    height: float
    standard_error: float
    t: float


@dataclass(frozen=True)
class Profile:
    """Loss and accuracy on some data at every t of a path, with standard errors over the samples.

    Attributes:
        over_endpoints: max L(t) − max(L(0), L(1)).
        over_line: max of L(t) − [(1 − t) L(0) + t L(1)] (Frankle et al. 2020, arXiv:1912.05671; Entezari
            et al. 2022, arXiv:2110.06296).
    """

    loss: list[float]
    standard_error: list[float]
    accuracy: list[float] | None
    accuracy_standard_error: list[float] | None
    over_endpoints: Barrier
    over_line: Barrier


@dataclass(frozen=True)
class Along:
    """What was found along one path: its length in weight space, and the losses."""

    path: str
    length: float
    train: Profile
    held_out: Profile | None


@dataclass(frozen=True, eq=False)
class Connectivity(Result, schema=CONNECTIVITY_SCHEMA):
    """The loss on the straight line between two models and, if asked for, on a trained path.

    Attributes:
        parameters: P.
        path: "linear", "bezier" or "polygon".
        bends: of the trained path.
        distance: between the two models, the length of ‖θ₁ − θ₀‖.
        norm_stats: statistics of batch normalisation at every t; None if the model has none.
        t: the places, from 0, the problem's model, to 1, the other.
        linear: on the straight line.
        trained: on the trained path; None for "linear".
        notes: what a reader should know; `failures`: what could not be trusted.
        curve: the path itself, not part of the JSON.
    """

    parameters: int
    path: str
    bends: int
    distance: float
    norm_stats: str | None
    t: list[float]
    linear: Along
    trained: Along | None
    notes: list[str]
    failures: list[str]
    cost: Cost
    provenance: dict[str, Any]
    curve: Curve | None = field(default=None, repr=False, metadata=NOT_SAVED)

    def state(self, t: float = 0.5) -> dict[str, Tensor]:
        """The state dict of the model at t on the path.

        Running statistics of batch normalisation lie on the line between those of the two models:
        estimate them anew where that matters (`torch.optim.swa_utils.update_bn`).

        Raises:
            InputError: the result was read from a file.
        """
        return self._kept().state(t)

    def save_weights(self, path: str | Path, t: float = 0.5) -> None:
        """Write `state(t)` as safetensors, to be loaded like any weights."""
        write_tensors(self.state(t), path)

    def save_vectors(self, path: str | Path) -> None:
        """Write bends and end of the path, less its beginning, as vectors (P, bends + 1), for `read_vectors`."""
        vectors = self._kept().points
        with atomic(path) as temporary:
            torch.save({"vectors": vectors.cpu()}, temporary)

    def _kept(self) -> Curve:
        if self.curve is None:
            raise InputError("the path is not part of a saved result: connect the models anew")
        return self.curve

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """Draw loss and accuracy along the paths; see `landscape.plots.connectivity.plot_connectivity`."""
        from landscape.plots.connectivity import plot_connectivity

        return plot_connectivity(self.to_dict(), path, **options)


def connectivity(
    problem: Problem,
    other: State | Tensor,
    path: Shape = "bezier",
    *,
    points: int = 21,
    bends: int = 1,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    norm_stats: NormStats | None = None,
    held_out: Any = None,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    command: str | None = None,
) -> Connectivity:
    """The loss between two models: on the straight line, and on a path whose bends are trained.

    The loss at every point is that of all the data. Both models stay as they are, and both ends of the
    path too: only the bends are trained, on the problem's data (Garipov et al. 2018, arXiv:1802.10026).

    Args:
        problem: the loss; its model is at t = 0.
        other: the model at t = 1: a module, a state dict, or a vector (P,) of its selected parameters.
        path: "linear" trains nothing; "bezier" a Bézier curve, quadratic with one bend; "polygon" a chain
            of straight pieces.
        points: places t, both ends among them, at equal distances in t.
        bends: control points of the path between its ends.
        epochs, learning_rate: of training the bends by Adam, see `train_bends`.
        norm_stats: of batch normalisation: "reestimated" at every point on the problem's data, the
            default where the model has it; "running": on the line between those of the two models;
            "batch". Bends are trained with the statistics of the batch, unless "running" is asked for.
        held_out: data like those of the problem, on which the path is judged as well.
        seed: of the training.
        progress: called with (phase, done, expected).
        command: what was typed, for provenance.

    Returns:
        A `Connectivity`; its `failures` say what could not be trusted.

    Raises:
        InputError: arguments out of range, or a model of another architecture.

    Example:
        >>> import torch, landscape as ls
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, -1.0)
        >>> problem = ls.Problem(model, lambda out, y: (out**2 - 1) ** 2, (torch.ones(3, 1),) * 2)
        >>> found = ls.connectivity(problem, torch.ones(1), "linear", points=5)
        >>> found.linear.train.loss, found.linear.train.over_line.t
        ([0.0, 0.5625, 1.0, 0.5625, 0.0], 0.5)
    """
    start = time.perf_counter()
    stats: NormStats = norm_stats or _default_statistics(problem)
    _check(path, points, bends, epochs, learning_rate, stats)
    end, buffers = difference(problem, other)
    line = _curve(problem, "linear", end[:, None], buffers)
    notes = _notes(problem, other, stats)
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    judges = [problem]
    if held_out is not None:
        judges.append(problem.over(as_batches(held_out, None, pairs=problem.objective is not None)))
    curves = [line]
    if path != "linear":
        trainer = copy.copy(problem)
        trainer.norm_stats = "running" if stats == "running" else "batch"
        found = train_bends(
            trainer,
            end,
            path,
            bends=bends,
            epochs=epochs,
            learning_rate=learning_rate,
            buffers=buffers,
            seed=seed,
            progress=None if progress is None else partial(progress, "bend"),
        )
        nodes = torch.cat([found.to(end), end[:, None]], dim=1)
        curves.append(_curve(problem, path, nodes, buffers))
    total, done = len(curves) * len(judges) * points, 0

    def report(number: int, _: int) -> None:
        if progress is not None:
            progress("points", done + number, total)

    measured = []
    for curve in curves:
        profiles: list[Profile] = []
        for judge in judges:
            profiles.append(_profile(judge, problem, curve, t, stats, report))
            done += points
        unseen = profiles[1] if held_out is not None else None
        measured.append(Along(curve.shape, curve.length(), profiles[0], unseen))
    trained = measured[1] if path != "linear" else None
    if trained is not None:
        before, after = measured[0].train.over_line.height, trained.train.over_line.height
        if after >= before:
            notes.append(
                "the trained path rises no less than the straight line: raise epochs, or lower learning_rate"
            )
    seconds = time.perf_counter() - start
    arguments: dict[str, Any] = {"path": path, "points": points, "bends": bends, "epochs": epochs}
    arguments |= {"learning_rate": learning_rate, "norm_stats": stats, "seed": seed}
    return Connectivity(
        parameters=problem.size,
        path=path,
        bends=0 if path == "linear" else bends,
        distance=float(end.norm()),
        norm_stats=stats if problem.has_statistics() else None,
        t=t.tolist(),
        linear=measured[0],
        trained=trained,
        notes=notes,
        failures=_failures(measured, t),
        cost=cost_of_time(problem, seconds),
        provenance=provenance(problem, seed=seed, command=command) | {"arguments": arguments},
        curve=curves[-1],
    )


def _default_statistics(problem: Problem) -> NormStats:
    return "reestimated" if problem.has_statistics() else problem.norm_stats


def _check(
    path: str, points: int, bends: int, epochs: int, learning_rate: float, stats: str
) -> None:
    if path not in SHAPES:
        raise InputError(f"path is {path!r}: choose {', '.join(map(repr, SHAPES))}")
    if stats not in NORM_STATS:
        raise InputError(f"norm_stats is {stats!r}: choose {', '.join(map(repr, NORM_STATS))}")
    if points < 3:
        raise InputError(f"points is {points}: 3 or more show what lies between the ends")
    if bends < 1 or epochs < 1 or not 0 < learning_rate < math.inf:
        raise InputError(
            f"bends is {bends}, epochs {epochs} and learning_rate {learning_rate:g}: all must be positive"
        )


def _curve(problem: Problem, shape: Shape, points: Tensor, buffers: dict[str, Tensor]) -> Curve:
    named = list(problem.model.named_parameters(remove_duplicate=False))
    model = {
        name: value.detach().cpu().clone()
        for name, value in problem.model.state_dict().items()
        if isinstance(value, Tensor)
    }
    names = {
        name: [alias for alias, p in named if p is own and alias in model]
        for name, own in zip(problem.names, problem.selected(), strict=True)
    }
    return Curve(shape, points, problem.layout, buffers, model, names)


def _profile(
    judge: Problem,
    source: Problem,
    curve: Curve,
    t: Tensor,
    stats: NormStats,
    progress: Callable[[int, int], None],
) -> Profile:
    """Losses on the data of `judge`; statistics are estimated anew on those of `source`."""
    loss_at = LossAt(
        judge,
        curve.directions(),
        norm_stats=stats,
        statistics_of=source,
        buffers=curve.buffer_directions(),
    )
    found = loss_at(curve.coordinates(t), progress=progress)
    accuracy, spread = found.accuracy, found.accuracy_standard_error
    return Profile(
        loss=_finite(found.loss),
        standard_error=_finite(found.standard_error),
        accuracy=None if accuracy is None else accuracy.tolist(),
        accuracy_standard_error=None if spread is None else spread.tolist(),
        over_endpoints=_over_endpoints(loss_at, curve, t, found),
        over_line=_over_line(loss_at, curve, t, found),
    )


def _over_endpoints(loss_at: LossAt, curve: Curve, t: Tensor, found: Losses) -> Barrier:
    loss = found.loss
    highest, base = int(loss.argmax()), 0 if loss[0] >= loss[-1] else len(t) - 1
    return _barrier(loss_at, curve, t, found, {highest: 1.0}, {base: 1.0})


def _over_line(loss_at: LossAt, curve: Curve, t: Tensor, found: Losses) -> Barrier:
    loss = found.loss
    rise = loss - ((1 - t) * loss[0] + t * loss[-1])
    rise[0] = rise[-1] = 0  # but for rounding
    highest = int(rise.argmax())
    line = {0: 1 - float(t[highest]), len(t) - 1: float(t[highest])}
    return _barrier(loss_at, curve, t, found, {highest: 1.0}, line)


def _barrier(
    loss_at: LossAt,
    curve: Curve,
    t: Tensor,
    found: Losses,
    above: Mapping[int, float],
    below: Mapping[int, float],
) -> Barrier:
    """The difference of two mixtures of points."""
    if not bool(torch.isfinite(found.loss).all()):
        return Barrier(math.nan, math.nan, math.nan)
    (top,) = above
    weights = torch.zeros(len(t), dtype=torch.float64)
    for places, sign in ((above, 1.0), (below, -1.0)):
        for place, weight in places.items():
            weights[place] += sign * weight
    where = weights.nonzero().flatten()
    if not len(where):  # the highest point is an end
        return Barrier(0.0, 0.0, float(t[top]))
    difference = loss_at.contrast(curve.coordinates(t[where]), weights[where])
    return Barrier(difference.value, difference.standard_error, float(t[top]))


def _finite(values: Tensor) -> list[float]:
    return torch.where(torch.isfinite(values), values, torch.nan).tolist()


def _notes(problem: Problem, other: State | Tensor, stats: NormStats) -> list[str]:
    if stats == "running" and problem.has_statistics() and isinstance(other, Tensor):
        return ["the vector has no running statistics: those of the first model hold everywhere"]
    return []


def _failures(measured: list[Along], t: Tensor) -> list[str]:
    failures = []
    for along in measured:
        for data, profile in (("training", along.train), ("held-out", along.held_out)):
            losses = [] if profile is None else profile.loss
            lost = [float(x) for x, loss in zip(t, losses, strict=False) if not math.isfinite(loss)]
            if lost:
                failures.append(
                    f"the {data} loss on the {along.path} path is not finite at {len(lost)} of {len(t)} "
                    f"points, the first at t = {lost[0]:g}"
                )
    return failures
