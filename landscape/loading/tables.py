"""Tables of separated values: are all columns but the targets numbers, on every line?"""

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.loading import Say
from landscape.loading.columns import (
    MISSING,
    float32,
    not_numeric,
    number_in,
    require_distinct,
    require_present,
    say_columns,
    target_column,
    targets_of,
)
from landscape.numerals import count

MOST_COLUMNS = 20_000
_CHUNK = 2**18  # values turned into an array at a time
_LONGEST_LINE = 2**22


def read_delimited(path: Path, target: str | None, say: Say) -> tuple[Tensor, Tensor]:
    """A .csv or .tsv file with a line of column names: features float32 (n, columns), and targets.

    Args:
        path: the file, UTF-8.
        target: the label column; None takes the one called `target`, `label`, `labels`, `y` or `class`.
        say: told of every choice made.

    Returns:
        Features (n, columns) float32, as they are, and targets: class indices int64 (n,), in the sorted
        order of the labels, or numbers float32 (n, 1).

    Raises:
        InputError: a column that is not numeric, missing values, lines of different length, an
            unknown or ambiguous target.
    """
    shown = repr(str(path))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(_lines(file, shown), delimiter=delimiter, strict=True)
            names = [name.strip() for name in next(lines, [])]
            _require_header(names, delimiter, shown)
            column = target_column([name for name in names if name], target, shown)
            if not names[0]:
                say("left out the first column, which has no name: the row names of pandas")
            say_columns([name for name in names if name], column, target, say)
            features, labels = _read_rows(lines, names, column, shown)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown} is not UTF-8 text (byte {error.object[error.start]:#04x}): save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise InputError(
            f"{shown} is no table of separated values ({error}): save it again"
        ) from error
    return features, targets_of(labels, column, shown, say)


def _lines(file: Any, shown: str) -> Iterator[str]:
    """The lines of a text file; a line without an end would be read into memory whole."""
    while line := file.readline(_LONGEST_LINE):
        if "\0" in line:
            raise InputError(f"{shown} holds NUL bytes, as binary files do: it is no table of text")
        if len(line) == _LONGEST_LINE:
            raise InputError(
                f"{shown} has a line of more than {_LONGEST_LINE:,} characters: it is no table of text"
            )
        yield line


def _require_header(names: list[str], delimiter: str, shown: str) -> None:
    if len(names) > MOST_COLUMNS:
        raise InputError(
            f"{shown} has {len(names)} columns: at most {MOST_COLUMNS} are read; save arrays with "
            "numpy.savez(file, inputs=…, targets=…)"
        )
    if len(names) < 2:
        other = {";": "semicolons", "\t": "tabs", ",": "commas"}
        seen = next((word for sign, word in other.items() if names and sign in names[0]), None)
        hint = (
            f"its first line is separated by {seen}"
            if seen
            else "one column of targets and at least one other are needed"
        )
        wanted = "tabs (.tsv)" if delimiter == "\t" else "commas (.csv)"
        raise InputError(
            f"{shown} has {count(len(names), 'column')}: {hint}; separate them by {wanted}"
        )
    # Columns may be numbered, but nobody calls one 5.1.
    numbers = [name for name in names if number_in(name) is not None]
    if len(numbers) == len(names) or any(not name.isdecimal() for name in numbers):
        raise InputError(
            f"the first line of {shown} holds numbers ({', '.join(numbers[:3])}{' …' * (len(numbers) > 3)}): "
            "add a line of column names above it"
        )
    if "" in names[1:]:
        raise InputError(
            f"column {names.index('', 1) + 1} of {shown} has no name: name it in the first line"
        )
    require_distinct(names, shown)


def _read_rows(
    lines: Any, names: Sequence[str], column: str, shown: str
) -> tuple[Tensor, list[str]]:
    """Features as float32 (rows, columns), and the labels as they are written."""
    others = [name for name in names if name not in ("", column)]
    place, unnamed = names.index(column), not names[0]
    blocks: list[np.ndarray] = []
    labels: list[str] = []
    same: dict[str, str] = {}  # equal labels share one string
    missing, words = dict.fromkeys(others, 0), dict.fromkeys(others, False)
    chunk = 1 + _CHUNK // len(names)
    while rows := list(itertools.islice((row for row in lines if row), chunk)):
        numbers = []
        for row in rows:
            if len(row) != len(names):
                raise InputError(
                    f"a line of {shown} near line {lines.line_num} has {count(len(row), 'value')} for "
                    f"{len(names)} columns: make them agree"
                )
            label = row.pop(place).strip()
            del row[:unnamed]
            labels.append(same.setdefault(label, label))
            try:
                numbers.append([float(value) for value in row])
            except ValueError:
                numbers.append(_slowly(row, others, missing, words))
        blocks.append(_float32_block(np.array(numbers), others, missing))
    if wrong := [name for name, found in words.items() if found]:
        raise not_numeric(wrong, shown)
    for name, absent in missing.items():
        require_present(absent, name, shown)
    if not labels:
        raise InputError(f"{shown} has column names but no rows: there is nothing to measure on")
    features = np.concatenate(blocks)
    for index, name in enumerate(others):
        float32(features[:, index], name, shown)
    return torch.from_numpy(features), labels


def _float32_block(
    numbers: np.ndarray, names: Sequence[str], missing: dict[str, int]
) -> np.ndarray:
    absent = np.isnan(numbers).sum(axis=0)
    for index in np.flatnonzero(absent).tolist():
        missing[names[index]] += int(absent[index])
    with np.errstate(over="ignore"):  # what overflows is refused by name at the end
        return numbers.astype(np.float32)


def _slowly(
    row: Sequence[str], names: Sequence[str], missing: dict[str, int], words: dict[str, bool]
) -> list[float]:
    """The numbers of a row in which something is none; what is missing becomes NaN."""
    result = []
    for name, value in zip(names, row, strict=True):
        number = number_in(value)
        if number is None:
            truth = {"true": 1.0, "false": 0.0}.get(value.strip().lower())
            if truth is None and value.strip().lower() not in MISSING:
                words[name] = True
            number = math.nan if truth is None else truth
        result.append(number)
    return result
