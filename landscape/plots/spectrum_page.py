"""The spectrum as an interactive page: one file that needs no network."""

import html
import math
import textwrap
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from landscape.estimators.smoothing import Axis
from landscape.plots.spectrum_picture import YLABEL, Picture, check_axis, collect
from landscape.plots.style import BLUE, symlog_ticks

Array = NDArray[np.float64]


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

    check_axis(axis)
    pictures = {name: collect(result, name) for name in get_args(Axis)}
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


def _page_layout(picture: Picture, kind: str, title: str | None) -> dict[str, Any]:
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


def _traces(picture: Picture) -> list[dict[str, Any]]:
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
    for chosen, symbol, color, label in picture.marks():
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


def _page_axis(picture: Picture) -> dict[str, Any]:
    """Describe the eigenvalue axis for plotly, which knows no asinh axis: its ticks are placed."""
    low, high = picture.limits()
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
