"""What does the curvature of this loss look like: density, leading eigenvalues, trace."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from torch import Tensor

from landscape.analyses.failures import not_complete, not_converged
from landscape.analyses.operators import in_float64, operator_of, standing
from landscape.analyses.sampling import GROUPS, Sampling, sampling_of
from landscape.checkpoint import stages
from landscape.errors import InputError
from landscape.estimators.criteria import Criteria, criteria_of
from landscape.estimators.functionals import Functional, Functionals, functionals
from landscape.estimators.lanczos import (
    Eigenpairs,
    End,
    checked_limit,
    extreme_eigenpairs,
    remeasure,
)
from landscape.estimators.quadrature import Measure
from landscape.estimators.slq import STEPS, SpectralDensity, checked_steps, spectral_density
from landscape.estimators.smoothing import SmoothDensity
from landscape.operators.base import Operator
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import SPECTRUM_SCHEMA, Cost, Measured, provenance
from landscape.saved import NOT_SAVED, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Phase = Literal["density", "eigenvalues"]


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue; a true one lies within `residual` = ‖Av − λv‖ of it."""

    value: float
    residual: float
    converged: bool


@dataclass(frozen=True)
class Bounds:
    """A number lies between these: 95 % intervals of Student's t over probes around its own bounds."""

    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class Spectrum(Result, schema=SPECTRUM_SCHEMA):
    """The spectrum of a curvature matrix, with the error, cost and provenance of every part.

    `eigenvalues` are the largest, largest first, and `smallest_eigenvalue` the other end.
    `negative_mass` bounds the share of eigenvalues below −`zero`, `negative_energy` is their share of
    Σ|λ|; smaller values cannot be told from zero in the working precision. `density` integrates to 1 over its
    grid; `ritz` holds the quadrature of every probe, in which the eigenvalues that were found are atoms of
    mass 1/P. `functionals` and `criteria` are made from it (None in files of earlier versions).
    `eigenvectors`, of shape (P, number of eigenvalues), are not saved. `failures` lists, in words, what
    could not be trusted.
    `sampling` is the error that comes from the choice of samples, of the eigenvalues and the smallest one
    (None for an operator without samples, and in older files); its cost is not in `cost`.
    """

    operator: str
    parameters: int
    loss: float | None
    gradient_norm: float | None
    eigenvalues: list[Eigenvalue]
    smallest_eigenvalue: Eigenvalue
    trace: Measured
    negative_mass: Bounds
    negative_energy: Measured
    zero: float
    density: SmoothDensity
    ritz: list[Measure]
    failures: list[str]
    cost: Cost
    provenance: dict[str, Any]
    functionals: Functionals | None = None
    criteria: Criteria | None = None
    sampling: Sampling | None = None
    eigenvectors: Tensor | None = field(default=None, repr=False, metadata=NOT_SAVED)

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """Draw the density; see `landscape.plots.spectrum.plot_spectrum`."""
        from landscape.plots.spectrum import plot_spectrum

        return plot_spectrum(self.to_dict(), path, **options)


