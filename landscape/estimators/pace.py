"""Which of several ways to do the same work is the fastest, found out while the work is being done."""

from collections.abc import Generator
from itertools import pairwise
from typing import NamedTuple

POINTS = (4, 16)  # points evaluated together that are tried
BATCHES = (4, 16, 64)  # batches evaluated as one that are tried
GAIN = 0.95  # share of the time that joined batches may take, to be worth their memory
LONGEST = 0.5  # seconds of a call as the plain way lets expect; memory grows with it
HOPELESS = 1.5  # ways that take so many times the best are not taken further


class Way(NamedTuple):
    """How many points are evaluated together, and how many batches as one."""

    points: int = 1
    batches: int = 1


class Pace:
    """The fastest way so far, `best`, and the one to be tried next, `trial`, if any.

    Args:
        way: the way, if it is not to be looked for.
        batches: of every point.
        join: whether several may be evaluated as one.
    """

    def __init__(self, way: Way | None = None, *, batches: int = 1, join: bool = True) -> None:
        self.best = way or Way()
        self._batches, self._join = batches, join
        self._search = self._trials()
        self.trial = next(self._search) if way is None else None

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

    def _trials(self) -> Generator[Way, float, None]:
        least = plain = yield self.best

        def short(way: Way) -> bool:
            """Whether a call is."""
            share = min(way.batches, self._batches) / self._batches
            return plain * way.points * share <= LONGEST

        for before, count in pairwise((1, *BATCHES)):
            way = Way(1, count)
            if not self._join or before >= self._batches or not short(way):
                break
            seconds = yield way
            if not seconds < GAIN * least:
                break
            self.best, least = way, seconds
        for count in POINTS:
            way = Way(count, self.best.batches)
            if not short(way):
                break
            seconds = yield way
            if seconds < least:
                self.best, least = way, seconds
            elif seconds > HOPELESS * least:
                break
