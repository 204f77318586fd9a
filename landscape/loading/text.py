"""A text: which tokens is it made of, and into which windows is it cut?"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.demos.data import VOCABULARY
from landscape.errors import InputError
from landscape.loading import Say
from landscape.loading.kinds import read_json
from landscape.numerals import count, memory

DEFAULT_CONTEXT = 64
MOST_BYTES = 64 * 10**6  # of text; a million windows are more than any curvature needs
_SHOWN = 200  # characters of a vocabulary that are shown


def read_text(
    path: Path, *, tokenizer: str | None, context: int | None, say: Say
) -> tuple[Tensor, Tensor]:
    """Windows of a UTF-8 text, one after the other, without overlap.

    Args:
        path: the file.
        tokenizer: a folder with the `tokenizer.json` of a Hugging Face tokenizer (or another that
            transformers reads), "characters" (None: the sorted distinct characters of the file), or
            "ascii" (the 96 characters of the transformer demo; others become "?").
        context: length of a window in tokens; None means 64.
        say: told the vocabulary and how much of the text is used.

    Returns:
        Inputs (windows, context) and, shifted by one, targets (windows, context), both int64.

    Raises:
        InputError: the file is no UTF-8 text, is too large or shorter than one window, or the
            tokenizer cannot be read.
    """
    length = DEFAULT_CONTEXT if context is None else context
    if length < 1:
        raise InputError(f"the context is {length} tokens: it must be at least 1")
    text = _decoded(path)
    if tokenizer in (None, "characters"):
        tokens = _characters(text, str(path), say)
    elif tokenizer == "ascii":
        tokens = _ascii(text, say)
    else:
        tokens = _tokenized(text, Path(str(tokenizer)), say)
    windows = len(tokens) // (length + 1)
    if not windows:
        raise InputError(
            f"{str(path)!r} has {count(len(tokens), 'token')}, and a window takes {length + 1} (a context "
            f"of {length} and the token after it): give a longer text or a smaller --context"
        )
    say(
        f"{count(len(tokens), 'token')} in {count(windows, 'window')} of {length} and the token after "
        f"each; the last {len(tokens) - windows * (length + 1)} left out"
    )
    cut = torch.from_numpy(tokens[: windows * (length + 1)].reshape(windows, length + 1))
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()


def _decoded(path: Path) -> str:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise InputError(
            f"the text {str(path)!r} has {memory(size)}: at most {memory(MOST_BYTES)} are read; give a part "
            "of it"
        )
    try:
        # As Python opens a text: every line ends in "\n".
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{str(path)!r} is neither UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}) "
            "nor a known kind of data file: save it as UTF-8, or check the path"
        ) from error
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}): check it") from error
    if "\0" in text:
        raise InputError(f"{str(path)!r} holds NUL characters, as binary files do: it is no text")
    return text


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _characters(text: str, path: str, say: Say) -> np.ndarray:
    codes = _codes(text)
    number = np.zeros(0x110000, dtype=np.int64)
    number[codes] = 1
    vocabulary = np.flatnonzero(number)
    number[vocabulary] = np.arange(len(vocabulary))
    shown = "".join(map(chr, vocabulary[:_SHOWN]))
    say(
        f"tokens are the {count(len(vocabulary), 'distinct character')} of {path!r} in sorted order, "
        f"{shown!r}{' …' * (len(vocabulary) > _SHOWN)}; the model must have been trained with these "
        "(otherwise use --tokenizer)"
    )
    return number[codes]


def _ascii(text: str, say: Say) -> np.ndarray:
    number = np.full(0x110000, -1, dtype=np.int64)
    number[[ord(character) for character in VOCABULARY]] = np.arange(len(VOCABULARY))
    tokens = number[_codes(text)]
    unknown = tokens < 0
    tokens[unknown] = VOCABULARY.index("?")
    say(
        f"tokens are the {len(VOCABULARY)} ASCII characters; {int(unknown.sum())} others became '?'"
    )
    return tokens


def _tokenized(text: str, place: Path, say: Say) -> np.ndarray:
    """Tokens of a tokenizer on disk; nothing is fetched, and no code in the folder is run."""
    file = place if place.is_file() else place / "tokenizer.json"
    shown = repr(str(place))
    if not place.exists():
        raise InputError(
            f"there is no tokenizer {shown}: give a folder with tokenizer.json, 'characters' or 'ascii'"
        )
    try:
        if file.is_file():
            _require_no_growth(read_json(file), shown)
            reader = _library("tokenizers", shown).Tokenizer.from_file(str(file))
            reader.no_truncation()  # a stored limit would cut the text off without a word
            reader.no_padding()
            ids = reader.encode(text, add_special_tokens=False).ids
        else:
            reader = _library("transformers", shown).AutoTokenizer.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False
            )
            ids = reader.encode(text, add_special_tokens=False, truncation=False, verbose=False)
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library, written in Rust, is no Exception
        reason = str(error).strip().split("\n")[0].removesuffix(".")
        raise InputError(
            f"the tokenizer in {shown} cannot be used ({reason}): give a folder with tokenizer.json, "
            "'characters' or 'ascii'"
        ) from error
    say(f"tokens are those of the tokenizer in {shown}")
    return np.array(ids, dtype=np.int64)


def _require_no_growth(part: Any, shown: str) -> None:
    """Refuse replacements that lengthen a text: a few dozen of them would fill any memory."""
    if isinstance(part, dict) and part.get("type") == "Replace":
        pattern = part.get("pattern")
        old = next(iter(pattern.values()), "") if isinstance(pattern, dict) else ""
        if len(str(part.get("content", ""))) > max(1, len(str(old))):
            raise InputError(
                f"the tokenizer in {shown} lengthens the text it reads: use another one"
            )
    for value in part.values() if isinstance(part, dict) else part:
        if isinstance(value, (dict, list)):
            _require_no_growth(value, shown)


def _library(name: str, shown: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"the tokenizer in {shown} is read with {name!r}, which is not installed; run: "
            'pip install "torch-landscape[hf]"'
        ) from error
