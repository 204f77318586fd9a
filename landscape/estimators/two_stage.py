"""How many samples a mean needs, and an interval that means what it says: Stein's two stages."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import UntrustedResult

Draw = Callable[[int], Tensor]  # so many fresh samples, shape (m, n)


class Running:
    """Mean and scatter of samples (m,) that arrive in blocks (m, n)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(1, dtype=torch.float64)
        self.squares = torch.zeros(1, dtype=torch.float64)  # sum of squared deviations

    def add(self, block: Tensor) -> None:
        """Merge a block by its own mean and scatter (Chan, Golub & LeVeque 1983)."""
        new = block.shape[1]
        mean = block.mean(1)
        squares = (block - mean[:, None]).square().sum(1)
        if not self.count:
            self.count, self.mean, self.squares = new, mean, squares
            return
        total, shift = self.count + new, mean - self.mean
        self.mean = self.mean + shift * (new / total)
        self.squares = self.squares + squares + shift.square() * (self.count * new / total)
        self.count = total

    def variance(self) -> Tensor:
        """Of one sample, shape (m,)."""
        return self.squares / (self.count - 1)

    def needed(self, offset: Tensor | float, tolerance: float) -> float:
        """How many samples bring the standard error of offset + mean to the tolerance, by these."""
        return needed(self.variance(), offset + self.mean, tolerance)


def needed(variance: Tensor, value: Tensor, tolerance: float) -> float:
    """n with √(Σ variance / n) = tolerance · ‖value‖; no more than 1e15."""
    spread, size = torch.stack([variance.sum(), value.norm()]).tolist()
    if not math.isfinite(spread) or not math.isfinite(size):
        raise UntrustedResult("the sum of the samples overflows: scale the operator down")
    if spread == 0:
        return 0.0
    if size == 0:
        return 1e15
    return float(min((math.sqrt(spread) / size / tolerance) ** 2, 1e15))


@dataclass(frozen=True)
class Mean:
    """A mean (m,) with the standard error of every entry, by Student's t with `degrees` of freedom."""

    value: Tensor
    standard_error: Tensor
    count: int
    degrees: int
    converged: bool | None


def two_stage(
    first: Running, draw: Draw, offset: Tensor | float, tolerance: float | None, most: int
) -> Mean:
    """offset + the mean of as many samples as the tolerance needs, after a first stage.

    The number of samples follows from the variance of the first stage, which also stands in the
    standard error, while the mean is of all samples. Then the error over the standard error has
    Student's t distribution with the first stage's degrees of freedom, exactly for normal samples
    (Stein 1945, doi:10.1214/aoms/1177731088). A variance that is computed anew after every block would
    stop where it happens to be small; here it may only grow: where all samples together scatter more
    than the first stage did, as they do if tails are heavy, that is the variance. For normal samples
    the mean is independent of every variance on the way, so this can only raise the coverage. The
    tolerance is relative to the mean, which is looked at again, at the latest when the number of samples has
    doubled; it moves the stop by no more than about the tolerance itself.

    Args:
        first: the first stage; all samples are added to it.
        draw: gives n fresh samples, shape (m, n).
        offset: a known part of the value, shape (m,).
        tolerance: norm of the standard errors over the norm of the value; None stops at once.
        most: largest number of samples, those of the first stage included.
    """
    variance, degrees, converged = first.variance(), first.count - 1, None
    while tolerance is not None:
        goal = math.ceil(needed(variance, offset + first.mean, tolerance))
        converged = goal <= first.count
        goal = min(goal, 2 * first.count, most)
        if converged or goal <= first.count:
            break
        while first.count < goal:
            first.add(draw(goal - first.count))
        variance = torch.maximum(variance, first.variance())
    error = (variance / first.count).sqrt()
    return Mean(offset + first.mean, error, first.count, degrees, converged)
