"""Stochastic Lanczos quadrature: each probe's measure, their mean, and its standard error."""

import gc
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from spectra import SPECTRA, small_net, small_net_hessian, with_spectrum
from torch import Tensor

import landscape as ls
from landscape.estimators.lanczos import Eigenpairs
from landscape.estimators.probes import generator, rademacher
from landscape.estimators.slq import SpectralDensity
from landscape.estimators.smoothing import mass_below, smooth
from landscape.results import Cost

DTYPES = (torch.float64, torch.float32)
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6}  # of a product, relative to ‖A‖


def distance(density: SpectralDensity, spectrum: np.ndarray, probes: slice = slice(None)) -> float:
    """Wasserstein-1 distance of the mean of some probes' measures from the exact spectrum."""
    chosen = density.ritz[probes]
    nodes, weights = (np.concatenate([measure[i] for measure in chosen]) for i in (0, 1))
    return float(wasserstein_distance(nodes, spectrum, weights))


def exact_smoothed(spectrum: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    kernel = np.exp(-0.5 * ((grid[:, None] - spectrum) / width) ** 2)
    return kernel.sum(1) / (len(spectrum) * width * math.sqrt(2 * math.pi))


# --- one probe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reorthogonalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_weights_sum_to_one_and_nodes_lie_within_the_spectrum(
    name: str, dtype: torch.dtype, reorthogonalize: bool
) -> None:
    spectrum = SPECTRA[name]
    A = ls.as_operator(with_spectrum(spectrum), dtype=dtype)
    density = ls.spectral_density(A, probes=3, steps=60, reorthogonalize=reorthogonalize)
    slack = 60 * ROUNDING[dtype] * np.abs(spectrum).max()  # rounding of every step
    for nodes, weights, *_ in density.ritz:
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert (weights >= 0).all()
        assert (np.diff(nodes) >= 0).all()
        assert nodes.min() >= spectrum.min() - slack
        assert nodes.max() <= spectrum.max() + slack


@pytest.mark.parametrize(("size", "steps"), [(12, 12), (12, 4), (40, 7), (5, 9)])
def test_quadrature_integrates_polynomials_up_to_twice_the_steps_minus_one(
    size: int, steps: int
) -> None:
    """Gauss quadrature: Σ w θᵏ = zᵀAᵏz / P for k ≤ 2m − 1, and no further."""
    matrix = with_spectrum(np.linspace(-1, 1, size))
    A = ls.as_operator(matrix)
    density = ls.spectral_density(A, probes=3, steps=steps, reorthogonalize=True)
    starts = rademacher(A, 3, generator(0))
    for z, (nodes, weights, *_) in zip(starts.T, density.ritz, strict=True):
        power = z.clone()
        for degree in range(2 * min(steps, size)):
            assert weights @ nodes**degree == pytest.approx(float(z @ power) / size, abs=1e-12)
            power = matrix @ power
        if steps < size:
            beyond = float(z @ power) / size
            assert abs(weights @ nodes ** (2 * steps) - beyond) > 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_reorthogonalisation_ghosts_share_the_weight_of_their_original(
    dtype: torch.dtype,
) -> None:
    matrix = with_spectrum(SPECTRA["gapped"])
    A = ls.as_operator(matrix, dtype=dtype)
    values, vectors = np.linalg.eigh(matrix.numpy())
    starts = rademacher(A, 3, generator(0)).double().numpy()
    density = ls.spectral_density(A, probes=3, steps=100)
    for z, (nodes, weights, *_) in zip(starts.T, density.ritz, strict=True):
        exact = (vectors.T @ z) ** 2 / len(values)
        for outlier in (20.0, 15.0, -7.5):
            near = abs(nodes - outlier) < 1e-3
            assert near.sum() > 1  # there are ghosts
            share = exact[abs(values - outlier) < 1e-3].sum()
            assert weights[near].sum() == pytest.approx(share, rel=1e-3, abs=1e-6)
        # Ghosts cost steps, so the bulk, of width 1, is resolved to a fiftieth at best.
        assert wasserstein_distance(nodes, values, weights, exact) <= 0.02


