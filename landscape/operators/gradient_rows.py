"""Gradients kept as the rows of a matrix, and read by columns."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from landscape.errors import InputError

PIECE = 2**19  # numbers of a piece that is worked on in float64: what caches hold


class Rows:
    """m gradients of length P, the rows of G (m, P), in the memory of any device or in a file.

    Args:
        matrix: G, a floating-point tensor (m, P); it is taken over, and copied only where it cannot be
            written to by rows (an expanded one, or one made in inference mode).
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
        if matrix.is_inference() or 0 in matrix.stride():
            with torch.inference_mode(False):
                matrix = matrix.clone(memory_format=torch.contiguous_format)
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
            InputError: they have other shapes or dtypes; nothing has changed then.
        """
        for name, kept in self.state().items():
            found = state.get(name)
            if found is None or (found.shape, found.dtype) != (kept.shape, kept.dtype):
                seen = "nothing" if found is None else f"{tuple(found.shape)} in {found.dtype}"
                raise InputError(
                    f"the state has {seen} as {name!r}, and {tuple(kept.shape)} in {kept.dtype} is needed"
                )
        for name, kept in self.state().items():
            kept.copy_(state[name])

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
    require_finite(lower.diagonal())
    return lower + lower.tril(-1).T


def require_finite(squares: Tensor) -> None:
    """Refuse gradients that are not finite, by something of each that grows with its square, (…, m).

    Raises:
        InputError: with the number of the first.
    """
    finite = torch.isfinite(squares).reshape(-1, squares.shape[-1])
    if not bool(finite.all()):
        place = int((~finite.all(0)).nonzero()[0])
        raise InputError(
            f"gradient {place} holds a number that is not finite or too large to be squared: leave it out"
        )


def require_row(rows: Rows, gradient: Tensor) -> None:
    """Refuse what cannot be put in the place of one gradient.

    Raises:
        InputError: it is no real tensor (P,), or not finite in the dtype of the rows.
    """
    if not isinstance(gradient, Tensor):
        raise InputError(f"the gradient is a {type(gradient).__name__}: pass a tensor")
    if gradient.shape != rows.shape[1:] or gradient.is_complex():
        raise InputError(
            f"the gradient is {gradient.dtype} of shape {tuple(gradient.shape)}: it must be real, of "
            f"shape ({rows.shape[1]},)"
        )
    if not bool(torch.isfinite(gradient.to(rows.dtype)).all()):
        raise InputError(f"the gradient holds a number that is not finite in {rows.dtype}")


def checked_coefficients(coefficients: Tensor, count: int) -> Tensor:
    """Coefficients (m,) or (m, K) of the gradients, as (m, K) in float64.

    Raises:
        InputError: another shape.
    """
    if coefficients.ndim not in (1, 2) or len(coefficients) != count:
        raise InputError(
            f"the coefficients have shape {tuple(coefficients.shape)}: one for each of the {count} "
            f"gradients is needed, ({count},) or ({count}, K)"
        )
    return coefficients.double().reshape(count, -1)


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
