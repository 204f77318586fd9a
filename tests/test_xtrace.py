"""XTrace and XDiag: leaving out by small matrices equals leaving out for real."""

import numpy as np
import pytest
import torch
from scipy import stats
from spectra import with_spectrum
from torch import Tensor

import landscape as ls
from landscape.estimators.probes import generator, rademacher, sphere
from landscape.estimators.sketch import Sketch
from landscape.estimators.xdiag import leave_one_out_diagonals
from landscape.estimators.xtrace import leave_one_out_traces

DECAYING = np.r_[0.8 ** np.arange(60), -(0.5 ** np.arange(10)), np.zeros(50)]


def sketch_of(matrix: Tensor, *parts: Tensor) -> Sketch:
    sketch = Sketch(ls.as_operator(matrix, dtype=matrix.dtype))
    for part in parts:
        sketch.grow(part, matrix @ part)
    return sketch


def without(matrix: Tensor, tests: Tensor, i: int) -> Tensor:
    """An orthonormal basis of the range of AΩ without test vector i, from scratch."""
    others = [j for j in range(tests.shape[1]) if j != i]
    return torch.linalg.qr(matrix @ tests[:, others]).Q


# --- against the definition ----------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(9,), (4, 5), (3, 3, 3)])
def test_leave_one_out_equals_leaving_out(parts: tuple[int, ...]) -> None:
    """Every term computed anew with its own QR, however the sketch has grown."""
    matrix = with_spectrum(DECAYING)
    size, A, source = len(matrix), ls.as_operator(matrix), generator(1)
    tests = [sphere(A, count, source) for count in parts]
    found = leave_one_out_traces(sketch_of(matrix, *tests))
    signs = [rademacher(A, count, source) for count in parts]
    entries = leave_one_out_diagonals(sketch_of(matrix, *signs))
    omega, signed = torch.cat(tests, 1), torch.cat(signs, 1)
    for i in range(9):
        Q = without(matrix, omega, i)
        rest = omega[:, i] - Q @ (Q.T @ omega[:, i])
        rest = rest * ((size - 9 + 1) / (rest @ rest)).sqrt()
        expected = (Q.T @ matrix @ Q).trace() + rest @ matrix @ rest
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-9)
        Q = without(matrix, signed, i)
        image = matrix @ signed[:, i]
        diagonal = (Q @ Q.T @ matrix).diag() + signed[:, i] * (image - Q @ (Q.T @ image))
        assert torch.allclose(entries[:, i], diagonal, atol=1e-9)


def test_growing_in_parts_spans_the_same_space() -> None:
    matrix = with_spectrum(DECAYING)
    tests = rademacher(ls.as_operator(matrix), 12, generator(0))
    whole, parts = sketch_of(matrix, tests), sketch_of(matrix, tests[:, :5], tests[:, 5:])
    assert torch.allclose(whole.basis @ whole.basis.T, parts.basis @ parts.basis.T, atol=1e-10)
    for sketch in (whole, parts):
        assert torch.allclose(sketch.basis @ sketch.factor, matrix @ tests, atol=1e-12)
        assert torch.allclose(sketch.inner, sketch.basis.T @ matrix @ sketch.basis, atol=1e-12)
        assert torch.allclose(sketch.overlap, sketch.basis.T @ tests, atol=1e-12)


def test_sphere_vectors_have_length_and_covariance() -> None:
    A = ls.as_operator(torch.eye(20))
    draws = sphere(A, 4000, generator(0))
    assert torch.allclose(draws.norm(dim=0), torch.full((4000,), 20**0.5, dtype=A.dtype))
    assert (draws @ draws.T / 4000 - torch.eye(20)).abs().max() <= 0.09  # 4 × √2/√4000


