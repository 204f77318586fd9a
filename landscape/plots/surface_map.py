"""A surface as a map: filled contours with labelled levels, the models on it, and its colour bar."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from landscape.numerals import number
from landscape.plots.style import BLACK, GREY, HAIRLINE
from landscape.plots.surface_picture import Marked, SurfacePicture
from landscape.plots.surface_scale import Scale, label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.contour import ContourSet
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import AbstractPathEffect

Array = NDArray[np.float64]
WHITE = "#FFFFFF"
HATCH: dict[str, Any] = {
    "facecolor": "#F2F2F2",
    "edgecolor": HAIRLINE,
    "hatch": "/////",
    "linewidth": 0,
}
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
NAMED = 8  # checkpoints that are named on the axis of distances, at most
APART = 0.1  # of named models of a path, as a share of the range
BAR = 0.085  # of a colour bar and what separates it, as a share of the width of its map
TICK = 0.11  # inches between two ticks of a colour bar, at least
STAR = 7.0  # size of the model's mark, in points
LEVEL = 5.2  # size of the labels of levels, in points, in Arial


class Map(NamedTuple):
    """Filled contours and lines, None where no value is finite, and what the legend is to name."""

    fills: "ContourSet | None"
    lines: "ContourSet | None"
    handles: list["Artist"]


def draw_map(axes: "Axes", picture: SurfacePicture, scale: Scale) -> Map:
    """Draw contours, hatching where values are not finite, and models.

    Contours are drawn on the scale, on which the surface is closer to linear between the points of the grid.
    The values on them are for `label_levels`, after the layout.
    """
    x, y = picture.grid
    heights = scale.place(picture.values).T  # rows of an image are the second axis
    handles: list[Artist] = []
    if not np.isfinite(heights).all():
        handles.append(_hatch(axes, picture))
    fills = lines = None
    low, high = scale.ends()
    places = scale.place(np.array(scale.levels())).tolist()
    if np.isfinite(heights).any():
        fills = axes.contourf(
            x,
            y,
            heights,
            levels=[low, *places, high],
            cmap=colours(scale),
            norm=normaliser(scale),
            zorder=1,
        )
    if fills is not None and places:
        # The lines lie on every border between two fills, so that no gap shows there.
        lines = _draw_levels(axes, picture, heights, scale, fills)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    if picture.equal():
        axes.set_aspect(picture.lengths[1] / picture.lengths[0])
    else:
        axes.set_box_aspect(1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    axes.tick_params(direction="out")
    axes.locator_params(nbins=5)
    return Map(fills, lines, handles + draw_models(axes, picture))


def colours(scale: Scale) -> str:
    """The name of a map of colours: a diverging one only where values have signs."""
    return DIVERGING if scale.signed else SEQUENTIAL


def normaliser(scale: Scale) -> "Normalize":
    """From places on the scale to colours."""
    from matplotlib.colors import Normalize

    return Normalize(*scale.colour_ends())


def _hatch(axes: "Axes", picture: SurfacePicture) -> "Artist":
    """Hatch all of the range, under the contours, which leave out what is not finite."""
    from matplotlib.patches import Patch, Rectangle

    (left, right), (bottom, top) = (points[[0, -1]].tolist() for points in picture.grid)
    axes.add_patch(Rectangle((left, bottom), right - left, top - bottom, zorder=0, **HATCH))
    return Patch(label="not finite", **HATCH)


def _draw_levels(
    axes: "Axes", picture: SurfacePicture, heights: Array, scale: Scale, fills: "ContourSet"
) -> "ContourSet":
    """Draw a line at every level, white on dark colours and black on bright ones."""
    levels = scale.levels()
    places = scale.place(np.array(levels))
    return axes.contour(
        *picture.grid,
        heights,
        levels=places,
        colors=[BLACK if bright(*shade[:3]) else WHITE for shade in fills.to_rgba(places)],
        linewidths=[0.8 if level == 0 else 0.4 for level in levels],
        alpha=0.8,
        negative_linestyles="solid",
        zorder=2,
    )


def label_levels(axes: "Axes", lines: "ContourSet | None", scale: Scale) -> None:
    """Write the values on the lines of a map whose layout is settled, where none touches another, or a model."""
    from matplotlib import rcParams
    from matplotlib.transforms import Bbox

    if lines is None:
        return
    taken = [text.get_window_extent() for text in axes.texts]
    around = np.array([[-1], [1]]) * STAR / 144 * axes.figure.dpi
    for models in axes.lines:
        taken += [
            Bbox(axes.transData.transform(at) + around) for at in np.array(models.get_xydata())
        ]
    named = dict(zip(lines.levels, map(label, scale.levels()), strict=True))
    size = LEVEL * rcParams["font.size"] / 7
    found = axes.clabel(lines, fmt=named, fontsize=size, inline=False)
    places = []
    for text in found:
        box = text.get_window_extent().padded(1)
        if not any(box.overlaps(other) for other in taken):
            taken.append(box)
            places.append(text.get_position())
    for _ in found:
        lines.pop_label()
    axes.clabel(lines, fmt=named, fontsize=size, inline_spacing=1.5, manual=places)


def bright(red: float, green: float, blue: float) -> bool:
    """Whether black is easier to read on a colour than white."""
    return 0.299 * red + 0.587 * green + 0.114 * blue > 0.55


def draw_models(axes: "Axes", picture: SurfacePicture) -> list["Artist"]:
    """Mark the model itself and others, those of a path joined by a line."""
    handles: list[Artist] = []
    inside = [one for one in picture.marked if picture.inside(one.place)]
    edge: dict[str, Any] = {"markeredgecolor": BLACK, "markeredgewidth": 0.5, "markersize": 3.2}
    if picture.marked:
        places = np.array([one.place for one in picture.marked])
        name = "path of checkpoints, projected" if picture.path else "other models"
        (line,) = axes.plot(
            *places.T,
            color=WHITE,
            linestyle="-" if picture.path else "none",
            linewidth=1.0,
            marker="o",
            markerfacecolor=WHITE,
            label=name,
            zorder=4,
            path_effects=_outline(0.8) if picture.path else None,
            **edge,
        )
        handles.append(line)
        for one in _to_name(inside, picture):
            _name(axes, one, picture)
    if picture.centred():
        handles += draw_star(axes, 0.0, picture)
    return handles


def draw_star(axes: "Axes", height: float, picture: SurfacePicture) -> "list[Line2D]":
    """Mark the model, where the first coordinate is 0."""
    return axes.plot(
        0,
        height,
        linestyle="none",
        marker="*",
        markersize=STAR,
        markerfacecolor="#F0E442",
        markeredgecolor=BLACK,
        markeredgewidth=0.5,
        label=picture.model,
        zorder=5,
    )


def _to_name(models: list[Marked], picture: SurfacePicture) -> list[Marked]:
    """Those that get a name: of a path some that are apart from each other and the model; else all."""
    if not picture.path:
        return models
    size = np.array([points[-1] - points[0] for points in picture.grid])
    taken, found = [np.zeros(2)], []
    for one in models:
        at = np.array(one.place) / size
        if min(float(np.abs(at - other).max()) for other in taken) > APART:
            taken.append(at)
            found.append(one)
    return found


def _name(axes: "Axes", one: Marked, picture: SurfacePicture) -> None:
    """Write a model's name beside it, and how far from the plane it is unless a strip shows that."""
    from matplotlib import rcParams

    text = one.name
    if not picture.path and not one.in_plane():
        text += f"\n{number(one.distance)} off the plane"
    left, right = axes.get_xlim()
    at_right = (one.place[0] - left) / (right - left) > 0.75
    axes.annotate(
        text,
        (one.place[0], one.place[1]),
        (-4 if at_right else 4, 3),
        textcoords="offset points",
        ha="right" if at_right else "left",
        fontsize=rcParams["legend.fontsize"],
        color=BLACK,
        path_effects=_outline(1.4, WHITE),
        zorder=6,
        parse_math=False,
        annotation_clip=True,
        gid="checkpoint",
    )


