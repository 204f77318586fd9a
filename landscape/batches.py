"""The data: any re-iterable of batches, read the same way on every pass."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from landscape.errors import InputError

DEFAULT_BATCH_SIZE = 256
KEEP_BYTES = 2**30  # batches are held in memory, moved once, up to this size
TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def as_batches(data: Any, batch_size: int | None, *, pairs: bool) -> Iterable[Any]:
    """Turn what people have into a re-iterable of batches.

    Args:
        data: a DataLoader or another re-iterable of batches; a Dataset; a tuple of tensors, or a mapping
            of tensors, of equal first dimension, cut into batches.
        batch_size: rows per batch for data that come unbatched (default 256).
        pairs: whether `[x, y]`, a list of two tensors, means one pair (True) or two batches (False).

    Raises:
        InputError: a one-shot iterator, no data, lengths that differ, or `batch_size` for data that are
            batched already.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"the batch size is {batch_size}: it must be at least 1")
    size = batch_size or DEFAULT_BATCH_SIZE
    if isinstance(data, TensorDataset):
        data = data.tensors
    is_pair = isinstance(data, tuple) or (pairs and isinstance(data, list) and len(data) == 2)
    if is_pair and data and all(isinstance(part, Tensor) for part in data):
        return _cut(dict(enumerate(data)), size, lambda parts: tuple(parts.values()))
    if isinstance(data, Mapping) and data and all(isinstance(v, Tensor) for v in data.values()):
        return _cut(data, size, dict)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=size)
    if isinstance(data, Iterator):
        raise InputError(
            f"the data are a one-shot {type(data).__name__}, used up after one pass: pass a list of "
            "batches or a DataLoader, which can be read again"
        )
    if isinstance(data, (str, bytes, Tensor)) or not hasattr(data, "__iter__"):
        raise InputError(
            f"the data are a {type(data).__name__}: pass a DataLoader, a list of batches, or a tuple "
            "(inputs, targets) of tensors"
        )
    if batch_size is not None:
        raise InputError(
            f"batch_size={batch_size} was given, but the data come in batches already: set it there"
        )
    return data  # type: ignore[no-any-return]


def read(data: Iterable[Any]) -> Iterator[Any]:
    """One pass over the data; an iteration of the user's over the same loader goes on undisturbed."""
    if not isinstance(data, DataLoader) or not data.persistent_workers:
        yield from data
        return
    # A loader with persistent workers has one iterator, which a second pass would reset.
    theirs, data._iterator = data._iterator, None
    try:
        yield from data
    finally:
        data._iterator = theirs


def _cut(
    parts: Mapping[Any, Tensor], size: int, pack: Callable[[Mapping[Any, Tensor]], Any]
) -> list[Any]:
    lengths = {name: len(part) if part.ndim else 0 for name, part in parts.items()}
    rows = max(lengths.values())
    if len(set(lengths.values())) != 1:
        raise InputError(
            f"the data tensors differ in length ({', '.join(map(str, lengths.values()))}): "
            "every one needs a row for every sample"
        )
    return [
        pack({name: part[start : start + size] for name, part in parts.items()})
        for start in range(0, rows, size)
    ]


def move(thing: Any, device: torch.device, dtype: torch.dtype, *, copy: bool = False) -> Any:
    """A batch on the device, its floating-point tensors in `dtype`; containers keep their kind."""
    if isinstance(thing, Tensor):
        if thing.is_inference():  # made under inference_mode, where autograd may not save it
            thing = thing.clone()
        return thing.to(device, dtype_of(thing, dtype), copy=copy)
    if isinstance(thing, Mapping):
        return {key: move(value, device, dtype, copy=copy) for key, value in thing.items()}
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(move(value, device, dtype, copy=copy) for value in thing))
    if isinstance(thing, (list, tuple)):
        return type(thing)(move(value, device, dtype, copy=copy) for value in thing)
    return thing.to(device) if hasattr(thing, "to") else thing


def dtype_of(tensor: Tensor, dtype: torch.dtype) -> torch.dtype | None:
    """What a tensor becomes where numbers are of `dtype`: complex ones keep two of them."""
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else None


