"""The fastest way is found by times alone."""

import math
from collections.abc import Callable

from landscape.estimators.pace import Pace, Way


def found(seconds: Callable[[Way], float], **kinds: int | bool) -> tuple[Way, list[Way]]:
    """The best way if a point takes so long in each, and those that were tried."""
    pace, tried = Pace(**kinds), []  # type: ignore[arg-type]
    while pace.trial is not None:
        tried.append(pace.trial)
        pace.report(seconds(pace.trial))
    return pace.best, tried


def test_batches_are_joined_while_that_pays_and_points_put_together_then() -> None:
    best, tried = found(lambda way: 1e-3 / way.batches / way.points, batches=40)
    assert best == Way(16, 64)
    assert tried == [Way(), Way(1, 4), Way(1, 16), Way(1, 64), Way(4, 64), Way(16, 64)]
    best, tried = found(lambda way: 1e-3 * way.points * (abs(way.batches - 4) + 1), batches=6)
    assert best == Way(1, 4) and Way(1, 64) not in tried and Way(16, 4) not in tried


def test_a_gain_of_a_few_per_cent_is_not_worth_the_memory() -> None:
    for gain, best in ((0.01, Way()), (0.10, Way(1, 4))):
        seconds = {Way(): 1e-3, Way(1, 4): 1e-3 * (1 - gain)}
        assert found(lambda way, seconds=seconds: seconds.get(way, 1.0), batches=4)[0] == best


def test_calls_that_are_long_already_are_not_made_longer() -> None:
    assert found(lambda way: 4.0, batches=40)[1] == [Way(), Way(1, 4), Way(4, 1)]  # 0.1 s a batch
    assert found(lambda way: 10.0, batches=2)[1] == [Way()]
    assert found(lambda way: 0.1, batches=2, join=False)[1] == [Way(), Way(4, 1)]


def test_what_fails_is_not_chosen_and_not_taken_further() -> None:
    best, tried = found(lambda way: 1e-3 if way == Way() else math.inf, batches=100)
    assert best == Way() and tried == [Way(), Way(1, 4), Way(4, 1)]


def test_a_way_that_is_given_is_not_doubted_and_can_be_slowed_down() -> None:
    pace = Pace(Way(16, 4), batches=100)
    assert pace.trial is None and pace.best == Way(16, 4)
    assert pace.slow_down() and pace.best == Way(8, 1)
    assert [pace.slow_down() for _ in range(4)] == [True, True, True, False]
    searching = Pace(batches=100)
    assert not searching.slow_down() and searching.trial is None
