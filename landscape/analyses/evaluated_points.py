"""Points whose losses are kept, so that a killed surface goes on."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from landscape.checkpoint import Stage
from landscape.estimators.loss_at import LossAt, Losses, joined
from landscape.estimators.pace import Pace, Way
from landscape.operators.hessian import Hessian


class EvaluatedPoints:
    """The losses at points, in the order they are asked for; what an earlier run did is not done again."""

    def __init__(
        self,
        loss_at: LossAt,
        stage: Stage,
        operator: Hessian,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._loss_at, self._stage, self._progress = loss_at, stage, progress
        self._meter = stage.meter(operator)
        self._kept: list[Losses] = []
        self._done = self._asked = 0  # points
        if stage.state is not None:
            self._kept = [Losses(**stage.state["losses"])]
            loss_at.pace, self._done = Pace(Way(*stage.state["way"])), len(self._kept[0].loss)
            loss_at.evaluations += self._done

    def __call__(self, coordinates: Tensor) -> Losses:
        start, self._asked = self._asked, self._asked + len(coordinates)
        while self._done < self._asked:
            for part in self._loss_at.parts(coordinates[self._done - start :]):
                self._kept.append(part)
                self._done += len(part.loss)
                self._stage.offer(self._meter, self._state)
                if self._progress is not None:
                    self._progress(self._done, self._asked)
        self._kept = [joined(self._kept)]
        return Losses(
            *(None if row is None else row[start : self._asked] for row in self._kept[0])  # type: ignore[arg-type]
        )

    def finish(self) -> None:
        """Say that no more points will be asked for."""
        self._stage.offer(self._meter, self._state, done=True)

    def _state(self) -> dict[str, Any]:
        self._kept = [joined(self._kept)]
        return {"losses": self._kept[0]._asdict(), "way": tuple(self._loss_at.pace.best)}
