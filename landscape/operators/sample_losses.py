"""Losses of single samples: their derivatives along given directions, and gradients of a few of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from landscape.batches import row_count, take_rows
from landscape.errors import InputError
from landscape.operators.products.double_backward import jacobian_products
from landscape.problem import Problem


def derivatives_along(
    problem: Problem, block: Tensor, *, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """gᵢᵀv of every sample i and every column v of a block (P, K), in one pass over the data.

    gᵢ is the gradient of the sum of the loss terms of sample i. No gradient of a sample is ever made: with
    J the Jacobian of the samples' losses these are the rows of J V.

    Args:
        problem: the loss, with model and loss apart.
        block: directions.
        progress: called with (batches done, batches).

    Returns:
        A tensor (samples, K), in the order of the data.

    Raises:
        InputError: the problem was made from a closure.
    """
    problem.supervised()
    found = []
    with problem.evaluation() as run:
        for place, batch in enumerate(run.batches()):
            forward, _ = jacobian_products(run, run.rows(batch))
            found.append(torch.stack([forward(v).detach() for v in block.T.contiguous()], dim=1))
            if progress is not None:
                progress(place + 1, problem.batch_count)
    return torch.cat(found)


def losses_and_gradients(problem: Problem, positions: Sequence[int]) -> tuple[list[float], Tensor]:
    """Losses and gradients of single samples, each its mean over the sample's own loss terms.

    A sample is evaluated within its batch, as it is by `derivatives_along`.

    Args:
        problem: the data, in whose order the samples are counted from 0.
        positions: of k samples.

    Returns:
        The losses, and the gradients as the columns of a block (P, k).

    Raises:
        InputError: there is no such sample, it has no loss term, or the problem was made from a closure.
    """
    objective = problem.supervised()
    outside = [p for p in positions if not 0 <= p < problem.samples]
    if outside or not positions:
        seen = f"sample {outside[0]} was asked for" if outside else "no sample was asked for"
        raise InputError(
            f"{seen}, and the data hold {problem.samples:,}: count from 0 to {problem.samples - 1:,}"
        )
    losses = dict.fromkeys(positions, 0.0)
    columns = torch.zeros(problem.size, len(positions), dtype=problem.dtype, device=problem.device)
    stop = 0
    with problem.evaluation() as run:
        for batch in run.batches():
            start, stop = stop, stop + row_count(batch)
            here = [position for position in losses if start <= position < stop]
            if not here:
                continue
            output, target = run.output(batch)
            for position in here:
                row = position - start
                own = (take_rows(thing, row, row + 1) for thing in (output, target))
                total, terms = objective.total(*own)
                if not terms:
                    raise InputError(
                        f"sample {position} has no loss: its target is ignored or has weight 0; choose "
                        "another"
                    )
                losses[position] = float(total.detach()) / terms
                if total.requires_grad:
                    parts = torch.autograd.grad(
                        total / terms, run.leaves, allow_unused=True, retain_graph=True
                    )
                    same = [i for i, p in enumerate(positions) if p == position]
                    columns[:, same] = problem.layout.flatten(parts, columns)[:, None]
    return [losses[position] for position in positions], columns