@pytest.mark.parametrize("reorthogonalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("spectrum", "length"),
    [
        pytest.param(np.zeros(60), 1, id="zero operator"),
        pytest.param(np.full(60, 3.0), 1, id="multiple of the identity"),
        pytest.param(np.r_[2.0, np.zeros(59)], None, id="rank 1"),
        pytest.param(np.r_[5.0, 4.0, -3.0, 2.0, 1.0, np.zeros(55)], None, id="rank 5"),
        pytest.param(np.array([-3.0]), 1, id="order 1"),
        pytest.param(np.array([3.0, -1.0]), None, id="order 2"),
        pytest.param(np.array([3.0, 3.0, -1.0]), None, id="order 3"),
    ],
)
def test_breakdown_leaves_the_exact_measure_of_the_probe(
    spectrum: np.ndarray, length: int | None, dtype: torch.dtype, reorthogonalize: bool
) -> None:
    matrix = with_spectrum(spectrum)
    A = ls.as_operator(matrix, dtype=dtype)
    density = ls.spectral_density(A, probes=4, steps=30, reorthogonalize=reorthogonalize)
    values, vectors = np.linalg.eigh(matrix.numpy())
    starts = rademacher(A, 4, generator(0)).double().numpy()
    size = max(1.0, np.abs(spectrum).max())
    for z, (nodes, weights, *_) in zip(starts.T, density.ritz, strict=True):
        if length is not None:
            assert len(nodes) == length
        assert len(nodes) <= 30
        exact = (vectors.T @ z) ** 2 / len(spectrum)
        assert wasserstein_distance(nodes, values, weights, exact) <= 100 * ROUNDING[dtype] * size
    assert np.isfinite(density.smoothed.values).all()


def test_probes_that_break_down_at_different_steps_do_not_disturb_each_other() -> None:
    """For the matrix of ones a probe of balanced signs is an eigenvector, and most others are not."""
    A = ls.as_operator(torch.ones(8, 8))
    density = ls.spectral_density(A, probes=200, steps=5, reorthogonalize=True)
    lengths = [len(measure.nodes) for measure in density.ritz]
    assert set(lengths) == {1, 2}
    starts = rademacher(A, 200, generator(0)).numpy()
    for z, (nodes, weights, *_) in zip(starts.T, density.ritz, strict=True):
        assert weights @ nodes == pytest.approx(z.sum() ** 2 / 8, abs=1e-12)
        assert weights @ nodes**2 == pytest.approx(z.sum() ** 2, abs=1e-10)


# --- many probes ---------------------------------------------------------------------------------


def net_operator() -> tuple[ls.Operator, np.ndarray]:
    hessian = small_net_hessian()
    return ls.as_operator(hessian), np.linalg.eigvalsh(hessian.numpy())


def prescribed(name: str) -> Callable[[], tuple[ls.Operator, np.ndarray]]:
    return lambda: (ls.as_operator(with_spectrum(SPECTRA[name])), SPECTRA[name])


@pytest.mark.parametrize(
    "source",
    [net_operator, prescribed("network"), prescribed("indefinite")],
    ids=["trained net", "network", "indefinite"],
)
def test_distance_to_the_exact_spectrum_shrinks_as_one_over_root_probes(
    source: Callable[[], tuple[ls.Operator, np.ndarray]],
) -> None:
    A, spectrum = source()
    # 512 independent probes, in groups of 4, of 32 and of 256.
    density = ls.spectral_density(A, probes=512, steps=60, reorthogonalize=True)
    mean = [
        np.mean([distance(density, spectrum, slice(i, i + n)) for i in range(0, 512, n)])
        for n in (4, 32, 256)
    ]
    # √8 = 2.83; two groups of 256 scatter by about a third of their mean.
    assert 2.0 <= mean[0] / mean[1] <= 4.0
    assert 4.0 <= mean[0] / mean[2] <= 16.0


def test_density_of_the_net_through_products_matches_that_of_its_dense_hessian() -> None:
    model, inputs, target = small_net()
    problem = ls.Problem(model, "cross_entropy", (inputs, target), batch_size=64)
    A, spectrum = net_operator()
    through_products = ls.spectral_density(ls.Hessian(problem), probes=4, steps=40)
    dense = ls.spectral_density(A, probes=4, steps=40)
    for (n1, w1, *_), (n2, w2, *_) in zip(through_products.ritz, dense.ritz, strict=True):
        # float32 and float64 make different ghosts, see above
        assert wasserstein_distance(n1, n2, w1, w2) <= 1e-3 * np.ptp(spectrum)


