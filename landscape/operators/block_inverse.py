"""The inverse of the block diagonal of λI + GᵀG/m, for blocks of consecutive parameters."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.operators.gradient_rows import PIECE, Rows, gram, require_finite
from landscape.operators.gram_inverse import inverse_logdet, inverse_trace
from landscape.operators.span_split import loses_digits, pseudo_inverse, scaled, split


class BlockInverse:
    """F_b⁻¹ of F_b = λI + G_bᵀG_b/m for every block b of B consecutive parameters, and every λ.

    The blocks are independent problems, so this is the inverse of another matrix than F: of its block
    diagonal. Each is decomposed in the smaller of two forms, G_bᵀG_b (B × B) where B < m, in O(PmB), or
    G_bG_bᵀ (m × m), in O(Pm²). One block at least is worked on as a whole, in 8mB bytes.
    """

    def __init__(self, rows: Rows, block_size: int) -> None:
        self.rows, self.size = rows, block_size
        self.count = rows.shape[0]
        self.explicit = block_size < self.count
        self.blocks = -(-rows.shape[1] // block_size)
        order, device = min(block_size, self.count), rows.device
        self.values = torch.empty(self.blocks, order, dtype=torch.float64, device=device)
        self.basis = torch.empty(self.blocks, order, order, dtype=torch.float64, device=device)
        self._decompose()

    def _decompose(self) -> None:
        self.rotated: Tensor | None = None  # QᵀG of every block, where entries are prepared
        for run, _, piece in self._runs():
            require_finite(piece.square().sum(-1))
            matrix = piece.mT @ piece if self.explicit else piece @ piece.mT
            values, self.basis[run] = torch.linalg.eigh(matrix)
            self.values[run] = values.clamp_min(0)
        self._largest = float(self.values.max())

    @property
    def gram(self) -> Tensor:
        return gram(self.rows)

    def _runs(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Some blocks at a time: which, the columns they take, and those, padded, as (blocks, m, B)."""
        at_once = max(1, PIECE // (self.count * self.size))
        for first in range(0, self.blocks, at_once):
            run = slice(first, min(first + at_once, self.blocks))
            place = slice(run.start * self.size, min(run.stop * self.size, self.rows.shape[1]))
            padded = F.pad(self.rows.columns(place), (0, self._missing(run, place)))
            yield run, place, padded.view(self.count, -1, self.size).transpose(0, 1)

    def _missing(self, run: slice, place: slice) -> int:
        return (run.stop - run.start) * self.size - (place.stop - place.start)

    def replace(self, i: int, gradient: Tensor) -> None:
        """Put another gradient (P,) in the place of the i-th."""
        self.rows.replace(i, gradient)
        self._decompose()

    def _factors(self, damping: float) -> Tensor:
        """Eigenvalues of F_b⁻¹, or of (mλI + G_bG_bᵀ)⁻¹, (blocks, order)."""
        if self.explicit:
            return 1 / (damping + self.values / self.count)
        return 1 / (self.values + self.count * damping)

    def product(self, block: Tensor, damping: float) -> Tensor:
        """F⁻¹ times a block (P, K), in its dtype."""
        factors, result = self._factors(damping), torch.empty_like(block)
        cancels = loses_digits(self._largest, self.count * damping, block.dtype)
        for run, place, piece in self._runs():
            x = F.pad(block[place].to(piece), (0, 0, 0, self._missing(run, place)))
            x = x.view(-1, self.size, block.shape[1])
            basis = self.basis[run]
            if self.explicit:
                found = scaled(basis, factors[run], x)
            elif cancels:
                found = self._split(piece, x, basis, self.values[run], damping)
            else:
                found = (x - piece.mT @ scaled(basis, factors[run], piece @ x)) / damping
            result[place] = found.flatten(0, 1)[: place.stop - place.start].to(result)
        return result

    @staticmethod
    def _split(piece: Tensor, x: Tensor, basis: Tensor, values: Tensor, damping: float) -> Tensor:
        c = scaled(basis, pseudo_inverse(values), piece @ x)
        rest = x - piece.mT @ c
        squares = [t.square().sum(1, keepdim=True) for t in (rest, x)]
        lengths = piece.square().sum(-1).sqrt()
        kept, weights = split(basis, values, damping, lengths, c, piece @ rest, *squares)
        return x * kept + piece.mT @ weights

    def span(self, coefficients: Tensor, damping: float) -> Tensor:
        """F⁻¹Gᵀc for coefficients (m, K)."""
        factors = self._factors(damping)
        parts = []
        for run, place, piece in self._runs():
            if self.explicit:
                found = scaled(self.basis[run], factors[run], piece.mT @ coefficients)
            else:
                inner = scaled(self.basis[run], factors[run], coefficients)
                found = self.count * (piece.mT @ inner)
            parts.append(found.flatten(0, 1)[: place.stop - place.start])
        return torch.cat(parts)

    def diagonal(self, damping: float) -> Tensor:
        """The diagonal of F⁻¹, (P,)."""
        factors = self._factors(damping)
        if self.explicit:
            return (self.basis.square() @ factors[:, :, None]).reshape(-1)[: self.rows.shape[1]]
        parts = []
        for run, place, piece in self._runs():
            rotated = self.basis[run].mT @ piece
            inner = (rotated.square() * factors[run, :, None]).sum(1)
            parts.append((1 - inner.reshape(-1)[: place.stop - place.start]) / damping)
        return torch.cat(parts)

    @property
    def entry_bytes(self) -> int:
        """What `prepare_entries` would add."""
        prepared = self.explicit or self.rotated is not None
        return 0 if prepared else 8 * self.count * self.rows.shape[1]

    def prepare_entries(self) -> None:
        """Keep what makes an entry cost O(m) at every λ."""
        if self.entry_bytes:
            self.rotated = self.basis.new_empty(self.rows.shape[1], self.count)
            for run, place, piece in self._runs():
                rotated = (piece.mT @ self.basis[run]).flatten(0, 1)
                self.rotated[place] = rotated[: place.stop - place.start]

    def entries(self, i: Tensor, j: Tensor, damping: float) -> Tensor:
        """[F⁻¹]_ij for positions (k,) and (k,)."""
        factors = self._factors(damping)[i // self.size]
        if self.explicit:
            left = self.basis[i // self.size, i % self.size]
            right = self.basis[j // self.size, j % self.size]
            found = (left * right * factors).sum(1)
        else:
            inner = (self._rotated(i) * self._rotated(j) * factors).sum(1)
            found = ((i == j).double() - inner) / damping
        return torch.where(i // self.size == j // self.size, found, 0)

    def _rotated(self, positions: Tensor) -> Tensor:
        """QᵀG at some positions, each with the Q of its block, (k, m)."""
        if self.rotated is not None:
            return self.rotated[positions]
        columns, blocks = self.rows.columns(positions).T, positions // self.size
        result = torch.empty_like(columns)
        for block in blocks.unique():
            mine = blocks == block
            result[mine] = columns[mine] @ self.basis[block]
        return result

    def logdet(self, damping: float) -> float:
        return inverse_logdet(self.values, self.rows, damping)

    def trace(self, damping: float) -> float:
        return inverse_trace(self.values, self.rows, damping)
