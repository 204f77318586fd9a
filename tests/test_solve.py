"""Linear systems: the right solution, or the reason why there is none, with the true residual."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from leaks import HostReads
from spectra import SPECTRA, small_net, small_net_hessian, with_spectrum
from torch import Tensor

import landscape as ls
from landscape.operators.matrix import FunctionOperator

DTYPES = (torch.float64, torch.float32)
DEFINITE = {"ramp": np.linspace(0.5, 4.0, 90), "outliers": np.r_[np.geomspace(0.1, 1, 80), 30, 50]}


def columns(size: int, count: int = 3, *, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(size, count, generator=source, dtype=torch.float64)


def relative_residual(matrix: Tensor, x: Tensor, b: Tensor) -> Tensor:
    """In float64, by nothing of the package."""
    return (matrix @ x.double() - b.double()).norm(dim=0) / b.double().norm(dim=0)


# --- right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "cg", "minres"])
@pytest.mark.parametrize("name", DEFINITE)
def test_definite_systems_are_solved_like_a_dense_solver(name: str, method: str) -> None:
    matrix = with_spectrum(DEFINITE[name])
    b, damping = columns(len(matrix)), 0.05
    found = ls.solve(
        ls.as_operator(matrix),
        b,
        damping=damping,
        method=method,
        tolerance=1e-10,
        max_iterations=400,
    )
    damped = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
    expected = torch.linalg.solve(damped, b)
    assert found.status == ("converged",) * 3 and found.converged
    assert found.method == ("minres" if method == "minres" else "cg",) * 3
    # ‖x − x*‖ ≤ ‖B⁻¹‖ ‖r‖
    bound = 1e-10 * b.norm(dim=0) / (DEFINITE[name].min() + damping)
    assert ((found.x - expected).norm(dim=0) <= bound).all()
    assert (found.residual <= 1e-10).all()
    assert torch.allclose(found.residual, relative_residual(damped, found.x, b), rtol=1e-3)


@pytest.mark.parametrize("name", ["indefinite", "clustered", "few distinct", "network"])
def test_indefinite_systems_are_solved_like_a_dense_solver(name: str) -> None:
    matrix, tolerance = with_spectrum(SPECTRA[name]), 1e-9
    b = columns(len(matrix))
    for method in ("auto", "minres"):
        found = ls.solve(ls.as_operator(matrix), b, method=method, tolerance=tolerance)
        assert found.converged and found.method == ("minres",) * 3
        bound = tolerance * b.norm(dim=0) / np.abs(SPECTRA[name]).min()
        assert ((found.x - torch.linalg.solve(matrix, b)).norm(dim=0) <= bound).all()


def test_two_by_two_follows_the_closed_form() -> None:
    """From r = b = (1, 1): α = rᵀr / rᵀBr = 2/3 for diag(1, 2), then the solution (1, 1/2)."""
    A = ls.as_operator(torch.diag(torch.tensor([1.0, 2.0])))
    b = torch.ones(2, dtype=torch.float64)
    first = ls.solve(A, b, max_iterations=1)
    assert torch.allclose(first.x, torch.full((2,), 2 / 3, dtype=torch.float64), atol=1e-15)
    assert first.status == ("iteration limit",)
    assert torch.allclose(first.residuals[:, 0], torch.tensor([1.0, 1 / 3]).double())
    second = ls.solve(A, b)
    assert torch.allclose(second.x, torch.tensor([1.0, 0.5]).double(), atol=1e-15)
    assert second.status == ("converged",) and second.iterations == (2,)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_iterates_are_those_of_scipy(method: str, preconditioned: bool) -> None:
    # Outliers would make differences of rounding grow as soon as they are found.
    spectrum = DEFINITE["ramp"] if method == "cg" else SPECTRA["indefinite"]
    matrix, b = with_spectrum(spectrum), columns(len(spectrum), 1)
    weights = torch.linspace(0.5, 3.0, len(b), dtype=torch.float64)
    M = scipy.sparse.diags(1 / weights.numpy()) if preconditioned else None
    routine = getattr(scipy.sparse.linalg, method)
    for steps in (1, 2, 3, 5, 8, 13):
        theirs, _ = routine(matrix.numpy(), b[:, 0].numpy(), rtol=1e-14, maxiter=steps, M=M)
        ours = ls.solve(
            ls.as_operator(matrix),
            b,
            method=method,
            preconditioner=weights if preconditioned else None,
            max_iterations=steps,
            tolerance=1e-14,
        )
        assert ours.iterations == (steps,)
        difference = np.abs(ours.x[:, 0].numpy() - theirs).max()
        assert difference <= 1e-9 * np.abs(theirs).max(), steps


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_history_is_that_of_the_true_residuals(method: str, preconditioned: bool) -> None:
    matrix = with_spectrum(DEFINITE["outliers"])
    A, b = ls.as_operator(matrix), columns(len(matrix))
    options = {"method": method, "preconditioner": matrix.diag() if preconditioned else None}
    whole = ls.solve(A, b, tolerance=1e-8, **options)
    assert whole.residuals.shape == (max(whole.iterations) + 1, 3)
    assert torch.equal(whole.residuals[-1], whole.residual)
    for step in (1, 4, 9):
        part = ls.solve(A, b, max_iterations=step, tolerance=1e-8, **options)
        true = relative_residual(matrix, part.x, b)
        assert torch.allclose(whole.residuals[step], true, rtol=1e-9)
    if method == "minres" and not preconditioned:
        assert (whole.residuals.diff(dim=0) <= 1e-12).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_trained_net_plus_damping_agrees_with_its_dense_hessian(dtype: torch.dtype) -> None:
    model, inputs, target = small_net()
    truth = small_net_hessian()
    values = torch.linalg.eigvalsh(truth)
    damping = 0.1 * float(values[-1])
    assert float(values[0]) < 0 < float(values[0]) + damping  # indefinite without the damping
    problem = ls.Problem(model, "cross_entropy", (inputs, target), batch_size=60, dtype=dtype)
    b = columns(len(truth), 2).to(dtype)
    found = ls.solve(ls.Hessian(problem), b, damping=damping, tolerance=1e-5)
    damped = truth + damping * torch.eye(len(truth), dtype=torch.float64)
    assert found.converged and found.method == ("cg", "cg")
    assert (relative_residual(damped, found.x, b) <= 1.1e-5).all()
    assert found.damping == damping
    assert found.cost.gradient_equivalents is not None
    plain = ls.solve(ls.Hessian(problem), b, tolerance=1e-3, max_iterations=30)
    assert plain.method == ("minres", "minres")


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_every_column_is_solved_as_if_alone_and_stops_for_itself(method: str) -> None:
    matrix = with_spectrum(DEFINITE["outliers"])
    A = ls.as_operator(matrix)
    vectors = torch.linalg.eigh(matrix).eigenvectors
    b = torch.stack(
        [vectors[:, 3], vectors[:, 1] + vectors[:, 70], columns(len(matrix), 1)[:, 0]], 1
    )
    together = ls.solve(A, b, method=method, tolerance=1e-8)
    assert together.converged
    assert together.iterations[:2] == (1, 2) and together.iterations[2] > 15
    for column in range(3):
        alone = ls.solve(A, b[:, column], method=method, tolerance=1e-8)
        assert alone.x.shape == b[:, 0].shape
        assert abs(alone.iterations[0] - together.iterations[column]) <= 1  # of rounding
        assert (alone.x - together.x[:, column]).norm() <= 2e-8 * b[:, column].norm() / 0.1
        first = slice(0, min(5, alone.iterations[0] + 1))
        assert torch.allclose(
            alone.residuals[first, 0], together.residuals[first, column], atol=1e-9
        )
        taken = together.iterations[column]
        assert (together.residuals[taken:, column] == together.residuals[taken, column]).all()
    # Columns that have stopped are multiplied at most until the next look, and once to be measured.
    assert together.cost.products <= together.iterations[2] + 4 + 2 * 5 + 3


def test_nothing_is_left_to_do_for_zero_and_for_the_solution_itself() -> None:
    matrix = with_spectrum(DEFINITE["ramp"])
    A, b = ls.as_operator(matrix), columns(len(matrix), 2)
    b[:, 0] = 0
    x = torch.linalg.solve(matrix, b)
    x[:, 0] = 7.0
    for method in ("cg", "minres"):
        found = ls.solve(A, b, start=x, method=method)
        assert found.status == ("converged", "converged") and found.iterations == (0, 0)
        assert torch.equal(found.x[:, 0], torch.zeros(len(b), dtype=b.dtype))
        assert torch.equal(found.x[:, 1], x[:, 1])
        assert found.residual[0] == 0 and found.residual[1] < 1e-12


def test_a_near_start_saves_iterations() -> None:
    matrix = with_spectrum(DEFINITE["outliers"])
    A, b = ls.as_operator(matrix), columns(len(matrix), 1)
    x = torch.linalg.solve(matrix, b)
    near = x + 1e-4 * x.norm() * columns(len(matrix), 1, seed=5) / len(matrix) ** 0.5
    cold = ls.solve(A, b, tolerance=1e-8)
    warm = ls.solve(A, b, start=near, tolerance=1e-8)
    assert warm.converged and warm.iterations[0] < 0.8 * cold.iterations[0]
    assert warm.residuals[0] < 0.01


# --- why it stopped ------------------------------------------------------------------------------


def test_negative_curvature_is_met_said_and_answered_by_damping_or_minres() -> None:
    matrix = with_spectrum(SPECTRA["network"])
    A, b = ls.as_operator(matrix), columns(len(matrix))
    stopped = ls.solve(A, b, method="cg")
    assert stopped.status == ("negative curvature",) * 3 and not stopped.converged
    assert torch.allclose(stopped.residual, relative_residual(matrix, stopped.x, b))
    switched = ls.solve(A, b)
    assert switched.converged and switched.method == ("minres",) * 3
    damping = 1.1 * abs(float(SPECTRA["network"].min()))
    damped = ls.solve(A, b, damping=damping)
    assert damped.converged and damped.method == ("cg",) * 3


def test_curvature_is_judged_column_by_column() -> None:
    A = ls.as_operator(torch.diag(torch.tensor([3.0, 1.0, -2.0, -1.0])))
    b = torch.eye(4, dtype=torch.float64)[:, [0, 2]] + torch.eye(4, dtype=torch.float64)[:, [1, 3]]
    found = ls.solve(A, b)
    assert found.converged and found.method == ("cg", "minres")
    assert torch.allclose(found.x[:, 1], torch.tensor([0, 0, -0.5, -1.0]).double())


@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_but_consistent_systems_are_solved(dtype: torch.dtype) -> None:
    matrix = with_spectrum(SPECTRA["rank deficient"])
    b = matrix @ columns(len(matrix))
    for method in ("cg", "minres"):
        found = ls.solve(
            ls.as_operator(matrix, dtype=dtype), b.to(dtype), method=method, tolerance=1e-5
        )
        assert found.converged
        # Of all solutions the shortest: nothing of the null space ever enters.
        shortest = torch.linalg.lstsq(matrix, b, driver="gelsd").solution
        assert torch.allclose(found.x.double(), shortest, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["rank deficient", "gapped"])
def test_inconsistent_systems_end_in_least_squares(name: str, dtype: torch.dtype) -> None:
    """Both spectra hold the eigenvalue 0, and b has a part along it."""
    matrix = with_spectrum(SPECTRA[name])
    b = columns(len(matrix))
    closest = torch.linalg.lstsq(matrix, b, rcond=1e-10, driver="gelsd").solution
    smallest = relative_residual(matrix, closest, b)
    assert (smallest > 0.03).all()
    for method in ("auto", "minres"):
        A = ls.as_operator(matrix, dtype=dtype)
        found = ls.solve(A, b.to(dtype), method=method)
        assert found.status == ("least squares",) * 3
        # The excess is of second order in the tolerance, which in float32 is 100 eps.
        assert torch.allclose(found.residual, smallest, rtol=1e-4)
        assert (relative_residual(matrix, found.x, b) <= smallest * 1.0001).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cg_on_singular_systems_claims_nothing_and_auto_leaves_no_more_than_zero_does(
    dtype: torch.dtype,
) -> None:
    """Outside the range CG diverges: it stops where curvature or all digits vanish."""
    for seed in (2, 5, 27):
        rng = np.random.default_rng(seed)
        bulk = rng.exponential(1, rng.integers(5, 80)) ** rng.integers(1, 4)
        matrix = with_spectrum(np.r_[np.zeros(rng.integers(1, 30)), bulk], seed=seed)
        b = columns(len(matrix), 2, seed=seed).to(dtype)
        found = ls.solve(ls.as_operator(matrix, dtype=dtype), b, method="cg")
        assert "converged" not in found.status
        assert (found.residual <= 4 / torch.finfo(dtype).eps ** 0.5).all()
        found = ls.solve(ls.as_operator(matrix, dtype=dtype), b)
        assert "converged" not in found.status and (found.residual <= 1).all()


def test_float32_minres_stops_before_rounding_takes_back_what_was_gained() -> None:
    """An eigenvalue −2e-4·‖B‖: without an eye on rounding the true residual would end above 1."""
    spectrum = SPECTRA["negative definite"] + 0.1
    b = columns(len(spectrum)).float()
    found = ls.solve(
        ls.as_operator(with_spectrum(spectrum), dtype=torch.float32), b, method="minres"
    )
    assert found.status[0] == "stagnation"
    assert (found.residual < 0.7).all()


def test_zero_matrix_has_no_curvature_and_nothing_to_solve() -> None:
    A = ls.as_operator(torch.zeros(4, 4))
    b = torch.ones(4, dtype=torch.float64)
    assert ls.solve(A, b, method="cg").status == ("negative curvature",)
    found = ls.solve(A, b)
    assert found.status == ("least squares",) and not found.x.any() and found.residual == 1


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_iteration_limit_is_kept_and_said(method: str) -> None:
    A = ls.as_operator(with_spectrum(DEFINITE["outliers"]))
    b = columns(A.shape[0])
    found = ls.solve(A, b, method=method, max_iterations=7)
    assert found.status == ("iteration limit",) * 3 and found.iterations == (7,) * 3
    assert found.residuals.shape == (8, 3)
    assert found.cost.products <= 10 * 3 + 3  # ten steps were made between looks


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_float32_says_when_rounding_allows_no_more(method: str) -> None:
    """Asked for 1e-12, which float32 cannot reach: the bound is eps·‖B‖·‖x‖/‖b‖."""
    spectrum = DEFINITE["outliers"]
    matrix = with_spectrum(spectrum)
    b = columns(len(matrix))
    found = ls.solve(
        ls.as_operator(matrix, dtype=torch.float32), b.float(), method=method, tolerance=1e-12
    )
    assert found.status == ("stagnation",) * 3
    reachable = 1.2e-7 * spectrum.max() * found.x.double().norm(dim=0) / b.norm(dim=0)
    assert (found.residual <= reachable).all()
    assert (relative_residual(matrix.float().double(), found.x, b.float()) <= 2 * reachable).all()


@pytest.mark.parametrize("method", ["auto", "minres"])
@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("name", SPECTRA)
def test_float32_calls_converged_only_what_is(name: str, damping: float, method: str) -> None:
    """Whatever the spectrum: the residual is the true one, and MINRES leaves none above that of zero."""
    matrix = with_spectrum(SPECTRA[name]).float().double()
    damped = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
    b = columns(len(matrix)).float()
    A = ls.as_operator(matrix, dtype=torch.float32)
    found = ls.solve(A, b, damping=damping, method=method, max_iterations=300)
    true = relative_residual(damped, found.x, b)
    size = np.abs(SPECTRA[name] + damping).max()
    rounding = 1.2e-7 * size * found.x.double().norm(dim=0) / b.norm(dim=0)
    assert ((true - found.residual.double()).abs() <= rounding).all()
    for status, residual in zip(found.status, found.residual.tolist(), strict=True):
        assert (status == "converged") == (residual <= 1e-6)
    if found.method == ("minres",) * 3:
        assert (true <= 1 + rounding).all()


# --- preconditioners -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_a_diagonal_matrix_is_inverted_by_its_diagonal(method: str) -> None:
    diagonal = torch.linspace(0.01, 50, 60, dtype=torch.float64)
    A = ls.as_operator(torch.diag(diagonal))
    b = columns(60)
    found = ls.solve(A, b, damping=0.3, method=method, preconditioner=diagonal)
    assert found.iterations == (1, 1, 1) and found.converged
    assert torch.allclose(found.x, b / (diagonal[:, None] + 0.3))


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_an_exact_inverse_needs_one_iteration(method: str) -> None:
    matrix = with_spectrum(DEFINITE["outliers"])
    A = ls.as_operator(matrix)
    b = columns(len(matrix))
    inverse = ls.as_operator(torch.linalg.inv(matrix))
    pairs = ls.eigenpairs(A, len(matrix), tolerance=1e-12)
    for exact in (inverse, pairs):
        found = ls.solve(A, b, method=method, preconditioner=exact)
        assert found.converged and max(found.iterations) == 1
        assert torch.allclose(found.x, torch.linalg.solve(matrix, b))


@pytest.mark.parametrize("which", ["largest", "both", "magnitude"])
def test_eigenpairs_deflate_what_slows_a_solve(which: str) -> None:
    """Without nine outliers up to 20, the bulk within ±0.3 and damping 0.4 are easy."""
    matrix = with_spectrum(SPECTRA["network"])
    A, b = ls.as_operator(matrix), columns(len(matrix))
    damping, tolerance = 0.5, 1e-8
    pairs = ls.eigenpairs(A, 10, which=which, tolerance=1e-8)
    plain = ls.solve(A, b, damping=damping, tolerance=tolerance)
    helped = ls.solve(A, b, damping=damping, tolerance=tolerance, preconditioner=pairs)
    assert plain.converged and helped.converged
    assert max(helped.iterations) < 0.8 * max(plain.iterations)
    assert torch.allclose(helped.x, plain.x, atol=1e-6)
    indefinite = ls.solve(A, b, method="minres", tolerance=tolerance, preconditioner=pairs)
    assert indefinite.converged
    assert torch.allclose(indefinite.x, torch.linalg.solve(matrix, b), atol=1e-3, rtol=1e-4)


def test_spectral_preconditioner_is_the_matrix_it_says() -> None:
    """M⁻¹ = V|Λ + δ|⁻¹Vᵀ + (I − VVᵀ)/σ, σ = 4.9 + δ at the edge of what was found."""
    from landscape.estimators.preconditioners import inverse_map

    spectrum = np.r_[9.0, 7.0, 5.0, np.linspace(-1, 1, 17)]
    matrix, damping = with_spectrum(spectrum), 0.25
    A = ls.as_operator(matrix)
    pairs = ls.eigenpairs(A, 3, tolerance=1e-10)
    inverse = inverse_map(pairs, A, damping)(torch.eye(20, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(matrix)
    expected = torch.where(values > 4, 1 / (values + damping), 1 / (5.0 + damping))
    assert torch.allclose(inverse, (vectors * expected) @ vectors.T, atol=1e-9)


def test_preconditioner_that_is_not_positive_is_refused_or_breaks_down() -> None:
    A = ls.as_operator(with_spectrum(DEFINITE["ramp"]))
    b = columns(A.shape[0])
    diagonal = torch.ones(A.shape[0])
    diagonal[[4, 9]] = torch.tensor([-2.0, 0.0])
    with pytest.raises(ls.InputError, match=r"is -2 at position 4 \(and not positive in 2 of 90"):
        ls.solve(A, b, preconditioner=diagonal)
    assert ls.solve(A, b, preconditioner=diagonal, damping=2.5).converged
    for method in ("cg", "minres"):
        found = ls.solve(A, b, method=method, preconditioner=ls.as_operator(-torch.eye(90)))
        assert found.status == ("breakdown",) * 3 and not found.x.any()


def test_diagonal_estimate_is_a_preconditioner() -> None:
    scales = torch.logspace(-1, 1, 90, dtype=torch.float64)
    matrix = scales[:, None] * with_spectrum(DEFINITE["ramp"]) * scales
    A, b = ls.as_operator(matrix), columns(90)
    guess = ls.diagonal(A, probes=60).value.abs()
    plain = ls.solve(A, b, tolerance=1e-8)
    helped = ls.solve(A, b, preconditioner=guess, tolerance=1e-8)
    assert helped.converged and max(helped.iterations) < 0.5 * max(plain.iterations)


# --- scale, side effects, refusals ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["network", "rank deficient", "condition 1e10"])
def test_scaling_by_powers_of_two_scales_the_answer_bit_for_bit(
    name: str, dtype: torch.dtype
) -> None:
    matrix, factor = with_spectrum(SPECTRA[name]), 2.0**-20
    b = columns(len(matrix)).to(dtype)
    whole = ls.solve(ls.as_operator(matrix, dtype=dtype), b, max_iterations=80)
    scaled = ls.solve(ls.as_operator(matrix * factor, dtype=dtype), b * 2, max_iterations=80)
    assert torch.equal(whole.x * (2 / factor), scaled.x)
    assert torch.equal(whole.residuals, scaled.residuals) and whole.status == scaled.status


@pytest.mark.parametrize("method", ["auto", "minres", "nystrom", "neumann"])
def test_the_size_of_the_right_hand_side_does_not_matter_where_its_square_has_no_float32(
    method: str,
) -> None:
    """As a gradient near a minimum: 2^-100 squared is zero, and 2^100 squared infinite."""
    A = ls.as_operator(with_spectrum(DEFINITE["ramp"]), dtype=torch.float32)
    b, sizes = columns(A.shape[0]).float(), torch.tensor([2.0**-100, 1.0, 2.0**100])
    options = {"method": method, "tolerance": 1e-4, "max_iterations": 300}
    whole = ls.solve(A, b, start=b, **options)
    scaled = ls.solve(A, b * sizes, start=b * sizes, **options)
    assert whole.converged and torch.equal(whole.x * sizes, scaled.x)
    assert torch.equal(whole.residuals, scaled.residuals)


def test_a_solution_that_overflows_is_refused() -> None:
    A = ls.as_operator(torch.eye(3) * 2.0**-40, dtype=torch.float32)
    with pytest.raises(ls.UntrustedResult, match="overflows"):
        ls.solve(A, torch.full((3,), 2.0**100))


def test_global_random_state_and_arguments_are_untouched() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    b, start = columns(A.shape[0]), columns(A.shape[0], seed=1)
    kept, before = (b.clone(), start.clone()), torch.get_rng_state()
    first = ls.solve(A, b, start=start, max_iterations=20)
    again = ls.solve(A, b, start=start, max_iterations=20)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(b, kept[0]) and torch.equal(start, kept[1])
    assert torch.equal(first.x, again.x)


def test_cost_counts_every_product_and_progress_never_passes_its_end() -> None:
    A = ls.as_operator(with_spectrum(DEFINITE["ramp"]))
    b, calls = columns(A.shape[0], 1), []
    A @ b
    before = A.products
    found = ls.solve(A, b, progress=lambda done, most: calls.append((done, most)))
    assert found.cost.products == A.products - before
    assert found.iterations[0] + 1 <= found.cost.products <= found.iterations[0] + 1 + 4
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert all(done <= most for done, most in calls)


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_numbers_leave_the_device_only_at_looks(method: str) -> None:
    A = ls.as_operator(with_spectrum(DEFINITE["outliers"]))
    b = columns(A.shape[0], 2)
    counts = []
    for steps in (10, 40):
        with HostReads() as reads:
            ls.solve(A, b, method=method, tolerance=1e-15, max_iterations=steps)
        counts.append(reads.count)
    assert counts[1] - counts[0] <= 2 * (40 - 10) // 5  # two reads a look, one look in five steps


@pytest.mark.parametrize(
    ("b", "options", "sentence"),
    [
        (torch.ones(4), {}, r"b is torch.float32 on cpu, and the operator torch.float64"),
        (torch.ones(5).double(), {}, r"b has shape \(5,\): it must be \(4,\) or \(4, K\)"),
        (torch.ones(4, 0).double(), {}, r"b has shape \(4, 0\)"),
        (torch.full((4,), float("nan")).double(), {}, "b holds a number that is not finite"),
        ([1.0, 2.0], {}, "b is a list: pass a torch tensor"),
        (
            None,
            {"start": torch.ones(4, 1).double()},
            r"start has shape \(4, 1\): it must be \(4,\)",
        ),
        (None, {"damping": -0.1}, r"damping is -0.1: it must be 0 or positive; to shift"),
        (None, {"damping": float("nan")}, "damping is nan"),
        (None, {"method": "lu"}, "method is 'lu': choose one of auto, cg, minres"),
        (None, {"tolerance": 0.0}, "tolerance is 0.0: it must lie between 0 and 1"),
        (None, {"max_iterations": 0}, "max_iterations is 0: it must be at least 1"),
        (None, {"preconditioner": torch.ones(3)}, r"has shape \(3,\): a diagonal has shape \(4,\)"),
        (None, {"preconditioner": "jacobi"}, "the preconditioner is a str: pass the diagonal"),
        (None, {"preconditioner": ls.as_operator(torch.eye(3))}, "does not fit"),
        (
            None,
            {
                "preconditioner": FunctionOperator(
                    lambda v: v, 4, torch.float64, torch.device("meta")
                )
            },
            "size, dtype or device differ",
        ),
        (
            None,
            {"preconditioner": ls.eigenpairs(ls.as_operator(torch.eye(3)), 1)},
            "the eigenvectors have length 3, and the operator order 4",
        ),
        (
            None,
            {"preconditioner": ls.eigenpairs(ls.as_operator(torch.zeros(4, 4)), 1)},
            "an eigenvalue of the preconditioner plus the damping is 0",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(b, options, sentence) -> None:  # type: ignore[no-untyped-def]
    b = torch.ones(4, dtype=torch.float64) if b is None else b
    with pytest.raises(ls.InputError, match=sentence):
        ls.solve(ls.as_operator(torch.eye(4)), b, **options)


@pytest.mark.parametrize("method", ["cg", "minres", "nystrom", "neumann"])
def test_product_that_is_not_finite_is_refused(method: str) -> None:
    A = ls.as_operator(lambda v: v, shape=(4, 4))
    A.function = lambda block: block * float("nan")  # type: ignore[attr-defined]
    with pytest.raises(ls.UntrustedResult, match="not finite"):
        ls.solve(A, torch.ones(4, dtype=torch.float64), method=method)
