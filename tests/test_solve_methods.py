"""Nyström, Neumann, LiSSA and M-FAC: each against the dense matrix that it stands for."""

import math

import numpy as np
import pytest
import torch
from spectra import SPECTRA, small_net, small_net_hessian, with_spectrum
from torch import Tensor

import landscape as ls
from landscape.estimators import solve as solving
from landscape.estimators.lissa import lissa
from landscape.estimators.neumann import largest_eigenvalue
from landscape.estimators.preconditioners import inverse_map
from landscape.estimators.probes import gaussian, generator

DTYPES = (torch.float64, torch.float32)
DECAYING = np.geomspace(1e-4, 10.0, 80)  # positive definite, condition 1e5


def columns(size: int, count: int = 3, *, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(size, count, generator=source, dtype=torch.float64)


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def net_problem(batch_size: int = 60, dtype: torch.dtype = torch.float64) -> ls.Problem:
    model, inputs, target = small_net()
    return ls.Problem(model, "cross_entropy", (inputs, target), batch_size=batch_size, dtype=dtype)


# --- conjugate gradients, and where curvature is negative ----------------------------------------


def test_cg_is_exact_after_as_many_steps_as_dimensions() -> None:
    matrix = with_spectrum(np.linspace(1, 5, 12))
    b = columns(12)
    found = ls.solve(ls.as_operator(matrix), b, method="cg", max_iterations=12, tolerance=1e-13)
    assert torch.allclose(found.x, torch.linalg.solve(matrix, b), rtol=0, atol=1e-12)
    before = ls.solve(ls.as_operator(matrix), b, method="cg", max_iterations=11, tolerance=1e-13)
    assert (before.residual > 1e-8).all()  # not sooner: twelve eigenvalues differ


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["auto", "minres"])
@pytest.mark.parametrize("damping", [0.0, 8.0])
@pytest.mark.parametrize("name", SPECTRA)
def test_negative_curvature_is_said_where_there_is_some_and_nowhere_else(
    name: str, damping: float, method: str, dtype: torch.dtype
) -> None:
    lowest = float(SPECTRA[name].min()) + damping
    size = float(np.abs(SPECTRA[name] + damping).max())
    if abs(lowest) < 100 * torch.finfo(dtype).eps * size:
        pytest.skip("not to be told from zero in this dtype")
    A = ls.as_operator(with_spectrum(SPECTRA[name]), dtype=dtype)
    b = columns(A.shape[0], 2).to(dtype)
    found = ls.solve(A, b, damping=damping, method=method, max_iterations=150)
    assert found.negative_curvature == (lowest < 0,) * 2


# --- Nyström -------------------------------------------------------------------------------------


def test_nystrom_is_the_formula_and_its_inverse_the_identity_of_woodbury() -> None:
    """Y(ΩᵀY)⁻¹Yᵀ; and x = v/ρ − Y(ΩᵀY + YᵀY/ρ)⁻¹Yᵀv/ρ²."""
    matrix, rank, damping = with_spectrum(DECAYING), 12, 0.3
    A = ls.as_operator(matrix)
    found = ls.nystrom(A, rank, seed=4)
    tests = torch.linalg.qr(gaussian(A, rank, generator(4))).Q
    images = matrix @ tests
    core = tests.T @ images
    formula = images @ torch.linalg.solve(core, images.T)
    approximation = (found.vectors * found.values) @ found.vectors.T
    assert found.cost.products == rank and not found.indefinite
    assert torch.allclose(approximation, formula, atol=1e-10)
    assert torch.linalg.eigvalsh(matrix - approximation)[0] > -1e-10
    gap = found.vectors.T @ found.vectors - eye(rank)
    assert gap.abs().max() < 1e-12 and (found.values.diff() < 0).all()
    v = columns(80)
    inner = core + images.T @ images / damping
    expected = v / damping - images @ torch.linalg.solve(inner, images.T @ v) / damping**2
    inverse = found.inverse(damping)
    assert torch.allclose(inverse @ v, expected, atol=1e-10)
    assert torch.allclose((approximation + damping * eye(80)) @ (inverse @ v), v, atol=1e-10)


