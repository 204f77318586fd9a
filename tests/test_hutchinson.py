"""Hutchinson's estimator of trace and diagonal: unbiased, with an error that means what it says."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from spectra import SPECTRA, small_net, small_net_hessian, with_spectrum
from torch import Tensor

import landscape as ls
from landscape.estimators import auto, hutchinson
from landscape.estimators.diagonal import DiagonalEstimate
from landscape.estimators.probes import generator, rademacher

SOURCES: dict[str, Callable[[], Tensor]] = {
    "trained net": small_net_hessian,
    "outliers": lambda: with_spectrum(SPECTRA["network"]),
}


def every_sign_vector(size: int) -> Tensor:
    return torch.tensor(list(product([-1.0, 1.0], repeat=size)), dtype=torch.float64).T


# --- unbiased ------------------------------------------------------------------------------------


def test_mean_over_every_sign_vector_is_the_trace_and_the_diagonal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All 2^P probes once: the estimator's expectation, without sampling error."""
    matrix, signs, drawn = with_spectrum([3.0, -1.0, 0.5, 7.0, 2.0]), every_sign_vector(5), 0

    def next_signs(_: ls.Operator, count: int, __: torch.Generator) -> Tensor:
        nonlocal drawn
        drawn += count
        return signs[:, drawn - count : drawn]

    monkeypatch.setattr(auto, "rademacher", next_signs)
    found = ls.trace(ls.as_operator(matrix), method="hutchinson", probes=32)
    assert found.value == pytest.approx(11.5, rel=1e-13)
    # Var zᵀAz = 2 Σ_{i≠j} a²_ij
    off = matrix - matrix.diag().diag()
    assert found.standard_error == pytest.approx(
        math.sqrt(2 * float((off**2).sum()) * 32 / 31 / 32), rel=1e-12
    )
    drawn = 0
    diagonal = ls.diagonal(ls.as_operator(matrix), method="hutchinson", probes=32)
    assert torch.allclose(diagonal.value, matrix.diag(), atol=1e-13)
    expected = ((off**2).sum(1) / 31).sqrt()
    assert torch.allclose(diagonal.standard_error, expected, rtol=1e-12)


def test_probes_are_signs_with_mean_zero_and_no_correlation() -> None:
    A = ls.as_operator(torch.eye(20))
    signs = rademacher(A, 4000, generator(0))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.shape == (20, 4000)
    # Entries of zzᵀ averaged over 4000 probes scatter by 1/√4000 = 0.016; the largest of 210 by 4×.
    assert (signs @ signs.T / 4000 - torch.eye(20)).abs().max() <= 0.065
    assert signs.mean(1).abs().max() <= 0.065


@pytest.mark.parametrize("name", SOURCES)
def test_mean_over_seeds_is_the_trace(name: str) -> None:
    matrix = SOURCES[name]()
    A = ls.as_operator(matrix)
    found = [ls.trace(A, probes=10, seed=seed) for seed in range(200)]
    values = np.array([estimate.value for estimate in found])
    error = values.std(ddof=1) / math.sqrt(200)
    assert abs(values.mean() - float(matrix.trace())) <= 3 * error
    # The stated standard error is the scatter over seeds (its own accuracy is about 1/√(2·200)).
    stated = math.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
    assert stated == pytest.approx(values.std(ddof=1), rel=0.2)


# --- standard errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_trace_lies_within_two_standard_errors_in_ninety_of_a_hundred_seeds(name: str) -> None:
    matrix = SOURCES[name]()
    A, truth = ls.as_operator(matrix), float(matrix.trace())
    found = [ls.trace(A, probes=30, seed=seed) for seed in range(100)]
    covered = sum(abs(t.value - truth) <= 2 * t.standard_error for t in found)
    assert covered >= 90
    narrow = sum(abs(t.value - truth) <= 0.5 * t.standard_error for t in found)
    assert narrow <= 55  # 38 expected: the error bars are not simply too wide


def test_trace_through_the_products_of_a_net_lies_within_two_standard_errors() -> None:
    model, inputs, target = small_net()
    A = ls.Hessian(ls.Problem(model, "cross_entropy", (inputs, target), batch_size=64))
    truth = float(small_net_hessian().trace())
    for seed in range(5):
        found = ls.trace(A, probes=30, seed=seed)
        # float32 products of the same probes on the dense matrix
        dense = ls.trace(ls.as_operator(small_net_hessian()), probes=30, seed=seed)
        assert found.value == pytest.approx(dense.value, rel=1e-5)
        assert abs(found.value - truth) <= 3 * found.standard_error


