"""What kind of file is this? Told from its content, never from its name."""

import json
import tarfile
from pathlib import Path
from typing import Literal

from landscape.errors import InputError
from landscape.loading.container import zip_members

Kind = Literal[
    "saved", "legacy-saved", "pickle", "torchscript", "program", "safetensors", "index", "folder"
]
WORDS: dict[Kind, str] = {
    "saved": "file of torch.save",
    "legacy-saved": "file of torch.save in its format before 2020",
    "pickle": "bare pickle",
    "torchscript": "TorchScript archive",
    "program": "exported program (torch.export)",
    "safetensors": "safetensors file",
    "index": "index of weights in several files",
    "folder": "Hugging Face model folder",
}

Foreign = tuple[bytes, str, str]  # first bytes, what the file is, what to do

# Files that hold neither a model nor data, whatever they were given for.
UNOPENED: tuple[Foreign, ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
)
_NO_MODELS: tuple[Foreign, ...] = (
    (b"\x89HDF", "an HDF5 file, as Keras writes", "convert the weights to safetensors"),
    (b"GGUF", "a GGUF file of quantised weights", "use the original weights"),
    (b"\x93NUMPY", "a NumPy array", "give the model here and arrays with --data"),
    (b"PAR1", "a Parquet table", "give the model here and the table with --data"),
    (b"%PDF", "a PDF document", "give the model file"),
    (b"\x89PNG", "a picture", "give the model file"),
    (b"\xff\xd8\xff", "a picture", "give the model file"),
    (b"<!DOCTYPE", "a web page, not the file it stands for", "download the file itself"),
    (b"<!doctype", "a web page, not the file it stands for", "download the file itself"),
    (b"<html", "a web page, not the file it stands for", "download the file itself"),
)


def refuse(foreign: tuple[Foreign, ...], start: bytes, shown: str) -> None:
    """Refuse a file that begins like one of these.

    Raises:
        InputError: it does; the sentence says what it is and what to do.
    """
    for magic, what, advice in foreign:
        if start.startswith(magic):
            raise InputError(f"{shown} is {what}: {advice}")


def is_safetensors(start: bytes, path: Path) -> bool:
    """Whether a file begins with the length of a JSON header, as safetensors do.

    The first byte of that length may be any, that of a pickle too, so this is to be asked first.

    Raises:
        InputError: it does, and the header would be longer than the file.
    """
    if start[8:9] not in (b"{", b"") or b"\0" not in start[:8]:  # no text holds NULs
        return False
    header, size = int.from_bytes(start[:8], "little"), path.stat().st_size
    if header + 8 > size and start[:1] == b"\x80":
        return False
    if header + 8 > size:
        raise InputError(
            f"{str(path)!r} is a truncated safetensors file: its header should take {header:,} bytes, and "
            f"the file has {size:,}; copy it again"
        )
    return True


def sniff(path: Path) -> Kind:
    """The kind of a model file or folder.

    Raises:
        InputError: there is nothing there, or it is no kind of model that can be opened.
    """
    if path.is_dir():
        return _sniff_folder(path)
    if path.exists() and not path.is_file():
        raise InputError(
            f"{str(path)!r} is neither a file nor a folder: copy its content into a file"
        )
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {str(path)!r}") from error
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    if not start:
        raise InputError(f"{str(path)!r} is empty: copy or save it again")
    refuse(UNOPENED + _NO_MODELS, start, repr(str(path)))
    if start.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if is_safetensors(start, path):
        return "safetensors"
    if start[:1] == b"\x80":  # a pickle; torch's older format opens with a certain number
        return "legacy-saved" if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in start[:16] else "pickle"
    if start.lstrip()[:1] == b"{" and "weight_map" in read_json(path):
        return "index"
    if tarfile.is_tarfile(path):
        raise InputError(
            f"{str(path)!r} is a tar file; torch's tar format of 2016 is only opened by running its "
            "pickles: save the weights again with a newer torch"
        )
    raise InputError(
        f"{str(path)!r} is no kind of model file that is known here (its first bytes are "
        f"{start[:8]!r}): give a problem archive, weights (.pt, .safetensors), a .pt2 program, a "
        "TorchScript archive or a Hugging Face folder"
    )


def _sniff_folder(path: Path) -> Kind:
    if (path / "config.json").is_file():
        return "folder"
    models = sorted(p.name for p in path.glob("*") if p.suffix in (".pt", ".pth", ".safetensors"))
    hint = f"name one of its files: {', '.join(models[:5])}" if models else "name a model file"
    raise InputError(f"{str(path)!r} is a folder without config.json, not a model: {hint}")


def _sniff_zip(path: Path) -> Kind:
    names = [member.filename for member in zip_members(path)]
    inner = {name.partition("/")[2] for name in names}  # below the one top folder
    if "archive_format" in inner:
        return "program"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if ".data/python_version" in inner:
        raise InputError(
            f"{str(path)!r} is a torch.package archive, which holds code: save the state dict instead"
        )
    if "data.pkl" in inner:
        return "saved"
    if "serialized_exported_program.json" in names:
        raise InputError(
            f"{str(path)!r} is a program exported by a torch before 2.8: export it again with this one"
        )
    if names and all(name.endswith(".npy") for name in names):
        raise InputError(f"{str(path)!r} holds arrays, not a model: give it with --data")
    raise InputError(
        f"{str(path)!r} is a zip file that holds no model ({', '.join(names[:3]) or 'nothing'})"
    )


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        InputError: the file is missing, too large to be a description, or no JSON object.
    """
    try:
        if path.stat().st_size > 100e6:
            raise InputError(f"{str(path)!r} is too large ({path.stat().st_size:,} bytes) for JSON")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r} holds a JSON {type(found).__name__}, not an object")
    return found
