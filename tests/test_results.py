"""What is saved: strict JSON, files that are whole or absent, and a spectrum that comes back."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectra import SPECTRA, small_net, small_net_hessian, with_spectrum

import landscape as ls
from landscape.estimators.lanczos import extreme_eigenpairs
from landscape.results import Cost, atomic, jsonable, to_json

# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (math.inf, None),
        (np.float64(-math.inf), None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([1.0, math.nan, 2.0]), [1.0, None, 2.0]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(7.5), 7.5),
        ((1, [2.0, {"a": math.nan}]), [1, [2.0, {"a": None}]]),
        ({3: "x", "y": None}, {"3": "x", "y": None}),
        (np.array([True, False]), [True, False]),
        (True, True),
    ],
)
def test_values_become_plain_json(value: Any, expected: Any) -> None:
    assert json.loads(to_json({"value": value})) == {"value": expected}


def test_json_has_no_words_that_the_standard_lacks() -> None:
    text = to_json({"a": [math.nan, math.inf, -math.inf], "b": np.array([math.nan])})
    assert "NaN" not in text
    assert "Infinity" not in text
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in the JSON"))


def test_cost_becomes_a_dictionary_and_adds_up() -> None:
    a, b = Cost(10, 25.0, 1.5, 100), Cost(3, 5.0, 0.5, 700)
    assert a + b == Cost(13, 30.0, 2.0, 700)
    assert (a + Cost(1, None, 0.0, 0)).gradient_equivalents is None
    assert jsonable(a) == {
        "products": 10,
        "gradient_equivalents": 25.0,
        "seconds": 1.5,
        "peak_bytes": 100,
        "engine": None,
    }
    split, plain = Cost(1, 1.0, 1.0, 1, "split"), Cost(1, 1.0, 1.0, 1, "double backward")
    assert (split + split).engine == "split"
    assert (split + plain).engine == "split, double backward"


def test_floats_come_back_bit_for_bit() -> None:
    values = np.random.default_rng(0).standard_normal(50) * np.geomspace(1e-300, 1e300, 50)
    assert json.loads(to_json({"v": values}))["v"] == values.tolist()


# --- files ---------------------------------------------------------------------------------------


def test_file_appears_with_its_content_and_nothing_else(tmp_path: Path) -> None:
    with atomic(tmp_path / "result.json") as temporary:
        assert temporary.parent == tmp_path  # the same file system: the last step is a rename
        assert temporary.suffix == ".json"  # what matplotlib goes by
        temporary.write_text("done")
        assert not (tmp_path / "result.json").exists()
    assert os.listdir(tmp_path) == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "done"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, old: str | None, failure: type[BaseException]
) -> None:
    target = tmp_path / "result.json"
    if old is not None:
        target.write_text(old)

    with pytest.raises(failure), atomic(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert os.listdir(tmp_path) == ([] if old is None else ["result.json"])
    assert old is None or target.read_text() == old


def test_writer_that_removes_its_file_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(OSError), atomic(target) as temporary:
        temporary.unlink()
    assert os.listdir(tmp_path) == ["result.json"]
    assert target.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_honour_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with atomic(tmp_path / "result") as temporary:
            temporary.write_text("x")
        assert os.umask(mask) == mask  # reading the mask put it back
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == 0o666 & ~mask


# --- a spectrum ----------------------------------------------------------------------------------

# The contract `landscape/spectrum/1`: names are added, never renamed.
KEYS = {
    "schema",
    "parameters",
    "operator",
    "loss",
    "gradient_norm",
    "eigenvalues",
    "smallest_eigenvalue",
    "trace",
    "negative_mass",
    "negative_energy",
    "zero",
    "density",
    "ritz",
    "functionals",
    "criteria",
    "failures",
    "cost",
    "provenance",
}


def of_matrix() -> ls.Spectrum:
    return ls.spectrum(ls.as_operator(with_spectrum(SPECTRA["network"])), probes=4, steps=30)


def of_problem() -> ls.Spectrum:
    model, inputs, target = small_net()
    problem = ls.Problem(model, "cross_entropy", (inputs, target), batch_size=64)
    return ls.spectrum(problem, probes=4, steps=30, command="landscape spectrum model.pt")


@pytest.fixture(scope="module", params=[of_matrix, of_problem], ids=["matrix", "problem"])
def result(request: pytest.FixtureRequest) -> ls.Spectrum:
    return request.param()  # type: ignore[no-any-return]


def test_saved_spectrum_has_the_keys_of_its_schema(result: ls.Spectrum) -> None:
    saved = json.loads(to_json(result.to_dict()))
    assert saved["schema"] == "landscape/spectrum/1"
    assert set(saved) >= KEYS
    assert isinstance(saved["parameters"], int)
    assert all(set(pair) == {"value", "residual", "converged"} for pair in saved["eigenvalues"])
    assert set(saved["smallest_eigenvalue"]) == {"value", "residual", "converged"}
    assert set(saved["trace"]) == {"value", "standard_error"}
    assert set(saved["negative_mass"]) == {"lower", "upper"}
    for name in ("negative_energy",):
        assert {"value", "standard_error"} <= set(saved[name])
    assert {"grid", "values", "standard_error", "width"} <= set(saved["density"])
    lengths = {len(saved["density"][name]) for name in ("grid", "values", "standard_error")}
    assert len(lengths) == 1
    assert len(saved["ritz"]) == 4
    assert all({"nodes", "weights"} <= set(probe) for probe in saved["ritz"])
    cost = {"products", "gradient_equivalents", "seconds", "peak_bytes", "engine"}
    assert set(saved["cost"]) == cost
    assert {"landscape", "torch", "device", "dtype", "seed", "date", "command", "problem"} <= set(
        saved["provenance"]
    )


def test_density_integrates_to_one_and_ritz_weights_sum_to_one(result: ls.Spectrum) -> None:
    saved = json.loads(to_json(result.to_dict()))
    density = saved["density"]
    # the trapezoidal rule on the saved grid
    assert np.trapezoid(density["values"], density["grid"]) == pytest.approx(1, abs=1e-4)
    for probe in saved["ritz"]:
        assert sum(probe["weights"]) == pytest.approx(1, abs=1e-9)
        assert probe["nodes"] == sorted(probe["nodes"])


def test_eigenvalues_come_largest_first_and_converged(result: ls.Spectrum) -> None:
    values = [pair.value for pair in result.eigenvalues]
    assert values == sorted(values, reverse=True)
    assert len(values) == 5
    assert result.smallest_eigenvalue.value < values[-1]
    assert all(pair.converged for pair in [*result.eigenvalues, result.smallest_eigenvalue])
    assert result.failures == []


def test_save_and_load_give_the_same_spectrum(result: ls.Spectrum, tmp_path: Path) -> None:
    path = tmp_path / "model.spectrum.json"
    result.save(path)
    assert os.listdir(tmp_path) == [path.name]
    loaded = ls.Spectrum.load(path)
    assert to_json(loaded.to_dict()) == to_json(result.to_dict())
    assert loaded.eigenvalues == result.eigenvalues
    assert loaded.cost == result.cost
    assert loaded.functionals == result.functionals
    assert loaded.criteria == result.criteria
    assert np.array_equal(loaded.density.values, result.density.values)
    for found, kept in zip(loaded.ritz, result.ritz, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(found, kept, strict=True))
    assert loaded.eigenvectors is None
    assert result.eigenvectors is not None
    assert result.eigenvectors.shape == (result.parameters, 5)


def test_spectra_saved_before_functionals_and_criteria_still_load(result: ls.Spectrum) -> None:
    saved = json.loads(to_json(result.to_dict()))
    del saved["functionals"], saved["criteria"]
    loaded = ls.Spectrum.from_dict(saved)
    assert loaded.functionals is None and loaded.criteria is None
    assert loaded.trace == result.trace
    assert json.loads(to_json(loaded.to_dict()))["criteria"] is None


def test_functionals_and_criteria_come_from_the_measures_of_the_spectrum() -> None:
    result, spectrum = of_matrix(), SPECTRA["network"]
    sums, criteria = result.functionals, result.criteria
    assert sums is not None and criteria is not None
    assert sums.damping == pytest.approx(0.01 * 20)
    positive = np.maximum(spectrum, 0)
    found, true = sums.effective_dimension, (positive / (positive + sums.damping)).sum()
    # Four probes: a t-interval of 95 %, wide.
    assert found.lower <= true <= found.upper
    assert sums.stable_rank.lower <= (spectrum**2).sum() / 400 <= sums.stable_rank.upper
    assert sums.negative_mass == criteria.negative_mass
    assert result.negative_mass.lower == sums.negative_mass.lower
    assert result.negative_energy.value == sums.negative_energy.value
    # The ends of the spectrum are those of the eigenpairs.
    assert criteria.r_e == pytest.approx(abs(spectrum.min() / spectrum.max()), abs=1e-4)
    pinned = (criteria.steps, criteria.probes, criteria.reorthogonalize, criteria.deflated)
    assert pinned == (30, 4, False, 6)
    # They cost no product.
    A = ls.as_operator(with_spectrum(spectrum))
    pairs = extreme_eigenpairs(A, [("largest", 5), ("smallest", 1)])
    assert result.cost.products == pairs.cost.products + 4 * 30


def test_eigenpairs_are_deflated_so_that_the_trace_is_that_of_the_bulk() -> None:
    result = ls.spectrum(ls.as_operator(with_spectrum(SPECTRA["network"])), top=9, steps=30)
    for pair in [*result.eigenvalues, result.smallest_eigenvalue]:
        for nodes, weights, _ in result.ritz:
            near = abs(nodes - pair.value) <= 1e-9
            assert weights[near].item() == pytest.approx(1 / 130)
    plain = ls.trace(ls.as_operator(with_spectrum(SPECTRA["network"])), probes=10)
    assert result.trace.standard_error <= 0.1 * plain.standard_error
    truth = SPECTRA["network"].sum()
    assert abs(result.trace.value - truth) <= 4 * result.trace.standard_error


def test_spectrum_of_a_matrix_matches_its_eigenvalues() -> None:
    result, truth = of_matrix(), np.sort(SPECTRA["network"])
    found = np.array([pair.value for pair in result.eigenvalues])
    assert np.allclose(found, truth[::-1][:5], atol=2e-3)  # tolerance 1e-4 · 20
    assert result.smallest_eigenvalue.value == pytest.approx(truth[0], abs=2e-3)
    assert abs(result.trace.value - truth.sum()) <= 4 * result.trace.standard_error
    assert result.loss is None
    assert result.gradient_norm is None
    assert result.cost.gradient_equivalents is None
    assert result.provenance["problem"] is None


def test_spectrum_of_a_problem_matches_dense_float64() -> None:
    result, hessian = of_problem(), small_net_hessian()
    truth = np.linalg.eigvalsh(hessian.numpy())
    found = np.array([pair.value for pair in result.eigenvalues])
    assert np.abs(found - truth[::-1][:5]).max() <= 1e-4 * truth[-1]
    assert abs(result.smallest_eigenvalue.value - truth[0]) <= 1e-4 * truth[-1]
    for pair in [*result.eigenvalues, result.smallest_eigenvalue]:
        # measured in float64, so the bound holds with float64 rounding only
        assert np.abs(truth - pair.value).min() <= pair.residual + 1e-12
    assert abs(result.trace.value - truth.sum()) <= 4 * result.trace.standard_error
    assert result.parameters == len(truth)
    model, inputs, target = small_net()
    loss = torch.nn.functional.cross_entropy(model(inputs), target)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])
    assert result.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-3)
    assert result.cost.gradient_equivalents is not None
    assert result.cost.gradient_equivalents > 0
    assert result.provenance["command"] == "landscape spectrum model.pt"
    assert result.provenance["dtype"] == "float32"


def test_functionals_of_a_problem_in_float32_match_dense_float64() -> None:
    result, values = of_problem(), np.linalg.eigvalsh(small_net_hessian().numpy())
    sums = result.functionals
    assert sums is not None
    size, positive = np.abs(values), np.maximum(values, 0)
    share = size / size.sum()
    for found, true in (
        (sums.effective_dimension, (positive / (positive + sums.damping)).sum()),
        (sums.stable_rank, (values**2).sum() / size.max() ** 2),
        (sums.spectral_entropy, -(share * np.log(share)).sum()),
        (sums.negative_energy, size[values < 0].sum() / size.sum()),
        (sums.moments[1], (values**2).mean()),
    ):
        assert abs(found.value - true) <= 4 * found.standard_error + found.quadrature_error
        assert 0 < found.standard_error <= 0.2 * abs(true)


def test_negative_mass_and_energy_match_the_prescribed_spectrum() -> None:
    spectrum = SPECTRA["indefinite"]
    result = ls.spectrum(ls.as_operator(with_spectrum(spectrum)), probes=40, steps=90)
    mass = (spectrum < 0).mean()
    energy = -spectrum[spectrum < 0].sum() / np.abs(spectrum).sum()
    mean, ratio = result.negative_mass, result.negative_energy
    assert mean.lower <= mass <= mean.upper
    # a mean of ratios is biased by about its variance
    assert abs(ratio.value - energy) <= 3 * ratio.standard_error + 0.01


@pytest.mark.parametrize("spectrum", [[2.0], [0.0, 0.0], [1.0, 1.0, 1.0]])
def test_smallest_problems_have_a_spectrum(spectrum: list[float], tmp_path: Path) -> None:
    result = ls.spectrum(ls.as_operator(with_spectrum(spectrum)), top=1, probes=1)
    assert result.eigenvalues[0].value == pytest.approx(spectrum[0])
    assert result.smallest_eigenvalue.value == pytest.approx(spectrum[-1])
    assert math.isnan(result.trace.standard_error)
    result.save(tmp_path / "s.json")
    saved = json.loads((tmp_path / "s.json").read_text())
    assert saved["trace"]["standard_error"] is None
    assert set(saved["density"]["standard_error"]) == {None}
    loaded = ls.Spectrum.load(tmp_path / "s.json")
    assert math.isnan(loaded.trace.standard_error)
    assert np.isnan(loaded.density.standard_error).all()


def test_eigenvalues_that_did_not_converge_are_listed_as_failures() -> None:
    matrix = with_spectrum(SPECTRA["gap 1e-3"])
    result = ls.spectrum(ls.as_operator(matrix), top=2, max_steps=6, probes=2)
    assert not all(pair.converged for pair in result.eigenvalues)
    assert any("eigenvalue 1 = " in words and "residual" in words for words in result.failures)
