"""What is left of a model when most of its weights are removed?"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from landscape.analyses.fine_tuning import fine_tune as train
from landscape.analyses.fine_tuning import write
from landscape.analyses.pruning_choice import Pattern, Scope, prunable_layers
from landscape.analyses.pruning_steps import Method, Plan, Schedule, Step, climb, current
from landscape.analyses.quality import Quality, quality
from landscape.batches import as_batches
from landscape.errors import InputError
from landscape.operators.inverse_fisher import DEFAULT_COUNT
from landscape.operators.sample_gradients import Per
from landscape.problem import Problem
from landscape.results import PRUNING_SCHEMA, Cost, cost_of_time, provenance, write_tensors
from landscape.saved import NOT_SAVED, Result
from landscape.undisturbed import preserved_randomness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FineTune = Callable[[nn.Module, dict[str, Tensor]], object]


@dataclass(frozen=True)
class LayerSparsity:
    """How many weights of a layer there were, and how many are gone."""

    name: str
    weights: int
    pruned: int


@dataclass(frozen=True, eq=False)
class Pruning(Result, schema=PRUNING_SCHEMA):
    """A pruned model: what went, what that was predicted to cost, and what it cost.

    `sparsity` is the share of the `prunable` weights that is zero. `steps` begins with the model as it was;
    `magnitude_steps` are those of magnitude pruning in the same steps. `predicted_increase` is that of the
    training loss, summed over the steps. `masks` (True where a weight is kept) and `state`, the whole
    state dict of the pruned model, are not part of the JSON: `save_masks` and `save_weights` write them.
    `cost` has no products; its gradient equivalents are the whole time over that of one gradient.
    """

    method: str
    schedule: str
    scope: str
    pattern: Pattern | None
    structured: bool
    parameters: int
    prunable: int
    pruned: int
    gradients: int | None
    damping: float | None
    before: Quality
    after: Quality
    held_out_before: Quality | None
    held_out_after: Quality | None
    predicted_increase: float | None
    steps: list[Step]
    magnitude_steps: list[Step]
    layers: list[LayerSparsity]
    failures: list[str]
    cost: Cost
    provenance: dict[str, Any]
    masks: dict[str, Tensor] | None = field(default=None, repr=False, metadata=NOT_SAVED)
    state: dict[str, Any] | None = field(default=None, repr=False, metadata=NOT_SAVED)

    @property
    def sparsity(self) -> float:
        return self.pruned / self.prunable

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the pruned weights; the model itself stays as it is.

        Raises:
            InputError: the weights are not part of a saved result, or belong to another model.
        """
        state, other = self._kept(self.state), copy.deepcopy(model)
        try:
            found = other.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise InputError(f"the pruned weights do not fit this model: {error}") from error
        astray = [*found.unexpected_keys, *found.missing_keys]
        if astray:
            raise InputError(
                f"the pruned weights do not fit this model: {astray[0]!r} is in one alone"
            )
        return other

    def save_weights(self, path: str | Path) -> None:
        """Write the state dict of the pruned model as safetensors, to be loaded like any weights."""
        write_tensors(self._kept(self.state), path)

    def save_masks(self, path: str | Path) -> None:
        """Write the masks by the names of their parameters, bool, True where a weight is kept, as safetensors."""
        write_tensors(self._kept(self.masks), path)

    def _kept(self, tensors: dict[str, Any] | None) -> dict[str, Any]:
        if tensors is None:
            raise InputError("masks and weights are not part of a saved result: prune anew")
        return tensors

    def to_dict(self) -> dict[str, Any]:
        """All that is saved, with the schema and the sparsity that was reached."""
        return super().to_dict() | {"sparsity": self.sparsity}

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """Draw accuracy, or loss, over sparsity; see `landscape.plots.pruning.plot_pruning`."""
        from landscape.plots.pruning import plot_pruning

        return plot_pruning(self.to_dict(), path, **options)


