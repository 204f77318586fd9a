"""The data of a problem in small batches, in random order, for training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from landscape import batches
from landscape.problem import Problem

ROWS = 64  # samples of a step


class Minibatches:
    """Passes over the data: 64 samples at a time, or the problem's own batches where samples cannot be dealt.

    Args:
        problem: whose data; they are held in memory.
    """

    def __init__(self, problem: Problem) -> None:
        self._held = list(problem.batches())
        self._whole = _joined(self._held)
        self._count = len(self._held) if self._whole is None else problem.samples

    def __len__(self) -> int:
        """Batches of a pass."""
        return self._count if self._whole is None else -(-self._count // ROWS)

    def epoch(self, source: torch.Generator) -> Iterator[Any]:
        """One pass, in an order drawn from a source."""
        order = torch.randperm(self._count, generator=source)
        for some in order.split(1 if self._whole is None else ROWS):
            yield self._held[int(some)] if self._whole is None else _rows(self._whole, some)


def _joined(held: list[Any]) -> Any:
    """All samples in one batch, where each is a row of every tensor; else None."""
    try:
        whole = batches.join(held)
    except (ValueError, TypeError):
        return None
    rows = sum(map(batches.row_count, held))
    tensors = [tensor for _, tensor in batches.named_tensors(whole)]
    return whole if all(t.ndim and len(t) == rows for t in tensors) else None


def _rows(whole: Any, some: Tensor) -> Any:
    return batches.map_tensors(whole, lambda tensor: tensor[some.to(tensor.device)])
