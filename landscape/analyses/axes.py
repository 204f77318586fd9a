"""Along which directions is a landscape cut?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from landscape.analyses.adam import adam_state
from landscape.analyses.failures import not_complete, not_converged
from landscape.analyses.normalisation import Normalisation, Vectors, normalised
from landscape.analyses.operators import in_float64
from landscape.checkpoint import Stage
from landscape.errors import InputError
from landscape.estimators.lanczos import extreme_eigenpairs, remeasure
from landscape.operators.hessian import Hessian
from landscape.problem import Problem
from landscape.results import Cost

State = nn.Module | Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """One direction: its name, its length as it is plotted, and what is known about it.

    `eigenvalue` with its `residual` and `vector_error`, a bound of sin ∠(d, eigenvector), of a Hessian
    axis; `explained` the share of a trajectory's variance along it.
    """

    name: str
    length: float
    eigenvalue: float | None = None
    residual: float | None = None
    vector_error: float | None = None
    explained: float | None = None


@dataclass(frozen=True)
class Marker:
    """A model in the picture: coordinates of its projection, and its distance from the plane."""

    name: str
    coordinates: list[float]
    distance: float


@dataclass(frozen=True, eq=False)
class Axes:
    """Directions through a model's weights, the columns of (P, d), with what is known about them.

    `normalisation` says how they were scaled, None for not at all; `markers` are models in the plane or
    near it; `failures` lists, in words, what could not be trusted.
    """

    kind: str
    directions: Tensor
    axes: list[Axis]
    markers: list[Marker]
    failures: list[str]
    normalisation: str | None = None
    cost: Cost | None = None

    @property
    def largest_cosine(self) -> float:
        """The largest |cos| between two of the directions; 0 for a single one."""
        unit = self.directions.double() / self.directions.double().norm(dim=0)
        between = (unit.T @ unit).abs()
        return float((between - torch.diag(between.diagonal())).max())


def hessian_axes(
    problem: Problem | Hessian,
    which: Sequence[int] = (1, 2),
    *,
    tolerance: float = 1e-4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    stage: Callable[[str], Stage] = lambda _: Stage(),
    **execution: Any,
) -> Axes:
    """Eigenvectors of the Hessian, of unit length and never rescaled.

    Args:
        problem: the loss, or its Hessian.
        which: eigenvalues by rank: 1 is the largest, 2 the next; −1 the smallest (the most negative),
            −2 the next to it.
        tolerance, seed: see `landscape.eigenpairs`.
        progress: called with (products done, products expected).
        stage: where the state is kept.
        execution: see `Hessian`.

    Raises:
        InputError: ranks that do not exist, or twice the same.
    """
    A = problem if isinstance(problem, Hessian) else Hessian(problem, **execution)
    P = A.shape[0]
    ranks = [int(rank) for rank in which]
    top, bottom = max([0, *ranks]), max([0, *(-rank for rank in ranks)])
    if not ranks or 0 in ranks or len(set(ranks)) < len(ranks) or top + bottom > P:
        raise InputError(
            f"the Hessian axes are {tuple(ranks)}: give different ranks, 1 for the largest eigenvalue, -1 for the "
            f"smallest, of {P:,} in all"
        )
    pairs = extreme_eigenpairs(
        A,
        [("largest", top), ("smallest", bottom)],
        tolerance=tolerance,
        seed=seed,
        progress=progress,
        resume=stage("eigenvalues"),
    )
    cost = pairs.cost
    exact = in_float64(A)
    if exact is not None:
        pairs = remeasure(pairs, exact, tolerance=tolerance, stage=stage("float64"))
        cost = cost + pairs.cost
    places = [rank - 1 if rank > 0 else top - rank - 1 for rank in ranks]
    names = [_ordinal(rank) for rank in ranks]
    values = [float(pairs.values[i]) for i in places]
    residuals = [float(pairs.residuals[i]) for i in places]
    failures = not_converged(
        names, values, residuals, [bool(pairs.converged[i]) for i in places], tolerance
    )
    if not pairs.complete:
        failures.append(not_complete(after=f"after {pairs.steps} Lanczos steps "))
    found = [
        Axis(name, 1.0, value, residual, min(1.0, float(pairs.vector_errors[i])))
        for name, value, residual, i in zip(names, values, residuals, places, strict=True)
    ]
    vectors = pairs.vectors[:, places].to(A.dtype)
    return Axes("hessian", vectors, found, [], failures, cost=cost)


def random_axes(
    problem: Problem,
    count: int = 2,
    *,
    by: Normalisation | None = "filter",
    vectors: Vectors = "scale",
    seed: int = 0,
) -> Axes:
    """Independent Gaussian directions, made orthogonal to each other, then scaled.

    Args:
        problem: the loss.
        count: how many.
        by, vectors: the scale, see `normalised`; None for unit length. Filters turn the directions a
            little, so that they are orthogonal only nearly: `largest_cosine` says how nearly.
        seed: of the directions.
    """
    if not 1 <= count <= problem.size:
        raise InputError(f"{count} axes were asked for: choose 1 to {problem.size:,}")
    source = torch.Generator().manual_seed(seed)
    draws = torch.randn(count, problem.size, generator=source, dtype=torch.float64)
    Q = torch.linalg.qr(draws.T).Q.to(problem.device, problem.dtype)
    named = Axes("random", Q, [Axis(f"random {i + 1}", 1.0) for i in range(count)], [], [])
    return named if by is None else scaled(problem, named, by, vectors=vectors)


def scaled(problem: Problem, axes: Axes, by: Normalisation, *, vectors: Vectors = "scale") -> Axes:
    """The same directions with the scale of the weights.

    Raises:
        InputError: the axes are eigenvectors, which they would no longer be.
    """
    if axes.kind == "hessian":
        raise InputError(
            f"Hessian axes cannot be normalised by {by}: they would no longer be eigenvectors; choose "
            "random axes for that"
        )
    columns = [normalised(problem, d, by, vectors=vectors) for d in axes.directions.T]
    D = torch.stack(columns, dim=1)
    return replace(
        axes,
        directions=D,
        axes=[
            replace(axis, length=float(d.norm())) for axis, d in zip(axes.axes, D.T, strict=True)
        ],
        normalisation=by + ("" if vectors == "scale" else f", {vectors} vectors"),
    )


def gradient_axes(problem: Problem, **execution: Any) -> Axes:
    """The unit gradient g, and of Hg what is orthogonal to it: where the gradient turns along itself."""
    g = problem.gradient().double()
    turned = (Hessian(problem, **execution) @ g.to(problem.dtype)).double()
    columns = orthonormal([g, turned], ["the gradient", "the Hessian's product with the gradient"])
    names = ["gradient", "change of the gradient"]
    return _of_columns("gradient", problem, columns, names)


def optimizer_axes(problem: Problem, state: Mapping[str, Any] | torch.optim.Optimizer) -> Axes:
    """Adam's moments: the first, and of the square root of the second what is orthogonal to it.

    Args:
        problem: the loss.
        state: the Adam or AdamW, or its `state_dict()`, see `adam_state`.

    Raises:
        InputError: the state has no moments for the selected parameters.
    """
    saved = state.state_dict() if isinstance(state, torch.optim.Optimizer) else state
    adam = adam_state(problem, saved)
    columns = orthonormal(
        [adam.first, adam.second.sqrt()], ["the first moment", "the second moment"]
    )
    return _of_columns("optimizer", problem, columns, ["first moment", "second moment"])


def trajectory_axes(
    problem: Problem, checkpoints: Sequence[State], *, names: Sequence[str] | None = None
) -> Axes:
    """The principal directions of a path of checkpoints θ_i around the model θ: PCA of θ_i − θ.

    (Li et al. 2018, arXiv:1712.09913, section 7.) Random walks in many dimensions also have most of
    their variance in two (Antognini & Sohl-Dickstein 2018, arXiv:1806.08805), so that a large
    share proves little: every checkpoint comes with its distance from the plane.

    Args:
        problem: the loss, usually of the last checkpoint.
        checkpoints: two or more models or state dicts, in the order of the path.
        names: of the checkpoints (default their numbers).
    """
    if len(checkpoints) < 2:
        raise InputError(f"a path needs two checkpoints or more, not {len(checkpoints)}")
    offsets = torch.stack([offset_of(problem, state) for state in checkpoints], dim=1)
    # The eigenvectors of the small matrix of inner products give those of the large one.
    values, vectors = torch.linalg.eigh(offsets.T @ offsets)
    order = values.argsort(descending=True)[:2]
    shares = values.clamp(min=0) / values.sum()
    if len(order) < 2 or not float(values[order[1]]) > 1e-12 * float(values[order[0]]):
        raise InputError("the checkpoints lie on a line: choose --axes models for that")
    D = orthonormal(list((offsets @ vectors[:, order]).T), ["the path", "the rest of the path"])
    axes = [
        Axis(f"principal direction {i + 1}", 1.0, explained=float(shares[order[i]]))
        for i in range(2)
    ]
    labels = names or [f"{i + 1}" for i in range(len(checkpoints))]
    return Axes("trajectory", D.to(problem.dtype), axes, _markers(D, offsets, labels), [])


def model_axes(
    problem: Problem, others: Sequence[State], *, names: Sequence[str] | None = None
) -> Axes:
    """The line through the model and another, or the plane through it and two others.

    The first axis leads from the model to the first other, which lies at 1; the second is orthogonal to
    it, as long as it, in the plane of the three (Garipov et al. 2018, arXiv:1802.10026, section 3).

    Args:
        problem: the loss; its model is at the origin.
        others: one or two models or state dicts of the same architecture.
        names: of the others (default their numbers).
    """
    if len(others) not in (1, 2):
        raise InputError(f"{len(others)} other models were given: one makes a line, two a plane")
    offsets = torch.stack([offset_of(problem, state) for state in others], dim=1)
    length = offsets[:, 0].norm()
    what = [f"the difference to model {i + 1}" for i in range(len(others))]
    D = orthonormal(list(offsets.T), what) * length
    labels = list(names or [f"model {i + 1}" for i in range(len(others))])
    axes = [Axis(f"towards {label}", float(length)) for label in labels]
    return Axes("models", D.to(problem.dtype), axes, _markers(D, offsets, labels), [])


def given_axes(problem: Problem, vectors: Tensor, *, names: Sequence[str] | None = None) -> Axes:
    """Directions as they are given, (P, d).

    Raises:
        InputError: another shape, or a direction that is zero or not finite.
    """
    if vectors.ndim != 2 or vectors.shape[0] != problem.size:
        raise InputError(
            f"the directions have shape {tuple(vectors.shape)}: expected ({problem.size}, d)"
        )
    lengths = vectors.double().norm(dim=0)
    if not bool(((lengths > 0) & torch.isfinite(lengths)).all()):
        raise InputError("a direction is zero or not finite: give vectors of some length")
    labels = names or [f"direction {i + 1}" for i in range(vectors.shape[1])]
    axes = [Axis(name, float(length)) for name, length in zip(labels, lengths, strict=True)]
    return Axes("given", vectors.to(problem.device, problem.dtype), axes, [], [])


def offset_of(problem: Problem, state: State) -> Tensor:
    """θ' − θ of another model with the same parameters, or of a state dict, (P,), float64.

    Raises:
        InputError: a selected parameter is missing, or has another shape.
    """
    found = dict(state.named_parameters()) if isinstance(state, nn.Module) else state
    like = torch.empty(0, dtype=torch.float64, device=problem.device)
    parts = []
    for name, own in zip(problem.names, problem.selected(), strict=True):
        other = found.get(name)
        if not isinstance(other, Tensor) or other.shape != own.shape:
            seen = "is missing" if other is None else f"has shape {tuple(other.shape)}"
            raise InputError(
                f"the checkpoint does not fit this model: {name!r} {seen}, expected {tuple(own.shape)}"
            )
        difference = other.detach().to(problem.device).to(
            torch.promote_types(own.dtype, torch.float64)
        ) - own.detach().to(problem.device)
        parts.append(torch.view_as_real(difference) if difference.is_complex() else difference)
    return problem.layout.flatten(parts, like)


def orthonormal(columns: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """Gram–Schmidt, twice, in float64.

    Raises:
        InputError: a column is zero, or a combination of those before it.
    """
    found: list[Tensor] = []
    for column, name in zip(columns, names, strict=True):
        rest = column.double()
        size = rest.norm()
        for _ in range(2):
            for unit in found:
                rest = rest - unit * (unit @ rest)
        if not float(rest.norm()) > 1e-10 * float(size):
            what = "a multiple of what is on the first axis" if found else "zero"
            raise InputError(f"{name} is {what}, so that it spans no axis: choose other axes")
        found.append(rest / rest.norm())
    return torch.stack(found, dim=1)


def _of_columns(kind: str, problem: Problem, columns: Tensor, names: Sequence[str]) -> Axes:
    axes = [Axis(name, 1.0) for name in names]
    return Axes(kind, columns.to(problem.dtype), axes, [], [])


def _markers(D: Tensor, offsets: Tensor, names: Sequence[str]) -> list[Marker]:
    """Where models lie: the nearest point of the plane, and their distance from it."""
    coordinates = torch.linalg.lstsq(D, offsets).solution
    distances = (offsets - D @ coordinates).norm(dim=0)
    return [
        Marker(name, c.tolist(), float(distance))
        for name, c, distance in zip(names, coordinates.T, distances, strict=True)
    ]


def _ordinal(rank: int) -> str:
    if rank in (1, -1):
        return "largest eigenvalue" if rank == 1 else "smallest eigenvalue"
    return (
        f"eigenvalue {rank}"
        if rank > 0
        else f"eigenvalue {rank} (from the smallest)".replace("-", "−")
    )