@pytest.mark.parametrize("steps", [3, 12])
def test_a_block_of_probes_equals_its_probes_one_by_one(steps: int) -> None:
    matrix = with_spectrum(SPECTRA["network"])
    A = ls.as_operator(matrix)
    block = ls.spectral_density(A, probes=4, steps=steps)
    starts = rademacher(A, 4, generator(0))
    assert torch.equal(starts[:, :2], rademacher(A, 2, generator(0)))
    for probes in (1, 2, 3):
        fewer = ls.spectral_density(A, probes=probes, steps=steps)
        for i in range(probes):
            # a product of a block and of a vector round differently
            for part, other in zip(block.ritz[i], fewer.ritz[i], strict=True):
                assert np.allclose(part, other, atol=1e-9)


def test_first_moments_are_the_hutchinson_samples_of_the_same_seed() -> None:
    matrix = with_spectrum(SPECTRA["network"])
    A = ls.as_operator(matrix)
    starts = rademacher(A, 30, generator(5))
    direct = (starts * (matrix @ starts)).sum(0).numpy()
    density = ls.spectral_density(A, probes=30, steps=5, seed=5)
    assert np.allclose(density.first_moments, direct, rtol=1e-12)
    assert ls.trace(A, probes=30, seed=5).value == pytest.approx(density.first_moments.mean())


@pytest.mark.parametrize(
    ("source", "seeds"),
    [(net_operator, 30), (prescribed("network"), 20)],
    ids=["trained net", "network"],
)
def test_pointwise_standard_error_covers_the_exact_smoothed_density(
    source: Callable[[], tuple[ls.Operator, np.ndarray]], seeds: int
) -> None:
    A, spectrum = source()
    covered, ratios = [], []
    for seed in range(seeds):
        smooth_density = ls.spectral_density(
            A, probes=30, steps=A.shape[0], reorthogonalize=True, seed=seed
        ).smoothed
        exact = exact_smoothed(spectrum, smooth_density.grid, smooth_density.width)
        shown = exact > 1e-3 * exact.max()
        error = np.abs(smooth_density.values - exact)[shown]
        covered.append((error <= 2 * smooth_density.standard_error[shown]).mean())
        ratios.append(np.mean(smooth_density.standard_error[shown]) / np.mean(error))
    # 95 % for normal samples; squared projections are skewed, which costs a few per cent.
    assert 0.88 <= np.mean(covered) <= 0.99
    # E|normal| = 0.8 standard deviations: the band is neither far too narrow nor too wide.
    assert 0.9 <= np.mean(ratios) <= 1.8


# --- smoothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["linear", "symlog"])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize("name", SPECTRA)
def test_smoothed_density_integrates_to_one(name: str, steps: int, axis: str) -> None:
    A = ls.as_operator(with_spectrum(SPECTRA[name]))
    density = ls.spectral_density(A, probes=3, steps=steps)
    smoothed = smooth(density.ritz, axis=axis)  # type: ignore[arg-type]
    # By the trapezoidal rule, as a reader of the saved result would.
    assert np.trapezoid(smoothed.values, smoothed.grid) == pytest.approx(1, abs=1e-3)
    assert (smoothed.values >= 0).all()
    assert (np.diff(smoothed.grid) > 0).all()
    assert (smoothed.linear_threshold is None) == (axis == "linear")


@pytest.mark.parametrize("axis", ["linear", "symlog"])
@pytest.mark.parametrize("spectrum", [np.zeros(9), np.full(9, 4.0), np.array([-2.0])])
def test_density_of_a_single_repeated_eigenvalue_integrates_to_one(
    spectrum: np.ndarray, axis: str
) -> None:
    density = ls.spectral_density(ls.as_operator(with_spectrum(spectrum)), probes=2, steps=5)
    smoothed = smooth(density.ritz, axis=axis)  # type: ignore[arg-type]
    assert np.trapezoid(smoothed.values, smoothed.grid) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("axis", ["linear", "symlog"])
