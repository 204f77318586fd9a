"""How does the loss change between two models?  Loss and accuracy along the straight line and a trained path."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.numerals import with_error
from landscape.plots.style import BLUE, COLUMN, ORANGE, publication
from landscape.plots.writing import require_ending, write_figure
from landscape.results import CONNECTIVITY_SCHEMA as SCHEMA
from landscape.saved import require_schema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"linear": "straight line", "bezier": "Bézier curve", "polygon": "polygonal chain"}
STYLES = {"linear": (ORANGE, "s"), "bezier": (BLUE, "o"), "polygon": (BLUE, "o")}
LOGARITHMIC = 30  # ratio of losses from which on their axis is logarithmic


def plot_connectivity(
    result: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    width: float = COLUMN,
    title: str | None = None,
) -> "Figure":
    """Draw loss and accuracy over t along the straight line and, where there is one, the trained path.

    Bands are one standard error to either side; dashed is held-out data. The legend tells the barriers
    over the line between the endpoints' losses on the training data.

    Args:
        result: the JSON result `landscape/connectivity/1`, as a mapping.
        path: where to save; the ending says the format: .png (300 dpi), .svg or .pdf. None (the default)
            saves nothing.
        width: of the figure in inches; 3.25, one column of a paper, by default.
        title: a line above the figure, drawn as it is (no math markup); None by default.

    Returns:
        The matplotlib figure, not registered with pyplot.

    Raises:
        InputError: an ending or a result that this function does not know.
    """
    if path is not None:
        require_ending(path)
    require_schema(result, SCHEMA, "landscape connect --json FILE")
    from matplotlib.figure import Figure

    paths = [along for along in (result["linear"], result["trained"]) if along is not None]
    by_accuracy = paths[0]["train"]["accuracy"] is not None
    with publication(width, aspect=1.15 if by_accuracy else 0.72):
        figure = Figure()
        panels = figure.subplots(2 if by_accuracy else 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, ("loss", "accuracy"), strict=False):
            _draw(axes, result["t"], paths, name)
        panels[-1].set_xlabel("t, from the first model (0) to the second (1)")
        panels[0].set_ylabel("loss")
        _logarithmic(panels[0], paths)
        if by_accuracy:
            panels[1].set_ylabel("accuracy (%)")
        figure.legend(loc="outside upper left", ncols=1)
        if title:
            figure.suptitle(title, parse_math=False)
        write_figure(figure, path)
    return figure


def _draw(axes: "Axes", t: Sequence[float], paths: Sequence[Mapping[str, Any]], name: str) -> None:
    error = "standard_error" if name == "loss" else "accuracy_standard_error"
    scale = 1 if name == "loss" else 100
    for along in paths:
        color, marker = STYLES[along["path"]]
        for data in ("train", "held_out"):
            profile = along[data]
            if profile is None or profile[name] is None:
                continue
            values = [scale * value for value in _numbers(profile[name])]
            errors = [scale * value for value in _numbers(profile[error])]
            trained = data == "train"
            axes.plot(
                t,
                values,
                "-" if trained else "--",
                color=color,
                marker=marker if trained else None,
                markersize=2,
                label=_label(along, data) if name == "loss" else None,
            )
            low = [v - e for v, e in zip(values, errors, strict=True)]
            high = [v + e for v, e in zip(values, errors, strict=True)]
            axes.fill_between(t, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set_xlim(0, 1)


def _label(along: Mapping[str, Any], data: str) -> str:
    name = NAMES[along["path"]]
    barrier = along[data]["over_line"]
    of = "" if data == "train" else ", held-out"
    height, error = _numbers([barrier["height"], barrier["standard_error"]])
    return f"{name}{of}: barrier {with_error(height, error)}"


def _logarithmic(axes: "Axes", paths: Sequence[Mapping[str, Any]]) -> None:
    """A logarithmic axis where the losses need it."""
    profiles = [along[data] for along in paths for data in ("train", "held_out")]
    losses = [x for p in profiles if p is not None for x in _numbers(p["loss"])]
    finite = [x for x in losses if math.isfinite(x)]
    if finite and min(finite) > 0 and max(finite) > LOGARITHMIC * min(finite):
        axes.set_yscale("log")
        axes.set_ylim(min(finite) / 1.5, max(finite) * 1.5)


def _numbers(values: Sequence[float | None]) -> list[float]:
    """NaN where JSON has null."""
    return [math.nan if value is None else float(value) for value in values]
