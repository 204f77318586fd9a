"""What does the spectrum look like? Eigenvalue density and outliers, from a saved result."""

import html
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from landscape.errors import InputError
from landscape.estimators.smoothing import Axis, smooth
from landscape.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    HAIRLINE,
    VERMILLION,
    count,
    exponent_of,
    number,
    power,
    publication,
    raised,
    symlog_ticks,
    with_error,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Array = NDArray[np.float64]

SCHEMA = "landscape/spectrum/1"

# What each ending needs so that the same result gives the same bytes: no date inside.
UNDATED: dict[str, dict[str, Any]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".html": {},
}

# An operator's label on the axis, with the unit of its eigenvalues.
LABELS = {
    "Hessian": "eigenvalue λ of the loss Hessian (loss / parameter²)",
    "GaussNewton": "Gauss–Newton eigenvalue λ (loss / parameter²)",
    "Fisher": "eigenvalue λ of the Fisher matrix (1 / parameter²)",
    "EmpiricalFisher": "empirical Fisher eigenvalue λ (loss² / parameter²)",
    "GradientCovariance": "gradient covariance eigenvalue λ (loss² / parameter²)",
}

YLABEL = "density (per unit λ)"


class _Picture(NamedTuple):
    """Everything that is drawn, as arrays: what matplotlib and plotly share."""

    grid: Array
    mean: Array
    error: Array
    low: Array
    high: Array
    bottom: float
    top: float
    threshold: float | None
    eigenvalues: Array
    converged: NDArray[np.bool_]
    residuals: Array
    xlabel: str
    notes: list[str]
    banded: bool


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
    ending = "" if path is None else Path(path).suffix.lower()
    if path is not None and ending not in UNDATED:
        known = ", ".join(UNDATED)
        raise InputError(f"Cannot save a spectrum to '{path}': its ending must be one of {known}.")
    picture = _picture(result, axis)
    with publication(width):
        figure = _draw(picture, title)
        if path is None or ending == ".html":
            # Settle the layout now, while the settings hold.
            figure.draw_without_rendering()
        else:
            figure.savefig(path, format=ending[1:], metadata=UNDATED[ending])
    if path is not None and ending == ".html":
        Path(path).write_text(spectrum_html(result, axis=axis, title=title), encoding="utf-8")
    return figure


def spectrum_html(
    result: Mapping[str, Any], *, axis: Axis = "symlog", title: str | None = None
) -> str:
    """Make the interactive page of a saved spectrum: one file that needs no network.

    Hovering shows values with their errors; buttons switch both axes.

    Args:
        result: the JSON result `landscape/spectrum/1`, as a mapping.
        axis: the eigenvalue axis that the page opens with, "symlog" (default) or "linear".
        title: a line above the picture, escaped; None by default.

    Returns:
        A whole HTML document.

    Raises:
        InputError: an axis or a result that this function does not know.
    """
    import plotly.graph_objects as go

    _check_axis(axis)
    pictures = {name: _picture(result, name) for name in get_args(Axis)}
    traces = [(name, trace) for name in pictures for trace in _traces(pictures[name])]
    layouts = {
        (name, kind): _page_layout(picture, kind, title)
        for name, picture in pictures.items()
        for kind in ("log", "linear")
    }
    buttons = [
        {
            "label": f"{name} λ, {kind} density",
            "method": "update",
            "args": [{"visible": [owner == name for owner, _ in traces]}, layout],
        }
        for (name, kind), layout in layouts.items()
    ]
    switch = {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "active": list(layouts).index((axis, "log")),
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
    }
    # The look is set once: the page knows no template by its name, so a button must not name one.
    look = {
        "template": "simple_white",
        "font": {"family": "Arial, Liberation Sans, sans-serif", "size": 14},
        "updatemenus": [switch],
    }
    figure = go.Figure(
        data=[go.Scatter(trace, visible=name == axis) for name, trace in traces],
        layout=layouts[axis, "log"] | look,
    )
    page: str = figure.to_html(
        div_id="spectrum", default_height="95vh", config={"displaylogo": False}
    )
    return page


def _page_layout(picture: _Picture, kind: str, title: str | None) -> dict[str, Any]:
    """Describe for plotly the title and the axes, with the density on a "log" or "linear" axis."""
    lines = textwrap.wrap(title or "", 100)
    heading = "".join(f"{html.escape(line)}<br>" for line in lines)
    notes = f'<span style="font-size: 13px">{" · ".join(picture.notes)}</span>'
    decades = math.log10(picture.top / picture.bottom)
    ranges = {
        "log": [math.log10(picture.bottom), math.log10(picture.top)],
        "linear": [0.0, 0.53 * picture.top],
    }
    return {
        "margin": {"t": 95 + 25 * len(lines)},
        "title": {"text": heading + notes, "y": 0.98, "yanchor": "top"},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        "xaxis": _page_axis(picture),
        "yaxis": {
            "title": {"text": YLABEL},
            "domain": [0.1, 1],
            "type": kind,
            "range": ranges[kind],
            "dtick": math.ceil(decades / 8) if kind == "log" else None,
            "exponentformat": "power",
        },
        "yaxis2": {"domain": [0, 0.08], "range": [-1, 1], "visible": False, "fixedrange": True},
    }


