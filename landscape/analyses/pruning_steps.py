"""The steps of pruning: score what is left, remove the least, let the rest adapt, judge."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from landscape.analyses.fine_tuning import write
from landscape.analyses.pruning_choice import (
    Layer,
    Pattern,
    Scope,
    choose,
    choose_channels,
    ladder,
    require_pattern,
    within_pattern,
)
from landscape.analyses.quality import Quality, quality
from landscape.errors import InputError
from landscape.estimators.surgeon import group_saliencies, remove, saliencies
from landscape.operators.gradient_rows import Rows
from landscape.operators.inverse_fisher import DEFAULT_COUNT, InverseFisher
from landscape.operators.row_storage import allocate
from landscape.operators.sample_gradients import Per, compute, draw
from landscape.problem import Problem

Method = Literal["mfac", "magnitude", "diagonal"]
Schedule = Literal["one-shot", "gradual"]
Retrain = Callable[[Problem, Tensor, int], None]  # (problem, free, seed)


@dataclass(frozen=True)
class Step:
    """The model after a step: sparsity reached, predicted rise of the loss, and how good it is.

    `quality` is on the held-out data where there are some, else on the training data; `predicted_increase`
    is that of this step alone, None for magnitude pruning.
    """

    sparsity: float
    predicted_increase: float | None
    quality: Quality


@dataclass(frozen=True)
class Plan:
    """How weights are chosen, see `prune`."""

    method: Method
    schedule: Schedule
    recompute: int
    scope: Scope
    pattern: Pattern | None
    structured: bool
    gradients: int | None
    damping: float
    per: Per
    seed: int

    def check(self, layers: Sequence[Layer], sparsities: Sequence[float] | None) -> None:
        """Refuse what is out of range or at odds.

        Raises:
            InputError: in a sentence.
        """
        for name, value, known in (
            ("method", self.method, ("mfac", "magnitude", "diagonal")),
            ("schedule", self.schedule, ("one-shot", "gradual")),
            ("scope", self.scope, ("global", "layer")),
        ):
            if value not in known:
                raise InputError(
                    f"{name} is {value!r}: choose {', '.join(known[:-1])} or {known[-1]}"
                )
        if not (isinstance(self.recompute, int) and self.recompute > 0):
            raise InputError(
                f"recompute is {self.recompute!r}: give a whole number of steps, at least 1"
            )
        if not (self.damping > 0 and math.isfinite(self.damping)):
            raise InputError(f"damping is {self.damping}: choose one above 0")
        if self.pattern is not None:
            also = {
                "sparsity": sparsities is not None,
                "structured": self.structured,
                "scope": self.scope != "global",
            }
            if any(also.values()):
                named = next(name for name, there in also.items() if there)
                raise InputError(f"a pattern says by itself what goes: leave {named} out")
            require_pattern(layers, self.pattern)
            return
        if not sparsities:
            raise InputError(
                "no sparsity was given: name the share of weights to be removed, as 0.9"
            )
        for before, share in pairwise([0.0, *sparsities]):
            if not (isinstance(share, (int, float)) and before < share < 1):
                raise InputError(
                    f"sparsity is {share!r}: give the share of weights to be removed, above {before:g} and "
                    "below 1, such as 0.9"
                )


def start(problem: Problem, layers: Sequence[Layer]) -> Tensor:
    """Which parameters are free: all but the prunable weights that are zero, bool (P,)."""
    weights = current(problem)
    free = torch.ones_like(weights, dtype=torch.bool)
    for layer in layers:
        free[layer.where] = weights[layer.where] != 0
    return free


def current(problem: Problem) -> Tensor:
    """The selected parameters as they are, (P,) in the problem's dtype."""
    parts = [p.detach().to(problem.device, problem.dtype) for p in map(_real, problem.selected())]
    return torch.cat([part.reshape(-1) for part in parts])


def sparsity_of(free: Tensor, layers: Sequence[Layer]) -> float:
    gone = sum(int((~free[layer.where]).sum()) for layer in layers)
    return gone / sum(layer.size for layer in layers)


