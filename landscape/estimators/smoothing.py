"""From quadrature measures to densities and shares of eigenvalues, with their errors."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape.errors import InputError

Array = NDArray[np.float64]
Axis = Literal["linear", "symlog"]
MOST_POINTS = 20_000


class SmoothDensity(NamedTuple):
    """A density on a grid of eigenvalues: `values` per unit of eigenvalue, integrating to 1."""

    grid: Array
    values: Array
    standard_error: Array
    width: float
    linear_threshold: float | None
    axis: Axis = "linear"


def smooth(
    measures: Sequence[Sequence[ArrayLike]],
    *,
    axis: Axis = "linear",
    width: float = 0.005,
    points: int = 1024,
    linear_threshold: float = 1e-3,
) -> SmoothDensity:
    """Replace every node of every probe's measure by a Gaussian, and average over the probes.

    The standard deviation σ of a node's Gaussian has two parts, σ² = w² + r². w is the resolution that
    is asked for: the same everywhere on the "linear" axis; on the "symlog" axis h·√(λ² + s²), a fixed
    width h in u = asinh(λ / s), so that the bulk near zero and the outliers show in one picture. r is
    the resolution that Lanczos has reached there: the residual of the Ritz pair, which is the standard
    deviation of the spectral measure of its Ritz vector, but at most half the distance to the next node,
    since the mass of a node lies between its neighbours (Golub & Meurant 2010, the
    Chebyshev–Markov–Stieltjes inequalities). Without r, a continuous bulk would look like a comb.

    Args:
        measures: for every probe `(nodes, weights)` or `(nodes, weights, residuals)`, each of shape (m,),
            the weights summing to 1.
        axis: "linear" or "symlog".
        width: w, or h, as a share of the range of the nodes on the chosen axis.
        points: least number of grid points, equally spaced on the chosen axis; there are more where the
            narrowest Gaussian needs them. The grid reaches six standard deviations beyond every node.
        linear_threshold: s as a share of the largest absolute node (symlog only).

    Returns:
        Grid, values and standard error over probes, each of shape (points,), the width w or h in the
        units of the axis, and s (None on the linear axis). The standard error is NaN for one probe.

    Raises:
        InputError: the width is not positive, or would need more than 20,000 points.
    """
    if not width > 0:
        raise InputError(f"the smoothing width is {width}: it must be positive, for example 0.005")
    probes = [_resolved(measure) for measure in measures]
    nodes = np.concatenate([part[0] for part in probes])
    resolution = np.concatenate([part[2] for part in probes])
    s = linear_threshold * (float(np.abs(nodes).max()) or 1.0) if axis == "symlog" else None

    ends = _place(np.array([nodes.min(), nodes.max()]), s)
    far, spread = float(np.abs(ends).max()), float(ends[1] - ends[0])
    # A single repeated eigenvalue has no range; its own size then sets the kernel.
    h = width * (spread if spread > 1e-9 * far else far or 1.0)

    def sigma(at: Array, reached: Array) -> Array:
        asked = h if s is None else h * np.sqrt(at**2 + s**2)
        return np.sqrt(asked**2 + reached**2)

    widths = sigma(nodes, resolution)
    ends = np.array([(nodes - 6 * widths).min(), (nodes + 6 * widths).max()])
    first, last = (float(end) for end in _place(ends, s))
    narrowest = float((widths if s is None else widths / np.sqrt(nodes**2 + s**2)).min())
    # Half a standard deviation from point to point integrates a Gaussian to rounding.
    points = max(points, math.ceil((last - first) / (0.5 * narrowest)) + 1)
    if points > MOST_POINTS:
        raise InputError(
            f"the smoothing width {width:g} needs a grid of {points:,} points: raise it"
        )
    u = np.linspace(first, last, points)
    grid = u if s is None else s * np.sinh(u)
    density = np.stack([_mixture(grid, at, w, sigma(at, r)) for at, w, r in probes])
    count = len(probes)
    error = density.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.full(points, np.nan)
    return SmoothDensity(grid, density.mean(0), error, h, s, axis)


def mass_below(measure: Sequence[ArrayLike], x: float) -> tuple[float, float]:
    """Lower and upper bound, from one probe's quadrature, of the share of eigenvalues below x.

    The mass below x is at least that of the nodes below x but the last, and at most that of those and
    the next one (Chebyshev, Markov and Stieltjes; Golub & Meurant 2010, section 6). Where residuals are
    given, a node that lies ten of them away from x is counted on its own side: by Chebyshev's inequality
    at most a hundredth of its mass is on the other.

    Args:
        measure: `(nodes, weights)` or `(nodes, weights, residuals)`, each of shape (m,), nodes ascending.
        x: the threshold.
    """
    nodes, weights, *rest = (np.asarray(part, float) for part in measure)
    clear = abs(nodes - x) > 10 * rest[0] if rest else np.zeros(len(nodes), bool)
    below = int(np.searchsorted(nodes, x))
    lower, upper = weights[: max(below - 1, 0)].sum(), weights[: below + 1].sum()
    if below and clear[below - 1]:
        lower += weights[below - 1]
    if below < len(nodes) and clear[below]:
        upper -= weights[below]
    return float(lower), float(upper)


def _resolved(measure: Sequence[ArrayLike]) -> tuple[Array, Array, Array]:
    """Nodes, weights, and the resolution that Lanczos has reached at every node."""
    nodes, weights, *residuals = (np.asarray(part, float) for part in measure)
    if not residuals or len(nodes) < 2:
        return nodes, weights, np.zeros_like(nodes)
    gaps = np.diff(nodes)
    nearest = np.minimum(np.append(gaps, np.inf), np.append(np.inf, gaps))
    return nodes, weights, np.minimum(residuals[0], nearest / 2)


def _place(values: Array, s: float | None) -> Array:
    """Where eigenvalues stand on the axis."""
    return values if s is None else np.arcsinh(values / s)


def _mixture(grid: Array, centres: Array, weights: Array, sigma: Array) -> Array:
    """A weighted sum of Gaussians on the grid."""
    bells = np.exp(-0.5 * ((grid[:, None] - centres) / sigma) ** 2)
    mixture: Array = bells @ (weights / (sigma * np.sqrt(2 * np.pi)))
    return mixture
