"""Pictures of surfaces: values where they belong, on the scale that is said, and nothing drawn that cannot be."""

import copy
import json
import re
import struct
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from conftest import Run
from matplotlib.collections import PolyCollection
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Outline
from mpl_toolkits.mplot3d import Axes3D
from numpy.typing import NDArray
from PIL import Image

import landscape as ls
from landscape.errors import InputError
from landscape.plots.surface import plot_surface
from landscape.plots.surface_map import bright
from landscape.plots.surface_page import surface_html
from landscape.plots.surface_picture import collect
from landscape.plots.surface_scale import Scale, scale_of
from landscape.plots.surfaces import plot_surfaces
from landscape.results import to_json

Array = NDArray[np.float64]


def bowl(x: Array, y: Array) -> Array:
    """A function that tells its two arguments apart."""
    return 0.02 + x**2 + 4 * y**2 + 0.3 * x * y + 0.1 * x**3


def axis(name: str, **known: Any) -> dict[str, Any]:
    return {"name": name, "length": 1.0, "eigenvalue": None, "residual": None} | known


HESSIAN = [
    axis("largest eigenvalue", eigenvalue=8.012345, residual=0.0021),
    axis("eigenvalue 2", eigenvalue=2.0, residual=2e-7),
]


def surface(
    function: Callable[..., Array] = bowl,
    *,
    points: tuple[int, ...] = (41, 31),
    extent: tuple[tuple[float, float], ...] = ((-1.0, 1.0), (-0.6, 0.9)),
    **changes: Any,
) -> dict[str, Any]:
    """A surface whose truth is known, as `landscape/surface/1`."""
    grid = [np.linspace(*ends, n) for ends, n in zip(extent, points, strict=True)]
    loss = function(*np.meshgrid(*grid, indexing="ij"))
    shape = loss.shape
    result = {
        "schema": "landscape/surface/1",
        "parameters": 100,
        "kind": "hessian",
        "axes": HESSIAN[: len(grid)],
        "normalisation": None,
        "largest_cosine": 0.0,
        "norm_stats": None,
        "grid": [g.tolist() for g in grid],
        "loss": loss.tolist(),
        "loss_standard_error": np.full(shape, 0.01).tolist(),
        "rise_standard_error": np.full(shape, 0.005).tolist(),
        "accuracy": np.clip(1 - loss / 10, 0, 1).tolist(),
        "center": float(function(*np.zeros(len(grid)))),
        "markers": [],
        "checks": {
            "centre_relative_error": 1e-8,
            "axis_curvature_relative_error": [1e-5, 3e-5][: len(grid)],
            "axes": None,
            "curvature_at_scale": [2.0, 8.0][: len(grid)],
        },
        "evaluations": loss.size,
        "at_once": 1,
        "notes": [],
        "failures": [],
        "cost": {"products": 1, "gradient_equivalents": 1.0, "seconds": 1.0, "peak_bytes": 1},
        "provenance": {"problem": {"loss": "cross_entropy", "samples": 1438}},
    }
    return result | changes


def line(**changes: Any) -> dict[str, Any]:
    return surface(lambda x: 0.02 + x**2, points=(51,), extent=((-1.0, 1.0),), **changes)


def marker(name: str, *place: float, distance: float = 0.0) -> dict[str, Any]:
    return {"name": name, "coordinates": list(place), "distance": distance}


PATH = [marker(f"{i}", 0.9 * 0.7**i, 0.8 * 0.5**i, distance=0.3 * 0.6**i) for i in range(9)]
PRINCIPAL = [
    axis("principal direction 1", explained=0.91),
    axis("principal direction 2", explained=0.05),
]
TRAJECTORY = surface(kind="trajectory", axes=PRINCIPAL, markers=PATH)
MODELS = surface(
    kind="models",
    axes=[axis("towards a", length=3.0), axis("towards b", length=3.0)],
    markers=[marker("a", 0.9, 0.0), marker("b", 0.4, 0.7, distance=1.26)],
)


