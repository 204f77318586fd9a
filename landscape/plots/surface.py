"""What does a surface look like?  A curve, a map, a relief, a page or a film, from a saved result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from landscape.errors import InputError
from landscape.numerals import number
from landscape.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    VERMILLION,
    publication,
    wrap,
)
from landscape.plots.surface_map import (
    BAR,
    HATCH,
    Map,
    draw_bar,
    draw_distances,
    draw_map,
    draw_star,
    label_levels,
)
from landscape.plots.surface_picture import Quantity, SurfacePicture, collect
from landscape.plots.surface_scale import Asked, Scale, label
from landscape.plots.writing import FILM, require_ending, write_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["auto", "contour", "3d", "line"]
PANEL = 0.6  # width of all maps as a share of the figure's, roughly
WIDEST = 0.75  # and at most
EXACT = 0.02  # of the height of a panel, in inches
STRIP = 0.55  # height of the strip of distances, in inches


def plot_surface(
    result: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    kind: Kind = "auto",
    quantity: Quantity = "loss",
    scale: Asked = "auto",
    width: float = COLUMN,
    title: str | None = None,
) -> "Figure":
    """Draw a saved surface, and save it when a path is given.

    A surface with one axis is a line with the band of its standard error; one with two axes a map of
    labelled contours, whose axes are on the same scale in weight space where their ranges allow it, or a
    relief. The first axis is the horizontal one.

    Args:
        result: the JSON result `landscape/surface/1`, as a mapping.
        path: where to save; the ending says the format: .png (300 dpi), .svg, .pdf; .html for an interactive
            page, of a relief that turns if there are two axes; .gif for a film of the path of a trajectory.
            None (the default) saves nothing.
        kind: "line", "contour" or "3d"; "auto" (the default) is a line or a contour map.
        quantity: "loss" (the default), "accuracy", "loss_standard_error", "rise": the loss less that of the
            model, which has signs; and if they were measured "gradient_norm" and "convexity": the smallest
            eigenvalue of the Hessian over the largest.
        scale: of the values: "log" (of a rise: by asinh), "linear", or "auto" (the default): "log"
            where they span more than a decade.
        width: of the figure in inches; 3.25, one column of a paper, by default. The height follows.
        title: a line above the figure, drawn as it is (no math markup); None by default.

    Returns:
        The matplotlib figure, not registered with pyplot.

    Raises:
        InputError: an ending, a choice or a result that this function does not know, or that do not go
            together.
    """
    if path is not None:
        require_ending(path, page=True, film=True)
    require_style(kind, quantity, scale)
    picture = collect(result, quantity)
    chosen = _kind(kind, picture)
    values = picture.scale(scale)

    def page() -> str:
        from landscape.plots.surface_page import surface_html

        return surface_html(result, quantity=quantity, scale=scale, title=title)

    film = path is not None and Path(path).suffix.lower() == FILM
    if film and (chosen != "contour" or not picture.path):
        raise InputError(
            "a film (.gif) shows the path of a trajectory on its map: this is none; choose another ending"
        )
    with publication(width):
        if chosen == "line":
            figure = _draw_line(picture, values, title)
        elif chosen == "3d":
            from landscape.plots.surface_relief import draw_relief

            figure = draw_relief(picture, values, title)
        else:
            figure = _draw_map(picture, values, title)
        if film and path is not None:
            from landscape.plots.surface_film import write_film

            write_film(figure, picture, path)
        else:
            write_figure(figure, path, page)
    return figure


def require_style(kind: str, quantity: str, scale: str) -> None:
    """Refuse a choice that no surface can be drawn with, before anything is measured.

    Raises:
        InputError: it is not known.
    """
    for name, value, known in (
        ("kind", kind, get_args(Kind)),
        ("quantity", quantity, get_args(Quantity)),
        ("scale", scale, get_args(Asked)),
    ):
        if value not in known:
            choices = ", ".join(map(repr, known))
            raise InputError(f"{name} is {value!r}: choose one of {choices}")


def _kind(kind: Kind, picture: SurfacePicture) -> Literal["contour", "3d", "line"]:
    """What is drawn.

    Raises:
        InputError: the surface has another number of axes.
    """
    known = {1: ("line",), 2: ("contour", "3d")}[len(picture.grid)]
    if kind == "auto":
        return known[0]  # type: ignore[return-value]
    if kind not in known:
        axes = "one axis" if len(picture.grid) == 1 else "two axes"
        raise InputError(
            f"kind is {kind!r}: a surface with {axes} is drawn as {' or '.join(map(repr, known))}"
        )
    return kind


def _draw_map(picture: SurfacePicture, scale: Scale, title: str | None) -> "Figure":
    """Draw contours, their colour bar, and under a path the distances from the plane."""
    from matplotlib.figure import Figure

    figure = Figure()
    if picture.path and picture.marked:
        height = picture.shape() * PANEL * figure.get_figwidth()
        axes, strip = figure.subplots(2, 1, height_ratios=[height, STRIP])
        draw_distances(strip, picture)
    else:
        axes = figure.subplots()
    drawn = draw_map(axes, picture, scale)
    axes.set_xlabel(picture.axis(0), parse_math=False)
    axes.set_ylabel(picture.axis(1), parse_math=False)
    head(figure, axes, picture, title)
    figure.legend(
        handles=drawn.handles,
        loc="outside lower center",
        ncols=len(drawn.handles),
        handletextpad=0.7,
    )
    finish(figure, [axes], picture.shape(), [drawn], picture.label, scale)
    return figure


def finish(
    figure: "Figure",
    panels: Sequence["Axes"],
    shape: float,
    drawn: Sequence[Map],
    label: str,
    scale: Scale,
) -> None:
    """Make a figure as high as its panels need, whose height over width is given; then bar and values."""
    fills = next((one.fills for one in drawn if one.fills is not None), None)
    if fills is not None:
        height = PANEL * figure.get_figwidth() * shape / len(panels)
        bar = draw_bar(panels[-1], label, scale, fills, height)
        _leave_room(figure, bar, len(panels))
    engine = figure.get_layout_engine()
    for _ in range(8):  # each changes the share of the height that the panels get
        if engine is not None:
            engine.execute(figure)
        slot = panels[0].get_position(original=True)
        width, height = slot.width * figure.get_figwidth(), slot.height * figure.get_figheight()
        if abs(shape * width - height) < EXACT:
            break
        figure.set_figheight(figure.get_figheight() + shape * width - height)
    figure.draw_without_rendering()
    for axes, one in zip(panels, drawn, strict=True):
        label_levels(axes, one.lines, scale)


def _leave_room(figure: "Figure", bar: "Axes", panels: int) -> None:
    """Keep a strip at the right of a figure for a colour bar.

    The bar stands beside a panel that may be narrower than its share, so that the layout must not go by
    where the bar happens to be.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure.draw_without_rendering()
    box = bar.get_tightbbox()
    texts = 0.0 if box is None else (box.x1 - bar.get_window_extent().x1) / figure.bbox.width
    bar.set_in_layout(False)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 1 - texts - BAR * WIDEST / panels, 1))


