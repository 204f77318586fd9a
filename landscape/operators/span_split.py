"""Products with (λI + GᵀG/m)⁻¹ that keep their digits in the span of the gradients."""

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps


def scaled(basis: Tensor, factors: Tensor, block: Tensor) -> Tensor:
    """Q diag(factors) Qᵀ times a block (…, m, K)."""
    return basis @ (basis.mT @ block * factors[..., None])


def pseudo_inverse(values: Tensor) -> Tensor:
    """The eigenvalues of K⁺ from those of K, ascending, (…, m)."""
    resolved = values > values.shape[-1] * EPS * values[..., -1:]
    return torch.where(resolved, 1 / values, 0)


def loses_digits(largest: float, shift: float, dtype: torch.dtype) -> bool:
    """Whether Woodbury's identity in float64 rounds more coarsely than a dtype, by K's largest eigenvalue."""
    return EPS * largest / shift > torch.finfo(dtype).eps / 16


def split(
    basis: Tensor,
    values: Tensor,
    damping: float,
    lengths: Tensor,
    c: Tensor,
    remaining: Tensor,
    rest: Tensor,
    size: Tensor,
) -> tuple[Tensor, Tensor]:
    """F⁻¹x without cancellation, as κx + Gᵀw; one system, or as many as there are leading dimensions.

    With any c, F⁻¹x = F⁻¹Gᵀc + F⁻¹r, r = x − Gᵀc. Of c = K⁺Gx the second term is what lies outside the span;
    where it is no more than the rounding of r it is left out: its 1/λ would amplify noise alone.

    Args:
        basis, values: Q (…, m, m) and diag(s) (…, m) of K.
        damping: λ.
        lengths: of the gradients, (…, m).
        c: K⁺Gx, (…, m, K).
        remaining: Gr, (…, m, K).
        rest, size: squares of the norms of r and of x, (…, 1, K).

    Returns:
        κ (…, 1, K) and w (…, m, K).
    """
    count, inverse = values.shape[-1], pseudo_inverse(values)
    inside = (basis.mT @ remaining).square() * inverse[..., None]
    outside = (rest - inside.sum(-2, keepdim=True)).clamp_min(0).sqrt()
    slack = 4 * EPS * (size.sqrt() + lengths[..., None, :] @ c.abs())
    keep = (outside > slack).double()
    factors = 1 / (values + count * damping)
    # Where the rest is kept, Woodbury's identity serves it; elsewhere its part in the span joins c.
    within = count * scaled(basis, factors, c + scaled(basis, inverse, remaining) * (1 - keep))
    kept = keep / damping
    return kept, within - (scaled(basis, factors, remaining) + c) * kept
