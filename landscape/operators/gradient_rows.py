"""Gradients kept as the rows of a matrix, and read by columns."""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.memory import available_bytes
from landscape.operators.products.plan import Memory

PIECE = 2**19  # numbers of a piece that is worked on in float64: what caches hold
Storage = Literal["auto", "device", "cpu", "file", "sparse"]


class Rows:
    """m gradients of length P, the rows of G (m, P), in the memory of any device or in a file.

    Args:
        matrix: G, a floating-point tensor (m, P); it is taken over, not copied.
        device: where its pieces are delivered (default: where it lies).

    Raises:
        InputError: another shape, or no floating-point type.
    """

    def __init__(self, matrix: Tensor, device: torch.device | None = None) -> None:
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not matrix.numel():
            shape = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise InputError(f"the gradients are {shape}: pass a tensor (m, P), a gradient per row")
        if not matrix.is_floating_point():
            raise InputError(f"the gradients are {matrix.dtype}: pass floating-point numbers")
        self._matrix = matrix.detach()
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype
        self.device = matrix.device if device is None else device

    def columns(self, where: slice | Tensor) -> Tensor:
        """Some columns in float64, (m, k): a slice, or positions (k,)."""
        if isinstance(where, Tensor):
            where = where.to(self._matrix.device)
        return self._matrix[:, where].to(self.device).double()

    def row(self, i: int) -> Tensor:
        """Gradient i in float64, (P,)."""
        return self._matrix[i].to(self.device).double()

    def put(self, start: int, block: Tensor) -> None:
        """Put gradients (k, P) in the places of rows start, start + 1, …"""
        self._matrix[start : start + len(block)] = block.to(self._matrix)

    def replace(self, i: int, gradient: Tensor) -> None:
        """Put a gradient (P,) in the place of row i."""
        self.put(i, gradient[None])

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """All columns in float64, piece by piece, each with its place."""
        count, size = self.shape
        width = max(1, PIECE // count)
        for start in range(0, size, width):
            where = slice(start, min(start + width, size))
            yield where, self.columns(where)

    def state(self) -> dict[str, Tensor]:
        """The tensors that are kept, themselves."""
        return {"rows": self._matrix}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the values of such tensors in the place of those kept.

        Raises:
            InputError: they have other shapes.
        """
        for name, kept in self.state().items():
            found = state.get(name)
            if found is None or found.shape != kept.shape:
                raise InputError(
                    f"the state has {name!r} of shape {None if found is None else tuple(found.shape)}, "
                    f"and {tuple(kept.shape)} is needed"
                )
            kept.copy_(found)

    def parts(self) -> "list[tuple[int, Rows]]":
        """The rows by the device that works on them, each part with the place of its first column."""
        return [(0, self)]


class SplitRows(Rows):
    """Rows whose columns are split over several devices; the first one gathers.

    Args:
        parts: consecutive columns, each with the same number of rows.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts, start = [], 0
        for part in parts:
            self._parts.append((start, part))
            start += part.shape[1]
        self.shape = (parts[0].shape[0], start)
        self.dtype, self.device = parts[0].dtype, parts[0].device

    def parts(self) -> list[tuple[int, Rows]]:
        return self._parts

    def columns(self, where: slice | Tensor) -> Tensor:
        if isinstance(where, slice):
            first, last, _ = where.indices(self.shape[1])
            pieces = [
                part.columns(slice(max(first - start, 0), max(last - start, 0))).to(self.device)
                for start, part in self._parts
            ]
            return torch.cat(pieces, dim=1)
        result = torch.empty(self.shape[0], len(where), dtype=torch.float64, device=self.device)
        for start, part in self._parts:
            mine = (where >= start) & (where < start + part.shape[1])
            result[:, mine] = part.columns(where[mine] - start).to(self.device)
        return result

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{k}": tensor
            for k, (_, part) in enumerate(self._parts)
            for name, tensor in part.state().items()
        }

    def row(self, i: int) -> Tensor:
        return torch.cat([part.row(i).to(self.device) for _, part in self._parts])

    def put(self, start: int, block: Tensor) -> None:
        for place, part in self._parts:
            part.put(start, block[:, place : place + part.shape[1]])


