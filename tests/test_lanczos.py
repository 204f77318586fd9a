"""Eigenpairs at the ends of the spectrum: right, with residuals that say how far from right."""

import numpy as np
import pytest
import scipy.sparse
import torch
from leaks import HostReads
from scipy.sparse.linalg import eigsh
from spectra import SPECTRA, dense_hessian, small_net, small_net_hessian, with_spectrum
from torch import nn

import landscape as ls
from landscape.estimators import search
from landscape.estimators.lanczos import Eigenpairs, extreme_eigenpairs

WHICH = ("largest", "smallest", "magnitude", "both")
DTYPES = (torch.float64, torch.float32)
# Asked residual over ‖A‖, and rounding of A and of its products over ‖A‖, by dtype.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5}
ROUNDING = {torch.float64: 1e-13, torch.float32: 5e-6}


def wanted(spectrum: np.ndarray, k: int, which: str) -> np.ndarray:
    """The true eigenvalues at an end, as a sorted array."""
    ordered = np.sort(spectrum)[::-1]
    if which == "largest":
        return ordered[:k]
    if which == "smallest":
        return ordered[len(ordered) - k :]
    if which == "magnitude":
        return np.sort(ordered[np.argsort(-np.abs(ordered), kind="stable")[:k]])[::-1]
    return np.r_[ordered[: (k + 1) // 2], ordered[len(ordered) - k // 2 :]]


def descending(values: torch.Tensor) -> np.ndarray:
    return np.sort(values.double().numpy())[::-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_are_those_of_the_prescribed_spectrum(
    name: str, which: str, dtype: torch.dtype
) -> None:
    spectrum, k = SPECTRA[name], 5
    matrix = with_spectrum(spectrum)
    size = float(np.abs(spectrum).max())
    pairs = ls.eigenpairs(
        ls.as_operator(matrix, dtype=dtype), k, which=which, tolerance=TOLERANCE[dtype]
    )
    slack = (TOLERANCE[dtype] + ROUNDING[dtype]) * size
    if (name, which) == ("condition 1e10", "smallest"):
        slack *= 10  # 30 eigenvalues lie closer together than the tolerance: any of them will do
    assert pairs.converged.all()
    assert pairs.values.dtype == pairs.vectors.dtype == pairs.residuals.dtype == dtype
    if which == "magnitude":  # ±λ are a tie
        truth = np.sort(np.abs(spectrum))[::-1][:k]
        assert np.abs(descending(pairs.values.abs()) - truth).max() <= slack
    else:
        assert np.abs(descending(pairs.values) - wanted(spectrum, k, which)).max() <= slack
    # Independently, in float64: the residual, and a true eigenvalue within it.
    values, vectors = pairs.values.double(), pairs.vectors.double()
    residuals = (matrix @ vectors - vectors * values).norm(dim=0)
    assert (residuals - pairs.residuals.double()).abs().max() <= ROUNDING[dtype] * size
    nearest = (values[:, None] - torch.from_numpy(spectrum)).abs().amin(1)
    assert (nearest <= pairs.residuals.double() + ROUNDING[dtype] * size).all()
    # Two passes of reorthogonalisation: orthonormal to a few units of rounding per entry.
    gram = vectors.T @ vectors
    assert (gram - torch.eye(k, dtype=torch.float64)).abs().max() <= ROUNDING[dtype]


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_eigenvalues_of_a_trained_net_match_its_dense_hessian(
    which: str, dtype: torch.dtype
) -> None:
    model, inputs, target = small_net()
    A = ls.Hessian(ls.Problem(model, "cross_entropy", (inputs, target), dtype=dtype, batch_size=64))
    truth = np.linalg.eigvalsh(small_net_hessian().numpy())
    pairs = ls.eigenpairs(A, 4, which=which, tolerance=TOLERANCE[dtype])
    error = np.abs(descending(pairs.values) - wanted(truth, 4, which)).max()
    assert error <= (TOLERANCE[dtype] + ROUNDING[dtype]) * np.abs(truth).max()


def test_largest_pairs_of_a_sparse_matrix_match_arpack() -> None:
    random = scipy.sparse.random_array((2000, 2000), density=0.002, rng=np.random.default_rng(0))
    matrix = ((random + random.T) / 2).tocsr()
    pairs = ls.eigenpairs(ls.as_operator(matrix), 6, which="both", tolerance=1e-8)
    truth = eigsh(matrix, k=6, which="BE", tol=1e-12)[0]
    assert pairs.converged.all()
    assert np.abs(np.sort(pairs.values.numpy()) - truth).max() <= 1e-8 * np.abs(truth).max()


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("largest", [20.0, 15.0, 10.0, 8.0]),
        ("smallest", [-7.5, -6.0]),
        ("magnitude", [20.0, 15.0, 10.0, 8.0, -7.5, -6.0]),
    ],
)
def test_pairs_come_in_the_documented_order(which: str, expected: list[float]) -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["gapped"]))
    values = ls.eigenpairs(A, len(expected), which=which, tolerance=1e-8).values
    assert torch.allclose(values, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_both_ends_come_largest_first() -> None:
    """The docstring names two exceptions from "largest first", and "both" is neither."""
    A = ls.as_operator(with_spectrum(SPECTRA["gapped"]))
    values = ls.eigenpairs(A, 5, which="both", tolerance=1e-8).values
    expected = torch.tensor([20.0, 15.0, 10.0, -6.0, -7.5], dtype=torch.float64)
    assert torch.allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("name", ["identity", "few distinct"])
def test_order_is_exact_also_where_values_differ_by_rounding(name: str, which: str) -> None:
    spectrum = np.ones(50) if name == "identity" else SPECTRA[name]
    A = ls.as_operator(with_spectrum(spectrum), dtype=torch.float32)
    for seed in range(3):
        steps = ls.eigenpairs(A, 5, which=which, seed=seed).values.diff()
        assert (steps <= 0).all() if which == "largest" else (steps >= 0).all()


def test_smallest_is_algebraic_not_in_magnitude() -> None:
    A = ls.as_operator(torch.diag(torch.tensor([-9.0, -1.0, 0.0, 1e-3, 5.0])))
    assert ls.eigenpairs(A, 1, which="smallest").values.item() == pytest.approx(-9.0)
    assert ls.eigenpairs(A, 1, which="magnitude").values.item() == pytest.approx(-9.0)
    assert ls.eigenpairs(-1.0 * A, 1, which="smallest").values.item() == pytest.approx(-5.0)


def test_several_ends_share_one_krylov_space() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["gapped"]))
    pairs = extreme_eigenpairs(A, [("largest", 3), ("smallest", 1)], tolerance=1e-8)
    expected = torch.tensor([20.0, 15.0, 10.0, -7.5], dtype=torch.float64)
    assert torch.allclose(pairs.values, expected, atol=1e-6)
    assert pairs.cost.products == pairs.steps + 1  # what measures the recurrence