def prune(
    problem: Problem,
    sparsity: float | Sequence[float] | None = None,
    *,
    method: Method = "mfac",
    schedule: Schedule = "one-shot",
    recompute: int = 16,
    scope: Scope = "global",
    pattern: Pattern | None = None,
    structured: bool = False,
    prunable: str | Sequence[str] | None = None,
    gradients: int | None = None,
    damping: float = 1e-5,
    per: Per = "sample",
    held_out: Any = None,
    compare: bool = True,
    fine_tune: FineTune | None = None,
    epochs_per_step: int = 1,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    command: str | None = None,
) -> Pruning:
    """Remove weights at the least rise of the loss; the user's model stays as it is.

    With "mfac" the loss is modelled as ½ δᵀFδ, F = λI + GᵀG/m the damped empirical Fisher matrix of m
    gradients. Weights go by the saliency w²/(2 [F⁻¹]ᵢᵢ); all other selected parameters, biases too, make
    up for those that go together, by the exact joint update. Between the steps the gradients are computed
    anew, at the pruned weights, over what is left. (Hassibi & Stork 1992; Frantar, Kurtic & Alistarh 2021,
    arXiv:2107.03356.) "diagonal" goes by w² Fᵢᵢ / 2 (LeCun et al. 1989) and "magnitude" by |w|; both change
    no other weight. Batch normalisation keeps its running statistics.

    Weights that are zero already count as pruned, and stay so: a pruned model can be pruned further.

    Args:
        problem: the loss at the trained weights; its selected parameters are those that change at all.
        sparsity: share of the prunable weights to be zero at the end, 0 to 1; several, increasing, to be
            reached one after the other; None with a pattern, which says itself what goes.
        method: "mfac", "diagonal" or "magnitude".
        schedule: "one-shot" without training, or "gradual" with training after every step.
        recompute: number of steps to each sparsity, each of which computes gradients once and removes the
            same share of what is left.
        scope: whether weights of all layers compete ("global"), or every layer gets the sparsity ("layer").
        pattern: (N, M) leaves at most N of M consecutive inputs of an output, as hardware for 2:4 wants
            them; layers whose inputs are no multiple of M stay dense.
        structured: remove whole output channels, by their joint saliency ½ w_Sᵀ([F⁻¹]_SS)⁻¹w_S per weight;
            their biases stay. They are the rows of the weights (inputs, in a transposed convolution).
            Those of the last layer are its outputs: `prunable` can leave it out.
        prunable: glob(s) on the names of what may be pruned; default: weights of two dimensions or more.
        gradients: m per step; default 256, or all there are.
        damping: λ, in units of the loss² per parameter².
        per: "sample" or "batch" gradients, see `InverseFisher`.
        held_out: data like those of the problem, on which the model is judged as well.
        compare: prune by magnitude in the same steps too, with the same training, for the curve.
        fine_tune: of the gradual schedule: called with the pruned model, to be trained in place, and the
            masks by name; afterwards the masks are applied. Default: `epochs_per_step` epochs of Adam in
            evaluation mode at `learning_rate`, see `landscape.analyses.fine_tuning`.
        seed: of the samples that gradients are taken of, and of the training.
        progress: called with (method, steps done, steps).
        command: what was typed, for provenance.

    Raises:
        InputError: arguments out of range or at odds, more gradients than data, or a model that is sparser
            already.

    Example:
        >>> import torch, landscape as ls
        >>> x = torch.eye(3)[[0, 1, 2, 2]]
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0, 1.0]]))
        >>> result = ls.prune(ls.Problem(model, "mse", (x, x @ model.weight.data.T + 1)), 1 / 3)
        >>> result.masks["weight"], model.weight[0, 0].item()
        (tensor([[False,  True,  True]]), 1.0)
    """
    start = time.perf_counter()
    if not isinstance(problem, Problem):
        raise InputError(
            f"a {type(problem).__name__} is no problem: pass ls.Problem(model, loss, data)"
        )
    layers = prunable_layers(problem, prunable)
    plan = Plan(
        method, schedule, recompute, scope, pattern, structured, gradients, damping, per, seed
    )
    targets = None if sparsity is None else np.ravel(sparsity).tolist()
    plan.check(layers, targets)
    if fine_tune is not None and schedule != "gradual":
        raise InputError("fine_tune goes with schedule='gradual': one-shot pruning trains nothing")
    if not (isinstance(epochs_per_step, int) and epochs_per_step > 0):
        raise InputError(f"epochs_per_step is {epochs_per_step!r}: give a whole number, at least 1")
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate is {learning_rate}: choose a finite one above 0")
    own = problem.separate()
    judge = own
    if held_out is not None:
        judge = own.over(as_batches(held_out, None, pairs=own.objective is not None))
    before = quality(own)
    beginning = before if judge is own else quality(judge)

    def retrain(mine: Problem, free: Tensor, step_seed: int) -> None:
        if fine_tune is None:
            options = {"epochs": epochs_per_step, "learning_rate": learning_rate}
            train(mine, free, seed=step_seed, **options)  # type: ignore[arg-type]
            return
        with preserved_randomness(step_seed):
            fine_tune(mine.model, _masks(mine, free))
        write(mine, current(mine).masked_fill(~free, 0))

    def run(mine: Problem, judge: Problem, one: Method) -> tuple[Tensor, list[Step]]:
        return climb(
            mine,
            judge,
            layers,
            replace(plan, method=one),
            targets,
            beginning,
            retrain if schedule == "gradual" else None,
            None if progress is None else partial(progress, one),
        )

    free, steps = run(own, judge, method)
    rest: list[Step] = []
    if compare and method != "magnitude":
        other = problem.separate()
        _, rest = run(other, other if judge is own else other.over(judge.data), "magnitude")
    after = quality(own)
    rises = [step.predicted_increase for step in steps[1:]]
    kept = {layer.name: free[layer.where].view(layer.shape).cpu() for layer in layers}
    counts = [LayerSparsity(name, m.numel(), int((~m).sum())) for name, m in kept.items()]
    failures = []
    last = steps[-1]
    if not math.isfinite(last.quality.loss):
        remedy = "raise the damping, " if method == "mfac" else ""
        remedy += "lower the learning rate, " if schedule == "gradual" else ""
        failures.append(
            f"the loss is {last.quality.loss} at a sparsity of {last.sparsity:.4g}, where pruning stopped: "
            f"{remedy}or prune less"
        )
    seconds = time.perf_counter() - start
    there = problem.samples if per == "sample" else problem.batch_count
    used = None if method == "magnitude" else (gradients or min(DEFAULT_COUNT, there))
    arguments = asdict(plan) | {"sparsity": sparsity, "prunable": prunable}
    if schedule == "gradual":
        arguments |= {"epochs_per_step": epochs_per_step, "learning_rate": learning_rate}
        arguments |= {"fine_tune": None if fine_tune is None else "the caller's"}
    return Pruning(
        method=method,
        schedule=schedule,
        scope=scope,
        pattern=pattern,
        structured=structured,
        parameters=problem.size,
        prunable=sum(layer.size for layer in layers),
        pruned=sum(layer.pruned for layer in counts),
        gradients=used,
        damping=None if method == "magnitude" else damping,
        before=before,
        after=after,
        held_out_before=None if judge is own else beginning,
        held_out_after=None if judge is own else last.quality,
        predicted_increase=None if None in rises else sum(r for r in rises if r is not None),
        steps=steps,
        magnitude_steps=rest,
        layers=counts,
        failures=failures,
        cost=cost_of_time(problem, seconds),
        provenance=provenance(problem, seed=seed, command=command) | {"arguments": arguments},
        masks=kept,
        state=_state(own.model),
    )


def _masks(problem: Problem, free: Tensor) -> dict[str, Tensor]:
    """Which values of every selected parameter have not been pruned, by its name."""
    pieces = problem.layout.split(free)
    return dict(zip(problem.names, pieces, strict=True))


def _state(model: nn.Module) -> dict[str, Any]:
    """A state dict, each tensor with memory of its own."""
    state = model.state_dict().items()
    return {k: v.detach().cpu().clone() if isinstance(v, Tensor) else v for k, v in state}