def climb(
    problem: Problem,
    judge: Problem,
    layers: Sequence[Layer],
    plan: Plan,
    sparsities: Sequence[float] | None,
    beginning: Quality,
    retrain: Retrain | None,
    report: Callable[[int, int], None] | None,
) -> tuple[Tensor, list[Step]]:
    """Prune the problem's own model in place, step by step.

    Args:
        problem: whose model is pruned.
        judge: the same model on the data that it is judged by.
        layers: what may be pruned.
        plan: how weights are chosen.
        sparsities: to be reached one after the other; None where a pattern says what is.
        beginning: how good the model is before.
        retrain: after every step.
        report: called with (steps done, steps).

    Returns:
        Which parameters are left, bool (P,), and the steps, the first of them the beginning. They end early
        where the loss is not finite any more.

    Raises:
        InputError: the model is sparser than that already.
    """
    free = start(problem, layers)
    first = sparsity_of(free, layers)
    if first == 1:
        raise InputError("all prunable weights are zero already: nothing is left to be removed")
    if sparsities is None:
        sparsities = [_target(problem, free, layers, plan)]
    if sparsities[0] < first:
        raise InputError(
            f"{100 * first:.4g} % of the prunable weights are zero already: ask for a sparsity above that, "
            f"not {sparsities[0]:g}"
        )
    rungs = [
        rung
        for before, target in pairwise([first, *sparsities])
        for rung in ladder(before, target, plan.recompute)
    ]
    steps = [Step(first, None, beginning)]
    source = torch.Generator().manual_seed(plan.seed)
    for place, rung in enumerate(rungs):
        seed = int(torch.randint(2**31, (), generator=source))
        removed, rise = _remove(problem, layers, plan, free, rung, seed)
        free = free & ~removed
        if retrain is not None:
            retrain(problem, free, seed)
        steps.append(Step(sparsity_of(free, layers), rise, quality(judge)))
        if report is not None:
            report(place + 1, len(rungs))
        if not math.isfinite(steps[-1].quality.loss):
            break
    return free, steps


def _target(problem: Problem, free: Tensor, layers: Sequence[Layer], plan: Plan) -> float:
    """The sparsity that a pattern leads to."""
    assert plan.pattern is not None
    gone = within_pattern(current(problem).abs(), free, layers, plan.pattern)
    return sparsity_of(~gone, layers)


def _remove(
    problem: Problem, layers: Sequence[Layer], plan: Plan, free: Tensor, sparsity: float, seed: int
) -> tuple[Tensor, float | None]:
    """One step: what is removed from the problem's own model, bool (P,), and the predicted rise."""
    weights = current(problem).double()
    each, inverse = weights.square(), None
    if plan.method == "mfac":
        inverse = InverseFisher.from_gradients(_rows(problem, plan, free, seed), plan.damping)
    elif plan.method == "diagonal":
        each[free] *= 0.5 * _diagonal(_rows(problem, plan, free, seed), plan.damping)
    if plan.structured:
        by_channel = _channel_scores(weights, each, inverse, free, layers)
        removed = choose_channels(by_channel, free, layers, sparsity, plan.scope)
    else:
        if inverse is not None:
            each[free] = saliencies(inverse, weights[free])
        if plan.pattern is not None:
            allowed = within_pattern(each, free, layers, plan.pattern)
            each = each.masked_fill(~allowed, math.inf)
        scope: Scope = "global" if plan.pattern is not None else plan.scope
        removed = choose(each, free, layers, sparsity, scope)
    rise = None
    if inverse is not None:
        update, exact = remove(inverse, weights[free], removed[free])
        weights[free] += update
        rise = float(exact)
    elif plan.method == "diagonal":
        rise = float(each[removed].sum())
    write(problem, weights.masked_fill(removed, 0).to(problem.dtype))
    return removed, rise


def _rows(problem: Problem, plan: Plan, free: Tensor, seed: int) -> Rows:
    """Gradients at the model's weights with respect to what is left, (m, free), where there is room."""
    drawn, losses = draw(problem, plan.gradients, per=plan.per, seed=seed, default=DEFAULT_COUNT)
    shape = len(drawn.samples), int(free.sum())
    rows, filled = allocate(*shape, dtype=problem.dtype, devices=[problem.device]), 0

    def keep(block: Tensor) -> None:
        nonlocal filled
        rows.put(filled, block[:, free])
        filled += len(block)

    compute(problem, drawn, losses, keep)
    return rows


def _diagonal(rows: Rows, damping: float) -> Tensor:
    """The diagonal of F = λI + GᵀG/m, float64."""
    return torch.cat([damping + piece.square().mean(0) for _, piece in rows.pieces()])


def _channel_scores(
    weights: Tensor,
    each: Tensor,
    inverse: InverseFisher | None,
    free: Tensor,
    layers: Sequence[Layer],
) -> list[Tensor]:
    """The score of every output channel, one tensor per layer: joint saliencies, or sums of single scores."""
    if inverse is None:
        return [torch.stack([each[w].sum() for w in layer.channels()]) for layer in layers]
    here = free.cpu()
    place = here.cumsum(0) - 1  # among the columns of the gradients
    found = []
    for layer in layers:
        groups = [place[w][here[w]].to(free.device) for w in layer.channels()]
        found.append(group_saliencies(inverse, weights[free], groups))
    return found


def _real(parameter: Tensor) -> Tensor:
    return torch.view_as_real(parameter) if parameter.is_complex() else parameter
