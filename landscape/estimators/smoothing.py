"""From quadrature measures to a smooth density with a pointwise standard error (NumPy only)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Axis = Literal["linear", "symlog"]


class SmoothDensity(NamedTuple):
    """A density on a grid of eigenvalues: `values` per unit of eigenvalue, integrating to 1."""

    grid: Array
    values: Array
    standard_error: Array
    width: float
    linear_threshold: float | None


def smooth(
    measures: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    axis: Axis = "linear",
    width: float = 0.005,
    points: int = 1024,
    linear_threshold: float = 1e-3,
) -> SmoothDensity:
    """Smooth one discrete measure per probe with a Gaussian kernel and average over the probes.

    On the "linear" axis the kernel lives on the eigenvalue itself; on the "symlog" axis it lives on
    u = asinh(eigenvalue / s), which resolves the bulk near zero and the outliers in one picture. Either
    way the result is a density per unit of eigenvalue: the factor du/dλ is included.

    Args:
        measures: one `(nodes, weights)` per probe, weights summing to 1.
        axis: "linear" or "symlog".
        width: the kernel's standard deviation as a share of the range of the nodes, on the chosen axis.
        points: number of grid points; the grid reaches six widths beyond the outermost nodes.
        linear_threshold: s as a share of the largest absolute node (symlog only).

    Returns:
        Grid, values and standard error over probes, each of shape (points,), the kernel width in the units
        of the axis, and s (None on the linear axis). The standard error is NaN for a single probe.
    """
    pairs = [(np.asarray(nodes, float), np.asarray(weights, float)) for nodes, weights in measures]
    everything = np.concatenate([nodes for nodes, _ in pairs])
    largest = float(np.abs(everything).max()) or 1.0
    s = linear_threshold * largest

    def forward(x: Array) -> Array:
        return x if axis == "linear" else np.arcsinh(x / s)

    ends = forward(np.array([everything.min(), everything.max()]))
    # A single repeated eigenvalue has no range; its own size then sets the kernel.
    spread = float(ends[1] - ends[0])
    spread = (
        spread if spread > 1e-9 * float(np.abs(ends).max()) else float(np.abs(ends).max()) or 1.0
    )
    sigma = width * spread
    u = np.linspace(ends[0] - 6 * sigma, ends[1] + 6 * sigma, points)
    grid = u if axis == "linear" else s * np.sinh(u)
    slope = np.ones_like(u) if axis == "linear" else 1 / np.sqrt(grid**2 + s**2)
    per_probe = np.stack(
        [
            np.exp(-0.5 * ((u[:, None] - forward(nodes)) / sigma) ** 2) @ weights
            for nodes, weights in pairs
        ]
    ) * (slope / (sigma * np.sqrt(2 * np.pi)))
    probes = len(pairs)
    error = per_probe.std(0, ddof=1) / np.sqrt(probes) if probes > 1 else np.full(points, np.nan)
    return SmoothDensity(grid, per_probe.mean(0), error, sigma, None if axis == "linear" else s)
