"""One stay inside the user's model: leaves to differentiate, and the loss of a batch."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from landscape import batches, culprits, expected_inputs
from landscape.errors import InputError, LandscapeError
from landscape.handling import unwrapped
from landscape.slots import slots
from landscape.substitutes import SUBSTITUTES, Functions, Notice
from landscape.undisturbed import differentiable, preserved_randomness, undisturbed

if TYPE_CHECKING:
    from landscape.problem import Problem

# What models and losses raise when given something else than they expect.
_MISFITS = (RuntimeError, TypeError, ValueError, LookupError, AssertionError, AttributeError)
_IN_PLACE = "modified by an inplace operation"  # torch's words
SEED = 0  # of every pass over the data: shuffling loaders then give the same batches every time


class Gradient(NamedTuple):
    """The gradient (P,) of the sum of some loss terms, that sum in float64, and how many they are.

    `used` says which of the selected parameters the sum depends on.
    """

    gradient: Tensor
    loss: Tensor
    terms: float
    used: list[bool]


class Evaluation:
    """The loss of a problem as a function of `leaves`, which stand in for the selected parameters.

    Made by `Problem.evaluation()`, and good only inside it: there the model's own parameter and buffer
    tables hold copies, on the problem's device and in its dtype, also while autograd runs backward
    (recomputed blocks look the weights up once more).
    """

    def __init__(self, problem: "Problem") -> None:
        self.problem = problem
        self._batch: Any = None  # the one at work, for messages
        # Copies, because a forward pass may write to weights (max_norm) or buffers in place. A tied
        # weight is one leaf in several tables.
        self._slots = slots(problem)
        self.values = [self._copy(original) for original in self._slots.originals]
        self.place(self.values)

    def place(self, values: Sequence[Tensor]) -> None:
        """Let these tensors stand where the user's do; the first ones become `leaves`.

        Args:
            values: one for each of `slots(problem).originals`.
        """
        self.leaves, placed = [], list(values)
        for i in range(len(self.problem.names)):
            leaf = values[i].detach()
            if leaf.is_complex():  # two real numbers each
                leaf = torch.view_as_real(leaf).requires_grad_()
                placed[i] = torch.view_as_complex(leaf)
            else:
                placed[i] = leaf.requires_grad_()
            self.leaves.append(leaf)
        self._write(placed)

    def move(self, offset: Tensor, others: Sequence[tuple[int, Tensor]] = ()) -> None:
        """Let the selected parameters be the model's plus an offset (P,); `place(values)` ends it.

        Args:
            offset: of the selected parameters.
            others: of buffers: their places, see `buffer_places`, and what is added to them.
        """
        moved = list(self.values)
        for i, part in enumerate(self.problem.layout.split(offset)):
            own = moved[i].detach()
            moved[i] = own + (torch.view_as_complex(part) if own.is_complex() else part)
        for i, part in others:
            moved[i] = moved[i] + part
        self.place(moved)

    def place_tracked(self, leaves: Sequence[Tensor]) -> None:
        """Let tensors that `torch.func` keeps track of stand where the leaves do; `place` ends it.

        Args:
            leaves: one for each of the selected parameters, of the shape of its leaf.
        """
        placed = list(self.placed)
        for i, leaf in enumerate(leaves):
            placed[i] = torch.view_as_complex(leaf) if placed[i].is_complex() else leaf
        self._write(placed)

    def _write(self, placed: list[Tensor]) -> None:
        for table, name, i in self._slots.places:
            table[name] = placed[i]
        self.placed = placed
        self._renew_buffers()

    def _copy(self, value: Tensor) -> Tensor:
        """A tensor's own copy, on the problem's device and in its dtype."""
        dtype = batches.dtype_of(value, self.problem.dtype)
        return value.detach().to(self.problem.device, dtype, copy=True)

    def _renew_buffers(self) -> None:
        """Copies of the user's buffers: what one batch writes to them the next does not see."""
        copies: dict[int, Tensor] = {}
        for module, name, i in self._slots.buffers:
            if i not in copies:
                copies[i] = self.placed[i].clone()
            module._buffers[name] = copies[i]

    def written_to(self) -> set[nn.Module]:
        """Modules whose buffers the last batch has changed."""
        return {
            module
            for module, name, i in self._slots.buffers
            if batches.digest(module._buffers.get(name)) != batches.digest(self.values[i])
        }

    def _own(self, batch: Any) -> Any:
        """A copy of the batch: models and losses may write to their inputs in place."""
        return batches.move(batch, self.problem.device, self.problem.dtype, copy=True)

    def batches(self) -> Iterator[Any]:
        for batch in self.problem.batches():
            self._batch = batch
            yield batch

    def output(self, batch: Any) -> tuple[Any, Any]:
        """The model's prediction for a batch, and the target."""
        returned, target = self.returned(batch)
        recognised = self.problem.supervised().recognised
        return (_prediction(returned) if recognised else returned), target

    def returned(self, batch: Any) -> tuple[Any, Any]:
        """Whatever the model returns for a batch, and the target."""
        args, kwargs, target = batches.unpack(self._own(batch))
        self._renew_buffers()
        args, kwargs = _as_accepted(self.problem.model, args, kwargs)
        return self.problem.model(*args, **kwargs), target

    def total(self, batch: Any) -> tuple[Tensor, float]:
        """Sum of the loss terms of a batch (scalar) and their number."""
        if self.problem.objective is not None:
            return self.problem.objective.total(*self.output(batch))
        assert self.problem.closure is not None
        self._renew_buffers()
        value: Any = self.problem.closure(self.problem.model, self._own(batch))
        if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor)):
            raise InputError(
                "the closure must return (mean loss, number of terms), a scalar tensor and a number"
            )
        mean, count = value[0], float(value[1])
        if mean.numel() != 1:
            raise InputError(
                f"the closure's loss has shape {tuple(mean.shape)}: return the mean, a scalar"
            )
        return (mean.reshape(()) * count if count else mean.new_zeros(())), count

    def gradient(self, batches: Iterable[Any] | None = None) -> Gradient:
        """Of the sum of all loss terms, or those of some batches, with respect to the leaves."""
        problem = self.problem
        gradient = torch.zeros(problem.size, dtype=problem.dtype, device=problem.device)
        loss = torch.zeros((), dtype=torch.float64, device=problem.device)
        terms, used = 0.0, [False] * len(problem.names)
        for batch in self.batches() if batches is None else batches:
            total, count = self.total(batch)
            loss += total.detach().double()
            terms += count
            if not total.requires_grad:
                continue
            parts = torch.autograd.grad(total, self.leaves, allow_unused=True)
            used = [u or p is not None for u, p in zip(used, parts, strict=True)]
            gradient += problem.layout.flatten(parts, gradient)
        return Gradient(gradient, loss, terms, used)

    def scalar(self, batch: Any) -> Tensor:
        """Sum of the loss terms of a batch, without their number, which may need the batch's values."""
        objective = self.problem.objective
        if objective is None:
            return self.total(batch)[0]
        return objective.sum(*self.output(batch))

    def rows(self, batch: Any) -> Tensor:
        """Sum of the loss terms of every sample of a batch, shape (samples,)."""
        return self.problem.supervised().rows(*self.output(batch))

    def require_second_derivative(self, gradients: Any, kind: str) -> None:
        """Refuse gradients in whose graph something is differentiable only once.

        Every batch is looked at in the first product of its kind, and no more.
        """
        checked = self.problem.graphs_checked
        if checked[kind] < self.problem.batch_count:
            if culprits.reaches_error_node(gradients):
                raise self.explain("marked differentiable once")
            checked[kind] += 1

    # What follows refuses, in one sentence, a batch that cannot be measured.

    def check(self, batch: Any, *, thoroughly: bool) -> tuple[float, float]:
        """Total loss and number of terms of a batch; `thoroughly` also looks for randomness."""
        self._batch = batch
        total, count = self._guarded(lambda: self._checked_total(batch))
        if not torch.isfinite(total):
            at = self._culprits(culprits.makes_non_finite)
            origin = f"first in {at[0]}" if at else "in the loss itself, from finite outputs"
            raise InputError(f"the loss is {float(total)}, not finite: it arises {origin}")
        if thoroughly and count:
            self._require_dependence()
            self._require_determinism(float(total))
        return float(total), count

    def _checked_total(self, batch: Any) -> tuple[Tensor, float]:
        objective = self.problem.objective
        if objective is None:
            return self.total(batch)
        _require_shifted_labels(batch)
        output, target = self.output(batch)
        objective.check(output, target)
        total, count = objective.total(output, target)
        if torch.isfinite(total) and objective.verify_rows(output, target):
            total, count = objective.total(output, target)  # now known to be a mean, or a sum
        return total, count

    def _require_dependence(self) -> None:
        with torch.enable_grad():
            graph, _ = self.total(self._batch)
        if not graph.requires_grad:
            raise InputError(
                "the loss does not depend on the selected parameters through differentiable "
                "operations: is something detached, or under torch.no_grad()?"
            )
        # The leaves stand in the modules' tables; who keeps the parameters elsewhere misses them.
        beside = torch.autograd.grad(
            graph, self._slots.originals[: len(self.leaves)], allow_unused=True
        )
        found = [n for n, g in zip(self.problem.names, beside, strict=True) if g is not None]
        if found:
            raise InputError(
                f"parameter {found[0]!r} is used through a reference kept outside its module (in a list, "
                "or captured by a function), where it cannot be replaced: look it up on the module "
                "inside forward or the loss, for example with model.parameters()"
            )

    def _require_determinism(self, total: float) -> None:
        with preserved_randomness(SEED + 1):
            tensor, _ = self.total(self._batch)
        again = float(tensor)
        if abs(again - total) > 100 * torch.finfo(tensor.dtype).eps * max(abs(total), abs(again)):
            with preserved_randomness(SEED + 1):
                third, _ = self.total(self._batch)
            if float(third) != again:
                raise InputError(
                    f"the loss of one batch differs between evaluations with the same random numbers "
                    f"({again:.6g}, {float(third):.6g}): the model keeps a state from one call to the next; "
                    "reset it at the beginning of forward, or keep it in a buffer"
                )
            at = ", ".join(self._culprits(culprits.is_random)) or "the model or the loss"
            raise InputError(
                f"the loss of one batch differs between two evaluations ({total:.6g}, {again:.6g}): "
                f"{at} is random in evaluation mode; make it respect model.eval() or fix its noise"
            )

    def explain(self, reason: str) -> InputError:
        """The sentence for an operation without a second derivative."""
        try:
            at = self._culprits(culprits.lacks_second_derivative)
        except (RuntimeError, NotImplementedError):
            at = []
        who = ", ".join(at) or "the loss"
        if _IN_PLACE in reason:
            return InputError(
                f"{who} changes in place what a derivative needs ({reason.split(':')[0]}): make the "
                "change out of place, or on a clone"
            )
        return InputError(
            f"{who} uses an operation without a second derivative ({reason}): "
            "replace it by one that autograd can differentiate twice"
        )

    def _culprits(self, test: Callable[..., bool]) -> list[str]:
        return culprits.culprits(self.problem.model, lambda: self.total(self._batch), test)

    def _guarded(self, run: Callable[[], Any]) -> Any:
        """Turn what torch says about shapes and types into a sentence that names module and batch."""
        try:
            return run()
        except LandscapeError:
            raise
        except _MISFITS as error:
            if isinstance(error, torch.OutOfMemoryError) or _is_missing_derivative(error):
                raise
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise InputError(self._misfit(f"{type(error).__name__}: {reason}")) from error

    def _misfit(self, reason: str) -> str:
        """The sentence for a batch with which the model or the loss fails."""
        shapes = batches.shapes(self._batch)
        with culprits.at_work(self.problem.model) as stack, contextlib.suppress(Exception):
            self.total(self._batch)
        if not stack:
            return (
                f"the model or the loss fails on the first batch that shows it ({shapes}), "
                f"outside every module's forward pass: {reason}"
            )
        at = stack[-1]
        name = culprits.describe(self.problem.model, at.name)
        wanted = expected_inputs.mismatch(at.module, at.args, at.kwargs)
        if wanted is not None:
            return (
                f"the data do not fit the model: {name} takes {wanted.takes} and received "
                f"{wanted.received} from a batch of {shapes}; check the data"
            )
        return (
            f"the model fails on the first batch that shows it ({shapes}): {name} received "
            f"{expected_inputs.received(at.args, at.kwargs)} and stopped with {reason}"
        )


