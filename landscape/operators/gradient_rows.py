"""Gradients kept as the rows of a matrix, and read by columns."""

from collections.abc import Iterator

import torch
from torch import Tensor

from landscape.errors import InputError

PIECE = 2**22  # numbers of a piece that is worked on in float64


class Rows:
    """m gradients of length P, the rows of G (m, P), in memory.

    Args:
        matrix: G, a floating-point tensor (m, P) of finite numbers; it is taken over, not copied.

    Raises:
        InputError: another shape, no floating-point type, or a number that is not finite.
    """

    def __init__(self, matrix: Tensor) -> None:
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not matrix.numel():
            shape = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise InputError(f"the gradients are {shape}: pass a tensor (m, P), a gradient per row")
        if not matrix.is_floating_point():
            raise InputError(f"the gradients are {matrix.dtype}: pass floating-point numbers")
        if not bool(torch.isfinite(matrix).all()):
            place = int((~torch.isfinite(matrix)).any(1).nonzero()[0])
            raise InputError(f"gradient {place} holds a number that is not finite: leave it out")
        self._matrix = matrix.detach()

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix.shape[0], self._matrix.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self._matrix.dtype

    @property
    def device(self) -> torch.device:
        return self._matrix.device

    def columns(self, where: slice | Tensor) -> Tensor:
        """Some columns in float64, (m, k): a slice, or positions (k,)."""
        return self._matrix[:, where].double()

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """All columns in float64, piece by piece, each with its place."""
        count, size = self.shape
        width = max(1, PIECE // count)
        for start in range(0, size, width):
            where = slice(start, min(start + width, size))
            yield where, self.columns(where)

    def replace(self, i: int, gradient: Tensor) -> None:
        """Put a gradient (P,) in the place of row i."""
        self._matrix[i] = gradient.to(self._matrix)
