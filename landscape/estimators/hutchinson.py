"""Trace and diagonal by Hutchinson's estimator."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.probes import generator, rademacher
from landscape.estimators.sums import dots
from landscape.operators.base import Operator, require_operator
from landscape.results import Cost, Estimate, Meter, Progress

BLOCK = 8  # probes multiplied at once


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal (P,) with a standard error (P,) for every entry."""

    value: Tensor
    standard_error: Tensor
    probes: int
    converged: bool | None
    cost: Cost


def trace(
    A: Operator,
    *,
    probes: int = 30,
    tolerance: float | None = None,
    max_probes: int = 10_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """The trace of A with its standard error.

    The mean of zᵀAz over Rademacher probes z is unbiased (Hutchinson 1990,
    doi:10.1080/03610919008812866). The standard error is the sample standard deviation over √probes.

    Args:
        A: the operator, order P.
        probes: number of probes; with a tolerance, the smallest number.
        tolerance: go on until the standard error is at most this share of the estimate.
        max_probes: give up there (with a tolerance only).
        seed: of the probes.
        progress: called with (products done, products expected).

    Returns:
        The estimate; `converged` says whether the tolerance was reached (None without one).

    Raises:
        InputError: fewer than two probes, or a tolerance that is not positive.

    Example:
        >>> import torch, landscape as ls
        >>> print(ls.trace(ls.as_operator(torch.diag(torch.tensor([1.0, 2.0])))))
        3 ± 0
    """
    require_operator(A)
    _check(probes, tolerance, max_probes)
    A.expect(probes)
    meter, source = Meter(A), generator(seed)
    count, found = 0, []
    while True:
        block = rademacher(A, _next(count, probes, tolerance, max_probes), source)
        found.append(dots(block, A.product(block)))
        count += block.shape[1]
        if progress is not None:
            progress(count, max(count, probes))
        if count < probes:
            continue
        together = torch.cat(found)  # the only numbers that leave the device
        A.require_finite(together)
        samples = together.tolist()
        mean = math.fsum(samples) / count
        error = math.sqrt(math.fsum((s - mean) ** 2 for s in samples) / (count - 1) / count)
        reached = tolerance is not None and error <= tolerance * abs(mean)
        if tolerance is None or reached or count >= max_probes:
            converged = None if tolerance is None else reached
            return Estimate(mean, error, count, converged, meter.read())


def diagonal(
    A: Operator,
    *,
    probes: int = 30,
    tolerance: float | None = None,
    max_probes: int = 10_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> DiagonalEstimate:
    """The diagonal of A with a standard error for every entry.

    The mean of z ∘ Az over Rademacher probes z is unbiased (Bekas, Kokiopoulou & Saad 2007,
    doi:10.1016/j.apnum.2007.01.003).

    Args and errors: as for `trace`, but the tolerance is on the norm of the standard errors over the
    norm of the diagonal.

    Example:
        >>> import torch, landscape as ls
        >>> ls.diagonal(ls.as_operator(torch.diag(torch.tensor([1.0, 2.0])))).value
        tensor([1., 2.], dtype=torch.float64)
    """
    require_operator(A)
    _check(probes, tolerance, max_probes)
    A.expect(probes)
    meter, source = Meter(A), generator(seed)
    count = 0
    mean = torch.zeros(A.shape[0], dtype=torch.float64, device=A.device)
    squares = torch.zeros_like(mean)  # sum of squared deviations (Welford 1962)
    while True:
        block = rademacher(A, _next(count, probes, tolerance, max_probes), source)
        for sample in (block * A.product(block)).double().T:
            count += 1
            deviation = sample - mean
            mean += deviation / count
            squares += deviation * (sample - mean)
        if progress is not None:
            progress(count, max(count, probes))
        if count < probes:
            continue
        A.require_finite(mean)
        error = (squares / ((count - 1) * count)).sqrt()
        reached = tolerance is not None and bool(error.norm() <= tolerance * mean.norm())
        if tolerance is None or reached or count >= max_probes:
            converged = None if tolerance is None else reached
            value, error = mean.to(A.dtype), error.to(A.dtype)
            return DiagonalEstimate(value, error, count, converged, meter.read())


def _check(probes: int, tolerance: float | None, max_probes: int) -> None:
    if probes < 2:
        raise InputError(f"probes is {probes}: a standard error needs at least 2")
    if tolerance is not None and not tolerance > 0:
        raise InputError(f"tolerance is {tolerance}: it must be positive, for example 0.01")
    if tolerance is not None and max_probes < probes:
        raise InputError(f"max_probes is {max_probes}: it must be at least probes, {probes}")


def _next(done: int, probes: int, tolerance: float | None, max_probes: int) -> int:
    """Number of probes in the next block."""
    end = probes if tolerance is None or done < probes else max_probes
    return max(1, min(BLOCK, end - done))
