"""Is this zip what it says: whole, without tricks, and small enough to unpack?"""

import io
import zipfile
from pathlib import Path

from landscape.errors import InputError
from landscape.memory import available_bytes
from landscape.numerals import memory


def zip_members(path: Path | bytes, name: str | None = None) -> list[zipfile.ZipInfo]:
    """The directory of a zip that is whole.

    Raises:
        InputError: the directory is missing or damaged, or belongs to a zip inside a truncated one.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(path) if isinstance(path, bytes) else path) as archive:
            members = archive.infolist()
        if members and all(member.header_offset for member in members):
            raise zipfile.BadZipFile("its directory does not begin with the file")
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise InputError(
            f"{(name or str(path))!r} is a damaged or truncated zip file ({error}): copy it again"
        ) from error
    return members


def require_honest_zip(path: Path | bytes, *, stored: bool, name: str | None = None) -> None:
    """Refuse a zip that is damaged, hides members, or would not fit in memory.

    Args:
        path: the file, or its content.
        stored: whether its members must lie there uncompressed, as torch writes them; together they can
            then not be larger than the file.
        name: what to call it in messages (default: the path).

    Raises:
        InputError: the directory is damaged, a member stands there twice or is compressed against the
            rule, or the members declare more bytes than the file or half of the memory holds.
    """
    shown = repr(name or str(path))
    size = len(path) if isinstance(path, bytes) else path.stat().st_size
    members = zip_members(path, name)
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{shown} holds two members named {twice!r}: it is not opened")
    declared = sum(member.file_size for member in members)
    if stored:
        packed = next((m.filename for m in members if m.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise InputError(
                f"the member {packed!r} of {shown} is compressed, which torch never does: "
                "open it where it came from and save it again with torch.save"
            )
        if declared > size:
            raise InputError(
                f"{shown} declares {memory(declared)} of contents in a file of {memory(size)}: "
                "it is damaged or made to exhaust memory"
            )
    room = available_bytes() // 2
    if declared > room:
        raise InputError(
            f"{shown} unpacks to {memory(declared)}, more than half of the free memory "
            f"({memory(room)}): use a larger machine or a part of the data"
        )
