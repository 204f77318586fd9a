"""A surface as an interactive page: a relief that turns, or a curve, with values under the pointer."""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.numerals import number
from landscape.plots.style import BLACK, BLUE, VERMILLION
from landscape.plots.surface_picture import Quantity, SurfacePicture, collect
from landscape.plots.surface_scale import Asked, Scale, plain_label

Array = NDArray[np.float64]
LIFT = 0.015  # of models over a relief, as a share of its height
STEPS = 10  # of a path between two checkpoints


def surface_html(
    result: Mapping[str, Any],
    *,
    quantity: Quantity = "loss",
    scale: Asked = "auto",
    title: str | None = None,
) -> str:
    """Make the interactive page of a saved surface: one file that needs no network.

    Args:
        result: the JSON result `landscape/surface/1`, as a mapping.
        quantity, scale: see `plot_surface`.
        title: a line above the picture, escaped; None by default.

    Returns:
        A whole HTML document.

    Raises:
        InputError: a result or a choice that this function does not know.
    """
    import plotly.graph_objects as go

    picture = collect(result, quantity)
    values = picture.scale(scale)
    if len(picture.grid) == 1:
        data = [go.Scatter(trace) for trace in _curve(picture, values)]
    else:
        relief, *models = _relief(picture, values)
        data = [go.Surface(relief), *map(go.Scatter3d, models)]
    figure = go.Figure(data=data, layout=_layout(picture, values, title))
    page: str = figure.to_html(
        div_id="surface", default_height="92vh", config={"displaylogo": False}
    )
    return page


