"""Criteria that compare the negative with the positive side of a spectrum, as others publish them."""

import math
from dataclasses import dataclass

import numpy as np

from landscape.errors import InputError
from landscape.estimators.functionals import Functional, negative_energy, negative_mass
from landscape.estimators.quadrature import Measure
from landscape.estimators.slq import SpectralDensity, spectral_density
from landscape.numerals import count
from landscape.operators.base import Operator
from landscape.results import Cost, Progress

MAINLY_POSITIVE = -0.6  # the threshold of C_t


@dataclass(frozen=True)
class Criteria:
    """Spectral criteria, with the settings that they depend on.

    `r_e` = |λ_min/λ_max|; `C_t` = (smallest negative λ)/(largest positive λ), and the spectrum is
    `mainly_positive` where it is above −0.6; `K_Hn` = Σ₋ (|λ|w)ⁿ / Σ₊ (λw)ⁿ over the Ritz values λ and
    weights w on both sides of zero; each a mean over `probes`. K_Hn is no property of the matrix but one of
    these settings too, as `note` says; `negative_mass` and `negative_energy` ask the same question of
    the matrix alone, and come with errors. `deflated` counts eigenvalues that stand for themselves.
    """

    r_e: float
    C_t: float
    mainly_positive: bool
    K_Hn: float
    n: float
    steps: int
    probes: int
    reorthogonalize: bool
    deflated: int
    negative_mass: Functional
    negative_energy: Functional
    note: str
    cost: Cost


def criteria(
    A: Operator,
    *,
    n: float = 0.5,
    steps: int = 100,
    probes: int = 1,
    reorthogonalize: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Criteria:
    """The criteria r_e, C_t and K_Hn from a run of their own, whose settings are part of the result.

    Gabdullin 2024, arXiv:2412.10146 (r_e, K_Hn) and 2025, arXiv:2504.17618 (C_t): with stochastic Lanczos
    quadrature of 100 steps and one probe. (λw)ⁿ with n < 1 does not add up over nodes: a node split in
    two equal halves weighs 2¹⁻ⁿ times as much. More steps split the bulk into more nodes, and ghosts, the
    copies of converged Ritz values that appear without reorthogonalisation, split the outliers. Compare
    K_Hn at equal settings only; n = 1 is additive, and K_H1 = e/(1 − e) of the `negative_energy` e of
    each probe.

    Args:
        A: the operator, order P.
        n: the exponent of K_Hn, positive.
        steps, probes, reorthogonalize, seed: of `spectral_density`; the basis takes steps × P numbers
            for every probe.
        progress: called with (products done, products expected).

    Returns:
        The criteria, and well-posed ones beside them.

    Raises:
        InputError: n is not positive, or fewer than one probe or step.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([4.0, 1.0, -1.0, 0.0])))
        >>> found = ls.criteria(A)
        >>> round(found.r_e, 6), round(found.C_t, 6), round(found.K_Hn, 6), found.mainly_positive
        (0.25, -0.25, 0.333333, True)
    """
    _check(n)
    density = spectral_density(
        A,
        probes=probes,
        steps=steps,
        seed=seed,
        reorthogonalize=reorthogonalize,
        progress=progress,
    )
    return criteria_of(density, n=n)


def criteria_of(density: SpectralDensity, *, n: float = 0.5) -> Criteria:
    """The criteria from the measures of a density, without a further product.

    Raises:
        InputError: n is not positive.
    """
    _check(n)
    r_e, C_t, K_Hn = (
        float(np.mean([criterion(measure) for measure in density.ritz]))
        for criterion in (_r_e, _C_t, lambda measure: _K_Hn(measure, n))
    )
    return Criteria(
        r_e=r_e,
        C_t=C_t,
        mainly_positive=C_t > MAINLY_POSITIVE,
        K_Hn=K_Hn,
        n=n,
        steps=density.steps,
        probes=density.probes,
        reorthogonalize=density.reorthogonalize,
        deflated=len(density.deflated.nodes),
        negative_mass=negative_mass(density),
        negative_energy=negative_energy(density),
        note=_note(density, n),
        cost=density.cost,
    )


def _note(density: SpectralDensity, n: float) -> str:
    if n == 1:
        return "K_H1 adds up over nodes: it converges with the number of Lanczos steps"
    basis = "with" if density.reorthogonalize else "without"
    return (
        f"K_H{n:g} changes with the number of Lanczos steps, because (λw)^{n:g} does not add up over "
        f"nodes: compare it only at {count(density.steps, 'step')}, {count(density.probes, 'probe')}, "
        f"{count(len(density.deflated.nodes), 'deflated eigenvalue')}, {basis} reorthogonalisation; "
        "negative_energy and negative_mass belong to the matrix alone"
    )


def _r_e(measure: Measure) -> float:
    """|λ_min/λ_max|."""
    return _ratio(abs(float(measure.nodes[0])), abs(float(measure.nodes[-1])))


def _C_t(measure: Measure) -> float:
    """Smallest negative over largest positive; 0 without a negative, −∞ without a positive one."""
    return -_ratio(max(-float(measure.nodes[0]), 0.0), max(float(measure.nodes[-1]), 0.0))


def _K_Hn(measure: Measure, n: float) -> float:
    """Σ₋ (|λ|w)ⁿ / Σ₊ (λw)ⁿ."""
    energy = (abs(measure.nodes) * measure.weights) ** n
    return _ratio(float(energy[measure.nodes < 0].sum()), float(energy[measure.nodes > 0].sum()))


def _ratio(above: float, below: float) -> float:
    """With 0/0 = 0 for a side that is not there, and ∞ where nothing is positive."""
    return above / below if below else (math.inf if above else 0.0)


def _check(n: float) -> None:
    if not (n > 0 and math.isfinite(n)):
        raise InputError(f"n is {n}: the exponent of K_Hn must be positive, such as 0.5")
