"""Data by name: an embedded data set, an .npz file, or a callable of the user's."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.batches import as_batches
from landscape.demos.data import DATASETS, load_data
from landscape.errors import InputError
from landscape.loading.names import call

_KEYS = (("inputs", "targets"), ("x", "y"), ("X", "y"), ("X", "Y"), ("data", "target"))


def read_data(name: str, *, limit: int | None = None, seed: int = 0) -> Any:
    """Data for a `Problem` from what a person typed.

    Args:
        name: an embedded data set (`digits`, also `digits:train`, `digits:test`, …), a file `.npz`
            holding two arrays, or `package.module:callable` returning any data a `Problem` takes.
        limit: use this many samples, a random subset; class proportions are kept.
        seed: of the subset.

    Raises:
        InputError: nothing of that name, an unreadable file, or a limit out of range.
    """
    if name.partition(":")[0] in DATASETS:
        data: Any = load_data(name)
    elif name.endswith(".npz"):
        data = _read_npz(Path(name))
    elif ":" in name:
        data = call(name)
    else:
        raise InputError(
            f"unknown data {name!r}: choose one of {', '.join(DATASETS)}, a file ending in .npz, or "
            "package.module:callable"
        )
    return data if limit is None else take(data, limit, seed)


def take(data: Any, limit: int, seed: int) -> tuple[Tensor, ...]:
    """A seeded random subset of `limit` rows of a tuple of tensors, class proportions kept.

    Raises:
        InputError: the data are no tuple of tensors, or the limit is not positive.
    """
    from sklearn.model_selection import train_test_split

    if not isinstance(data, tuple) or not all(isinstance(part, Tensor) for part in data):
        raise InputError(
            f"a limit of {limit} samples needs data given as tensors; let the callable return fewer"
        )
    if limit < 1:
        raise InputError(f"the limit is {limit}: it must be at least 1")
    as_batches(data, None, pairs=True)  # refuses lengths that differ
    rows = len(data[0])
    if limit >= rows:
        return data
    target = data[-1]
    classes = target.numpy() if target.ndim == 1 and target.dtype == torch.int64 else None
    if classes is not None:
        counts = np.unique(classes, return_counts=True)[1]
        if counts.min() < 2 or limit < len(counts) or rows - limit < len(counts):
            classes = None  # too few of a class to keep proportions
    chosen, _ = train_test_split(
        np.arange(rows), train_size=limit, random_state=seed, stratify=classes
    )
    index = torch.from_numpy(np.sort(chosen))
    return tuple(part[index] for part in data)


def _read_npz(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise InputError(f"there is no file {str(path)!r}") from error
    except Exception as error:  # a damaged or foreign file fails in many ways
        raise InputError(f"cannot read {str(path)!r} as .npz without pickle: {error}") from error
    pair = next((pair for pair in _KEYS if set(pair) <= set(arrays)), None)
    pair = pair or (tuple(arrays) if len(arrays) == 2 else None)  # type: ignore[assignment]
    if pair is None:
        raise InputError(
            f"{str(path)!r} holds the arrays {', '.join(arrays) or 'none'}: name two of them "
            "'inputs' and 'targets'"
        )
    inputs, targets = (_tensor(arrays[key], key, path) for key in pair)
    return inputs, targets


def _tensor(array: Any, key: str, path: Path) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise InputError(f"array {key!r} of {str(path)!r} has dtype {array.dtype}: numbers needed")
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if tensor.is_floating_point() else tensor.long()


def infer_loss(data: Any) -> str:
    """The loss that the targets suggest: indices mean classification, numbers regression.

    Raises:
        InputError: there is no target tensor to look at.
    """
    target = data[-1] if isinstance(data, tuple) and len(data) > 1 else None
    if not isinstance(target, Tensor):
        raise InputError("no loss was given and the data do not show one: pass --loss (loss=)")
    if target.is_floating_point():
        return "mse"
    return "cross_entropy" if target.ndim == 1 else "token_cross_entropy"
