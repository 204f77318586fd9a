"""Critical sharpness: from the smallest step along an update that raises the loss."""

import math
from collections.abc import Callable
from typing import NamedTuple

from landscape.analyses.sharpness.measure import NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject

PASSES = 8  # forward passes at most, beside that of the centre: fewer than ten in all
PRECISION = 1 / 16  # width of the bracket wanted, relative
REACH = 32.0  # factor between trials at most


class Critical(NamedTuple):
    """The step is larger than `lower`, where the loss does not rise, and at most `upper`, where it does."""

    lower: float
    upper: float
    passes: int


def critical_step(rise: Callable[[float], float], slope: float, first: float) -> Critical:
    """Bracket the step η at which the loss is back where it was, in at most eight evaluations.

    Steps grow or shrink at least twofold until the bracket is closed from both sides. Every trial gives the
    parabola of slope −s at 0 through it, and with it the next trial; the middle, in the logarithm, takes
    its place where it leaves the bracket or where two trials in turn fell on one side.

    Args:
        rise: η to L(w − ηΔ) − L(w).
        slope: s = gᵀΔ > 0.
        first: the first η.
    """
    lower, upper, eta, sides = 0.0, math.inf, first, ""
    for count in range(1, PASSES + 1):
        found = rise(eta)
        if found > 0 or math.isnan(found):
            upper, sides = eta, sides + "u"
        else:
            lower, sides = eta, sides + "l"
        if upper <= lower * (1 + PRECISION):
            return Critical(lower, upper, count)
        # L ≈ −sη + cη²/2 is zero again at 2s/c.
        curvature = 2 * (found + slope * eta) / eta**2
        guess = 2 * slope / curvature if curvature > 0 and math.isfinite(curvature) else math.inf
        # A little beyond it, seen from here, so that a guess that is right closes the bracket.
        guess *= 1 + PRECISION / 3 if sides[-1] == "l" else 1 - PRECISION / 3
        if math.isinf(upper):
            eta = min(max(guess, 2 * eta), REACH * eta)
        elif not lower:
            eta = max(min(guess, eta / 2), eta / REACH)
        elif lower < guess < upper and sides[-2:] in ("lu", "ul"):
            eta = guess
        else:
            eta = math.sqrt(lower * upper)
    return Critical(lower, upper, PASSES)


def critical(subject: Subject, options: Options) -> Part:
    """The row of 2/η_c; the first trial has ‖ηΔ‖ = ρ."""
    since = subject.spent()
    update, name = subject.update()
    slope = float(subject.gradient.double() @ update.double())
    norm = float(update.double().norm())
    if not slope > 0:
        raise NotMeasuredError(f"the {name} does not descend: gᵀΔ = {slope:.2g}")
    found = critical_step(lambda eta: subject.rise(-eta * update)[0], slope, options.rho / norm)
    if math.isinf(found.upper):
        raise NotMeasuredError(f"no η up to {found.lower:.2g} raises the loss along the {name}")
    if not found.lower > 0:
        raise NotMeasuredError(
            f"every η down to {found.upper:.2g} raises the loss along the {name}"
        )
    low, high = 2 / found.upper, 2 / found.lower
    row = subject.row(
        since,
        "critical",
        "critical sharpness",
        (low + high) / 2,
        error=(high - low) / 2,
        error_from="bracket",
        definition="2/η_c, η_c the smallest η with L(w − ηΔ) > L(w)",
        source="Kalra 2026, arXiv:2601.16979",
        note=f"Δ is the {name}; {found.passes} forward passes beside the centre's; η_c between {found.lower:.3g} and "
        f"{found.upper:.3g}; an earlier rise between two trials would not be seen",
    )
    return Part([row])