# --- multiplicity --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("spectrum", "k", "expected"),
    [
        pytest.param(np.ones(40), 6, [1.0] * 6, id="identity"),
        pytest.param(np.zeros(40), 6, [0.0] * 6, id="zero operator"),
        pytest.param(np.array([3.0]), 1, [3.0], id="order 1"),
        pytest.param(np.array([-3.0]), 1, [-3.0], id="order 1, negative"),
        pytest.param(
            np.array([3.0, 3.0, 1.0, 0.0, -2.0]), 5, [3.0, 3.0, 1.0, 0.0, -2.0], id="k = P"
        ),
        pytest.param(SPECTRA["few distinct"], 5, [5.0, 5.0, 5.0, 1.0, 1.0], id="few distinct"),
        pytest.param(np.r_[1.0, np.zeros(60)], 3, [1.0, 0.0, 0.0], id="rank 1"),
        pytest.param(
            SPECTRA["rank deficient"], 8, [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0], id="rank 5"
        ),
    ],
)
def test_multiplicities_are_found_when_the_krylov_space_closes(
    spectrum: np.ndarray, k: int, expected: list[float], dtype: torch.dtype
) -> None:
    pairs = ls.eigenpairs(ls.as_operator(with_spectrum(spectrum), dtype=dtype), k)
    assert np.abs(descending(pairs.values) - expected).max() <= 2e-4 * max(
        1.0, np.abs(spectrum).max()
    )
    assert pairs.converged.all()
    gram = pairs.vectors.T @ pairs.vectors
    assert torch.allclose(gram, torch.eye(k, dtype=dtype), atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.0, 1e-7], ids=["equal", "within 1e-7"])
