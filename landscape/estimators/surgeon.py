"""Optimal brain surgery: which weights cost least, and how the others make up for their removal.

All under the quadratic model ½ δᵀFδ of the loss, F = λI + GᵀG/m given by its inverse operator.
(Hassibi & Stork 1992, NeurIPS, eqs. 4 and 5; Frantar, Kurtic & Alistarh 2021, arXiv:2107.03356.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.inverse_fisher import InverseFisher

EPS = torch.finfo(torch.float64).eps
DIGITS = 1e-3  # relative error, at most, of what is solved for


def saliencies(inverse: InverseFisher, weights: Tensor) -> Tensor:
    """How much the loss rises when one weight is removed and all others adapt: wᵢ² / (2 [F⁻¹]ᵢᵢ).

    Args:
        inverse: F⁻¹ over the weights.
        weights: w, shape (P,).

    Returns:
        Shape (P,), float64.

    Example:
        >>> inverse = InverseFisher.from_gradients(torch.tensor([[1.0, 2, 0], [0, 1, -1]]), damping=0.5)
        >>> saliencies(inverse, torch.tensor([1.0, -0.5, 0.2]))
        tensor([0.3182, 0.2187, 0.0175], dtype=torch.float64)
    """
    return weights.double().square() / (2 * inverse.diagonal())


def group_saliencies(
    inverse: InverseFisher, weights: Tensor, groups: Sequence[slice | Tensor]
) -> Tensor:
    """How much the loss rises when a group S is removed at once: ½ w_Sᵀ ([F⁻¹]_SS)⁻¹ w_S, exactly.

    With A = mλI + GGᵀ and u = G_S w_S this is ½ λ (‖w_S‖² + uᵀ (A − G_S G_Sᵀ)⁻¹ u), an (m, m) system
    per group however large it is.

    Args:
        inverse: F⁻¹ over the weights.
        weights: w, shape (P,).
        groups: positions of each group: a slice, or an int64 tensor.

    Returns:
        One number per group, float64.
    """
    w = weights.double()
    whole = _shifted(inverse, inverse.gram)
    found = []
    for where in groups:
        columns = inverse.rows.columns(where)
        along = columns @ w[where]
        inside = _solve(whole - columns @ columns.T, along)
        found.append(_increase(inverse, w[where], along, inside))
    return torch.stack(found)


def remove(inverse: InverseFisher, weights: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """The update that removes a set S of weights together, and how much the loss then rises.

    Minimising ½ δᵀFδ under δ_S = −w_S gives for the others, K, with u = G_S w_S,
    δ_K = G_Kᵀ (mλI + G_K G_Kᵀ)⁻¹ u and a rise of ½ λ (‖w_S‖² + uᵀ (mλI + G_K G_Kᵀ)⁻¹ u): sums of
    positive terms, in which nothing cancels. This is −F⁻¹_{:S} ([F⁻¹]_SS)⁻¹ w_S, not the sum of the updates
    for single weights.

    Args:
        inverse: F⁻¹ over the weights.
        weights: w, shape (P,).
        removed: S, a boolean tensor (P,).

    Returns:
        δ, shape (P,) in float64, exactly −w on S; and the rise, a scalar tensor.

    Raises:
        InputError: λ is too small, beside gradients as large, for the digits of float64.

    Example:
        >>> inverse = InverseFisher.from_gradients(torch.tensor([[1.0, 2, 0], [0, 1, -1]]), damping=0.5)
        >>> w = torch.tensor([1.0, -0.5, 0.2])
        >>> update, rise = remove(inverse, w, torch.tensor([False, True, True]))
        >>> w + update, round(float(rise), 6)
        (tensor([0.5000, 0.0000, 0.0000], dtype=torch.float64), 0.32)
    """
    w = weights.double()
    gone = torch.where(removed, w, 0.0)
    gram = torch.zeros_like(inverse.gram)
    along = torch.zeros(inverse.count, dtype=torch.float64, device=inverse.device)
    for where, piece in inverse.rows.pieces():
        along += piece @ gone[where]
        kept = piece.masked_fill(removed[where], 0.0)
        gram.addmm_(kept, kept.T)
    _require_digits(inverse, gram)
    inside = _solve(_shifted(inverse, gram), along)
    update = torch.empty_like(w)
    for where, piece in inverse.rows.pieces():
        update[where] = piece.T @ inside
    return torch.where(removed, -w, update), _increase(inverse, gone, along, inside)


def _require_digits(inverse: InverseFisher, kept: Tensor) -> None:
    """Refuse a λ that is lost in the rounding of GGᵀ where the gradients of what stays depend on each other."""
    needed = (
        float(inverse.gram.trace()) * EPS / DIGITS
    )  # of the smallest eigenvalue of mλI + G_K G_Kᵀ
    if float(torch.linalg.eigvalsh(kept)[0]) + inverse.count * inverse.damping < needed:
        raise InputError(
            f"damping {inverse.damping:g} is lost in rounding beside gradients as large as these: raise it to "
            f"{needed / inverse.count:.2g} or more, or scale the loss down"
        )


def _shifted(inverse: InverseFisher, gram: Tensor) -> Tensor:
    shift = inverse.count * inverse.damping
    return gram + shift * torch.eye(inverse.count, dtype=gram.dtype, device=gram.device)


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """By Cholesky, without waiting for the device."""
    factor, _ = torch.linalg.cholesky_ex(matrix)
    return torch.cholesky_solve(vector[:, None], factor)[:, 0]


def _increase(inverse: InverseFisher, gone: Tensor, along: Tensor, inside: Tensor) -> Tensor:
    return 0.5 * inverse.damping * (gone @ gone + along @ inside)
