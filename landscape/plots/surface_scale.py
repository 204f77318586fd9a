"""How a surface's values become heights and colours: linear, logarithmic, or by asinh where they have signs."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from landscape.errors import InputError
from landscape.numerals import number
from landscape.plots.style import raised

Array = NDArray[np.float64]
Asked = Literal["auto", "log", "linear"]
Spacing = Literal["linear", "log", "asinh"]
DECADE = 10.0  # a range of more is drawn on a logarithmic scale unless told otherwise
LINEAR = 1e-3  # an asinh scale is linear below this share of the largest value
MOST = 14  # levels

# Steps within a decade, from coarse to fine.
_SERIES = ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8])


class Scale(NamedTuple):
    """`place` gives where values lie on it; colours and heights are linear in that.

    `low` and `high` are the least and the largest value; `threshold` is where an asinh scale turns from
    linear to logarithmic; a `signed` one has zero in the middle of its colours.
    """

    spacing: Spacing
    low: float
    high: float
    threshold: float
    signed: bool

    def place(self, values: Array) -> Array:
        """Where values lie; NaN where they do not."""
        if self.spacing == "linear":
            return np.asarray(values, float)
        if self.spacing == "asinh":
            return np.arcsinh(np.asarray(values, float) / self.threshold)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(np.where(np.asarray(values) > 0, values, np.nan))

    def ends(self) -> tuple[float, float]:
        """Places that all values lie between."""
        low, high = self.place(np.array([self.low, self.high])).tolist()
        pad = 1e-6 * (high - low) or 1e-3 * (abs(low) or 1.0)
        return low - pad, high + pad

    def colour_ends(self) -> tuple[float, float]:
        """Places of the first and the last colour."""
        low, high = self.ends()
        far = max(-low, high)
        return (-far, far) if self.signed else (low, high)

    def levels(self, most: int = MOST) -> list[float]:
        """Round values between the ends, at most so many (or one more, zero).

        >>> Scale("log", 0.003, 2.0, 0.0, False).levels()
        [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
        >>> Scale("linear", 91.0, 99.7, 0.0, False).levels(5)
        [92.0, 94.0, 96.0, 98.0]
        >>> Scale("asinh", -0.2, 40.0, 0.04, True).levels(8)
        [-0.1, 0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
        """
        low, high = self.low, self.high
        if self.spacing == "linear":
            return _linear(low, high, most)
        if self.spacing == "log":
            return _powers(low, high, most)
        far, s = max(-low, high), self.threshold
        for count in range(most, 0, -1):
            sizes = _powers(s, far, count) if far > s else []
            both = [-x for x in sizes[::-1]] + ([0.0] if self.signed else []) + sizes
            found = [x for x in both if low < x < high]
            if len(found) <= most:
                return found
        return []


def scale_of(values: Sequence[Array], asked: Asked, *, signed: bool, may_be_log: bool) -> Scale:
    """The scale that arrays share.

    Args:
        values: what is drawn; values that are not finite do not count.
        asked: "auto" is logarithmic where the values span more than a decade.
        signed: whether zero divides the values, so that a logarithmic scale is one of asinh.
        may_be_log: whether "auto" may be.

    Raises:
        InputError: a logarithmic scale was asked for of values that are not positive.
    """
    together = np.concatenate([array.ravel() for array in values])
    known = together[np.isfinite(together)]
    if not len(known):
        return Scale("linear", 0.0, 0.0, 1.0, signed=False)
    low, high = float(known.min()), float(known.max())
    far = float(np.abs(known).max())
    if signed:
        typical = float(np.median(np.abs(known)))
        curved = asked == "log" or (asked == "auto" and far > DECADE * typical)
        both = low < -1e-9 * far  # rounding is no sign
        spacing: Spacing = "asinh" if curved and far > 0 else "linear"
        return Scale(spacing, low, high, LINEAR * far, both)
    if asked == "log" and low <= 0:
        raise InputError(
            f"the least value is {number(low)}, which a logarithmic scale does not have: choose scale "
            "'linear', or the quantity 'rise'"
        )
    log = asked == "log" or (asked == "auto" and may_be_log and 0 < DECADE * low < high)
    return Scale("log" if log else "linear", low, high, 1.0, signed=False)


def label(value: float) -> str:
    """A level, short, for matplotlib.

    >>> label(0.05), label(-2e-7), label(97.5)
    ('0.05', '−2×10$^{-7}$', '97.5')
    """
    return raised(plain_label(value))


def plain_label(value: float) -> str:
    """The same in plain letters.

    >>> plain_label(1e6)
    '10⁶'
    """
    text = number(value, 6).replace(" × ", "×")
    return text.replace("1×", "", 1) if text.lstrip("−").startswith("1×") else text


def _linear(low: float, high: float, most: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
    rounded = [float(f"{x:.12g}") + 0.0 for x in found]
    return [x for x in rounded if low < x < high]


def _powers(low: float, high: float, most: int) -> list[float]:
    """Round numbers of a logarithmic scale."""
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for series in reversed(_SERIES):
        found = [float(f"{m}e{k}") for k in exponents for m in series]
        found = [x for x in found if low < x < high]
        if len(found) <= most:
            return found
    step = -(-len(found) // most)
    return found[::step]