def _traces(picture: _Picture) -> list[dict[str, Any]]:
    """Describe for plotly what is drawn: band, density and marks, with their hover texts."""
    s = picture.threshold

    def place(values: Array) -> list[float]:
        places: list[float] = (values if s is None else np.arcsinh(values / s)).tolist()
        return places

    traces: list[dict[str, Any]] = []
    if picture.banded:
        band = np.concatenate([picture.high, picture.low[::-1]])
        traces.append(
            {
                "x": place(np.concatenate([picture.grid, picture.grid[::-1]])),
                "y": band.tolist(),
                "fill": "toself",
                "fillcolor": "rgba(0, 114, 178, 0.3)",
                "line": {"width": 0},
                "hoverinfo": "skip",
                "name": "± s.e.",
            }
        )
    hover = "λ = %{customdata[0]:.4g}<br>density = %{customdata[1]:.3g}"
    hover += " ± %{customdata[2]:.2g}" if picture.banded else " (one probe)"
    traces.append(
        {
            "x": place(picture.grid),
            "y": picture.mean.tolist(),
            "customdata": np.stack([picture.grid, picture.mean, picture.error], axis=1).tolist(),
            "hovertemplate": hover + "<extra></extra>",
            "line": {"color": BLUE, "width": 2},
            "mode": "lines",
            "name": "density, mean over probes",
        }
    )
    for chosen, symbol, color, label in _marks(picture):
        values = picture.eigenvalues[chosen]
        traces.append(
            {
                "x": place(values),
                "y": [0.0] * len(values),
                "customdata": np.stack([values, picture.residuals[chosen]], axis=1).tolist(),
                "hovertemplate": "λ = %{customdata[0]:.6g}<br>residual = %{customdata[1]:.2g}"
                f"<extra>{label}</extra>",
                "marker": {
                    "symbol": {"|": "line-ns", "x": "x-thin"}[symbol],
                    "size": 12,
                    "line": {"color": color, "width": 1.5},
                },
                "mode": "markers",
                "name": label,
                "yaxis": "y2",
            }
        )
    return traces


def _page_axis(picture: _Picture) -> dict[str, Any]:
    """Describe the eigenvalue axis for plotly, which knows no asinh axis: its ticks are placed."""
    low, high = _limits(picture)
    described = {"title": {"text": html.escape(picture.xlabel)}, "anchor": "y2"}
    s = picture.threshold
    if s is None:
        return described | {"range": [low, high], "exponentformat": "power"}
    major, _ = symlog_ticks(s, low, high)
    return described | {
        "range": [math.asinh(low / s), math.asinh(high / s)],
        "tickvals": [math.asinh(x / s) for x in major],
        "ticktext": list(major.values()),
    }


