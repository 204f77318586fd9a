"""What does every part of a model look like?  Densities of its blocks, and the norms between them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.numerals import number, power
from landscape.plots.layers_picture import LayersPicture, collect
from landscape.plots.style import (
    BLACK,
    GREY,
    HAIRLINE,
    VERMILLION,
    publication,
    raised,
    symlog_ticks,
)
from landscape.plots.writing import require_ending, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = 7.0
"""Width of two columns of a paper, in inches."""

DARKEST = 1e-6  # norms below this share of the largest have its colour


def plot_layers(
    result: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    width: float = PAGE,
    title: str | None = None,
) -> "Figure":
    """Draw the densities of a model's blocks, one above the other, beside the norms of all blocks.

    Every ridge is the eigenvalue density of one diagonal block per unit of the axis, which spaces
    eigenvalues by asinh(λ / s), on a logarithmic scale that all ridges share; ticks mark the largest and
    the smallest eigenvalue. The matrix shows ‖A_bc‖_F, rows and columns numbered as the ridges are.

    Args:
        result: the JSON result `landscape/layers/1`, as a mapping.
        path: where to save; the ending says the format: .png (300 dpi), .svg, .pdf, or .html for an
            interactive page. None (the default) saves nothing.
        width: of the figure in inches; 7, two columns of a paper, by default. The height follows from
            the number of blocks.
        title: a line above the figure, drawn as it is (no math markup); None by default.

    Returns:
        The matplotlib figure, not registered with pyplot.

    Raises:
        InputError: an ending or a result that this function does not know.
    """
    if path is not None:
        require_ending(path, page=True)
    picture = collect(result)

    def page() -> str:
        from landscape.plots.layers_page import layers_html

        return layers_html(result, title=title)

    with publication(width):
        figure = _draw(picture, width, title)
        write_figure(figure, path, page)
    return figure


def _draw(picture: LayersPicture, width: float, title: str | None) -> "Figure":
    """Draw with matplotlib, inside `publication`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count = len(picture.ridges)
    row = min(0.5, max(0.125, 0.37 * width / count))  # inches
    figure = Figure(figsize=(width, max(count * row, 0.4 * width) + 0.9))
    if title:
        figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_ridges(left, picture, crowded=row < 0.15)
    _draw_norms(right, picture)
    handles = [Patch(color=color, label=kind or "Module") for kind, color in picture.colors.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1.2)
    return figure


def _draw_ridges(axes: "Axes", picture: LayersPicture, *, crowded: bool) -> None:
    """Draw one density per row, the first on top, with ticks at its outermost eigenvalues."""
    from matplotlib import rcParams

    small = rcParams["legend.fontsize"]
    count = len(picture.ridges)
    for place, ridge in enumerate(picture.ridges):
        base, color = float(place), picture.colors[ridge.kind]
        curve = base - 0.92 * ridge.height  # the axis points down
        axes.axhline(base, color=HAIRLINE, linewidth=0.35, zorder=1)
        axes.fill_between(ridge.grid, base, curve, color=color, alpha=0.35, linewidth=0, zorder=2)
        line = np.where(
            ridge.height > 0, curve, np.nan
        )  # none where the density is below the floor
        axes.plot(ridge.grid, line, color=color, linewidth=0.6, zorder=3)
        axes.annotate(
            f"{place + 1}",
            (1.01, base),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=small,
            color=GREY,
        )
        for pair in ridge.eigenvalues:
            axes.plot(
                [pair["value"]] * 2,
                [base - 0.3, base],
                color=BLACK if pair["converged"] else VERMILLION,
                linewidth=0.8,
                solid_capstyle="butt",
                zorder=4,
            )
    labels = [ridge.label() for ridge in picture.ridges]
    size = small if crowded else rcParams["ytick.labelsize"]
    axes.set_yticks(range(count), labels, fontsize=size, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(count - 1 + 0.15, -1)
    axes.set_xscale("asinh", linear_width=picture.threshold)
    major, minor = symlog_ticks(picture.threshold, picture.low, picture.high)
    major = _thinned(major)
    axes.set_xticks(list(major), [raised(label) for label in major.values()])
    axes.set_xticks(minor, minor=True)
    axes.set_xlim(picture.low, picture.high)
    axes.set_xlabel(picture.xlabel, parse_math=False)
    note = (
        f"{picture.notes}\nheight: log density, {picture.decades:.1f} decades; ticks: λ max and min"
    )
    axes.set_title(note, loc="left", fontsize=small, color=GREY, parse_math=False)


def _thinned(major: dict[float, str]) -> dict[float, str]:
    """Every second or third power of ten, where all of them would touch; zero stays."""
    step = -(-len(major) // 8)
    ranked = sorted((x for x in major if x), key=abs, reverse=True)
    sizes = sorted({abs(x) for x in ranked}, reverse=True)[::step]
    return {x: label for x, label in major.items() if not x or abs(x) in sizes}


def _draw_norms(axes: "Axes", picture: LayersPicture) -> None:
    """Draw the matrix of block norms as colours on a logarithmic scale."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    norms, count = picture.norms, len(picture.ridges)
    far = float(np.nanmax(norms)) or 1.0
    shown = np.ma.masked_less_equal(norms, 0.0)
    least = float(shown.min()) if shown.count() else far
    colors = colormaps["cividis"].with_extremes(bad=HAIRLINE)
    low = min(max(least, DARKEST * far), 0.5 * far)
    scale = LogNorm(low, far)
    edges = np.arange(count + 1) + 0.5
    mesh = axes.pcolormesh(edges, edges, shown, norm=scale, cmap=colors)
    axes.set_aspect("equal", anchor="N")
    axes.invert_yaxis()
    step = next(step for step in (1, 2, 5, 10, 20, 50, 10**9) if count <= 16 * step)
    ticks = [1, *range(step, count + 1, step)] if step > 1 else list(range(1, count + 1))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_xlabel("block, numbered as on the left", labelpad=1)
    # In the matrix's own coordinates, so that the bar is as wide as the matrix.
    bar = axes.figure.colorbar(
        mesh,
        cax=axes.inset_axes((0, -0.24, 1, 0.045)),
        orientation="horizontal",
        extend="min" if least < DARKEST * far else "neither",
    )
    marks = _log_ticks(low, far)
    bar.set_ticks(list(marks), labels=[raised(label) for label in marks.values()])
    bar.minorticks_off()
    bar.set_label(f"norm ‖{picture.symbol}$_{{ij}}$‖$_F$ of blocks")
    bar.outline.set_linewidth(0.5)  # type: ignore[operator]


def _log_ticks(low: float, high: float) -> dict[float, str]:
    """Ticks of a logarithmic scale whose labels do not touch: powers of ten, or 1, 2 and 5 times these.

    >>> _log_ticks(0.026, 0.24), _log_ticks(3e-5, 4.0)
    ({0.05: '0.05', 0.1: '0.1', 0.2: '0.2'}, {0.0001: '10⁻⁴', 0.001: '10⁻³', 0.01: '10⁻²', 0.1: '10⁻¹', 1.0: '10⁰'})
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    exponents = range(first, last + 1)
    decades = {10.0**k: power(k) for k in exponents if low <= 10.0**k <= high}
    if len(decades) > 2:
        step = -(-len(decades) // 6)
        return dict(list(decades.items())[::step])
    fine = [float(f"{m}e{k}") for k in exponents for m in (1, 2, 5)]
    return {x: number(x, 1).replace(" × ", "×") for x in fine if low <= x <= high}