def unpack(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional arguments, keyword arguments, and target of a batch for a supervised model.

    A pair is (input, target); a longer tuple is (input, …, target); a mapping is given to the model by
    keyword, except its target, under one of `TARGET_KEYS`.

    Raises:
        InputError: the batch holds no target.
    """
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is None:
            raise InputError(
                f"the batch has the keys {', '.join(map(str, batch))}, none of them a target: name one "
                f"of {', '.join(TARGET_KEYS)}, or use Problem.from_closure"
            )
        return (), {name: value for name, value in batch.items() if name != key}, batch[key]
    if isinstance(batch, (list, tuple)) and len(batch) >= 2:
        *inputs, target = batch
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return (), dict(inputs[0]), target
        return tuple(inputs), {}, target
    raise InputError(
        f"a batch is a {type(batch).__name__} without a target: batches must be (input, target) or a "
        "mapping with a target, or use Problem.from_closure"
    )


def named_tensors(batch: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested batch with a name that a person would recognise."""
    if isinstance(batch, Tensor):
        yield prefix or "batch", batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from named_tensors(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(batch, (list, tuple)):
        pair = not prefix and len(batch) == 2
        for index, value in enumerate(batch):
            name = ("input", "target")[index] if pair else f"{prefix or 'batch'}[{index}]"
            yield from named_tensors(value, name)


def shapes(batch: Any) -> str:
    """Names, shapes and types of the tensors in a batch, for messages."""
    return ", ".join(f"{name} {described(tensor)}" for name, tensor in named_tensors(batch))


def described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def describe(batch: Any) -> dict[str, dict[str, Any]]:
    """Shape of a row and type of every tensor of a batch, by name."""
    return {
        name: {
            "shape": list(tensor.shape[1:]),
            "dtype": str(tensor.dtype).removeprefix("torch."),
        }
        for name, tensor in named_tensors(batch)
    }


def classes(batch: Any) -> set[int]:
    """The classes in the target of a batch: one integer for every row; empty for other targets."""
    try:
        *_, target = unpack(batch)
    except InputError:
        return set()
    if not isinstance(target, Tensor) or target.ndim != 1 or target.dtype != torch.int64:
        return set()
    return set(target[target >= 0].unique().tolist())


def first_shape(*things: Any) -> torch.Size:
    """Shape of the first tensor in the first of some nested things that holds one."""
    tensors = (tensor for thing in things for _, tensor in named_tensors(thing))
    return next((tensor.shape for tensor in tensors), torch.Size())


def row_count(*things: Any) -> int:
    """Length of the first dimension of that tensor, 1 if it has none."""
    return next(iter(first_shape(*things)), 1)


def take_rows(thing: Any, start: int | None, stop: int | None) -> Any:
    """Rows start … stop of every tensor in a nested output or target, copied."""
    if isinstance(thing, Tensor):
        return thing[start:stop].clone() if thing.ndim else thing.clone()
    if isinstance(thing, Mapping):
        return type(thing)({key: take_rows(value, start, stop) for key, value in thing.items()})  # type: ignore[call-arg]
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(take_rows(value, start, stop) for value in thing))
    if isinstance(thing, (list, tuple)):
        return type(thing)(take_rows(value, start, stop) for value in thing)
    return thing


def map_tensors(thing: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nested batch with every tensor replaced by a function of it; containers keep their kind."""
    if isinstance(thing, Tensor):
        return function(thing)
    if isinstance(thing, Mapping):
        return {key: map_tensors(value, function) for key, value in thing.items()}
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(map_tensors(value, function) for value in thing))
    if isinstance(thing, (list, tuple)):
        return type(thing)(map_tensors(value, function) for value in thing)
    return thing


def join(parts: Sequence[Any]) -> Any:
    """One batch of the rows of several: tensors are concatenated, containers keep their kind.

    Raises:
        ValueError: they differ in kind or shape.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        if not first.ndim or any(part.shape[1:] != first.shape[1:] for part in parts):
            raise ValueError("rows of different shapes do not make one batch")
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        if any(set(part) != set(first) for part in parts):
            raise ValueError("batches with different keys do not make one")
        return {key: join([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(join, zip(*parts, strict=True)))
    if isinstance(first, (list, tuple)):
        return type(first)(map(join, zip(*parts, strict=True)))
    raise ValueError(f"a {type(first).__name__} is no rows")


def digest(batch: Any) -> str:
    """SHA-256 over the tensors of a batch: names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in named_tensors(batch):
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        for part in stored(tensor):
            part = part.detach().cpu().contiguous().reshape(-1)
            total.update(part.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def stored(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor of any layout is made of, its values last."""
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


def size_in_bytes(batch: Any) -> int:
    parts = (part for _, tensor in named_tensors(batch) for part in stored(tensor))
    return sum(part.numel() * part.element_size() for part in parts)


def generators(data: Any) -> Sequence[torch.Generator]:
    """Random generators that iterating over a loader would advance."""
    batch_sampler = getattr(data, "batch_sampler", None)
    owners = [data, getattr(data, "sampler", None), batch_sampler]
    owners.append(getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
