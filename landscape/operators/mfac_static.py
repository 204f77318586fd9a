"""M-FAC's static recursion: the inverse Fisher matrix of a fixed set of gradients, one after another."""

import math

import torch
from torch import Tensor

from landscape.operators.base import Operator
from landscape.operators.gradient_rows import Rows, require_finite
from landscape.operators.gram_inverse import checked_damping

AT_ONCE = 32  # gradients from which all earlier ones are subtracted together


class StaticMFAC(Operator):
    """F⁻¹ of F = λI + GᵀG/m by Sherman and Morrison's formula, a gradient at a time; describes F⁻¹.

    vᵢ = F⁻¹₍ᵢ₋₁₎gᵢ = gᵢ/λ − Σ_{j<i} vⱼ (vⱼ·gᵢ)/qⱼ and qᵢ = m + gᵢ·vᵢ, in O(Pm²); then F⁻¹x = x/λ − Σ vⱼ
    (vⱼ·x)/qⱼ costs O(Pm), an entry O(m) and the diagonal O(Pm). The same matrix as `InverseFisher`, which
    also serves other dampings and keeps its digits in the span of the gradients. (Frantar, Kurtic &
    Alistarh 2021, arXiv:2107.03356, section 3.1.)

    Args:
        gradients: G (m, P).
        damping: λ.

    Attributes:
        v: the vᵢ, (m, P) in float64: in float32 what is subtracted leaves no digits at small λ.
        q: the qᵢ, (m,).

    Raises:
        InputError: no gradients, one that is not finite, or λ is not positive.

    Example:
        >>> import torch
        >>> from landscape.operators.mfac_static import StaticMFAC
        >>> G = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
        >>> StaticMFAC(G, damping=0.5).q * 3
        tensor([36., 14.], dtype=torch.float64)
    """

    def __init__(self, gradients: Tensor, damping: float) -> None:
        rows = Rows(gradients)
        count, size = rows.shape
        super().__init__(size, torch.promote_types(rows.dtype, torch.float32), rows.device)
        self.damping, self.count = checked_damping(damping), count
        self.v = gradients.detach().to(torch.float64, copy=True)
        self.q = torch.empty(count, dtype=torch.float64, device=self.device)
        for start in range(0, count, AT_ONCE):
            block = self.v[start : start + AT_ONCE]
            own = block.clone()
            block /= self.damping
            block -= self._correction(own.T, start).T
            for i in range(len(block)):
                # The earlier ones of this block, which `_correction` has not seen.
                weights = block[:i] @ own[i] / self.q[start : start + i]
                block[i] -= weights @ block[:i]
                self.q[start + i] = count + own[i] @ block[i]
        require_finite(self.q)

    def _correction(self, block: Tensor, first: int) -> Tensor:
        """Σ_{j<first} vⱼ (vⱼ·x)/qⱼ for the columns x of a block (P, K)."""
        earlier = self.v[:first]
        return earlier.T @ (earlier @ block / self.q[:first, None])

    def _multiply(self, block: Tensor) -> Tensor:
        x = block.double()
        return (x / self.damping - self._correction(x, self.count)).to(self.dtype)

    def entry(self, i: int, j: int) -> float:
        """[F⁻¹]_ij."""
        inner = float((self.v[:, i] * self.v[:, j] / self.q).sum())
        return float(i == j) / self.damping - inner

    def diagonal(self) -> Tensor:
        """The diagonal of F⁻¹, (P,) in float64."""
        return 1 / self.damping - (1 / self.q) @ self.v.square()

    def logdet(self) -> float:
        """log det F⁻¹."""
        return -self.shape[0] * math.log(self.damping) - float(torch.log(self.q / self.count).sum())

    def trace(self) -> float:
        """tr F⁻¹."""
        return self.shape[0] / self.damping - float((self.v.square().sum(1) / self.q).sum())
