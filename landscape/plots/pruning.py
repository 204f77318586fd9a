"""How good is a model after each step of pruning?  Accuracy, or loss, over sparsity, beside magnitude pruning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.plots.style import BLUE, COLUMN, GREY, HAIRLINE, ORANGE, publication
from landscape.plots.writing import require_ending, write_figure
from landscape.results import PRUNING_SCHEMA as SCHEMA
from landscape.saved import require_schema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"mfac": "M-FAC", "diagonal": "diagonal Fisher", "magnitude": "magnitude"}


def plot_pruning(
    result: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    width: float = COLUMN,
    title: str | None = None,
) -> "Figure":
    """Draw accuracy (loss where there is none) after every step over the share of weights removed.

    The line across is the model before. Data are the held-out ones where some were given.

    Args:
        result: the JSON result `landscape/pruning/1`, as a mapping.
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
    require_schema(result, SCHEMA, "landscape prune --json FILE")
    from matplotlib.figure import Figure

    with publication(width):
        figure = Figure()
        _draw(figure.subplots(), result)
        if title:
            figure.suptitle(title, parse_math=False)
        write_figure(figure, path)
    return figure


def _draw(axes: "Axes", result: Mapping[str, Any]) -> None:
    by_accuracy = result["before"]["accuracy"] is not None
    before = _value(result["steps"][0], by_accuracy)
    axes.axhline(before, color=HAIRLINE, linewidth=0.6, zorder=1, label="before")
    if result["magnitude_steps"]:
        _curve(axes, result["magnitude_steps"], "magnitude", by_accuracy)
    _curve(axes, result["steps"], result["method"], by_accuracy)
    axes.set_xlabel("weights removed (%)")
    data = "on held-out data" if result["held_out_before"] is not None else "on the training data"
    axes.set_ylabel(f"accuracy {data} (%)" if by_accuracy else f"loss {data}")
    if by_accuracy:
        axes.set_ylim(0, 102)
    else:
        axes.set_yscale("log")
    trained = "trained after every step" if result["schedule"] == "gradual" else "without training"
    axes.set_title(trained, loc="left", fontsize="small", color=GREY)
    axes.legend(loc="best")


def _curve(
    axes: "Axes", steps: Sequence[Mapping[str, Any]], method: str, by_accuracy: bool
) -> None:
    shares = [100 * step["sparsity"] for step in steps]
    color, marker = (ORANGE, "s") if method == "magnitude" else (BLUE, "o")
    values = [_value(step, by_accuracy) for step in steps]
    axes.plot(shares, values, color=color, marker=marker, markersize=2.5, label=NAMES[method])


def _value(step: Mapping[str, Any], by_accuracy: bool) -> float:
    quality = step["quality"]
    found = quality["accuracy"] if by_accuracy else quality["loss"]
    return float("nan") if found is None else (100 if by_accuracy else 1) * float(found)
