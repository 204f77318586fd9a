"""The path of a trajectory as a film: drawn over its map, checkpoint by checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.plots.surface_picture import SurfacePicture
from landscape.results import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
SECONDS = 0.25  # of a frame
LAST = 8  # frames that the whole path is seen


def write_film(figure: "Figure", picture: SurfacePicture, path: str | Path) -> None:
    """Write an endless film of a finished map, inside `publication`; the same bytes for the same result.

    Args:
        figure: as `plot_surface` draws it, with the path whole; it is whole again after.
        picture: whose marked models follow one another.
        path: of the film, ending in .gif.
    """
    from matplotlib.animation import PillowWriter

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # nothing moves between two frames
    axes, *strips = figure.axes
    lines: list[Any] = [line for panel in (axes, *strips) for line in panel.lines]
    moving = {
        line: line.get_data() for line in lines if len(line.get_xdata()) == len(picture.marked)
    }
    names = [text for text in axes.texts if text.get_gid() == "checkpoint"]
    turns = {one.name: i for i, one in enumerate(picture.marked)}
    writer = PillowWriter(fps=1 / SECONDS)  # type: ignore[arg-type]  # any number
    count = len(picture.marked)
    with atomic(path) as temporary, writer.saving(figure, temporary, DPI):
        for shown in [*range(1, count + 1), *[count] * LAST]:
            for line, (x, y) in moving.items():
                line.set_data(x[:shown], y[:shown])
            for name in names:
                name.set_visible(turns[name.get_text()] < shown)
            writer.grab_frame()
