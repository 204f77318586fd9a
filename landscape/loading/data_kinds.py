"""What kind of data file is this? Told from its content; only tables of text are told by their ending."""

import zipfile
from pathlib import Path
from typing import Literal

from landscape.errors import InputError
from landscape.loading.container import require_honest_zip
from landscape.loading.kinds import UNOPENED, Foreign, is_safetensors, refuse

Kind = Literal["npz", "torch", "safetensors", "parquet", "table", "text", "images"]
WORDS: dict[Kind, str] = {
    "npz": "an .npz file",
    "torch": "a file of torch.save",
    "safetensors": "a safetensors file",
    "parquet": "a Parquet table",
    "table": "a table",
    "text": "a text",
    "images": "a folder of images",
}

_AS_MODEL = "give it as MODEL"
_FOLDER = "give the folder that holds one folder of pictures per class"
_NO_DATA: tuple[Foreign, ...] = (
    (
        b"\x93NUMPY",
        "a single NumPy array",
        "save inputs and targets together with numpy.savez(file, inputs=…, targets=…)",
    ),
    (
        b"\x89HDF",
        "an HDF5 file, which is not read here",
        "save its arrays with numpy.savez(file, inputs=…, targets=…)",
    ),
    (b"GGUF", "a model in the GGUF format, not data", "give data that the model was trained on"),
    (b"\x89PNG", "a single picture", _FOLDER),
    (b"\xff\xd8\xff", "a single picture", _FOLDER),
    (b"%PDF", "a PDF document, not data", "give a table, arrays, a text or a folder of images"),
)


def kind_of(path: Path) -> Kind:
    """Tell which reader a file or folder is for, from its first bytes and, in a zip, its members.

    Raises:
        InputError: there is no such file, it is empty or cannot be read, or it is of no kind that holds
            data.
    """
    shown = repr(str(path))
    try:
        if path.is_dir():
            return "images"
        if not path.exists():
            raise InputError(f"there is no file {shown}: check the path")
        if not path.is_file():
            raise InputError(
                f"{shown} is neither a file nor a folder: copy its content into a file"
            )
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror}): check the path") from error
    if not head:
        raise InputError(f"{shown} is empty: copy or save it again")
    refuse(UNOPENED + _NO_DATA, head, shown)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _kind_of_zip(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if is_safetensors(head, path):
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"  # the format of torch before 1.6, and every other pickle
    if path.suffix.lower() in (".csv", ".tsv"):
        return "table"
    if b"\0" in head:
        raise InputError(
            f"{shown} is a binary file of an unknown kind (it begins with {head[:8]!r}): give .npz, .pt, "
            ".safetensors, .csv, .tsv, .parquet, UTF-8 text or a folder of images"
        )
    if path.suffix.lower() in (".npz", ".pt", ".pth", ".safetensors", ".parquet"):
        raise InputError(
            f"{shown} is no {path.suffix} file (it begins with {head[:8]!r}): copy or save it again"
        )
    return "text"


def _kind_of_zip(path: Path) -> Kind:
    require_honest_zip(path, stored=False)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] for name in names}  # torch puts everything into one folder
    shown = repr(str(path))
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        raise InputError(f"{shown} is a TorchScript model, not data: {_AS_MODEL}")
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        raise InputError(f"{shown} is an exported program, not data: {_AS_MODEL}")
    if "data.pkl" in inner:
        return "torch"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    raise InputError(
        f"{shown} is a zip archive without arrays (members: {', '.join(names[:3]) or 'none'}): unpack "
        "it, or save arrays with numpy.savez(file, inputs=…, targets=…)"
    )
