"""Average-case sharpness: the mean rise of the loss under Gaussian perturbations."""

import math

import torch
from torch import Tensor

from landscape.analyses.sharpness.measure import Measure, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.blocks import mean_and_error


def average(subject: Subject, options: Options) -> Part:
    """Rows of the average case, plain and adaptive."""
    return Part([average_row(subject, options, "average", adaptive) for adaptive in (False, True)])


def average_rise(
    subject: Subject, deviation: Tensor, *, draws: int, seed: int
) -> tuple[float, float]:
    """E[L(w + δ)] − L(w) for δ ~ N(0, diag(deviation²)), with its standard error over the draws.

    Every draw is a pair δ, −δ, in which all odd orders of the loss cancel.
    """
    found = []
    for z in subject.normal(draws, seed):
        one = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        rise = subject.losses_at(deviation[:, None] * z, torch.cat([one, -one])).rise
        found.append((rise[: len(one)] + rise[len(one) :]) / 2)
    return mean_and_error(torch.cat(found).cpu().numpy())


def average_row(
    subject: Subject, options: Options, family: str, adaptive: bool, *, prefix: str = ""
) -> Measure:
    """The row of the average case."""
    since = subject.spent()
    c, label = subject.scaling(adaptive, options.scaled)
    deviation = options.radius(adaptive) / math.sqrt(subject.problem.size)
    value, error = average_rise(subject, deviation * c, draws=options.draws, seed=options.seed)
    return subject.row(
        since,
        family,
        f"{prefix}{'adaptive ' if adaptive else ''}average",
        value,
        error=error,
        error_from="draws",
        definition=f"E[L(w + δ)] − L(w), δ ~ N(0, ρ²{' diag c²' if adaptive else ' I'})",
        source="Andriushchenko 2023, arXiv:2302.07011",
        rho=deviation,
        scaling=label,
        note=f"{options.draws} pairs ±δ",
    )