@pytest.mark.parametrize("name", SOURCES)
def test_diagonal_entries_lie_within_two_standard_errors(name: str) -> None:
    matrix = SOURCES[name]()
    A = ls.as_operator(matrix)
    covered, scale = [], matrix.abs().max()
    for seed in range(30):
        found = ls.diagonal(A, probes=30, seed=seed)
        inside = (found.value - matrix.diag()).abs() <= 2 * found.standard_error + 1e-12 * scale
        covered.append(inside.double().mean().item())
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_diagonal_matrices_are_exact_with_no_error(dtype: torch.dtype) -> None:
    entries = torch.tensor([1e-8, -3.0, 0.0, 2.0, 1e6], dtype=dtype)
    A = ls.as_operator(entries.diag(), dtype=dtype)
    diagonal = ls.diagonal(A, probes=2)
    assert torch.equal(diagonal.value, entries)
    assert torch.equal(diagonal.standard_error, torch.zeros(5, dtype=dtype))
    trace = ls.trace(A, probes=2, tolerance=1e-9)
    assert trace.value == pytest.approx(float(entries.double().sum()), rel=1e-7)
    assert trace.standard_error == 0
    assert trace.converged is True


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_running_variance_matches_the_direct_formula(offset: float) -> None:
    """Σx² − n·mean² would lose every digit next to an offset of 1e7; Welford does not."""
    matrix = with_spectrum(SPECTRA["network"]) + offset * torch.eye(130, dtype=torch.float64)
    A = ls.as_operator(matrix)
    signs = rademacher(A, 37, generator(4))
    samples = signs * (matrix @ signs)
    diagonal = ls.diagonal(A, probes=37, seed=4)
    assert torch.allclose(diagonal.value, samples.mean(1), rtol=1e-12)
    error = samples.std(1) / math.sqrt(37)
    assert torch.allclose(diagonal.standard_error, error, rtol=1e-6)
    trace = ls.trace(A, probes=37, seed=4)
    assert trace.value == pytest.approx(float(samples.sum(0).mean()), rel=1e-12)
    expected = float(samples.sum(0).std()) / math.sqrt(37)
    assert trace.standard_error == pytest.approx(expected, rel=1e-5)


def test_diagonal_sums_to_the_trace_of_the_same_probes() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["indefinite"]))
    diagonal = ls.diagonal(A, probes=11, seed=2)
    assert float(diagonal.value.sum()) == pytest.approx(ls.trace(A, probes=11, seed=2).value)


# --- the stop rule -------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.02])
@pytest.mark.parametrize("name", SOURCES)
def test_tolerance_is_reached_by_a_variance_no_smaller_than_the_pilot_s(
    name: str, tolerance: float
) -> None:
    matrix = SOURCES[name]()
    A, truth = ls.as_operator(matrix), float(matrix.trace())
    covered = 0
    for seed in range(20):
        found = ls.trace(A, method="hutchinson", probes=20, tolerance=tolerance, seed=seed)
        pilot = ls.trace(A, method="hutchinson", probes=20, seed=seed)
        assert found.converged is True
        assert found.probes >= 20
        assert found.degrees_of_freedom == 19
        assert found.standard_error <= tolerance * abs(found.value)
        # The pilot's error with more samples in the mean, or what all samples say if that is more.
        plain = ls.trace(A, method="hutchinson", probes=found.probes, seed=seed)
        shrunk = pilot.standard_error * math.sqrt(20 / found.probes)
        assert found.standard_error >= max(shrunk, plain.standard_error) * (1 - 1e-9)
        assert found.value == pytest.approx(plain.value, rel=1e-12)
        covered += found.lower <= truth <= found.upper  # type: ignore[operator]
    assert covered >= 16  # 19 expected; 15 or fewer with probability 0.3 %


def test_number_of_probes_is_what_the_tolerance_needs() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    for seed in range(20):
        found = ls.trace(A, method="hutchinson", probes=20, tolerance=0.03, seed=seed)
        variance = found.probes * found.standard_error**2
        least = math.ceil(variance / (0.03 * found.value) ** 2)
        # Looked at with the mean so far: the number follows 1/mean², which moves by a few times 3 %.
        assert max(20, least) <= found.probes <= max(20, 1.3 * least)


@pytest.mark.parametrize("estimator", [ls.trace, ls.diagonal])
def test_first_probes_that_agree_do_not_stop_before_the_pilot_ends(
    estimator: Callable[..., DiagonalEstimate],
) -> None:
    """zᵀAz is 2 ± 10: while only one of them has come up, the spread is zero."""
    A = ls.as_operator(torch.tensor([[1.0, 5.0], [5.0, 1.0]]))
    signs = [rademacher(A, 10, generator(seed)).prod(0) for seed in range(400)]
    seed = next(i for i, s in enumerate(signs) if s[:8].unique().numel() == 1 and s.sum().abs() < 9)
    options = {"method": "hutchinson", "seed": seed}
    early = estimator(A, probes=8, **options).standard_error
    assert not torch.as_tensor(early).any()  # they do agree
    found = estimator(A, probes=10, tolerance=0.3, budget=3000, **options)
    assert found.probes > 10


def test_negative_trace_takes_as_many_probes_as_the_positive_one() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    options = {"method": "hutchinson", "probes": 10, "tolerance": 0.03}
    positive, negative = ls.trace(A, **options), ls.trace(-1.0 * A, **options)  # type: ignore[arg-type]
    assert negative.probes == positive.probes > 10
    assert negative.value == -positive.value
    assert negative.standard_error == positive.standard_error
    assert (negative.lower, negative.upper) == (-positive.upper, -positive.lower)  # type: ignore[operator]


