"""A few epochs of training that leave pruned weights at zero."""

import torch
from torch import Tensor

from landscape import batches
from landscape.problem import Problem

ROWS = 64  # samples of a step


def fine_tune(
    problem: Problem, kept: Tensor, *, epochs: int, learning_rate: float, seed: int
) -> None:
    """Train the problem's own model in place by Adam, in evaluation mode.

    Dropout is off, and batch normalisation keeps its running statistics. (Kingma & Ba 2015,
    arXiv:1412.6980.)

    Args:
        problem: the model, the loss and the data; samples are shuffled and dealt into steps of 64 where
            they can be, and else come in their batches, in shuffled order.
        kept: which of the selected parameters have not been pruned, bool (P,); the others are set to 0
            after every step.
        epochs: passes over the data.
        learning_rate: of Adam.
        seed: of the order.
    """
    source = torch.Generator().manual_seed(seed)
    held = list(problem.batches())
    whole = _joined(held)
    with problem.evaluation() as run:
        optimizer = torch.optim.Adam(run.leaves, lr=learning_rate)
        masks = problem.layout.split(kept)
        for _ in range(epochs):
            count = len(held) if whole is None else problem.samples
            order = torch.randperm(count, generator=source)
            for some in order.split(1 if whole is None else ROWS):
                batch = held[int(some)] if whole is None else _rows(whole, some)
                total, terms = run.total(batch)
                if not terms or not total.requires_grad:
                    continue
                optimizer.zero_grad()
                (total / terms).backward(inputs=run.leaves)
                optimizer.step()
                with torch.no_grad():
                    for leaf, mask in zip(run.leaves, masks, strict=True):
                        leaf.masked_fill_(~mask, 0)  # also what is not finite
        trained = [leaf.detach() for leaf in run.leaves]
    write(problem, problem.layout.flatten(trained, trained[0]))


@torch.no_grad()
def write(problem: Problem, vector: Tensor) -> None:
    """Set the selected parameters of the problem's own model to a flat vector (P,)."""
    for parameter, piece in zip(problem.selected(), problem.layout.split(vector), strict=True):
        parameter.copy_(torch.view_as_complex(piece) if parameter.is_complex() else piece)


def _joined(held: list[object]) -> object | None:
    """All samples in one batch, where each is a row of every tensor."""
    try:
        whole: object = batches.join(held)
    except (ValueError, TypeError):
        return None
    rows = sum(map(batches.row_count, held))
    tensors = [tensor for _, tensor in batches.named_tensors(whole)]
    return whole if all(t.ndim and len(t) == rows for t in tensors) else None


def _rows(whole: object, some: Tensor) -> object:
    return batches.map_tensors(whole, lambda tensor: tensor[some.to(tensor.device)])
