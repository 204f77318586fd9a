"""Gradients of single samples, or of batches, of a problem."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from landscape import batches
from landscape.errors import InputError, LandscapeError
from landscape.evaluation import Evaluation
from landscape.memory import available_bytes, is_out_of_memory
from landscape.problem import Problem

Per = Literal["sample", "batch"]
Way = Literal["vmap", "one by one", "within the batch", "batch means"]
AT_ONCE = 64  # samples differentiated together, at most


@dataclass
class Drawn:
    """Which gradients of a problem are meant, and how they came to be computed.

    Attributes:
        samples: their positions among all samples, or batches, in the order of the data, int64 (m,).
        of: how many there are in all.
        ways: "vmap" (several samples at once), "one by one" (where vmap cannot), "within the batch" (where
            a sample cannot be cut out of its batch, as with batch statistics), or "batch means".
    """

    samples: Tensor
    of: int
    per: Per
    ways: set[Way] = field(default_factory=set)


def draw(
    problem: Problem, count: int | None, *, per: Per, seed: int, default: int
) -> tuple[Drawn, list[Tensor]]:
    """Choose samples without replacement, or the first batches.

    Args:
        problem: the data.
        count: m; None for `default`, or all there are if they are fewer.
        per: "sample" or "batch".
        seed: of the choice of samples.

    Returns:
        The choice, and for every batch the loss of every one of its samples (for "batch": its number of
        loss terms).

    Raises:
        InputError: m is not positive, or larger than the data.
    """
    if per not in ("sample", "batch"):
        raise InputError(f"per is {per!r}: choose 'sample' or 'batch'")
    if count is not None and not (isinstance(count, int) and count > 0):
        raise InputError(f"gradients is {count!r}: give a whole number, at least 1")
    if per == "sample":
        problem.supervised()
    with problem.evaluation() as run, torch.no_grad():
        if per == "sample":
            known = [run.rows(batch).cpu() for batch in run.batches()]
        else:
            known = [torch.tensor([run.total(batch)[1]]) for batch in run.batches()]
    there = sum(map(len, known)) if per == "sample" else sum(int(k > 0) for k in known)
    wanted = min(default, there) if count is None else count
    if wanted > there:
        kind = "samples" if per == "sample" else "batches with a loss"
        raise InputError(
            f"{wanted:,} gradients were asked for, but the data hold {there:,} {kind}: "
            f"ask for no more than {there:,}"
        )
    chosen = torch.arange(wanted)
    if per == "sample":
        order = torch.randperm(there, generator=torch.Generator().manual_seed(seed))
        chosen = order[:wanted].sort().values
    return Drawn(chosen, there, per), known


def compute(
    problem: Problem, drawn: Drawn, known: list[Tensor], take: Callable[[Tensor], None]
) -> None:
    """Compute the gradients that were drawn, and hand them over in blocks (k, P), in the order of the data.

    Of a sample: gᵢ = (n/N) ∇Σ of its loss terms, so that the mean over all n samples is ∇L, see
    `EmpiricalFisher`. Of a batch: ∇ of the mean over its loss terms.

    Args:
        problem: the loss.
        drawn, known: from `draw`.
        take: receives the blocks, of at most 64 gradients.
    """
    if drawn.per == "batch":
        _of_batches(problem, drawn, take)
        return
    scale = drawn.of / problem.terms
    chosen, start = drawn.samples, 0
    method = _Method(problem, drawn)
    with problem.evaluation() as run:
        for batch, losses in zip(run.batches(), known, strict=True):
            rows = chosen[(chosen >= start) & (chosen < start + len(losses))] - start
            start += len(losses)
            if len(rows):
                for block in method.blocks(run, batch, rows, losses):
                    take(block.mul_(scale))


def _of_batches(problem: Problem, drawn: Drawn, take: Callable[[Tensor], None]) -> None:
    left = len(drawn.samples)
    drawn.ways.add("batch means")
    with problem.evaluation() as run:
        for batch in run.batches():
            total, terms = run.total(batch)
            if terms > 0:
                take(_flat(problem, _gradient(run, total))[None] / terms)
                left -= 1
                if not left:
                    break


class _Method:
    """How samples are differentiated; given up for a slower way where it fails."""

    def __init__(self, problem: Problem, drawn: Drawn) -> None:
        self.problem, self.drawn = problem, drawn
        self.way: Way = "within the batch" if problem.uses_batch_statistics() else "vmap"
        bytes_each = 4 * problem.size * problem.dtype.itemsize
        room = available_bytes(problem.device) // 4 // bytes_each
        self.at_once = max(1, min(AT_ONCE, room))

    def blocks(self, run: Evaluation, batch: Any, rows: Tensor, losses: Tensor) -> Iterator[Tensor]:
        place = 0
        while place < len(rows):
            some = rows[place : place + self.at_once]
            block = self._block(run, batch, some, losses)
            if block is not None:
                self.drawn.ways.add(self.way)
                place += len(some)
                yield block

    def _block(self, run: Evaluation, batch: Any, rows: Tensor, losses: Tensor) -> Tensor | None:
        """The gradients of some samples of a batch, or None if another way must be taken."""
        if self.way == "within the batch":
            return _within(run, batch, rows)
        function = _by_vmap if self.way == "vmap" else _one_by_one
        try:
            found, block = function(run, batch, rows)
        except LandscapeError:
            raise
        except Exception as error:  # vmap and cut batches fail in many ways
            if is_out_of_memory(error):
                if self.at_once == 1:
                    raise
                self.at_once //= 2
                return None
            found, block = torch.full([len(rows)], torch.nan), None
        if block is not None and _close(found, losses, rows):
            return block
        self.way = "one by one" if self.way == "vmap" else "within the batch"
        return None


def _close(found: Tensor, losses: Tensor, rows: Tensor) -> bool:
    """Whether samples alone have the losses that they have in their batch, but for rounding."""
    slack = torch.finfo(losses.dtype).eps ** 0.5 * float(losses.abs().max())
    return bool(((found - losses[rows]).abs() <= slack).all())


def _by_vmap(run: Evaluation, batch: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (k,) and gradients (k, P) of samples, several at once."""
    some = _cut(batch, rows)
    tensors = [tensor for _, tensor in batches.named_tensors(some)]
    dims = tuple(0 if tensor.ndim else None for tensor in tensors)

    def loss(leaves: list[Tensor], *parts: Tensor) -> Tensor:
        own = iter(parts)
        sample = batches.map_tensors(some, lambda t: next(own)[None] if t.ndim else next(own))
        run.place_tracked(leaves)
        return run.rows(sample).sum()

    leaves = [leaf.detach() for leaf in run.leaves]
    both: Callable[..., Any] = torch.func.grad_and_value(loss)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            parts, losses = torch.vmap(both, in_dims=(None, *dims))(leaves, *tensors)
    finally:
        run.place(run.values)
    return losses.detach().cpu(), torch.cat([p.reshape(len(rows), -1) for p in parts], dim=1)


