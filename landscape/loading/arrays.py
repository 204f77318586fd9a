"""Arrays in files: which tensors do an .npz, a torch or a safetensors file hold, and which are targets?"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from landscape.batches import TARGET_KEYS
from landscape.errors import InputError
from landscape.loading import Say
from landscape.loading.container import require_honest_zip
from landscape.loading.contents import ARCHIVE
from landscape.loading.pickles import require_modest_pickles

Arrays = tuple[Tensor, ...] | dict[str, Tensor]

# Names that people give to inputs and targets; the first pair found is taken.
_PAIRS = (
    ("inputs", "targets"),
    ("x", "y"),
    ("X", "y"),
    ("X", "Y"),
    ("data", "target"),
    ("images", "labels"),
    ("image", "label"),
    ("features", "labels"),
    ("features", "targets"),
    ("features", "target"),
)


def read_npz(path: Path, say: Say) -> Arrays:
    """The arrays of a file of `numpy.savez`, as (inputs, targets) or a mapping; no pickle is opened.

    Raises:
        InputError: the file is damaged or made to exhaust memory, an array holds no numbers, or nothing
            tells inputs from targets.
    """
    require_honest_zip(path, stored=False)
    arrays: dict[str, Tensor] = {}
    other: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    other.append(member.filename)
                    continue
                key = member.filename.removesuffix(".npy")
                with archive.open(member) as stream:
                    arrays[key] = _read_npy(
                        stream, member.file_size, f"array {key!r} of {str(path)!r}"
                    )
    except InputError:
        raise
    except Exception as error:  # a damaged member fails in many ways
        raise InputError(
            f"{str(path)!r} is damaged ({_first_line(error)}): copy or save it again"
        ) from error
    if other:
        say(f"left out {', '.join(map(repr, other))}, not arrays")
    return _assign(arrays, path, say, guess=True)


def read_torch(path: Path, say: Say) -> Arrays:
    """The tensors of a file of `torch.save`: a tuple or list (inputs, …, targets), or a dictionary.

    Raises:
        InputError: the file is damaged, holds anything but tensors (which would mean running code), or
            is a model; or nothing tells inputs from targets.
    """
    shown = repr(str(path))
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        require_honest_zip(path, stored=True)
    require_modest_pickles(path, legacy=not zipped)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickles of other kinds, which are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{shown} is damaged or holds more than tensors, and opening that would run code: save the "
            "tensors themselves with torch.save((inputs, targets), file)"
        ) from error
    except Exception as error:  # damaged and foreign files fail in many ways
        raise InputError(
            f"{shown} cannot be read as a file of torch.save ({_first_line(error)}): copy or save it again"
        ) from error
    if isinstance(content, Mapping):
        if content.get("format") == ARCHIVE or _is_state_dict(content):
            raise InputError(f"{shown} is a torch model, not data: give it as MODEL")
        _require_tensors(content, shown)
        named = {
            str(key): _from_torch(value, f"{key!r} of {shown}") for key, value in content.items()
        }
        return _assign(named, path, say, guess=False)
    if isinstance(content, (tuple, list)) and len(content) >= 2:
        _require_tensors(dict(enumerate(content)), shown)
        *inputs, target = (
            _from_torch(value, f"tensor {index} of {shown}") for index, value in enumerate(content)
        )
        parts = {f"tensor {index}": value for index, value in enumerate([*inputs, target])}
        _require_equal_rows(parts, shown)
        scaled = [_scaled(f"tensor {index}", value, say) for index, value in enumerate(inputs)]
        return (*scaled, _indices(target))
    length = f" of length {len(content)}" if isinstance(content, (tuple, list)) else ""
    raise InputError(
        f"{shown} holds a {type(content).__name__}{length}: save a tuple (inputs, targets) or a "
        "dictionary of tensors"
    )


def read_safetensors(path: Path, say: Say) -> Arrays:
    """The tensors of a safetensors file, as (inputs, targets) or a mapping.

    Raises:
        InputError: the file is damaged or is a model, or nothing tells inputs from targets.
    """
    from safetensors.torch import load_file

    shown = repr(str(path))
    try:
        content = load_file(path)
    except Exception as error:  # damaged files fail in many ways
        raise InputError(
            f"{shown} cannot be read as a safetensors file ({_first_line(error)}): copy or save it again"
        ) from error
    if _is_state_dict(content):
        raise InputError(f"{shown} is a torch model, not data: give it as MODEL")
    named = {key: _from_torch(value, f"{key!r} of {shown}") for key, value in content.items()}
    return _assign(named, path, say, guess=False)


def _read_npy(stream: IO[bytes], size: int, what: str) -> Tensor:
    """One array of an .npz file; the header is checked before any memory is taken."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise InputError(
            f"{what} is in version {version[0]} of the format: save a plain array of numbers"
        )
    if dtype.hasobject:
        raise InputError(
            f"{what} holds Python objects, which cannot be read without pickle, and a pickle can run "
            "code: save an array of numbers"
        )
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise InputError(f"{what} has dtype {dtype}: numbers of at most 64 bits are needed")
    count = 1
    for length in shape:
        count *= length  # Python's integers do not overflow, as NumPy's would
    left = size - stream.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != left:
        raise InputError(
            f"{what} declares the shape {shape} of {dtype}, which does not fit the {left} bytes that "
            "are there: save it again"
        )
    content = bytearray(left)
    if _fill(stream, content) != left:
        raise InputError(f"{what} is truncated: copy or save the file again")
    array = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    native = np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)
    if native.dtype == np.uint64 and native.size and int(native.max()) > 2**63 - 1:
        raise InputError(f"{what} holds {int(native.max())}, more than an int64 can: rescale it")
    return torch.from_numpy(native)


