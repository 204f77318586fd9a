"""What the spectrum's picture shows, as arrays: what matplotlib and plotly share."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from landscape.errors import InputError
from landscape.estimators.smoothing import Axis, smooth
from landscape.numerals import count, number, with_error
from landscape.plots.style import BLACK, VERMILLION
from landscape.results import SPECTRUM_SCHEMA as SCHEMA
from landscape.saved import require_schema

Array = NDArray[np.float64]

# An operator's label on the axis, with the unit of its eigenvalues.
LABELS = {
    "Hessian": "eigenvalue λ of the loss Hessian (loss / parameter²)",
    "GaussNewton": "Gauss–Newton eigenvalue λ (loss / parameter²)",
    "Fisher": "eigenvalue λ of the Fisher matrix (1 / parameter²)",
    "EmpiricalFisher": "empirical Fisher eigenvalue λ (loss² / parameter²)",
    "GradientCovariance": "gradient covariance eigenvalue λ (loss² / parameter²)",
}

YLABEL = "density (per unit λ)"


class Picture(NamedTuple):
    """Everything that is drawn, as arrays: what matplotlib and plotly share."""

    grid: Array
    mean: Array
    error: Array
    low: Array
    high: Array
    bottom: float
    top: float
    threshold: float | None
    eigenvalues: Array
    converged: NDArray[np.bool_]
    residuals: Array
    xlabel: str
    notes: list[str]
    banded: bool

    def limits(self) -> tuple[float, float]:
        """Give the range that is shown: the curve, every eigenvalue, and on a symlog axis zero."""
        s = self.threshold
        curve = self.grid[self.high >= self.bottom]
        shown = np.concatenate([curve, self.eigenvalues, [] if s is None else [0.0]])
        low, high = float(shown.min()), float(shown.max())
        if s is None:
            pad = 0.02 * (high - low)
            return low - pad, high + pad
        u_low, u_high = math.asinh(low / s), math.asinh(high / s)
        pad = 0.02 * (u_high - u_low)
        return s * math.sinh(u_low - pad), s * math.sinh(u_high + pad)

    def marks(self) -> list[tuple[NDArray[np.bool_], str, str, str]]:
        """List the kinds of marks that occur: which eigenvalues, marker, colour and label."""
        kinds = [
            (self.converged, "|", BLACK, "eigenvalue"),
            (~self.converged, "x", VERMILLION, "not converged"),
        ]
        return [kind for kind in kinds if kind[0].any()]


def collect(result: Mapping[str, Any], axis: Axis) -> Picture:
    """Collect what is drawn on one axis, in arrays; null becomes NaN."""
    require_schema(result, SCHEMA, "landscape spectrum --json FILE")
    check_axis(axis)
    parts = ("nodes", "weights", "residuals")
    measures = [[probe[part] for part in parts if part in probe] for probe in result["ritz"]]
    stored = result["density"]
    if axis == stored["axis"] == "linear":
        keys = ("grid", "values", "standard_error")
        grid, mean, error = (np.array(stored[key], float) for key in keys)
        sigma, s = float(stored["width"]), None
    else:
        grid, mean, error, sigma, s, _ = smooth(measures, axis=axis)

    # One eigenvalue has mass 1/P; its height is 1/(P σ √2π) times du/dλ, least at the outer end.
    outer = float(np.abs(grid).max())
    slope = 1.0 if s is None else 1 / math.hypot(outer, s)
    lone = slope / (result["parameters"] * sigma * math.sqrt(2 * math.pi))
    banded = bool(np.isfinite(error).all())
    margin = error if banded else np.zeros_like(mean)
    peak = float((mean + margin).max())
    bottom = min(lone / 10, peak / 100)
    # Where the grid ends the kernel is cut off; there the curve falls to the floor.
    grid = np.pad(grid, 1, mode="edge")
    mean, margin, error = (np.pad(curve, 1) for curve in (mean, margin, error))

    listed = [*result["eigenvalues"], result["smallest_eigenvalue"]]
    pairs = [pair for pair in listed if pair is not None and pair["value"] is not None]
    probes, run = len(measures), result.get("criteria") or {}
    # Measures also hold the eigenvalues that were found.
    steps = run.get("steps", max(len(measure[0]) for measure in measures))
    size = count(result["parameters"], "parameter")
    work = f"{count(probes, 'probe')} × {count(steps, 'step')}"
    trace = with_error(result["trace"]["value"], result["trace"]["standard_error"])
    kernel = f"kernel σ ≥ {number(sigma)}"
    kernel += "" if s is None else f" in asinh(λ / {number(s)})"
    return Picture(
        grid=grid,
        mean=np.maximum(mean, bottom / 10),
        low=np.maximum(mean - margin, bottom / 10),
        high=np.maximum(mean + margin, bottom / 10),
        bottom=bottom,
        top=2 * peak,
        threshold=s,
        eigenvalues=np.array([pair["value"] for pair in pairs], float),
        converged=np.array([pair["converged"] for pair in pairs], bool),
        residuals=np.array([pair["residual"] for pair in pairs], float),
        xlabel=LABELS.get(result["operator"], f"eigenvalue λ of {result['operator']}"),
        notes=[f"P = {size} · {work}", f"trace = {trace} · {kernel}"],
        error=error,
        banded=banded,
    )


def check_axis(axis: str) -> None:
    """Refuse an axis that is not known."""
    if axis not in get_args(Axis):
        known = " or ".join(repr(name) for name in get_args(Axis))
        raise InputError(f"cannot draw a spectrum on axis {axis!r}: choose {known}")