def spectrum(
    problem: Problem | Operator,
    *,
    operator: str = "hessian",
    top: int = 5,
    probes: int = 10,
    steps: int | Literal["auto"] = STEPS,
    tolerance: float = 1e-4,
    max_steps: int | None = None,
    samples: int | None = None,
    groups: int = GROUPS,
    population: int | None = None,
    proportional: bool | None = None,
    seed: int = 0,
    progress: Callable[[Phase, int, int], None] | None = None,
    command: str | None = None,
    resume: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **execution: Unpack[Execution],
) -> Spectrum:
    """Eigenvalue density, leading eigenvalues, trace and functionals of a curvature matrix.

    The eigenpairs come first: those that have converged are deflated, so that the probes of density and
    trace need not agree about the outliers. Those of a model in float32 are measured once more in
    float64, by double backward, so that their residuals include all rounding.

    Args:
        problem: the loss, or any operator.
        operator: which matrix of the problem: "hessian" (default), "gauss-newton", "fisher",
            "empirical-fisher" or "gradient-covariance".
        top: number of largest eigenvalues; the smallest one is always computed too.
        probes, steps: of stochastic Lanczos quadrature, see `spectral_density`; the trace comes from the
            same probes.
        tolerance, max_steps: of the eigenvalues, see `eigenpairs`.
        samples: targets drawn per term for "fisher" (default: the exact expectation).
        groups, population, proportional: for the error that comes from the choice of samples, see
            `sampling_error`; it is left out with groups=0, and takes a loaded problem's `limit` as
            proportional.
        seed: of all probes and starting vectors.
        progress: called with (phase, products done, products expected).
        command: the command line, for provenance.
        resume: a file that keeps the state, so that the same call goes on after a kill, to the same bits;
            see `Checkpoint`. It can be removed once the result is saved.
        say: called with a sentence when the state cannot be written.
        execution: engine, memory, products, compile and plan of `CurvatureOperator`, for a problem.

    Returns:
        A `Spectrum`; its `failures` say what could not be trusted.

    Raises:
        InputError: an unknown operator, arguments out of range, or `execution` for an operator.
        UntrustedResult: a product is not finite.
    """
    A = operator_of(problem, operator, samples=samples, seed=seed, **execution)
    if not 1 <= top <= A.shape[0]:
        raise InputError(f"top is {top}: it must lie between 1 and the order {A.shape[0]}")
    loss, gradient_norm = standing(A)
    ends: list[End] = [("largest", top), ("smallest", min(1, A.shape[0] - top))]
    limit = checked_limit(A, ends, tolerance, max_steps)  # before the hours of work, not after
    # So that all products are made in one way.
    announced = checked_steps(probes, STEPS if steps == "auto" else steps)
    A.expect(probes * min(announced, A.shape[0]) + limit, width=probes)
    exact = in_float64(A)
    work: dict[str, Any] = {"work": "spectrum", "top": top, "probes": probes, "steps": steps}
    work |= {"tolerance": tolerance, "limit": limit, "seed": seed, "samples": samples}
    stage = stages(resume, A, work, say)

    def follow(phase: Phase) -> Callable[[int, int], None] | None:
        return None if progress is None else partial(progress, phase)

    pairs = extreme_eigenpairs(
        A,
        ends,
        tolerance=tolerance,
        max_steps=max_steps,
        seed=seed,
        progress=follow("eigenvalues"),
        resume=stage("eigenvalues"),
    )
    cost = pairs.cost
    if exact is not None:
        pairs = remeasure(pairs, exact, tolerance=tolerance, stage=stage("float64"))
    density = spectral_density(
        A,
        probes=probes,
        steps=steps,
        deflate=pairs,
        seed=seed,
        progress=follow("density"),
        resume=stage("density"),
    )
    cost = cost + density.cost
    if exact is not None:
        cost = cost + pairs.cost
    found = [
        Eigenvalue(value, residual, converged)
        for value, residual, converged in zip(
            pairs.values.tolist(), pairs.residuals.tolist(), pairs.converged.tolist(), strict=True
        )
    ]
    sums = _made_sure(functionals(density), density, pairs, found[-1].value)
    criteria = criteria_of(density)
    criteria = replace(
        criteria, negative_mass=sums.negative_mass, negative_energy=sums.negative_energy
    )
    sampling = sampling_of(
        A,
        pairs.vectors,
        groups=groups,
        population=population,
        proportional=proportional,
        seed=seed,
    )
    return Spectrum(
        operator=type(A).__name__,
        parameters=A.shape[0],
        loss=loss,
        gradient_norm=gradient_norm,
        eigenvalues=found[:top],
        smallest_eigenvalue=found[-1],
        trace=_mean(density.first_moments.tolist()),
        negative_mass=Bounds(sums.negative_mass.lower, sums.negative_mass.upper),
        negative_energy=Measured(sums.negative_energy.value, sums.negative_energy.standard_error),
        zero=density.zero,
        density=density.smoothed,
        ritz=density.ritz,
        failures=_failures(pairs, found, top, tolerance),
        cost=cost,
        provenance=provenance(A, seed=seed, command=command)
        | {"residual_dtype": str(pairs.values.dtype).removeprefix("torch.")}
        | {
            "arguments": {"top": top, "probes": probes, "tolerance": tolerance}
            | {"steps": density.steps if steps == "auto" else steps}
        },
        functionals=sums,
        criteria=criteria,
        sampling=sampling,
        eigenvectors=pairs.vectors[:, :top],
    )


def _made_sure(
    sums: Functionals, density: SpectralDensity, pairs: Eigenpairs, smallest: float
) -> Functionals:
    """The same, but for what the smallest eigenvalue proves: a few Lanczos steps say little near zero."""
    if smallest < -density.zero or not (pairs.complete and bool(pairs.converged[-1])):
        return sums
    none = Functional(0.0, 0.0, 0.0, 0.0, 0.0)
    return replace(sums, negative_mass=none, negative_energy=none)


def _mean(samples: list[float]) -> Measured:
    count = len(samples)
    error = float(np.std(samples, ddof=1)) / count**0.5 if count > 1 else float("nan")
    return Measured(float(np.mean(samples)), error)


def _failures(pairs: Eigenpairs, found: list[Eigenvalue], top: int, tolerance: float) -> list[str]:
    """What could not be trusted, in words."""
    steps = f"after {pairs.steps} Lanczos steps"
    failures = not_converged(
        [f"eigenvalue {i + 1}" for i in range(top)] + ["the smallest eigenvalue"],
        [pair.value for pair in found],
        [pair.residual for pair in found],
        [pair.converged for pair in found],
        tolerance,
        after=f", {steps}",
    )
    return failures if pairs.complete else [*failures, not_complete(after=f"{steps} ")]