def _relief(picture: SurfacePicture, scale: Scale) -> list[dict[str, Any]]:
    """Describe for plotly the relief, and the models over their places on it."""
    x, y = picture.grid
    heights = scale.place(picture.values)
    low, high = scale.colour_ends()
    ticks = scale.levels(8)
    places = scale.place(np.array(ticks)).tolist()
    relief = {
        "x": x.tolist(),
        "y": y.tolist(),
        "z": _nulls(heights.T),
        # Texts lie as z does, but a hovertemplate would look them up by column and row; and plotly keeps an
        # array of two dimensions, but no list of lists.
        "hovertext": _texts(picture).T,
        "hoverinfo": "text",
        "cmin": low,
        "cmax": high,
        "colorscale": "RdBu_r" if scale.signed else "Viridis",
        "colorbar": {
            "title": {"text": html.escape(picture.label), "side": "right"},
            "tickvals": places,
            "ticktext": [plain_label(tick) for tick in ticks],
            "len": 0.6,
        },
        "contours": {"z": {"highlight": True, "highlightcolor": "white"}},
        "lighting": {"ambient": 0.85, "diffuse": 0.3, "specular": 0.05},
        "name": html.escape(picture.label),
    }
    found = [relief]
    if picture.marked:
        inside = [one for one in picture.marked if picture.inside(one.place)]
        places = [one.place for one in inside]
        if picture.path:
            found.append(
                {
                    **_points(_between(places), picture, heights),
                    "mode": "lines",
                    "line": {"color": BLACK, "width": 4},
                    "hoverinfo": "skip",
                    "showlegend": False,
                }
            )
        found.append(
            {
                **_points(places, picture, heights),
                "mode": "markers",
                "marker": {"color": "white", "size": 4, "line": {"color": BLACK, "width": 1}},
                "text": [
                    f"{html.escape(one.name)}<br>{number(one.distance, 3)} from the plane<br>"
                    f"{number(one.away, 3)} from the model"
                    for one in inside
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "name": "path of checkpoints" if picture.path else "other models",
            }
        )
    if picture.centred():
        found.append(
            {
                **_points([[0.0, 0.0]], picture, heights),
                "mode": "markers",
                "marker": {"color": VERMILLION, "size": 5, "symbol": "diamond"},
                "hovertemplate": f"{html.escape(picture.model)}<extra></extra>",
                "name": html.escape(picture.model),
            }
        )
    return found


def _points(places: list[list[float]], picture: SurfacePicture, heights: Array) -> dict[str, Any]:
    """Points over the plane, a little higher than the relief there."""
    x, y = picture.grid
    z = []
    lift = (
        LIFT * float(np.nanmax(heights) - np.nanmin(heights)) if np.isfinite(heights).any() else 0
    )
    for place in places:
        column = np.array([np.interp(place[1], y, row) for row in heights])
        z.append(float(np.interp(place[0], x, column)) + lift)
    across, up = ([place[i] for place in places] for i in (0, 1))
    return {"x": across, "y": up, "z": _nulls(np.array(z))}


def _between(places: list[list[float]]) -> list[list[float]]:
    """The same path in small steps, which stay over a relief that bends."""
    turns = np.arange(len(places))
    fine = np.linspace(0, max(len(places) - 1, 0), STEPS * max(len(places) - 1, 0) + 1)
    points: list[list[float]] = np.stack(
        [np.interp(fine, turns, column) for column in np.array(places).T], 1
    ).tolist()
    return points


def _texts(picture: SurfacePicture) -> NDArray[Any]:
    """What is said of every point of the grid, of the grid's shape."""
    found = np.empty(picture.values.shape, object)
    for i in np.ndindex(found.shape):
        value = picture.values[i]
        place = ", ".join(number(points[k], 3) for points, k in zip(picture.grid, i, strict=True))
        said = "not finite" if not np.isfinite(value) else number(float(value), 4)
        if picture.error is not None and np.isfinite(picture.error[i]):
            said += f" ± {number(float(picture.error[i]), 2)}"
        found[i] = f"at {place}<br>{html.escape(picture.label)}:<br>{said}"
    return found.astype(str)


def _curve(picture: SurfacePicture, scale: Scale) -> list[dict[str, Any]]:
    """Describe for plotly the curve over its band, and the models on it."""
    x, heights = picture.grid[0], scale.place(picture.values)
    found: list[dict[str, Any]] = []
    if picture.error is not None:
        both = [picture.values + picture.error, picture.values - picture.error]
        if scale.spacing == "log":
            both[1] = np.maximum(both[1], 0.5 * scale.low)
        for edge, fill in zip(both, ("none", "tonexty"), strict=True):
            found.append(
                {
                    "x": x.tolist(),
                    "y": _nulls(scale.place(edge)),
                    "fill": fill,
                    "fillcolor": "rgba(0, 114, 178, 0.3)",
                    "line": {"width": 0},
                    "mode": "lines",
                    "hoverinfo": "skip",
                    "showlegend": fill != "none",
                    "name": "± s.e. over samples",
                }
            )
    found.append(
        {
            "x": x.tolist(),
            "y": _nulls(heights),
            "text": _texts(picture).tolist(),
            "hovertemplate": "%{text}<extra></extra>",
            "line": {"color": BLUE, "width": 2},
            "mode": "lines",
            "name": html.escape(picture.label),
        }
    )
    models = [(one.name, one.place[0], one.distance) for one in picture.marked]
    models += [(picture.model, 0.0, 0.0)] if picture.centred() else []
    for name, place, distance in models:
        found.append(
            {
                "x": [place],
                "y": _nulls(np.array([np.interp(place, x, heights)])),
                "mode": "markers",
                "marker": {"color": VERMILLION if name == picture.model else BLACK, "size": 9},
                "hovertemplate": f"{html.escape(name)}<br>{number(distance, 3)} from the line"
                "<extra></extra>",
                "name": html.escape(name),
            }
        )
    return found


def _layout(picture: SurfacePicture, scale: Scale, title: str | None) -> dict[str, Any]:
    heading = [html.escape(title)] if title else []
    heading.append(html.escape(" · ".join(picture.notes)))
    if picture.failures:
        said = html.escape("; ".join(picture.failures))
        heading.append(f'<span style="color:{VERMILLION}">not to be trusted: {said}</span>')
    ticks = scale.levels(8)
    upright = {
        "title": {"text": html.escape(picture.label)},
        "tickvals": scale.place(np.array(ticks)).tolist(),
        "ticktext": [plain_label(tick) for tick in ticks],
    }
    labels = [html.escape(picture.axis(i)) for i in range(len(picture.grid))]
    names = [{"title": {"text": label.replace("\n", "<br>")}} for label in labels]
    layout: dict[str, Any] = {
        "template": "simple_white",
        "font": {"family": "Arial, Liberation Sans, sans-serif", "size": 13},
        "title": {"text": "<br>".join(heading), "font": {"size": 14}},
        "legend": {"orientation": "h", "y": 0.0, "yanchor": "top"},
    }
    if len(picture.grid) == 1:
        return layout | {"xaxis": names[0], "yaxis": upright, "legend": {"y": 1.0}}
    shape = picture.shape()
    ratio = {"x": 1 / max(1.0, shape), "y": min(1.0, shape), "z": 0.6}
    grid = {"showgrid": True, "gridcolor": "#E0E0E0"}
    return layout | {
        "margin": {"l": 10, "r": 10, "t": 80, "b": 10},
        "scene": {
            "xaxis": names[0] | grid,
            "yaxis": names[1] | grid,
            "zaxis": upright | grid,
            "aspectmode": "manual",
            "aspectratio": ratio,
            "camera": {"eye": {"x": 1.0, "y": -1.65, "z": 1.0}, "center": {"z": -0.12}},
        },
    }


def _nulls(values: Array) -> Any:
    """Lists with null where a value is not finite."""
    return np.where(np.isfinite(values), values.astype(object), np.array(None)).tolist()
