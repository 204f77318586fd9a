"""Hutch++: exact on the range of a sketch, Hutchinson's estimator on the rest; how large a sketch pays."""

import torch
from torch import Tensor

from landscape.estimators.hutchinson import in_blocks
from landscape.estimators.probes import rademacher
from landscape.estimators.sketch import Sketch
from landscape.estimators.sums import wide
from landscape.memory import available_bytes
from landscape.operators.base import Operator

FEWEST = 10  # samples of the rest from which its variance is estimated


def share_left(sketch: Sketch, size: int) -> float:
    """Variance that zᵀAz keeps when the range of the first `size` test vectors is deflated, as a share.

    Every test vector is used that the basis has not seen: those after `size`, and each of the others
    left out in turn. The same vectors stand above and below the line, so the noise largely cancels.
    """
    forms, _ = sketch.residual_forms(size)
    whole = (sketch.overlap * sketch.factor).sum(0)
    left, before = torch.stack([forms.var(), whole.var()]).tolist()
    return float(left / before) if before > 0 else 1.0


def excess_kurtosis(products: Tensor) -> float:
    """Of zᵀAz, from the products AΩ (P, k): 12 tr A⁴ / (tr A²)², the value for normal z.

    Off the diagonal, the mean square of ΩᵀA²Ω is tr A⁴; on it, the mean is tr A². A few outliers
    that carry the variance make it large: a sample variance then means little.
    """
    gram = products.T @ products
    gram = gram.to(wide(gram))
    k = len(gram)
    second = gram.diagonal().mean()
    fourth = (gram.square().sum() - gram.diagonal().square().sum()) / (k * (k - 1))
    above, below = torch.stack([fourth, second.square()]).tolist()
    return float(12 * above / below) if below > 0 else 0.0


def affordable(A: Operator, rank: int) -> bool:
    """Whether a sketch of that rank fits into half of the free memory: five blocks (P, rank)."""
    size = torch.empty(0, dtype=A.dtype).element_size()
    return 5 * rank * A.shape[0] * size <= available_bytes(A.device) / 2


def grow_while_it_pays(sketch: Sketch, needed: float, spare: int, source: torch.Generator) -> float:
    """Double the sketch while that should save more products than it costs; the share left.

    Adaptive as in Persson, Cortinovis & Kressner 2022 (arXiv:2109.10659), by leave-one-out samples
    instead of norms: the last doubling kept the share ρ of the variance, so the next one should
    save (1 − ρ) of what is still needed.

    Args:
        sketch: with at least four test vectors.
        needed: probes that plain sampling needs.
        spare: products that may be spent here.
        source: of further test vectors.
    """
    spent = 0
    while True:
        k = sketch.rank
        share, half = share_left(sketch, k), share_left(sketch, k // 2)
        saving = needed * share * (1 - min(share / half, 1)) if half > 0 else 0.0
        spent += 2 * k
        fits = spent <= spare and affordable(sketch.A, 2 * k) and 4 * k < sketch.A.shape[0]
        if saving <= 2 * k or not fits:
            return share
        tests = rademacher(sketch.A, k, source)
        sketch.grow(tests, in_blocks(sketch.A, tests))
