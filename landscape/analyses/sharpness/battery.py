"""How sharp is the loss around these weights, by every definition in use?"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Unpack, get_args

from torch import Tensor

from landscape.analyses.adam import adam_state
from landscape.analyses.operators import in_float64
from landscape.analyses.sample_groups import random_batches
from landscape.analyses.sharpness.averages import average_measure
from landscape.analyses.sharpness.balls import ball_measures, m_sharpness
from landscape.analyses.sharpness.critical import critical_measure
from landscape.analyses.sharpness.gradients import (
    fisher_rao_measures,
    gradient_measure,
    surrogate_measure,
)
from landscape.analyses.sharpness.measure import LayerFlatness, Measure, NotMeasuredError
from landscape.analyses.sharpness.normalised import logit_normalised
from landscape.analyses.sharpness.pac_bayes import pac_bayes_measures
from landscape.analyses.sharpness.preconditioned import preconditioned_measure
from landscape.analyses.sharpness.relative_flatness import relative_flatness
from landscape.analyses.sharpness.smoothness import smoothness_measure
from landscape.analyses.sharpness.spectral import spectral_measures
from landscape.analyses.sharpness.subject import Scaled, Spent, Subject, require_positive
from landscape.errors import InputError
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import SHARPNESS_SCHEMA, Cost, provenance
from landscape.saved import Result

FAMILIES = (
    "gradient",
    "spectral",
    "worst",
    "m",
    "average",
    "normalised",
    "fisher-rao",
    "pac-bayes",
    "relative-flatness",
    "critical",
    "smoothness",
    "surrogate",
    "preconditioned",
)
BATCHES = 8  # of m-sharpness, at most
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
        command: for provenance.
        execution: how products are made, see `spectrum`.

    Returns:
        A `Sharpness`; its `failures` say what could not be trusted.

    Raises:
        InputError: an unknown family, or arguments out of range.
        UntrustedResult: the loss, the gradient or a product is not finite.

    Example:
        >>> import torch, landscape as ls
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> problem = ls.Problem(model, "mse", (torch.eye(2), torch.zeros(2, 1)))  # H = I
        >>> found = ls.sharpness(problem, measures="spectral")
        >>> round(found["λ_max"].value, 5), round(found["trace"].value, 5)
        (1.0, 2.0)
    """
    wanted = _families(measures)
    require_positive(rho=rho, adaptive_rho=adaptive_rho, tolerance=tolerance)
    counts = {"m": (m, 1), "steps": (steps, 1), "restarts": (restarts, 1)}
    counts |= {"draws": (draws, 2), "probes": (probes, 2)}
    for name, (number, least) in counts.items():
        if number < least:
            raise InputError(f"{name} is {number}: it must be at least {least}")
    if scaled not in get_args(Scaled):
        raise InputError(f"scaled is {scaled!r}: choose 'all' or 'matrices'")
    options = {"rho": rho, "adaptive_rho": adaptive_rho, "m": m, "scaled": scaled, "steps": steps}
    options |= {"restarts": restarts, "draws": draws, "probes": probes, "tolerance": tolerance}
    battery = _Battery(Subject(problem, **execution), options, optimizer, seed)
    for i, family in enumerate(wanted):
        if progress is not None:
            progress(family, i, len(wanted))
        battery.measure(family)
    if progress is not None:
        progress(wanted[-1], len(wanted), len(wanted))
    return battery.result(wanted, command)


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


