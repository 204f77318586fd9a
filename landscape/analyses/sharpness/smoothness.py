"""Gradient-normalised smoothness along a step: how far the gradient is what the Hessian says."""

import math
from collections.abc import Callable
from typing import NamedTuple

from landscape.analyses.sharpness.measure import NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject

PRECISION = 1.02  # factor to which γ is found
EXPANSIONS = 40  # doublings or halvings at most


class Radius(NamedTuple):
    """γ is between `lower` and `upper`; infinite where nothing was found up to `lower`."""

    lower: float
    upper: float


def reliable_radius(error: Callable[[float], float], first: float) -> Radius:
    """The largest γ with γ · max over t ≤ γ of error(t) ≤ 1.

    Args:
        error: t to ‖∇L(w + tu) − ∇L(w) − tHu‖ / (t‖g‖); its maximum is over the t that were tried.
        first: the first t.
    """
    seen: dict[float, float] = {}

    def holds(t: float) -> bool:
        if t not in seen:
            seen[t] = error(t)
        return t * max(value for at, value in seen.items() if at <= t) <= 1

    low = high = first
    for _ in range(EXPANSIONS):
        if not holds(high):
            break
        low, high = high, 2 * high
    else:
        return Radius(low, math.inf)
    for _ in range(EXPANSIONS):
        if holds(low):
            break
        low, high = low / 2, low
    else:
        return Radius(0.0, high)
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Radius(low, high)


def smoothness(subject: Subject, options: Options) -> Part:
    """The row of γ along −Δ, in float64 where the model permits; the first trial has t = ρ."""
    subject = subject.exact
    since = subject.spent()
    update, name = subject.update()
    gradient = subject.gradient
    size = float(gradient.double().norm())
    norm = float(update.double().norm())
    if not size > 0 or not norm > 0:
        raise NotMeasuredError("the gradient is zero: γ is relative to it")
    u = -update / norm
    product = subject.hessian @ u
    with subject.problem.evaluation() as run:
        try:

            def error(t: float) -> float:
                _, moved = subject.loss_and_gradient(run, t * u)
                off = float((moved - gradient - t * product).double().norm()) / (t * size)
                return math.inf if math.isnan(off) else off

            found = reliable_radius(error, options.rho)
        finally:
            run.place(run.values)
    if math.isinf(found.upper) or not found.lower > 0:
        raise NotMeasuredError(
            f"the linear model of the gradient along the {name} has no reliable radius between "
            f"{found.lower:.2g} and {found.upper:.2g}"
        )
    value = math.sqrt(found.lower * found.upper)
    row = subject.row(
        since,
        "smoothness",
        "gradient-normalised smoothness γ",
        value,
        error=found.upper - value,
        error_from="bracket",
        definition="largest γ with ‖∇L(w+tu) − g − tHu‖ ≤ ‖g‖t/γ for all 0 < t ≤ γ",
        source="Semenov 2025, arXiv:2506.13710",
        note=f"along one ray, u = −Δ/‖Δ‖ of the {name}: an upper bound of the γ of the whole ball; large is "
        f"smooth; in {str(subject.problem.dtype).removeprefix('torch.')}",
    )
    return Part([row])
