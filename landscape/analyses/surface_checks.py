"""Is a surface right: its centre, and its curvature along the axes?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from landscape.analyses.axes import Axes, Axis
from landscape.analyses.curvature_check import AxisCheck, curvature_checks
from landscape.analyses.extent import Extent
from landscape.estimators.loss_at import LossAt
from landscape.problem import Problem

CLOSE = 0.01  # accepted error of the curvature along an axis
CENTER = 1e-4  # and of the loss at the centre


@dataclass(frozen=True)
class Checks:
    """Whether the picture is right.

    `centre_relative_error`: of the value at the model's weights, against the loss computed apart from the
    surface. `axes`: see `AxisCheck`; None where surface and Hessian do not see the same loss.
    `curvature_at_scale`: second differences along the axes with steps of a quarter of the range, per unit
    of length squared: what a reader sees in the picture.
    """

    centre_relative_error: float
    axis_curvature_relative_error: list[float | None] | None
    axes: list[AxisCheck] | None
    curvature_at_scale: list[float]


def checks_of(
    problem: Problem,
    axes: Axes,
    loss_at: LossAt,
    extents: Sequence[Extent],
    center: float,
    *,
    check: bool,
) -> Checks:
    """Evaluate what the checks need, apart from the grid; the curvatures only with `check`."""
    d = len(axes.axes)
    half = torch.tensor([(high - low) / 4 for low, high in extents], dtype=torch.float64)
    around = loss_at(torch.cat([torch.zeros(1, d), torch.diag(half), -torch.diag(half)]))
    own = center
    if loss_at.norm_stats != problem.norm_stats and problem.has_statistics():
        own = math.nan  # another loss
    off = abs(float(around.loss[0]) - own) / max(abs(own), 1e-12)
    rise = around.rise[1 : d + 1] + around.rise[d + 1 :] - 2 * around.rise[0]
    lengths = torch.tensor([axis.length for axis in axes.axes], dtype=torch.float64)
    found = curvature_checks(problem, axes, loss_at.norm_stats) if check else None
    return Checks(
        centre_relative_error=off,
        axis_curvature_relative_error=None
        if found is None
        else [one.relative_error for one in found],
        axes=found,
        curvature_at_scale=(rise / (half * lengths) ** 2).tolist(),
    )


def check_failures(axes: Sequence[Axis], checks: Checks) -> list[str]:
    """What the checks say against the picture."""
    failures = []
    if checks.centre_relative_error > CENTER:
        failures.append(
            f"the centre of the surface is off the model's loss by {checks.centre_relative_error:.2g} of it"
        )
    for axis, check in zip(axes, checks.axes or (), strict=False):
        for error, what in (
            (check.relative_error, "second differences of the loss and products with the Hessian"),
            (check.eigenvalue_error, "the eigenvalue and a product with its vector"),
        ):
            if error is not None and error > CLOSE:
                failures.append(f"along {axis.name} {what} differ by {100 * error:.2g} %")
    return failures
