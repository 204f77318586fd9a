"""Samples whose mean is the trace or the diagonal: Hutchinson's estimator."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from landscape.estimators.sums import dots, wide
from landscape.operators.base import Operator

BLOCK = 8  # probes multiplied at once


class Quantity(NamedTuple):
    """What is estimated: m numbers, 1 for the trace and P for the diagonal.

    `sample` makes unbiased samples (m, n) from Rademacher probes z and the products Az, both (P, n);
    `inside` gives the part (m,) of an orthonormal basis Q from Q and AQ: of A − PAP, P = I − QQᵀ.
    """

    sample: Callable[[Tensor, Tensor], Tensor]
    inside: Callable[[Tensor, Tensor], Tensor]


def _quadratic_forms(probes: Tensor, products: Tensor) -> Tensor:
    """zᵀAz (Hutchinson 1990, doi:10.1080/03610919008812866), shape (1, n)."""
    return dots(probes, products)[None]


def _trace_inside(basis: Tensor, images: Tensor) -> Tensor:
    """tr A − tr PAP = tr QᵀAQ."""
    return dots(basis, images).sum()[None]


def _entries(probes: Tensor, products: Tensor) -> Tensor:
    """z ∘ Az (Bekas, Kokiopoulou & Saad 2007, doi:10.1016/j.apnum.2007.01.003), shape (P, n)."""
    return (probes * products).to(wide(probes))


def _diagonal_inside(basis: Tensor, images: Tensor) -> Tensor:
    """diag(A − PAP) = diag(2 AQQᵀ − QHQᵀ), H = QᵀAQ."""
    inner = basis.T @ images
    return (basis * (2 * images - basis @ ((inner + inner.T) / 2))).sum(1, dtype=wide(basis))


TRACE = Quantity(_quadratic_forms, _trace_inside)
DIAGONAL = Quantity(_entries, _diagonal_inside)


def in_blocks(A: Operator, vectors: Tensor) -> Tensor:
    """A times a block (P, k), BLOCK columns at a time."""
    products = torch.empty_like(vectors)
    for start in range(0, vectors.shape[1], BLOCK):
        products[:, start : start + BLOCK] = A.product(vectors[:, start : start + BLOCK])
    return products
