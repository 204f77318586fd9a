"""Which of several ways to do the same work is the fastest, found out while the work is being done."""

import math
from collections.abc import Generator
from typing import NamedTuple

POINTS = (4, 16)  # points evaluated together that are tried
BATCHES = (4, 16, 64)  # batches evaluated as one that are tried
GAIN = 0.95  # share of the time that joined batches may take, to be worth their memory
HOPELESS = 1.5  # ways that take so many times the best are not taken further


class Way(NamedTuple):
    """How many points are evaluated together, and how many batches as one."""

    points: int = 1
    batches: int = 1


class Pace:
    """The fastest way so far, `best`, and the one to be tried next, `trial`, if any.

    Args:
        way: the way, if it is not to be looked for.
        batches: how many could be evaluated as one at most.
        together: whether several points may be evaluated together.
    """

    def __init__(self, way: Way | None = None, *, batches: int = 1, together: bool = True) -> None:
        self.best = way or Way()
        self.trial: Way | None = None
        self._search = self._trials(batches, together)
        if way is None and (together or batches > 1):
            self.trial = next(self._search)

    def report(self, seconds: float) -> None:
        """Say how long a point took in the way that was tried; infinite if it failed."""
        try:
            self.trial = self._search.send(seconds)
        except StopIteration:
            self.trial = None

    def slow_down(self) -> bool:
        """Take less memory than the best way does; False where there is no such way."""
        self.trial = None
        points, batches = self.best
        self.best = Way(max(1, points // 2), 1)
        return (points, batches) != (1, 1)

    def _trials(self, batches: int, together: bool) -> Generator[Way, float, None]:
        least = yield self.best
        for i, count in enumerate(BATCHES):
            if batches <= (1, *BATCHES)[i]:
                break
            way = Way(1, count)
            seconds = yield way
            if not seconds < GAIN * least:
                break
            self.best, least = way, seconds
        for count in POINTS if together else ():
            way = Way(count, self.best.batches)
            seconds = yield way
            if seconds < least:
                self.best, least = way, seconds
            elif math.isinf(seconds) or seconds > HOPELESS * least:
                break