@pytest.mark.parametrize("copies", [2, 3, 6])
def test_multiplicities_are_found_or_not_called_converged_above_a_bulk(
    copies: int, spread: float, dtype: torch.dtype
) -> None:
    """One Krylov space holds one vector of each eigenspace; the bulk keeps it from closing.

    A pair that is not among the k largest must not be called converged in their place.
    """
    top = 5.0 + spread * np.arange(copies)
    spectrum = np.r_[top, 4.0, 3.0, 2.0, np.linspace(0, 1, 120)]
    A = ls.as_operator(with_spectrum(spectrum), dtype=dtype)
    for seed in range(3):
        pairs = ls.eigenpairs(A, copies, seed=seed)
        if pairs.converged.all():
            assert np.abs(pairs.values.double().numpy() - 5.0).max() <= 5e-4  # tolerance · ‖A‖


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_model_with_many_outputs_has_its_top_eigenvalue_as_often_as_outputs(
    dtype: torch.dtype,
) -> None:
    """With squared error the Hessian is I ⊗ XᵀX: every eigenvalue comes once per output."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    inputs = torch.tensor(x / 16, dtype=torch.float32)
    target = nn.functional.one_hot(torch.tensor(y)).float()
    model = nn.Linear(64, 10)
    truth = torch.linalg.eigvalsh(dense_hessian(model, nn.functional.mse_loss, inputs, target))
    pairs = ls.eigenpairs(ls.Hessian(ls.Problem(model, "mse", (inputs, target), dtype=dtype)), 5)
    assert not pairs.converged.all() or np.allclose(
        pairs.values.double().numpy(), truth.flip(0)[:5].numpy(), rtol=2e-4
    )


@pytest.mark.parametrize("steps", [40, 150])
def test_converged_values_have_no_ghost_copies(steps: int) -> None:
    """Long after the top pairs have converged, no copy of them may come back."""
    A = ls.as_operator(with_spectrum(SPECTRA["gapped"]), dtype=torch.float32)
    pairs = ls.eigenpairs(A, 12, tolerance=1e-12, max_steps=steps)  # never reached in float32
    assert np.allclose(
        pairs.values[:4].double().numpy(), np.sort(SPECTRA["gapped"])[::-1][:4], atol=1e-4
    )
    assert pairs.values[4] <= 1.0 + 1e-4


# --- convergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_too_few_steps_return_values_that_are_not_called_converged(dtype: torch.dtype) -> None:
    spectrum = SPECTRA["gap 1e-3"]
    pairs = ls.eigenpairs(ls.as_operator(with_spectrum(spectrum), dtype=dtype), 2, max_steps=6)
    assert pairs.steps == 6
    assert not pairs.converged.any()
    assert torch.isfinite(pairs.values).all()
    # Ritz values lie within the spectrum and the residual still bounds the error.
    assert spectrum.min() - 1e-5 <= pairs.values.min() <= pairs.values.max() <= 1.001 + 1e-5
    nearest = (pairs.values.double()[:, None] - torch.from_numpy(spectrum)).abs().amin(1)
    assert (nearest <= pairs.residuals.double() + 1e-5).all()


def test_residuals_honour_a_smaller_tolerance() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    loose = ls.eigenpairs(A, 4, tolerance=1e-2)
    tight = ls.eigenpairs(A, 4, tolerance=1e-10)
    assert loose.residuals.max() <= 1e-2 * 20
    assert tight.residuals.max() <= 1e-10 * 20
    assert tight.steps > loose.steps


def test_smallest_eigenvalue_of_an_ill_conditioned_matrix_is_bounded_by_its_residual() -> None:
    """The tolerance is relative to ‖A‖ = 1, so 1e-10 is found to within the residual only."""
    pairs = ls.eigenpairs(
        ls.as_operator(with_spectrum(SPECTRA["condition 1e10"])), 1, which="smallest"
    )
    assert pairs.converged.all()
    assert abs(pairs.values.item() - 1e-10) <= pairs.residuals.item() <= 1e-4


# --- scale, seeds, side effects ------------------------------------------------------------------


def identical(a: Eigenpairs, b: Eigenpairs, factor: float = 1.0) -> bool:
    return (
        torch.equal(a.values * factor, b.values)
        and torch.equal(a.vectors, b.vectors)
        and torch.equal(a.residuals * factor, b.residuals)
        and torch.equal(a.converged, b.converged)
        and a.steps == b.steps
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["network", "rank deficient", "few distinct"])
def test_scaling_by_a_power_of_two_scales_the_answer_bit_for_bit(
    name: str, dtype: torch.dtype
) -> None:
    matrix, factor = with_spectrum(SPECTRA[name]), 2.0**-20
    whole = ls.eigenpairs(ls.as_operator(matrix, dtype=dtype), 4, which="both")
    scaled = ls.eigenpairs(ls.as_operator(matrix * factor, dtype=dtype), 4, which="both")
    assert identical(whole, scaled, factor)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_the_matrix_scales_values_and_residuals(factor: float, dtype: torch.dtype) -> None:
    matrix = with_spectrum(SPECTRA["network"])
    whole = ls.eigenpairs(ls.as_operator(matrix, dtype=dtype), 4, which="both")
    scaled = ls.eigenpairs(ls.as_operator(matrix * factor, dtype=dtype), 4, which="both")
    assert torch.equal(whole.converged, scaled.converged)
    assert abs(whole.steps - scaled.steps) <= 5  # one look at the tridiagonal matrix
    error = (scaled.values / factor - whole.values).abs().max()
    assert error <= 20 * ROUNDING[dtype]


def test_one_seed_means_one_answer() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    first, again, other = (ls.eigenpairs(A, 3, seed=seed) for seed in (7, 7, 8))
    assert identical(first, again)
    assert not torch.equal(first.residuals, other.residuals)
    assert torch.allclose(first.values, other.values, atol=2e-3)


def test_global_random_state_is_untouched() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["few distinct"]))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    ls.eigenpairs(A, 3)
    ls.trace(A)
    ls.diagonal(A)
    ls.spectral_density(A)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_cost_counts_every_product_and_nothing_before() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    A @ torch.ones(A.shape[0], 9, dtype=A.dtype)
    before = A.products
    pairs = ls.eigenpairs(A, 3)
    assert pairs.cost.products == A.products - before == pairs.steps + 1
    assert pairs.cost.gradient_equivalents is None
    assert pairs.cost.seconds > 0


def test_progress_never_passes_its_end() -> None:
    calls: list[tuple[int, int]] = []
    A = ls.as_operator(with_spectrum(SPECTRA["gapped"]))
    ls.eigenpairs(A, 2, progress=lambda done, expected: calls.append((done, expected)))
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
    assert all(done <= expected for done, expected in calls)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 0}, r"k is 0: it must lie between 1 and the order 5"),
        ({"k": 6}, r"k is 6: it must lie between 1 and the order 5"),
        ({"k": 2, "which": "top"}, r"which is 'top': choose 'largest', 'smallest'"),
        ({"k": 3, "max_steps": 2}, r"max_steps is 2: 3 eigenpairs need at least 3 steps"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(
    options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ls.InputError, match=sentence):
        ls.eigenpairs(ls.as_operator(torch.eye(5)), **options)  # type: ignore[arg-type]


def test_product_that_is_not_finite_is_refused() -> None:
    A = ls.as_operator(lambda v: v, shape=(4, 4))
    A.function = lambda block: block * float("nan")  # type: ignore[attr-defined]
    with pytest.raises(ls.UntrustedResult, match="not finite"):
        ls.eigenpairs(A, 1)


@pytest.mark.parametrize(
    ("estimate", "looks"),
    [
        # One look every five steps, and what is measured once at the end.
        (lambda A: ls.eigenpairs(A, 1, tolerance=1e-30, max_steps=40), 40 // 5 + 2),
        (lambda A: ls.spectral_density(A, probes=3, steps=40), 2 * 40 // 5 + 4),
        (lambda A: ls.trace(A, probes=40), 2),
        (lambda A: ls.diagonal(A, probes=40), 2),
    ],
    ids=["eigenpairs", "density", "trace", "diagonal"],
)
def test_numbers_leave_the_device_only_at_looks(estimate, looks, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(search, "look_every", lambda A: 5)  # as on a GPU
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    A.expect(40)
    with HostReads() as reads:
        estimate(A)
    assert reads.count <= looks
