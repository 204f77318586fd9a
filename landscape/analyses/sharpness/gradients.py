"""Sharpness from first derivatives: gradient norms and the Fisher–Rao norm."""

import numpy as np
import torch
from torch import Tensor

from landscape.analyses.sharpness.measure import Measure, NotMeasuredError
from landscape.analyses.sharpness.subject import Subject
from landscape.errors import InputError
from landscape.estimators.blocks import mean_and_error
from landscape.operators.fisher import Fisher
from landscape.operators.sample_losses import derivatives_along


def gradient_measure(subject: Subject) -> Measure:
    """The row of ‖g‖₂, near zero where the weights are a critical point."""
    since = subject.spent()
    return subject.row(
        since,
        "gradient",
        "gradient norm",
        float(subject.gradient.double().norm()),
        definition="‖g‖₂",
        source="",
        note="where it is not small, worst cases are of first order, ρ‖g‖",
    )


def surrogate_measure(subject: Subject, *, radius: float) -> Measure:
    """The row of ρ‖∇h‖, h the mean prediction over the data: of models with one output."""
    since = subject.spent()
    return subject.row(
        since,
        "surrogate",
        "surrogate gradient norm",
        radius * float(mean_output_gradient(subject).double().norm()),
        definition="ρ‖∇h(w)‖₂, h the mean of the model's predictions",
        source="Dao 2024 (IGNITE), arXiv:2503.04242",
        rho=radius,
        scaling="1",
        note="the first order of the largest change of h in the ball",
    )


def mean_output_gradient(subject: Subject) -> Tensor:
    """The gradient (P,) of the mean over the samples of a model's single output."""
    problem = subject.problem
    if problem.objective is None:
        raise NotMeasuredError("the closure hides the model's output")
    total, rows = torch.zeros_like(subject.weights), 0
    with problem.evaluation() as run:
        for batch in run.batches():
            output, _ = run.output(batch)
            if not isinstance(output, Tensor) or output.numel() != len(output):
                raise NotMeasuredError("it is defined for models with one number as output")
            rows += len(output)
            parts = torch.autograd.grad(output.sum(), run.leaves, allow_unused=True)
            total += problem.layout.flatten(parts, total)
    subject.gradients += 1
    return total / rows


def fisher_rao_measures(subject: Subject) -> tuple[list[Measure], dict[str, str]]:
    """Rows of wᵀFw, with the targets of the data and with those of the model; and what is not defined."""
    problem, rows, left_out = subject.problem, [], {}
    if problem.objective is None:
        raise NotMeasuredError("the closure hides the samples")
    since = subject.spent()
    along = derivatives_along(problem, subject.weights[:, None])[:, 0].double().cpu().numpy()
    subject.gradients += 1
    # Of samples with several terms, as in `EmpiricalFisher`: gᵢ is (n/N) times the gradient of their sum.
    per_sample: np.ndarray[tuple[int], np.dtype[np.float64]] = along * len(along) / problem.terms
    value, error = mean_and_error(per_sample**2)
    definition = "wᵀFw, F = E[∇ℓ ∇ℓᵀ] at the targets"
    source = "Liang 2019, arXiv:1711.01530"
    rows.append(
        subject.row(
            since,
            "fisher-rao",
            "Fisher–Rao norm, data's targets",
            value,
            error=error,
            error_from="samples",
            definition=f"{definition} of the data",
            source=source,
            note="the squared norm; mean of (wᵀ∇ℓᵢ)²",
        )
    )
    since = subject.spent()
    try:
        product = Fisher(problem) @ subject.weights
    except InputError as error_:
        left_out["Fisher–Rao norm, model's targets"] = str(error_)
    else:
        subject.gradients += 1
        rows.append(
            subject.row(
                since,
                "fisher-rao",
                "Fisher–Rao norm, model's targets",
                float(subject.weights.double() @ product.double()),
                definition=f"{definition} that the model expects",
                source=source,
                note="the squared norm; exact on these data, one product with F",
            )
        )
    return rows, left_out
