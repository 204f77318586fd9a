"""Curves between two points in weight space, and how their bends are trained."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landscape import batches
from landscape.analyses.minibatches import Minibatches
from landscape.parameters import Layout
from landscape.problem import Problem
from landscape.slots import buffer_places

Shape = Literal["linear", "bezier", "polygon"]
SHAPES: tuple[Shape, ...] = ("linear", "bezier", "polygon")


def blend(shape: Shape, t: Tensor, bends: int) -> Tensor:
    """The weights of the control points at t, each row a mixture: shape (len(t), bends + 2), float64.

    "bezier": Bernstein's polynomials C(n, i) tⁱ (1 − t)ⁿ⁻ⁱ, quadratic with one bend. "polygon": straight
    pieces of equal share in t from point to point. (Garipov et al. 2018, arXiv:1802.10026, equations 3
    and 4.)

    >>> blend("bezier", torch.tensor([0.5]), 1).tolist(), blend("polygon", torch.tensor([0.25]), 1).tolist()
    ([[0.25, 0.5, 0.25]], [[0.5, 0.5, 0.0]])
    """
    n = bends + 1
    x = t.double()[:, None]
    i = torch.arange(n + 1, dtype=torch.float64)
    if shape != "bezier":
        return (1 - (n * x - i).abs()).clamp(min=0)
    binomial = torch.tensor([math.comb(n, k) for k in range(n + 1)], dtype=torch.float64)
    return binomial * x**i * (1 - x) ** (n - i)


def initial_bends(end: Tensor, bends: int) -> Tensor:
    """Points evenly on the straight line from 0 to an end (P,): shape (P, bends)."""
    return end[:, None] * (torch.arange(1, bends + 1).to(end) / (bends + 1))


def train_bends(
    problem: Problem,
    end: Tensor,
    shape: Shape,
    *,
    bends: int = 1,
    epochs: int,
    learning_rate: float,
    buffers: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Bends of low mean loss along the curve from the model's weights to others.

    Minimises E_t L(φ(t)), t uniform in [0, 1] and drawn anew for every minibatch, by Adam on the bends
    alone; both ends stay. The learning rate falls to 0 along half a cosine. (Garipov et al. 2018,
    arXiv:1802.10026, section 3 and algorithm 1.) Dropout is off, and batch normalisation does what the
    problem says.

    Args:
        problem: the loss; the curve begins at its model.
        end: where the curve ends, less the model's weights, (P,).
        shape: "bezier" or "polygon".
        bends: how many.
        epochs: passes over the data, see `Minibatches`.
        learning_rate: the largest, of Adam.
        buffers: what is added to buffers of the model, by name, times t.
        seed: of the order of the samples and of t.
        progress: called with (steps done, steps).

    Returns:
        The bends, less the model's weights, (P, bends).
    """
    source = torch.Generator().manual_seed(seed)
    data = Minibatches(problem)
    end = end.to(problem.device, problem.dtype)
    points = initial_bends(end, bends).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=learning_rate)
    steps = epochs * len(data)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    moves = buffer_places(problem, buffers or {})
    by_batch, done = problem.uses_batch_statistics(), 0
    with problem.evaluation() as run:
        for _ in range(epochs):
            for batch in data.epoch(source):
                t = torch.rand(1, generator=source, dtype=torch.float64)
                weights = blend(shape, t, bends)[0].to(end)
                offset = points.detach() @ weights[1:-1] + end * weights[-1]
                run.move(offset, [(place, float(t) * step) for place, step in moves])
                done += 1
                if by_batch and batches.row_count(batch) < 2:
                    continue  # one value has no variance
                total, terms = run.total(batch)
                if not terms or not total.requires_grad:
                    continue
                parts = torch.autograd.grad(total / terms, run.leaves, allow_unused=True)
                gradient = problem.layout.flatten(parts, end)
                points.grad = torch.outer(gradient, weights[1:-1])
                optimizer.step()
                schedule.step()
                if progress is not None:
                    progress(done, steps)
    return points.detach()


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve through weight space: its control points (P, bends + 1) after the first, less the first.

    `buffers` is what is added to the model's buffers, by name, times t; `model` its state dict at t = 0.
    """

    shape: Shape
    points: Tensor
    layout: Layout
    buffers: dict[str, Tensor]
    model: dict[str, Tensor]
    names: dict[str, list[str]]  # of every selected parameter, tied weights under all their names

    @property
    def bends(self) -> int:
        return self.points.shape[1] - 1

    def coordinates(self, t: Tensor) -> Tensor:
        """Of the places t, in the control points and, last, in the buffers: (len(t), bends + 2)."""
        return torch.cat([blend(self.shape, t, self.bends)[:, 1:], t.double()[:, None]], dim=1)

    def directions(self) -> Tensor:
        """What those coordinates count, (P, bends + 2): buffers move no weights."""
        return torch.cat([self.points, torch.zeros_like(self.points[:, :1])], dim=1)

    def buffer_directions(self) -> dict[str, Tensor]:
        """The same of the buffers, by name, of shape (*buffer, bends + 2)."""
        last = torch.eye(self.bends + 2, dtype=torch.float64)[-1]
        return {name: move[..., None] * last.to(move) for name, move in self.buffers.items()}

    def length(self) -> float:
        """Length of the curve in weight space, over 1,000 chords."""
        gram = self.points.double().T @ self.points.double()
        steps = blend(self.shape, torch.linspace(0, 1, 1001), self.bends)[:, 1:].diff(dim=0)
        steps = steps.to(gram)
        return float((steps @ gram * steps).sum(1).clamp(min=0).sqrt().sum())

    def state(self, t: float) -> dict[str, Tensor]:
        """The state dict of the model at t; running statistics lie on the line between both models'."""
        found = {name: value.clone() for name, value in self.model.items()}
        weights = self.coordinates(torch.tensor([t]))[0].to(self.points)
        moves = self.layout.split(self.points.double() @ weights[:-1].double())
        for name, move in zip(self.layout.names, moves, strict=True):
            for alias in self.names[name]:
                found[alias] = _moved(found[alias], move)
        for name, move in self.buffers.items():
            if name in found:  # some are not part of a state dict
                found[name] = _moved(found[name], t * move)
        return found


def _moved(value: Tensor, move: Tensor) -> Tensor:
    if value.is_complex():
        move = torch.view_as_complex(move.cpu())
    return (value.to(torch.promote_types(value.dtype, torch.float64)) + move.cpu()).to(value.dtype)
