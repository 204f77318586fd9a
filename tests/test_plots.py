"""The picture of a spectrum: what it says, how large it is, what it refuses."""

import copy
import re
import struct
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from landscape.errors import InputError
from landscape.estimators.smoothing import Axis, smooth
from landscape.numerals import with_error
from landscape.plots.spectrum import plot_spectrum
from landscape.plots.spectrum_page import spectrum_html
from landscape.plots.spectrum_picture import LABELS

Array = NDArray[np.float64]


def lanczos(eigenvalues: Array, start: Array, steps: int) -> dict[str, list[float]]:
    """Run Lanczos on a diagonal matrix with full reorthogonalisation: Ritz values and weights."""
    basis = np.zeros((steps, len(eigenvalues)))
    basis[0] = start / np.linalg.norm(start)
    alphas: list[float] = []
    betas: list[float] = []
    for step in range(steps):
        v = eigenvalues * basis[step]
        alphas.append(float(v @ basis[step]))
        for _ in range(2):
            v = v - (basis[: step + 1] @ v) @ basis[: step + 1]
        norm = float(np.linalg.norm(v))
        if norm <= 1e-12 * np.abs(eigenvalues).max() or step + 1 == steps:
            break
        betas.append(norm)
        basis[step + 1] = v / norm
    nodes, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    return {"nodes": nodes.tolist(), "weights": (vectors[0] ** 2).tolist()}


def net(seed: int = 0, *, negatives: int = 200) -> Array:
    """Make the spectrum of a typical small net: a bulk, ten outliers, a few small negatives."""
    rng = np.random.default_rng(seed)
    bulk = 1e-3 * rng.lognormal(size=2490 - negatives)
    below = -3e-4 * rng.lognormal(sigma=0.7, size=negatives)
    return np.sort(np.concatenate([bulk, below, np.geomspace(0.5, 5, 10)]))


def spectrum(
    eigenvalues: Array, *, probes: int = 10, steps: int = 50, top: int = 10, **changes: Any
) -> dict[str, Any]:
    """Build the JSON result of a spectrum whose truth is known."""
    rng = np.random.default_rng(1)
    starts = rng.normal(size=(probes, len(eigenvalues)))
    ritz = [lanczos(eigenvalues, start, steps) for start in starts]
    curve = smooth([(probe["nodes"], probe["weights"]) for probe in ritz])
    traces = [len(eigenvalues) * np.dot(probe["nodes"], probe["weights"]) for probe in ritz]
    single = probes == 1

    def pair(value: float) -> dict[str, Any]:
        return {"value": float(value), "residual": 1e-7 * abs(float(value)), "converged": True}

    result = {
        "schema": "landscape/spectrum/1",
        "parameters": len(eigenvalues),
        "operator": "Hessian",
        "eigenvalues": [pair(value) for value in np.sort(eigenvalues)[::-1][:top]],
        "smallest_eigenvalue": pair(eigenvalues.min()),
        "trace": {
            "value": float(np.mean(traces)),
            "standard_error": None if single else float(np.std(traces, ddof=1) / probes**0.5),
        },
        "density": {
            "grid": curve.grid.tolist(),
            "values": curve.values.tolist(),
            "standard_error": [None] * 1024 if single else curve.standard_error.tolist(),
            "width": curve.width,
            "axis": "linear",
        },
        "ritz": ritz,
        "negative_mass": {"lower": 0.05, "upper": 0.4},
        "cost": {},
        "provenance": {},
    }
    return result | changes


NET = spectrum(net())
CASES = {
    "net": NET,
    "zero": spectrum(np.zeros(100)),
    "identity": spectrum(np.ones(100)),
    "one parameter": spectrum(np.array([-3.0]), top=1),
    "one probe": spectrum(net(), probes=1),
    "no negatives": spectrum(net(negatives=0)),
    "only negatives": spectrum(-net(negatives=0)),
    "indefinite": spectrum(np.random.default_rng(2).normal(size=1000)),
    "tiny": spectrum(1e-6 * net()),
    "huge": spectrum(1e6 * net()),
    "large model": NET | {"parameters": 7_000_000_000},
    "no eigenvalues": NET | {"eigenvalues": [], "smallest_eigenvalue": None},
    "unknown operator": NET | {"operator": "my_$operator_" * 8},
}
AXES = get_args(Axis)
LONG = "ResNet-18 with $batch_norm$ <b>on</b> CIFAR-10, layer4.1.conv2.weight.* only, " * 3

every_case = pytest.mark.parametrize("case", CASES)
both_axes = pytest.mark.parametrize("axis", AXES)


def values_of(result: dict[str, Any]) -> list[float]:
    """List every eigenvalue of a result, the smallest included."""
    pairs = [*result["eigenvalues"], result["smallest_eigenvalue"]]
    return [pair["value"] for pair in pairs if pair is not None]