@contextlib.contextmanager
def evaluation(
    problem: "Problem", functions: Functions | None = None, notice: Notice | None = None
) -> Iterator[Evaluation]:
    """An `Evaluation` in surroundings that leave no trace of it.

    The survey of the data writes out whatever `SUBSTITUTES` holds; later evaluations do so only if the
    survey had cause to, for it costs a little time in every call of torch.
    """
    generators = batches.generators(problem.data)
    if functions is None:
        functions = SUBSTITUTES if problem.substituted or not problem.surveyed else {}
    with (
        undisturbed(problem.modules, problem.norm_stats),
        preserved_randomness(SEED, generators),
        differentiable(
            problem.modules, problem.device, functions, notice or problem.substituted.add
        ),
    ):
        run = Evaluation(problem)
        try:
            yield run
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, LandscapeError) or not _is_missing_derivative(error):
                raise
            raise run.explain(str(error).strip().split("\n")[0]) from error


def _as_accepted(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A mapping by keyword, or whole to a model that takes one dictionary; a tuple in pieces or whole."""
    several = len(args) == 1 and isinstance(args[0], (tuple, list))
    if not several and (args or not kwargs):
        return args, kwargs
    try:
        signature = inspect.signature(unwrapped(model).forward)
    except (TypeError, ValueError):  # some callables have none
        return args, kwargs
    if several:
        with contextlib.suppress(TypeError):
            signature.bind(*args)
            return args, kwargs
        return tuple(args[0]), kwargs
    with contextlib.suppress(TypeError):
        signature.bind(**kwargs)
        return (), kwargs
    with contextlib.suppress(TypeError):
        signature.bind(kwargs)
        return (kwargs,), {}
    return args, kwargs


def _require_shifted_labels(batch: Any) -> None:
    """Refuse labels that repeat the input: only a loss inside the model would shift them."""
    if not isinstance(batch, dict) or "input_ids" not in batch or "labels" not in batch:
        return
    words, labels = batch["input_ids"], batch["labels"]
    if isinstance(words, Tensor) and isinstance(labels, Tensor) and words.shape == labels.shape:
        kept = labels != -100
        if bool(kept.any()) and bool((words == labels)[kept].all()):
            raise InputError(
                "the labels repeat the input_ids, which a language model shifts by one in a loss of its "
                "own; here the loss compares position by position: shift them in the data "
                "(labels[:, :-1] = input_ids[:, 1:]; labels[:, -1] = -100)"
            )


def _prediction(output: Any) -> Any:
    """The tensor to which a loss of torch is applied: the output, its logits, its first or only entry."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    if isinstance(output, dict) and len(output) == 1:
        return _prediction(*output.values())
    if isinstance(output, (tuple, list)) and output:
        return _prediction(output[0])
    return output


def _is_missing_derivative(error: Exception) -> bool:
    text = str(error).lower()
    signs = (
        "derivative for",
        "differentiate twice",
        "double backward",
        "forward ad",
        "no autograd formula",
        _IN_PLACE,
    )
    return any(sign in text for sign in signs)
