"""The loss of normalised logits, which no longer falls by making all logits larger."""

import copy
from typing import Any

import torch
from torch import Tensor

from landscape.analyses.sharpness.averages import average_row
from landscape.analyses.sharpness.balls import NORMS, worst_row
from landscape.analyses.sharpness.measure import NotMeasuredError, Part
from landscape.analyses.sharpness.options import Options
from landscape.analyses.sharpness.subject import Subject
from landscape.objective import Objective
from landscape.problem import Problem


def normalised(subject: Subject, options: Options) -> Part:
    """Rows of the worst and the average case of the loss of normalised logits."""
    other = subject.on(logit_normalised(subject.problem))
    family, prefix, rows = "normalised", "logit-normalised ", []
    for adaptive in (False, True):
        for norm in NORMS:
            rows.append(worst_row(other, options, family, norm, adaptive, prefix=prefix))
        rows.append(average_row(other, options, family, adaptive, prefix=prefix))
    return Part(rows)


class LogitNormalised(Objective):
    """A cross-entropy of logits that are centred and divided by their Euclidean norm, term by term."""

    def _reduced(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        centred = output - output.mean(self.class_dim, keepdim=True)
        tiny = torch.finfo(output.dtype).tiny
        length = centred.norm(dim=self.class_dim, keepdim=True).clamp_min(tiny)
        return super()._reduced(centred / length, target, reduction)


def logit_normalised(problem: Problem) -> Problem:
    """The same problem with f replaced by (f − mean f)/‖f − mean f‖₂ over the classes.

    (Andriushchenko 2023, arXiv:2302.07011, whose code centres first; division by the norm, not by the
    standard deviation, is a choice, as of a temperature.)

    Raises:
        NotMeasuredError: the loss is no cross-entropy of logits.
    """
    objective: Any = problem.objective
    if objective is None or objective.likelihood != "categorical":
        raise NotMeasuredError("the loss is no cross-entropy of logits")
    other = copy.copy(problem)
    other.objective = LogitNormalised(objective.loss, objective.terms)
    other._gradient_seconds = None
    return other
