"""What the picture of a surface shows, as arrays and words: what matplotlib and plotly share."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from landscape.errors import InputError
from landscape.numerals import count, number
from landscape.plots.surface_scale import Asked, Scale, scale_of
from landscape.results import SURFACE_SCHEMA as SCHEMA
from landscape.saved import require_schema

Array = NDArray[np.float64]
Quantity = Literal["loss", "accuracy", "loss_standard_error", "rise", "gradient_norm", "convexity"]
STRETCH = 2.5  # ranges that differ by more are drawn on unequal scales
IN_PLANE = 1e-6  # distances below this share of the way there are rounding

# A loss as it is written, and its unit.
LOSSES = {
    "cross_entropy": ("cross-entropy", "nats"),
    "token_cross_entropy": ("cross-entropy", "nats per token"),
    "nll": ("negative log-likelihood", "nats"),
    "bce": ("binary cross-entropy", "nats"),
    "bce_with_logits": ("binary cross-entropy", "nats"),
    "mse": ("mean squared error", "target²"),
    "l1": ("mean absolute error", "target"),
    "huber": ("Huber loss", ""),
}
STATISTICS = {
    "running": "running statistics",
    "batch": "batch statistics",
    "reestimated": "statistics estimated anew at every point",
}


class Marked(NamedTuple):
    """Another model: where its projection lies, how far it is from there, and how far from the model."""

    name: str
    place: list[float]
    distance: float
    away: float

    def in_plane(self) -> bool:
        """Whether it lies on the surface itself."""
        return self.distance <= IN_PLANE * max(self.away, 1e-300)


class SurfacePicture(NamedTuple):
    """Everything that is drawn.

    `values` and `error` are of the shape of the grid; `model` names the model in the legend; `lengths` says how long a step of 1 is in weight
    space; `path` whether the marked models follow one another.
    """

    grid: list[Array]
    values: Array
    error: Array | None
    label: str
    model: str
    signed: bool
    may_be_log: bool
    axes: list[str]
    facts: list[str]
    lengths: list[float]
    marked: list[Marked]
    path: bool
    notes: list[str]
    failures: list[str]

    def axis(self, i: int) -> str:
        """The label of an axis: what a step along it is, and what is known about it."""
        fact = self.facts[i]
        if not fact:
            return self.axes[i]
        two_lines = "\n" in self.axes[i]
        return f"{self.axes[i]}, {fact}" if two_lines else f"{self.axes[i]}\n({fact})"

    def scale(self, asked: Asked) -> Scale:
        """Of this surface alone."""
        return scale_of([self.values], asked, signed=self.signed, may_be_log=self.may_be_log)

    def centred(self) -> bool:
        """Whether the model's own place is in the picture."""
        return all(points[0] <= 0 <= points[-1] for points in self.grid)

    def inside(self, place: list[float]) -> bool:
        """Whether a place is in the picture."""
        pairs = zip(place, self.grid, strict=True)
        return all(points[0] <= x <= points[-1] for x, points in pairs)

    def shape(self) -> float:
        """Height over width of a map with two axes: true to weight space where `equal` says so."""
        true = _true_shape(self.grid, self.lengths)
        return true if self.equal() else 1.0

    def equal(self) -> bool:
        """Whether both axes can have the same scale in weight space."""
        return 1 / STRETCH <= _true_shape(self.grid, self.lengths) <= STRETCH


def collect(result: Mapping[str, Any], quantity: Quantity = "loss") -> SurfacePicture:
    """Collect what is drawn of a saved surface; null becomes NaN.

    Raises:
        InputError: the result is of another schema, has too many axes, or lacks the quantity.
    """
    require_schema(result, SCHEMA, "landscape surface --json FILE")
    _require(result, quantity)
    if len(result["axes"]) > 2:
        raise InputError(
            f"a surface with {len(result['axes'])} axes has no picture: measure it along one or two"
        )
    values, error, label = _values(result, quantity)
    on = result["curvature"] if quantity == "convexity" else result
    grid = [np.array(points, float) for points in on["grid"]]
    lengths = [float(axis["length"]) for axis in result["axes"]]
    marked = _marked(result, lengths)
    found = SurfacePicture(
        grid=grid,
        values=values,
        error=error,
        label=label,
        model=_model(result, quantity),
        signed=quantity in ("rise", "convexity"),
        may_be_log=quantity in ("loss", "loss_standard_error", "gradient_norm"),
        axes=[axis_name(axis) for axis in result["axes"]],
        facts=[axis_fact(axis) for axis in result["axes"]],
        lengths=lengths,
        marked=marked,
        path=result["kind"] == "trajectory",
        notes=_notes(result),
        failures=list(result["failures"]),
    )
    if len(grid) == 2 and not found.equal():
        found.notes.append("axes not on the same scale")
    outside = sum(not found.inside(one.place) for one in marked)
    if outside:
        found.notes.append(f"outside the range: {count(outside, 'model')}")
    return found