def test_standard_error_is_that_of_a_mean_and_nan_for_one_probe(axis: str) -> None:
    density = ls.spectral_density(ls.as_operator(with_spectrum(SPECTRA["network"])), probes=6)
    bare = [(nodes, weights) for nodes, weights, *_ in density.ritz]  # no residuals
    whole = smooth(bare, axis=axis)  # type: ignore[arg-type]
    grid, s, nodes = whole.grid, whole.linear_threshold, np.concatenate([n for n, _ in bare])
    span = np.ptp(nodes) if s is None else np.ptp(np.arcsinh(nodes / s))
    assert whole.width == pytest.approx(0.005 * span)
    each = []
    for at, w in bare:
        sigma = whole.width * (np.ones_like(at) if s is None else np.sqrt(at**2 + s**2))
        bells = np.exp(-0.5 * ((grid[:, None] - at) / sigma) ** 2)
        each.append(bells @ (w / (sigma * math.sqrt(2 * math.pi))))
    assert np.allclose(np.mean(each, 0), whole.values, rtol=1e-9)
    assert np.allclose(np.std(each, 0, ddof=1) / math.sqrt(6), whole.standard_error, rtol=1e-9)
    alone = smooth(bare[:1], axis=axis)  # type: ignore[arg-type]
    assert np.isnan(alone.standard_error).all()
    assert np.isfinite(alone.values).all()


def test_residuals_of_ritz_pairs_are_those_of_the_recurrence() -> None:
    """A node's residual bounds its distance to a true eigenvalue; at full length it vanishes."""
    spectrum = SPECTRA["network"]
    A = ls.as_operator(with_spectrum(spectrum))
    for measure in ls.spectral_density(A, probes=3, steps=25, reorthogonalize=True).ritz:
        nearest = np.abs(measure.nodes[:, None] - spectrum).min(1)
        assert (nearest <= measure.residuals + 1e-12).all()
        assert measure.residuals.max() > 1e-3
    for measure in ls.spectral_density(A, probes=3, steps=500, reorthogonalize=True).ritz:
        assert measure.residuals.max() <= 1e-10


# --- scale, memory, cost, errors -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["network", "rank deficient", "few distinct"])
@pytest.mark.parametrize("reorthogonalize", [False, True])
def test_scaling_by_a_power_of_two_scales_the_nodes_bit_for_bit(
    name: str, dtype: torch.dtype, reorthogonalize: bool
) -> None:
    matrix, factor = with_spectrum(SPECTRA[name]), 2.0**-20
    options = {"probes": 3, "steps": 30, "reorthogonalize": reorthogonalize}
    whole = ls.spectral_density(ls.as_operator(matrix, dtype=dtype), **options)
    scaled = ls.spectral_density(ls.as_operator(matrix * factor, dtype=dtype), **options)
    for (n1, w1, *_), (n2, w2, *_) in zip(whole.ritz, scaled.ritz, strict=True):
        assert np.array_equal(n1 * factor, n2)
        assert np.array_equal(w1, w2)
    assert np.allclose(whole.smoothed.grid * factor, scaled.smoothed.grid, rtol=1e-12)
    assert np.allclose(whole.smoothed.values / factor, scaled.smoothed.values, rtol=1e-9)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_the_matrix_scales_the_measure(factor: float, dtype: torch.dtype) -> None:
    matrix = with_spectrum(SPECTRA["network"])
    whole = ls.spectral_density(ls.as_operator(matrix, dtype=dtype), probes=3, steps=40)
    scaled = ls.spectral_density(ls.as_operator(matrix * factor, dtype=dtype), probes=3, steps=40)
    for (n1, w1, *_), (n2, w2, *_) in zip(whole.ritz, scaled.ritz, strict=True):
        assert len(n1) == len(n2)
        # other rounding makes other ghosts
        assert wasserstein_distance(n1, n2 / factor, w1, w2) <= 1e-3 * 20
    assert np.allclose(scaled.first_moments / factor, whole.first_moments, rtol=1e-4)


