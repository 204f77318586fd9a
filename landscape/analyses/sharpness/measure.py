"""What every row of the sharpness table says."""

import math
from dataclasses import dataclass, field

from landscape.results import Cost
from landscape.saved import Result

UNKNOWN = math.nan


class NotMeasuredError(Exception):
    """A measure is not defined for this problem; the text says why."""


@dataclass(frozen=True)
class Measure:
    """One measure of sharpness, and everything that its value depends on.

    Attributes:
        family: what it is chosen by.
        name: of the row.
        value: of the measure.
        standard_error: NaN where there is none; `error_from` says what it comes from: "samples" (the
            data as a draw, at this δ), "batches", "draws" of random perturbations, "probes" of an estimator;
            "residual" and "bracket" are bounds.
        definition: the formula, in words of this package: L is the mean loss, w the weights, g and H gradient
            and Hessian, δ a perturbation, c its scaling.
        source: author and year, arXiv id.
        rho: radius of the ball, or standard deviation of the perturbation; None where it is infinitesimal.
        m: samples in the loss that is perturbed.
        scaling: c, the size that a perturbation of every weight is measured by: "1", "|w|", or another.
        note: what else was chosen or found.
        cost: the time of all that the row took is its `gradient_equivalents`, `products` are with the Hessian.
        gradients: gradients of the loss that the row took, in passes over all the data.
        losses: evaluations of the loss, in passes over all the data.
    """

    family: str
    name: str
    value: float
    standard_error: float
    error_from: str
    definition: str
    source: str
    rho: float | None
    m: int
    scaling: str
    note: str
    cost: Cost
    gradients: float
    losses: float


@dataclass(frozen=True)
class LayerFlatness:
    """Relative flatness of one layer, with its standard error over probes (0 where it is exact)."""

    name: str
    value: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class Part(Result, schema="landscape/sharpness-family/1"):
    """What one family found, see `Sharpness`."""

    rows: list[Measure]
    layers: list[LayerFlatness] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
