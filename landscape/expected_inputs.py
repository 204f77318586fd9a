"""What the common layers of torch take, in words, to compare with what they received."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from landscape.batches import described, named_tensors

AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}


class Mismatch(NamedTuple):
    """What a layer takes and what it received instead."""

    takes: str
    received: str


def mismatch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mismatch | None:
    """How the first input of a layer differs from what it takes; None if it does not, or nobody knows."""
    given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
    rule = next((rule for kind, rule in _RULES if isinstance(module, kind)), None)
    if given is None or rule is None:
        return None
    return rule(module, given)


def received(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The shapes and types of everything a module was given."""
    tensors = [tensor for _, tensor in named_tensors([*args, *kwargs.values()])]
    return ", ".join(map(described, tensors)) or "no tensor"


def _words(module: Any, x: Tensor) -> Mismatch | None:
    rows = module.num_embeddings
    takes = f"whole numbers from 0 to {rows - 1} (it has {rows} rows)"
    if x.is_floating_point() or x.is_complex():
        return Mismatch(takes, _seen(x))
    if x.numel() and (int(x.min()) < 0 or int(x.max()) >= rows):
        return Mismatch(takes, f"numbers from {int(x.min())} to {int(x.max())}")
    return None


def _seen(x: Tensor) -> str:
    kind = "" if x.is_floating_point() else f" {str(x.dtype).removeprefix('torch.')}"
    return f"{tuple(x.shape)}{kind}"


def _numbers(takes: str, x: Tensor, fits: bool) -> Mismatch | None:
    """A layer of real numbers: `takes` are shapes."""
    if fits and x.is_floating_point():
        return None
    return Mismatch(f"{'' if x.is_floating_point() else 'floating-point '}inputs {takes}", _seen(x))


def _last(size: Callable[[Any], Any]) -> Callable[[Any, Tensor], Mismatch | None]:
    """Layers that look at the last axes."""

    def rule(module: Any, x: Tensor) -> Mismatch | None:
        found = size(module)
        ends = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        listed = ", ".join(map(str, ends))
        return _numbers(f"(…, {listed})", x, tuple(x.shape[-len(ends) :]) == ends)

    return rule


def _channels(module: Any, x: Tensor) -> Mismatch | None:
    """Convolutions and normalisations: channels in the second axis, then the axes of their dimension."""
    name = type(module).__name__
    size = getattr(module, "in_channels", getattr(module, "num_features", None))
    dims = next((n for n in AXES if f"{n}d" in name), None)
    if isinstance(module, nn.GroupNorm):
        return _numbers(
            f"(batch, {module.num_channels}, …)",
            x,
            x.ndim > 1 and x.shape[1] == module.num_channels,
        )
    if dims is None:
        return None
    takes = f"(batch, {size}, {AXES[dims]})"
    if isinstance(module, nn.BatchNorm1d):
        return _numbers(f"(batch, {size}) or {takes}", x, x.ndim in (2, 3) and x.shape[1] == size)
    unbatched = not isinstance(module, nn.modules.batchnorm._BatchNorm) and x.ndim == dims + 1
    axis = 0 if unbatched else 1
    return _numbers(takes, x, (x.ndim == dims + 2 or unbatched) and x.shape[axis] == size)


def _sequence(module: Any, x: Tensor) -> Mismatch | None:
    order = "batch, length" if module.batch_first else "length, batch"
    fits = x.ndim in (2, 3) and x.shape[-1] == module.input_size
    return _numbers(f"({order}, {module.input_size})", x, fits)


_RULES: list[tuple[Any, Callable[[Any, Tensor], Mismatch | None]]] = [
    ((nn.Embedding, nn.EmbeddingBag), _words),
    (nn.Linear, _last(lambda m: m.in_features)),
    (nn.Bilinear, _last(lambda m: m.in1_features)),
    ((nn.LayerNorm, nn.RMSNorm), _last(lambda m: m.normalized_shape)),
    (nn.MultiheadAttention, _last(lambda m: m.embed_dim)),
    (nn.RNNCellBase, _last(lambda m: m.input_size)),
    (nn.RNNBase, _sequence),
    (
        (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm),
        _channels,
    ),
]
