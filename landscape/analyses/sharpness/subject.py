"""The weights whose sharpness is measured: what all measures share, and what they have cost so far."""

import copy
import math
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from landscape.analyses.adam import Adam
from landscape.analyses.operators import in_float64
from landscape.analyses.sharpness.measure import UNKNOWN, Measure
from landscape.analyses.sharpness.options import Scaled
from landscape.estimators.loss_at import LossAt, Losses
from landscape.estimators.probes import gaussian, generator
from landscape.evaluation import Evaluation
from landscape.operators.hessian import Hessian
from landscape.operators.products.plan import Execution
from landscape.problem import Problem
from landscape.results import cost_of_time

AT_ONCE_BYTES = 2**28  # of random perturbations held at the same time


class Spent(NamedTuple):
    """Passes over the data, products and seconds up to a moment."""

    products: int
    gradients: float
    losses: float
    seconds: float


class Subject:
    """A problem at its weights w, with counters of what is evaluated around them.

    Args:
        problem: the loss.
        adam: the state of the optimiser, if there is one.
        execution: how products with the Hessian are made.
    """

    def __init__(
        self, problem: Problem, adam: Adam | None = None, **execution: Unpack[Execution]
    ) -> None:
        self.problem, self.adam = problem, adam
        self.hessian = Hessian(problem, **execution)
        self.gradients = self.losses = 0.0
        self._loss_at: LossAt | None = None

    @cached_property
    def weights(self) -> Tensor:
        """w, shape (P,)."""
        return self.problem.weights()

    @cached_property
    def gradient(self) -> Tensor:
        """∇L(w), shape (P,)."""
        self.gradients += 1
        return self.problem.gradient()

    @cached_property
    def exact(self) -> "Subject":
        """The same in float64, where the model permits."""
        exact = in_float64(self.hessian)
        if exact is None:
            return self
        return Subject(exact.problem, self.adam, engine="double backward")  # type: ignore[attr-defined]

    def on(self, problem: Problem) -> "Subject":
        """The same weights with another loss, its counters at zero."""
        other = copy.copy(self)
        other.problem, other._loss_at, other.gradients, other.losses = problem, None, 0.0, 0.0
        for name in ("gradient", "exact"):
            vars(other).pop(name, None)
        other.hessian = Hessian(problem)
        return other

    def scaling(self, adaptive: bool, which: Scaled = "all") -> tuple[Tensor, str]:
        """c, (P,), and in a word: ones, or |w| of all parameters or of tensors of two and more dimensions."""
        if not adaptive:
            return torch.ones_like(self.weights), "1"
        c = self.weights.abs()
        if which == "all":
            return c, "|w|"
        parts = zip(self.problem.layout.split(c), self.problem.selected(), strict=True)
        kept = [part if own.ndim > 1 else torch.ones_like(part) for part, own in parts]
        return self.problem.layout.flatten(kept, c), "|w| of matrices"

    def update(self) -> tuple[Tensor, str]:
        """The step Δ that training would take next, the weights becoming w − ηΔ, and its name."""
        if self.adam is None:
            return self.gradient, "gradient"
        update = self.adam.update(self.gradient.double())
        return update.to(self.gradient), "next update of Adam"

    def losses_at(self, offsets: Tensor, coordinates: Tensor) -> Losses:
        """The loss at w + offsets @ c for every row c of the coordinates."""
        if self._loss_at is None:
            # One by one: how many at once are the fastest is measured, and not the same every time.
            self._loss_at = LossAt(self.problem, offsets, at_once=1)
            self.losses += 1
        self._loss_at.directions = offsets
        self.losses += len(coordinates)
        return self._loss_at(coordinates)

    def rise(self, offset: Tensor) -> tuple[float, float]:
        """L(w + δ) − L(w) with its standard error over samples."""
        found = self.losses_at(offset[:, None], offset.new_ones(1, 1))
        return float(found.rise[0]), float(found.rise_standard_error[0])

    def loss_and_gradient(
        self, run: Evaluation, offset: Tensor, batches: list[Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean loss (float64) and gradient (P,) at w + δ over some batches, all by default.

        The caller ends it by `run.place(run.values)`.
        """
        run.move(offset)
        found = run.gradient(batches)
        self.gradients += found.terms / self.problem.terms
        return found.loss / found.terms, found.gradient / found.terms

    def normal(self, draws: int, seed: int) -> Iterator[Tensor]:
        """Standard normal vectors, `draws` in all, in blocks (P, k) that fit into memory; the same every time."""
        width = max(1, AT_ONCE_BYTES // (8 * self.problem.size))
        for start in range(0, draws, width):
            # Every block has a stream of its own, so that it can be drawn again without those before it.
            (own,) = np.random.SeedSequence([seed, start]).generate_state(1, np.uint64)
            count = min(width, draws - start)
            yield gaussian(self.hessian, count, generator(int(own >> np.uint64(1))))

    def spent(self) -> Spent:
        """What has been evaluated so far."""
        products = self.hessian.products
        return Spent(products, self.gradients, self.losses, time.perf_counter())

    def row(
        self,
        since: Spent,
        family: str,
        name: str,
        value: float,
        *,
        definition: str,
        source: str,
        error: float = UNKNOWN,
        error_from: str = "",
        rho: float | None = None,
        m: int | None = None,
        scaling: str = "1",
        note: str = "",
    ) -> Measure:
        """A row of the table, whose cost is what was evaluated since a moment."""
        now = self.spent()
        return Measure(
            family,
            name,
            value,
            error,
            "" if math.isnan(error) else error_from,
            definition,
            source,
            rho,
            self.problem.samples if m is None else m,
            scaling,
            note,
            cost_of_time(
                self.problem,
                now.seconds - since.seconds,
                products=now.products - since.products,
            ),
            now.gradients - since.gradients,
            now.losses - since.losses,
        )