def test_nystrom_preconditioner_is_the_matrix_it_says() -> None:
    matrix, damping = with_spectrum(DECAYING), 0.02
    A = ls.as_operator(matrix)
    found = ls.nystrom(A, 9)
    U, L = found.vectors, found.values
    dense = (L[-1] + damping) * (U / (L + damping)) @ U.T + eye(80) - U @ U.T
    assert torch.allclose(inverse_map(found, A, damping)(eye(80)), dense, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_enough_vectors_find_a_matrix_of_low_rank_whole(dtype: torch.dtype) -> None:
    spectrum = SPECTRA["rank deficient"]
    A = ls.as_operator(with_spectrum(spectrum), dtype=dtype)
    found = ls.nystrom(A, 20)
    true = torch.from_numpy(np.sort(spectrum)[::-1][:5].copy())
    # The shift is the Frobenius norm of 20 products, times eps.
    error = 20 * torch.finfo(dtype).eps * 5.0
    assert (found.values[:5].double() - true).abs().max() <= error
    assert len(found.values) == 5 or found.values[5] < 10 * error
    assert not found.indefinite


@pytest.mark.parametrize("dtype", DTYPES)
def test_nystrom_saves_iterations_and_changes_no_answer(dtype: torch.dtype) -> None:
    matrix, damping = with_spectrum(DECAYING), 1e-3
    A, b = ls.as_operator(matrix, dtype=dtype), columns(80)
    tolerance = 1e-8 if dtype == torch.float64 else 3e-3
    options = {"damping": damping, "tolerance": tolerance, "max_iterations": 400}
    plain = ls.solve(A, b.to(dtype), method="cg", **options)
    helped = ls.solve(A, b.to(dtype), method="nystrom", rank=40, **options)
    reused = ls.solve(A, b.to(dtype), preconditioner=ls.nystrom(A, 40), **options)
    assert plain.converged and helped.converged and helped.method == ("nystrom",) * 3
    assert max(helped.iterations) < 0.5 * max(plain.iterations)
    assert torch.equal(reused.x, helped.x)
    expected = torch.linalg.solve(matrix + damping * eye(80), b)
    bound = 1.1 * tolerance * b.norm(dim=0) / (1e-4 + damping)
    assert ((helped.x.double() - expected).norm(dim=0) <= bound).all()
    assert helped.cost.products >= 40 + max(helped.iterations)


def test_indefinite_matrix_is_said_and_still_preconditioned() -> None:
    spectrum = np.r_[-0.2, -0.1, np.geomspace(1e-3, 0.5, 60), np.geomspace(5, 50, 20)]
    matrix = with_spectrum(spectrum)
    A, b = ls.as_operator(matrix), columns(82)
    found = ls.nystrom(ls.as_operator(with_spectrum(SPECTRA["indefinite"])), 30)
    assert found.indefinite and found.cost.products == 60 and (found.values > 0).all()
    damping = 0.25
    plain = ls.solve(A, b, damping=damping, method="cg", tolerance=1e-8)
    helped = ls.solve(A, b, damping=damping, method="nystrom", rank=40, tolerance=1e-8)
    assert helped.converged and max(helped.iterations) < max(plain.iterations)
    assert not any(helped.negative_curvature)
    bare = ls.solve(A, b, method="nystrom", rank=40)
    assert bare.status == ("negative curvature",) * 3 and all(bare.negative_curvature)


# --- Neumann -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRA)
def test_largest_eigenvalue_is_estimated_from_above(name: str) -> None:
    A = ls.as_operator(with_spectrum(SPECTRA[name]))
    for seed in range(5):
        bound, largest = largest_eigenvalue(A, seed=seed), float(SPECTRA[name].max())
        spread = largest - float(SPECTRA[name].min())
        # A series converges with anything above half of the largest.
        assert largest - 0.02 * spread <= bound <= largest + 0.15 * spread


def test_largest_eigenvalue_of_matrices_smaller_than_the_search_is_exact() -> None:
    for diagonal in ([3.0], [2.0, -1.0], [0.0, 0.0, 0.0]):
        A = ls.as_operator(torch.diag(torch.tensor(diagonal)))
        assert abs(largest_eigenvalue(A) - max(diagonal)) < 1e-12


def test_neumann_is_its_series_term_by_term() -> None:
    matrix, damping = with_spectrum(np.linspace(0.5, 4.0, 90)), 0.2
    A, b = ls.as_operator(matrix), columns(90)
    damped = matrix + damping * eye(90)
    first = ls.solve(A, b, damping=damping, method="neumann", max_iterations=1)
    alpha = float(first.x[0, 0] / b[0, 0])  # the series begins with αb
    assert 0.8 / 4.2 < alpha <= 1.03 / 4.2
    for terms in (1, 2, 7):
        found = ls.solve(A, b, damping=damping, method="neumann", max_iterations=terms)
        power, series = b.clone(), torch.zeros_like(b)
        for _ in range(terms):
            series += alpha * power
            power -= alpha * damped @ power
        assert torch.allclose(found.x, series, atol=1e-12)
        assert found.iterations == (terms,) * 3 and found.status == ("iteration limit",) * 3
        assert torch.allclose(found.residual, power.norm(dim=0) / b.norm(dim=0))


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_neumann_with_terms_enough_is_the_solution(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the largest eigenvalue was found ten times too small."""
    true = largest_eigenvalue
    monkeypatch.setattr(solving, "largest_eigenvalue", lambda A, seed: share * true(A, seed=seed))
    matrix, b = with_spectrum(np.linspace(0.5, 4.0, 90)), columns(90)
    found = ls.solve(ls.as_operator(matrix), b, method="neumann", tolerance=1e-10)
    assert found.converged and found.method == ("neumann",) * 3
    bound = 1e-10 * b.norm(dim=0) / 0.5
    assert ((found.x - torch.linalg.solve(matrix, b)).norm(dim=0) <= bound).all()
    assert not any(found.negative_curvature)


def test_neumann_stops_at_negative_curvature() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    b = columns(A.shape[0])
    found = ls.solve(A, b, method="neumann")
    assert found.status == ("negative curvature",) * 3 and all(found.negative_curvature)
    assert torch.isfinite(found.x).all()
    zero = ls.solve(ls.as_operator(torch.zeros(4, 4)), b[:4], method="neumann")
    assert zero.status == ("negative curvature",) * 3 and not zero.x.any()


# --- LiSSA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ls.GaussNewton, ls.Hessian, ls.EmpiricalFisher])
def test_products_of_single_batches_have_the_matrix_as_their_mean(kind: type) -> None:
    problem = net_problem(batch_size=37)  # ragged
    A = kind(problem)
    block = columns(problem.size, 2)
    expected = A @ block
    before = A.products
    with A.one_batch() as product:
        parts = [product(place, block) for place in range(problem.batch_count)]
    assert A.products - before == 2  # as many as one pass over the data
    assert torch.allclose(torch.stack(parts).mean(0), expected, atol=1e-12)
    assert (parts[0] - expected).abs().max() > 1e-3


def test_lissa_on_one_batch_is_the_neumann_series() -> None:
    problem = net_problem(batch_size=10_000)
    A, damping, scale = ls.GaussNewton(problem), 0.5, 40.0
    b = columns(problem.size, 2)
    damped = A.dense() + damping * eye(problem.size)
    power, series = b.clone(), torch.zeros_like(b)
    for _ in range(30):
        series += power / scale
        power -= damped @ power / scale
    found = ls.solve(
        A, b, damping=damping, method="lissa", scale=scale, max_iterations=30, repeats=2
    )
    assert torch.allclose(found.x, series, atol=1e-12)
    assert found.standard_error is not None and found.standard_error.abs().max() < 1e-12
    assert found.iterations == (30, 30) and found.method == ("lissa", "lissa")
    assert torch.allclose(found.residual, power.norm(dim=0) / b.norm(dim=0))


def test_lissa_lies_around_the_solution_as_its_standard_error_says() -> None:
    problem = net_problem(batch_size=60)
    A, damping = ls.GaussNewton(problem), 2.0
    b = columns(problem.size, 1)
    expected = torch.linalg.solve(A.dense() + damping * eye(problem.size), b)
    options = {"damping": damping, "method": "lissa", "max_iterations": 60, "repeats": 8}
    before = torch.get_rng_state()
    found = ls.solve(A, b, seed=3, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert found.standard_error is not None
    off = (found.x - expected) / found.standard_error
    # Student's t with 7 degrees of freedom has variance 7/5; parameters are correlated.
    assert 0.4 < float(off.square().mean()) < 4.0
    assert found.status == ("iteration limit",) and 0 < found.residual[0] < 0.2
    assert torch.equal(found.x, ls.solve(A, b, seed=3, **options).x)
    assert not torch.equal(found.x, ls.solve(A, b, seed=4, **options).x)
    near = ls.solve(A, b, start=expected, **{**options, "max_iterations": 1})
    assert near.residual[0] < 0.05


def test_lissa_begins_at_the_start_and_solves_zero_by_zero() -> None:
    problem = net_problem()
    A, damping = ls.GaussNewton(problem), 2.0
    b, start = columns(problem.size, 2), columns(problem.size, 2, seed=1)
    b[:, 0] = 0
    damped = A.dense() + damping * eye(problem.size)
    found = ls.solve(A, b, damping=damping, start=start, method="lissa", max_iterations=20)
    assert found.status[0] == "converged" and not found.x[:, 0].any()
    assert found.residuals[:, 0].tolist() == [0, 0]
    cold = ls.solve(A, b, damping=damping, method="lissa", max_iterations=5)
    assert cold.residuals[:, 0].tolist() == [0, 0] and cold.residuals[0, 1] == 1
    begun = (b - damped @ start)[:, 1].norm() / b[:, 1].norm()
    assert found.residuals[0, 1] == pytest.approx(float(begun), rel=1e-12)


def test_lissa_says_that_it_diverges_and_why() -> None:
    A = ls.GaussNewton(net_problem(batch_size=60))
    b = columns(A.shape[0], 1)
    short = {"method": "lissa", "repeats": 2}
    small = ls.solve(A, b, damping=0.1, scale=0.5, max_iterations=400, **short)
    assert small.status == ("divergence",) and torch.isfinite(small.x).all()
    assert small.residual[0] > 1 and small.negative_curvature == (False,)
    lowest = torch.linalg.eigh(small_net_hessian())
    saddle = ls.solve(
        ls.Hessian(net_problem(10_000)), lowest.eigenvectors[:, 0], max_iterations=2000, **short
    )
    assert lowest.eigenvalues[0] < 0 and saddle.negative_curvature == (True,)


def test_lissa_refuses_what_is_no_mean_over_batches() -> None:
    problem = net_problem()
    b = columns(problem.size, 1)
    for A in (ls.GradientCovariance(problem), ls.Hessian(problem) * 2.0):
        with pytest.raises(ls.InputError, match="is no mean over batches: pass a curvature"):
            ls.solve(A, b, method="lissa")
    one = lissa(
        ls.GaussNewton(problem),
        b,
        damping=1.0,
        start=torch.zeros_like(b),
        steps=2,
        repeats=1,
        scale=None,
        seed=0,
        progress=None,
    )
    assert torch.isnan(one.standard_error).all() and not one.diverged


# --- M-FAC ---------------------------------------------------------------------------------------


def test_woodbury_equals_cg_on_the_same_fisher_matrix() -> None:
    G, damping = columns(9, 70), 0.05
    inverse = ls.InverseFisher.from_gradients(G, damping)
    F = ls.as_operator(G.T @ G / 9)
    b = columns(70)
    found = ls.solve(F, b, damping=damping, method="cg", tolerance=1e-12)
    assert torch.allclose(inverse @ b, found.x, atol=1e-9)
    helped = ls.solve(F, b, damping=damping, preconditioner=inverse, tolerance=1e-10)
    assert helped.converged and max(helped.iterations) == 1


# The Hessian, here with an eigenvalue of −0.07, has a part that the Fisher matrix knows nothing of.
@pytest.mark.parametrize(
    ("kind", "damping", "share"), [(ls.GaussNewton, 0.01, 0.8), (ls.Hessian, 0.2, 0.9)]
)
def test_mfac_solves_the_true_matrix_in_fewer_iterations(
    kind: type, damping: float, share: float
) -> None:
    problem = net_problem()
    A = kind(problem)
    b = columns(problem.size, 2)
    options = {"damping": damping, "tolerance": 1e-8}
    plain = ls.solve(A, b, method="cg", **options)
    found = ls.solve(A, b, method="mfac", **options)
    assert found.converged and found.method == ("mfac", "mfac")
    assert max(found.iterations) < share * max(plain.iterations)
    damped = A.dense() + damping * eye(problem.size)
    bound = 1e-8 * b.norm(dim=0) / torch.linalg.eigvalsh(damped)[0]
    assert ((found.x - torch.linalg.solve(damped, b)).norm(dim=0) <= bound).all()
    given = ls.solve(A, b, preconditioner=ls.InverseFisher(problem, None, damping), **options)
    assert torch.equal(given.x, found.x)
    fewer = ls.solve(A, b, method="mfac", rank=8, **options)
    assert fewer.converged and fewer.iterations != found.iterations


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "mfac", "damping": 0.1}, "belongs to none: pass a curvature operator"),
        ({"method": "cg", "rank": 5}, "rank goes with method 'nystrom' or 'mfac', not 'cg'"),
        ({"repeats": 2}, "repeats goes with method 'lissa', not 'auto'"),
        ({"method": "neumann", "scale": 2.0}, "scale goes with method 'lissa', not 'neumann'"),
        (
            {"method": "nystrom", "preconditioner": torch.ones(4)},
            "preconditioner goes with method 'auto' or 'cg' or 'minres', not 'nystrom'",
        ),
        ({"method": "nystrom", "rank": 0}, "rank is 0: it must be positive"),
        ({"method": "lissa", "scale": -1.0}, "scale is -1.0: it must be positive"),
        ({"method": "lissa", "scale": math.inf}, "scale is inf: it must be positive and finite"),
        (
            {"preconditioner": ls.nystrom(ls.as_operator(torch.eye(3)), 2)},
            "the Nyström approximation is of order 3, and the operator of 4",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(options, sentence) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ls.InputError, match=sentence):
        ls.solve(ls.as_operator(torch.eye(4)), torch.ones(4, dtype=torch.float64), **options)


def test_mfac_and_low_rank_inverses_need_damping() -> None:
    A = ls.GaussNewton(net_problem())
    with pytest.raises(ls.InputError, match="which needs damping: choose damping= above 0"):
        ls.solve(A, columns(A.shape[0], 1), method="mfac")
    with pytest.raises(ls.InputError, match="damping is 0: a matrix of low rank has no inverse"):
        ls.nystrom(A, 3).inverse(0)
    with pytest.raises(ls.InputError, match="rank is 0: it must be at least 1"):
        ls.nystrom(A, 0)
