"""A surface as a relief over its plane, with its contours on the floor."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from landscape.plots.style import BLACK, GREY, VERMILLION, wrap
from landscape.plots.surface_map import colours, normaliser
from landscape.plots.surface_picture import SurfacePicture
from landscape.plots.surface_scale import Scale, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import Axes3D

Array = NDArray[np.float64]
VIEW = {"elev": 32.0, "azim": -58.0}
FINE = 100  # points along an axis of a relief that looks smooth
FLOOR = 0.35  # of the contours below the lowest value, as a share of the range


def draw_relief(picture: SurfacePicture, scale: Scale, title: str | None) -> "Figure":
    """Draw with matplotlib, inside `publication`.

    Heights lie on the scale: those of a logarithmic one are logarithms, whose ticks say the values. Where a
    value is not finite the relief has a hole. Models are marked on the floor, where none hides.
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import Axes3D

    width = float(rcParams["figure.figsize"][0])
    figure = Figure(figsize=(width, 0.8 * width))
    figure.set_layout_engine("none")
    axes = Axes3D(figure, computed_zorder=False)
    figure.add_axes(axes)
    axes.set_position((-0.02, 0.08, 0.98, 0.92))
    small = rcParams["legend.fontsize"]
    heights = scale.place(picture.values)
    x, y, fine = _refined(picture.grid[0], picture.grid[1], heights)
    low, high = scale.ends()
    floor = low - FLOOR * (high - low)
    style = {"cmap": colours(scale), "norm": normaliser(scale)}
    if np.isfinite(heights).any() and scale.levels():
        axes.contour(
            *picture.grid,
            heights.T,
            levels=scale.place(np.array(scale.levels())),
            zdir="z",
            offset=floor,
            linewidths=0.6,
            zorder=1,
            **style,
        )
    _draw_models(axes, picture, floor)
    axes.plot_surface(
        *np.meshgrid(x, y, indexing="ij"),
        fine,
        rcount=len(x),
        ccount=len(y),
        linewidth=0,
        antialiased=False,
        rasterized=True,
        zorder=3,
        **style,
    )
    ticks = scale.levels(5)
    axes.set_zticks(scale.place(np.array(ticks)).tolist(), [label(tick) for tick in ticks])
    axes.set_zlim(floor, high)
    axes.set_xlim(*picture.grid[0][[0, -1]])
    axes.set_ylim(*picture.grid[1][[0, -1]])
    shape = picture.shape()
    axes.set_box_aspect((1 / max(1, shape), min(1, shape), 0.62), zoom=0.98)
    axes.view_init(**VIEW)
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=5)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
        axis._axinfo["grid"].update({"color": "#E0E0E0", "linewidth": 0.35})
    axes.tick_params(pad=-2, labelsize=small)
    axes.set_xlabel(picture.axis(0), labelpad=-2, parse_math=False, fontsize=small)
    axes.set_ylabel(picture.axis(1), labelpad=0, parse_math=False, fontsize=small)
    axes.set_zlabel(picture.label, labelpad=-2, parse_math=False, fontsize=small)
    notes = [*picture.notes, *(["holes: not finite"] if not np.isfinite(heights).all() else [])]
    _head(figure, axes, title, " · ".join(notes), picture.failures)
    return figure


def _refined(x: Array, y: Array, heights: Array) -> tuple[Array, Array, Array]:
    """More points between those of the grid, linearly, so that the steps of colour are small."""

    def between(points: Array) -> Array:
        parts = -(-FINE // len(points))
        places = np.arange(parts * (len(points) - 1) + 1) / parts
        return np.interp(places, np.arange(len(points)), points)

    fine_x, fine_y = between(x), between(y)
    rows = np.stack([np.interp(fine_y, y, row) for row in heights])
    return fine_x, fine_y, np.stack([np.interp(fine_x, x, column) for column in rows.T], 1)


def _head(
    figure: "Figure", axes: "Axes3D", title: str | None, notes: str, failures: list[str]
) -> None:
    """Write lines over the relief, and make room for them."""
    from matplotlib import rcParams

    small = rcParams["legend.fontsize"]
    lines = [(title, rcParams["axes.titlesize"], BLACK)] if title else []
    lines.append((notes, small, GREY))
    if failures:
        lines.append((f"not to be trusted: {'; '.join(failures)}", small, VERMILLION))
    bottom, height = figure.get_figheight(), figure.get_figheight()
    texts = []
    for line, size, colour in lines:
        text = figure.text(0.02, 1, line, va="top", fontsize=size, color=colour, parse_math=False)
        texts.append((text, wrap(text, figure, share=0.96) + 0.04))
    height += sum(room for _, room in texts)
    figure.set_figheight(height)
    top = height - 0.02
    for text, room in texts:
        text.set_y(top / height)
        top -= room
    left, base, width, share = axes.get_position().bounds
    axes.set_position((left, base * bottom / height, width, share * bottom / height))
    # A label that reaches beyond an edge moves everything away from it.
    for _ in range(2):
        figure.draw_without_rendering()
        box = axes.get_tightbbox()
        if box is None:
            return
        place, across, up = axes.get_position(), figure.bbox.width, figure.bbox.height
        aside = max(0.0, -box.x0 / across) - max(0.0, box.x1 / across - 1)
        axes.set_position(
            (place.x0 + aside, place.y0 - min(0.0, box.y0 / up), place.width, place.height)
        )


def _draw_models(axes: "Axes3D", picture: SurfacePicture, floor: float) -> None:
    """Mark the model and others on the floor."""
    if picture.marked:
        places = np.array([one.place for one in picture.marked if picture.inside(one.place)])
        axes.plot(
            *places.T,
            floor,
            color=BLACK,
            linestyle="-" if picture.path else "none",
            linewidth=0.8,
            marker="o",
            markersize=2,
            zorder=2,
        )
    if picture.centred():
        axes.plot(0, 0, floor, color=BLACK, marker="*", markersize=4, zorder=2)
