"""Does a surface bend along its axes as the Hessian says?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.analyses.axes import Axes, Axis
from landscape.analyses.operators import in_float64
from landscape.estimators.loss_at import LossAt, NormStats
from landscape.operators.hessian import Hessian
from landscape.problem import Problem

STEPS = tuple(10 ** (-3 - k / 2) for k in range(9))  # 1e-3 down to 1e-7
PLATEAU = 0.003  # two successive steps that differ by no more agree


@dataclass(frozen=True)
class AxisCheck:
    """The curvature along one axis u, of unit length, by second difference and by product, in float64.

    Attributes:
        curvature: uᵀHu.
        second_difference: δ² = (L(θ + hu) − 2 L(θ) + L(θ − hu)) / h² on the plateau of `step` h; None where two
            successive steps never agree within 0.3 %.
        relative_error: |δ² − uᵀHu| / max(|λ|, λ₁/1000), λ the axis' eigenvalue, or uᵀHu, and λ₁ the
            largest that is known: for other axes than eigenvectors ‖Hu‖, which is no larger.
        eigenvalue_error: |λ − uᵀHu| over the same; None where the axis is no eigenvector.
    """

    curvature: float
    second_difference: float | None
    step: float | None
    relative_error: float | None
    eigenvalue_error: float | None


def curvature_checks(problem: Problem, axes: Axes, norm_stats: NormStats) -> list[AxisCheck] | None:
    """The check of every axis; None where surface and Hessian do not see the same loss.

    They do not where the statistics of batch normalisation differ, and there is no check for models that
    cannot be run in float64. With the kinks of rectifiers large steps are wrong by tens of per cent,
    so that the steps grow smaller until two agree.

    Args:
        problem: the loss.
        axes: of the surface.
        norm_stats: of the surface.
    """
    if norm_stats != problem.norm_stats and problem.has_statistics():
        return None
    A = Hessian(problem)
    exact = A if problem.dtype == torch.float64 else in_float64(A)
    if exact is None or not isinstance(exact, Hessian):
        return None
    units = axes.directions.double() / axes.directions.double().norm(dim=0)
    products = exact @ units
    known = [abs(axis.eigenvalue) for axis in axes.axes if axis.eigenvalue is not None]
    checks = []
    for axis, u, Hu in zip(axes.axes, units.T, products.T, strict=True):
        largest = max(known) if known else float(Hu.norm())
        checks.append(_check(exact.problem, axis, u, float(u @ Hu), largest, norm_stats))
    return checks


def _check(
    problem: Problem, axis: Axis, u: Tensor, curvature: float, largest: float, norm_stats: NormStats
) -> AxisCheck:
    value = curvature if axis.eigenvalue is None else axis.eigenvalue
    scale = max(abs(value), 1e-3 * largest)
    found, step = _plateau(LossAt(problem, u[:, None], norm_stats=norm_stats, at_once=1), scale)
    return AxisCheck(
        curvature=curvature,
        second_difference=found,
        step=step,
        relative_error=None if found is None or not scale else abs(found - curvature) / scale,
        eigenvalue_error=None
        if axis.eigenvalue is None or not scale
        else abs(axis.eigenvalue - curvature) / scale,
    )


def _plateau(loss_at: LossAt, scale: float) -> tuple[float | None, float | None]:
    """The second difference at the first step that agrees with the one before, and that step."""
    before = None
    for h in STEPS:
        both = loss_at(torch.tensor([[h], [-h]], dtype=torch.float64))
        now = float(both.rise.sum()) / h**2
        if before is not None and abs(now - before) <= PLATEAU * max(
            abs(now), abs(before), 1e-3 * scale
        ):
            return now, h
        before = now
    return None, None
