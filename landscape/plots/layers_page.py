"""A model's blocks as an interactive page: one file that needs no network."""

import html
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.numerals import with_error
from landscape.plots.layers_picture import LayersPicture, collect
from landscape.plots.style import BLACK, VERMILLION, symlog_ticks

MOST_NUMBERS = 20  # blocks that all get a number on the axes of the norms
BLOCKS = "block, numbered as on the left"


def layers_html(result: Mapping[str, Any], *, title: str | None = None) -> str:
    """Make the interactive page of saved layers: one file that needs no network.

    Args:
        result: the JSON result `landscape/layers/1`, as a mapping.
        title: a line above the picture, escaped; None by default.

    Returns:
        A whole HTML document.

    Raises:
        InputError: a result that this function does not know.
    """
    import plotly.graph_objects as go

    picture = collect(result)
    count = len(picture.ridges)
    figure = go.Figure(
        data=[*map(go.Scatter, _traces(picture)), go.Heatmap(_matrix(picture))],
        layout=_page_layout(picture, title),
    )
    page: str = figure.to_html(
        div_id="layers",
        default_height=f"{max(600, 26 * count + 200)}px",
        config={"displaylogo": False},
    )
    return page


def _traces(picture: LayersPicture) -> list[dict[str, Any]]:
    """Describe for plotly the ridges, drawn upwards from −1, −2, …, and their outermost eigenvalues."""
    s = picture.threshold
    traces: list[dict[str, Any]] = []
    named = set()
    for place, ridge in enumerate(picture.ridges, 1):
        name, color = html.escape(ridge.name), picture.colors[ridge.kind]
        places = np.arcsinh(ridge.grid / s)
        common = {"legendgroup": ridge.kind, "mode": "lines"}
        traces.append(
            {
                **common,
                "x": [places[0], places[-1]],
                "y": [-place, -place],
                "line": {"width": 0},
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
        traces.append(
            {
                **common,
                "x": places.tolist(),
                "y": (0.92 * ridge.height - place).tolist(),
                "customdata": np.stack([ridge.grid, ridge.density], axis=1).tolist(),
                "hovertemplate": f"{name}<br>{ridge.parameters:,} parameters<br>"
                "λ = %{customdata[0]:.4g}<br>density = %{customdata[1]:.3g} per unit of the axis"
                "<extra></extra>",
                "fill": "tonexty",
                "line": {"color": color, "width": 1},
                "name": html.escape(ridge.kind) or "Module",
                "showlegend": ridge.kind not in named,
            }
        )
        named.add(ridge.kind)
        for pair, which in zip(ridge.eigenvalues, ("λ max", "λ min"), strict=True):
            at = math.asinh(pair["value"] / s)
            text = with_error(pair["value"], pair["residual"])
            traces.append(
                {
                    **common,
                    "x": [at, at],
                    "y": [-place, 0.3 - place],
                    "line": {"color": BLACK if pair["converged"] else VERMILLION, "width": 1.5},
                    "hovertemplate": f"{name}<br>{which} = {text}<extra></extra>",
                    "showlegend": False,
                }
            )
    return traces


def _matrix(picture: LayersPicture) -> dict[str, Any]:
    """Describe for plotly the block norms, in colours by their logarithm."""
    names = [html.escape(ridge.name) for ridge in picture.ridges]
    with np.errstate(divide="ignore"):
        logs = np.where(picture.norms > 0, np.log10(picture.norms), np.nan)
    far = float(np.nanmax(logs)) if np.isfinite(logs).any() else 0.0
    texts = [
        [
            f"{row} × {column}<br>norm {with_error(norm, error)}"
            for column, norm, error in zip(names, norms, errors, strict=True)
        ]
        for row, norms, errors in zip(
            names, picture.norms.tolist(), picture.norm_errors.tolist(), strict=True
        )
    ]
    numbers = list(range(1, len(names) + 1))
    return {
        "x": numbers,
        "y": numbers,
        "z": [[None if math.isnan(z) else z for z in row] for row in logs.tolist()],
        "zmin": max(float(np.nanmin(logs)), far - 6) if np.isfinite(logs).any() else -1.0,
        "zmax": far,
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "colorscale": "Cividis",
        "colorbar": {
            "title": {"text": f"log₁₀ ‖{picture.symbol}<sub>ij</sub>‖<sub>F</sub>"},
            "len": 0.6,
            "y": 1,
            "yanchor": "top",
        },
        "xaxis": "x2",
        "yaxis": "y2",
    }


def _page_layout(picture: LayersPicture, title: str | None) -> dict[str, Any]:
    s, count = picture.threshold, len(picture.ridges)
    major, _ = symlog_ticks(s, picture.low, picture.high)
    heading = f"{html.escape(title)}<br>" if title else ""
    labels = [f"{html.escape(ridge.label())} ({i})" for i, ridge in enumerate(picture.ridges, 1)]
    numbers = {"dtick": 1} if count <= MOST_NUMBERS else {}  # never between two blocks
    return {
        "template": "simple_white",
        "font": {"family": "Arial, Liberation Sans, sans-serif", "size": 13},
        "title": {"text": heading + html.escape(picture.notes), "font": {"size": 14}},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        "xaxis": {
            "title": {"text": html.escape(picture.xlabel)},
            "domain": [0, 0.57],
            "range": [math.asinh(picture.low / s), math.asinh(picture.high / s)],
            "tickvals": [math.asinh(x / s) for x in major],
            "ticktext": list(major.values()),
        },
        "yaxis": {
            "range": [-count - 0.15, 0],
            "tickvals": [-i for i in range(1, count + 1)],
            "ticktext": labels,
            "showline": False,
            "ticks": "",
            "showgrid": True,
            "automargin": True,
        },
        "xaxis2": {"domain": [0.64, 1], "anchor": "y2", "title": {"text": BLOCKS}, **numbers},
        "yaxis2": {
            "anchor": "x2",
            "autorange": "reversed",
            "scaleanchor": "x2",
            "constrain": "domain",
            "constraintoward": "top",
            **numbers,
        },
    }
