"""Sharpness from first derivatives of the loss: its gradient norm and the Fisher–Rao norm."""

import math

import numpy as np
from torch import Tensor

from landscape.analyses.sample_groups import random_groups
from landscape.analyses.sharpness.measure import NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.errors import InputError
from landscape.estimators.blocks import mean_and_error
from landscape.operators.fisher import Fisher
from landscape.operators.sample_losses import derivatives_along

GROUPS = 32  # of samples at least, for the error of what is not known of each


def gradient_norm(subject: Subject, options: Options) -> Part:
    """The row of ‖g‖₂, near zero where the weights are a critical point."""
    since = subject.spent()
    g = subject.gradient
    length = g.double().norm()
    error = math.nan
    if length > 0:
        # To first order ‖g‖ moves as its component along itself.
        try:
            _, error = mean_and_error(along(subject, g / length.to(g)))
        except (InputError, NotMeasuredError):  # no samples, or no second derivative
            pass
    row = subject.row(
        since,
        "gradient",
        "gradient norm",
        float(length),
        error=error,
        error_from="samples",
        definition="‖g‖₂",
        source="",
        note="where it is not small, worst cases are of first order, ρ‖g‖",
    )
    return Part([row])


def fisher_rao(subject: Subject, options: Options) -> Part:
    """Rows of wᵀFw, with the targets of the data and with those of the model."""
    problem, w = subject.problem, subject.weights
    since = subject.spent()
    value, error = mean_and_error(along(subject, w) ** 2)
    definition = "wᵀFw, F = E[∇ℓ ∇ℓᵀ] at the targets"
    same = {"source": "Liang 2019, arXiv:1711.01530", "scaling": "w", "error_from": "samples"}
    rows = [
        subject.row(
            since,
            "fisher-rao",
            "Fisher–Rao norm, data's targets",
            value,
            error=error,
            definition=f"{definition} of the data",
            note="the squared norm; mean of (wᵀ∇ℓᵢ)²",
            **same,  # type: ignore[arg-type]
        )
    ]
    since = subject.spent()
    name = "Fisher–Rao norm, model's targets"
    dealt = random_groups(problem, max(GROUPS, problem.batch_count), seed=options.seed)
    try:
        F = Fisher(problem if dealt is None else dealt)
        parts = F.by_batch(w[:, None], lambda _, image: float(w.double() @ image[:, 0].double()))
    except InputError as reason:
        return Part(rows, left_out={name: str(reason)})
    subject.gradients += 1
    value, error = mean_and_error(np.array(parts) * len(parts) / F.divisor(problem.terms, 0))
    rows.append(
        subject.row(
            since,
            "fisher-rao",
            name,
            value,
            error=math.nan if dealt is None else error,
            definition=f"{definition} that the model expects",
            note=f"the squared norm; exact on these data, its error from {len(parts)} groups of samples",
            **same,  # type: ignore[arg-type]
        )
    )
    return Part(rows)


def along(subject: Subject, v: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """∇ℓᵢᵀv of every sample; their mean is gᵀv.

    Of samples with several terms as in `EmpiricalFisher`: ∇ℓᵢ is (n/N) times the gradient of their sum.
    """
    problem = subject.problem
    if problem.objective is None:
        raise NotMeasuredError("the closure hides the samples")
    found = derivatives_along(problem, v[:, None])[:, 0].double().cpu().numpy()
    subject.gradients += 1
    each: np.ndarray[tuple[int], np.dtype[np.float64]] = found * len(found) / problem.terms
    return each