def head(figure: "Figure", axes: "Axes", picture: SurfacePicture, title: str | None) -> None:
    """Write the title over the figure, and over the panel what was checked and what failed."""
    from matplotlib import rcParams

    failed = f"not to be trusted: {'; '.join(picture.failures)} · " if picture.failures else ""
    notes = axes.set_title(
        failed + " · ".join(picture.notes),
        loc="left",
        fontsize=rcParams["legend.fontsize"],
        color=VERMILLION if failed else GREY,
        parse_math=False,
    )
    wrap(notes, figure, share=0.8)
    write_title(figure, title)


def write_title(figure: "Figure", title: str | None) -> None:
    """Write a line over a figure, or several, which grows by them."""
    if title:
        height = wrap(figure.suptitle(title, parse_math=False), figure, share=0.96)
        figure.set_figheight(figure.get_figheight() + height)


def _draw_line(picture: SurfacePicture, scale: Scale, title: str | None) -> "Figure":
    """Draw a curve with its standard error, the model, and others on it."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    handles = draw_curve(axes, picture, scale, BLUE)
    handles += _draw_models(axes, picture)
    axes.set_xlabel(picture.axis(0), parse_math=False)
    axes.set_ylabel(picture.label, parse_math=False)
    axes.set_xlim(picture.grid[0][0], picture.grid[0][-1])
    head(figure, axes, picture, title)
    columns = len(handles) if len(handles) < 4 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.4)
    return figure


def draw_curve(
    axes: "Axes", picture: SurfacePicture, scale: Scale, colour: str, **style: Any
) -> list["Artist"]:
    """Draw the values along one axis over the band of their standard error; hatch where they are not finite."""
    from matplotlib.patches import Patch

    x, y, error = picture.grid[0], picture.values, picture.error
    set_scale(axes, scale)
    handles: list[Artist] = []
    (line,) = axes.plot(x, y, color=colour, **{"label": "value"} | style)
    if error is not None and np.isfinite(error).any():
        low, high = y - error, y + error
        if scale.spacing == "log":
            low = np.maximum(low, 0.5 * scale.low)  # where the band reaches zero it ends below
        axes.fill_between(x, low, high, color=colour, alpha=0.3, linewidth=0)
        if "label" not in style:
            line.set_label("mean over samples ± s.e.")
    handles.append(line)
    missing = ~np.isfinite(y)
    if missing.any():
        for left, right in stretches(x, missing):
            axes.axvspan(left, right, zorder=0, **HATCH)
        handles.append(Patch(label="not finite", **HATCH))
    return handles


def set_scale(axes: "Axes", scale: Scale) -> None:
    """Space the values of an upright axis, and give it round ticks."""
    if scale.spacing == "linear":
        return
    if scale.spacing == "log":
        axes.set_yscale("log")
    else:
        axes.set_yscale("asinh", linear_width=scale.threshold)
    ticks = scale.levels(8)
    axes.set_yticks(ticks, [label(x) for x in ticks])
    axes.minorticks_off()


def stretches(x: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any]) -> list[tuple[float, float]]:
    """Both ends of every run of chosen points, half a step beyond them.

    >>> stretches(np.arange(5.0), np.array([True, False, True, True, False]))
    [(-0.5, 0.5), (1.5, 3.5)]
    """
    half = (x[1] - x[0]) / 2
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
    return [
        (float(x[i] - half), float(x[j - 1] + half))
        for i, j in zip(edges[::2], edges[1::2], strict=True)
    ]


def _draw_models(axes: "Axes", picture: SurfacePicture) -> list["Artist"]:
    """Mark the model and others by their place on the line, at the height of the curve."""
    from matplotlib import rcParams

    x, y = picture.grid[0], picture.values
    handles: list[Artist] = []
    inside = [one for one in picture.marked if picture.inside(one.place)]
    if inside:
        places = [one.place[0] for one in inside]
        handles += axes.plot(
            places,
            np.interp(places, x, y),
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor="#FFFFFF",
            markeredgecolor=BLACK,
            label="other models",
            zorder=4,
        )
    for one in inside:
        off = "" if one.in_plane() else f"\n{number(one.distance)} off the line"
        axes.annotate(
            one.name + off,
            (one.place[0], float(np.interp(one.place[0], x, y))),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=rcParams["legend.fontsize"],
            parse_math=False,
        )
    if picture.centred():
        handles += draw_star(axes, float(np.interp(0, x, y)), picture)
    return handles
