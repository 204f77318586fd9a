"""The diagonal by products with the identity: P of them, and no error but rounding."""

import torch
from torch import Tensor

from landscape.estimators.sums import wide
from landscape.operators.base import Operator

WIDTH = 64  # columns of the identity multiplied at once


def exact_diagonal(A: Operator) -> Tensor:
    """The diagonal in float64, shape (P,)."""
    size = A.shape[0]
    like = torch.empty(0, dtype=A.dtype, device=A.device)
    found = like.new_empty(size, dtype=wide(like))
    for start in range(0, size, WIDTH):
        rows = torch.arange(start, min(start + WIDTH, size), device=A.device)
        columns = torch.arange(len(rows), device=A.device)
        unit = torch.zeros(size, len(rows), dtype=A.dtype, device=A.device)
        unit[rows, columns] = 1
        found[rows] = A.product(unit)[rows, columns].to(found)
    A.require_finite(found.sum())
    return found
