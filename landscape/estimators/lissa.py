"""Linear systems by a stochastic Neumann series: one batch of the data a step."""

from typing import NamedTuple

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.estimators.neumann import largest_eigenvalue
from landscape.estimators.probes import generator
from landscape.estimators.sums import norms
from landscape.operators.base import Operator
from landscape.operators.curvature import BatchProduct, CurvatureOperator
from landscape.operators.empirical_fisher import GradientCovariance
from landscape.operators.matrix import FunctionOperator
from landscape.results import Progress

LOOKED_AT = 8  # batches whose largest eigenvalues say what the scale must be
CHECK_EVERY = 50  # steps between looks at how long x has become


class Recursion(NamedTuple):
    """The mean x (P, K) over the repeats, its standard error, and whether x grew without bound."""

    x: Tensor
    standard_error: Tensor
    diverged: bool


def lissa(
    A: CurvatureOperator,
    b: Tensor,
    *,
    damping: float,
    start: Tensor,
    steps: int,
    repeats: int,
    scale: float | None,
    seed: int,
    progress: Progress | None,
) -> Recursion:
    """x ← x + (b − (A_i + damping·I)x) / scale, A_i the matrix of a random batch, the mean over repeats.

    (Agarwal, Bullins & Hazan 2017, arXiv:1602.03943; in this form Koh & Liang 2017, arXiv:1703.04730.) The
    expectation of the steps is the Neumann series of the whole matrix, so that they end in noise about the
    solution, never at it; how far off chance leaves a repeat is in the standard error.

    Args:
        A: a curvature operator; the batches are those of its problem, which are held in memory.
        b: right-hand sides (P, K).
        damping: added to the diagonal.
        start: x before the first step (P, K).
        steps: of a repeat.
        repeats: independent ones.
        scale: at least the largest eigenvalue of every A_i plus the damping; None: the largest upper
            estimate among eight batches.
        seed: of the batches' order.
        progress: called with (steps done, steps at most).
    """
    count, source = A.problem.batch_count, generator(seed)
    places = torch.randint(count, (repeats, steps), generator=source)
    with A.one_batch() as product:
        if scale is None:
            scale = _scale(A, product, count, seed) + damping or 1.0
        found, diverged = [], False
        # As long as no step lengthens a vector, ‖x‖ ≤ ‖x₀‖ + steps · ‖b‖ / scale.
        limit = 2 * (norms(start) + norms(b) * steps / scale)
        for repeat in range(repeats):
            x = kept = start.clone()
            for step, place in enumerate(places[repeat].tolist()):
                rest = b - product(place, x) - damping * x
                x = x + rest / scale
                if step % CHECK_EVERY == CHECK_EVERY - 1 or step == steps - 1:
                    if not bool((norms(x) <= limit).all()):
                        x, diverged = kept, True
                        break
                    kept = x
                    if progress is not None:
                        progress(repeat * steps + step + 1, repeats * steps)
            found.append(x)
    stacked = torch.stack(found)
    error = torch.full_like(b, float("nan"))
    if repeats > 1:
        error = stacked.std(0) / repeats**0.5
    return Recursion(stacked.mean(0), error, diverged)


def require_batches(A: Operator) -> CurvatureOperator:
    """Refuse a matrix that is no mean over batches."""
    if not isinstance(A, CurvatureOperator) or isinstance(A, GradientCovariance):
        raise InputError(
            f"method='lissa' takes one batch of the data a step, and {A!r} is no mean over batches: "
            "pass a curvature operator, such as ls.GaussNewton(problem), or choose another method"
        )
    return A


def _scale(A: CurvatureOperator, product: BatchProduct, count: int, seed: int) -> float:
    """An upper estimate of the largest eigenvalue of any batch's own matrix."""
    some = torch.randperm(count, generator=generator(seed))[:LOOKED_AT].tolist()

    def of(place: int) -> float:
        matrix = FunctionOperator(
            lambda block: product(place, block), A.shape[0], A.dtype, A.device
        )
        return largest_eigenvalue(matrix, seed=seed)

    return max(0.0, *map(of, some))