def axis_name(axis: Mapping[str, Any]) -> str:
    """What a step along an axis is.

    >>> axis_name({"name": "largest eigenvalue", "length": 1.0, "eigenvalue": 24.3})
    'distance along the eigenvector of\\nthe largest eigenvalue'
    >>> axis_name({"name": "towards B", "length": 3.2})
    'step towards B'
    """
    name = axis["name"]
    if axis.get("eigenvalue") is not None:
        article = "" if name.startswith("eigenvalue") else "the "
        name = f"the eigenvector of\n{article}{name}"
    along = name if name.startswith("towards") else f"along {name}"
    return f"{'distance' if axis['length'] == 1 else 'step'} {along}"


def axis_fact(axis: Mapping[str, Any]) -> str:
    """What is known about it: its eigenvalue with the residual, its share of a path's variance, its length.

    >>> axis_fact({"length": 1.0, "eigenvalue": 24.3123, "residual": 0.0021})
    'λ = 24.31 ± 0.002'
    >>> axis_fact({"length": 1.0, "explained": 0.8312}), axis_fact({"length": 3.2})
    ('83.1 % of the variance', '1 is a distance of 3.2')
    """
    facts = []
    if axis.get("eigenvalue") is not None:
        facts.append(f"λ = {number(axis['eigenvalue'], 4)} ± {number(axis['residual'], 1)}")
    if axis.get("explained") is not None:
        facts.append(f"{number(100 * axis['explained'], 3)} % of the variance")
    if axis["length"] != 1:
        facts.append(f"1 is a distance of {number(axis['length'], 3)}")
    return ", ".join(facts)


def _require(result: Mapping[str, Any], quantity: Quantity) -> None:
    """Refuse a quantity that was not measured."""
    missing = {
        "accuracy": ("accuracy", "its problem has no classes"),
        "gradient_norm": ("gradient_norm", "measure it with --gradient-norm"),
        "convexity": ("curvature", "measure it with --curvature N"),
    }
    key, why = missing.get(quantity, ("loss", ""))
    if result.get(key) is None:
        raise InputError(f"this surface has no {quantity}: {why}, or draw another quantity")


def loss_of(result: Mapping[str, Any]) -> str:
    """The loss of a surface, as its problem names it."""
    return str((result["provenance"].get("problem") or {}).get("loss", "loss"))


def _values(result: Mapping[str, Any], quantity: Quantity) -> tuple[Array, Array | None, str]:
    """Values, their standard errors, and their name with the unit."""
    name, unit = LOSSES.get(loss_of(result), (loss_of(result), ""))
    unit = f" ({unit})" if unit else ""
    if quantity == "accuracy":
        return 100 * np.array(result["accuracy"], float), None, "accuracy (%)"
    if quantity == "gradient_norm":
        return (
            np.array(result["gradient_norm"], float),
            None,
            f"norm of the gradient{unit[:-1]} / parameter)" if unit else "norm of the gradient",
        )
    if quantity == "convexity":
        ends = result["curvature"]
        smallest, largest = (np.array(ends[key], float) for key in ("smallest", "largest"))
        return smallest / largest, None, "λ min / λ max of the Hessian"
    loss, error = (np.array(result[key], float) for key in ("loss", "loss_standard_error"))
    if quantity == "loss_standard_error":
        return error, None, f"standard error of the {name}{unit}"
    if quantity == "rise":
        rise = loss - float(result["center"])
        return rise, np.array(result["rise_standard_error"], float), f"rise of the {name}{unit}"
    return loss, error, f"loss, {name}{unit}" if name != "loss" else "loss"


def _marked(result: Mapping[str, Any], lengths: list[float]) -> list[Marked]:
    found = []
    for marker in result["markers"]:
        place = [float(x) for x in marker["coordinates"]]
        inside = math.hypot(*(x * length for x, length in zip(place, lengths, strict=True)))
        distance = float(marker["distance"])
        found.append(Marked(marker["name"], place, distance, math.hypot(inside, distance)))
    return found


def _notes(result: Mapping[str, Any]) -> list[str]:
    """What was checked, and on what."""
    problem = result["provenance"].get("problem") or {}
    notes = [count(problem["samples"], "sample")] if "samples" in problem else []
    if result["norm_stats"] is not None:
        notes.append(f"batch norm: {STATISTICS.get(result['norm_stats'], result['norm_stats'])}")
    if result["normalisation"] is not None:
        notes.append(f"directions scaled by {result['normalisation']}")
    filled = result.get("interpolation")
    if filled is not None and filled["computed"] < filled["points"]:
        share = 1 - filled["computed"] / filled["points"]
        error = number(100 * filled["error"], 1)
        notes.append(f"{100 * share:.0f} % of the points interpolated, to {error} % of the range")
    errors = result["checks"]["axis_curvature_relative_error"]
    if errors is None:
        notes.append("curvature along the axes not compared")
    elif any(error is None for error in errors):
        notes.append("curvature along the axes: no step small enough was found")
    else:
        notes.append(f"curvature along the axes within {number(100 * max(errors), 1)} % of vᵀHv")
    return notes


def _true_shape(grid: list[Array], lengths: list[float]) -> float:
    """Height over width in weight space."""
    width, height = (
        (points[-1] - points[0]) * length for points, length in zip(grid, lengths, strict=True)
    )
    return float(height / width)


def _model(result: Mapping[str, Any], quantity: Quantity) -> str:
    """The model in the legend, with its loss where losses are drawn."""
    known = quantity == "loss"
    return "the model" + (f": loss {number(float(result['center']), 3)}" if known else "")