def _fill(stream: IO[bytes], buffer: bytearray) -> int:
    """Read until the buffer is full or the stream ends; the number of bytes read."""
    view, done = memoryview(buffer), 0
    while done < len(buffer) and (block := stream.read(min(2**24, len(buffer) - done))):
        view[done : done + len(block)] = block
        done += len(block)
    return done


def _from_torch(value: Tensor, what: str) -> Tensor:
    """A tensor from a file as a plain one, or a refusal."""
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        kind = f"{value.layout}, {value.dtype}".replace("torch.", "")
        raise InputError(f"{what} is {kind}: save a dense tensor of real numbers")
    if value.device.type == "meta":
        raise InputError(f"{what} has no values (device 'meta'): save a tensor that has")
    # One stored number may stand for a huge shape; unfolding it would exhaust the memory.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(
            f"{what} has shape {tuple(value.shape)} but only {value.untyped_storage().nbytes()} bytes are "
            "stored (an expanded tensor): save tensor.contiguous()"
        )
    value = value.detach().contiguous()
    if value.dtype == torch.uint64 and bool((value.view(torch.int64) < 0).any()):
        raise InputError(f"{what} holds numbers beyond the range of int64: rescale them")
    return value


def _require_tensors(content: Mapping[Any, Any], shown: str) -> None:
    wrong = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise InputError(
            f"{shown} holds a {type(content[wrong]).__name__} under {wrong!r}, not a tensor: save a "
            "tuple (inputs, targets) or a dictionary of tensors, one row per sample"
        )


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether names look like `0.weight`: the entries of modules, which data never are."""
    nested = any(isinstance(content.get(key), Mapping) for key in ("state_dict", "model"))
    return nested or any(
        isinstance(key, str) and key.rpartition(".")[2] in ("weight", "bias") for key in content
    )


def _assign(arrays: dict[str, Tensor], path: Path, say: Say, *, guess: bool) -> Arrays:
    """(inputs, targets) where the names or, with `guess`, the shapes tell; otherwise a mapping."""
    shown = repr(str(path))
    pair = next((pair for pair in _PAIRS if set(pair) <= set(arrays)), None)
    key = next((key for key in TARGET_KEYS if key in arrays), None)
    if pair is None and key is None and guess:
        pair = _obvious_pair(arrays)
        if pair is not None:
            say(f"took {pair[0]!r} as inputs and {pair[1]!r} as targets")
    if pair is not None:
        chosen = {name: arrays[name] for name in pair}
        left = [name for name in arrays if name not in pair]
        if left:
            say(
                f"took {pair[0]!r} as inputs and {pair[1]!r} as targets, and left out "
                f"{', '.join(map(repr, left))}"
            )
        _require_equal_rows(chosen, shown)
        return _scaled(pair[0], chosen[pair[0]], say), _indices(chosen[pair[1]])
    if key is None or len(arrays) < 2:
        raise InputError(
            f"{shown} holds the arrays {', '.join(map(repr, arrays)) or 'none'}, and nothing tells inputs "
            "from targets: name two of them 'inputs' and 'targets'"
        )
    _require_equal_rows(arrays, shown)
    say(
        f"{', '.join(map(repr, (name for name in arrays if name != key)))} go to the model by keyword; "
        f"{key!r} are the targets"
    )
    return {
        name: _indices(value) if name == key else _scaled(name, value, say)
        for name, value in arrays.items()
    }


def _obvious_pair(arrays: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Of two arrays, one with many numbers per sample and one with a single number: that is the target."""
    if len(arrays) != 2:
        return None
    single = [name for name, value in arrays.items() if value.ndim and value[:1].numel() == 1]
    if len(single) != 1:
        return None
    return next(name for name in arrays if name != single[0]), single[0]


def _require_equal_rows(parts: Mapping[str, Tensor], shown: str) -> None:
    rows = {name: len(value) if value.ndim else 0 for name, value in parts.items()}
    if len(set(rows.values())) != 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        raise InputError(
            f"the arrays of {shown} differ in length ({listed}): every one needs a row for every sample"
        )
    if not next(iter(rows.values())):
        raise InputError(
            f"the arrays of {shown} have no rows: there is nothing to measure the loss on"
        )


def _scaled(name: str, value: Tensor, say: Say) -> Tensor:
    """Inputs: pictures of bytes become numbers from 0 to 1, other whole numbers int64."""
    if value.dtype == torch.uint8 and value.ndim >= 3 and "mask" not in name:
        say(f"scaled {name!r} from whole numbers 0…255 to 0…1, as pictures are")
        return value.float() / 255
    return _indices(value)


def _indices(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.long()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].removesuffix(".") or type(error).__name__