def _one_by_one(run: Evaluation, batch: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    losses, found = [], []
    for i in rows:
        loss = run.rows(_cut(batch, i[None])).sum()
        losses.append(loss.detach())
        found.append(_flat(run.problem, _gradient(run, loss)))
    return torch.stack(losses).cpu(), torch.stack(found)


def _within(run: Evaluation, batch: Any, rows: Tensor) -> Tensor:
    """Gradients of samples' losses as they are in their batch, by one backward pass each."""
    losses = run.rows(batch)
    found = [_flat(run.problem, _gradient(run, losses[i], retain=True)) for i in rows]
    return torch.stack(found)


def _cut(batch: Any, rows: Tensor) -> Any:
    return batches.map_tensors(batch, lambda t: t[rows.to(t.device)] if t.ndim else t)


def _gradient(run: Evaluation, loss: Tensor, *, retain: bool = False) -> list[Tensor | None]:
    if not loss.requires_grad:
        return [None] * len(run.leaves)
    return list(
        torch.autograd.grad(loss, run.leaves, allow_unused=True, retain_graph=retain or None)
    )


def _flat(problem: Problem, parts: list[Tensor | None]) -> Tensor:
    return problem.layout.flatten(parts, torch.empty(0, dtype=problem.dtype, device=problem.device))
