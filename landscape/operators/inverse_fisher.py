"""The inverse of a damped Fisher matrix of a few gradients, by one Gram matrix."""

import copy
import math

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.base import Operator
from landscape.operators.gradient_rows import Rows
from landscape.operators.sample_gradients import Drawn, Per, draw
from landscape.operators.sample_gradients import gradients as compute
from landscape.problem import Problem

DEFAULT_COUNT = 256  # gradients


class InverseFisher(Operator):
    """F⁻¹ of F = λI + GᵀG/m, G (m, P) the gradients: an operator, whose every method describes F⁻¹.

    With K = GGᵀ = Q diag(s) Qᵀ, one eigen-decomposition of order m in float64 serves every vector, every
    damping, the diagonal, entries, the determinant and the trace, by Woodbury's identity
    F⁻¹x = (x − Gᵀ(mλI + K)⁻¹Gx)/λ. What lies in the span of the gradients goes another way, without
    cancellation: F⁻¹Gᵀc = m Gᵀ(mλI + K)⁻¹c. (Frantar, Kurtic & Alistarh 2021, arXiv:2107.03356, compute
    the same matrix by a recursion over the gradients.)

    Args:
        problem: the loss, its model and data.
        gradients: m, how many; default 256, or all there are if they are fewer.
        damping: λ, in units of the loss² per parameter².
        per: "sample": gᵢ is the gradient of a sample's own loss, scaled as in `EmpiricalFisher`, so that
            with all samples F − λI is that matrix; they are drawn at random without replacement. "batch":
            gᵢ is the gradient of the mean over the i-th batch; with batches of B random samples this
            estimates E/B + (1 − 1/B) ∇L∇Lᵀ, E the empirical Fisher matrix.
        seed: of the draw.

    Raises:
        InputError: m is larger than the data, λ is not positive, or samples are asked of a closure.

    Example:
        >>> import torch, landscape as ls
        >>> G = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
        >>> inverse = ls.InverseFisher.from_gradients(G, damping=0.5)
        >>> inverse @ torch.ones(3) * 7
        tensor([5.0000, 2.0000, 8.0000])
    """

    def __init__(
        self,
        problem: Problem,
        gradients: int | None = None,
        damping: float = 1e-3,
        *,
        per: Per = "sample",
        seed: int = 0,
    ) -> None:
        if not hasattr(problem, "evaluation"):
            raise InputError(
                f"a {type(problem).__name__} is no problem: pass ls.Problem(model, loss, data), or the "
                "gradients themselves to ls.InverseFisher.from_gradients"
            )
        _check_damping(damping)
        drawn, known = draw(problem, gradients, per=per, seed=seed, default=DEFAULT_COUNT)
        matrix = torch.empty(
            len(drawn.samples), problem.size, dtype=problem.dtype, device=problem.device
        )
        filled = 0

        def take(block: Tensor) -> None:
            nonlocal filled
            matrix[filled : filled + len(block)] = block
            filled += len(block)

        compute(problem, drawn, known, take)
        self._set_up(Rows(matrix), damping)
        self.problem, self.drawn = problem, drawn

    @classmethod
    def from_gradients(cls, gradients: Tensor, damping: float) -> "InverseFisher":
        """F⁻¹ from the gradients themselves, G (m, P), which are not copied."""
        inverse = cls.__new__(cls)
        inverse._set_up(Rows(gradients), damping)
        return inverse

    def _set_up(self, rows: Rows, damping: float) -> None:
        count, size = rows.shape
        _check_damping(damping)
        super().__init__(size, rows.dtype, rows.device)
        self.problem: Problem | None = None
        self.drawn: Drawn | None = None
        self.rows, self.damping, self.count = rows, float(damping), count
        gram = torch.zeros(count, count, dtype=torch.float64, device=rows.device)
        for _, piece in rows.pieces():
            gram.addmm_(piece, piece.T)
        self._decompose(gram)

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