def _picture(result: Mapping[str, Any], axis: Axis) -> _Picture:
    """Collect what is drawn on one axis, in arrays; null becomes NaN."""
    if result.get("schema") != SCHEMA:
        seen = result.get("schema")
        raise InputError(
            f"Cannot draw a result of schema {seen!r}: expected {SCHEMA!r}, "
            "as `landscape spectrum --json FILE` writes it."
        )
    _check_axis(axis)
    measures = [(probe["nodes"], probe["weights"]) for probe in result["ritz"]]
    stored = result["density"]
    if axis == stored["axis"] == "linear":
        keys = ("grid", "values", "standard_error")
        grid, mean, error = (np.array(stored[key], float) for key in keys)
        sigma, s = float(stored["width"]), None
    else:
        grid, mean, error, sigma, s = smooth(measures, axis=axis)

    # One eigenvalue has mass 1/P; its height is 1/(P σ √2π) times du/dλ, least at the outer end.
    outer = float(np.abs(grid).max())
    slope = 1.0 if s is None else 1 / math.hypot(outer, s)
    lone = slope / (result["parameters"] * sigma * math.sqrt(2 * math.pi))
    banded = bool(np.isfinite(error).all())
    margin = error if banded else np.zeros_like(mean)
    peak = float((mean + margin).max())
    bottom = min(lone / 10, peak / 100)
    # Where the grid ends the kernel is cut off; there the curve falls to the floor.
    grid = np.pad(grid, 1, mode="edge")
    mean, margin, error = (np.pad(curve, 1) for curve in (mean, margin, error))

    listed = [*result["eigenvalues"], result["smallest_eigenvalue"]]
    pairs = [pair for pair in listed if pair is not None and pair["value"] is not None]
    probes, steps = len(measures), max(len(nodes) for nodes, _ in measures)
    size = count(result["parameters"], "parameter")
    work = f"{count(probes, 'probe')} × {count(steps, 'step')}"
    trace = with_error(result["trace"]["value"], result["trace"]["standard_error"])
    kernel = f"kernel σ = {number(sigma)}"
    kernel += "" if s is None else f" in asinh(λ / {number(s)})"
    return _Picture(
        grid=grid,
        mean=np.maximum(mean, bottom / 10),
        low=np.maximum(mean - margin, bottom / 10),
        high=np.maximum(mean + margin, bottom / 10),
        bottom=bottom,
        top=2 * peak,
        threshold=s,
        eigenvalues=np.array([pair["value"] for pair in pairs], float),
        converged=np.array([pair["converged"] for pair in pairs], bool),
        residuals=np.array([pair["residual"] for pair in pairs], float),
        xlabel=LABELS.get(result["operator"], f"eigenvalue λ of {result['operator']}"),
        notes=[f"P = {size} · {work}", f"trace = {trace} · {kernel}"],
        error=error,
        banded=banded,
    )


def _check_axis(axis: str) -> None:
    """Refuse an axis that is not known."""
    if axis not in get_args(Axis):
        known = " or ".join(repr(name) for name in get_args(Axis))
        raise InputError(f"Cannot draw a spectrum on axis {axis!r}: choose {known}.")


def _limits(picture: _Picture) -> tuple[float, float]:
    """Give the range that is shown: the grid, every eigenvalue, and on a symlog axis zero."""
    s = picture.threshold
    shown = np.concatenate([picture.grid, picture.eigenvalues, [] if s is None else [0.0]])
    low, high = float(shown.min()), float(shown.max())
    if s is None:
        pad = 0.02 * (high - low)
        return low - pad, high + pad
    u_low, u_high = math.asinh(low / s), math.asinh(high / s)
    pad = 0.02 * (u_high - u_low)
    return s * math.sinh(u_low - pad), s * math.sinh(u_high + pad)


def _marks(picture: _Picture) -> list[tuple[NDArray[np.bool_], str, str, str]]:
    """List the kinds of marks that occur: which eigenvalues, marker, colour and label."""
    kinds = [
        (picture.converged, "|", BLACK, "eigenvalue"),
        (~picture.converged, "x", VERMILLION, "not converged"),
    ]
    return [kind for kind in kinds if kind[0].any()]


def _draw(picture: _Picture, title: str | None) -> "Figure":
    """Draw with matplotlib, inside `publication`."""
    from matplotlib.figure import Figure

    figure = Figure()
    density, marks = figure.subplots(2, 1, sharex=True, height_ratios=[12, 1])
    _draw_density(density, picture)
    _draw_marks(marks, picture)
    _wrap(marks.set_xlabel(picture.xlabel, parse_math=False), figure, share=0.82)
    if title:
        height = _wrap(figure.suptitle(title, parse_math=False), figure, share=0.96)
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


def _wrap(text: "Text", figure: "Figure", *, share: float) -> float:
    """Break a text into lines that fit a share of the figure's width; give its height (inches)."""
    words, room = text.get_text(), share * figure.bbox.width
    # A fifth more letters than fit on average, then fewer until every line fits.
    most = int(1.2 * len(words) * room / max(text.get_window_extent().width, 1))
    for letters in range(max(most, 10), 9, -1):
        text.set_text(textwrap.fill(words, letters))
        if text.get_window_extent().width <= room:
            break
    return float(text.get_window_extent().height / figure.dpi)


def _draw_density(axes: "Axes", picture: _Picture) -> None:
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
    axes.set_title("\n".join(picture.notes), loc="left", fontsize=6, color=GREY, parse_math=False)
    # One axis of eigenvalues, under the marks; here a hairline shows where the density is cut.
    axes.tick_params(axis="x", which="both", bottom=False)
    axes.spines["bottom"].set(color=HAIRLINE, linewidth=0.35)


def _draw_marks(axes: "Axes", picture: _Picture) -> None:
    """Draw one mark per eigenvalue in the strip under the density, and the eigenvalue axis."""
    from matplotlib.ticker import MaxNLocator

    for chosen, marker, color, label in _marks(picture):
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

    low, high = _limits(picture)
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
