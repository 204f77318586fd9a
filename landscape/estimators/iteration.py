"""What linear solvers share: many right-hand sides at once, each column stopping for itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from landscape.estimators.sums import norms

Map = Callable[[Tensor], Tensor]
RUNNING, CONVERGED, LIMIT, NEGATIVE, BREAKDOWN, LEAST_SQUARES, STAGNATION = range(7)


class Iteration:
    """The state of a solver for B x = b on the columns of b, from x = 0.

    Subclasses say what one step is. A column that has stopped stays as it is, on the device, so that
    nobody has to look after every step.

    Args:
        product: B times a block.
        inverse: the preconditioner, an approximate inverse, times a block.
        b: right-hand sides (P, K).
        goal: norms (K,) of the residual at which each column stops.
        limits: steps (K,) after which each column stops.
        size: what is known of ‖B‖, a lower bound (K,), zero if nothing is.
    """

    def __init__(
        self, product: Map, inverse: Map, b: Tensor, goal: Tensor, limits: Tensor, size: Tensor
    ) -> None:
        self.product, self.inverse = product, inverse
        self.goal, self.limits, self.size = goal, limits, size
        self.x, self.r = torch.zeros_like(b), b.clone()
        self.norms = norms(self.r)  # of the residual, (K,)
        self.gap = torch.zeros_like(self.norms)  # between r and b − Bx, by rounding
        self.status = torch.full_like(limits, RUNNING)
        self.steps = torch.zeros_like(limits)
        self.negative = torch.zeros_like(limits, dtype=torch.bool)  # curvature met, or none
        self._stop(self.norms <= goal, CONVERGED)
        self._stop(limits < 1, LIMIT)

    @property
    def running(self) -> Tensor:
        """Which columns go on, (K,)."""
        return self.status == RUNNING

    def step(self) -> None:
        """One step of every column that goes on."""
        raise NotImplementedError

    def _stop(self, columns: Tensor, status: int) -> None:
        """Stop those of the columns that go on."""
        self.status = torch.where(columns & self.running, status, self.status)

    def _judge(self, curvature: Tensor, square: Tensor) -> Tensor:
        """Where pᵀBp (K,) of directions with ‖p‖² (K,) is not positive, up to rounding; it is noted."""
        rounding = torch.finfo(self.r.dtype).eps * self.size * square
        found = (curvature <= rounding) & self.running
        self.negative = self.negative | found
        return found

    def _update(self, direction: Tensor, length: Tensor, made_of: Tensor) -> Tensor:
        """Go along a direction (P, K) by a length (K,), and count; the lengths really gone.

        A column does not go where what is left would be lost in rounding: that of the direction, which
        was computed from vectors as long as `made_of` (K,).
        """
        rounding = torch.finfo(direction.dtype).eps * made_of
        gap = self.gap + self.size * length.abs() * rounding
        self._stop(self.norms <= gap, STAGNATION)
        self.gap = torch.where(self.running, gap, self.gap)
        length = torch.where(self.running, length, 0)
        self.x.addcmul_(direction, length.to(direction))
        self.steps += self.running
        return length

    def _arrive(self) -> None:
        """After the residual is known: stop what has arrived."""
        self.norms = norms(self.r)
        self._stop(self.norms <= self.goal, CONVERGED)

    def keep(self, columns: Tensor) -> None:
        """Go on with some columns only."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[..., columns])
