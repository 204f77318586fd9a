"""Diagonal blocks side by side: exact where they are built, unbiased where they are probed, and their cost."""

import numpy as np
import pytest
import torch
from spectra import SPECTRA, network_like, with_spectrum
from torch import Tensor

import landscape as ls
from landscape.estimators import block_recurrences, blocks
from landscape.estimators.block_eigenvalues import block_eigenvalues
from landscape.estimators.blocks import block_spectra, block_traces, deflated
from landscape.estimators.probes import generator, rademacher
from landscape.estimators.search import CHECK_EVERY

SIZES = (40, 3, 57, 30)


def places(sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    """Scattered positions: nothing may rely on blocks being contiguous."""
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(3))
    return [part.clone() for part in order.split(sizes)]


def network(sizes: tuple[int, ...] = SIZES) -> Tensor:
    return with_spectrum(network_like(sum(sizes)))


def part(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return matrix[rows][:, columns]


def all_norms(matrix: Tensor, chosen: list[Tensor]) -> np.ndarray:
    return np.array([[float(part(matrix, b, c).norm()) for c in chosen] for b in chosen])


def test_built_blocks_are_the_blocks_and_cost_one_product_a_parameter() -> None:
    matrix, chosen = network(), places()
    A = ls.as_operator(matrix)
    A.products = 0
    found = block_spectra(A, chosen, dense_up_to=100)
    assert found.cost.products == A.products == sum(SIZES)
    assert all(found.exact(b) for b in range(4)) and not len(found.shared)
    traces = block_traces(found)
    for b, indices in enumerate(chosen):
        block = part(matrix, indices, indices)
        assert found.dense[b] is not None
        torch.testing.assert_close(found.dense[b], block, rtol=0, atol=1e-14)
        np.testing.assert_allclose(found.ritz[b][0].nodes, torch.linalg.eigvalsh(block), atol=1e-13)
        assert traces.values[b] == pytest.approx(float(block.trace()), abs=1e-12)
    assert traces.total == pytest.approx(float(matrix.trace()), abs=1e-12)
    assert traces.total_error == 0 and not traces.standard_errors.any() and not any(traces.probes)
    np.testing.assert_allclose(found.squares, all_norms(matrix, chosen) ** 2, atol=1e-12)
    assert found.squares.sum() == pytest.approx(float(matrix.norm()) ** 2, rel=1e-13)
    assert not found.squares_error.any()


def test_one_block_is_the_spectral_density() -> None:
    """The same seed gives the same probes, so both recurrences must give the same measures."""
    A = ls.as_operator(with_spectrum(SPECTRA["gapped"]))
    found = block_spectra(A, [torch.arange(120)], probes=4, steps=12, shared_probes=0, seed=5)
    density = ls.spectral_density(A, probes=4, steps=12, seed=5)
    for ours, theirs in zip(found.ritz[0], density.ritz, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12)
    np.testing.assert_allclose(found.own[0], density.first_moments, rtol=1e-13)


def test_quadrature_of_every_block_integrates_polynomials() -> None:
    """Gauss quadrature of A_bb: P Σ w θᵏ = zᵀA_bbᵏz for k ≤ 2m − 1, for the block's own probes."""
    matrix, chosen, steps = network(), places(), 3
    A = ls.as_operator(matrix)
    found = block_spectra(A, chosen, probes=3, steps=steps, shared_probes=4, seed=2)
    source = generator(2)
    rademacher(A, 4, source)  # those that are shared come first
    for b, indices in enumerate(chosen):
        starts = rademacher(A, 3, source, size=len(indices))
        block = part(matrix, indices, indices)
        for z, measure in zip(starts.T, found.ritz[b], strict=True):
            power = z.clone()
            for degree in range(2 * min(steps, len(indices))):
                expected = float(z @ power) / len(z)
                assert measure.weights @ measure.nodes**degree == pytest.approx(expected, rel=1e-9)
                power = block @ power


def test_shared_samples_add_up_to_those_of_the_whole_trace() -> None:
    matrix, chosen = network(), places()
    A = ls.as_operator(matrix)
    found = block_spectra(A, chosen, shared_probes=6, seed=7)
    z = rademacher(A, 6, generator(7))
    np.testing.assert_allclose(found.shared.sum(1), (z * (matrix @ z)).sum(0), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_norms_between_blocks_are_unbiased_with_honest_errors(dtype: torch.dtype) -> None:
    matrix, chosen = network(), places()
    A = ls.as_operator(matrix, dtype=dtype)
    found = block_spectra(A, chosen, probes=1000, steps=1)
    exact = all_norms(matrix, chosen) ** 2
    deviations = (found.squares - exact) / found.squares_error
    # Ten different pairs: the largest of ten normal deviations is below 4 but for one case in 1,500.
    assert np.abs(deviations).max() < 4
    assert (found.squares_error < 0.1 * exact).all()
    np.testing.assert_array_equal(found.squares, found.squares.T)


def test_a_built_block_makes_its_pairs_exact() -> None:
    matrix, chosen = network(), places()
    found = block_spectra(ls.as_operator(matrix), chosen, probes=2, steps=4, dense_up_to=3)
    exact = all_norms(matrix, chosen) ** 2
    np.testing.assert_allclose(found.squares[1], exact[1], rtol=1e-12)
    assert not found.squares_error[1].any() and not found.squares_error[:, 1].any()
    assert found.squares_error[0, 2] > 0 and found.exact(1) and not found.exact(0)


def test_products_are_counted_as_documented() -> None:
    A = ls.as_operator(network())
    found = block_spectra(A, places(), probes=4, steps=10, shared_probes=7, dense_up_to=3)
    assert found.cost.products == 3 + 7 + 3 * 4 * 10
    # A block of three has no more than three steps.
    short = block_spectra(A, places(), probes=4, steps=10, shared_probes=7)
    assert short.cost.products == 7 + 3 * 4 * 10 + 4 * 3


def test_zero_blocks_cost_nothing_when_known_and_little_otherwise() -> None:
    matrix, chosen = network(), places()
    matrix[chosen[2]] = 0
    matrix[:, chosen[2]] = 0
    A = ls.as_operator(matrix)
    for zero, products in (((2,), 0), ((), 3 * CHECK_EVERY)):
        found = block_spectra(A, chosen, probes=3, steps=20, shared_probes=0, zero=zero)
        assert found.cost.products == products + 3 * (20 + 20 + 3)
        assert [measure.nodes.tolist() for measure in found.ritz[2]] in ([[0.0]], [[0.0]] * 3)
        assert not found.squares[2].any() and block_traces(found).values[2] == 0
    known = block_eigenvalues(A, chosen, found.dense, zero=(2,), top=2)
    assert known[2].values == [0, 0, 0] and known[2].complete


def test_a_recurrence_that_ends_early_takes_no_more_products() -> None:
    matrix = torch.eye(80, dtype=torch.float64)
    found = block_spectra(
        ls.as_operator(matrix),
        list(torch.arange(80).split(40)),
        probes=2,
        steps=30,
        shared_probes=0,
    )
    assert found.cost.products == 2 * 2 * CHECK_EVERY
    assert all(measure.nodes.tolist() == pytest.approx([1.0]) for measure in found.ritz[0])


def coupled(strength: float, sizes: tuple[int, ...] = (30, 40)) -> Tensor:
    """Diagonal blocks of a fixed size, and coupling of another between them."""
    matrix = with_spectrum(np.linspace(-1, 1, sum(sizes)))
    first = torch.arange(sizes[0])
    second = torch.arange(sizes[0], sum(sizes))
    scale = torch.full_like(matrix, strength)
    scale[first[:, None], first] = scale[second[:, None], second] = 1
    return matrix * scale


@pytest.mark.parametrize(("strength", "better"), [(0.1, "shared"), (30.0, "own")])
def test_traces_come_from_the_probes_with_the_smaller_error(strength: float, better: str) -> None:
    chosen = list(torch.arange(70).split((30, 40)))
    found = block_spectra(ls.as_operator(coupled(strength)), chosen, probes=8, shared_probes=16)
    traces = block_traces(found)
    for b in range(2):
        samples = found.shared[:, b] if better == "shared" else found.own[b]
        assert traces.probes[b] == len(samples)
        assert traces.values[b] == pytest.approx(samples.mean())
        other = found.own[b] if better == "shared" else found.shared[:, b]
        assert traces.standard_errors[b] < other.std(ddof=1) / len(other) ** 0.5
    # What the blocks share correlates: Σ_c z_bᵀA_bc z_c stands in both traces.
    together = found.shared.sum(1).std(ddof=1) / 16**0.5
    apart = float(np.linalg.norm(traces.standard_errors))
    expected = together if better == "shared" else apart
    assert traces.total_error == pytest.approx(expected) and together != pytest.approx(apart)


@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
def test_errors_of_traces_and_of_their_sum_are_honest(strength: float) -> None:
    """Deviations over standard errors follow Student's t with 19 or 29 degrees of freedom."""
    matrix, chosen = coupled(strength), list(torch.arange(70).split((30, 40)))
    A = ls.as_operator(matrix)
    exact = np.array([float(part(matrix, b, b).trace()) for b in chosen])
    scores = []
    for seed in range(200):
        traces = block_traces(block_spectra(A, chosen, probes=20, steps=1, seed=seed))
        total = (traces.total - exact.sum()) / traces.total_error
        scores.append([*(traces.values - exact) / traces.standard_errors, total])
    table = np.array(scores)
    # Of 200, the mean is off by at most 0.25 (3.5 s.e.), and the variance, 1.1 for t, by a third.
    assert np.abs(table.mean(0)).max() < 0.25
    assert ((table**2).mean(0) > 0.75).all() and ((table**2).mean(0) < 1.5).all()


def test_known_eigenpairs_leave_the_samples_of_the_rest_of_the_block() -> None:
    """zᵀA_bb z less Σ λ((vᵀz)² − 1) is zᵀRz + Σ λ, R being the block without these pairs."""
    matrix, chosen = network(), places()
    A = ls.as_operator(matrix)
    found = block_spectra(A, chosen, probes=3, steps=1, shared_probes=5, dense_up_to=3, seed=4)
    pairs, rests = [], []
    for indices in chosen:
        values, vectors = torch.linalg.eigh(part(matrix, indices, indices))
        pairs.append((values[-2:].tolist(), vectors[:, -2:]))
        rests.append((vectors[:, :-2] * values[:-2]) @ vectors[:, :-2].T)
    after = deflated(found, A, chosen, pairs)
    source = generator(4)
    shared = rademacher(A, 5, source)
    for b, (indices, rest) in enumerate(zip(chosen, rests, strict=True)):
        if found.exact(b):
            np.testing.assert_array_equal(after.shared[:, b], found.shared[:, b])
            continue
        z = rademacher(A, 3, source, size=len(indices))
        expected = (z * (rest @ z)).sum(0) + sum(pairs[b][0])
        np.testing.assert_allclose(after.own[b], expected, rtol=1e-10)
        # Full vectors keep what comes from the other blocks.
        z = shared[indices]
        beside = (z * ((matrix @ shared)[indices] - part(matrix, indices, indices) @ z)).sum(0)
        expected = (z * (rest @ z)).sum(0) + sum(pairs[b][0]) + beside
        np.testing.assert_allclose(after.shared[:, b], expected, rtol=1e-10)
        squares = found.squares[b, b] - sum(value**2 for value in pairs[b][0])
        assert after.left[b] == pytest.approx(max(squares, 0))


def test_deflated_traces_are_honest_and_more_exact() -> None:
    """Outliers hold most of the variance here; any vectors at all leave the mean as it is."""
    matrix, chosen = network(), places()
    A = ls.as_operator(matrix)
    exact = np.array([float(part(matrix, b, b).trace()) for b in chosen])
    dense = [None] * len(chosen)
    pairs = [(own.values, own.vectors) for own in block_eigenvalues(A, chosen, dense, top=2)]
    scores, errors = [], []
    for seed in range(150):
        found = block_spectra(A, chosen, probes=20, steps=1, shared_probes=20, seed=seed)
        before, after = block_traces(found), block_traces(deflated(found, A, chosen, pairs))
        scores.append([*(after.values - exact)[[0, 2, 3]] / after.standard_errors[[0, 2, 3]]])
        errors.append([before.standard_errors, after.standard_errors])
    table, (first, second) = np.array(scores), np.mean(errors, axis=0)
    assert np.abs(table.mean(0)).max() < 0.3  # 3.5 s.e. of the mean of 150
    assert ((table**2).mean(0) > 0.7).all() and ((table**2).mean(0) < 1.6).all()
    assert (second[[0, 2, 3]] < 0.8 * first[[0, 2, 3]]).all()


def test_width_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    A, chosen = ls.as_operator(network()), places()
    wide = block_spectra(A, chosen, probes=4, steps=6, dense_up_to=30)
    for module in (block_recurrences, blocks):
        monkeypatch.setattr(module, "WIDTH", 3)
    narrow = block_spectra(A, chosen, probes=4, steps=6, dense_up_to=30)
    np.testing.assert_allclose(wide.squares, narrow.squares, rtol=1e-12)
    for ours, theirs in zip(wide.ritz, narrow.ritz, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.nodes, other.nodes, atol=1e-10)
    np.testing.assert_allclose(wide.shared, narrow.shared, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dense_up_to", [0, 100])
def test_eigenvalues_of_blocks_lie_within_their_residuals(
    dtype: torch.dtype, dense_up_to: int
) -> None:
    matrix, chosen = network(), places()
    A = ls.as_operator(matrix, dtype=dtype)
    exact = ls.as_operator(matrix.to(dtype).double())
    dense = block_spectra(A, chosen, probes=1, steps=1, dense_up_to=dense_up_to).dense
    for measured in (None, exact) if dtype == torch.float64 else (exact,):
        found = block_eigenvalues(A, chosen, dense, top=3, exact=measured, tolerance=1e-6)
        for indices, pairs in zip(chosen, found, strict=True):
            truth = torch.linalg.eigvalsh(part(matrix.to(dtype).double(), indices, indices)).flip(0)
            wanted = [*truth[:3].tolist(), *truth[3:][-1:].tolist()]
            assert pairs.complete and all(pairs.converged)
            slack = 1e-13 * float(truth.abs().max())
            for value, residual, true in zip(pairs.values, pairs.residuals, wanted, strict=True):
                assert abs(value - true) <= residual + slack


@pytest.mark.parametrize(
    "chosen",
    [
        [torch.arange(3), torch.arange(2, 6)],
        [torch.arange(3), torch.arange(4, 6)],
        [torch.arange(6), torch.arange(0)],
        [],
    ],
    ids=["overlap", "gap", "empty block", "none"],
)
def test_blocks_that_are_no_partition_are_refused(chosen: list[Tensor]) -> None:
    A = ls.as_operator(torch.eye(6))
    with pytest.raises(ls.InputError, match=r"exactly one block|at least one position"):
        block_spectra(A, chosen)


def test_numbers_out_of_range_are_refused() -> None:
    A, chosen = ls.as_operator(torch.eye(6)), [torch.arange(6)]
    for options in ({"probes": 0}, {"steps": 0}, {"shared_probes": 1}, {"shared_probes": -2}):
        with pytest.raises(ls.InputError):
            block_spectra(A, chosen, **options)


def test_a_product_that_is_not_finite_is_refused() -> None:
    A = ls.as_operator(lambda v: v, shape=(6, 6))
    A.function = lambda v: v * torch.nan  # type: ignore[attr-defined]
    for dense_up_to in (0, 6):
        with pytest.raises(ls.UntrustedResult, match="not finite"):
            block_spectra(A, [torch.arange(6)], dense_up_to=dense_up_to)
