"""The path of a trajectory as a film: drawn over its map, checkpoint by checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landscape.plots.surface_picture import SurfacePicture
from landscape.results import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
FRAME, LAST = 250, 2000  # milliseconds of a frame, and of the whole path


def write_film(figure: "Figure", picture: SurfacePicture, path: str | Path) -> None:
    """Write an endless film of a finished map, inside `publication`; the same bytes for the same result.

    Args:
        figure: as `plot_surface` draws it, with the path whole; it is whole again after.
        picture: whose marked models follow one another.
        path: of the film, ending in .gif.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_layout_engine("none")  # nothing moves between two frames
    lines = [line for panel in figure.axes for line in panel.lines]
    drawn = [(line, np.array(line.get_xydata())) for line in lines]
    moving = [(line, at) for line, at in drawn if len(at) == len(picture.marked)]
    names = [text for text in figure.axes[0].texts if text.get_gid() == "checkpoint"]
    turns = {one.name: i for i, one in enumerate(picture.marked)}
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    frames = []
    for shown in range(1, len(picture.marked) + 1):
        for line, at in moving:
            line.set_data(*at[:shown].T)
        for name in names:
            name.set_visible(turns[name.get_text()] < shown)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    durations = [FRAME] * (len(frames) - 1) + [LAST]
    with atomic(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
        )
