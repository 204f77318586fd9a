"""(λI + GᵀG/m)⁻¹ by the Gram matrix of the gradients."""

import math
from collections.abc import Callable
from typing import SupportsFloat

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.gradient_rows import (
    PIECE,
    Rows,
    accumulated,
    by_columns,
    combined,
    gram,
    spread,
    times,
)
from landscape.operators.span_split import loses_digits, pseudo_inverse, scaled, split

Formula = Callable[[slice, Tensor], Tensor]


def checked_damping(damping: SupportsFloat) -> float:
    """λ, which must make F invertible.

    Raises:
        InputError: it is no number, not positive, or not finite.
    """
    try:
        value = float(damping)
    except (TypeError, ValueError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise InputError(
            f"damping is {damping!r}: F has no inverse without one; choose a number above 0"
        )
    return value


class GramInverse:
    """F⁻¹ of F = λI + GᵀG/m for every λ, from one eigen-decomposition K = GGᵀ = Q diag(s) Qᵀ.

    Woodbury: F⁻¹x = (x − Gᵀ(mλI + K)⁻¹Gx)/λ, O(Pm) each. In the span of the gradients that subtracts
    nearly equal numbers, and there F⁻¹Gᵀc = m Gᵀ(mλI + K)⁻¹c does not. Everything is in float64.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.rotated: Tensor | None = None  # QᵀG, where entries are prepared
        self._decompose(gram(rows))

    def _decompose(self, matrix: Tensor) -> None:
        self.gram = matrix
        values, self.basis = torch.linalg.eigh(matrix)
        self.values = values.clamp_min(0)
        self._largest = float(self.values[-1])
        self.rotated = None

    @property
    def count(self) -> int:
        return self.rows.shape[0]

    def replace(self, i: int, gradient: Tensor) -> None:
        """Put another gradient (P,) in the place of the i-th."""
        self.rows.replace(i, gradient)
        products = times(self.rows, self.rows.row(i)[:, None])[:, 0]
        matrix = self.gram.clone()
        matrix[i] = matrix[:, i] = products
        self._decompose(matrix)

    def solve(self, block: Tensor, damping: float) -> Tensor:
        """(mλI + K)⁻¹ times a block (m, K)."""
        return scaled(self.basis, 1 / (self.values + self.count * damping), block)

    def span(self, coefficients: Tensor, damping: float) -> Tensor:
        """F⁻¹Gᵀc for coefficients (m, K)."""
        return combined(self.rows, self.count * self.solve(coefficients, damping))

    def product(self, block: Tensor, damping: float) -> Tensor:
        """F⁻¹ times a block (P, K), in its dtype."""
        if loses_digits(self._largest, self.count * damping, block.dtype):
            return self._split_product(block, damping)
        weights = self.solve(times(self.rows, block), damping)
        return self._by_columns(
            block,
            lambda where, piece: (block[where].to(piece) - spread(piece, weights)) / damping,
        )

    def _split_product(self, block: Tensor, damping: float) -> Tensor:
        """The same, what lies in the span of the gradients being split off first."""
        width, count = block.shape[1], self.count
        c = scaled(self.basis, pseudo_inverse(self.values), times(self.rows, block))

        def add(total: Tensor, where: slice, piece: Tensor) -> None:
            x = block[where].to(piece)
            rest = x - spread(piece, c)
            total[:count].addmm_(piece, rest)
            total[count] += rest.square().sum(0)
            total[count + 1] += x.square().sum(0)

        sums = accumulated(self.rows, width, add, height=count + 2)
        lengths = self.gram.diagonal().sqrt()
        kept, weights = split(
            self.basis, self.values, damping, lengths, c, *sums.split((count, 1, 1))
        )
        return self._by_columns(
            block,
            lambda where, piece: block[where].to(piece) * kept.to(piece) + spread(piece, weights),
        )

    def _by_columns(self, block: Tensor, formula: Formula) -> Tensor:
        return by_columns(self.rows, block.shape[1], formula, dtype=block.dtype)

    def diagonal(self, damping: float) -> Tensor:
        """The diagonal of F⁻¹, (P,)."""
        factors = 1 / (self.values + self.count * damping)
        if self.rotated is not None:
            runs = self.rotated.split(max(1, PIECE // self.count), dim=1)
            return (1 - torch.cat([factors @ run.square() for run in runs])) / damping
        root = (self.basis * factors.sqrt()).T
        return by_columns(
            self.rows,
            1,
            lambda where, piece: (1 - (root.to(piece) @ piece).square().sum(0)[:, None]) / damping,
        )[:, 0]

    @property
    def entry_bytes(self) -> int:
        """What `prepare_entries` would add."""
        return 8 * self.count * self.rows.shape[1] if self.rotated is None else 0

    def prepare_entries(self) -> None:
        """Keep QᵀG, (m, P) in float64: entries then cost O(m) at every λ, and the diagonal O(Pm)."""
        if self.rotated is None:
            self.rotated = combined(self.rows, self.basis).T

    def entries(self, i: Tensor, j: Tensor, damping: float) -> Tensor:
        """[F⁻¹]_ij for positions (k,) and (k,)."""
        factors = 1 / (self.values + self.count * damping)
        if self.rotated is not None:
            inner = factors @ (self.rotated[:, i] * self.rotated[:, j])
        else:
            left, right = self.basis.T @ self.rows.columns(i), self.basis.T @ self.rows.columns(j)
            inner = factors @ (left * right)
        return ((i == j).double() - inner) / damping

    def logdet(self, damping: float) -> float:
        return inverse_logdet(self.values, self.rows, damping)

    def trace(self, damping: float) -> float:
        return inverse_trace(self.values, self.rows, damping)


def inverse_logdet(values: Tensor, rows: Rows, damping: float) -> float:
    """log det F⁻¹ from the eigenvalues of GGᵀ or GᵀG, of the whole or of all blocks."""
    count, size = rows.shape
    rest = (size - values.numel()) * math.log(damping)
    return -rest - float(torch.log(damping + values / count).sum())


def inverse_trace(values: Tensor, rows: Rows, damping: float) -> float:
    """tr F⁻¹ from the eigenvalues of GGᵀ or GᵀG, of the whole or of all blocks."""
    count, size = rows.shape
    return (size - values.numel()) / damping + float((1 / (damping + values / count)).sum())
