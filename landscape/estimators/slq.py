"""Eigenvalue density by stochastic Lanczos quadrature."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.lanczos import CHECK_EVERY
from landscape.estimators.probes import generator, rademacher
from landscape.estimators.smoothing import SmoothDensity, smooth
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator, require_operator
from landscape.results import Cost, Meter, Progress

Array = NDArray[np.float64]


class Measure(NamedTuple):
    """The quadrature of one probe: Ritz values, ascending, their weights, which sum to 1, and the
    residuals of the Ritz pairs, each of shape (m,)."""

    nodes: Array
    weights: Array
    residuals: Array


@dataclass(frozen=True)
class SpectralDensity:
    """A quadrature measure for every probe, and their smoothed average.

    `grid`, `values` and `standard_error`, each of shape (points,), are the density per unit of
    eigenvalue and its standard error over probes, also found in `smoothed` with the kernel's width;
    `ritz` holds the quadrature of every probe; `first_moments[i]` is zᵀAz of probe i, one Hutchinson
    sample of the trace.
    """

    ritz: list[Measure]
    smoothed: SmoothDensity
    first_moments: Array
    cost: Cost

    @property
    def grid(self) -> Array:
        return self.smoothed.grid

    @property
    def values(self) -> Array:
        return self.smoothed.values

    @property
    def standard_error(self) -> Array:
        return self.smoothed.standard_error


def spectral_density(
    A: Operator,
    *,
    probes: int = 10,
    steps: int = 50,
    seed: int = 0,
    reorthogonalize: bool = False,
    width: float = 0.005,
    progress: Progress | None = None,
) -> SpectralDensity:
    """Density of the eigenvalues of A, all probes advanced together as one block.

    Each Rademacher probe z gives, by `steps` Lanczos steps, a Gauss quadrature of the measure
    Σ (zᵀu_i)²/P δ(λ − λ_i), whose mean over probes is the eigenvalue density. (Golub & Meurant 2010;
    Ubaru, Chen & Saad 2017, doi:10.1137/16M1104974; Ghorbani et al. 2019, arXiv:1901.10159.)

    The three-term recurrence stores no basis: memory is about 5 blocks (P, probes), whatever the number
    of steps. Copies of converged Ritz values that then appear share the weight of the original, so the
    density is right all the same (Greenbaum 1989, doi:10.1016/0024-3795(89)90285-1).

    Args:
        A: the operator, order P.
        probes: independent random vectors; the standard error is over these.
        steps: Lanczos steps, at most P.
        seed: of the probes.
        reorthogonalize: keep the basis, steps × P numbers per probe, and orthogonalise against it twice.
        width: of the Gaussians that smooth the density, as a share of the range of the spectrum, see
            `smooth`; `smooth(result.ritz, axis="symlog")` smooths the same measures otherwise.
        progress: called with (products done, products expected).

    Returns:
        The quadrature of every probe, and the smoothed density with its standard error over probes,
        which does not include the bias of smoothing and of a finite number of steps.

    Raises:
        InputError: fewer than one probe or step.

    Example:
        >>> import torch, landscape as ls
        >>> A = ls.as_operator(torch.diag(torch.tensor([1.0, 1.0, 5.0])))
        >>> ls.spectral_density(A, probes=1).ritz[0].nodes.round(6)
        array([1., 5.])
    """
    require_operator(A)
    if probes < 1 or steps < 1:
        raise InputError(f"probes={probes} and steps={steps} must both be at least 1")
    meter = Meter(A)
    steps = min(steps, A.shape[0])
    A.expect(probes * steps)
    start = rademacher(A, probes, generator(seed))
    diagonals, couplings, lengths = _recurrence(A, start, steps, reorthogonalize, progress)
    measures = [
        _quadrature(alpha[:length], beta[:length])
        for alpha, beta, length in zip(diagonals, couplings, lengths, strict=True)
    ]
    moments = diagonals[:, 0] * A.shape[0]
    return SpectralDensity(measures, smooth(measures, width=width), moments, meter.read())


def _quadrature(alpha: Array, beta: Array) -> Measure:
    """Gauss quadrature of the tridiagonal matrix (alpha, beta); the last beta is the residual's."""
    nodes, vectors = eigh_tridiagonal(alpha, beta[:-1])
    return Measure(nodes.astype(float), vectors[0].astype(float) ** 2, beta[-1] * abs(vectors[-1]))


def _recurrence(
    A: Operator, start: Tensor, steps: int, reorthogonalize: bool, progress: Progress | None
) -> tuple[Array, Array, list[int]]:
    """Lanczos on every column of `start`: diagonals (K, m), couplings (K, m), lengths (K,).

    A column whose residual vanishes has found its invariant subspace: it stops there, at its length.
    """
    size, probes = start.shape
    tiny = 10 * torch.finfo(A.dtype).eps
    q = start / norms(start).to(start)
    previous, beta = torch.zeros_like(q), torch.zeros_like(q[0])
    scale = torch.zeros_like(beta)
    alive = torch.ones_like(beta, dtype=torch.bool)
    lengths = torch.zeros_like(beta, dtype=torch.int64)
    basis = q.new_empty(probes, steps if reorthogonalize else 0, size)
    diagonals, couplings = [], []
    for step in range(steps):
        lengths += alive
        if reorthogonalize:
            basis[:, step] = q.T
        w = A.product(q)
        w.addcmul_(previous, beta, value=-1)
        alpha = dots(q, w).to(q)
        w.addcmul_(q, alpha, value=-1)
        if reorthogonalize:
            known = basis[:, : step + 1]
            for _ in range(2):
                overlaps = torch.einsum("kmp,pk->km", known, w)
                w -= torch.einsum("kmp,km->pk", known, overlaps)
        beta = norms(w).to(q)
        scale = torch.maximum(scale, alpha.abs() + beta)
        alive = alive & (beta > tiny * scale)  # relative to A's own size, never to 1
        beta = torch.where(alive, beta, 0)
        diagonals.append(alpha)
        couplings.append(beta)
        if progress is not None:
            progress((step + 1) * probes, steps * probes)
        if (step + 1) % CHECK_EVERY == 0:  # the only look from outside the device
            A.require_finite(alpha)
            if not bool(alive.any()):
                break
        previous, q = q, w.div_(torch.where(alive, beta, torch.inf))
    A.require_finite(alpha)
    return (
        torch.stack(diagonals, dim=1).double().cpu().numpy(),
        torch.stack(couplings, dim=1).double().cpu().numpy(),
        lengths.tolist(),
    )
