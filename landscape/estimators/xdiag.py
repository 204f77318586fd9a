"""XDiag: the diagonal by leaving one test vector out of the range finder at a time."""

from torch import Tensor

from landscape.estimators.sketch import Sketch
from landscape.estimators.sums import wide


def leave_one_out_diagonals(sketch: Sketch) -> Tensor:
    """The k exchangeable estimates of the diagonal whose mean is XDiag, shape (P, k).

    diag(Q_i Q_iᵀA) + ω_i ∘ (I − Q_i Q_iᵀ)Aω_i for random signs ω_i (Epperly, Tropp & Webber 2024,
    arXiv:2301.07825). With AΩ = QR and Q_i Q_iᵀ = Q(I − s_i s_iᵀ)Qᵀ, the last is
    Qs_i (s_iᵀ r_i).
    """
    s = sketch.left_out(sketch.rank)
    scale = (s * sketch.factor).sum(0)
    s, scale = s.to(sketch.basis), scale.to(sketch.basis)
    left = sketch.basis @ s
    whole = (sketch.basis * sketch.images).sum(1, keepdim=True)
    estimates = whole - left * (sketch.images @ s) + sketch.tests * left * scale
    return estimates.to(wide(estimates))
