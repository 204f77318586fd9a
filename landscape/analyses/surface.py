"""What does the loss look like around the weights, along chosen directions?"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.analyses.adaptive import Interpolation, fill
from landscape.analyses.axes import (
    Axes,
    Axis,
    Marker,
    given_axes,
    gradient_axes,
    hessian_axes,
    random_axes,
)
from landscape.analyses.curvature_map import CurvatureMap, curvature_map
from landscape.analyses.evaluated_points import EvaluatedPoints
from landscape.analyses.extent import Extent, suggested_extents
from landscape.analyses.surface_checks import Checks, check_failures, checks_of
from landscape.batches import digest
from landscape.checkpoint import Stage, stages
from landscape.errors import InputError
from landscape.estimators.loss_at import NORM_STATS, LossAt, NormStats
from landscape.operators.hessian import Hessian
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import SURFACE_SCHEMA, Cost, atomic, cost_of_time, provenance
from landscape.saved import NOT_SAVED, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Kind = Literal["hessian", "random", "gradient"]
Phase = Literal["eigenvalues", "points", "gradients", "curvature"]


@dataclass(frozen=True, eq=False)
class Surface(Result, schema=SURFACE_SCHEMA):
    """The loss on a grid θ + Σ c_i d_i around a model's weights.

    Attributes:
        parameters: P.
        kind: of the axes.
        axes: the directions, see `Axis`; a step of 1 in the grid is `length` in weight space.
        normalisation: how the directions were scaled; None for not at all.
        largest_cosine: between two of the directions.
        norm_stats: statistics of batch normalisation at every point; None if the model has none.
        grid: the coordinates along every axis.
        loss: of shape (points on axis 1, points on axis 2, …); NaN where it is not finite.
        loss_standard_error: over the samples as a draw from a population.
        rise_standard_error: of the difference to the model's loss, sample by sample.
        accuracy: share of right classes; None where there are no classes.
        center: the loss at the model's weights.
        markers: other models in the picture.
        computed: which points were computed, the others being interpolated, and `interpolation` how well;
            None where all were.
        checks: see `Checks`.
        evaluations: points at which the loss was computed.
        at_once: points computed together.
        notes: what a reader should know; `failures`: what could not be trusted.
        gradient_norm: ‖∇L‖ at every point, and `curvature` the ends of the Hessian's spectrum on a grid
            of its own; None where they were not asked for.
        directions: (P, d), not part of the JSON.
    """

    parameters: int
    kind: str
    axes: list[Axis]
    normalisation: str | None
    largest_cosine: float
    norm_stats: str | None
    grid: list[Array]
    loss: Array
    loss_standard_error: Array
    rise_standard_error: Array
    accuracy: Array | None
    center: float
    markers: list[Marker]
    checks: Checks
    evaluations: int
    at_once: int
    notes: list[str]
    failures: list[str]
    cost: Cost
    provenance: dict[str, Any]
    gradient_norm: Array | None = None
    curvature: CurvatureMap | None = None
    computed: NDArray[np.bool_] | None = None
    interpolation: Interpolation | None = None
    directions: Tensor | None = field(default=None, repr=False, metadata=NOT_SAVED)

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """Draw the surface; see `landscape.plots.surface.plot_surface`."""
        from landscape.plots.surface import plot_surface

        return plot_surface(self.to_dict(), path, **options)

    def save_arrays(self, path: str | Path) -> None:
        """Write grid, loss, errors and accuracy as arrays, .npz or .safetensors.

        Raises:
            InputError: another ending.
        """
        arrays = {f"grid_{i + 1}": points for i, points in enumerate(self.grid)}
        for name in (
            "loss",
            "loss_standard_error",
            "rise_standard_error",
            "accuracy",
            "gradient_norm",
        ):
            if (value := getattr(self, name)) is not None:
                arrays[name] = value
        ending = Path(path).suffix.lower()
        if ending not in (".npz", ".safetensors"):
            raise InputError(
                f"cannot write arrays to {str(path)!r}: end it in .npz or .safetensors"
            )
        with atomic(path) as temporary:
            if ending == ".npz":
                with open(temporary, "wb") as file:
                    np.savez_compressed(file, allow_pickle=False, **arrays)
            else:
                from safetensors.numpy import save_file

                save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)


def surface(
    problem: Problem,
    axes: Kind | Axes | Tensor = "hessian",
    *,
    ranks: Sequence[int] = (1, 2),
    points: int | Sequence[int] = 51,
    extent: float | Sequence[float | Extent] | Literal["auto"] = "auto",
    norm_stats: NormStats | None = None,
    gradient_norm: bool = False,
    curvature: int = 0,
    adaptive: bool = False,
    tolerance: float = 0.01,
    check: bool = True,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    command: str | None = None,
    resume: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **execution: Unpack[Execution],
) -> Surface:
    """The loss on a grid of one, two or more directions through a model's weights.

    Every point is the loss on all the data, with its standard error. Checked apart from the grid: that the
    centre is the model's loss, and that second differences along the axes are the curvatures that
    products with the Hessian give.

    Args:
        problem: the loss.
        axes: "hessian" (eigenvectors by `ranks`), "random" (Gaussian, scaled by filter), or "gradient", see
            `hessian_axes`, `random_axes` and `gradient_axes`; or what these, `optimizer_axes`,
            `trajectory_axes` and `model_axes` return; or directions (P, d).
        ranks: of the Hessian axes: 1 is the largest eigenvalue, −1 the most negative one. There are as
            many random axes as ranks.
        points: along every axis, or a number for each; odd numbers have the model on the grid.
        extent: half the range along all axes or along each, or (low, high) for each; "auto": to where the
            loss is five times the model's, or around the models in the plane.
        norm_stats: of batch normalisation, see `LossAt`.
        gradient_norm: whether ‖∇L‖ is computed at every point too.
        curvature: points along every axis at which the ends of the Hessian's spectrum are computed, see
            `curvature_map`; 0 for none.
        adaptive: compute only as many points as are needed and interpolate the others, to a largest error of
            `tolerance` of the span of the loss, on points held back; see `fill`.
        check: whether the curvatures along the axes are checked.
        seed: of every random choice.
        progress: called with (phase, done, expected).
        command, resume, say, execution: see `spectrum`.

    Raises:
        InputError: arguments that do not go together.
        UntrustedResult: the loss of the model itself is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> problem = ls.Problem(model, "mse", (x, torch.ones(2, 1)))
        >>> found = ls.surface(problem, points=3, extent=1.0)
        >>> [round(axis.eigenvalue, 4) for axis in found.axes], found.loss.shape
        ([4.0, 1.0], (3, 3))
    """
    stats: NormStats = norm_stats or problem.norm_stats
    if stats not in NORM_STATS:
        raise InputError(f"norm_stats is {stats!r}: choose {', '.join(map(repr, NORM_STATS))}")
    arguments: dict[str, Any] = {"axes": axes if isinstance(axes, str) else "given", "seed": seed}
    arguments |= {"gradient_norm": gradient_norm, "curvature": curvature}
    arguments |= {"adaptive": adaptive, "tolerance": tolerance if adaptive else None}
    arguments |= {"ranks": list(ranks), "points": points, "extent": extent, "norm_stats": stats}
    if not isinstance(axes, str):
        arguments["directions"] = digest(axes if isinstance(axes, Tensor) else axes.directions)
    operator = Hessian(problem, **execution)
    stage = stages(resume, operator, {"work": "surface"} | arguments, say)
    center = problem.loss()
    report = None if progress is None else partial(progress, "eigenvalues")
    chosen = axes_of(operator, axes, ranks, seed=seed, progress=report, stage=stage)
    start = time.perf_counter()
    counts = _counts(points, len(chosen.axes))
    loss_at = LossAt(problem, chosen.directions, norm_stats=stats)
    extents, notes = _extents(loss_at, chosen, extent)
    if chosen.kind == "models" and stats == "running" and problem.has_statistics():
        notes = [
            *notes,
            "running statistics are the first model's everywhere: --reestimate fits them",
        ]
    grid = [np.linspace(*ends, count) for ends, count in zip(extents, counts, strict=True)]
    report = None if progress is None else partial(progress, "points")
    evaluating = stage("points")
    evaluate = EvaluatedPoints(loss_at, evaluating, operator, report)
    computed, interpolation = None, None
    if adaptive:
        found, computed, interpolation = fill(evaluate, grid, tolerance=tolerance, seed=seed)
    else:
        found = evaluate(_coordinates(grid))
    evaluate.finish()
    slopes = None
    if gradient_norm:
        report = None if progress is None else partial(progress, "gradients")
        slopes = loss_at.gradient_norms(_coordinates(grid), progress=report)
    bends = None
    if curvature:
        report = None if progress is None else partial(progress, "curvature")
        coarse = [np.linspace(*ends, curvature) for ends in extents]
        bends = curvature_map(
            problem, chosen.directions, coarse, seed=seed, progress=report, **execution
        )
    checks = checks_of(problem, chosen, loss_at, extents, center, check=check)
    seconds = time.perf_counter() - start
    seconds += 0 if evaluating.earlier is None else evaluating.earlier.seconds
    products = 0 if bends is None else bends.products
    cost = cost_of_time(problem, seconds, products=products)

    def shaped(values: Tensor) -> Array:
        array = values.reshape(counts).cpu().numpy()
        return np.where(np.isfinite(array), array, np.nan)

    return Surface(
        parameters=problem.size,
        kind=chosen.kind,
        axes=chosen.axes,
        normalisation=chosen.normalisation,
        largest_cosine=chosen.largest_cosine,
        norm_stats=stats if problem.has_statistics() else None,
        grid=grid,
        loss=shaped(found.loss),
        loss_standard_error=shaped(found.standard_error),
        rise_standard_error=shaped(found.rise_standard_error),
        accuracy=None if found.accuracy is None else shaped(found.accuracy),
        center=center,
        markers=chosen.markers,
        checks=checks,
        evaluations=loss_at.evaluations,
        at_once=loss_at.pace.best.points,
        notes=notes,
        failures=[*chosen.failures, *check_failures(chosen.axes, checks)],
        cost=cost if chosen.cost is None else chosen.cost + cost,
        provenance=provenance(problem, seed=seed, command=command) | {"arguments": arguments},
        gradient_norm=None if slopes is None else shaped(slopes),
        curvature=bends,
        computed=computed,
        interpolation=interpolation,
        directions=chosen.directions,
    )


def axes_of(
    operator: Hessian,
    axes: Kind | Axes | Tensor,
    ranks: Sequence[int],
    *,
    seed: int,
    progress: Callable[[int, int], None] | None,
    stage: Callable[[str], Stage] = lambda _: Stage(),
) -> Axes:
    """The directions that are meant."""
    problem = operator.problem
    if isinstance(axes, Axes):
        return axes
    if isinstance(axes, Tensor):
        return given_axes(problem, axes)
    if axes == "hessian":
        return hessian_axes(operator, ranks, seed=seed, progress=progress, stage=stage)
    if axes == "random":
        return random_axes(problem, len(ranks), seed=seed)
    if axes == "gradient":
        return gradient_axes(problem)
    raise InputError(
        f"axes is {axes!r}: choose 'hessian', 'random' or 'gradient', or give what trajectory_axes, "
        "model_axes or optimizer_axes return"
    )


def _counts(points: int | Sequence[int], axes: int) -> list[int]:
    counts = [points] * axes if isinstance(points, int) else list(points)
    if len(counts) != axes or min(counts) < 2:
        raise InputError(f"points is {points}: give 2 or more for each of the {axes} axes")
    return counts


def _extents(
    loss_at: LossAt, axes: Axes, extent: float | Sequence[float | Extent] | Literal["auto"]
) -> tuple[list[Extent], list[str]]:
    """Both ends of every axis, and notes."""
    if isinstance(extent, str):
        if extent != "auto":
            raise InputError(f"extent is {extent!r}: give a number, one for each axis, or 'auto'")
        return suggested_extents(loss_at, axes)
    given = [extent] * len(axes.axes) if isinstance(extent, int | float) else list(extent)
    ends = [(-e, e) if isinstance(e, int | float) else (e[0], e[1]) for e in given]
    if len(ends) != len(axes.axes) or not all(-math.inf < a < b < math.inf for a, b in ends):
        raise InputError(
            f"extent is {extent}: give a positive number or (low, high) for each of the {len(axes.axes)} axes"
        )
    return [(float(a), float(b)) for a, b in ends], []


def _coordinates(grid: Sequence[Array]) -> Tensor:
    """All points of a grid, (K, d), the last axis running fastest."""
    return torch.from_numpy(np.stack([g.ravel() for g in np.meshgrid(*grid, indexing="ij")], 1))
