"""Random probe vectors with a private generator."""

import torch
from torch import Tensor

from landscape.operators.base import Operator


def generator(seed: int) -> torch.Generator:
    """A private generator on the CPU, so that a seed means the same vectors on every device."""
    return torch.Generator().manual_seed(seed)


def rademacher(
    operator: Operator, count: int, source: torch.Generator, *, size: int | None = None
) -> Tensor:
    """Independent random signs, shape (P, count): E[z zᵀ] = I and zᵀz = P exactly.

    Drawn one vector after another, so that the first vectors do not depend on how many are drawn.
    With a size, vectors of that length instead of P.
    """
    shape = (count, operator.shape[0] if size is None else size)
    signs = torch.randint(0, 2, shape, generator=source, dtype=torch.int8)
    return (2 * signs - 1).T.to(operator.device, operator.dtype)


def gaussian(operator: Operator, count: int, source: torch.Generator) -> Tensor:
    """Independent standard normal entries, shape (P, count), drawn one vector after another."""
    draws = torch.randn(count, operator.shape[0], generator=source, dtype=torch.float64)
    return draws.T.to(operator.device, operator.dtype)


def sphere(operator: Operator, count: int, source: torch.Generator) -> Tensor:
    """Independent vectors uniform on the sphere of radius √P, shape (P, count): E[z zᵀ] = I."""
    draws = torch.randn(count, operator.shape[0], generator=source, dtype=torch.float64)
    draws *= operator.shape[0] ** 0.5 / draws.norm(dim=1, keepdim=True)
    return draws.T.to(operator.device, operator.dtype)
