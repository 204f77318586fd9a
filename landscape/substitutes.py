"""Functions of torch without a second derivative, or with a wrong one, written out in plain operations.

The substitutes stand in wherever a model calls the originals, under whatever name it imported them. Each
tells `notice`, in one phrase, what it does and why; `landscape.handling` lists these phrases.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.attention.flex_attention as flex
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

Notice = Callable[[str], None]
Functions = dict[Any, Callable[..., Any]]


class Substituted(TorchFunctionMode):
    """Some functions of torch replaced in every call inside."""

    def __init__(self, functions: Functions, notice: Notice) -> None:
        super().__init__()
        self.functions, self.notice = functions, notice

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        substitute = self.functions.get(func)
        if substitute is None:
            return func(*args, **(kwargs or {}))
        return substitute(self.notice, *args, **(kwargs or {}))


@contextlib.contextmanager
def differentiable_internals(notice: Notice) -> Iterator[None]:
    """Compiled code as the Python it came from, flex attention in plain operations, no checkpoints.

    `Substituted` does not see these, so the parts of torch that they are made of are replaced.
    """

    def attention(*args: Any) -> Any:
        notice("attention written out: flex attention has no second derivative")
        return _flex_attention(*args)

    class Block:
        """In place of the autograd function of reentrant checkpoints."""

        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            notice("checkpoint left out: a reentrant one cannot be differentiated twice")
            return function(*args)

    with contextlib.ExitStack() as stack:
        replace = {
            "flex_attention_hop": attention,
            "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG": True,
            "_validate_device": lambda *_: None,  # it refuses derivatives on the CPU
        }
        for name, value in replace.items():
            if hasattr(flex, name):  # these names are torch's own affair
                stack.enter_context(mock.patch.object(flex, name, value))
        stack.enter_context(mock.patch.object(torch.utils.checkpoint, "CheckpointFunction", Block))
        if (
            "torch._dynamo" in sys.modules
        ):  # else nothing has been compiled; loading it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(score_mod(q · k · scale)) v over the places that the mask allows; 0 where it allows none.

    Returns the output, and the logarithms (base 2) of the sums and the maxima of the softmax.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (
        part.repeat_interleave(groups, 1).expand(len(query), -1, -1, -1) for part in (key, value)
    )
    scores = query @ key.transpose(-1, -2) * scale
    places = [torch.arange(size, device=scores.device) for size in scores.shape]
    allowed = _over_places(block_mask[-1], ())(*places)
    scores = _over_places(score_mod, (0,))(scores, *places)
    scores = scores.masked_fill(~allowed, -torch.inf)
    nowhere = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(nowhere, 0.0).softmax(-1).masked_fill(nowhere, 0.0)
    base = math.log(2)
    return weights @ value, scores.logsumexp(-1) / base, scores.amax(-1) / base


def _over_places(function: Callable[..., Tensor], scores: tuple[int, ...]) -> Callable[..., Tensor]:
    """A function of (scores…, batch, head, query, key), all scalars, as one of whole axes."""
    for axis in (3, 2, 1, 0):
        places = tuple(0 if axis == other else None for other in range(4))
        function = torch.vmap(function, in_dims=scores + places)
    return function


def _noticed(function: Callable[..., Any], phrase: str) -> Callable[..., Any]:
    def call(notice: Notice, *args: Any, **kwargs: Any) -> Any:
        notice(phrase)
        return function(*args, **kwargs)

    return call


def _weight_norm(notice: Notice, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The weight v · g/‖v‖."""
    notice("weight norm written out: its kernel's second derivative is wrong (seen in torch 2.13)")
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(
    notice: Notice,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if sparse:
        notice("dense gradient: a sparse one cannot be differentiated again")
    if scale_grad_by_freq:
        notice("gradient not divided by word counts, which would make it no gradient of the loss")
    return F.embedding(input, weight, padding_idx, max_norm, norm_type)


def _embedding_bag(
    notice: Notice,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The sum, mean or maximum of some rows of a table, bag by bag; padding does not count."""
    if input.dtype.is_floating_point:  # the old order of the first two arguments
        input, weight = weight, input
    notice("bags of rows summed in plain operations: their kernel has no second derivative")
    if offsets is None:
        bags, words = input.shape
        bag = torch.arange(bags, device=input.device).repeat_interleave(words)
    else:
        if not include_last_offset:
            offsets = torch.cat([offsets, offsets.new_tensor([len(input)])])
        bags = len(offsets) - 1
        bag = torch.arange(bags, device=input.device).repeat_interleave(offsets.diff())
    flat = input.reshape(-1).long()
    rows = F.embedding(flat, weight, padding_idx, max_norm, norm_type)
    padding = len(weight) if padding_idx is None else padding_idx % len(weight)
    kept = flat != padding
    rows, bag = rows[kept], bag[kept]
    empty = rows.new_zeros(bags, weight.shape[1])
    if mode == "max":
        return _largest(rows, bag, empty)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1)[kept, None]
    total = empty.index_add(0, bag, rows)
    return total / bag.bincount(minlength=bags).clamp(min=1)[:, None] if mode == "mean" else total


def _largest(rows: Tensor, bag: Tensor, empty: Tensor) -> Tensor:
    """The largest row entry in every bag, 0 in an empty one; of equal ones the first."""
    where = bag[:, None].expand_as(rows)
    with torch.no_grad():
        top = torch.full_like(empty, -torch.inf).scatter_reduce(0, where, rows, "amax")
        place = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)
        place = torch.where(rows == top.gather(0, where), place, len(rows))
        first = torch.full_like(empty, len(rows), dtype=torch.int64)
        first = first.scatter_reduce(0, where, place, "amin")
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).gather(0, first)


def _cdist(
    notice: Notice, x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None
) -> Tensor:
    """Distances between all pairs of points; at distance 0 the derivative is 0, as in torch."""
    notice("distances written out: their kernel has no second derivative")
    gaps = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == 0 or p == torch.inf:
        return (gaps != 0).to(gaps).sum(-1) if p == 0 else gaps.abs().amax(-1)
    powers = gaps.square().sum(-1) if p == 2 else gaps.abs().pow(p).sum(-1)
    same = powers == 0
    return torch.where(same, 0.0, torch.where(same, 1.0, powers) ** (1 / p))


def _pdist(notice: Notice, input: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _cdist(notice, input[first, None], input[second, None], p).reshape(-1)


def _hardsigmoid(notice: Notice, input: Tensor, inplace: bool = False) -> Tensor:
    notice("written out: its kernel has no second derivative")
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


SUBSTITUTES: Functions = {
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    torch.cdist: _cdist,
    F.pdist: _pdist,
    F.hardsigmoid: _hardsigmoid,
}

# Noticed only: torch has a switch for the kernel, and a mode slows every call.
WATCHED: Functions = {
    function: _noticed(
        function, "attention in plain operations: fused kernels have no second derivative"
    )
    # A mode does not see what the functions of torch call in turn.
    for function in (F.scaled_dot_product_attention, F.multi_head_attention_forward)
}