class _Battery:
    """The rows found so far, and what they share."""

    def __init__(
        self,
        subject: Subject,
        options: dict[str, Any],
        optimizer: Mapping[str, Any] | None,
        seed: int,
    ) -> None:
        self.subject, self.options, self.seed = subject, options, seed
        self.adam = None if optimizer is None else adam_state(subject.problem, optimizer)
        self.begun: Spent = subject.spent()
        self.rows: list[Measure] = []
        self.layers: list[LayerFlatness] = []
        self.left_out: dict[str, str] = {}
        self.failures: list[str] = []

    def measure(self, family: str) -> None:
        """Add the rows of a family, or the reason why there are none."""
        parts: dict[str, Callable[[], Iterator[Measure]]] = {
            "gradient": self._gradient,
            "spectral": self._spectral,
            "worst": self._worst,
            "m": self._m,
            "average": self._average,
            "normalised": self._normalised,
            "fisher-rao": self._fisher_rao,
            "pac-bayes": self._pac_bayes,
            "relative-flatness": self._relative_flatness,
            "critical": self._critical,
            "smoothness": self._smoothness,
            "surrogate": self._surrogate,
            "preconditioned": self._preconditioned,
        }
        try:
            self.rows.extend(parts[family]())
        except NotMeasuredError as reason:
            self.left_out[family] = str(reason)

    def result(self, families: list[str], command: str | None) -> Sharpness:
        bad = [row.name for row in self.rows if not math.isfinite(row.value)]
        self.failures += [f"{name} is not finite: choose a smaller ρ" for name in bad]
        problem = self.subject.problem
        total = self.subject.row(self.begun, "", "", 0.0, definition="", source="").cost
        products = sum(row.cost.products for row in self.rows)
        return Sharpness(
            parameters=problem.size,
            loss=problem.loss(),
            measures=self.rows,
            layers=self.layers,
            left_out=self.left_out,
            failures=self.failures,
            caution=CAUTION,
            cost=Cost(products, total.gradient_equivalents, total.seconds, total.peak_bytes),
            provenance=provenance(self.subject.hessian, seed=self.seed, command=command)
            | {"arguments": self.options | {"measures": families}},
        )

    @cached_property
    def _root(self) -> float:
        """√P."""
        return math.sqrt(self.subject.problem.size)

    def _radius(self, adaptive: bool) -> float:
        return float(self.options["adaptive_rho" if adaptive else "rho"])

    def _radii(self, adaptive: bool) -> dict[str, float]:
        return {"l2": self._radius(adaptive), "linf": self._radius(adaptive) / self._root}

    @cached_property
    def _exact(self) -> Subject:
        """The same weights in float64, where the model permits."""
        exact = in_float64(self.subject.hessian)
        if exact is None:
            return self.subject
        return Subject(exact.problem, engine="double backward")  # type: ignore[attr-defined]

    def _update(self, subject: Subject) -> tuple[Tensor, str]:
        """The step Δ that training would take next, the weights becoming w − ηΔ, and its name."""
        if self.adam is None:
            return subject.gradient, "gradient"
        update = self.adam.update(subject.gradient.double())
        return update.to(subject.gradient), "next update of Adam"

    def _gradient(self) -> Iterator[Measure]:
        yield gradient_measure(self.subject)

    def _spectral(self) -> Iterator[Measure]:
        rows, failures = spectral_measures(
            self.subject,
            probes=self.options["probes"],
            tolerance=self.options["tolerance"],
            seed=self.seed,
        )
        self.failures += failures
        yield from rows

    def _worst(self) -> Iterator[Measure]:
        for adaptive in (False, True):
            yield from self._ball(self.subject, "worst", adaptive)

    def _ball(self, subject: Subject, family: str, adaptive: bool, **more: Any) -> list[Measure]:
        return ball_measures(
            subject,
            family=family,
            radii=self._radii(adaptive),
            adaptive=adaptive,
            scaled=self.options["scaled"],
            steps=self.options["steps"],
            restarts=self.options["restarts"],
            seed=self.seed,
            **more,
        )

    def _m(self) -> Iterator[Measure]:
        m = self.options["m"]
        problem = random_batches(self.subject.problem, m, BATCHES, seed=self.seed)
        dealt = None if problem is None else self.subject.on(problem)
        for adaptive in (False, True):
            yield m_sharpness(
                self.subject,
                dealt,
                family="m",
                m=m,
                radius=self._radius(adaptive),
                adaptive=adaptive,
                scaled=self.options["scaled"],
                steps=self.options["steps"],
            )

    def _average(self) -> Iterator[Measure]:
        for adaptive in (False, True):
            yield self._average_of(self.subject, "average", adaptive)

    def _average_of(self, subject: Subject, family: str, adaptive: bool, **more: Any) -> Measure:
        return average_measure(
            subject,
            family=family,
            deviation=self._radius(adaptive) / self._root,
            adaptive=adaptive,
            scaled=self.options["scaled"],
            draws=self.options["draws"],
            seed=self.seed,
            **more,
        )

    def _normalised(self) -> Iterator[Measure]:
        other = self.subject.on(logit_normalised(self.subject.problem))
        prefix = "logit-normalised "
        for adaptive in (False, True):
            yield from self._ball(other, "normalised", adaptive, one_step=False, prefix=prefix)
            yield self._average_of(other, "normalised", adaptive, prefix=prefix)

    def _fisher_rao(self) -> Iterator[Measure]:
        rows, left_out = fisher_rao_measures(self.subject)
        self.left_out |= left_out
        yield from rows

    def _pac_bayes(self) -> Iterator[Measure]:
        yield from pac_bayes_measures(self.subject, draws=self.options["draws"], seed=self.seed)

    def _relative_flatness(self) -> Iterator[Measure]:
        row, self.layers = relative_flatness(
            self.subject, probes=self.options["probes"], seed=self.seed
        )
        yield row

    def _critical(self) -> Iterator[Measure]:
        update, name = self._update(self.subject)
        yield critical_measure(self.subject, update, name=name, length=self._radius(False))

    def _smoothness(self) -> Iterator[Measure]:
        update, name = self._update(self._exact)
        yield smoothness_measure(self._exact, update, name=name, length=self._radius(False))

    def _surrogate(self) -> Iterator[Measure]:
        yield surrogate_measure(self.subject, radius=self._radius(False))

    def _preconditioned(self) -> Iterator[Measure]:
        if self.adam is None:
            raise NotMeasuredError("it needs the optimiser's state (--optimizer, optimizer=)")
        row, failures = preconditioned_measure(
            self.subject, self.adam, tolerance=self.options["tolerance"], seed=self.seed
        )
        self.failures += failures
        yield row
