"""Data by name: an embedded data set, a file, a folder of images, or a callable of the user's."""

import difflib
import os
from pathlib import Path
from typing import Any

from landscape.batches import as_batches
from landscape.demos.data import DATASETS, load_data
from landscape.errors import InputError
from landscape.loading import Say, silent
from landscape.loading.arrays import read_npz, read_safetensors, read_torch
from landscape.loading.data_kinds import WORDS, kind_of
from landscape.loading.images import find_images, read_images
from landscape.loading.names import call
from landscape.loading.parquet import read_parquet
from landscape.loading.subset import choose, require_positive, take
from landscape.loading.tables import read_delimited
from landscape.loading.text import read_text

# A name that ends like this is a file, whether it is there or not.
_ENDINGS = (".npz", ".npy", ".pt", ".pth", ".safetensors", ".csv", ".tsv", ".parquet", ".txt")


def read_data(
    name: str,
    *,
    target: str | None = None,
    tokenizer: str | None = None,
    context: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    say: Say = silent,
) -> Any:
    """Data for a `Problem` from what a person typed. Nothing in a file is ever run.

    Args:
        name: an embedded data set (`digits`, also `digits:train`, `digits:test`, …); a file of arrays
            (.npz, .pt, .safetensors), a table (.csv, .tsv, .parquet), a UTF-8 text; a folder with one
            folder of images per class; or `package.module:callable` returning any data a `Problem` takes.
            What a file holds is told from its content; only .csv and .tsv are told by their ending.
        target: the label column of a table.
        tokenizer: of a text: a folder with a Hugging Face tokenizer, "characters" (default) or "ascii".
        context: length of a window of text in tokens (default 64).
        limit: use this many samples, a random subset; class proportions are kept.
        seed: of the subset.
        say: told, in a sentence, of every choice made for the user.

    Raises:
        InputError: nothing of that name, an unreadable file, an option that does not fit the kind of
            data, or a limit that is not positive.
    """
    if limit is not None:
        require_positive(limit)
    options = {"--target": target, "--tokenizer": tokenizer, "--context": context}
    if name.partition(":")[0] in DATASETS:
        _require_fitting(options, (), f"{name!r} is an embedded data set")
        if os.path.exists(name):
            say(f"{name!r} is the embedded data set; the file of that name is ./{name}")
        data: Any = load_data(name)
    elif _is_path(name):
        data = _read_path(Path(name), options, limit, seed, say)
    elif ":" in name:
        _require_fitting(options, (), f"{name!r} is a callable")
        data = _call(name, say)
    else:
        close = difflib.get_close_matches(name, DATASETS, n=2)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise InputError(
            f"unknown data {name!r}: {hint}choose one of {', '.join(DATASETS)}, a file (.npz, .pt, "
            ".safetensors, .csv, .tsv, .parquet, text), a folder of images, or package.module:callable"
        )
    return data if limit is None else take(data, limit, seed)


def _is_path(name: str) -> bool:
    return os.path.exists(name) or name.lower().endswith(_ENDINGS) or os.sep in name or "/" in name


def _read_path(path: Path, options: dict[str, Any], limit: int | None, seed: int, say: Say) -> Any:
    kind = kind_of(path)
    fitting: tuple[str, ...] = ()
    if kind in ("table", "parquet"):
        fitting = ("--target",)
    elif kind == "text":
        fitting = ("--tokenizer", "--context")
    _require_fitting(options, fitting, f"{str(path)!r} is {WORDS[kind]}")
    if kind == "npz":
        return read_npz(path, say)
    if kind == "torch":
        return read_torch(path, say)
    if kind == "safetensors":
        return read_safetensors(path, say)
    if kind == "table":
        return read_delimited(path, options["--target"], say)
    if kind == "parquet":
        return read_parquet(path, options["--target"], say)
    if kind == "text":
        return read_text(
            path, tokenizer=options["--tokenizer"], context=options["--context"], say=say
        )
    images = find_images(path, say)
    # Only the pictures that are needed are opened.
    rows = None if limit is None else choose(images.targets, len(images), limit, seed)
    return read_images(images if rows is None else images.rows(rows), say)


def _require_fitting(options: dict[str, Any], fitting: tuple[str, ...], what: str) -> None:
    purposes = {
        "--target": "the label column of a table",
        "--tokenizer": "the tokens of a text",
        "--context": "the windows of a text",
    }
    for option, value in options.items():
        if value is not None and option not in fitting:
            raise InputError(
                f"{option} {value} is about {purposes[option]}, and {what}: leave {option} out"
            )


def _call(name: str, say: Say) -> Any:
    data = call(name, {}, say=say)
    try:
        as_batches(data, None, pairs=True)
    except InputError as error:
        raise InputError(f"{name!r} does not return data: {error}") from error
    return data
