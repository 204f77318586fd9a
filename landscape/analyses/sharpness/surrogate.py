"""Surrogate gradient norm: how much the model's mean prediction can change near the weights."""

import math
from typing import Any

import torch
from torch import Tensor

from landscape.analyses.sharpness.measure import NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.errors import InputError
from landscape.estimators.blocks import mean_and_error
from landscape.evaluation import Evaluation
from landscape.operators.products.double_backward import jacobian_products

CLASSES = ("categorical", "log-categorical")


def surrogate(subject: Subject, options: Options) -> Part:
    """The row of ρ‖∇h‖, h the mean over the data of what the model predicts, or of how sure a classifier is.

    The paper has surrogates, models with one output. Of a classifier h is the mean probability of the class
    it predicts, to which adding a constant to all logits makes no difference.
    """
    since = subject.spent()
    objective = subject.problem.objective
    if objective is None:
        raise NotMeasuredError("the closure hides the model's output")
    classifier = objective.likelihood in CLASSES
    total, count = torch.zeros_like(subject.weights), 0
    with subject.problem.evaluation() as run:
        for batch in run.batches():
            h = predictions(run, batch)
            parts = torch.autograd.grad(h.sum(), run.leaves, allow_unused=True)
            total += subject.problem.layout.flatten(parts, total)
            count += len(h)
    subject.gradients += 1
    length = float(total.double().norm()) / count
    error = math.nan
    if length > 0:
        try:  # to first order ‖∇h‖ moves as its component along itself
            _, error = mean_and_error(along(subject, total / (length * count)).cpu().numpy())
        except InputError:  # no second derivative
            pass
    what = "probability of the predicted class" if classifier else "prediction"
    row = subject.row(
        since,
        "surrogate",
        f"surrogate gradient norm{' of the confidence' if classifier else ''}",
        options.rho * length,
        error=options.rho * error,
        error_from="samples",
        definition=f"ρ‖∇h(w)‖₂, h the mean {what}",
        source=f"{'after ' if classifier else ''}Dao 2024 (IGNITE), arXiv:2503.04242",
        rho=options.rho,
        note="the first order of the largest change of h in the ball",
    )
    return Part([row])


def along(subject: Subject, v: Tensor) -> Tensor:
    """∇hᵢᵀv of every prediction, float64."""
    found = []
    with subject.problem.evaluation() as run:
        for batch in run.batches():
            forward, _ = jacobian_products(run, predictions(run, batch))
            found.append(forward(v).detach().double())
    subject.gradients += 1
    return torch.cat(found)


def predictions(run: Evaluation, batch: Any) -> Tensor:
    """h of every prediction of a batch, without those whose target is ignored."""
    objective = run.problem.supervised()
    output, target = run.output(batch)
    if objective.likelihood in CLASSES:
        log = objective.likelihood == "log-categorical"
        p = output.exp() if log else output.softmax(objective.class_dim)
        return p.amax(objective.class_dim)[objective.term_weights(target, output) != 0]
    if not isinstance(output, Tensor) or output.numel() != len(output):
        raise NotMeasuredError(
            "it is defined for classifiers and for models with one number as output"
        )
    return output.reshape(-1)
