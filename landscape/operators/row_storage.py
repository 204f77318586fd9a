"""Room for gradients: on a device, in the host's memory or in a file, whole or sparse."""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch

from landscape.errors import InputError
from landscape.memory import available_bytes
from landscape.operators.gradient_rows import Rows, SplitRows
from landscape.operators.products.plan import Memory
from landscape.operators.sparse_rows import SparseRows

Storage = Literal["auto", "device", "cpu", "file", "sparse"]


@torch.inference_mode(False)  # rows are written to later
def allocate(
    count: int,
    size: int,
    *,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    storage: Storage = "auto",
    memory: Memory = "auto",
) -> Rows:
    """Room for gradients (m, P).

    Args:
        count, size: m and P.
        dtype: of what is kept.
        devices: that work on the gradients; the columns are split over them.
        storage: "device", "cpu" (pages travel to the device), "file" (a temporary one, mapped into memory,
            gone with the object), "sparse" (see `SparseRows`), or "auto": the first of the first three
            that has room.
        memory: bytes that the gradients may take on a device; "auto" is half of what is free.

    Raises:
        InputError: an unknown storage or dtype, no number of bytes, or a disk without room.
    """
    if storage not in ("auto", "device", "cpu", "file", "sparse"):
        raise InputError(
            f"storage is {storage!r}: choose 'auto', 'device', 'cpu', 'file' or 'sparse'"
        )
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"gradients cannot be kept in {dtype!r}: choose a floating-point type")
    if memory != "auto" and not (isinstance(memory, int) and memory >= 0):
        raise InputError(f"memory is {memory!r}: give a number of bytes, or 'auto'")
    devices = list(devices)[:size]  # a column each at least
    cuts = [size * i // len(devices) for i in range(len(devices) + 1)]

    def place(width: int, device: torch.device) -> Storage:
        if storage != "auto":
            return storage
        needed = count * width * dtype.itemsize * devices.count(device)
        if needed <= (available_bytes(device) // 2 if memory == "auto" else memory):
            return "device"
        whole = count * size * dtype.itemsize  # the others may come to the host as well
        fits = device.type != "cpu" and whole <= available_bytes() // 2
        return "cpu" if fits else "file"

    parts = [
        _part(count, stop - start, dtype, device, place(stop - start, device))
        for (start, stop), device in zip(pairwise(cuts), devices, strict=True)
    ]
    return parts[0] if len(parts) == 1 else SplitRows(parts)


def _part(
    count: int, size: int, dtype: torch.dtype, device: torch.device, storage: Storage
) -> Rows:
    if storage == "sparse":
        return SparseRows(count, size, dtype=dtype, device=device)
    if storage == "file":
        return _in_file(count, size, dtype, device)
    where = device if storage == "device" else torch.device("cpu")
    return Rows(torch.zeros(count, size, dtype=dtype, device=where), device)


def _in_file(count: int, size: int, dtype: torch.dtype, device: torch.device) -> Rows:
    needed = count * size * dtype.itemsize
    handle, path = tempfile.mkstemp(prefix="landscape-gradients-")
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk would end the process later
            os.posix_fallocate(handle, 0, needed)
        matrix = torch.from_file(path, shared=True, size=count * size, dtype=dtype)
    except OSError as error:
        os.unlink(path)
        raise InputError(
            f"{count:,} gradients take {needed:,} bytes, and {tempfile.gettempdir()!r} has no room for "
            f"them ({error.strerror}): set TMPDIR to a larger disk, or ask for fewer"
        ) from error
    finally:
        os.close(handle)
    rows = Rows(matrix.view(count, size), device)
    try:
        os.unlink(path)  # what is mapped stays until it is let go
    except OSError:  # Windows keeps files that are in use
        weakref.finalize(rows, _remove, path)
    return rows


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
