"""Many right-hand sides of one linear system: which method works on which column, and for how long."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from landscape.estimators.iteration import (
    CONVERGED,
    NEGATIVE,
    RUNNING,
    STAGNATION,
    Iteration,
    Map,
)
from landscape.estimators.search import CHECK_EVERY
from landscape.estimators.sums import dots, norms
from landscape.operators.base import Operator
from landscape.results import Progress

Method = Literal["cg", "minres", "nystrom", "neumann", "lissa", "mfac"]
Status = Literal[
    "converged",
    "iteration limit",
    "negative curvature",
    "breakdown",
    "least squares",
    "stagnation",
    "divergence",
]
# In the order of their numbers in iteration.py, where 0 is "running".
STATUS: tuple[Status, ...] = (
    "iteration limit",
    "converged",
    "iteration limit",
    "negative curvature",
    "breakdown",
    "least squares",
    "stagnation",
)
# An iteration from product, preconditioner, right-hand sides, goals, limits and norms, see `Iteration`.
Make = Callable[[Map, Map, Tensor, Tensor, Tensor, Tensor], Iteration]


class Columns:
    """How far each column is: a method works on some of them, then those are measured."""

    def __init__(
        self,
        A: Operator,
        b: Tensor,
        start: Tensor | None,
        damping: float,
        inverse: Map,
        tolerance: float,
        limit: int,
        progress: Progress | None,
    ) -> None:
        self.unit = _unit(b)
        self.A, self.b, self.damping, self.inverse = A, b / self.unit, damping, inverse
        self.tolerance, self.limit, self.progress = tolerance, limit, progress
        self.size = norms(self.b)
        self.norm = torch.zeros_like(self.size)  # of A + damping·I, a lower bound
        self.x = (
            torch.zeros_like(b) if start is None else start.detach().reshape(b.shape) / self.unit
        )
        self.x[:, self.size == 0] = 0  # the solution there
        self.begun = A.products
        self.residual = torch.ones_like(self.size)  # relative, (K,)
        self.left = self.b.clone()  # b − (A + damping·I) x
        if start is not None:
            self._measure(torch.arange(b.shape[1], device=b.device))
        self.residual[self.size == 0] = 0
        self.histories = [[value] for value in self.residual.tolist()]
        self.status: list[Status] = ["iteration limit"] * b.shape[1]
        self.method: list[Method] = ["cg"] * b.shape[1]
        self.negative = torch.zeros_like(self.size, dtype=torch.bool)  # curvature met, (K,)

    def run(self, methods: Sequence[tuple[Method, Make]]) -> None:
        """Work on all columns until each has a reason to stop.

        Args:
            methods: the one to begin with, and, if there is another, the one for columns in which that
                meets negative curvature or diverges.
        """
        queue = [(0, list(range(self.b.shape[1])))]
        while queue:
            turn, columns = queue.pop(0)
            name, make = methods[turn]
            place = torch.tensor(columns, device=self.b.device)
            before = self.residual[place].tolist()
            codes = self._work(name, make, place)
            after = self.residual[place].tolist()
            again, other = [], []
            for column, code, old, new in zip(columns, codes, before, after, strict=True):
                if new <= self.tolerance:  # what is measured counts
                    code = CONVERGED
                elif code == CONVERGED:
                    code = STAGNATION
                self.method[column], self.status[column] = name, STATUS[code]
                self.histories[column][-1] = new
                stuck = code == STAGNATION
                if stuck and new <= 0.5 * old:
                    again.append(column)
                elif code == NEGATIVE or stuck and new > 1:
                    other.append(column)
            queue += [(turn, again)] if again else []
            if other and turn + 1 < len(methods):
                self._forget([column for column in other if self.residual[column] > 1])
                queue.append((turn + 1, other))

    def solution(self) -> Tensor:
        """x (P, K) for the right-hand sides as they were given."""
        x = self.x * self.unit
        self.A.require_finite(x)
        return x

    def _forget(self, columns: list[int]) -> None:
        """Begin some columns anew, from zero."""
        self.x[:, columns], self.left[:, columns] = 0, self.b[:, columns]
        self.residual[columns] = 1

    def _work(self, name: Method, make: Make, place: Tensor) -> list[int]:
        """Let a method work on what is left of some columns; why each of them stopped."""
        done = [len(self.histories[column]) - 1 for column in place.tolist()]
        limits = self.limit - torch.tensor(done, device=place.device)
        goal = 0.9 * self.tolerance * self.size[place]  # rounding must not tip it over
        left, norm = self.left[:, place], self.norm[place]
        iteration = make(self._product, self.inverse, left, goal, limits, norm)
        x, residual = self.x[:, place], self.residual[place]
        codes = self._advance(iteration, place)
        self._measure(place)
        if name == "minres":  # which never makes rᵀM⁻¹r larger, but by rounding
            now = self.left[:, place]
            worse = dots(now, self.inverse(now)) > dots(left, self.inverse(left))
            self.x[:, place[worse]], self.left[:, place[worse]] = x[:, worse], left[:, worse]
            self.residual[place[worse]] = residual[worse]
            codes = [STAGNATION if w else c for w, c in zip(worse.tolist(), codes, strict=True)]
        return codes

    def _advance(self, iteration: Iteration, place: Tensor) -> list[int]:
        """Step until every column has stopped, looking at them every few steps."""
        codes = [RUNNING] * len(place)
        working = torch.arange(len(place), device=place.device)
        lengths = [len(history) for history in self.histories]
        while True:
            # The only numbers that leave the device.
            for column, code in zip(working.tolist(), iteration.status.tolist(), strict=True):
                codes[column] = code
            stopped, going = iteration.status != RUNNING, iteration.running
            if bool(stopped.any()):
                over = place[working[stopped]]
                self.x[:, over] += iteration.x[:, stopped]
                self.norm[over] = iteration.size[stopped]
                self.negative[over] |= iteration.negative[stopped]
                iteration.keep(going)
                working = working[going]
            if not len(working):
                return codes
            looks = []
            for _ in range(CHECK_EVERY):
                iteration.step()
                looks.append(torch.stack([iteration.norms, iteration.steps.to(iteration.norms)]))
                if self.progress is not None:
                    done = self.A.products - self.begun
                    self.progress(done, max(done, (self.limit + 2) * self.b.shape[1]))
            self._note(place[working], torch.stack(looks), lengths)

    def _note(self, columns: Tensor, looks: Tensor, lengths: list[int]) -> None:
        """Add to the histories the steps (steps, 2, columns): norms, and how many steps there were."""
        self.A.require_finite(looks)
        looks[:, 0] /= self.size[columns]
        for column, taken in zip(columns.tolist(), looks.permute(2, 0, 1).tolist(), strict=True):
            history = self.histories[column]
            for norm, count in taken:
                if lengths[column] + count > len(history):  # it had not stopped
                    history.append(norm)

    def _product(self, block: Tensor) -> Tensor:
        return self.A.product(block).add_(block, alpha=self.damping)

    def _measure(self, place: Tensor) -> None:
        """What is left of some columns, by one more product."""
        left = self.b[:, place] - self._product(self.x[:, place])
        self.left[:, place] = left
        size = self.size[place]
        self.residual[place] = torch.where(size > 0, norms(left) / size, 0)
        self.A.require_finite(self.residual)


def _unit(block: Tensor) -> Tensor:
    """The power of two (K,) below each column's largest entry, 1 for a column of zeros.

    Over it no product of two entries under- or overflows, and dividing by it rounds nothing.
    """
    largest = block.abs().amax(0).to("cpu", torch.float64)
    unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    return torch.where(largest > 0, unit, 1).to(block)