@pytest.mark.parametrize("estimator", [ls.trace, ls.diagonal])
@pytest.mark.parametrize("limit", [31, 50, 64])
def test_unreachable_tolerance_ends_at_the_limit_without_convergence(
    estimator: Callable[..., DiagonalEstimate], limit: int
) -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["indefinite"]))
    found = estimator(A, method="hutchinson", tolerance=1e-6, budget=limit)
    assert found.converged is False
    assert found.probes == found.cost.products == limit


def test_diagonal_tolerance_is_on_the_norms() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    found = ls.diagonal(A, method="hutchinson", probes=10, tolerance=0.2)
    assert found.converged is True
    assert found.probes > 10
    assert found.standard_error.norm() <= 0.2 * found.value.norm()


def test_without_tolerance_there_is_nothing_to_converge_to() -> None:
    found = ls.trace(ls.as_operator(torch.eye(40)), probes=13)
    assert found.converged is None
    assert found.probes == found.cost.products == 13


# --- blocks, scale, arguments --------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 100])
def test_results_do_not_depend_on_the_block_of_probes(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    trace, diagonal = ls.trace(A, probes=20), ls.diagonal(A, probes=20)
    monkeypatch.setattr(hutchinson, "BLOCK", block)
    again = ls.trace(A, probes=20)
    assert again.value == pytest.approx(trace.value, rel=1e-12)
    assert again.standard_error == pytest.approx(trace.standard_error, rel=1e-10)
    other = ls.diagonal(A, probes=20)
    assert torch.allclose(other.value, diagonal.value, atol=1e-12)
    assert torch.allclose(other.standard_error, diagonal.standard_error, atol=1e-12)


def test_more_probes_begin_with_the_same_ones() -> None:
    A = ls.as_operator(torch.eye(23))
    assert torch.equal(rademacher(A, 40, generator(1))[:, :7], rademacher(A, 7, generator(1)))
    source = generator(1)
    parts = [rademacher(A, count, source) for count in (3, 1, 5)]
    assert torch.equal(torch.cat(parts, 1), rademacher(A, 9, generator(1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scaling_by_a_power_of_two_scales_the_answer_bit_for_bit(dtype: torch.dtype) -> None:
    matrix, factor = with_spectrum(SPECTRA["network"]), 2.0**-20
    whole, scaled = (ls.as_operator(matrix * f, dtype=dtype) for f in (1.0, factor))
    first, second = (ls.trace(A, probes=10, tolerance=0.05) for A in (whole, scaled))
    assert first.probes == second.probes
    assert first.value * factor == second.value
    assert first.standard_error * factor == second.standard_error
    one, two = ls.diagonal(whole), ls.diagonal(scaled)
    assert torch.equal(one.value * factor, two.value)
    assert torch.equal(one.standard_error * factor, two.standard_error)


def test_zero_operator_has_trace_zero() -> None:
    A = ls.as_operator(torch.zeros(6, 6))
    found = ls.trace(A, tolerance=0.01)
    assert (found.value, found.standard_error, found.converged) == (0, 0, True)
    assert not ls.diagonal(A).value.any()


def test_one_seed_means_one_answer() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    first, again, other = (ls.trace(A, seed=seed) for seed in (3, 3, 4))
    assert first.value == again.value != other.value


@pytest.mark.parametrize("estimator", [ls.trace, ls.diagonal])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"probes": 1}, "probes is 1: a standard error needs at least 2"),
        ({"tolerance": 0.0}, "tolerance is 0.0: it must be positive, for example 0.01"),
        ({"tolerance": -1.0}, "tolerance is -1.0: it must be positive"),
        ({"tolerance": math.nan}, "tolerance is nan: it must be positive"),
        ({"tolerance": math.inf}, "tolerance is inf: it must be positive"),
        ({"confidence": 1.0}, "confidence is 1.0: it must lie between 0 and 1, such as 0.95"),
        ({"budget": 20}, "budget is 20: the first 30 products alone take more"),
        ({"tolerance": 0.1, "budget": 20}, "budget is 20: the first 30 products alone take more"),
        (
            {"method": "lanczos"},
            "method is 'lanczos': choose 'auto', 'hutchinson', 'hutch\\+\\+', ",
        ),
        ({"method": "deflated"}, "method 'deflated' needs deflate: the result of ls.eigenpairs"),
        ({"method": "hutch++", "probes": 5}, "probes is 5: hutch\\+\\+ needs at least 6"),
        ({"deflate": 3}, "deflate is a int: pass the result of ls.eigenpairs, or vectors"),
        (
            {"deflate": torch.ones(4, 1)},
            "deflate has vectors of shape \\(4, 1\\): the operator needs",
        ),
        ({"deflate": torch.ones(40, 40)}, "0 < k < 40"),
        ({"deflate": torch.full((40,), math.nan)}, "deflate has vectors that are not finite"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(
    estimator: Callable[..., object], options: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ls.InputError, match=sentence):
        estimator(ls.as_operator(torch.eye(40)), **options)
