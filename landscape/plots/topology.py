"""Which minima matter?  The persistence barcode of a surface, and its merge tree."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.plots.style import BLUE, COLUMN, GREY, HAIRLINE, ORANGE, publication
from landscape.plots.writing import require_ending, write_figure
from landscape.results import TOPOLOGY_SCHEMA as SCHEMA
from landscape.saved import require_schema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOGARITHMIC = 30  # ratio of losses from which on their axis is logarithmic


def plot_topology(
    result: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    top: int = 30,
    width: float = 2 * COLUMN,
    title: str | None = None,
) -> "Figure":
    """Draw the barcode and the merge tree of the most persistent minima, the two on one axis of losses.

    Every minimum is one line, from its loss up to where its component joins one with a lower minimum: bars
    in the order of their length on the left, branches of the tree on the right. The line of what never
    joins anything ends in an arrow.

    Args:
        result: the JSON result `landscape/topology/1`, as a mapping.
        path: where to save; the ending says the format: .png (300 dpi), .svg or .pdf. None (the default)
            saves nothing.
        top: how many minima, 30 by default.
        width: of the figure in inches; 6.5 by default.
        title: a line above the figure, drawn as it is (no math markup); None by default.

    Returns:
        The matplotlib figure, not registered with pyplot.

    Raises:
        InputError: an ending or a result that this function does not know.
    """
    if path is not None:
        require_ending(path)
    require_schema(result, SCHEMA, "topology(…).save(FILE)")
    from matplotlib.figure import Figure

    pairs = result["pairs"][:top]
    with publication(width, aspect=0.42):
        figure = Figure()
        bars, tree = figure.subplots(1, 2, sharey=True)
        _draw(bars, pairs, list(range(len(pairs))), result["highest"])
        _draw(tree, pairs, places(pairs), result["highest"])
        bars.set_ylabel("loss")
        bars.set_xlabel("minimum, by persistence")
        tree.set_xlabel("minimum, by the merge tree")
        if result["lowest"] > 0 and result["highest"] > LOGARITHMIC * result["lowest"]:
            bars.set_yscale("log")
        for axes in (bars, tree):
            axes.set_xticks([])
            axes.set_xlim(-0.7, len(pairs) - 0.3)
        _join(tree, pairs, places(pairs))
        bars.set_title(_summary(result, len(pairs)), loc="left", fontsize="small", color=GREY)
        if title:
            figure.suptitle(title, parse_math=False)
        write_figure(figure, path)
    return figure


def places(pairs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where every branch stands, so that none crosses another: what joins first is nearest.

    >>> of = lambda i, into, death: {"minimum": i, "into": into, "death": death}
    >>> places([of(0, None, None), of(1, 0, 5.0), of(3, 1, 4.0), of(2, 0, 2.0)])
    [0, 2, 3, 1]
    """
    children: dict[int | None, list[Mapping[str, Any]]] = {}
    for pair in pairs:
        children.setdefault(pair["into"], []).append(pair)
    order: list[int] = []
    waiting = children.get(None, [])[::-1]
    while waiting:
        pair = waiting.pop()
        order.append(pair["minimum"])
        joining = sorted(children.get(pair["minimum"], []), key=lambda p: -p["death"])
        waiting += joining
    place = {minimum: i for i, minimum in enumerate(order)}
    return [place[pair["minimum"]] for pair in pairs]


def _draw(
    axes: "Axes", pairs: Sequence[Mapping[str, Any]], where: Sequence[int], highest: float
) -> None:
    for pair, x in zip(pairs, where, strict=True):
        alone = pair["death"] is None
        end = highest if alone else pair["death"]
        color = ORANGE if alone else BLUE
        axes.plot([x, x], [pair["birth"], end], color=color, solid_capstyle="butt")
        axes.plot([x], [pair["birth"]], "o", color=color, markersize=2.5)
        if alone:
            axes.plot([x], [end], "^", color=color, markersize=3, clip_on=False)


def _join(axes: "Axes", pairs: Sequence[Mapping[str, Any]], where: Sequence[int]) -> None:
    """The saddles: lines from the branches that end to those that live on."""
    place = {pair["minimum"]: x for pair, x in zip(pairs, where, strict=True)}
    for pair in pairs:
        if pair["death"] is not None:
            ends = [place[pair["into"]], place[pair["minimum"]]]
            axes.plot(ends, [pair["death"]] * 2, color=HAIRLINE, linewidth=0.6, zorder=1)


def _summary(result: Mapping[str, Any], shown: int) -> str:
    from landscape.numerals import count, number

    minima = len(result["minima"])
    which = count(minima, "minimum", "minima")
    if shown < minima:
        which = f"the {shown} most persistent of {which}"
    smad = result["smad"]["normalised"]
    share = (
        "" if smad is None or math.isnan(smad) else f"; SMAD {number(100 * smad)} % of the range"
    )
    return which + share
