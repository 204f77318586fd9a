"""A fair part of the data: which rows, and how they are taken out of whatever people have."""

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from landscape import batches
from landscape.errors import InputError
from landscape.undisturbed import preserved_randomness


def take(data: Any, limit: int, seed: int) -> Any:
    """A seeded random subset of `limit` samples, in their order; class proportions are kept.

    Proportions are kept where targets are class indices, int64 of shape (n,). A Dataset is asked for its
    `targets` or `labels`; without them it is read once. Nothing random outside is touched.

    Args:
        data: any data a `Problem` takes.
        limit: number of samples; all of the data are returned, untouched, if they are no more.
        seed: of the choice.

    Returns:
        A tuple or a mapping of tensors, a `torch.utils.data.Subset`, a DataLoader over one (same batch
        size and collate function, neither shuffled nor read by workers), or a list of batches, as the
        data are. The list holds the chosen rows of the given batches; it is read in one pass, or in two
        if the data take more than 1 GiB.

    Raises:
        InputError: the limit is not positive, the data are none, or a batch cannot be cut into rows.
    """
    require_positive(limit)
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, list) and len(data) == 2 and all(isinstance(p, Tensor) for p in data):
        data = tuple(data)  # as in a Problem, two tensors are a pair
    if isinstance(data, DataLoader) and _is_plain(data):
        rows = _choose_samples(data.dataset, limit, seed)
        if rows is None:
            return data
        part: Dataset[Any] = Subset(data.dataset, rows.tolist())
        return DataLoader(part, batch_size=data.batch_size, collate_fn=data.collate_fn)
    source = batches.as_batches(data, None, pairs=True)  # refuses what is no data
    if isinstance(data, tuple):
        chosen = choose(class_labels(data[-1]), len(data[0]), limit, seed)
        return data if chosen is None else tuple(tensor[chosen] for tensor in data)
    if isinstance(data, Mapping):
        first = next(iter(data.values()))
        chosen = choose(class_labels(target_of(data)), len(first), limit, seed)
        return data if chosen is None else {name: value[chosen] for name, value in data.items()}
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        rows = _choose_samples(data, limit, seed)
        return data if rows is None else Subset(data, rows.tolist())
    return _take_from_batches(data, source, limit, seed)


def require_positive(limit: int) -> None:
    """Refuse a limit that leaves no sample."""
    if limit < 1:
        raise InputError(f"the limit is {limit}: it must be at least 1")


def choose(labels: Tensor | None, rows: int, limit: int, seed: int) -> Tensor | None:
    """Sorted numbers of `limit` of the rows, in proportion to the classes; None if that is all of them."""
    from sklearn.model_selection import train_test_split

    if limit >= rows:
        return None
    strata = None if labels is None else _strata(labels.cpu().numpy(), limit)
    chosen, _ = train_test_split(
        np.arange(rows), train_size=limit, random_state=seed, stratify=strata
    )
    return torch.from_numpy(np.sort(chosen))


def target_of(batch: Any) -> Tensor | None:
    """The target tensor of a batch or a sample, if it has one."""
    try:
        target = batches.unpack(batch)[2]
    except InputError:
        return None
    return target if isinstance(target, Tensor) else None


def _strata(labels: np.ndarray, limit: int) -> np.ndarray | None:
    """Classes as groups of at least two; None where there are too few rows to keep proportions."""
    _, groups, counts = np.unique(labels, return_inverse=True, return_counts=True)
    single = np.flatnonzero(counts == 1)
    if len(single):  # these share a group, with the smallest class if there is but one of them
        larger = np.flatnonzero(counts > 1)
        if len(single) == 1 and len(larger):
            single = np.append(single, larger[counts[larger].argmin()])
        groups = np.where(np.isin(groups, single), single[0], groups)
    sizes = np.unique(groups, return_counts=True)[1]
    enough = sizes.min() >= 2 and len(sizes) <= limit <= len(labels) - len(sizes)
    return groups if enough else None


