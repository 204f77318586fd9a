"""A few epochs of training that leave pruned weights at zero."""

import torch
from torch import Tensor

from landscape.analyses.minibatches import Minibatches
from landscape.problem import Problem


def fine_tune(
    problem: Problem, kept: Tensor, *, epochs: int, learning_rate: float, seed: int
) -> None:
    """Train the problem's own model in place by Adam, in evaluation mode.

    Dropout is off, and batch normalisation keeps its running statistics. (Kingma & Ba 2015,
    arXiv:1412.6980.)

    Args:
        problem: the model, the loss and the data, see `Minibatches`.
        kept: which of the selected parameters have not been pruned, bool (P,); the others are set to 0
            after every step.
        epochs: passes over the data.
        learning_rate: of Adam.
        seed: of the order.
    """
    source = torch.Generator().manual_seed(seed)
    data = Minibatches(problem)
    with problem.evaluation() as run:
        optimizer = torch.optim.Adam(run.leaves, lr=learning_rate)
        masks = problem.layout.split(kept)
        for _ in range(epochs):
            for batch in data.epoch(source):
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
