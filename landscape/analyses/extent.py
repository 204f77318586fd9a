"""How far does a surface reach along its axes?"""

import math

import torch

from landscape.analyses.axes import Axes
from landscape.errors import InputError
from landscape.estimators.loss_at import LossAt

RISE = 5.0  # the loss at the edge of a suggested range, in losses of the model
MARGIN = 0.25  # beyond the outermost model, as a share of the distance

Extent = tuple[float, float]


def suggested_extents(loss_at: LossAt, axes: Axes) -> tuple[list[Extent], list[str]]:
    """Where each axis begins and ends, and what is to be said about it.

    With models in the plane it is around them. Else to both sides until the loss is five times that of the model on the
    higher side: by doubling and bisection on the loss itself, for a quadratic
    model is no guide where it rises as much.

    Args:
        loss_at: with the directions of the axes.
        axes: of the surface.

    Raises:
        InputError: the loss at the model is zero, so that there is no multiple of it.
    """
    if axes.markers:
        places = torch.tensor([marker.coordinates for marker in axes.markers])
        low, high = places.amin(0).clamp(max=0), places.amax(0).clamp(min=0)
        room = MARGIN * (high - low).clamp(min=MARGIN * float((high - low).max()))
        return list(zip((low - room).tolist(), (high + room).tolist(), strict=True)), []
    size = float(loss_at.problem.weights(torch.float64).norm())
    found: list[Extent] = []
    notes = []
    for i, axis in enumerate(axes.axes):
        furthest = max(size, 1.0) / axis.length
        reach, reached = _reach(loss_at, i, furthest)
        reach = _two_digits(reach)
        found.append((-reach, reach))
        if not reached:
            notes.append(
                f"along {axis.name} the loss does not rise to {RISE:g} times its value within the length of "
                f"the weights; the range ends there"
            )
    return found, notes


def _reach(loss_at: LossAt, place: int, furthest: float) -> tuple[float, bool]:
    """The distance along an axis at which the loss has risen fivefold, and whether it does."""

    def rise(t: float) -> tuple[float, float]:
        both = torch.zeros(2, loss_at.directions.shape[1], dtype=torch.float64)
        both[:, place] = torch.tensor([t, -t])
        found = loss_at(both)
        highest = found.rise.nan_to_num(nan=math.inf, posinf=math.inf).max()
        return float(highest), float((found.loss - found.rise)[0])

    low, high = 0.0, furthest / 1024
    up, center = rise(high)
    enough = (RISE - 1) * abs(center)
    if not enough:
        raise InputError(
            "the loss at the model is 0, so that no range can be suggested: give --range (extent=)"
        )
    while up < enough:
        if high >= furthest:
            return furthest, False
        low, high = high, 2 * high
        up, _ = rise(high)
    while low == 0 or high > 1.1 * low:
        middle = math.sqrt(low * high) if low else high / 8
        up, _ = rise(middle)
        if up < enough:
            low = middle
        else:
            high = middle
        if high < furthest * 1e-12:
            break
    return high, True


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