def class_labels(target: Any) -> Tensor | None:
    """Targets, if they are class indices."""
    is_class = isinstance(target, Tensor) and target.dtype == torch.int64 and target.ndim == 1
    return target if is_class else None


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether a loader reads every sample of a map-style dataset once, in batches of one size."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return False
    if not isinstance(loader.dataset, Sized):
        return False
    sampler = loader.sampler
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)
    return isinstance(sampler, SequentialSampler)


def _choose_samples(dataset: Any, limit: int, seed: int) -> Tensor | None:
    count = len(dataset)
    if limit >= count:
        return None
    labels = _stored_labels(dataset)
    return choose(_read_labels(dataset, seed) if labels is None else labels, count, limit, seed)


def _stored_labels(dataset: Any) -> Tensor | None:
    """Class indices that a dataset keeps beside its samples."""
    if isinstance(dataset, Subset):
        inner = _stored_labels(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, TensorDataset):
        return class_labels(dataset.tensors[-1])
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if isinstance(found, Sized) and len(found) == len(dataset):
            array = found.cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
            if array.ndim == 1 and array.dtype.kind in "iub":
                return torch.from_numpy(array.astype(np.int64))
    return None


def _read_labels(dataset: Any, seed: int) -> Tensor | None:
    """Class indices from the samples themselves; None at the first that has another target."""
    labels = []
    with preserved_randomness(seed):
        for index in range(len(dataset)):
            sample = dataset[index]
            if isinstance(sample, Mapping):
                keys = [key for key in batches.TARGET_KEYS if key in sample]
                label = sample[keys[0]] if keys else None
            else:
                label = sample[-1] if isinstance(sample, (tuple, list)) and sample else None
            if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0:
                label = label.item()
            if not isinstance(label, (int, np.integer)):
                return None
            labels.append(int(label))
    return torch.tensor(labels)


def _take_from_batches(data: Any, source: Iterable[Any], limit: int, seed: int) -> Any:
    """The chosen rows of every batch; a batch of which none is chosen goes."""
    sizes: list[int] = []
    labels: list[Tensor | None] = []
    kept: list[Any] | None = []
    held = 0
    with preserved_randomness(seed, batches.generators(data)):
        for batch in batches.read(source):
            sizes.append(batches.row_count(batch))
            labels.append(class_labels(target_of(batch)))
            held += batches.size_in_bytes(batch)
            kept = [*kept, batch] if kept is not None and held <= batches.KEEP_BYTES else None
    classes = [label for label in labels if label is not None]
    together = torch.cat(classes) if classes and len(classes) == len(labels) else None
    chosen = choose(together, sum(sizes), limit, seed)
    if chosen is None:
        return data
    result, start = [], 0
    with preserved_randomness(seed, batches.generators(data)):
        place = 0
        for batch in batches.read(source if kept is None else kept):
            if place == len(sizes) or batches.row_count(batch) != sizes[place]:
                raise InputError(
                    "two passes over the data give batches of different sizes: pass a list of batches "
                    "or a DataLoader without shuffling"
                )
            stop = start + sizes[place]
            rows = chosen[(chosen >= start) & (chosen < stop)] - start
            if len(rows):
                result.append(pick(batch, rows, sizes[place]))
            start, place = stop, place + 1
    return result


def pick(thing: Any, rows: Tensor, count: int) -> Any:
    """Some rows of every tensor in a batch of `count` rows; containers keep their kind."""
    if isinstance(thing, Tensor):
        if not thing.ndim:
            return thing
        if len(thing) != count:
            raise InputError(
                f"a limit takes rows out of batches, and a batch of {count} rows holds a tensor of shape "
                f"{tuple(thing.shape)}: give every tensor one row per sample, or leave --limit out"
            )
        return thing[rows.to(thing.device)]
    if isinstance(thing, Mapping):
        return {key: pick(value, rows, count) for key, value in thing.items()}
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(pick(value, rows, count) for value in thing))
    if isinstance(thing, (list, tuple)):
        holds_tensors = any(True for _ in batches.named_tensors(thing))
        if not holds_tensors and len(thing) == count:  # names of samples, and the like
            return type(thing)(thing[row] for row in rows.tolist())
        return type(thing)(pick(value, rows, count) for value in thing)
    return thing
