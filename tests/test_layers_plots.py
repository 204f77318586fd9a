"""The picture of a model's parts: what stands in it, for few blocks and for many, and what it refuses."""

import copy
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from landscape.errors import InputError
from landscape.plots.layers import plot_layers
from landscape.plots.layers_page import layers_html
from landscape.plots.layers_picture import LONGEST, OTHER, collect

KINDS = ("Conv2d", "BatchNorm2d", "Linear", "LayerNorm", "Embedding", "MultiheadAttention")


def saved(count: int, *, kinds: int = 3, scale: float = 1.0) -> dict[str, Any]:
    """A result with `count` blocks of known eigenvalues, as `landscape/layers/1`."""
    rng = np.random.default_rng(0)
    blocks = []
    for i in range(count):
        size = int(rng.integers(8, 300))
        values = 1e-3 * rng.lognormal(sigma=1.0, size=size)
        values[: size // 5] *= -0.1
        values[-1] = 10.0 ** rng.uniform(-2, 1)
        values = scale * np.sort(values)
        blocks.append(
            {
                "name": f"stage{i // 8}.layer{i % 8}.conv",
                "kinds": [KINDS[i % kinds]],
                "tensors": [],
                "parameters": size,
                "exact": True,
                "trace": {"value": float(values.sum()), "standard_error": 0.0},
                "eigenvalues": [pair(values[-1]), pair(values[-2])],
                "smallest_eigenvalue": pair(values[0]),
                "ritz": [
                    {
                        "nodes": values.tolist(),
                        "weights": [1 / size] * size,
                        "residuals": [0.0] * size,
                    }
                ],
            }
        )
    norms = scale * 10 ** rng.uniform(-4, 0, (count, count))
    return {
        "schema": "landscape/layers/1",
        "operator": "Hessian",
        "parameters": sum(block["parameters"] for block in blocks),
        "trace": {"value": 17.9 * scale, "standard_error": 0.3 * scale},
        "blocks": blocks,
        "norms": (norms + norms.T).tolist(),
        "norm_errors": (0.1 * norms).tolist(),
    }


def pair(value: float, *, converged: bool = True) -> dict[str, Any]:
    return {"value": float(value), "residual": 1e-6 * abs(float(value)), "converged": converged}


def zero_block(result: dict[str, Any], b: int) -> dict[str, Any]:
    result = copy.deepcopy(result)
    nothing = {"nodes": [0.0], "weights": [1.0], "residuals": [0.0]}
    result["blocks"][b] |= {
        "ritz": [nothing],
        "eigenvalues": [pair(0.0)],
        "smallest_eigenvalue": pair(0.0),
    }
    for c in range(len(result["norms"])):
        result["norms"][b][c] = result["norms"][c][b] = 0.0
    return result


CASES = {
    "one block": saved(1),
    "four blocks": saved(4),
    "sixty blocks": saved(60),
    "six kinds": saved(12, kinds=6),
    "a zero block": zero_block(saved(4), 1),
    "zeros alone": zero_block(saved(1), 0),
    "tiny": saved(5, scale=1e-9),
    "huge": saved(5, scale=1e9),
    "unknown operator": saved(3) | {"operator": "my_$operator_"},
    "one probe": saved(3) | {"trace": {"value": 3.0, "standard_error": None}},
}
every_case = pytest.mark.parametrize("case", CASES)


def texts(figure: Figure) -> str:
    found = [t.get_text() for axes in figure.axes for t in axes.findobj(matplotlib.text.Text)]
    return "\n".join(found)


@every_case
def test_every_case_is_drawn_without_a_warning(
    case: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for ending in ("png", "html"):
        plot_layers(CASES[case], tmp_path / f"x.{ending}")
        assert (tmp_path / f"x.{ending}").stat().st_size > 5_000
    assert [str(w.message) for w in recwarn] == []


@every_case
def test_density_integrates_to_one_and_heights_lie_within_their_row(case: str) -> None:
    picture = collect(CASES[case])
    for ridge in picture.ridges:
        places = np.arcsinh(ridge.grid / picture.threshold)
        assert np.trapezoid(ridge.density, places) == pytest.approx(1, abs=1e-5)
        assert ridge.height.min() == 0 and 0 < ridge.height.max() <= 1 + 1e-12
    assert max(ridge.height.max() for ridge in picture.ridges) == pytest.approx(1)


@every_case
def test_every_eigenvalue_and_zero_lie_on_the_axis(case: str) -> None:
    picture = collect(CASES[case])
    values = [p["value"] for ridge in picture.ridges for p in ridge.eigenvalues]
    assert picture.low < min(0.0, *values) and max(0.0, *values) < picture.high


def test_a_lone_eigenvalue_of_the_largest_block_stands_above_the_floor() -> None:
    picture = collect(CASES["sixty blocks"])
    largest = max(picture.ridges, key=lambda ridge: ridge.parameters)
    at = np.abs(largest.grid - largest.eigenvalues[0]["value"]).argmin()
    assert largest.height[at] > 0.1


@pytest.mark.parametrize("case", ["four blocks", "sixty blocks"])
def test_names_stand_in_order_from_top_to_bottom_and_do_not_touch(case: str) -> None:
    figure = plot_layers(CASES[case])
    ridges = figure.axes[0]
    labels = [label for label in ridges.get_yticklabels() if label.get_text()]
    assert [label.get_text() for label in labels] == [b["name"] for b in CASES[case]["blocks"]]
    boxes = [label.get_window_extent() for label in labels]
    for above, below in pairwise(boxes):
        assert below.y1 <= above.y0 + 1  # a pixel of rounding
    assert boxes[0].x0 >= 0


@pytest.mark.parametrize("case", ["four blocks", "sixty blocks"])
def test_figure_is_as_wide_as_asked_and_grows_with_its_rows(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    figure = plot_layers(CASES[case], path, width=6.0)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width == 6.0 * 300
    assert height == pytest.approx(figure.get_figheight() * 300, abs=1)
    assert figure.get_figheight() < 9.5  # a page
    plot, matrix = (axes.get_window_extent() for axes in figure.axes[:2])
    assert matrix.width == pytest.approx(matrix.height, rel=1e-3)
    assert plot.x1 < matrix.x0


def test_long_names_lose_their_middle_and_show_it() -> None:
    result = copy.deepcopy(CASES["four blocks"])
    name = "backbone.encoder.layers.11.self_attention.output_projection"
    result["blocks"][1]["name"] = name
    found = texts(plot_layers(result))
    shown = next(line for line in found.split("\n") if "…" in line)
    before, after = shown.split("…")
    assert name.startswith(before) and name.endswith(after) and len(shown) <= LONGEST
    assert name in layers_html(result)  # in full where there is room


def test_kinds_beyond_the_fourth_share_a_colour_and_are_named_other() -> None:
    picture = collect(CASES["six kinds"])
    assert list(picture.colors) == [*KINDS[:4], OTHER]
    assert len(set(picture.colors.values())) == 5
    assert [ridge.kind for ridge in picture.ridges[3:6]] == [KINDS[3], OTHER, OTHER]


def test_what_did_not_converge_has_another_colour() -> None:
    result = copy.deepcopy(CASES["four blocks"])
    value = result["blocks"][0]["eigenvalues"][0]["value"]
    result["blocks"][0]["eigenvalues"][0] = pair(value, converged=False)
    lines = plot_layers(result).axes[0].lines
    colors = {line.get_color() for line in lines if list(line.get_xdata()) == [value, value]}
    assert colors == {"#D55E00"}


def test_matrix_shows_the_norms_and_leaves_zeros_blank() -> None:
    result = CASES["a zero block"]
    mesh = plot_layers(result).axes[1].collections[0]
    shown = mesh.get_array()
    assert shown is not None
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.array(result["norms"]) == 0)
    np.testing.assert_allclose(shown.filled(0), result["norms"])


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_same_result_gives_the_same_bytes(ending: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    plot_layers(CASES["four blocks"], first)
    plot_layers(CASES["four blocks"], second)
    assert first.read_bytes() == second.read_bytes()


def test_page_needs_no_network_and_escapes_names() -> None:
    result = copy.deepcopy(CASES["four blocks"])
    result["blocks"][0]["name"] = "<script>alert(1)</script>"
    page = layers_html(result, title="<b>x</b>")
    assert "<script>alert(1)" not in page and "&lt;b&gt;x" in page
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="http', page)


@pytest.mark.parametrize(
    ("change", "path", "sentence"),
    [
        ({"schema": "landscape/spectrum/1"}, None, "not a result of kind"),
        ({}, "x.gif", "its ending must be one of"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    change: dict[str, Any], path: str | None, sentence: str
) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        plot_layers(CASES["four blocks"] | change, path)
