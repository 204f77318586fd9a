"""Does what the model returns look like what the loss expects? Said, never decided."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.losses import token_cross_entropy
from landscape.problem import Problem

_OF_LOGITS = (F.cross_entropy, token_cross_entropy, F.binary_cross_entropy_with_logits)


def remarks(problem: Problem) -> Iterator[str]:
    """What a person should look at, in sentences; from the first batch and the loss of all data."""
    objective = problem.objective
    if objective is None or not objective.recognised:
        return
    with problem.evaluation() as run, torch.no_grad():
        batch = next(iter(run.batches()))
        returned, _ = run.returned(batch)
        output, _ = run.output(batch)
    if isinstance(returned, (tuple, list)):
        kind = type(returned).__name__
        yield f"the model returns a {kind} of {len(returned)}; its first entry is compared with the targets"
    if not isinstance(output, Tensor) or objective.function not in _OF_LOGITS:
        return
    if output.numel() and float(output.min()) >= 0 and float(output.max()) <= 1:
        yield (
            "every output of the first batch lies between 0 and 1: if the model ends in a sigmoid or "
            f"softmax, {objective.name}, which expects logits, is the wrong loss (--loss bce or nll)"
        )
    if objective.function is not F.binary_cross_entropy_with_logits:
        guessing = math.log(output.shape[objective.class_dim])
        if (loss := problem.loss()) > 2 * guessing:
            yield (
                f"the loss {loss:.4g} is more than twice that of guessing ({guessing:.4g}): do the numbering "
                "of the classes and the preprocessing match those of the training?"
            )