def with_holes(result: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(result)
    result["loss"][3] = (
        [None] * len(result["loss"][3]) if isinstance(result["loss"][3], list) else None
    )
    return result


CASES = {
    "map": surface(),
    "line": line(),
    "trajectory": TRAJECTORY,
    "models": MODELS,
    "holes": with_holes(surface()),
    "line with holes": with_holes(line()),
    "nothing finite": surface(lambda x, y: np.full_like(x, np.nan), center=0.5),
    "constant": surface(lambda x, y: np.full_like(x, 0.5)),
    "constant line": line() | {"loss": [0.0] * 51},
    "two points": surface(points=(2, 2)),
    "tiny": surface(lambda x, y: 1e-9 * bowl(x, y)),
    "negative": surface(lambda x, y: bowl(x, y) - 1),
    "huge range": surface(lambda x, y: np.exp(60 * bowl(x, y))),
    "narrow": surface(extent=((-1.0, 1.0), (-0.01, 0.02))),
    "away from the model": surface(extent=((0.5, 1.0), (0.2, 0.9))),
    "unknown loss": surface(provenance={"problem": {"loss": "my_$loss_"}}),
    "untrusted": surface(failures=["along eigenvalue 2 something differs by 12 %"], norm_stats="batch"),
}  # fmt: skip
ODD = ("holes", "line with holes", "nothing finite", "constant", "negative")
every_case = pytest.mark.parametrize("case", CASES)


def contours(figure: Figure) -> tuple[ContourSet, ContourSet]:
    """The fills and the lines of the first panel."""
    found = [item for item in figure.axes[0].collections if isinstance(item, ContourSet)]
    return found[0], found[1]


def words(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


@cache
def drawn(case: str) -> Figure:
    """A case drawn once for all tests that only look at it, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return plot_surface(CASES[case])


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@every_case
def test_every_case_is_drawn_without_a_warning(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(case)
        if case in ODD:
            surface_html(CASES[case], quantity="rise")
        if case in ODD and len(CASES[case]["axes"]) == 2:
            plot_surface(CASES[case], kind="3d", title="A title_with $signs$")


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_contours_lie_where_the_function_has_their_values(scale: Any) -> None:
    # Rows and columns exchanged, or coordinates off by a step, would put them elsewhere.
    _, lines = contours(plot_surface(surface(points=(161, 141)), scale=scale))
    assert 6 <= len(lines.levels) <= 14
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        vertices = path.vertices[path.codes != path.CLOSEPOLY]
        value = 10**level if scale == "log" else level
        np.testing.assert_allclose(bowl(*vertices.T), value, rtol=0.01)


def test_range_axes_and_levels_are_what_the_picture_says() -> None:
    figure = drawn("map")
    axes, bar = figure.axes[0], figure.axes[0].child_axes[0]
    assert axes.get_xlim() == (-1, 1) and axes.get_ylim() == (-0.6, 0.9)
    assert axes.get_xlabel() == (
        "distance along the eigenvector of\nthe largest eigenvalue, λ = 8.012 ± 0.002"
    )
    assert axes.get_ylabel().endswith("eigenvector of\neigenvalue 2, λ = 2 ± 2 × 10⁻⁷")
    assert bar.get_ylabel() == "loss, cross-entropy (nats)"
    _, lines = contours(figure)
    shown = dict(zip(bar.get_yticks(), (t.get_text() for t in bar.get_yticklabels()), strict=True))
    assert set(shown) <= set(lines.levels)
    for place, text in shown.items():
        assert float(text) == pytest.approx(10**place)
    notes = axes.get_title(loc="left").replace("\n", " ")
    assert notes == "1,438 samples · curvature along the axes within 0.003 % of vᵀHv"
    assert legend(figure) == ["the model: loss 0.02"]


def test_fills_cover_all_values_and_have_the_colours_of_the_bar() -> None:
    figure = drawn("map")
    fills, lines = contours(figure)
    heights = np.log10(np.array(surface()["loss"]))
    assert fills.levels[0] < heights.min() and heights.max() < fills.levels[-1]
    np.testing.assert_allclose(fills.levels[1:-1], lines.levels)
    assert fills.cmap.name == "viridis"
    inside = 0
    for place in np.random.default_rng(0).uniform((-1, -0.6), (1, 0.9), (200, 2)):
        value = np.log10(bowl(*place))
        # An odd number of outlines is around a point of a band: inside its edge, and no hole.
        within = [
            sum(Outline(outline).contains_point(place) for outline in path.to_polygons()) % 2
            for path in fills.get_paths()
        ]
        (band,) = np.flatnonzero(within)
        # but for points beside a line, which is straight between the points of the grid
        inside += fills.levels[band] <= value <= fills.levels[band + 1]
    assert inside >= 195


def test_values_on_lines_name_their_level_and_do_not_touch() -> None:
    figure = drawn("map")
    _, lines = contours(figure)
    labels = list(lines.labelTexts)
    assert len(labels) >= 3
    for text in labels:
        value = bowl(*np.array(text.get_position()))
        assert float(text.get_text()) == pytest.approx(float(value), rel=0.05)  # linear pieces
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    ("low", "high", "log"), [(1.0, 9.0, False), (1.0, 11.0, True), (-1.0, 100.0, False)]
)
def test_scale_is_logarithmic_where_values_span_more_than_a_decade(
    low: float, high: float, log: bool
) -> None:
    found = scale_of([np.array([low, np.nan, high])], "auto", signed=False, may_be_log=True)
    assert found.spacing == ("log" if log else "linear")
    assert (found.low, found.high) == (low, high)


@pytest.mark.parametrize("spacing", ["linear", "log", "asinh"])
@pytest.mark.parametrize("high", [0.011, 1.0, 3e3, 1e30])
def test_levels_are_few_rising_and_within_the_range(spacing: Any, high: float) -> None:
    found = Scale(spacing, 0.01, high, 1e-3 * high, False).levels()
    assert len(found) <= 14 and found == sorted(set(found))
    assert all(0.01 < level < high for level in found)
    assert found or high == 0.011


def test_colours_diverge_only_where_values_have_signs_and_about_zero() -> None:
    saddle = surface(lambda x, y: 0.5 + x**2 - 4 * y**2)
    fills, lines = contours(plot_surface(saddle, quantity="rise"))
    assert fills.cmap.name == "RdBu_r" and fills.norm.vmin == -fills.norm.vmax
    assert 0.0 in lines.levels
    minimum = surface(lambda x, y: 0.5 + x**2 + 4 * y**2)
    fills, _ = contours(plot_surface(minimum, quantity="rise"))
    assert fills.cmap.name == "viridis"
    for quantity in ("loss", "accuracy", "loss_standard_error"):
        assert not collect(saddle, quantity).scale("auto").signed


def test_rise_is_the_loss_less_that_of_the_model_with_its_own_error() -> None:
    found = collect(surface(), "rise")
    np.testing.assert_allclose(found.values, np.array(surface()["loss"]) - 0.02)
    assert found.error is not None and (found.error == 0.005).all()
    assert found.label == "rise of the cross-entropy (nats)"
    percent = collect(surface(), "accuracy")
    np.testing.assert_allclose(percent.values, 100 * np.array(surface()["accuracy"]))


def test_convexity_is_drawn_on_the_grid_of_its_own() -> None:
    grid = [np.linspace(-1, 1, 3), np.linspace(-0.6, 0.9, 4)]
    largest = 2 + np.arange(12.0).reshape(3, 4)
    ends = {"grid": grid, "largest": largest, "smallest": 1 - grid[0][:, None] * largest}
    result = surface(curvature=ends, gradient_norm=2 * np.array(surface()["loss"]))
    found = collect(result, "convexity")
    np.testing.assert_allclose(found.values, ends["smallest"] / largest)
    assert [len(points) for points in found.grid] == [3, 4] and found.signed
    np.testing.assert_allclose(collect(result, "gradient_norm").values, result["gradient_norm"])
    assert collect(result, "gradient_norm").label == "norm of the gradient (nats / parameter)"


def test_what_was_interpolated_is_said() -> None:
    filled = {"computed": 318, "points": 1271, "error": 0.0042, "held_back": 60, "span": 1.0}
    notes = collect(surface(interpolation=filled)).notes
    assert "75 % of the points interpolated, to 0.4 % of the range" in notes


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (3.0, 4.5)])
def test_a_distance_in_weight_space_is_as_long_along_both_axes(
    lengths: tuple[float, float],
) -> None:
    named = [axis(f"random {i + 1}", length=length) for i, length in enumerate(lengths)]
    figure = plot_surface(surface(axes=named, kind="random"))
    place = figure.axes[0].transData.transform
    origin, along, up = place([[0, 0], [1 / lengths[0], 0], [0, 1 / lengths[1]]])
    assert along[0] - origin[0] == pytest.approx(up[1] - origin[1], rel=0.01)
    assert "scale" not in figure.axes[0].get_title(loc="left")


def test_ranges_that_differ_too_much_are_drawn_square_and_said() -> None:
    figure = drawn("narrow")
    box = figure.axes[0].get_window_extent()
    assert box.width == pytest.approx(box.height, rel=0.01)
    notes = figure.axes[0].get_title(loc="left").replace("\n", " ")
    assert "axes not on the same scale" in notes


@pytest.mark.parametrize(
    ("case", "kind"),
    [("trajectory", "auto"), ("line", "auto"), ("untrusted", "auto"), ("untrusted", "3d")],
)
def test_figure_is_as_wide_as_asked_and_nothing_is_cut_off(
    case: str, kind: Any, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    figure = plot_surface(CASES[case], path, kind=kind, width=4.0, title="A title " * 12)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width == 4.0 * 300 and height == pytest.approx(300 * figure.get_figheight(), abs=1)
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [bar.get_tightbbox() for axes in figure.axes for bar in axes.child_axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    for box in boxes:
        assert box is not None and box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.width + 1
        assert kind == "3d" or box.y1 <= figure.bbox.height + 1  # a relief's box is larger than it


def test_what_is_not_finite_is_hatched_and_named() -> None:
    figure = drawn("holes")
    hatched = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_hatch()]
    assert len(hatched) == 1 and "not finite" in legend(figure)
    fills, _ = contours(figure)
    x, y = CASES["holes"]["grid"][0][3], CASES["holes"]["grid"][1][15]
    assert not any(path.contains_point((x, y)) for path in fills.get_paths())
    assert "not finite" not in legend(drawn("map"))
    figure = drawn("line with holes")
    (span,) = [p for p in figure.axes[0].patches if p.get_hatch()]
    left, right = (
        span.get_window_extent().transformed(figure.axes[0].transData.inverted()).intervalx
    )
    x = CASES["line with holes"]["grid"][0]
    assert x[2] < left < x[3] < right < x[4] and "not finite" in legend(figure)


def test_a_path_is_joined_in_its_order_with_the_distance_of_every_checkpoint() -> None:
    figure = drawn("trajectory")
    axes, strip = figure.axes
    (path,) = [line for line in axes.lines if len(line.get_xdata()) == len(PATH)]
    np.testing.assert_allclose(path.get_xydata(), [one["coordinates"] for one in PATH])
    assert path.get_linestyle() == "-"
    away, off = strip.lines
    np.testing.assert_allclose(off.get_ydata(), [one["distance"] for one in PATH])
    expected = [np.hypot(np.hypot(*one["coordinates"]), one["distance"]) for one in PATH]
    np.testing.assert_allclose(away.get_ydata(), expected)
    assert axes.get_xlabel() == "distance along principal direction 1\n(91 % of the variance)"


def test_models_have_names_and_the_distance_from_the_plane_where_there_is_one() -> None:
    figure = drawn("models")
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names[:2] == ["a", "b\n1.3 off the plane"]
    (models,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert models.get_linestyle() == "None"
    assert figure.axes[0].get_xlabel() == "step towards a\n(1 is a distance of 3)"


def test_the_model_is_marked_at_the_origin_where_that_is_in_the_picture() -> None:
    (star,) = drawn("map").axes[0].lines
    assert star.get_marker() == "*" and star.get_xydata().tolist() == [[0, 0]]
    assert not drawn("away from the model").axes[0].lines


def test_a_line_has_its_standard_error_about_it() -> None:
    axes = plot_surface(line(), scale="linear").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), line()["loss"])
    (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    (path,) = band.get_paths()
    at_edge = path.vertices[np.isclose(path.vertices[:, 0], -1.0)][:, 1]
    assert at_edge.min() == pytest.approx(1.01) and at_edge.max() == pytest.approx(1.03)
    assert axes.get_yscale() == "linear" and drawn("line").axes[0].get_yscale() == "log"


def test_what_failed_stands_in_the_picture() -> None:
    for figure in (drawn("untrusted"), plot_surface(CASES["untrusted"], kind="3d")):
        said = " ".join(words(figure).split())
        assert "not to be trusted: along eigenvalue 2 something differs by 12 %" in said
        assert "batch norm: batch statistics" in said


def test_relief_has_the_heights_of_the_scale_over_the_right_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[Any] = []
    draw = Axes3D.plot_surface

    def seen(self: Axes3D, x: Array, y: Array, z: Array, **options: Any) -> Any:
        shown.append((x, y, z, options["rasterized"]))
        return draw(self, x, y, z, **options)

    monkeypatch.setattr(Axes3D, "plot_surface", seen)
    (axes,) = plot_surface(surface(), kind="3d").axes
    ((x, y, z, rasterized),) = shown
    assert rasterized and x.min() == -1 and x.max() == 1 and y.min() == -0.6 and y.max() == 0.9
    # Three and four steps from point to point, of which the first is one of the grid.
    np.testing.assert_allclose(x[::3, 0], surface()["grid"][0], atol=1e-12)
    np.testing.assert_allclose(10 ** z[::3, ::4], bowl(x, y)[::3, ::4], rtol=1e-9)
    assert (np.abs(10**z - bowl(x, y)) < 0.01).all()
    ticks = dict(
        zip(axes.get_zticks(), (t.get_text() for t in axes.get_zticklabels()), strict=True)
    )
    assert len(ticks) >= 2
    for place, text in ticks.items():
        assert float(text) == pytest.approx(10**place)


def drawn_page(page: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Traces and layout that a page gives to plotly."""
    found = page[page.rindex("Plotly.newPlot(") :]
    decoder = json.JSONDecoder()
    start = found.index("[")
    traces, end = decoder.raw_decode(found[start:])
    layout, _ = decoder.raw_decode(found[start + end :].lstrip(" ,\n"))
    return traces, layout


def test_page_has_the_values_where_they_belong_and_says_them() -> None:
    traces, layout = drawn_page(surface_html(TRAJECTORY))
    relief, _, models, own = traces
    values = np.array(TRAJECTORY["loss"])
    np.testing.assert_allclose(np.array(relief["z"], float), np.log10(values).T)
    i, j = 7, 22
    assert relief["hoverinfo"] == "text" and "hovertemplate" not in relief
    said = relief["hovertext"][j][i]
    assert "at −0.65, 0.5" in said and "cross-entropy (nats)" in said
    assert float(re.search(r">([\d.]+) ± 0.01$", said).group(1)) == pytest.approx(  # type: ignore[union-attr]
        values[i, j], rel=1e-3
    )
    assert models["x"] == [one["coordinates"][0] for one in PATH]
    assert models["text"][1].startswith("1<br>0.18 from the plane")
    assert own["x"] == own["y"] == [0.0]
    ticks = layout["scene"]["zaxis"]
    for place, text in zip(ticks["tickvals"], ticks["ticktext"], strict=True):
        assert 10**place == pytest.approx(float(text))


def test_page_needs_no_network_and_escapes_what_it_is_told() -> None:
    result = copy.deepcopy(MODELS)
    result["markers"][0]["name"] = "<script>alert(1)</script>"
    result["provenance"]["problem"]["loss"] = "<i>loss"
    for case in (result, line(markers=[marker("<script>alert(1)</script>", 0.5)], kind="models")):
        page = surface_html(case, title="<b>x</b>")
        assert "<script>alert(1)" not in page and "<i>loss" not in page and "&lt;b&gt;x" in page
        assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="http', page)
    assert "NaN" not in json.dumps(drawn_page(surface_html(CASES["holes"])))


@pytest.mark.parametrize("ending", ["pdf", "svg", "html"])
def test_the_same_result_gives_the_same_bytes(ending: str, tmp_path: Path) -> None:
    for name in "ab":
        plot_surface(MODELS, tmp_path / f"{name}.{ending}")
    first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
    assert first == second


def test_film_has_a_frame_for_every_checkpoint_and_ends_with_the_whole_path(
    tmp_path: Path,
) -> None:
    short = TRAJECTORY | {"markers": PATH[:4]}
    figure = plot_surface(short, tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as film:
        assert film.n_frames == 4 and film.info["loop"] == 0
        frames = []
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(np.array(film.convert("RGB"), int))
    changes = [(np.abs(frame - frames[-1]) > 60).sum() for frame in frames]
    assert changes == sorted(changes, reverse=True) and changes[-1] == 0 < changes[-2]
    assert max(len(line.get_xdata()) for line in figure.axes[0].lines) == 4
    plot_surface(short, tmp_path / "y.gif")
    assert (tmp_path / "x.gif").read_bytes() == (tmp_path / "y.gif").read_bytes()


def test_fonts_in_a_pdf_can_be_edited(tmp_path: Path) -> None:
    plot_surface(surface(), tmp_path / "x.pdf")
    content = (tmp_path / "x.pdf").read_bytes()
    assert b"/Type3" not in content and b"/TrueType" in content or b"/CIDFontType2" in content


@pytest.mark.parametrize(
    ("result", "options", "sentence"),
    [
        (surface() | {"schema": "landscape/eigen/1"}, {}, "not a result of kind 'landscape/surf"),
        (surface(), {"path": "x.bmp"}, "its ending must be one of .png, .svg, .pdf, .html, .gif"),
        (surface(), {"path": "x.gif"}, "a film (.gif) shows the path of a trajectory"),
        (TRAJECTORY, {"path": "x.gif", "kind": "3d"}, "a film (.gif) shows the path"),
        (surface(), {"kind": "line"}, "a surface with two axes is drawn as 'contour' or '3d'"),
        (line(), {"kind": "contour"}, "a surface with one axis is drawn as 'line'"),
        (surface(), {"quantity": "width"}, "quantity is 'width': choose one of 'loss'"),
        (surface(), {"scale": "sqrt"}, "scale is 'sqrt': choose one of 'auto', 'log', 'linear'"),
        (
            surface(accuracy=None),
            {"quantity": "accuracy"},
            "no accuracy: its problem has no classes",
        ),
        (surface(), {"quantity": "gradient_norm"}, "measure it with --gradient-norm"),
        (surface(), {"quantity": "convexity"}, "measure it with --curvature N"),
        (CASES["negative"], {"scale": "log"}, "which a logarithmic scale does not have"),
        (surface(axes=[*HESSIAN, axis("a third")]), {}, "a surface with 3 axes has no picture"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    result: dict[str, Any], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    if "path" in options:
        options = options | {"path": tmp_path / options["path"]}
    with pytest.raises(InputError, match=re.escape(sentence)):
        plot_surface(result, **options)
    assert list(tmp_path.iterdir()) == []


def steeper() -> dict[str, Any]:
    return surface(lambda x, y: 20 * bowl(x, y), extent=((-0.5, 0.5), (-1.0, 1.0)))


def test_compared_surfaces_share_axes_scale_levels_and_one_colour_bar() -> None:
    figure = plot_surfaces([surface(), steeper()], names=["one", "another"])
    panels = figure.axes
    assert len(panels) == 2 and [len(axes.child_axes) for axes in panels] == [0, 1]
    for axes, name in zip(panels, ("one", "another"), strict=True):
        assert axes.get_xlim() == (-1, 1) and axes.get_ylim() == (-1, 1)
        assert axes.get_title(loc="left") == name
    sets = [[c for c in axes.collections if isinstance(c, ContourSet)] for axes in panels]
    for one, other in zip(*sets, strict=True):
        assert one.get_clim() == other.get_clim()
        np.testing.assert_array_equal(one.levels, other.levels)
    values = [np.log10(np.array(result["loss"])) for result in (surface(), steeper())]
    fills = sets[0][0]
    assert fills.levels[0] < min(v.min() for v in values)
    assert fills.levels[-1] > max(v.max() for v in values)
    boxes = [axes.get_window_extent() for axes in panels]
    assert boxes[0].width == pytest.approx(boxes[1].width)


def test_compared_lines_are_told_apart_in_one_panel() -> None:
    wide = surface(lambda x: 0.1 + x**2, points=(21,), extent=((-2.0, 2.0),))
    figure = plot_surfaces([line(), wide], names=["one", "another"])
    (axes,) = figure.axes
    first, second = axes.lines
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert axes.get_xlim() == (-2, 2) and legend(figure)[1].startswith("another (λ = 8.012")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"provenance": {"problem": {"loss": "mse"}}}, "the loss is 'cross_entropy' in the one and 'mse'"),
        ({"kind": "random"}, "the kind of axes is 'hessian' in the one and 'random'"),
        ({"normalisation": "filter"}, "the scale of the directions is 'none' in the one and 'filter'"),
        ({"axes": HESSIAN[::-1]}, "the choice of axes is 'largest eigenvalue, eigenvalue 2'"),
    ],
)  # fmt: skip
def test_surfaces_that_cannot_be_compared_are_refused(other: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        plot_surfaces([surface(), surface(**other)])
    with pytest.raises(InputError, match="the number of axes is 2 in the one and 1 in the other"):
        plot_surfaces([surface(), line()])
    with pytest.raises(InputError, match="1 surface given: compare 2 to 5"):
        plot_surfaces([surface()])
    with pytest.raises(InputError, match="1 name given for 2 surfaces"):
        plot_surfaces([surface(), surface()], names=["a"])


def test_black_is_written_on_bright_colours() -> None:
    assert bright(1, 1, 0.2) and not bright(0.27, 0, 0.33)


def test_a_surface_draws_itself(tmp_path: Path) -> None:
    found = ls.Surface.from_dict(json.loads(to_json(surface())))
    found.plot(tmp_path / "a.svg", title="x")
    plot_surface(surface(), tmp_path / "b.svg", title="x")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_saved_surface_is_drawn_anew_as_asked(run: Run, tmp_path: Path) -> None:
    Path("s.json").write_text(to_json(TRAJECTORY))
    for name, asked in (("a.png", ("--draw", "3d", "--quantity", "rise")), ("b.gif", ())):
        done = run("surface", "--from", "s.json", *asked, "-o", name)
        assert done.returncode == 0, done.stderr
        assert Path(name).stat().st_size > 5_000
    done = run("surface", "--from", "s.json", "--quantity", "width")
    assert done.returncode == 2 and "quantity is 'width': choose one of 'loss'" in done.stderr


def test_compare_draws_saved_surfaces_and_says_how_they_differ(run: Run, tmp_path: Path) -> None:
    Path("a.json").write_text(to_json(surface()))
    Path("b.json").write_text(to_json(steeper()))
    done = run("compare", "a.json", "b.json", "--name", "SGD", "--name", "SAM", "-o", "c.png")
    assert done.returncode == 0, done.stderr
    assert "SGD" in done.stdout and "wrote c.png" in done.stdout
    assert Path("c.png").stat().st_size > 10_000
    Path("b.json").write_text(to_json(surface(failures=["it is wrong"])))
    done = run("compare", "a.json", "b.json", "-o", "d.png")
    assert done.returncode == 3 and "b: it is wrong" in done.stderr and Path("d.png").exists()
    for arguments, sentence in (
        (
            ("a.json", "model.pt"),
            "'model.pt' is not named as a saved surface, and the first is one",
        ),
        (("a.json", "c.json"), "cannot read 'c.json'"),
        (("a.json", "b.json", "-o", "a.json"), "its ending must be one of .png, .svg, .pdf"),
    ):
        done = run("compare", *arguments)
        assert done.returncode == 2 and sentence in done.stderr
        assert "Traceback" not in done.stderr
