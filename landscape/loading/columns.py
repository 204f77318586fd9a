"""Columns of a table: which holds the targets, and are these classes or numbers?"""

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.loading import Say
from landscape.numerals import count

TARGET_COLUMNS = ("target", "label", "labels", "y", "class")
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-nan", "#n/a", "<na>"}
MOST_CLASSES = 100  # more distinct whole numbers are taken as quantities


def require_distinct(names: Sequence[str], shown: str) -> None:
    """Refuse columns that cannot be told apart."""
    twice, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{shown} has two columns named {twice!r}: rename one")


def target_column(names: Sequence[str], target: str | None, shown: str) -> str:
    """The name of the label column: the one asked for, or the only one that is called like one.

    Raises:
        InputError: there is no such column, there are several, or there are no others.
    """
    if len(names) < 2:
        raise InputError(
            f"{shown} has {count(len(names), 'column')}: one column of targets and at least one other are "
            "needed"
        )
    listed = ", ".join(map(repr, names[:20])) + (" …" if len(names) > 20 else "")
    if target is not None:
        if target in names:
            return target
        close = difflib.get_close_matches(target, names, n=3)
        hint = (
            f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose one of {listed}"
        )
        raise InputError(f"{shown} has no column {target!r}: {hint}")
    found = [name for name in names if name.lower() in TARGET_COLUMNS]
    if len(found) == 1:
        return found[0]
    reason = f"{' and '.join(map(repr, found))} may both be" if found else "no column is known as"
    raise InputError(
        f"in {shown}, {reason} the target: name one with --target (target=), among {listed}"
    )


def say_columns(names: Sequence[str], column: str, target: str | None, say: Say) -> None:
    """Say what was decided about the columns."""
    chosen = "" if target else f"took the column {column!r} as targets; "
    say(f"{chosen}{count(len(names) - 1, 'feature')} used as they are, not standardised")


def not_numeric(columns: Sequence[str], shown: str) -> InputError:
    """The refusal of columns that hold something else than numbers."""
    listed = ", ".join(map(repr, columns[:10])) + (" …" if len(columns) > 10 else "")
    if len(columns) == 1:
        return InputError(
            f"the column {listed} of {shown} does not hold numbers: turn it into numbers or leave it out"
        )
    return InputError(
        f"the columns {listed} of {shown} do not hold numbers: turn them into numbers or leave them out"
    )


def require_present(missing: int, column: str, shown: str) -> None:
    """Refuse a column with missing values."""
    if missing:
        raise InputError(
            f"the column {column!r} of {shown} has {count(missing, 'missing value')}: fill them in or "
            "leave these rows out"
        )


def number_in(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def float32(values: np.ndarray, column: str, shown: str) -> np.ndarray:
    """The values of a column in float32; missing ones and overflow are refused."""
    with np.errstate(over="ignore"):
        result = values.astype(np.float32, copy=False)
    require_present(int(np.isnan(result).sum()), column, shown)
    if bad := int((~np.isfinite(result)).sum()):
        raise InputError(
            f"the column {column!r} of {shown} has {count(bad, 'value')} beyond the range of float32: "
            "rescale it"
        )
    return result


def targets_of(labels: Any, column: str, shown: str, say: Say) -> Tensor:
    """Class indices int64 (n,), or numbers float32 (n, 1), and it is said which.

    Words, truth values, and whole numbers 0 … K−1 or 1 … K with K up to 100 are classes, in sorted order;
    other numbers are regression targets.

    Args:
        labels: a list of strings as they are written, or an array of numbers or truth values.
        column, shown: the names of the column and of the file in sentences.
        say: told the classes, or that there are none.

    Raises:
        InputError: values are missing, too large, or nearly all different words.
    """
    values = _parsed(labels, column, shown) if isinstance(labels, list) else np.asarray(labels)
    if isinstance(values, list):
        words = sorted(set(values))
        if len(words) > max(MOST_CLASSES, len(values) // 2):
            raise InputError(
                f"the column {column!r} of {shown} has {len(words)} different words in {len(values)} "
                "rows, which are no classes: name another column with --target"
            )
        places = {word: place for place, word in enumerate(words)}
        indices = np.fromiter((places[word] for word in values), np.int64, len(values))
    elif values.dtype.kind == "f":
        say(f"{column!r} holds numbers: regression")
        return _quantities(values, column, shown)
    else:
        classes, indices = np.unique(values, return_inverse=True)
        if values.dtype.kind in "iu" and not _are_classes(classes):
            say(
                f"{column!r} holds {len(classes)} different whole numbers from {classes[0]} to "
                f"{classes[-1]}: regression (classes are numbered from 0 or 1 without gaps, or are words)"
            )
            return _quantities(values, column, shown)
        words = [str(label) for label in classes]
    listed = ", ".join(f"{i} {word[:40]}" for i, word in enumerate(words[:20]))
    say(
        f"classes of {column!r}, numbered in sorted order: {listed}"
        + f" … ({len(words)})" * (len(words) > 20)
    )
    return torch.from_numpy(indices.reshape(-1).astype(np.int64))


def _quantities(values: np.ndarray, column: str, shown: str) -> Tensor:
    return torch.from_numpy(float32(values, column, shown)[:, None].copy())


def _parsed(labels: list[str], column: str, shown: str) -> np.ndarray | list[str]:
    """Labels as they are written: an array if all are numbers, otherwise the words themselves."""
    different = set(labels)
    absent = {label for label in different if label.lower() in ("", "nan")}
    numbers = {label: number_in(label) for label in different}
    if any(number is None for number in numbers.values()) and not absent:
        # One "?" among numbers is a missing value; among words, "NA" may well be a class.
        kinds = {number is None for number in numbers.values()}
        absent = {label for label in different if len(kinds) == 2 and label.lower() in MISSING}
    require_present(sum(label in absent for label in labels), column, shown)
    if any(number is None for number in numbers.values()):
        return labels
    if all(label.lstrip("+-").isdecimal() and len(label) < 19 for label in different):
        return np.array([int(label) for label in labels], dtype=np.int64)
    return np.array([numbers[label] for label in labels], dtype=np.float64)


def _are_classes(values: np.ndarray) -> bool:
    """Whether sorted distinct whole numbers number classes: 0 … K−1 or 1 … K, K at most 100."""
    first = int(values[0])
    return (
        len(values) <= MOST_CLASSES
        and first in (0, 1)
        and int(values[-1]) - first == len(values) - 1
    )
