"""Any symmetric matrix as an operator, so that every estimator is usable, and testable, on its own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.base import Operator
from landscape.parameters import canonical_device


class FunctionOperator(Operator):
    """A symmetric matrix given by a function on blocks (P, K)."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(size, dtype, device)
        self.function = function

    def _multiply(self, block: Tensor) -> Tensor:
        # A function of the user's may write to its argument, or return the same tensor every time.
        return self.function(block.clone()).clone()


def as_operator(
    matrix: Any,
    *,
    shape: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Operator:
    """Make any symmetric matrix an operator, so that every estimator can be used on it.

    Args:
        matrix: a square torch tensor or NumPy array, a SciPy sparse matrix or `LinearOperator`, an
            operator (returned as it is), or a linear function of vectors (P,) or of blocks (P, K).
        shape: (P, P), needed for functions only.
        dtype: floating-point type of vectors and products; a tensor is converted to it.
        device: where vectors live.

    Raises:
        InputError: not square, not symmetric, or a function without a shape.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([1.0, 2.0])))
        >>> A @ torch.ones(2, dtype=torch.float64)
        tensor([1., 2.], dtype=torch.float64)
    """
    if isinstance(matrix, Operator):
        return matrix
    where = canonical_device(device)
    if isinstance(matrix, np.ndarray):
        matrix = torch.from_numpy(np.ascontiguousarray(matrix))
    if isinstance(matrix, Tensor) and matrix.is_complex():
        raise InputError(
            f"the matrix is {matrix.dtype}: only real symmetric matrices are supported"
        )
    size = matrix.shape if hasattr(matrix, "shape") else shape
    if size is None:
        raise InputError("a function needs shape=(P, P) to become an operator")
    if len(size) != 2 or size[0] != size[1] or not size[0]:
        raise InputError(f"the operator has shape {tuple(size)}: it must be square")
    function: Callable[[Tensor], Tensor]
    if isinstance(matrix, Tensor):
        function = partial(torch.matmul, matrix.detach().to(where, dtype))
    elif hasattr(matrix, "shape"):  # SciPy
        function = partial(_through_numpy, matrix)
    elif callable(matrix):
        function = _on_blocks(matrix, int(size[0]), dtype, where)
    else:
        raise InputError(
            f"a {type(matrix).__name__} is no matrix: pass a tensor, a SciPy operator or a function"
        )
    _require_symmetric(function, int(size[0]), dtype, where)
    return FunctionOperator(function, int(size[0]), dtype, where)


def _through_numpy(matrix: Any, block: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(matrix @ block.cpu().numpy())).to(block)


def _probes(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # Never as many columns as rows: a vector would then broadcast over a block without a word.
    return torch.randn(size, 3 if size == 2 else 2, generator=generator, dtype=dtype).to(device)


def _on_blocks(
    function: Callable[[Tensor], Any], size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """A function on blocks, whether the given one takes blocks or only vectors: tried on both."""

    def by_columns(block: Tensor) -> Tensor:
        columns = [torch.as_tensor(function(v)).to(block) for v in block.T.contiguous()]
        return torch.stack(columns, dim=1)

    def by_block(block: Tensor) -> Tensor:
        return torch.as_tensor(function(block)).to(block)

    probes = _probes(size, dtype, device)
    try:
        expected = by_columns(probes)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return by_block  # a function of blocks alone
    try:
        found = by_block(probes)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return by_columns
    if found.shape != expected.shape:
        return by_columns
    rounding = 1e3 * torch.finfo(dtype).eps * expected.abs().max()
    return by_block if bool((found - expected).abs().max() <= rounding) else by_columns


def _require_symmetric(
    function: Callable[[Tensor], Tensor], size: int, dtype: torch.dtype, device: torch.device
) -> None:
    probes = _probes(size, dtype, device)
    product = function(probes)
    if product.shape != probes.shape:
        raise InputError(
            f"the function maps a block {tuple(probes.shape)} to {tuple(product.shape)}: "
            "it must keep the shape"
        )
    form = probes.T @ product
    scale = float(probes.norm() * product.norm())
    gap = float((form - form.T).abs().max())
    if gap > 1e3 * torch.finfo(dtype).eps * scale:
        raise InputError(
            f"the matrix is not symmetric: xᵀAy and yᵀAx differ by {gap:.3g} at size {scale:.3g}; "
            "pass (A + A.T) / 2 if that is rounding"
        )
