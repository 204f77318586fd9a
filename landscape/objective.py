"""What a loss is a mean of: the sum of its terms, their number, and its rows.

PyTorch's `reduction="mean"` divides by something different for nearly every loss: examples, elements,
targets that are not ignored, or the class weights of those. Averaging batches by their number of
examples is then wrong. An `Objective` gives, for one batch, the *sum* of the loss terms and their
*number*, so that sums over batches divided by numbers over batches equal the loss of the whole data set.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.batches import first_shape, row_count, take_rows
from landscape.errors import InputError
from landscape.losses import (
    CLASSES,
    ELEMENTS,
    LIKELIHOODS,
    LOSS_NAMES,
    PLAIN,
    ROWS,
    Likelihood,
    Loss,
    describe,
    recognise,
    token_cross_entropy,
)


class Objective:
    """A loss together with the rule for counting its terms.

    Args:
        loss: a name of `LOSS_NAMES`, a loss function or module of torch (any `reduction`, also through
            `functools.partial`), or any callable `(output, target) -> Tensor`. The callable may return
            one value per term, or a scalar: then it must be the mean or the sum over the rows of the
            batch, which is verified, or `terms` must be given.
        terms: `(output, target) -> number`, overrides the count; a callable's scalar is then taken as
            the mean over that many terms.
    """

    def __init__(self, loss: str | Loss, terms: Callable[..., float] | None = None) -> None:
        if isinstance(loss, str):
            if loss not in LOSS_NAMES:
                raise InputError(
                    f"unknown loss {loss!r}: choose one of {', '.join(LOSS_NAMES)}, or package.module:callable"
                )
            loss = LOSS_NAMES[loss]
        if not callable(loss):
            raise InputError(
                f"the loss is a {type(loss).__name__}, not a name or a callable: "
                "pass for example torch.nn.functional.cross_entropy"
            )
        self.loss = loss
        self.terms = terms
        self.function, self.options = recognise(loss)
        # What a user's scalar loss turned out to be, and the shape of a row it was seen on.
        self.scalar: Literal["mean", "sum"] | None = None
        self._undecided = False
        self._row_shape: torch.Size | None = None
        self.name = describe(loss)

    @property
    def recognised(self) -> bool:
        return self.function is not None

    @property
    def likelihood(self) -> Likelihood | None:
        """The distribution of targets whose negative logarithm the loss is, if it is known."""
        return LIKELIHOODS.get(self.function) if self.function else None

    @property
    def class_dim(self) -> int:
        return -1 if self.function is token_cross_entropy else 1

    def total(self, output: Any, target: Any) -> tuple[Tensor, float]:
        """Sum of the loss terms of a batch (scalar, differentiable) and their number."""
        if self.function is not None:
            value = self._reduced(output, target, "sum")
            return value, self._count(output, target)
        value = self._value(output, target)
        if value.numel() > 1:
            return value.sum(), self._count_or(output, target, value.numel())
        value = value.reshape(())
        if self.terms is not None:
            count = float(self.terms(output, target))
            # A batch without terms has no mean: 0/0 in most losses.
            return (value * count if count else value.new_zeros(())), count
        rows = row_count(target, output)
        return (value if self.scalar == "sum" else value * rows), float(rows)

    def sum(self, output: Any, target: Any) -> Tensor:
        """Sum of the loss terms of a batch alone, a scalar."""
        if self.function is not None:
            return self._reduced(output, target, "sum")
        return self.total(output, target)[0]

    def rows(self, output: Any, target: Any) -> Tensor:
        """Sum of the loss terms of every row (first dimension) of a batch, shape (rows,)."""
        if self.function is not None:
            if self.function is F.kl_div and self.options.get("reduction") == "batchmean":
                return self._reduced(output, target, "none").flatten(1).sum(1)
            values = self._reduced(output, target, "none")
            return values.reshape(values.shape[0], -1).sum(1)
        count = row_count(target, output)
        parts = [
            self.total(take_rows(output, i, i + 1), take_rows(target, i, i + 1))
            for i in range(count)
        ]
        return torch.stack([part for part, _ in parts])

    def row_terms(self, output: Any, target: Any) -> Tensor:
        """Number of loss terms of every row of a batch, shape (rows,), float64; of a loss of torch."""
        counts = [
            self._count(take_rows(output, i, i + 1), take_rows(target, i, i + 1))
            for i in range(row_count(target, output))
        ]
        return torch.tensor(counts, dtype=torch.float64)

    def hits(self, output: Any, target: Any) -> tuple[Tensor, int] | None:
        """How many terms of a batch are right, a scalar tensor, and how many there are.

        Right is where the largest logit, or its sign, is that of the target; ignored targets are left out.
        None unless targets are class indices, or labels 0 and 1.
        """
        if self.likelihood == "bernoulli":
            right = (output > 0) == (target > 0.5)
            return right.sum(), right.numel()
        if self.likelihood not in ("categorical", "log-categorical") or target.is_floating_point():
            return None
        kept = target != self.options.get("ignore_index", -100)
        right = output.max(self.class_dim).indices == target  # faster than argmax
        return (right & kept).sum(), int(kept.sum())

    def verify_rows(self, output: Any, target: Any, *, shifted: bool = False) -> bool:
        """Find out, or confirm, that a user's scalar loss is the mean or the sum over rows.

        The loss of two unequal pieces of a batch determines it: a mean over rows satisfies
        n·L = a·L_a + b·L_b, a sum L = L_a + L_b; a mean over anything else neither.

        Returns:
            Whether this batch has decided it.

        Raises:
            InputError: the scalar is neither.
        """
        if self.recognised or self.terms is not None:
            return False
        whole = self._value(output, target)
        if whole.numel() > 1:
            return False
        shape = first_shape(target, output)[1:]
        if self._row_shape is not None and shape != self._row_shape:
            raise InputError(
                f"the rows of the targets have shape {tuple(self._row_shape)} in one batch and "
                f"{tuple(shape)} in another, so the mean that {self.name} takes may count rows or "
                "elements: give terms=, the function (output, target) -> number of loss terms"
            )
        self._row_shape = shape
        rows = row_count(target, output)
        if rows < 2:
            return False
        cut = max(1, rows // 3)
        pieces = [(0, cut), (cut, rows)]
        values = [
            self._value(take_rows(output, a, b), take_rows(target, a, b)).sum().item()
            for a, b in pieces
        ]
        whole = whole.detach()
        mean = sum((b - a) * value for (a, b), value in zip(pieces, values, strict=True)) / rows
        size = max(abs(float(whole)), *(abs(value) for value in values))
        tolerance = 1e3 * torch.finfo(whole.dtype).eps * size
        kinds = {
            kind
            for kind, value in (("mean", mean), ("sum", sum(values)))
            if abs(float(whole) - value) <= tolerance
        }
        if not kinds or (self.scalar is not None and self.scalar not in kinds):
            raise InputError(
                f"the loss {self.name} is neither the mean nor the sum over the rows of a batch "
                f"(whole batch {float(whole):.6g}, mean over rows {mean:.6g}): give terms=, the "
                "function (output, target) -> number of loss terms it averages over"
            )
        if len(kinds) == 2:  # a loss of zero is both: other outputs, or another batch, must decide
            self._undecided = True
            if isinstance(output, Tensor) and float(whole) == 0 and not shifted:
                return self.verify_rows(output + 1, target, shifted=True)
            return False
        decided = self.scalar is None
        self.scalar = "sum" if "sum" in kinds else "mean"
        return decided

    def require_known(self) -> None:
        """Refuse a user's scalar loss that no batch could tell to be a mean or a sum."""
        if self._undecided and self.scalar is None:
            raise InputError(
                f"the loss {self.name} is zero on every batch, so it may be a mean or a sum over rows: "
                "give terms=, the function (output, target) -> number of loss terms"
            )

    def term_weights(self, target: Tensor, like: Tensor) -> Tensor:
        """Weight of every classification term: the class weight, 0 where the target is ignored."""
        if target.is_floating_point():  # class probabilities: torch counts each term once
            return torch.ones_like(target.select(self.class_dim, 0), dtype=like.dtype)
        ignored = target == self.options.get("ignore_index", -100)
        weight = self.options.get("weight")
        if weight is None:
            return (~ignored).to(like.dtype)
        return weight.to(like)[target.masked_fill(ignored, 0)].masked_fill(ignored, 0)

    def term_masses(self, output: Tensor, target: Tensor) -> Tensor:
        """Total mass Σ_c w_c q_c of every classification term's soft target q, 0 where ignored.

        The loss of a term is −Σ_c w_c q_c log p_c, so its Hessian in the logits is this mass times
        diag(p) − ppᵀ, whatever the class weights w and the label smoothing.
        """
        smoothing = float(self.options.get("label_smoothing", 0.0))
        weight = self.options.get("weight")
        mean = 1.0 if weight is None else float(weight.double().mean())
        if target.is_floating_point():
            mass = target.movedim(self.class_dim, -1).to(output)
            mass = (mass if weight is None else mass * weight.to(output)).sum(-1)
            return (1 - smoothing) * mass + smoothing * mean
        observed = self.term_weights(target, output)
        kept = (target != self.options.get("ignore_index", -100)).to(output)
        return (1 - smoothing) * observed + smoothing * mean * kept

    def check(self, output: Any, target: Any) -> None:
        """Refuse what torch would broadcast, or refuse without saying how to mend it."""
        if self.function is None:
            return
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            keys = f" with {', '.join(map(str, output))}" if isinstance(output, dict) else ""
            raise InputError(
                f"{self.name} needs a tensor output and a tensor target; the model returned "
                f"{type(output).__name__}{keys} and the target is {type(target).__name__}: pass a loss "
                "(output, target) that picks what it compares"
            )
        if self.function in CLASSES:
            _check_classes(self, output, target)
        elif self.function in ELEMENTS and output.shape != target.shape:
            raise InputError(
                f"{self.name} compares element by element, but the output has shape "
                f"{tuple(output.shape)} and the target {tuple(target.shape)}: reshape one of them"
            )
        elif self.function in ELEMENTS and not target.is_floating_point():
            raise InputError(
                f"{self.name} needs floating-point targets, not {target.dtype}: call .float()"
            )

    def _reduced(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        assert self.function is not None
        options = {
            key: value.to(output) if isinstance(value, Tensor) else value
            for key, value in self.options.items()
        }
        value: Tensor = self.function(output, target, **{**options, "reduction": reduction})
        return value

    def _value(self, output: Any, target: Any) -> Tensor:
        value = self.loss(output, take_rows(target, None, None))  # it may write to its target
        if not isinstance(value, Tensor):
            raise InputError(
                f"the loss {self.name} returned a {type(value).__name__}, not a tensor: return the "
                "tensor itself, without .item()"
            )
        return value

    def _count(self, output: Tensor, target: Tensor) -> float:
        if self.function in CLASSES:
            exact = torch.empty(0, dtype=torch.float64)
            count = float(self.term_weights(target.cpu(), exact).sum())
        elif self.function in ROWS or self.options.get("reduction") == "batchmean":
            count = float(output.shape[0])
        elif self.function in PLAIN and self.options.get("weight") is not None:
            count = float(self.options["weight"].double().expand(output.shape).sum())
        else:
            count = float(output.numel())
        return self._count_or(output, target, count)

    def _count_or(self, output: Any, target: Any, count: float) -> float:
        return float(self.terms(output, target)) if self.terms is not None else float(count)


def _check_classes(objective: Objective, output: Tensor, target: Tensor) -> None:
    dim, name = objective.class_dim, objective.name
    if output.ndim < 2:
        raise InputError(f"{name} needs an output (batch, classes, …), not {tuple(output.shape)}")
    expected = list(output.shape)
    classes = expected.pop(dim)
    if target.is_floating_point():
        if target.shape != output.shape or objective.function is F.nll_loss:
            raise InputError(
                f"{name} needs integer class indices of shape {tuple(expected)}, not {target.dtype} "
                f"of shape {tuple(target.shape)}: call .long() on the target"
            )
        return
    if list(target.shape) != expected:
        hint = (
            "; classes stand last in this output: use the loss 'token_cross_entropy'"
            if list(target.shape) == list(output.shape[:-1]) and objective.class_dim == 1
            else ""
        )
        raise InputError(
            f"{name} on an output of shape {tuple(output.shape)} needs a target of shape "
            f"{tuple(expected)}, not {tuple(target.shape)}{hint}"
        )
    if target.dtype != torch.int64:
        raise InputError(f"{name} needs int64 class indices, not {target.dtype}: call .long()")
    kept = target[target != objective.options.get("ignore_index", -100)]
    if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= classes):
        wrong = int(kept.max()) if int(kept.max()) >= classes else int(kept.min())
        raise InputError(f"the target holds class {wrong}, but the model gives {classes} classes")
