"""Approximate inverses that make a linear system easier: what may be given, and what it becomes."""

from functools import partial

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.iteration import Map
from landscape.estimators.lanczos import Eigenpairs
from landscape.estimators.nystrom import Nystrom, between
from landscape.operators.base import Operator

Preconditioner = Tensor | Eigenpairs | Nystrom | Operator


def inverse_map(preconditioner: Preconditioner | None, A: Operator, damping: float) -> Map:
    """The product with M⁻¹, an approximate inverse of A + damping·I, on blocks (P, K).

    Args:
        preconditioner: a diagonal (P,), eigenpairs, a Nyström approximation, an operator that is an
            inverse, or None.
        A: the operator, order P.
        damping: is added to a diagonal and to eigenvalues; an operator is taken as it is.

    Raises:
        InputError: the kind or shape does not fit, or M is not positive definite.
    """
    if preconditioner is None:
        return lambda block: block
    if isinstance(preconditioner, Eigenpairs):
        return _spectral(preconditioner, A, damping)
    if isinstance(preconditioner, Nystrom):
        return _low_rank(preconditioner, A, damping)
    if isinstance(preconditioner, Operator):
        kinds = [(each.shape, each.dtype, each.device) for each in (preconditioner, A)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"the preconditioner {preconditioner!r} does not fit {A!r}: size, dtype or device differ"
            )
        return preconditioner.product
    if isinstance(preconditioner, Tensor):
        return _diagonal(preconditioner, A, damping)
    raise InputError(
        f"the preconditioner is a {type(preconditioner).__name__}: pass the diagonal of the matrix as "
        "a tensor (P,), eigenpairs, ls.nystrom(A), or an operator that multiplies by an approximate "
        "inverse"
    )


def _diagonal(diagonal: Tensor, A: Operator, damping: float) -> Map:
    if diagonal.shape != A.shape[:1]:
        raise InputError(
            f"the preconditioner has shape {tuple(diagonal.shape)}: a diagonal has shape "
            f"({A.shape[0]},)"
        )
    entries = diagonal.detach().to(A.device, A.dtype) + damping
    wrong = ~((entries > 0) & torch.isfinite(entries))
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        raise InputError(
            f"the preconditioner's diagonal plus the damping is {float(entries[place]):.3g} at "
            f"position {place} (and not positive in {int(wrong.sum()):,} of {len(entries):,} places): "
            "take absolute values, or raise the damping"
        )
    inverse = (1 / entries)[:, None]
    return lambda block: inverse * block


def _spectral(pairs: Eigenpairs, A: Operator, damping: float) -> Map:
    """M⁻¹ = V |Λ + δ|⁻¹ Vᵀ + (I − VVᵀ)/σ: the eigenvalues found become ±1, the others λ/σ.

    σ is the |λ + δ| of the pairs that is nearest to the rest of the spectrum, so that what is deflated
    ends up within the rest or at its edge (Frangella, Tropp & Udell 2023, arXiv:2110.02820, eq. 5.3, for
    a positive semi-definite A).
    """
    if pairs.vectors.shape[0] != A.shape[0]:
        raise InputError(
            f"the eigenvectors have length {pairs.vectors.shape[0]}, and the operator order {A.shape[0]}"
        )
    vectors = pairs.vectors.detach().to(A.device, A.dtype)
    sizes = (pairs.values.double() + damping).abs()
    if not bool((sizes > 0).all()):
        raise InputError(
            "an eigenvalue of the preconditioner plus the damping is 0: leave its pair out, or raise "
            "the damping"
        )
    scale, start = 0.0, 0
    for end, count in pairs.ends:
        group = pairs.values[start : start + count].double()
        edge = {"largest": group.min, "smallest": group.max}.get(end, group.abs().min)()
        scale, start = max(scale, abs(float(edge) + damping)), start + count
    return partial(between, vectors, (1 / sizes).to(vectors), 1 / scale)


def _low_rank(found: Nystrom, A: Operator, damping: float) -> Map:
    """M⁻¹ = (l_r + δ) U(L + δ)⁻¹Uᵀ + I − UUᵀ (Frangella, Tropp & Udell 2023, eq. 5.3)."""
    if found.vectors.shape[0] != A.shape[0]:
        raise InputError(
            f"the Nyström approximation is of order {found.vectors.shape[0]}, and the operator of "
            f"{A.shape[0]}"
        )
    if not len(found.values):
        return lambda block: block
    vectors = found.vectors.to(A.device, A.dtype)
    shifted = found.values.to(vectors) + damping
    return partial(between, vectors, shifted[-1] / shifted, 1.0)
