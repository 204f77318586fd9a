"""Average-case sharpness: the mean rise of the loss under Gaussian perturbations."""

from typing import Literal

import torch
from torch import Tensor

from landscape.analyses.sharpness.balls import scaling_label
from landscape.analyses.sharpness.measure import Measure
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.blocks import mean_and_error


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


def average_measure(
    subject: Subject,
    *,
    family: str,
    deviation: float,
    adaptive: bool,
    scaled: Literal["all", "matrices"],
    draws: int,
    seed: int,
    prefix: str = "",
) -> Measure:
    """The row of the average case."""
    since = subject.spent()
    c = subject.scaling(adaptive, scaled)
    value, error = average_rise(subject, deviation * c, draws=draws, seed=seed)
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
        scaling=scaling_label(adaptive, scaled),
        note=f"{draws} pairs ±δ",
    )