# --- ranks that are too low ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [0, 1, 3, 8])
@pytest.mark.parametrize("parts", [(12,), (6, 6), (2, 10)])
def test_rank_deficient_sketch_is_exact_and_finite(
    parts: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    spectrum = np.r_[np.linspace(-2, 5, rank), np.zeros(100 - rank)]
    matrix = with_spectrum(spectrum).to(dtype)
    A, source = ls.as_operator(matrix, dtype=dtype), generator(3)
    rounding = 200 * torch.finfo(dtype).eps * max(1.0, float(np.abs(spectrum).sum()))
    sketch = sketch_of(matrix, *(sphere(A, n, source) for n in parts))
    eye = torch.eye(12, dtype=dtype)
    assert (sketch.basis.T @ sketch.basis - eye).abs().max() <= 100 * torch.finfo(dtype).eps
    found = leave_one_out_traces(sketch)
    assert (found - spectrum.sum()).abs().max() <= rounding
    entries = leave_one_out_diagonals(sketch_of(matrix, *(rademacher(A, n, source) for n in parts)))
    assert (entries - matrix.diag().double()[:, None]).abs().max() <= rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_matrix_gives_zero(dtype: torch.dtype) -> None:
    A = ls.as_operator(torch.zeros(80, 80), dtype=dtype)
    found = ls.trace(A, method="xtrace", tolerance=0.01)
    assert (found.value, found.standard_error, found.converged) == (0, 0, True)
    assert not ls.diagonal(A, method="xdiag").value.any()


def test_repeated_test_vectors_do_not_break_the_sketch() -> None:
    matrix = with_spectrum(DECAYING)
    tests = rademacher(ls.as_operator(matrix), 4, generator(0))
    sketch = sketch_of(matrix, tests, tests)
    eye = torch.eye(8, dtype=torch.float64)
    assert torch.allclose(sketch.basis.T @ sketch.basis, eye, atol=1e-12)
    assert torch.isfinite(leave_one_out_traces(sketch)).all()


# --- as estimators -------------------------------------------------------------------------------


def test_xtrace_and_xdiag_are_unbiased() -> None:
    matrix = with_spectrum(np.linspace(-1.0, 2.0, 80))
    A = ls.as_operator(matrix)
    values = np.array(
        [ls.trace(A, method="xtrace", probes=12, seed=seed).value for seed in range(400)]
    )
    assert abs(values.mean() - 40) <= 3.5 * values.std(ddof=1) / 20
    entries = torch.stack(
        [ls.diagonal(A, method="xdiag", probes=12, seed=seed).value for seed in range(400)]
    )
    deviation = (entries.mean(0) - matrix.diag()) / entries.std(0) * 20
    assert 0.5 <= float(deviation.square().mean()) <= 1.7


def test_xtrace_beats_the_others_where_the_spectrum_decays() -> None:
    A = ls.as_operator(with_spectrum(DECAYING))
    errors = {
        method: np.sqrt(
            np.mean(
                [
                    (ls.trace(A, method=method, probes=36, seed=s).value - DECAYING.sum()) ** 2
                    for s in range(50)
                ]
            )
        )
        for method in ("hutchinson", "hutch++", "xtrace")
    }
    assert 1.5 * errors["xtrace"] < errors["hutch++"] < errors["hutchinson"] / 3


def test_their_errors_are_indicators_without_an_interval() -> None:
    A = ls.as_operator(with_spectrum(DECAYING))
    found = ls.trace(A, method="xtrace", probes=31)
    assert (found.method, found.indicator, found.probes) == ("xtrace", True, 15)
    assert found.cost.products == 30
    assert found.lower is found.upper is found.degrees_of_freedom is None
    assert str(found).endswith(" (an indicator, no interval)")
    entries = ls.diagonal(A, method="xdiag", probes=30)
    assert (entries.method, entries.indicator, entries.margin) == ("xdiag", True, None)


def test_leave_one_out_interval_covers_too_little() -> None:
    """Why there is none: read as a normal interval it holds the truth in well under 95 % of the runs."""
    spectrum = np.r_[np.geomspace(0.5, 20, 15), np.full(285, 0.02)]
    A, inside = ls.as_operator(with_spectrum(spectrum)), 0
    for seed in range(300):
        found = ls.trace(A, method="xtrace", probes=30, seed=seed)
        inside += abs(found.value - spectrum.sum()) <= stats.norm.ppf(0.975) * found.standard_error
    assert 0.6 <= inside / 300 <= 0.93


@pytest.mark.parametrize("method", ["xtrace", "xdiag"])
def test_tolerance_doubles_the_sketch_within_the_budget(method: str) -> None:
    A = ls.as_operator(with_spectrum(DECAYING))
    call = ls.trace if method == "xtrace" else ls.diagonal
    found = call(A, method=method, probes=8, tolerance=0.02, budget=100)  # type: ignore[operator]
    assert found.converged is True
    assert found.cost.products in (16, 32, 64)
    short = call(A, method=method, probes=8, tolerance=1e-9, budget=30)  # type: ignore[operator]
    assert short.converged is False
    assert short.cost.products == 30
    # No budget for the identity, and no room for more test vectors than the order.
    tight = call(A, method=method, probes=80, tolerance=1e-16, budget=239)  # type: ignore[operator]
    assert tight.converged is False
    assert tight.probes < 120
    # Where the next doubling would cost more than the identity, the identity it is.
    exact = call(A, method=method, probes=40, tolerance=1e-16, budget=1000)  # type: ignore[operator]
    assert exact.method == "exact"
