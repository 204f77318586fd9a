"""How does the curvature itself change over a surface?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.estimators.lanczos import extreme_eigenpairs
from landscape.operators.hessian import Hessian
from landscape.operators.products.plan import Execution
from landscape.problem import Problem

Array = NDArray[np.float64]
TOLERANCE = 1e-2  # accepted residual, as a share of the largest eigenvalue


@dataclass(frozen=True, eq=False)
class CurvatureMap:
    """The ends of the Hessian's spectrum on a grid of its own.

    Where |λ_min / λ_max| is small the loss is nearly convex there, whatever the plane shows (Li et al. 2018,
    arXiv:1712.09913, section 6). `residual` bounds the error of both; NaN where products are not finite.
    """

    grid: list[Array]
    largest: Array
    smallest: Array
    residual: Array
    products: int


def curvature_map(
    problem: Problem,
    directions: Tensor,
    grid: Sequence[Array],
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **execution: Unpack[Execution],
) -> CurvatureMap:
    """λ_max and λ_min of the Hessian of all selected parameters at every point of a grid θ + D c.

    The model is copied; each point begins with the eigenvectors of the point before.

    Args:
        problem: the loss.
        directions: D, (P, d).
        grid: the coordinates along every axis.
        tolerance: accepted residual, as a share of the largest |eigenvalue|.
        seed: of the starting vectors.
        progress: called with (points done, points).
        execution: see `Hessian`.
    """
    moving = problem.separate()
    own = [p.detach().clone() for p in moving.selected()]
    shape = tuple(map(len, grid))
    numbers = np.full((3, int(np.prod(shape))), np.nan)
    start: Tensor | None = None
    A = Hessian(moving, **execution)  # of the weights as they are at every product
    for place, index in enumerate(_winding(shape)):
        c = torch.tensor([points[i] for points, i in zip(grid, index, strict=True)])
        _put(moving, own, directions @ c.to(directions))
        try:
            found = extreme_eigenpairs(
                A,
                [("largest", 1), ("smallest", 1)],
                tolerance=tolerance,
                seed=seed,
                start=start,
                verify=False,
            )
        except ArithmeticError:  # a product that is not finite
            start = None
        else:
            start = found.vectors
            at = np.ravel_multi_index(index, shape)
            numbers[:2, at] = found.values.double().cpu().numpy()
            numbers[2, at] = float(found.residuals.max())
        if progress is not None:
            progress(place + 1, numbers.shape[1])
    largest, smallest, residual = (row.reshape(shape) for row in numbers)
    return CurvatureMap(list(grid), largest, smallest, residual, A.products)


def _winding(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """All places of a grid, each beside the one before."""
    places: list[tuple[int, ...]] = [()]
    for n in shape:
        lines = [range(n), range(n - 1, -1, -1)]
        places = [(*p, i) for k, p in enumerate(places) for i in lines[k % 2]]
    return places


def _put(problem: Problem, own: Sequence[Tensor], offset: Tensor) -> None:
    """Let the copy's weights be the model's plus an offset."""
    parts = problem.layout.split(offset)
    with torch.no_grad():
        for parameter, value, part in zip(problem.selected(), own, parts, strict=True):
            moved = torch.view_as_complex(part) if value.is_complex() else part
            parameter.copy_(value + moved.to(value))
