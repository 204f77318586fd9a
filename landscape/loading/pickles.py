"""What a pickle would ask of its reader, told from its instructions without following them.

torch's restricted reader runs no code of a file, but a few hundred bytes can make it allocate or hash
without end.
"""

import contextlib
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from landscape.errors import InputError

_DEEPEST = 20  # of tuples in tuples; hashing one that holds itself twice takes 2^depth steps


def require_modest_pickles(path: Path, *, legacy: bool) -> None:
    """Refuse a file of `torch.save` that asks for blocks of bytes, or nests tuples deeply.

    Args:
        path: the file.
        legacy: whether it is of torch's format before 2020: five pickles, one after the other.

    Raises:
        InputError: it does, or its instructions cannot be read.
    """
    try:
        for stream in _pickles(path, legacy):
            _require_modest(stream, path)
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot read {str(path)!r}: its pickle is damaged ({reason})") from error


def _pickles(path: Path, legacy: bool) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        if legacy:
            file = stack.enter_context(path.open("rb"))
            for _ in range(5):
                yield file
            return
        archive = stack.enter_context(zipfile.ZipFile(path))
        for name in archive.namelist():
            if name.partition("/")[2] == "data.pkl":
                with archive.open(name) as member:
                    yield member


def _require_modest(stream: IO[bytes], path: Path) -> None:
    """Follow only how deeply tuples are nested: every value stands for that number."""
    mark = object()
    stack: list[Any] = []
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name == "GLOBAL" and str(argument).endswith("bytearray"):
            raise InputError(f"{str(path)!r} asks for a block of bytes, as no weights or data do")
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
            continue
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        if name == "MARK":
            stack.append(mark)
            continue
        taken = []
        if pickletools.markobject in opcode.stack_before:
            while (top := stack.pop()) is not mark:
                taken.append(top)
            # What stands below the mark is changed in place, not replaced.
            below = opcode.stack_before.index(pickletools.markobject)
            taken += [stack.pop() for _ in range(below)]
        else:
            taken += [stack.pop() for _ in opcode.stack_before]
        depth = 1 + max(taken, default=0) if name.startswith("TUPLE") else 0
        if depth > _DEEPEST:
            raise InputError(f"{str(path)!r} nests tuples {depth} deep, as no weights or data do")
        stack += [depth] * len(opcode.stack_after)
