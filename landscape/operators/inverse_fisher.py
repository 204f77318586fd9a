"""The inverse of a damped Fisher matrix of a few gradients, by one Gram matrix."""

import copy
import math

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.base import Operator
from landscape.operators.gradient_rows import Rows


class InverseFisher(Operator):
    """F⁻¹ of F = λI + GᵀG/m, G (m, P) the gradients: an operator, whose every method describes F⁻¹.

    With K = GGᵀ = Q diag(s) Qᵀ, one eigen-decomposition of order m in float64 serves every vector, every
    damping, the diagonal, entries, the determinant and the trace, by Woodbury's identity
    F⁻¹x = (x − Gᵀ(mλI + K)⁻¹Gx)/λ. What lies in the span of the gradients goes another way, without
    cancellation: F⁻¹Gᵀc = m Gᵀ(mλI + K)⁻¹c. (Frantar, Kurtic & Alistarh 2021, arXiv:2107.03356, compute
    the same matrix by a recursion over the gradients.)
    """

    def __init__(self, rows: Rows, damping: float) -> None:
        count, size = rows.shape
        _check_damping(damping)
        super().__init__(size, rows.dtype, rows.device)
        self.rows, self.damping, self.count = rows, float(damping), count
        gram = torch.zeros(count, count, dtype=torch.float64, device=rows.device)
        for _, piece in rows.pieces():
            gram.addmm_(piece, piece.T)
        self._decompose(gram)

    @classmethod
    def from_gradients(cls, gradients: Tensor, damping: float) -> "InverseFisher":
        """F⁻¹ from the gradients themselves, G (m, P), which are not copied."""
        return cls(Rows(gradients), damping)

    def _decompose(self, gram: Tensor) -> None:
        self.gram = gram
        values, self.basis = torch.linalg.eigh(gram)
        self.values = values.clamp_min(0)

    def with_damping(self, damping: float) -> "InverseFisher":
        """The same with another λ, at no cost."""
        _check_damping(damping)
        other = copy.copy(self)
        other.damping, other.products = float(damping), 0
        return other

    def replace(self, i: int, gradient: Tensor) -> None:
        """Put another gradient (P,) in the place of the i-th, in O(mP + m³)."""
        self.rows.replace(i, gradient)
        row = torch.cat([self.rows.columns(where)[i] for where, _ in self.rows.pieces()])
        gram = self.gram.clone()
        gram[i] = gram[:, i] = self._along(row[:, None])[:, 0]
        self._decompose(gram)

    def span(self, coefficients: Tensor) -> Tensor:
        """F⁻¹Gᵀc for coefficients c (m,) or (m, K): of gradients and their combinations, exact to rounding."""
        c = coefficients.double().reshape(self.count, -1)
        weights = self.count * self._by_eigenvalue(c, self._shifted)
        result = self._combined(weights).to(self.dtype)
        return result.reshape(self.shape[0], *coefficients.shape[1:])

    def diagonal(self) -> Tensor:
        """The diagonal of F⁻¹, (P,) in float64."""
        found = torch.empty(self.shape[0], dtype=torch.float64, device=self.device)
        root = (self.basis / self._shifted.sqrt()).T
        for where, piece in self.rows.pieces():
            found[where] = (1 - (root @ piece).square().sum(0)) / self.damping
        return found

    def entry(self, i: int, j: int) -> float:
        """[F⁻¹]_ij."""
        columns = self.rows.columns(torch.tensor([i, j], device=self.device))
        inner = columns[:, 0] @ self._by_eigenvalue(columns[:, 1:], self._shifted)[:, 0]
        return (float(i == j) - float(inner)) / self.damping

    def logdet(self) -> float:
        """log det F⁻¹."""
        rest = (self.shape[0] - self.count) * math.log(self.damping)
        return -rest - float(torch.log(self.damping + self.values / self.count).sum())

    def trace(self) -> float:
        """tr F⁻¹."""
        rest = (self.shape[0] - self.count) / self.damping
        return rest + float((1 / (self.damping + self.values / self.count)).sum())

    @property
    def _shifted(self) -> Tensor:
        return self.values + self.count * self.damping

    def _multiply(self, block: Tensor) -> Tensor:
        inside = self._by_eigenvalue(self._along(block), self._shifted)
        result = torch.empty_like(block)
        for where, piece in self.rows.pieces():
            result[where] = (block[where].double() - piece.T @ inside) / self.damping
        return result

    def _along(self, block: Tensor) -> Tensor:
        """G times a block (P, K), in float64."""
        total = torch.zeros(self.count, block.shape[1], dtype=torch.float64, device=self.device)
        for where, piece in self.rows.pieces():
            total.addmm_(piece, block[where].double())
        return total

    def _combined(self, weights: Tensor) -> Tensor:
        """Gᵀ times weights (m, K), in float64."""
        parts = [piece.T @ weights for _, piece in self.rows.pieces()]
        return torch.cat(parts)

    def _by_eigenvalue(self, block: Tensor, divisors: Tensor) -> Tensor:
        return self.basis @ ((self.basis.T @ block) / divisors[:, None])


def _check_damping(damping: float) -> None:
    if not (damping > 0 and math.isfinite(damping)):
        raise InputError(f"damping is {damping}: F has no inverse without one; choose one above 0")
