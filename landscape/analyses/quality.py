"""How good is a model on some data: its loss, and the share of right classes."""

from dataclasses import dataclass

import torch

from landscape.problem import Problem


@dataclass(frozen=True)
class Quality:
    """Mean loss, NaN or infinite as it comes, and accuracy; None where there are no classes to be right."""

    loss: float
    accuracy: float | None


def quality(problem: Problem) -> Quality:
    """Loss and accuracy over all the data, in one pass in evaluation mode.

    The accuracy is the share of class indices (ignored targets aside) at which the largest logit stands,
    or of labels of two kinds that the sign of their logit tells.

    Example:
        >>> import torch, landscape as ls
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.requires_grad_().weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
        >>> round(quality(ls.Problem(model, "cross_entropy", (x, y))).accuracy, 4)
        0.6667
    """
    total, right, cases = 0.0, 0.0, 0
    with problem.evaluation() as run, torch.no_grad():
        for batch in run.batches():
            if problem.objective is None:
                total += float(run.total(batch)[0])
                continue
            output, target = run.output(batch)
            total += float(problem.objective.total(output, target)[0])
            hits = problem.objective.hits(output, target)
            if hits is not None:
                right, cases = right + float(hits[0]), cases + hits[1]
    return Quality(total / problem.terms, right / cases if cases else None)
