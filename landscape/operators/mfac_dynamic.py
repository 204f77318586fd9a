"""M-FAC's sliding window: the inverse Fisher matrix of the gradients seen last."""

import math

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.base import Operator
from landscape.operators.gradient_rows import (
    Rows,
    by_columns,
    checked_coefficients,
    combined,
    require_row,
    spread,
    times,
)
from landscape.operators.gram_inverse import checked_damping
from landscape.operators.span_split import EPS


class DynamicMFAC(Operator):
    """F⁻¹ of F = λI + GᵀG/m for a window of gradients that come and go; describes F⁻¹.

    m is the number of gradients in the window now, so that the first ones count in full. An update costs
    O(P·capacity + m³), a product O(P·capacity + m²), in float64. With GGᵀ/λ + mI = L U, U = diag(q) Lᵀ,
    the paper's triangles are D = triu(U − mI), Dᵢⱼ = gᵢᵀF⁻¹₍ᵢ₋₁₎gⱼ, and B = L⁻¹/λ, vᵢ = Σ Bᵢⱼgⱼ. (Frantar,
    Kurtic & Alistarh 2021, arXiv:2107.03356, section 3.2.)

    Args:
        size: P.
        capacity: the most gradients the window holds; the next one then takes the place of the oldest.
        damping: λ; may be set anew at any time.
        dtype: of vectors and stored gradients.
        device: where they are.
        rows: other storage for them, (capacity, P), such as `SparseRows` (EFCP).

    Attributes:
        order: where in `rows` the gradients of the window lie, oldest first.

    Raises:
        InputError: capacity or λ is not positive; later, λ is lost beside the gradients in float64.

    Example:
        >>> import torch
        >>> from landscape.operators.mfac_dynamic import DynamicMFAC
        >>> window = DynamicMFAC(3, capacity=8, damping=0.5)
        >>> window.push(torch.tensor([1.0, 2.0, 0.0]))
        >>> window.push(torch.tensor([0.0, 1.0, -1.0]))
        >>> window.D
        tensor([[10.0000,  4.0000],
                [ 0.0000,  2.6667]], dtype=torch.float64)
    """

    def __init__(
        self,
        size: int,
        capacity: int,
        damping: float,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rows: Rows | None = None,
    ) -> None:
        if not (isinstance(capacity, int) and capacity > 0):
            raise InputError(f"the capacity is {capacity!r}: give a whole number, at least 1")
        if rows is None:
            rows = Rows(torch.zeros(capacity, size, dtype=dtype, device=device))
        if rows.shape != (capacity, size):
            raise InputError(f"the rows have shape {rows.shape}: they must be ({capacity}, {size})")
        super().__init__(size, torch.promote_types(rows.dtype, torch.float32), rows.device)
        self.rows, self.capacity = rows, capacity
        self.order: list[int] = []
        # Of every place in `rows`, whether it is in the window or not.
        self._gram = torch.zeros(capacity, capacity, dtype=torch.float64, device=self.device)
        self.damping = damping

    @property
    def damping(self) -> float:
        return self._damping

    @damping.setter
    def damping(self, value: float) -> None:
        self._damping = checked_damping(value)
        self._factor: Tensor | None = None

    @property
    def count(self) -> int:
        """m, the gradients in the window."""
        return len(self.order)

    def push(self, gradient: Tensor) -> None:
        """Add a gradient (P,), in the place of the oldest if the window is full."""
        require_row(self.rows, gradient)
        if self.count == self.capacity:
            place = self.order.pop(0)
        else:
            place = min(set(range(self.capacity)) - set(self.order))
        self.rows.replace(place, gradient.detach())
        self.order.append(place)
        products = times(self.rows, self.rows.row(place)[:, None])[:, 0]
        self._gram[place] = self._gram[:, place] = products
        self._factor = None

    def remove(self, i: int) -> None:
        """Take the i-th oldest gradient out of the window; −1 is the newest."""
        if not -self.count <= i < self.count:
            raise InputError(f"there is no gradient {i}: the window holds {self.count}")
        del self.order[i]
        self._factor = None

    def span(self, coefficients: Tensor) -> Tensor:
        """F⁻¹Gᵀc for coefficients c (m,) or (m, K), oldest first, without the cancellation of a product."""
        c = checked_coefficients(coefficients, self.count).to(self.device)
        weights = self._spread(self.count * self._solve(c))
        result = combined(self.rows, weights).to(self.dtype)
        return result.reshape(self.shape[0], *coefficients.shape[1:])

    def newest(self) -> Tensor:
        """F⁻¹g for the newest gradient, (P,): one pass over the window."""
        if not self.order:
            raise InputError("the window is empty: push a gradient first")
        last = torch.zeros(self.count, dtype=torch.float64, device=self.device)
        last[-1] = 1
        return self.span(last)

    def _multiply(self, block: Tensor) -> Tensor:
        if not self.order:
            return block / self.damping
        weights = self._spread(self._solve(times(self.rows, block)[self.order]))
        return by_columns(
            self.rows,
            block.shape[1],
            lambda where, piece: (block[where].to(piece) - spread(piece, weights)) / self.damping,
            dtype=self.dtype,
        )

    def _spread(self, weights: Tensor) -> Tensor:
        """Weights (m, K) at the places of their gradients, (capacity, K)."""
        wide = weights.new_zeros(self.capacity, weights.shape[1])
        wide[self.order] = weights
        return wide

    @property
    def gram(self) -> Tensor:
        """GGᵀ of the window, (m, m) in float64, oldest first."""
        return self._gram[self.order][:, self.order]

    def _cholesky(self) -> Tensor:
        """C of mλI + GGᵀ = C Cᵀ."""
        if self._factor is None:
            shifted = self.gram
            shifted.diagonal().add_(self.count * self.damping)
            factor, failed = torch.linalg.cholesky_ex(shifted)
            # λ keeps the squares of the pivots above mλ: below this they are rounding alone.
            lost = factor.diagonal().square() < EPS * shifted.trace()
            if failed or bool(lost.any()):
                size = float(self.gram.diagonal().max().sqrt())
                raise InputError(
                    f"damping {self.damping:g} is lost beside gradients of size {size:.3g}: choose a "
                    "larger one"
                )
            self._factor = factor
        return self._factor

    def _solve(self, block: Tensor) -> Tensor:
        return torch.cholesky_solve(block, self._cholesky())

    # The paper's intermediates. C Cᵀ/λ = L U with U = diag(q) Lᵀ: q = diag(C)²/λ and L = C diag(C)⁻¹.

    @property
    def q(self) -> Tensor:
        """qᵢ = m + gᵢᵀF⁻¹₍ᵢ₋₁₎gᵢ, (m,)."""
        return self._cholesky().diagonal().square() / self.damping

    @property
    def D(self) -> Tensor:
        """Dᵢⱼ = gᵢᵀF⁻¹₍ᵢ₋₁₎gⱼ for j ≥ i, else 0, (m, m)."""
        factor = self._cholesky()
        upper = (factor * factor.diagonal()).T / self.damping
        return upper - self.count * torch.eye(self.count).to(upper)

    @property
    def B(self) -> Tensor:
        """The lower triangle with vᵢ = Σⱼ Bᵢⱼgⱼ, (m, m)."""
        factor = self._cholesky()
        unit = factor / factor.diagonal()
        return torch.linalg.solve_triangular(
            unit, torch.eye(self.count).to(unit) / self.damping, upper=False
        )

    @property
    def v(self) -> Tensor:
        """vᵢ = F⁻¹₍ᵢ₋₁₎gᵢ, (m, P) in float64."""
        return combined(self.rows, self._spread(self.B.T)).T

    def logdet(self) -> float:
        """log det F⁻¹."""
        rest = self.shape[0] * math.log(self.damping)
        return -rest - float(torch.log(self.q / max(self.count, 1)).sum())

    def trace(self) -> float:
        """tr F⁻¹ = (P − m)/λ + m tr (mλI + GGᵀ)⁻¹."""
        inverse = torch.cholesky_inverse(self._cholesky()).trace()
        return (self.shape[0] - self.count) / self.damping + self.count * float(inverse)

    def state_dict(self) -> dict[str, Tensor]:
        """The window as tensors: the stored gradients, their products and order, and λ.

        Gradients and products are the window's own, not copies: clone what is to outlive the next `push`.
        """
        order = torch.tensor(self.order, dtype=torch.int64)
        damping = torch.tensor(self.damping, dtype=torch.float64)
        return {**self.rows.state(), "gram": self._gram, "order": order, "damping": damping}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, to the last bit.

        Raises:
            InputError: it is of a window of another size or dtype, or no such state; nothing has changed.
        """
        missing = {"gram", "order", "damping"} - set(state)
        if missing:
            raise InputError(f"the state lacks {sorted(missing)}: it is none of a DynamicMFAC")
        if state["gram"].shape != self._gram.shape:
            raise InputError(
                f"the state is of a window of {len(state['gram'])} gradients, this one holds "
                f"{self.capacity}"
            )
        self.rows.load_state(state)
        self._gram.copy_(state["gram"])
        self.order = state["order"].tolist()
        self.damping = float(state["damping"])
