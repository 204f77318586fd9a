"""XTrace: every test vector serves the range finder of all the others."""

import torch
from torch import Tensor

from landscape.estimators.sketch import Sketch


def leave_one_out_traces(sketch: Sketch) -> Tensor:
    """The k exchangeable estimates of the trace whose mean is XTrace, shape (k,).

    tr(Q_iᵀAQ_i) + μ_iᵀAμ_i, with the test vectors on the sphere of radius √P and μ_i rescaled to its
    expected length (Epperly, Tropp & Webber 2024, arXiv:2301.07825).
    """
    k, order = sketch.rank, sketch.A.shape[0]
    forms, inside = sketch.residual_forms(k)
    s = sketch.left_out(k)
    captured = sketch.inner.trace() - (s * (sketch.inner @ s)).sum(0)
    # Where the test vector lies within the basis nothing is left to rescale.
    length = torch.clamp(order - inside, min=1e-6 * order)
    return captured + forms * ((order - k + 1) / length)
