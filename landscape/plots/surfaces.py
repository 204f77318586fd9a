"""How do the surfaces of several models compare?  Panels on shared axes, scale, levels and one colour bar."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landscape.errors import InputError
from landscape.numerals import count
from landscape.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    publication,
)
from landscape.plots.surface import draw_curve, finish, require_style, write_title
from landscape.plots.surface_map import draw_map
from landscape.plots.surface_picture import Quantity, SurfacePicture, collect, loss_of
from landscape.plots.surface_scale import Asked, Scale, scale_of
from landscape.plots.writing import require_ending, write_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
PAGE = 7.0
"""Width of two columns of a paper, in inches."""

MOST = 5  # surfaces in a figure
LINES = (
    (BLUE, "-"),
    (VERMILLION, "--"),
    (GREEN, "-."),
    (ORANGE, ":"),
    (BLACK, (0, (4, 1, 1, 1, 1, 1))),
)


def plot_surfaces(
    results: Sequence[Mapping[str, Any]],
    path: str | Path | None = None,
    *,
    names: Sequence[str] | None = None,
    quantity: Quantity = "loss",
    scale: Asked = "auto",
    width: float | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw the surfaces of several models side by side, so that they can be compared by eye.

    All panels have the same axes, the same scale and the same levels, and one colour bar; surfaces along
    one axis are lines in one panel.

    Args:
        results: JSON results `landscape/surface/1`, two to five, as mappings.
        path: where to save; the ending says the format: .png (300 dpi), .svg or .pdf. None (the default)
            saves nothing.
        names: of the surfaces (default their numbers).
        quantity, scale: see `plot_surface`.
        width: of the figure in inches; by default 7, two columns of a paper, for maps and 3.25, one column,
            for lines.
        title: a line above the figure, drawn as it is (no math markup); None by default.

    Returns:
        The matplotlib figure, not registered with pyplot.

    Raises:
        InputError: what cannot be drawn, or surfaces that cannot be compared: with other losses, kinds or scales
            of axes, or another number of them.
    """
    if path is not None:
        require_ending(path)
    if not 2 <= len(results) <= MOST:
        raise InputError(f"{count(len(results), 'surface')} given: compare 2 to {MOST}")
    labels = list(names or [f"{i + 1}" for i in range(len(results))])
    if len(labels) != len(results):
        raise InputError(
            f"{count(len(labels), 'name')} given for {len(results)} surfaces: name each of them"
        )
    require_style("auto", quantity, scale)
    pictures = [collect(result, quantity) for result in results]
    require_comparable(results, labels)
    first = pictures[0]
    shared = scale_of(
        [picture.values for picture in pictures],
        scale,
        signed=first.signed,
        may_be_log=first.may_be_log,
    )
    with publication(width or (PAGE if len(first.grid) == 2 else COLUMN)):
        draw = _draw_maps if len(first.grid) == 2 else _draw_curves
        figure = draw(pictures, labels, shared, title)
        write_figure(figure, path)
    return figure


def require_comparable(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Refuse surfaces whose values or steps mean different things.

    Raises:
        InputError: which two differ, and in what.
    """
    first = results[0]
    for other, name in zip(results[1:], names[1:], strict=True):
        for what, of in (
            ("the loss", loss_of),
            ("the number of axes", lambda result: len(result["axes"])),
            ("the kind of axes", lambda result: result["kind"]),
            ("the scale of the directions", lambda result: result["normalisation"] or "none"),
            ("the choice of axes", _choice),
        ):
            if of(first) != of(other):
                raise InputError(
                    f"surfaces {names[0]!r} and {name!r} cannot be compared: {what} is {of(first)!r} in the "
                    f"one and {of(other)!r} in the other"
                )


def _choice(result: Mapping[str, Any]) -> str:
    """The names of the axes, but where each is a way to another model."""
    names = [axis["name"] for axis in result["axes"]]
    return "" if result["kind"] == "models" else ", ".join(names)


def _draw_maps(
    pictures: Sequence[SurfacePicture], names: Sequence[str], scale: Scale, title: str | None
) -> "Figure":
    """Draw one map beside the other."""
    from matplotlib.figure import Figure

    figure = Figure()
    panels = figure.subplots(1, len(pictures), sharex=True, sharey=True, squeeze=False)[0]
    grid = [_union([picture.grid[i] for picture in pictures]) for i in (0, 1)]
    shape = pictures[0]._replace(grid=grid).shape()
    drawn = []
    for axes, picture, name in zip(panels, pictures, names, strict=True):
        drawn.append(draw_map(axes, picture._replace(model="the model"), scale))
        _head(axes, picture, name)
        axes.set_aspect("auto")
        axes.set_box_aspect(shape)
        axes.set_xlabel(_common(pictures, 0), parse_math=False)
    panels[0].set_xlim(*grid[0][[0, -1]])
    panels[0].set_ylim(*grid[1][[0, -1]])
    panels[0].set_ylabel(_common(pictures, 1), parse_math=False)
    write_title(figure, title)
    found: dict[object, Artist] = {}
    found |= {handle.get_label(): handle for one in drawn for handle in one.handles}
    figure.legend(
        handles=list(found.values()),
        loc="outside lower center",
        ncols=max(1, len(found)),
        handletextpad=0.7,
    )
    finish(figure, panels, shape, drawn, pictures[0].label, scale)
    return figure


def _draw_curves(
    pictures: Sequence[SurfacePicture], names: Sequence[str], scale: Scale, title: str | None
) -> "Figure":
    """Draw all curves in one panel."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    found: dict[object, Artist] = {}
    for picture, name, (colour, dash) in zip(pictures, names, LINES, strict=False):
        label = name + (f" ({picture.facts[0]})" if picture.facts[0] else "")
        handles = draw_curve(axes, picture, scale, colour, label=label, linestyle=dash)
        found |= {handle.get_label(): handle for handle in handles}
    axes.set_xlim(*_union([picture.grid[0] for picture in pictures])[[0, -1]])
    axes.set_xlabel(_common(pictures, 0), parse_math=False)
    axes.set_ylabel(pictures[0].label, parse_math=False)
    write_title(figure, title)
    figure.legend(handles=list(found.values()), loc="outside lower center", ncols=2)
    return figure


def _head(axes: "Axes", picture: SurfacePicture, name: str) -> None:
    """Write over a panel whose it is, its loss, and what is known about its axes."""
    from matplotlib import rcParams

    facts = [fact.split(" ± ")[0] for fact in picture.facts if fact]
    lines = [picture.model, " · ".join(facts)]
    lines += ["not to be trusted"] if picture.failures else []
    small = rcParams["legend.fontsize"]
    below = "\n".join(line for line in lines if line)
    axes.annotate(
        below,
        (0, 1),
        (0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        fontsize=small,
        color=VERMILLION if picture.failures else GREY,
        parse_math=False,
        in_layout=False,  # the title keeps its room
    )
    room = 5 + 1.25 * float(small) * (below.count("\n") + 1)
    axes.set_title(name, loc="left", pad=room, parse_math=False)


def _common(pictures: Sequence[SurfacePicture], i: int) -> str:
    """The label of an axis that panels share."""
    found = {picture.axes[i] for picture in pictures}
    return found.pop() if len(found) == 1 else f"step towards other model {i + 1}"


def _union(grids: Sequence[Array]) -> Array:
    """From the lowest to the highest point."""
    return np.array([min(grid[0] for grid in grids), max(grid[-1] for grid in grids)])
