"""How sharp is the loss around these weights, by every definition in use?"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from landscape.analyses.adam import adam_state
from landscape.analyses.sharpness.averages import average
from landscape.analyses.sharpness.balls import worst
from landscape.analyses.sharpness.critical import critical
from landscape.analyses.sharpness.gradients import fisher_rao, gradient_norm
from landscape.analyses.sharpness.m_sharpness import m_sharpness
from landscape.analyses.sharpness.measure import LayerFlatness, Measure, NotMeasuredError, Part
from landscape.analyses.sharpness.normalised import normalised
from landscape.analyses.sharpness.options import Options, Scaled
from landscape.analyses.sharpness.pac_bayes import pac_bayes
from landscape.analyses.sharpness.preconditioned import preconditioned
from landscape.analyses.sharpness.relative_flatness import relative_flatness
from landscape.analyses.sharpness.smoothness import smoothness
from landscape.analyses.sharpness.spectral import spectral
from landscape.analyses.sharpness.subject import Subject
from landscape.analyses.sharpness.surrogate import surrogate
from landscape.batches import digest
from landscape.checkpoint import stages
from landscape.errors import InputError, UntrustedResult
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import SHARPNESS_SCHEMA, Cost, cost_of_time, provenance
from landscape.saved import Result

FAMILIES: dict[str, Callable[[Subject, Options], Part]] = {
    "gradient": gradient_norm,
    "spectral": spectral,
    "worst": worst,
    "m": m_sharpness,
    "average": average,
    "normalised": normalised,
    "fisher-rao": fisher_rao,
    "pac-bayes": pac_bayes,
    "relative-flatness": relative_flatness,
    "critical": critical,
    "smoothness": smoothness,
    "surrogate": surrogate,
    "preconditioned": preconditioned,
}
CAUTION = (
    "No measure of sharpness was found to correlate robustly with generalisation: it varies rather with the "
    "learning rate and other settings, and out of distribution sharper minima often do better "
    "(Andriushchenko 2023, arXiv:2302.07011). Compare models only at the same ρ, m and scaling, on the same data."
)


@dataclass(frozen=True, eq=False)
class Sharpness(Result, schema=SHARPNESS_SCHEMA):
    """Measures of sharpness of one model, each with its definition, parameters, error and cost.

    `layers` are the parts of the relative flatness. `left_out` says for every measure that was asked for and
    is not in the table why; `failures` what could not be trusted; `caution` how not to read the table.
    """

    parameters: int
    loss: float
    measures: list[Measure]
    layers: list[LayerFlatness]
    left_out: dict[str, str]
    failures: list[str]
    caution: str
    cost: Cost
    provenance: dict[str, Any]

    def __getitem__(self, name: str) -> Measure:
        """The row of that name.

        Raises:
            KeyError: there is none.
        """
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise KeyError(name)


def sharpness(
    problem: Problem,
    *,
    measures: str | Sequence[str] | None = None,
    rho: float = 0.05,
    adaptive_rho: float = 0.5,
    m: int = 128,
    scaled: Scaled = "all",
    steps: int = 20,
    restarts: int = 2,
    draws: int = 20,
    probes: int = 30,
    tolerance: float = 1e-4,
    optimizer: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    command: str | None = None,
    resume: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **execution: Unpack[Execution],
) -> Sharpness:
    """The sharpness of the loss at a model's weights, by many definitions in one table.

    Perturbations have the same size in all of them: with ρ the radius of the ℓ₂ ball, the ℓ∞ ball has ρ/√P, so
    that its corners lie on the sphere, and the Gaussian the standard deviation ρ/√P, so that its length is
    about ρ. Adaptive measures replace δ by δ/c, c = |w|, and have a ρ of their own.

    Args:
        problem: the loss.
        measures: families to measure, of `FAMILIES` (default: all of them).
        rho: ρ of perturbations in units of the weights, 0.05 by default (SAM's).
        adaptive_rho: ρ of perturbations relative to every weight, 0.5 by default (ASAM's).
        m: samples in a batch of m-sharpness; up to 8 batches are drawn.
        scaled: which weights adaptive measures take relative to their size: "all" (default), also biases and
            normalisation parameters, or "matrices", those with two and more dimensions; the others have c = 1.
        steps: gradients of every ascent.
        restarts: starts of every ascent over all the data: δ = 0, then random ones.
        draws: random perturbations of average measures and of PAC-Bayes flatness.
        probes: of trace, Frobenius norm and relative flatness.
        tolerance: accepted residual of an eigenvalue, relative to the largest.
        optimizer: `state_dict` of the Adam or AdamW that trained the model: adds the preconditioned
            sharpness, and its next update is the step of critical sharpness and smoothness, which is the
            gradient without it.
        seed: of every random choice.
        progress: called with (family, done, to do).
        command, say, execution: see `spectrum`.
        resume: a file that keeps what every family found, so that the same call goes on after a kill.

    Returns:
        A `Sharpness`; its `failures` say what could not be trusted, its `left_out` what could not be measured.

    Raises:
        InputError: an unknown family, arguments out of range, or an optimiser's state that does not fit.
        UntrustedResult: the loss or the gradient is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> problem = ls.Problem(model, "mse", (torch.eye(2), torch.zeros(2, 1)))  # H = I
        >>> found = ls.sharpness(problem, measures="spectral")
        >>> round(found["λ_max"].value, 5), round(found["trace"].value, 5)
        (1.0, 2.0)
    """
    wanted = _families(measures)
    options = Options(rho, adaptive_rho, m, scaled, steps, restarts, draws, probes, tolerance, seed)
    adam = None if optimizer is None else adam_state(problem, optimizer)
    subject = Subject(problem, adam, **execution)
    problem.gradient_seconds()  # refuses what no family could measure
    work = {"work": "sharpness", "optimizer": None if adam is None else digest(vars(adam))}
    stage = stages(resume, subject.hessian, work | asdict(options), say)
    parts, cost = [], Cost(0, 0.0, 0.0, 0)
    for i, family in enumerate(wanted):
        if progress is not None:
            progress(family, i, len(wanted))
        own = stage(family)
        begun = time.perf_counter()
        if own.state is None:
            part = _measured(family, subject, options)
            products = sum(row.cost.products for row in part.rows)
            spent = cost_of_time(problem, time.perf_counter() - begun, products=products)
            own.offer(
                own.meter(subject.hessian),
                lambda part=part, spent=spent: {"part": part.to_dict(), "spent": asdict(spent)},  # type: ignore[misc]
                done=True,
            )
        else:
            part, spent = Part.from_dict(own.state["part"]), Cost(**own.state["spent"])
        parts.append(part)
        cost += spent
    if progress is not None:
        progress(wanted[-1], len(wanted), len(wanted))
    return Sharpness(
        parameters=problem.size,
        loss=problem.loss(),
        measures=[row for part in parts for row in part.rows],
        layers=[layer for part in parts for layer in part.layers],
        left_out={name: reason for part in parts for name, reason in part.left_out.items()},
        failures=[failure for part in parts for failure in part.failures],
        caution=CAUTION,
        cost=cost,
        provenance=provenance(subject.hessian, seed=seed, command=command)
        | {"arguments": asdict(options) | {"measures": wanted}},
    )


def _families(asked: str | Sequence[str] | None) -> list[str]:
    """The families to measure, in their own order."""
    if asked is None:
        return list(FAMILIES)
    names = [asked] if isinstance(asked, str) else list(asked)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        seen = repr(unknown[0]) if unknown else "nothing"
        raise InputError(f"{seen} is no family of measures: choose of {', '.join(FAMILIES)}")
    return [family for family in FAMILIES if family in names]


def _measured(family: str, subject: Subject, options: Options) -> Part:
    """What a family found, or why it found nothing: the others are measured all the same."""
    try:
        part = FAMILIES[family](subject, options)
    except (NotMeasuredError, InputError) as reason:
        return Part([], left_out={family: str(reason)})
    except UntrustedResult as reason:
        return Part([], left_out={family: str(reason)}, failures=[f"{family}: {reason}"])
    bad = [row.name for row in part.rows if not math.isfinite(row.value)]
    return replace(
        part, failures=part.failures + [f"{name} is not finite: choose a smaller ρ" for name in bad]
    )