def gram(rows: Rows) -> Tensor:
    """GGᵀ, (m, m) in float64: products of float32 numbers are exact there."""
    count = rows.shape[0]

    def add(total: Tensor, where: slice, piece: Tensor) -> None:
        for start in range(0, count, 128):  # the lower half only
            stop = min(start + 128, count)
            total[start:, start:stop].addmm_(piece[start:], piece[start:stop].T)

    lower = accumulated(rows, count, add).tril()
    require_finite(lower)
    return lower + lower.tril(-1).T


def require_finite(products: Tensor) -> None:
    """Refuse gradients that are not finite, by their products (…, m, m).

    Raises:
        InputError: with the number of the first.
    """
    finite = torch.isfinite(products.diagonal(dim1=-2, dim2=-1)).reshape(-1, products.shape[-1])
    if not bool(finite.all()):
        place = int((~finite.all(0)).nonzero()[0])
        raise InputError(f"gradient {place} holds a number that is not finite: leave it out")


def times(rows: Rows, block: Tensor) -> Tensor:
    """G times a block (P, K), in float64."""

    def add(total: Tensor, where: slice, piece: Tensor) -> None:
        total.addmm_(piece, block[where].to(piece))

    return accumulated(rows, block.shape[1], add)


def combined(rows: Rows, weights: Tensor) -> Tensor:
    """Gᵀ times weights (m, K), in float64."""
    return by_columns(rows, weights.shape[1], lambda where, piece: spread(piece, weights))


def spread(piece: Tensor, weights: Tensor) -> Tensor:
    """Gᵀ times weights (m, K) for some columns of G, in the order of factors that is faster."""
    return (weights.to(piece).T @ piece).T


def accumulated(
    rows: Rows,
    width: int,
    add: Callable[[Tensor, slice, Tensor], None],
    *,
    height: int | None = None,
) -> Tensor:
    """A sum over all columns, (m or `height`, width): every device adds up its own, and the first all.

    Args:
        rows: the gradients.
        width, height: of the sum.
        add: adds to a sum what comes of the columns at a place, given in float64.
    """
    totals = []
    for start, part in rows.parts():
        shape = (rows.shape[0] if height is None else height, width)
        total = torch.zeros(shape, dtype=torch.float64, device=part.device)
        for where, piece in part.pieces():
            add(total, slice(where.start + start, where.stop + start), piece)
        totals.append(total)
    first, *others = totals
    for total in others:
        first += total.to(first.device)
    return first


def by_columns(
    rows: Rows,
    width: int,
    formula: Callable[[slice, Tensor], Tensor],
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """What a formula gives for the columns at every place, (P, width), on the first device.

    Args:
        rows: the gradients.
        width: of the result.
        formula: from a place and the columns there, (m, k) in float64, to (k, width).
        dtype: of the result.
    """
    result = torch.empty(rows.shape[1], width, dtype=dtype, device=rows.device)
    for start, part in rows.parts():
        for where, piece in part.pieces():
            place = slice(where.start + start, where.stop + start)
            result[place] = formula(place, piece).to(result)
    return result


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
        InputError: an unknown storage, or a disk without room.
    """
    if storage not in ("auto", "device", "cpu", "file", "sparse"):
        raise InputError(
            f"storage is {storage!r}: choose 'auto', 'device', 'cpu', 'file' or 'sparse'"
        )
    if not dtype.is_floating_point:
        raise InputError(f"gradients cannot be kept in {dtype}: choose a floating-point type")
    if len(devices) > 1:
        cuts = [size * i // len(devices) for i in range(len(devices) + 1)]
        return SplitRows(
            [
                allocate(
                    count,
                    stop - start,
                    dtype=dtype,
                    devices=[device],
                    storage=storage,
                    memory=memory,
                )
                for start, stop, device in zip(cuts, cuts[1:], devices, strict=False)
            ]
        )
    (device,) = devices
    if storage == "sparse":
        from landscape.operators.sparse_rows import SparseRows

        return SparseRows(count, size, dtype=dtype, device=device)
    needed = count * size * dtype.itemsize
    if storage == "auto":
        storage = "file"
        if needed <= (available_bytes(device) // 2 if memory == "auto" else memory):
            storage = "device"
        elif device.type != "cpu" and needed <= available_bytes() // 2:
            storage = "cpu"
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
