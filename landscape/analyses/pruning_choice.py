"""Which weights are pruned: how many at every step, and, given a score of each, which."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.parameters import match
from landscape.problem import Problem

Scope = Literal["global", "layer"]
Pattern = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A tensor of weights that may be pruned, and where it lies in the flat vector of parameters."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def where(self) -> slice:
        return slice(self.start, self.start + self.size)

    def channels(self) -> list[slice]:
        """Where the weights of each output channel lie, the rows of the tensor."""
        width = self.size // (self.shape or (1,))[0]
        stops = range(self.start + width, self.start + self.size + 1, width)
        return [slice(stop - width, stop) for stop in stops]


def prunable_layers(problem: Problem, prunable: str | Sequence[str] | None) -> list[Layer]:
    """The tensors whose weights may be pruned.

    Args:
        problem: whose selected parameters are meant.
        prunable: glob(s) on their names; None for all of two dimensions or more, which leaves out biases
            and the parameters of normalisations.

    Raises:
        InputError: there is none, a glob matches none, or one is complex.
    """
    chosen = match(problem.names, prunable) if prunable is not None else problem.names
    found, start = [], 0
    for name, shape, parameter in zip(
        problem.names, problem.layout.shapes, problem.selected(), strict=True
    ):
        wanted = name in chosen and (prunable is not None or parameter.ndim > 1)
        if wanted and parameter.numel():
            if parameter.is_complex():
                raise InputError(
                    f"parameter {name!r} is complex: leave it out of what is pruned (prunable=)"
                )
            found.append(Layer(name, start, tuple(shape)))
        start += shape.numel()
    if not found:
        raise InputError(
            "no selected parameter has two dimensions or more, as weights do: name what may be pruned "
            "(prunable=)"
        )
    return found


def ladder(start: float, target: float, steps: int) -> list[float]:
    """Sparsities on the way to a target: every step prunes the same share of what is left.

    1 − s_j = (1 − s_{j−1}) q. (Frantar, Kurtic & Alistarh 2021, arXiv:2107.03356, in their code; the last
    one is the target exactly.)

    >>> [round(s, 4) for s in ladder(0.0, 0.75, 2)], ladder(0.5, 1.0, 1)
    ([0.5, 0.75], [1.0])
    """
    ratio = (1 - target) / (1 - start)
    shares = [1 - (1 - start) * ratio ** (j / steps) for j in range(1, steps)]
    return [*shares, target]


def choose(
    scores: Tensor, free: Tensor, layers: Sequence[Layer], sparsity: float, scope: Scope
) -> Tensor:
    """The weights of lowest score, so many that with those already gone the sparsity is reached.

    Args:
        scores: of every parameter, shape (P,); infinite where it must stay.
        free: which parameters have not been removed, bool (P,).
        layers: those counted.
        sparsity: share of their weights to be gone, rounded to whole weights; one stays in any case.
        scope: over all layers together, or in each.

    Returns:
        What is removed now, bool (P,).
    """
    removed = torch.zeros_like(free)
    for part in [list(layers)] if scope == "global" else [[layer] for layer in layers]:
        places = torch.cat([torch.arange(x.where.start, x.where.stop) for x in part])
        places = places.to(free.device)
        gone = int((~free[places]).sum())
        left = scores[places].masked_fill(~free[places], math.inf)
        most = min(round(sparsity * len(places)), len(places) - 1)
        order = left.argsort(stable=True)[: max(0, most - gone)]
        removed[places[order[left[order] < math.inf]]] = True
    return removed


def within_pattern(
    scores: Tensor, free: Tensor, layers: Sequence[Layer], pattern: Pattern
) -> Tensor:
    """Which weights an N:M pattern lets go: all but the N of highest score among M neighbours, bool (P,).

    Neighbours are consecutive along the second dimension, the inputs, at the same place otherwise. A layer
    whose inputs are no multiple of M stays dense. What was removed before is among those let go.
    """
    keep, among = pattern
    gone = torch.zeros_like(free)
    for layer in layers:
        gone[layer.where] = ~free[layer.where]
    for layer in _fitting(layers, pattern):
        rows, inputs, *_ = layer.shape
        shape = (rows, inputs // among, among, layer.size // (rows * inputs))
        own = scores[layer.where].masked_fill(~free[layer.where], -math.inf).view(shape)
        rank = own.argsort(dim=2, stable=True).argsort(dim=2)
        gone[layer.where] |= (rank < among - keep).reshape(-1)
    return gone


def require_pattern(layers: Sequence[Layer], pattern: Pattern) -> None:
    """Refuse a pattern that is none, or fits no layer."""
    whole = len(pattern) == 2 and all(isinstance(number, int) for number in pattern)
    if not (whole and 0 < pattern[0] < pattern[1]):
        raise InputError(
            f"the pattern is {pattern!r}: give how many of how many stay, fewer than all, as (2, 4)"
        )
    keep, among = pattern
    if not _fitting(layers, pattern):
        widths = ", ".join(f"{x.name} {x.shape[1] if len(x.shape) > 1 else 1}" for x in layers[:4])
        raise InputError(
            f"the pattern {keep}:{among} fits no layer: their inputs ({widths}) are no multiples of {among}"
        )


def choose_channels(
    scores: Sequence[Tensor],
    free: Tensor,
    layers: Sequence[Layer],
    sparsity: float,
    scope: Scope,
) -> Tensor:
    """The output channels of lowest score per weight, so many that the sparsity is met most closely.

    One stays in any case.

    Args:
        scores: of every channel, one tensor (channels,) per layer.
        free, layers, sparsity, scope: see `choose`.

    Returns:
        The channels removed now, bool (P,), with what was gone of them before.
    """
    removed = torch.zeros_like(free)
    together = [range(len(layers))] if scope == "global" else [[i] for i in range(len(layers))]
    for part in together:
        channels = [where for i in part for where in layers[i].channels()]
        sizes = torch.stack([free[where].sum() for where in channels]).cpu()  # of what is left
        each = torch.cat([scores[i] for i in part]).cpu() / sizes
        alive = sizes > 0
        order = each.masked_fill(~alive, math.inf).argsort(stable=True)[
            : max(0, int(alive.sum()) - 1)
        ]
        total = sum(layers[i].size for i in part)
        wanted = sparsity * total - int(sum((~free[layers[i].where]).sum() for i in part))
        reached = torch.cat([sizes.new_zeros(1), sizes[order].cumsum(0)]).double()
        for place in order[: int((reached - wanted).abs().argmin())].tolist():
            removed[channels[place]] = True
    return removed


def _fitting(layers: Sequence[Layer], pattern: Pattern) -> list[Layer]:
    return [x for x in layers if len(x.shape) > 1 and x.shape[1] % pattern[1] == 0]
