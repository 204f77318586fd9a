"""What does the spectrum look like?  The eigenvalue density, with its outliers, from a saved result."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.estimators.smoothing import Axis
from landscape.numerals import exponent_of, power
from landscape.plots.spectrum_picture import YLABEL, Picture, collect
from landscape.plots.style import (
    BLUE,
    COLUMN,
    GREY,
    HAIRLINE,
    publication,
    raised,
    symlog_ticks,
    wrap,
)
from landscape.plots.writing import require_ending, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_spectrum(
    result: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    axis: Axis = "symlog",
    width: float = COLUMN,
    title: str | None = None,
) -> "Figure":
    """Draw the eigenvalue density of a saved spectrum, and save it when a path is given.

    The line is the mean density over the probes, the band its standard error; the marks underneath
    are the eigenvalues that were computed one by one. The density axis starts at a tenth of the
    height that a single eigenvalue (mass 1 / P) has at the outer end of the axis.

    Args:
        result: the JSON result `landscape/spectrum/1`, as a mapping.
        path: where to save; the ending says the format: .png (300 dpi), .svg, .pdf, or .html for
            the interactive page. None (the default) saves nothing.
        axis: "symlog" (default) spaces eigenvalues by asinh(λ / s), with s a thousandth of the
            largest, so that the bulk, the outliers and small negative eigenvalues all show;
            "linear" spaces them by λ.
        width: width of the figure in inches; 3.25, one column of a paper, by default.
        title: a line above the figure, drawn as it is (no math markup); None by default.

    Returns:
        The matplotlib figure, not registered with pyplot.

    Raises:
        InputError: an ending, an axis or a result that this function does not know.
    """
    if path is not None:
        require_ending(path, page=True)
    picture = collect(result, axis)

    def page() -> str:
        from landscape.plots.spectrum_page import spectrum_html

        return spectrum_html(result, axis=axis, title=title)

    with publication(width):
        figure = _draw(picture, title)
        write_figure(figure, path, page)
    return figure


def _draw(picture: Picture, title: str | None) -> "Figure":
    """Draw with matplotlib, inside `publication`."""
    from matplotlib.figure import Figure

    figure = Figure()
    density, marks = figure.subplots(2, 1, sharex=True, height_ratios=[12, 1])
    _draw_density(density, picture)
    _draw_marks(marks, picture)
    wrap(marks.set_xlabel(picture.xlabel, parse_math=False), figure, share=0.82)
    if title:
        height = wrap(figure.suptitle(title, parse_math=False), figure, share=0.96)
        figure.set_figheight(figure.get_figheight() + height)
    (handles, labels), more = (axes.get_legend_handles_labels() for axes in (density, marks))
    if picture.banded:
        handles[0] = (density.collections[0], handles[0])
    figure.legend(
        handles + more[0],
        labels + more[1],
        loc="outside lower center",
        ncols=3,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.6,
        borderpad=0,
    )
    return figure


def _draw_density(axes: "Axes", picture: Picture) -> None:
    """Draw the density with its band, and the lines of notes above."""
    if picture.banded:
        axes.fill_between(
            picture.grid, picture.low, picture.high, color=BLUE, alpha=0.35, linewidth=0
        )
    label = "density, mean ± s.e." if picture.banded else "density (one probe)"
    axes.plot(picture.grid, picture.mean, color=BLUE, label=label)
    axes.set_yscale("log")
    axes.set_ylim(picture.bottom, picture.top)
    axes.set_ylabel(YLABEL)
    from matplotlib import rcParams

    small = rcParams["legend.fontsize"]
    axes.set_title(
        "\n".join(picture.notes), loc="left", fontsize=small, color=GREY, parse_math=False
    )
    # One axis of eigenvalues, under the marks; here a hairline shows where the density is cut.
    axes.tick_params(axis="x", which="both", bottom=False)
    axes.spines["bottom"].set(color=HAIRLINE, linewidth=0.35)


def _draw_marks(axes: "Axes", picture: Picture) -> None:
    """Draw one mark per eigenvalue in the strip under the density, and the eigenvalue axis."""
    from matplotlib.ticker import MaxNLocator

    for chosen, marker, color, label in picture.marks():
        axes.plot(
            picture.eigenvalues[chosen],
            np.zeros(chosen.sum()),
            marker=marker,
            color=color,
            linestyle="none",
            markersize=4,
            markeredgewidth=0.7,
            label=label,
        )
    axes.set_ylim(-1, 1)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)

    low, high = picture.limits()
    exponent = exponent_of(max(-low, high))
    s = picture.threshold
    major, minor = ({}, []) if s is None else symlog_ticks(s, low, high)
    if s is not None:
        axes.set_xscale("asinh", linear_width=s)
    if len(major) > 1:
        axes.set_xticks(list(major), [raised(label) for label in major.values()])
        axes.set_xticks(minor, minor=True)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6 if exponent == 0 else 4, steps=[1, 2, 5, 10]))
        axes.minorticks_off()
        if exponent != 0:
            # Matplotlib would put the common factor where the axis label is.
            unit = raised(power(exponent))
            axes.xaxis.set_major_formatter(
                lambda x, _: f"{x / 10.0**exponent:.4g}×{unit}".replace("-", "−") if x else "0"
            )
    axes.set_xlim(low, high)
