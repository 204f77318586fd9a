"""PAC-Bayes flatness: how much Gaussian noise on the weights the training accuracy bears."""

import math
from collections.abc import Callable
from functools import cache

import torch

from landscape.analyses.sharpness.measure import NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.estimators.blocks import mean_and_error

DROP = 0.1  # of the accuracy
OFFSET = 1e-3  # ε of the magnitude-aware form
PRECISION = 1.01  # factor to which σ is found
SLOPE = 1.2  # factor between the σ from which the slope is taken
EXPANSIONS = 40  # doublings at most


def pac_bayes(subject: Subject, options: Options) -> Part:
    """Rows of 1/σ² and of its magnitude-aware form."""
    squares = subject.weights.square()
    forms: dict[str, tuple[Callable[[float], torch.Tensor], str, str]] = {
        "PAC-Bayes flatness": (
            lambda sigma: torch.full_like(squares, sigma),
            "N(0, σ² I)",
            "1",
        ),
        "magnitude-aware PAC-Bayes": (
            lambda sigma: (sigma**2 * squares + OFFSET**2).sqrt(),
            "N(0, σ² diag w² + ε²)",
            "|w|",
        ),
    }
    rows, left_out = [], {}
    for name, (deviation, noise, scaling) in forms.items():
        since = subject.spent()
        try:
            sigma, relative = noise_of_drop(
                subject, deviation, draws=options.draws, seed=options.seed
            )
        except NotMeasuredError as reason:
            left_out[name] = str(reason)
            continue
        epsilon = f", ε = {OFFSET:g}" if scaling != "1" else ""
        rows.append(
            subject.row(
                since,
                "pac-bayes",
                name,
                sigma**-2,
                error=2 * relative * sigma**-2,
                error_from="draws",
                definition=f"1/σ², E[drop of the accuracy] = {DROP:g} for u ~ {noise}{epsilon}",
                source="Jiang 2020, arXiv:1912.02178",
                rho=sigma,
                scaling=scaling,
                note=f"ρ is σ, a standard deviation; {options.draws} draws of u/σ",
            )
        )
    return Part(rows, left_out=left_out)


def noise_of_drop(
    subject: Subject, deviation: Callable[[float], torch.Tensor], *, draws: int, seed: int
) -> tuple[float, float]:
    """The σ at which the mean accuracy over draws falls by 0.1, and its relative standard error.

    The same draws serve every σ, so that the drop is a function of σ alone; the error is that of the drop
    divided by its slope in log σ.

    Args:
        deviation: σ to the standard deviation of every weight, (P,).
    """
    w = subject.weights
    center = accuracies(subject, w[:, None], w.new_zeros(1, 1))

    @cache
    def drop(sigma: float) -> tuple[float, float]:
        found = [
            center - accuracies(subject, deviation(sigma)[:, None] * z, torch.eye(z.shape[1]))
            for z in subject.normal(draws, seed)
        ]
        return mean_and_error(torch.cat(found).numpy())

    low = high = float(w.double().square().mean().sqrt()) or 1.0
    for _ in range(EXPANSIONS):
        if drop(high)[0] > DROP:
            break
        low, high = high, 2 * high
    else:
        raise NotMeasuredError(f"the accuracy does not drop by {DROP:g} at any σ up to {high:.2g}")
    for _ in range(EXPANSIONS):
        if drop(low)[0] <= DROP:
            break
        low, high = low / 2, low
    else:
        raise NotMeasuredError(f"the accuracy drops by {DROP:g} at every σ down to {low:.2g}")
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if drop(middle)[0] <= DROP else (low, middle)
    sigma = math.sqrt(low * high)
    rise = drop(sigma * SLOPE)[0] - drop(sigma / SLOPE)[0]
    slope = rise / (2 * math.log(SLOPE))
    error = drop(sigma)[1]
    return sigma, error / slope if slope > 0 else math.nan


def accuracies(subject: Subject, offsets: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """The share of right classes at w + offsets @ c for every row c of the coordinates."""
    found = subject.losses_at(offsets, coordinates).accuracy
    if found is None:
        raise NotMeasuredError("there are no classes whose accuracy could drop")
    return found
