"""Parquet tables: is the file what it declares, and small enough to unpack?"""

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.loading import Say
from landscape.loading.columns import (
    float32,
    not_numeric,
    require_distinct,
    require_present,
    say_columns,
    target_column,
    targets_of,
)
from landscape.memory import available_bytes
from landscape.numerals import memory

_BATCH = 2**22  # values read at a time


def read_parquet(path: Path, target: str | None, say: Say) -> tuple[Tensor, Tensor]:
    """A Parquet table, as `read_delimited`.

    Raises:
        InputError: as `read_delimited`; or pyarrow is not installed, or the file is damaged or would
            not fit in memory.
    """
    shown = repr(str(path))
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{shown} is a Parquet table, and pyarrow, which reads it, is not installed; run: "
            "pip install pyarrow"
        ) from error
    try:
        return _read(path, target, say, arrow, parquet)
    except InputError:
        raise
    except Exception as error:  # a damaged table fails in many ways
        reason = str(error).strip().split("\n")[0].removesuffix(".") or type(error).__name__
        raise InputError(
            f"{shown} is a damaged Parquet table ({reason}): copy or save it again"
        ) from error


def _read(
    path: Path, target: str | None, say: Say, arrow: Any, parquet: Any
) -> tuple[Tensor, Tensor]:
    shown = repr(str(path))
    with parquet.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    index = [name for name in schema.names if name.startswith("__index_level_")]
    if index:
        say(f"left out {', '.join(map(repr, index))}, the row names of pandas")
    names = [name for name in schema.names if name not in index]
    require_distinct(names, shown)
    column = target_column(names, target, shown)
    say_columns(names, column, target, say)
    others = [name for name in names if name != column]
    _require_target_type(schema.field(column).type, column, shown, arrow)
    words = [name for name in others if not _is_numeric(schema.field(name).type, arrow)]
    if words:
        raise not_numeric(words, shown)
    if not rows:
        raise InputError(f"{shown} has no rows: there is nothing to measure the loss on")
    # A few bytes can stand for many equal rows; what they unpack to is known beforehand.
    needed, room = rows * (4 * len(others) + 16), available_bytes() // 2
    if needed > room:
        raise InputError(
            f"{shown} unpacks to {memory(needed)} ({rows} rows), more than half of the free memory "
            f"({memory(room)}): use a part of the data"
        )
    texts = [column] if _is_text(schema.field(column).type, arrow) else []
    features = np.empty((rows, len(others)), dtype=np.float32)
    labels: list[Any] = []
    missing, done = 0, 0
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        # Batch by batch: what the columns declare about themselves is not allocated at once.
        size = 1 + _BATCH // len(names)
        for batch in file.iter_batches(batch_size=size, use_threads=False):
            for place, name in enumerate(others):
                values = _numbers(batch.column(schema.get_field_index(name)), arrow)
                features[done : done + batch.num_rows, place] = float32(values, name, shown)
            found = batch.column(schema.get_field_index(column))
            missing += found.null_count
            if not missing:
                labels.append(_labels(found, arrow))
            done += batch.num_rows
    if done != rows:
        raise ValueError(f"{done} rows, {rows} declared")
    require_present(missing, column, shown)
    together = (
        list(itertools.chain(*labels)) if isinstance(labels[0], list) else np.concatenate(labels)
    )
    return torch.from_numpy(features), targets_of(together, column, shown, say)


def _require_target_type(kind: Any, column: str, shown: str, arrow: Any) -> None:
    held = kind.value_type if arrow.types.is_dictionary(kind) else kind
    if not (_is_numeric(held, arrow) or _is_text(held, arrow)):
        raise InputError(
            f"the target column {column!r} of {shown} holds values of type {kind}: numbers or words are "
            "needed"
        )


def _is_text(kind: Any, arrow: Any) -> bool:
    return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))


def _is_numeric(kind: Any, arrow: Any) -> bool:
    types = arrow.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _numbers(values: Any, arrow: Any) -> np.ndarray:
    if arrow.types.is_boolean(values.type):
        values = values.cast(arrow.uint8())
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


def _labels(values: Any, arrow: Any) -> Any:
    """An array of numbers or truth values, or a list of strings."""
    kind = values.type
    if arrow.types.is_dictionary(kind) and not _is_text(kind.value_type, arrow):
        values, kind = values.cast(kind.value_type), kind.value_type
    if arrow.types.is_boolean(kind):
        return _numbers(values, arrow).astype(bool)
    if _is_numeric(kind, arrow):
        return _numbers(values, arrow)
    if not arrow.types.is_dictionary(kind):
        return values.to_pylist()
    words = values.dictionary.to_pylist()  # labels repeat: decode every one once
    return [words[code] for code in values.indices.to_pylist()]