def _outline(width: float, colour: str = BLACK) -> list["AbstractPathEffect"]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=1.0 + width, foreground=colour)]


def draw_bar(axes: "Axes", name: str, scale: Scale, mapped: "ContourSet", height: float) -> "Axes":
    """Draw a colour bar at the right of a map, as high as that is (inches), with the levels as ticks."""
    bar = axes.figure.colorbar(mapped, cax=axes.inset_axes((1.035, 0, BAR - 0.035, 1)))
    levels = scale.levels() or [scale.low]
    levels = levels[:: -(-len(levels) // max(2, int(height / TICK)))]
    bar.set_ticks(scale.place(np.array(levels)).tolist(), labels=[label(x) for x in levels])
    bar.minorticks_off()
    bar.set_label(name, parse_math=False)
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]
    bar.ax.tick_params(length=1.5)
    return bar.ax


def draw_distances(axes: "Axes", picture: SurfacePicture) -> None:
    """Draw how far every checkpoint is from the plane, and from the model for comparison."""
    from matplotlib import rcParams

    turn = range(len(picture.marked))
    far = [one.away for one in picture.marked]
    off = [one.distance for one in picture.marked]
    axes.plot(turn, far, color=HAIRLINE, linewidth=0.9, label="from the model")
    axes.plot(turn, off, color=BLACK, marker="o", markersize=2, label="from the plane")
    names = [one.name for one in picture.marked]
    step = -(-len(names) // NAMED)
    axes.set_xticks(list(turn)[::step], names[::step], parse_math=False)
    axes.set_ylim(0, 1.05 * max([*far, *off]) or 1.0)
    axes.locator_params(axis="y", nbins=3)
    axes.set_ylabel("distance")
    axes.set_xlabel("checkpoint")
    axes.legend(loc="upper right", fontsize=rcParams["legend.fontsize"], labelcolor=GREY)
