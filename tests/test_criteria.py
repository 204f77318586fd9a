"""Spectral criteria: their definitions, what they depend on, and the well-posed ones beside them."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.fft import dct, idct
from spectra import SPECTRA, with_spectrum
from torch import Tensor

import landscape as ls
from landscape.estimators.criteria import criteria_of
from landscape.estimators.quadrature import Measure

Array = np.ndarray


def with_large_spectrum(eigenvalues: Array) -> ls.Operator:
    """S C Λ Cᵀ S with cosine transform C and random signs S: its eigenvectors are spread out."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(eigenvalues))[:, None]

    def multiply(block: Tensor) -> Tensor:
        there = dct(signs * block.numpy(), axis=0, norm="ortho")
        return torch.from_numpy(signs * idct(eigenvalues[:, None] * there, axis=0, norm="ortho"))

    size = len(eigenvalues)
    return ls.as_operator(lambda V: multiply(V.reshape(size, -1)).view(V.shape), shape=(size, size))


def trained(size: int = 1500) -> Array:
    """Outliers like those of a trained LeNet-5, and a bulk at zero of which two fifths are negative."""
    rng = np.random.default_rng(0)
    outliers = [9.6, 4.54, 4.30, 3.47, 2.9, 2.34, 2.14, 1.86, 1.64, 1.31, -0.27]
    negative = rng.exponential(0.01, 2 * size // 5)
    return np.r_[outliers, -negative, rng.exponential(0.01, size - len(outliers) - len(negative))]


def sum_of_powers(measure: Measure, n: float, sign: int) -> float:
    """Σ (|λ|w)ⁿ over the nodes of one sign."""
    energies = [
        (abs(node) * weight) ** n
        for node, weight in zip(measure.nodes, measure.weights, strict=True)
        if node * sign > 0
    ]
    return math.fsum(energies)


@pytest.mark.parametrize("n", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["network", "indefinite", "few distinct"])
def test_criteria_are_those_of_the_ritz_values_and_weights(name: str, n: float) -> None:
    A = ls.as_operator(with_spectrum(SPECTRA[name]))
    found = ls.criteria(A, n=n, probes=3, steps=40, seed=5)
    ritz = ls.spectral_density(A, probes=3, steps=40, seed=5, reorthogonalize=True).ritz
    ratios = [min(m.nodes) / max(m.nodes) for m in ritz]
    assert found.r_e == pytest.approx(np.mean(np.abs(ratios)))
    assert found.C_t == pytest.approx(np.mean(ratios))
    powers = [sum_of_powers(m, n, -1) / sum_of_powers(m, n, 1) for m in ritz]
    assert found.K_Hn == pytest.approx(np.mean(powers))


def test_splitting_a_node_multiplies_its_sum_by_two_to_the_one_minus_n() -> None:
    """Why K_Hn is no functional of the matrix: two nodes in one place are the same measure."""
    A = ls.as_operator(with_spectrum(SPECTRA["indefinite"]))
    whole = ls.spectral_density(A, probes=1, steps=20).ritz[0]
    split = Measure(*(np.repeat(part, 2) for part in whole))
    split = split._replace(weights=split.weights / 2)
    for n in (0.5, 1.0, 2.0):
        for sign in (-1, 1):
            grown = sum_of_powers(split, n, sign) / sum_of_powers(whole, n, sign)
            assert grown == pytest.approx(2 ** (1 - n))
    # So K_H0.5 rises by √2 where the negative side alone is split, and energies stay.
    negative = sum_of_powers(split, 0.5, -1) / sum_of_powers(whole, 0.5, 1)
    kept = sum_of_powers(whole, 0.5, -1) / sum_of_powers(whole, 0.5, 1)
    assert negative / kept == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_K_H_half_grows_with_the_steps_while_r_e_and_the_energies_stand_still(seed: int) -> None:
    """Seed 0: 0.30, 0.50, 0.58, 0.64 and 0.67 after 20, 50, 100, 200 and 400 steps."""
    A = with_large_spectrum(trained())
    runs = [ls.criteria(A, steps=steps, seed=seed) for steps in (20, 50, 100, 200, 400)]
    K = [run.K_Hn for run in runs]
    assert all(later > 1.04 * earlier for earlier, later in itertools.pairwise(K))
    assert K[-1] > 1.9 * K[0]
    for run in runs:
        assert run.r_e == pytest.approx(0.27 / 9.6, rel=1e-6)
        assert run.C_t == pytest.approx(-0.27 / 9.6, rel=1e-6)
    energies = [run.negative_energy.value for run in runs[1:]]
    assert np.ptp(energies) <= 0.01 * energies[-1]
    masses = [run.negative_mass for run in runs]
    assert max(m.value - m.quadrature_error for m in masses) <= min(
        m.value + m.quadrature_error for m in masses
    )
    additive = [ls.criteria(A, n=1, steps=steps, seed=seed).K_Hn for steps in (50, 200)]
    assert additive[0] == pytest.approx(additive[1], rel=0.01)
    assert additive[1] == pytest.approx(energies[-1] / (1 - energies[-1]), rel=0.01)


def test_K_H_half_depends_on_reorthogonalisation_too() -> None:
    """Ghosts of the outliers, all positive here, count several times: 0.58 becomes 0.51."""
    A = with_large_spectrum(trained())
    with_basis, without = (
        ls.criteria(A, steps=100, reorthogonalize=kept) for kept in (True, False)
    )
    assert without.K_Hn < 0.95 * with_basis.K_Hn
    assert without.r_e == pytest.approx(with_basis.r_e, rel=1e-6)
    assert without.negative_energy.value == pytest.approx(
        with_basis.negative_energy.value, rel=0.01
    )


@pytest.mark.parametrize(
    ("spectrum", "r_e", "C_t", "mainly_positive"),
    [
        ([4.0, 1.0, 0.5, -1.0], 0.25, -0.25, True),
        ([4.0, 1.0, 0.5, -2.5], 0.625, -0.625, False),  # the threshold is −0.6
        ([4.0, 1.0, 0.5, -2.3], 0.575, -0.575, True),
        ([1.0, 0.5, -4.0], 4.0, -4.0, False),
        ([4.0, 1.0, 0.5], 0.125, 0.0, True),  # no negative one
        ([-1.0, -0.5, -4.0], 8.0, -math.inf, False),  # no positive one
        ([0.0, 0.0, 0.0], 0.0, 0.0, True),
    ],
)
def test_spectrum_is_mainly_positive_iff_C_t_is_above_its_threshold(
    spectrum: list[float], r_e: float, C_t: float, mainly_positive: bool
) -> None:
    """A diagonal of binary fractions and signs: an exhausted space, all but exact."""
    found = ls.criteria(ls.as_operator(np.diag(spectrum)))
    assert found.r_e == pytest.approx(r_e, abs=1e-12)
    assert found.C_t == pytest.approx(C_t, abs=1e-12)
    assert found.mainly_positive is mainly_positive


def test_settings_are_part_of_the_result() -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["indefinite"]))
    found = ls.criteria(A)
    pinned = (found.steps, found.probes, found.reorthogonalize, found.deflated, found.n)
    assert pinned == (90, 1, True, 0, 0.5)  # of 100 steps, since the order is 90
    assert "compare it only at 90 steps, 1 probe, 0 deflated eigenvalues, with" in found.note
    assert found.cost.products == 90
    pairs = ls.eigenpairs(A, 2, which="both")
    density = ls.spectral_density(A, probes=2, steps=15, deflate=pairs)
    other = criteria_of(density, n=1)
    pinned = (other.steps, other.probes, other.reorthogonalize, other.deflated, other.n)
    assert pinned == (15, 2, False, 2, 1)
    assert "adds up over nodes" in other.note
    assert other.r_e == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize("n", [0.0, -1.0, math.nan, math.inf])
def test_exponent_that_is_not_positive_is_refused_before_any_product(n: float) -> None:
    A = ls.as_operator(torch.eye(3))
    before = A.products
    with pytest.raises(ls.InputError, match="must be positive, such as 0.5"):
        ls.criteria(A, n=n)
    assert A.products == before
