"""What a problem archive may hold: every field of the kind it should be, and of modest size."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError

ARCHIVE = "landscape/problem/1"
_MOST_VALUES, _DEEPEST = 1000, 8  # of the arguments of a factory


def checked_archive(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a problem archive that are used, each checked.

    Raises:
        InputError: a field is of another kind than `save_problem` writes.
    """

    def require(fits: bool, field: str) -> None:
        if not fits:
            raise InputError(
                f"the field {field!r} of the problem archive {str(path)!r} is damaged: write it again with "
                "save_problem"
            )

    found = {key: content[key] for key in _FIELDS if content.get(key) is not None}
    data = found.get("data", {})
    require(isinstance(data, dict), "data")
    require(isinstance(data.get("name", ""), str), "data")
    tensors = data.get("tensors", [])
    require(isinstance(tensors, (list, tuple)), "data")
    require(all(isinstance(tensor, Tensor) for tensor in tensors), "data")
    require(all(map(_is_stored, tensors)), "data")
    require(all(tensor.ndim and len(tensor) for tensor in tensors), "data")
    require("tensors" not in data or len(tensors) > 1, "data")
    require(_is_count(data.get("limit")), "limit")
    require(isinstance(found.get("loss", ""), str), "loss")
    require(_is_count(found.get("batch_size")), "batch_size")
    statistics = found.get("norm_stats", "running")
    require(isinstance(statistics, str) and statistics in ("running", "batch"), "norm_stats")
    factory = found.get("factory", {"name": "", "arguments": {}})
    require(isinstance(factory, dict) and isinstance(factory.get("name"), str), "factory")
    require(isinstance(factory.get("arguments"), dict), "factory")
    require(_plain_values(factory["arguments"], 0) <= _MOST_VALUES, "factory")
    program = found.get("program", torch.empty(0, dtype=torch.uint8))
    require(isinstance(program, Tensor) and program.dtype == torch.uint8, "program")
    require(_is_stored(program), "program")
    require(isinstance(found.get("state_dict", {}), dict), "state_dict")
    return found


_FIELDS = ("data", "loss", "batch_size", "norm_stats", "factory", "state_dict", "program")


def _is_stored(tensor: Tensor) -> bool:
    """Whether every number of a tensor lies in the file: one can stand for a huge shape."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**31)


def _plain_values(thing: Any, depth: int) -> float:
    """How many values there are in nested lists and dictionaries; infinite if one is not plain."""
    if depth > _DEEPEST:
        return math.inf
    if isinstance(thing, dict):
        parts = list(thing.values()) if all(isinstance(key, str) for key in thing) else [...]
    elif isinstance(thing, (list, tuple)):
        parts = list(thing)
    else:
        return 1 if thing is None or isinstance(thing, (str, int, float)) else math.inf
    total = 0.0
    for part in parts:
        total += _plain_values(part, depth + 1)
        if total > _MOST_VALUES:
            return math.inf
    return total
