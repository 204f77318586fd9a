"""Gradients of which only the largest entries are kept, the rest being added to the next one."""

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.gradient_rows import Rows

SHARE = 0.01


class SparseRows(Rows):
    """m sparse gradients: what is put in is compressed, with error feedback.

    Of a = e + g the k largest entries are kept, c, and e = a − c is added to the next gradient, so that
    nothing is lost for good. The matrix F of the kept rows is another one than that of the gradients.
    (EFCP: Modoranu, Kalinov, Kurtic, Frantar & Alistarh 2023, arXiv:2306.06098.)

    Args:
        count, size: m and P.
        dtype: of the kept entries.
        device: where everything lies.
        share: of the entries that are kept, k/P.

    Raises:
        InputError: the share is not in (0, 1].
    """

    def __init__(
        self,
        count: int,
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        share: float = SHARE,
    ) -> None:
        if not 0 < share <= 1:
            raise InputError(f"the share of kept entries is {share}: choose one in (0, 1]")
        kept = max(1, round(share * size))
        self.shape, self.dtype, self.device = (count, size), dtype, torch.device(device)
        self.values = torch.zeros(count, kept, dtype=dtype, device=device)
        # Positions ascend within a row; those of a row that was never put in are of no account.
        self.positions = torch.arange(kept, device=device).repeat(count, 1)
        self.error = torch.zeros(
            size, dtype=torch.promote_types(dtype, torch.float32), device=device
        )

    def state(self) -> dict[str, Tensor]:
        return {"values": self.values, "positions": self.positions, "error": self.error}

    def put(self, start: int, block: Tensor) -> None:
        kept = self.values.shape[1]
        for i, gradient in enumerate(block, start):
            self.error += gradient.to(self.error)
            positions = self.error.abs().topk(kept, sorted=False).indices.sort().values
            self.positions[i] = positions
            self.values[i] = self.error[positions].to(self.dtype)
            self.error[positions] -= self.values[i].to(self.error)

    def columns(self, where: slice | Tensor) -> Tensor:
        count, size = self.shape
        if isinstance(where, slice):
            first, last, _ = where.indices(size)
            result = torch.zeros(count, last - first, dtype=torch.float64, device=self.device)
            # The entries of every row that lie in the slice, one after another.
            edges = torch.tensor([[first, last]], device=self.device).repeat(count, 1)
            begin, end = torch.searchsorted(self.positions, edges).unbind(1)
            lengths = end - begin
            rows = torch.repeat_interleave(torch.arange(count, device=self.device), lengths)
            before = lengths.cumsum(0) - lengths
            entries = torch.arange(len(rows), device=self.device) - before[rows] + begin[rows]
            result[rows, self.positions[rows, entries] - first] = self.values[
                rows, entries
            ].double()
            return result
        wanted = where.to(self.device).expand(count, -1).contiguous()
        found = torch.searchsorted(self.positions, wanted).clamp_max(self.positions.shape[1] - 1)
        hit = self.positions.gather(1, found) == wanted
        return self.values.gather(1, found).double() * hit

    def row(self, i: int) -> Tensor:
        result = torch.zeros(self.shape[1], dtype=torch.float64, device=self.device)
        result[self.positions[i]] = self.values[i].double()
        return result