class Watched(ls.Operator):
    """A diagonal matrix that notes, at every product, how many bytes of tensors are alive."""

    def __init__(self, size: int, looks: set[int]) -> None:
        super().__init__(size, torch.float64, torch.device("cpu"))
        self.entries = torch.linspace(0, 1, size, dtype=torch.float64)
        self.looks, self.calls, self.alive = looks, 0, [0]

    def _multiply(self, block: Tensor) -> Tensor:
        self.calls += 1
        if self.calls in self.looks:
            gc.collect()
            storages = {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in gc.get_objects()
                if type(t) is Tensor and t.numel() >= self.shape[0]
            }
            self.alive.append(sum(storages.values()))
        return self.entries[:, None] * block


def bytes_alive(steps: int, *, reorthogonalize: bool) -> int:
    """Largest number of bytes in tensors of length P or more, at products early, middle and late."""
    A = Watched(20_011, {3, steps // 2, steps})
    ls.spectral_density(A, probes=2, steps=steps, reorthogonalize=reorthogonalize)
    assert A.calls == steps
    return max(A.alive)


def test_memory_without_reorthogonalisation_does_not_grow_with_steps() -> None:
    few, many = (bytes_alive(steps, reorthogonalize=False) for steps in (8, 60))
    block = 2 * 20_011 * 8
    assert many <= few + block // 2
    # The instrument sees a basis where there is one.
    assert bytes_alive(60, reorthogonalize=True) >= few + 50 * block


def test_cost_counts_one_product_per_probe_and_step() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    assert ls.spectral_density(A, probes=7, steps=11).cost.products == 77
    A = ls.as_operator(torch.eye(30))  # done after one step, which is seen after five
    assert ls.spectral_density(A, probes=7, steps=11).cost.products == 35


def test_a_function_may_return_the_same_tensor_every_time() -> None:
    matrix = with_spectrum(SPECTRA["network"])
    answer = torch.empty(len(matrix), 2, dtype=torch.float64)
    A = ls.as_operator(lambda V: torch.mm(matrix, V, out=answer), shape=tuple(matrix.shape))
    again, plain = (
        ls.spectral_density(op, probes=2, steps=9) for op in (A, ls.as_operator(matrix))
    )
    for one, two in zip(again.ritz, plain.ritz, strict=True):
        assert np.allclose(one.nodes, two.nodes, rtol=0, atol=1e-12)


def test_one_seed_means_one_answer() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    first, again, other = (ls.spectral_density(A, probes=2, steps=9, seed=s) for s in (3, 3, 4))
    for one, two, three in zip(first.ritz, again.ritz, other.ritz, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
        assert not np.array_equal(one.nodes, three.nodes)


@pytest.mark.parametrize("options", [{"probes": 0}, {"steps": 0}, {"probes": -3}])
def test_no_probes_or_no_steps_are_refused_in_a_sentence(options: dict[str, int]) -> None:
    with pytest.raises(ls.InputError, match="must both be at least 1"):
        ls.spectral_density(ls.as_operator(torch.eye(3)), **options)


# Shares of eigenvalues


def test_bounds_of_the_share_below_hold_on_every_probe_and_tighten_with_steps() -> None:
    """The probe's own measure, not the spectrum's, is what Chebyshev–Markov–Stieltjes bounds hold for."""
    eigenvalues = np.concatenate([np.linspace(-1, 0.5, 90), [3.0, 4.0, 9.0]])
    A = ls.as_operator(np.diag(eigenvalues))
    exact = ls.spectral_density(A, probes=4, steps=93, reorthogonalize=True).ritz
    widths = []
    for steps in (2, 8, 30, 60):
        few = ls.spectral_density(A, probes=4, steps=steps, reorthogonalize=True).ritz
        for x in (-0.7, -0.1, 0.0, 0.3, 2.0, 3.5):
            for measure, whole in zip(few, exact, strict=True):
                lower, upper = mass_below(measure[:2], x)
                share = whole.weights[whole.nodes < x].sum()
                assert lower - 1e-9 <= share <= upper + 1e-9
                if x == 0.0:
                    widths.append((steps, upper - lower))
    mean = [np.mean([w for n, w in widths if n == steps]) for steps in (2, 8, 30, 60)]
    assert mean == sorted(mean, reverse=True) and mean[-1] < 0.1


def test_positive_semidefinite_matrices_have_no_negative_share() -> None:
    """Half of the weight at zero would count as negative if nodes were spread over both signs."""
    rows = torch.randn(20, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = ls.spectrum(ls.as_operator(rows.T @ rows), probes=3, steps=12)
    assert (result.negative_mass.lower, result.negative_mass.upper) == (0.0, 0.0)


def test_a_width_that_no_grid_can_show_is_refused() -> None:
    A = ls.as_operator(np.diag(np.arange(1.0, 30.0)))
    assert len(ls.spectral_density(A, width=5e-4).grid) > 1024
    for width in (0.0, -1.0, float("nan"), 1e-7):
        with pytest.raises(ls.InputError, match="smoothing width"):
            ls.spectral_density(A, width=width)


# --- automatic steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("reorthogonalize", [False, True])
@pytest.mark.parametrize("name", ["indefinite", "network", "gap 1e-3"])
def test_automatic_steps_end_at_the_first_look_within_the_tolerance(
    name: str, reorthogonalize: bool
) -> None:
    """Compared with fixed runs and SciPy's distance; more than 50 steps make a kept basis grow."""
    spectrum = SPECTRA[name]
    A = ls.as_operator(with_spectrum(spectrum))
    options = {"probes": 4, "reorthogonalize": reorthogonalize}
    for tolerance in (0.05, 0.01):
        found = ls.spectral_density(A, steps="auto", tolerance=tolerance, **options)
        seen = []
        for steps in range(5, found.steps + 1, 5):
            measures = ls.spectral_density(A, steps=steps, **options).ritz
            if seen:
                apart = [
                    wasserstein_distance(n1, n2, w1, w2)
                    for (n1, w1, _), (n2, w2, _) in zip(seen[-1][1], measures, strict=True)
                ]
                scale = np.mean([weights @ abs(nodes) for nodes, weights, _ in measures])
                seen.append((np.mean(apart) / scale, measures))
            else:
                seen.append((math.inf, measures))
        assert [distance <= tolerance for distance, _ in seen] == [False] * (len(seen) - 1) + [True]
        assert found.distance == pytest.approx(seen[-1][0], rel=1e-9)
        assert found.converged is True
        assert found.cost.products == 4 * found.steps
        for one, two in zip(found.ritz, seen[-1][1], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("reorthogonalize", [False, True])
@pytest.mark.parametrize("name", SPECTRA)
def test_last_distance_predicts_the_distance_to_the_exact_measure(
    name: str, reorthogonalize: bool
) -> None:
    """Measured: 0.3 to 1.0 times the last distance, for spectra of every kind."""
    spectrum = SPECTRA[name]
    matrix = with_spectrum(spectrum)
    values, vectors = np.linalg.eigh(matrix.numpy())
    A = ls.as_operator(matrix)
    starts = rademacher(A, 5, generator(0)).numpy()
    for tolerance in (0.1, 0.02):
        found = ls.spectral_density(
            A, probes=5, steps="auto", tolerance=tolerance, reorthogonalize=reorthogonalize
        )
        assert found.converged is True
        true = [
            wasserstein_distance(nodes, values, weights, (vectors.T @ z) ** 2 / len(values))
            for z, (nodes, weights, _) in zip(starts.T, found.ritz, strict=True)
        ]
        assert np.mean(true) / np.abs(spectrum).mean() <= 1.2 * found.distance + 1e-12


def test_steps_that_run_out_are_said_and_exhausted_spaces_are_exact() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["indefinite"]))
    short = ls.spectral_density(A, steps="auto", tolerance=1e-3, max_steps=23)
    assert (short.steps, short.converged) == (23, False)
    assert short.distance > 1e-3
    assert ls.spectral_density(A, steps=23).converged is None
    assert math.isnan(ls.spectral_density(A, steps=5).distance)  # nothing to compare with
    few = ls.as_operator(with_spectrum(SPECTRA["few distinct"]))
    done = ls.spectral_density(few, steps="auto", tolerance=1e-9, reorthogonalize=True)
    assert (done.steps, done.distance, done.converged) == (3, 0.0, True)


def test_automatic_steps_do_not_depend_on_the_scale() -> None:
    matrix = with_spectrum(SPECTRA["network"])
    whole, scaled = (
        ls.spectral_density(ls.as_operator(matrix * factor), steps="auto", probes=3)
        for factor in (1.0, 2.0**-20)
    )
    assert (whole.steps, whole.distance) == (scaled.steps, scaled.distance)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_tolerance_that_is_not_positive_is_refused(tolerance: float) -> None:
    with pytest.raises(ls.InputError, match="must be positive, for example 0.02"):
        ls.spectral_density(ls.as_operator(torch.eye(3)), steps="auto", tolerance=tolerance)


# --- deflated eigenpairs -------------------------------------------------------------------------


def pairs_of(matrix: Tensor, which: slice, *, turned: float = 0.0) -> Eigenpairs:
    """Eigenpairs by a dense method, all said to have converged; `turned` mixes in other eigenvectors."""
    vectors = torch.linalg.eigh(matrix).eigenvectors
    if turned:
        skew = torch.from_numpy(np.random.default_rng(1).standard_normal(matrix.shape))
        vectors = vectors @ torch.linalg.matrix_exp(turned * (skew - skew.T))
    vectors = vectors[:, which]
    values = (vectors * (matrix @ vectors)).sum(0)
    residuals = (matrix @ vectors - vectors * values).norm(dim=0)
    converged = torch.ones(len(values), dtype=torch.bool)
    cost = Cost(0, None, 0.0, 0)
    gaps = torch.full_like(values, torch.inf)
    return Eigenpairs(values, vectors, residuals, converged, gaps, True, 0.0, 1.0, 0, (), cost)


@pytest.mark.parametrize("dtype", DTYPES)
def test_deflated_eigenvalues_are_atoms_and_leave_no_ghosts(dtype: torch.dtype) -> None:
    """100 steps without reorthogonalisation make several copies of each outlier that is not deflated."""
    spectrum = SPECTRA["gapped"]
    A = ls.as_operator(with_spectrum(spectrum), dtype=dtype)
    pairs = ls.eigenpairs(A, 6, which="magnitude", tolerance=1e-5)
    density = ls.spectral_density(A, probes=3, steps=100, deflate=pairs)
    for nodes, weights, _ in density.ritz:
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        for outlier in spectrum[:6]:
            near = abs(nodes - outlier) <= 1e-3
            assert near.sum() == 1
            assert weights[near].item() == pytest.approx(1 / 120)
        rest = nodes[abs(nodes) < 5]
        assert rest.min() >= -1e-4 and rest.max() <= 1 + 1e-4
        assert len(rest) >= 50
    assert density.cost.products == 300
    assert np.allclose(
        density.first_moments, [120 * (m.weights @ m.nodes) for m in density.ritz], rtol=1e-5
    )


def test_deflated_probes_are_unbiased_and_projected_signs_would_not_be() -> None:
    """All 2⁴ sign vectors: normalised after the projection they are biased, otherwise noisy."""
    matrix = with_spectrum([3.0, 4.0, -3.0, 0.5], seed=1)
    values, vectors = torch.linalg.eigh(matrix)
    pairs = pairs_of(matrix, slice(2, 4))
    probes = 4000
    density = ls.spectral_density(
        ls.as_operator(matrix), probes=probes, steps=3, deflate=pairs, reorthogonalize=True
    )
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    projected = (signs @ vectors[:, :2]) ** 2  # squared components in the complement
    lengths = projected.sum(1)
    functions = [lambda x, p=p: x**p for p in (1, 2, 3, 4)] + [lambda x: np.log(x + 3.5)]
    biased = 0
    for f in functions:
        true = float(f(values.numpy()).sum())
        samples = np.array([4 * (m.weights @ f(m.nodes)) for m in density.ritz])
        error = samples.std(ddof=1) / math.sqrt(probes)
        assert abs(samples.mean() - true) <= 4 * error
        bulk, atoms = torch.from_numpy(f(values[:2].numpy())), float(f(values[2:].numpy()).sum())
        raw = projected @ bulk + atoms
        assert raw.mean().item() == pytest.approx(true, abs=1e-12)
        normalised = 2 * (projected @ bulk) / lengths + atoms
        biased += abs(normalised.mean().item() - true) > 8 * error
    assert biased == len(functions)
    assert lengths.std() > 0.3  # so even the trace of the identity would have an error


def test_variance_of_deflated_samples_is_that_of_the_sphere() -> None:
    """Var = 2/(n + 2) · (n‖B‖² − tr(B)²) for uniform directions in n dimensions, times n²/n²."""
    spectrum = np.sort(SPECTRA["network"])
    matrix = with_spectrum(spectrum)
    density = ls.spectral_density(
        ls.as_operator(matrix), probes=3000, steps=1, deflate=pairs_of(matrix, slice(-9, None))
    )
    bulk, n = spectrum[:-9], len(spectrum) - 9
    expected = 2 / (n + 2) * (n * (bulk**2).sum() - bulk.sum() ** 2)
    # The variance of 3000 samples scatters by √(2/3000) = 2.6 %, more for tails heavier than normal.
    assert density.first_moments.var(ddof=1) == pytest.approx(expected, rel=0.15)
    plain = ls.spectral_density(ls.as_operator(matrix), probes=3000, steps=1)
    assert plain.first_moments.var(ddof=1) >= 500 * expected


def test_inexact_pairs_change_sums_in_second_order_of_their_residuals() -> None:
    """With a complement of one dimension nothing is random."""
    matrix = with_spectrum([5.0, 3.0, 1.0, -2.0, 0.5, 0.2])
    errors, residuals = [], []
    for turned in (1e-2, 5e-3):
        pairs = pairs_of(matrix, slice(0, 5), turned=turned)
        density = ls.spectral_density(ls.as_operator(matrix), probes=1, deflate=pairs)
        nodes, weights, _ = density.ritz[0]
        values = torch.linalg.eigvalsh(matrix).numpy()
        errors.append(abs(6 * (weights @ np.exp(nodes)) - np.exp(values).sum()))
        residuals.append(float((pairs.residuals**2).sum()))
        assert density.first_moments[0] == pytest.approx(values.sum(), abs=1e-12)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[0] <= np.exp(5.0) * residuals[0]


def test_everything_deflated_needs_no_product() -> None:
    spectrum = np.array([3.0, 1.0, -2.0])
    matrix = with_spectrum(spectrum)
    density = ls.spectral_density(
        ls.as_operator(matrix), probes=2, steps="auto", deflate=pairs_of(matrix, slice(0, 3))
    )
    assert (density.cost.products, density.steps, density.distance) == (0, 0, 0.0)
    for nodes, weights, _ in density.ritz:
        assert np.allclose(nodes, np.sort(spectrum)) and np.allclose(weights, 1 / 3)
    assert np.trapezoid(density.values, density.grid) == pytest.approx(1, abs=1e-3)


def test_distance_of_deflated_measures_is_that_of_the_whole() -> None:
    matrix = with_spectrum(SPECTRA["network"])
    options = {"probes": 3, "deflate": pairs_of(matrix, slice(-9, None))}
    found, before = (
        ls.spectral_density(ls.as_operator(matrix), steps=steps, **options) for steps in (20, 15)
    )
    apart = [
        wasserstein_distance(n1, n2, w1, w2)
        for (n1, w1, _), (n2, w2, _) in zip(found.ritz, before.ritz, strict=True)
    ]
    size = np.mean([weights @ abs(nodes) for nodes, weights, _ in found.ritz])
    assert found.distance == pytest.approx(np.mean(apart) / size, rel=1e-9)


def test_only_converged_pairs_of_the_same_size_are_deflated() -> None:
    matrix = with_spectrum(SPECTRA["network"])
    A = ls.as_operator(matrix)
    pairs = pairs_of(matrix, slice(-3, None))
    pairs.converged[1] = False
    density = ls.spectral_density(A, probes=2, steps=60, deflate=pairs)
    assert np.allclose(density.deflated.nodes, pairs.values[[0, 2]])
    for nodes, *_ in density.ritz:
        assert np.abs(nodes - pairs.values[1].item()).min() <= 1e-9  # left to the quadrature
    with pytest.raises(ls.InputError, match="length 130, but the operator is of order 4"):
        ls.spectral_density(ls.as_operator(torch.eye(4)), deflate=pairs)