@cache
def drawn(case: str, axis: Axis) -> Figure:
    """Draw a case once for all tests, with every warning an error; the net has a long title."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return plot_spectrum(CASES[case], axis=axis, title=LONG if case == "net" else None)


def bands(figure: Figure) -> list[Any]:
    """Find the filled bands of the density."""
    return [item for item in figure.axes[0].collections if isinstance(item, PolyCollection)]


def unconverged() -> dict[str, Any]:
    """Make a result whose seventh and smallest eigenvalues did not converge."""
    result = copy.deepcopy(NET)
    for pair in (result["eigenvalues"][6], result["smallest_eigenvalue"]):
        pair["converged"] = False
    return result


def test_axes_name_the_quantities_and_their_units_on_one_line() -> None:
    for label in LABELS.values():
        assert "eigenvalue λ" in label and label.endswith("/ parameter²)")
    longest = max(LABELS, key=lambda operator: len(LABELS[operator]))
    density, marks = plot_spectrum(NET | {"operator": longest}).axes
    assert density.get_ylabel() == "density (per unit λ)"
    assert marks.get_xlabel() == LABELS[longest]


def test_operator_without_a_known_unit_gets_none() -> None:
    label = drawn("unknown operator", "symlog").axes[1].get_xlabel()
    assert label.replace("\n", "") == "eigenvalue λ of " + "my_$operator_" * 8


def test_notes_state_size_work_smoothing_and_trace_with_its_error() -> None:
    trace = {"value": 17.9412, "standard_error": 0.3123}
    notes = plot_spectrum(NET | {"trace": trace}, axis="linear").axes[0].get_title(loc="left")
    width = NET["density"]["width"]
    assert notes == (
        "P = 2,500 parameters · 10 probes × 50 steps\n"
        f"trace = 17.94 ± 0.31 · kernel σ ≥ {width:.2g}"
    )


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.0, 25.0, "1 ± 25"),
        (-3e-8, 2e-9, "(−3.00 ± 0.20) × 10⁻⁸"),
        (24.0, 1e-15, "24 ± 1 × 10⁻¹⁵"),
        (0.0, 0.0, "0 ± 0"),
        (2.0, None, "2 (error unknown)"),
        (None, None, "unknown"),
    ],
)
def test_error_sets_the_digits_of_a_number(
    value: float | None, error: float | None, text: str
) -> None:
    assert with_error(value, error) == text


@every_case
@both_axes
def test_limits_are_finite_and_contain_every_eigenvalue_without_warnings(
    case: str, axis: Axis
) -> None:
    density, marks = drawn(case, axis).axes
    low, high = marks.get_xlim()
    bottom, top = density.get_ylim()
    assert np.isfinite([low, high, bottom, top]).all() and 0 < bottom < top
    assert all(low < value < high for value in values_of(CASES[case]))
    assert (low, high) == density.get_xlim()


@every_case
@both_axes
def test_no_text_overlaps_another_or_leaves_the_figure(case: str, axis: Axis) -> None:
    figure = drawn(case, axis)
    density, marks = figure.axes
    (left, right), (bottom, top) = marks.get_xlim(), density.get_ylim()
    # Ticks outside the limits have labels too, which are not drawn.
    ticks = [tick for tick in marks.get_xticklabels() if left <= tick.get_position()[0] <= right]
    ticks += [tick for tick in density.get_yticklabels() if bottom <= tick.get_position()[1] <= top]
    assert len(ticks) >= 4
    # matplotlib has no public name for the text of a left title and of a figure's title.
    titles = [text for text in (density._left_title, figure._suptitle) if text]  # type: ignore[attr-defined]
    labels = [marks.xaxis.label, density.yaxis.label, *figure.legends]
    boxes = [text.get_window_extent() for text in [*ticks, *titles, *labels]]
    for place, box in enumerate(boxes):
        # One pixel of a stroke may lie outside its box.
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:place])


@pytest.mark.parametrize("width", [3.25, 4.0])
def test_file_is_exactly_as_wide_as_asked_whatever_the_users_settings(
    tmp_path: Path, width: float
) -> None:
    with matplotlib.rc_context({"savefig.bbox": "tight", "savefig.dpi": 72, "font.size": 20}):
        plot_spectrum(NET, tmp_path / "a.png", width=width)
        plot_spectrum(NET, tmp_path / "a.pdf", width=width)
    # The first chunk of a PNG holds its width in pixels; 300 to the inch.
    (pixels,) = struct.unpack(">I", (tmp_path / "a.png").read_bytes()[16:20])
    assert pixels == int(300 * width)
    box = re.search(rb"/MediaBox \[ 0 0 ([0-9.]+) ", (tmp_path / "a.pdf").read_bytes())
    assert box is not None and float(box[1]) == 72 * width


def test_pdf_embeds_truetype_fonts_only(tmp_path: Path) -> None:
    plot_spectrum(NET, tmp_path / "a.pdf")
    written = (tmp_path / "a.pdf").read_bytes()
    # A TrueType font file is embedded as FontFile2.
    assert b"/FontFile2" in written and b"/Type3" not in written


@pytest.mark.parametrize("ending", [".svg", ".pdf", ".html"])
def test_same_result_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    paths = [tmp_path / f"{name}{ending}" for name in "ab"]
    for path in paths:
        plot_spectrum(NET, path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    # Two writes within a second would share a date.
    assert not re.search(rb"CreationDate|<dc:date>", first[:200_000])


@both_axes
def test_band_is_the_standard_error_and_absent_with_one_probe(axis: Axis) -> None:
    figure = drawn("net", axis)
    (band,) = bands(figure)
    curve = smooth([(probe["nodes"], probe["weights"]) for probe in NET["ritz"]], axis=axis)
    peak = int(np.argmax(curve.values))
    heights = [y for x, y in band.get_paths()[0].vertices if x == curve.grid[peak]]
    mean, error = curve.values[peak], curve.standard_error[peak]
    # The path holds the very numbers: only rounding may differ.
    assert np.allclose(sorted(set(heights)), [mean - error, mean + error], rtol=1e-12)
    assert min(y for _, y in band.get_paths()[0].vertices) > 0

    alone = drawn("one probe", axis)
    assert not bands(alone)
    assert alone.legends[0].get_texts()[0].get_text() == "density (one probe)"


@both_axes
def test_every_eigenvalue_has_one_mark_and_the_unconverged_look_different(axis: Axis) -> None:
    sure, unsure = plot_spectrum(unconverged(), axis=axis).axes[1].lines
    marked = np.concatenate([sure.get_xdata(), unsure.get_xdata()])
    assert sorted(marked) == sorted(values_of(NET))
    assert np.size(unsure.get_xdata()) == 2
    assert sure.get_marker() != unsure.get_marker() and sure.get_color() != unsure.get_color()


@both_axes
def test_density_starts_a_decade_below_one_eigenvalue(axis: Axis) -> None:
    curve = smooth([(probe["nodes"], probe["weights"]) for probe in NET["ritz"]], axis=axis)
    # The height of mass 1/P at the outer end: the kernel's peak times du/dλ there.
    s = curve.linear_threshold
    slope = 1.0 if s is None else 1 / np.sqrt(curve.grid[-1] ** 2 + s**2)
    lone = slope / (2500 * curve.width * np.sqrt(2 * np.pi))
    bottom, top = drawn("net", axis).axes[0].get_ylim()
    assert np.isclose(bottom, lone / 10)
    assert top > max(curve.values + curve.standard_error)


def test_linear_axis_draws_the_density_that_was_saved() -> None:
    # A density that smoothing the Ritz values again would not give.
    saved = {"grid": [-1.0, 0.0, 5.0], "values": [0.1, 0.4, 0.2], "standard_error": [0.01] * 3}
    density = saved | {"width": 0.5, "axis": "linear"}
    (line,) = plot_spectrum(NET | {"density": density}, axis="linear").axes[0].lines
    # At both ends the line falls to the floor.
    assert list(np.asarray(line.get_xdata())[1:-1]) == saved["grid"]
    assert list(np.asarray(line.get_ydata())[1:-1]) == saved["values"]


def test_settings_and_pyplot_are_left_alone(tmp_path: Path) -> None:
    from matplotlib import pyplot

    # To read the backend is to choose one: it is left out.
    def settings() -> dict[Any, Any]:
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

    before = settings()
    plot_spectrum(NET, tmp_path / "a.png")
    assert settings() == before
    assert pyplot.get_fignums() == []


def test_importing_the_picture_loads_neither_matplotlib_nor_plotly() -> None:
    check = (
        "import sys, landscape.plots.spectrum; "
        "print([n for n in ('matplotlib', 'plotly', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_unknown_ending_axis_or_result_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        plot_spectrum(NET, "a.jpg")
    assert str(refused.value) == (
        "cannot draw to 'a.jpg': its ending must be one of .png, .svg, .pdf, .html"
    )
    with pytest.raises(InputError, match="^cannot draw a spectrum on axis 'log': choose 'linear'"):
        plot_spectrum(NET, axis="log")  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(InputError, match="this is 'landscape/trace/1', not a result of kind"):
        plot_spectrum({"schema": "landscape/trace/1"}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_page_is_whole_and_holds_no_markup_of_the_user(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    plot_spectrum(NET | {"operator": evil}, tmp_path / "a.html", title=evil)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    for markup in ("<script>alert", "<img src=x", "\\u003cscript\\u003ealert", "\\u003cimg src=x"):
        assert markup not in page
    # plotly itself travels inside: the page fetches no script.
    assert not re.search(r"<script[^>]*\ssrc=", page)


@pytest.mark.parametrize("case", ["net", "zero", "one probe", "no eigenvalues"])
def test_page_switches_both_axes(case: str) -> None:
    page = spectrum_html(CASES[case], axis="linear")
    for state in ("linear", "symlog"):
        for kind in ("log", "linear"):
            assert f'"label":"{state} \\u03bb, {kind} density"' in page
    # Inside the page a template is known by its contents only: a name would undo the look.
    assert '"template":"' not in page
