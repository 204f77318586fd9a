"""What follows from a spectral density without a further product: sums over eigenvalues with intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from landscape.errors import InputError
from landscape.estimators.quadrature import Measure, Tridiagonal
from landscape.estimators.slq import SpectralDensity
from landscape.estimators.smoothing import mass_below
from landscape.results import student_quantile

Array = NDArray[np.float64]
# Sums over the eigenvalues of a measure, one number each, and what is made of them.
Sums = Callable[[Measure], list[float]]
Combine = Callable[[Array], float]
CONFIDENCE = 0.95
DAMPING = 0.01  # the default damping, as a share of the largest |λ|


@dataclass(frozen=True)
class Functional:
    """A number made from a spectrum, and how wrong it may be.

    `standard_error` is over probes, by the jackknife (NaN for one probe). `quadrature_error` is what the
    finite number of Lanczos steps may do: how far the number moved since half, and since three quarters
    of the steps, whichever is more, averaged over probes. That is an estimate and no bound (but for
    `negative_mass`): it says nothing about what fewer than ten steps have not yet seen. From `lower` to
    `upper` reaches the interval of Student's t over probes, widened on both sides by the quadrature
    error.
    """

    value: float
    standard_error: float
    quadrature_error: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Functionals:
    """Functionals of one spectrum with eigenvalues λ_i, i = 1 … P, at one `damping` α.

    `log_determinant` Σ log(λ + α), None where the spectrum reaches −α, as `failures` then says;
    `effective_dimension` Σ λ₊/(λ₊ + α), λ₊ = max(λ, 0); `negative_mass` the share of eigenvalues below
    −`zero`, and `negative_energy` their share of Σ|λ|; `stable_rank` Σ λ² / max λ²; `spectral_entropy`
    −Σ p log p with p = |λ|/Σ|λ|; `moments` Tr Aᵖ/P for p = 1 … 4. `zero` is what cannot be told from zero
    in the precision of A, `confidence` that of the intervals.
    """

    damping: float
    zero: float
    confidence: float
    log_determinant: Functional | None
    effective_dimension: Functional
    negative_mass: Functional
    negative_energy: Functional
    stable_rank: Functional
    spectral_entropy: Functional
    moments: list[Functional]
    failures: list[str] = field(default_factory=list)


def functionals(
    density: SpectralDensity, *, damping: float | None = None, confidence: float = CONFIDENCE
) -> Functionals:
    """Functionals of the spectrum with their errors, from a density's own measures: no new products.

    Args:
        density: of `spectral_density`. Where outliers are large, deflate them there: they are what
            probes disagree about, and with 10 probes the interval of a sum over few of them holds in 90 %
            of all cases rather than 95 %.
        damping: α of log-determinant and effective dimension, in units of the eigenvalues (default: 1 % of
            the largest |λ|; compare results at the same α only).
        confidence: of the intervals.

    Returns:
        The functionals, all in natural logarithms.

    Raises:
        InputError: a damping that is not positive, or a confidence outside (0, 1).

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0])))
        >>> found = ls.functionals(ls.spectral_density(A, probes=2), damping=1.0)
        >>> round(found.effective_dimension.value, 6), round(found.stable_rank.value, 6)
        (2.466667, 1.375)
    """
    if damping is None:
        # A matrix of zeros has no size of its own.
        damping = DAMPING * max(float(abs(m.nodes).max()) for m in density.ritz) or 1.0
    failures, determinant = [], None
    try:
        determinant = log_determinant(density, damping=damping, confidence=confidence)
    except InputError as error:
        if not (damping > 0 and 0 < confidence < 1):
            raise
        failures.append(str(error))
    return Functionals(
        damping=damping,
        zero=density.zero,
        confidence=confidence,
        log_determinant=determinant,
        effective_dimension=effective_dimension(density, damping=damping, confidence=confidence),
        negative_mass=negative_mass(density, confidence=confidence),
        negative_energy=negative_energy(density, confidence=confidence),
        stable_rank=stable_rank(density, confidence=confidence),
        spectral_entropy=spectral_entropy(density, confidence=confidence),
        moments=[moment(density, p, confidence=confidence) for p in (1, 2, 3, 4)],
        failures=failures,
    )


def log_determinant(
    density: SpectralDensity, *, damping: float = 0.0, confidence: float = CONFIDENCE
) -> Functional:
    """log det(A + damping·I) = Σ log(λ + damping) (Ubaru, Chen & Saad 2017, doi:10.1137/16M1104974).

    Raises:
        InputError: the spectrum reaches −damping.
    """
    smallest = min(float(measure.nodes[0]) for measure in density.ritz)
    if not smallest + damping > density.zero:
        raise InputError(
            f"the spectrum reaches {smallest:.4g}, so that A + {damping:.4g}·I has no log-determinant: "
            f"raise the damping above {max(-smallest, 0.0) + density.zero:.4g}"
        )

    def logarithm(measure: Measure) -> list[float]:
        return [float(measure.weights @ np.log(measure.nodes + damping))]

    return _functional(density, logarithm, lambda x: density.order * float(x[0]), confidence)


def effective_dimension(
    density: SpectralDensity, *, damping: float, confidence: float = CONFIDENCE
) -> Functional:
    """Σ λ/(λ + α), the number of directions that the data determine, α = `damping`.

    MacKay 1992, doi:10.1162/neco.1992.4.3.415; Maddox, Benton & Wilson 2020, arXiv:2003.02139. Negative
    eigenvalues count as zeros: λ/(λ + α) has a pole at −α, and no minimum is there for the data to
    determine.

    Raises:
        InputError: the damping is not positive.
    """
    if not (damping > 0 and math.isfinite(damping)):
        raise InputError(
            f"damping is {damping}: it must be positive, in units of the eigenvalues, such as a "
            "weight decay"
        )

    def determined(measure: Measure) -> list[float]:
        positive = np.maximum(measure.nodes, 0.0)
        return [float(measure.weights @ (positive / (positive + damping)))]

    return _functional(density, determined, lambda x: density.order * float(x[0]), confidence)


def negative_mass(density: SpectralDensity, *, confidence: float = CONFIDENCE) -> Functional:
    """Share of the eigenvalues below −zero, see `mass_below`.

    A finite quadrature bounds the share of each probe, so `value` lies half-way between the mean bounds,
    and `quadrature_error` is the half of their distance. Deflated eigenvalues are counted.
    """
    _check(confidence)
    known = float((density.deflated.nodes < -density.zero).sum()) / density.order
    sides = np.array([_sides(probe, density.bulk_mass, -density.zero) for probe in density.bulk])
    mean, error = known + sides.mean(0), _errors_of_means(sides)
    t = student_quantile(confidence, len(sides) - 1)
    return Functional(
        float(mean.mean()),
        float(_errors_of_means(sides.mean(1, keepdims=True))[0]),
        max(float(mean[1] - mean[0]) / 2, 0.0),
        float(np.maximum(mean[0] - t * error[0], 0.0)),
        float(np.minimum(mean[1] + t * error[1], 1.0)),
    )


def negative_energy(density: SpectralDensity, *, confidence: float = CONFIDENCE) -> Functional:
    """Share of the eigenvalues below −zero in Σ|λ|; 0 for a matrix of zeros."""
    zero = density.zero

    def energies(measure: Measure) -> list[float]:
        energy = abs(measure.nodes) * measure.weights
        return [float(energy[measure.nodes < -zero].sum()), float(energy.sum())]

    return _functional(density, energies, lambda x: float(x[0] / x[1]) if x[1] else 0.0, confidence)


def stable_rank(density: SpectralDensity, *, confidence: float = CONFIDENCE) -> Functional:
    """‖A‖²_F / ‖A‖₂² (Rudelson & Vershynin 2007, doi:10.1145/1255443.1255449); 0 for a matrix of zeros.

    The norm is the largest |Ritz value| of all probes; by its residual it may be too small, which is
    added to the quadrature error.
    """
    probe = max(density.ritz, key=lambda measure: float(abs(measure.nodes).max()))
    place = int(abs(probe.nodes).argmax())
    norm, residual = float(abs(probe.nodes[place])), float(probe.residuals[place])
    if not norm:
        return Functional(0.0, 0.0, 0.0, 0.0, 0.0)

    def squares(measure: Measure) -> list[float]:
        return [float(measure.weights @ (measure.nodes / norm) ** 2)]

    return _functional(
        density,
        squares,
        lambda x: density.order * float(x[0]),
        confidence,
        relative=1 - (norm / (norm + residual)) ** 2,
    )


def spectral_entropy(density: SpectralDensity, *, confidence: float = CONFIDENCE) -> Functional:
    """−Σ p log p with p_i = |λ_i|/Σ|λ|: log P where all |λ| are equal, 0 where all but one vanish.

    It is log S − (Σ |λ| log|λ|)/S with S = Σ|λ|. A matrix of zeros has entropy 0.
    """
    scale = max(float(abs(measure.nodes).max()) for measure in density.ritz) or 1.0

    def sums(measure: Measure) -> list[float]:
        size = abs(measure.nodes) / scale
        logarithm = np.log(size, out=np.zeros_like(size), where=size > 0)
        return [float(measure.weights @ size), float(measure.weights @ (size * logarithm))]

    def entropy(x: Array) -> float:
        return float(np.log(density.order * x[0]) - x[1] / x[0]) if x[0] else 0.0

    return _functional(density, sums, entropy, confidence)


def moment(density: SpectralDensity, p: int, *, confidence: float = CONFIDENCE) -> Functional:
    """Tr Aᵖ/P; the quadrature of m steps is exact for p up to 2m − 1 (Golub & Meurant 2010)."""
    return _functional(
        density,
        lambda measure: [float(measure.weights @ measure.nodes**p)],
        lambda x: float(x[0]),
        confidence,
        degree=p,
    )


def _functional(
    density: SpectralDensity,
    sums: Sums,
    combine: Combine,
    confidence: float,
    *,
    degree: float = math.inf,
    relative: float = 0.0,
) -> Functional:
    """Combined means of sums over eigenvalues, with their errors.

    `degree` is that of the summed polynomial, and `relative` a further error of the quadrature, as a share
    of the value.
    """
    _check(confidence)
    x = np.array([sums(measure) for measure in density.ritz])
    value, count = combine(x.mean(0)), len(x)
    error = math.nan
    if count > 1:
        # The jackknife: for a plain mean it is the usual standard error.
        left_out = np.array([combine((x.sum(0) - one) / (count - 1)) for one in x])
        error = math.sqrt((count - 1) * float(left_out.var()))
    quadrature = relative * abs(value)
    open_ended = [probe for probe in density.bulk if not probe.exhausted]
    if open_ended and density.steps == 1 < degree:
        quadrature = math.nan  # nothing to compare with
    elif any(degree > 2 * len(probe.diagonal) - 1 for probe in open_ended):
        quadrature += max(
            float(np.mean([abs(combine(np.array(sums(m))) - combine(y)) for m, y in zip(then, x)]))
            for then in density.earlier
        )
    reach = student_quantile(confidence, count - 1) * error + quadrature
    return Functional(value, error, quadrature, value - reach, value + reach)


def _sides(probe: Tridiagonal, mass: float, x: float) -> tuple[float, float]:
    """Bounds of a probe's mass below x."""
    measure = probe.measure(mass=mass)
    if not probe.exhausted:
        return mass_below(measure, x)
    below = float(measure.weights[measure.nodes < x].sum())
    return below, below


def _errors_of_means(samples: Array) -> Array:
    count = len(samples)
    if count < 2:
        return np.full(samples.shape[1], np.nan)
    error: Array = samples.std(0, ddof=1) / math.sqrt(count)
    return error


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: it must lie between 0 and 1, such as 0.95")
