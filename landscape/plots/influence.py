"""Which training samples help and which harm?  Bars of the strongest effects on every query."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from landscape.numerals import number
from landscape.plots.style import BLUE, GREY, HAIRLINE, VERMILLION, publication
from landscape.plots.writing import require_ending, write_figure
from landscape.results import INFLUENCE_SCHEMA as SCHEMA
from landscape.saved import require_schema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 2.3  # width of a query's bars, in inches
MOST, MOST_SAMPLES = 12, 50  # queries in a figure, and samples on each side of one


def plot_influence(
    result: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    top: int = 5,
    title: str | None = None,
) -> "Figure":
    """Draw the most helpful and the most harmful training samples of every query.

    A bar is the predicted change of the query's loss when the sample, named on its left, is left out:
    blue where the loss would rise, red where it would fall. Three queries stand in a row.

    Args:
        result: the JSON result `landscape/influence/1`, as a mapping.
        path: where to save; the ending says the format: .png (300 dpi), .svg or .pdf. None (the default)
            saves nothing.
        top: samples on each side, 5 by default.
        title: a line above the figure, drawn as it is (no math markup); None by default.

    Returns:
        The matplotlib figure, not registered with pyplot.

    Raises:
        InputError: an ending or a result that this function does not know, or more than twelve queries or
            fifty samples on a side.
    """
    if path is not None:
        require_ending(path)
    require_schema(result, SCHEMA, "landscape influence --json FILE")
    queries = result["queries"]
    require_room(len(queries), top)
    columns = min(3, len(queries))
    rows = -(-len(queries) // columns)
    height = 0.65 + 0.13 * 2 * top
    width = max(columns, 1.4) * PANEL
    with publication(width):
        from matplotlib import rcParams
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, rows * height + 0.5))
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, query in zip(panels, queries, strict=False):
            _draw(axes, query, result, top)
        for axes in panels[len(queries) :]:
            axes.set_axis_off()
        figure.supxlabel(
            "change of the query’s loss if the sample is left out\n"
            f"{result['operator']}, λ = {number(result['damping'])}",
            fontsize=rcParams["axes.labelsize"],
            parse_math=False,
        )
        if title:
            figure.suptitle(title, parse_math=False)
        write_figure(figure, path)
    return figure


def require_room(queries: int, top: int) -> None:
    """Refuse more queries, or samples on a side, than a figure holds."""
    if queries > MOST:
        raise InputError(
            f"a figure holds {MOST} queries, and there are {queries}: ask for fewer, or draw some of them"
        )
    if not 1 <= top <= MOST_SAMPLES:
        raise InputError(
            f"--top (top=) is {top}: a figure shows 1 to {MOST_SAMPLES} samples on a side; every effect is "
            "in the numbers, --json (save)"
        )


def strongest(effects: list[float], top: int) -> list[int]:
    """Positions of the largest positive effects, falling, then of the largest negative ones, last.

    >>> strongest([0.1, -2.0, 0.0, 3.0, -0.5, 0.2], 2)
    [3, 5, 4, 1]
    """
    places = range(len(effects))
    helpful = sorted(places, key=lambda i: -effects[i])[:top]
    harmful = sorted(places, key=lambda i: effects[i])[:top][::-1]
    return [i for i in helpful if effects[i] > 0] + [i for i in harmful if effects[i] < 0]


def _draw(axes: "Axes", query: Mapping[str, Any], result: Mapping[str, Any], top: int) -> None:
    """Draw one query's bars, the most helpful sample on top."""
    from matplotlib import rcParams

    effects, targets = query["effects"], result["targets"]
    shown = strongest(effects, top)
    values = [effects[i] for i in shown]
    colors = [BLUE if value > 0 else VERMILLION for value in values]
    axes.barh(range(len(shown)), values, color=colors, height=0.7)
    if not shown:
        axes.text(0.5, 0.5, "no sample has an effect", transform=axes.transAxes, ha="center")
    axes.axvline(0, color=HAIRLINE, linewidth=0.5, zorder=0)
    labels = [f"{i}" if targets is None else f"{i} (class {targets[i]})" for i in shown]
    axes.set_yticks(range(len(shown)), labels, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
    of = "" if query["target"] is None else f" (class {query['target']})"
    axes.set_title(
        f"query {query['position']}{of}\nloss {number(query['loss'], 3)}",
        loc="left",
        fontsize=rcParams["legend.fontsize"],
        color=GREY,
        parse_math=False,
    )
