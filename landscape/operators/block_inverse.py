"""The inverse of the block diagonal of λI + GᵀG/m, for blocks of consecutive parameters."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.operators.gradient_rows import PIECE, Rows, require_finite
from landscape.operators.gram_inverse import inverse_logdet, inverse_trace


class BlockInverse:
    """F_b⁻¹ of F_b = λI + G_bᵀG_b/m for every block b of B consecutive parameters, and every λ.

    The blocks are independent problems, so this is the inverse of another matrix than F: of its block
    diagonal. Each is decomposed in the smaller of two forms, G_bᵀG_b (B × B) where B < m, in O(PmB), or
    G_bG_bᵀ (m × m), in O(Pm²).
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
        self.gram = torch.zeros(
            self.count, self.count, dtype=torch.float64, device=self.rows.device
        )
        for run, _, piece in self._runs():
            products = piece @ piece.mT
            require_finite(products)
            self.gram += products.sum(0)
            values, self.basis[run] = torch.linalg.eigh(
                piece.mT @ piece if self.explicit else products
            )
            self.values[run] = values.clamp_min(0)

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

    def _scaled(self, run: slice, block: Tensor, factors: Tensor) -> Tensor:
        basis = self.basis[run]
        return basis @ (basis.mT @ block * factors[run, :, None])

    def product(self, block: Tensor, damping: float) -> Tensor:
        """F⁻¹ times a block (P, K), in its dtype."""
        factors, result = self._factors(damping), torch.empty_like(block)
        for run, place, piece in self._runs():
            x = F.pad(block[place].to(piece), (0, 0, 0, self._missing(run, place)))
            x = x.view(-1, self.size, block.shape[1])
            if self.explicit:
                found = self._scaled(run, x, factors)
            else:
                found = (x - piece.mT @ self._scaled(run, piece @ x, factors)) / damping
            result[place] = found.flatten(0, 1)[: place.stop - place.start].to(result)
        return result

    def span(self, coefficients: Tensor, damping: float) -> Tensor:
        """F⁻¹Gᵀc for coefficients (m, K)."""
        factors = self._factors(damping)
        parts = []
        for run, place, piece in self._runs():
            if self.explicit:
                found = self._scaled(run, piece.mT @ coefficients, factors)
            else:
                found = self.count * (piece.mT @ self._scaled(run, coefficients, factors))
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

    def prepare_entries(self) -> None:
        """Keep what makes an entry cost O(m) at every λ."""
        if not self.explicit and self.rotated is None:
            parts = [self.basis[run].mT @ piece for run, _, piece in self._runs()]
            self.rotated = torch.cat(parts).transpose(1, 2).flatten(0, 1)  # (P, m)

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
