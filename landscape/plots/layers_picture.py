"""What the picture of a model's blocks shows, as arrays: what matplotlib and plotly share."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from landscape.estimators.smoothing import smooth
from landscape.numerals import count, with_error
from landscape.plots.spectrum_picture import LABELS
from landscape.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILLION
from landscape.results import LAYERS_SCHEMA as SCHEMA
from landscape.saved import require_schema

Array = NDArray[np.float64]
KERNEL = 0.006  # standard deviation of the narrowest kernel, as a share of the axis
LONGEST = 30  # letters of a name; the middle of a longer one is left out, and says so
OTHER = "other"


class Ridge(NamedTuple):
    """The density of one block: heights between 0 and 1, on a logarithmic scale that all blocks share."""

    name: str
    kind: str
    parameters: int
    grid: Array
    density: Array  # per unit of the axis asinh(λ / s)
    height: Array
    eigenvalues: list[Mapping[str, Any]]  # the largest, and the smallest

    def label(self) -> str:
        """The name, short enough to stand beside a ridge."""
        if len(self.name) <= LONGEST:
            return self.name
        half = (LONGEST - 1) // 2
        return f"{self.name[:half]}…{self.name[-half:]}"


class LayersPicture(NamedTuple):
    """Everything that is drawn."""

    ridges: list[Ridge]
    colors: dict[str, str]  # of every kind
    norms: Array
    norm_errors: Array
    threshold: float
    low: float
    high: float
    decades: float
    xlabel: str
    symbol: str
    notes: str


def collect(result: Mapping[str, Any]) -> LayersPicture:
    """Collect what is drawn, in arrays; null becomes NaN.

    Raises:
        InputError: the result is of another schema.
    """
    require_schema(result, SCHEMA, "landscape spectrum --per-layer --json FILE")
    blocks = result["blocks"]
    s, low, high = _axis(blocks)
    u_low, u_high = math.asinh(low / s), math.asinh(high / s)
    kernel = KERNEL * (u_high - u_low)
    curves = [_curve(block, s, kernel) for block in blocks]
    # A lone eigenvalue of the largest block stands a third of a decade or more above the floor.
    largest = max(block["parameters"] for block in blocks)
    floor = 0.4 / (largest * kernel * math.sqrt(2 * math.pi))
    top = max(float(density.max()) for _, density in curves)
    decades = math.log10(top / floor)
    colors = _colors(blocks)
    ridges = []
    for block, (grid, density) in zip(blocks, curves, strict=True):
        height = np.log10(np.maximum(density, floor) / floor) / decades
        pairs = [block["eigenvalues"][0], block["smallest_eigenvalue"]]
        ridges.append(
            Ridge(
                block["name"],
                _kind(block, colors),
                block["parameters"],
                grid,
                density,
                height,
                pairs,
            )
        )
    trace = with_error(result["trace"]["value"], result["trace"]["standard_error"])
    operator = result["operator"]
    return LayersPicture(
        ridges=ridges,
        colors=colors,
        norms=np.array(result["norms"], float),
        norm_errors=np.array(result["norm_errors"], float),
        threshold=s,
        low=s * math.sinh(u_low - 0.04 * (u_high - u_low)),
        high=s * math.sinh(u_high + 0.04 * (u_high - u_low)),
        decades=decades,
        xlabel=LABELS.get(operator, f"eigenvalue λ of {operator}"),
        symbol={"Hessian": "H", "GaussNewton": "G"}.get(operator, "F"),
        notes=f"P = {count(result['parameters'], 'parameter')} · {count(len(blocks), 'block')} · "
        f"trace = {trace}",
    )


def _axis(blocks: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Where the axis turns linear, s, and its ends: every eigenvalue that is known, and zero."""
    ends = np.array([_ends(block) for block in blocks])
    sizes = np.abs(ends).max(1)
    far = float(sizes.max()) or 1.0
    # The least curved block must not vanish in the middle of the axis.
    least = float(sizes[sizes > 0].min()) if sizes.any() else far
    s = min(1e-3 * far, max(0.1 * least, 1e-6 * far))
    low, high = min(float(ends.min()), 0.0), max(float(ends.max()), 0.0)
    return s, low, high if high > low else low + far


def _ends(block: Mapping[str, Any]) -> tuple[float, float]:
    nodes = np.concatenate([probe["nodes"] for probe in block["ritz"]])
    return (
        min(float(nodes.min()), block["smallest_eigenvalue"]["value"]),
        max(float(nodes.max()), block["eigenvalues"][0]["value"]),
    )


def _curve(block: Mapping[str, Any], s: float, kernel: float) -> tuple[Array, Array]:
    """Eigenvalues and density per unit of asinh(λ / s); all blocks are smoothed alike."""
    parts = ("nodes", "weights", "residuals")
    measures = [[probe[part] for part in parts] for probe in block["ritz"]]
    nodes = np.concatenate([measure[0] for measure in measures])
    ends = np.arcsinh(np.array([nodes.min(), nodes.max()]) / s)
    far, spread = float(np.abs(ends).max()), float(ends[1] - ends[0])
    # `smooth` takes its width as a share of the block's own range, and s of its largest node.
    share = kernel / (spread if spread > 1e-9 * far else far or 1.0)
    own = s / (float(np.abs(nodes).max()) or 1.0)
    found = smooth(measures, axis="symlog", width=share, points=400, linear_threshold=own)
    density = found.values * np.hypot(found.grid, s)
    # Where the grid ends the kernel is cut off; there the curve falls to the floor.
    return np.pad(found.grid, 1, mode="edge"), np.pad(density, 1)


def _colors(blocks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A colour for the four kinds with the most blocks; the rest share one."""
    kinds = Counter(", ".join(block["kinds"]) for block in blocks)
    chosen = [kind for kind, _ in kinds.most_common(4)]
    found = dict(zip(chosen, (BLUE, ORANGE, GREEN, VERMILLION), strict=False))
    return found | ({OTHER: GREY} if len(kinds) > len(chosen) else {})


def _kind(block: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    kind = ", ".join(block["kinds"])
    return kind if kind in colors else OTHER
