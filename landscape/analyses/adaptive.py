"""A grid of which only as many points are computed as are needed, and the others interpolated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.estimators.loss_at import Losses

Array = NDArray[np.float64]
Places = list[NDArray[np.int64]]  # along every axis, the lines of the grid that are computed

LINES = 7  # along every axis, to begin with
HELD_BACK = 60  # points for the error
DEGREE = 3  # of the splines


@dataclass(frozen=True)
class Interpolation:
    """How many points of a grid were computed, and the error of the others.

    `error` is the largest on `held_back` points drawn at random, which the splines had not seen, as a
    share of the `span` of the loss on the grid: with 60 of them all within it, it is exceeded at more than 5 % of the
    points only with a probability of 5 %. 0 where nothing was interpolated.
    """

    computed: int
    points: int
    error: float
    held_back: int
    span: float


def fill(
    evaluate: Callable[[Tensor], Losses],
    grid: Sequence[Array],
    *,
    tolerance: float = 0.01,
    seed: int = 0,
) -> tuple[Losses, NDArray[np.bool_], Interpolation]:
    """The loss on a whole grid, from some of its lines.

    Cubic splines through a coarser grid of lines, finer along the axis where it does not yet foretell
    its own points, until the largest error on points held back is within the tolerance. Near points
    that are not finite nothing is interpolated: then all are computed.

    Args:
        evaluate: the losses at coordinates (k, d).
        grid: the coordinates along every axis.
        tolerance: accepted error, as a share of the span of the loss on the grid.
        seed: of the points held back.

    Returns:
        The losses at all points, the last axis running fastest; which of them were computed, in the
        shape of the grid; and how well the others are known.
    """
    shape = tuple(map(len, grid))
    whole = np.stack([axis.ravel() for axis in np.meshgrid(*grid, indexing="ij")], 1)
    table = np.full((len(Losses._fields), len(whole)), np.nan)
    known = np.zeros(len(whole), bool)

    def compute(places: NDArray[np.int64]) -> None:
        missing = places[~known[places]]
        if len(missing):
            found = evaluate(torch.from_numpy(whole[missing]))
            rows = [row for row in found if row is not None]
            table[: len(rows), missing] = torch.stack(rows).cpu().numpy()
            known[missing] = True

    source = np.random.default_rng(seed)
    lines: Places = [_spread(LINES, n) for n in shape]
    while True:
        compute(np.ravel_multi_index(np.ix_(*lines), shape).ravel())
        rest = np.flatnonzero(~known)
        if not len(rest) or not np.isfinite(table[0, known]).all():
            break
        guess = _splines(grid, lines, table.reshape(-1, *shape))
        held = np.sort(source.choice(rest, min(HELD_BACK, len(rest)), replace=False))
        compute(held)
        span = float(np.ptp(table[0, known]))
        error = float(np.abs(guess[0].ravel()[held] - table[0, held]).max())
        if error <= tolerance * span:
            flat = guess.reshape(len(guess), -1)
            flat[:, known] = table[:, known]
            about = Interpolation(
                int(known.sum()), len(whole), error / span if span else 0.0, len(held), span
            )
            return _losses(flat), known.reshape(shape), about
        lines = _finer(grid, lines, table[0].reshape(shape))
    compute(np.arange(len(whole)))
    finite = table[0, np.isfinite(table[0])]
    about = Interpolation(
        len(whole), len(whole), 0.0, 0, float(np.ptp(finite)) if len(finite) else 0.0
    )
    return _losses(table), known.reshape(shape), about


def _spread(count: int, points: int) -> NDArray[np.int64]:
    """Evenly spread lines of a grid, its first and last among them."""
    return np.unique(np.round(np.linspace(0, points - 1, min(count, points))).astype(np.int64))


def _splines(grid: Sequence[Array], lines: Places, table: Array) -> Array:
    """Tensor-product splines through the computed lines, (rows, *shape)."""
    from scipy.interpolate import make_interp_spline

    values = table[np.ix_(np.arange(len(table)), *lines)]
    for axis, (points, chosen) in enumerate(zip(grid, lines, strict=True), start=1):
        degree = min(DEGREE, len(chosen) - 1)
        spline = make_interp_spline(points[chosen], values, k=degree, axis=axis, check_finite=False)
        values = spline(points)  # rows that are not known stay so
    found: Array = values
    return found


def _finer(grid: Sequence[Array], lines: Places, loss: Array) -> Places:
    """Twice as many lines along the axis where every other of them foretells the rest worst."""
    errors = []
    for axis, chosen in enumerate(lines):
        if len(chosen) == len(grid[axis]):
            errors.append(-1.0)  # there are no more
            continue
        half = chosen[::2] if len(chosen) % 2 else np.append(chosen[::2], chosen[-1])
        fewer = [half if i == axis else own for i, own in enumerate(lines)]
        guess = _splines(grid, fewer, loss[None])[0]
        errors.append(float(np.abs((guess - loss)[np.ix_(*lines)]).max()))
    worst = int(np.argmax(errors))
    denser = _spread(2 * len(lines[worst]) - 1, len(grid[worst]))
    return [np.union1d(own, denser) if i == worst else own for i, own in enumerate(lines)]


def _losses(table: Array) -> Losses:
    """Interpolated shares and errors cannot leave their bounds."""
    loss, error, rise, rise_error, accuracy, spread = map(torch.from_numpy, table.copy())
    found = Losses(loss, error.clamp(min=0), rise, rise_error.clamp(min=0), None)
    if bool(torch.isnan(accuracy).all()):
        return found
    return found._replace(
        accuracy=accuracy.clamp(0, 1), accuracy_standard_error=spread.clamp(min=0)
    )
