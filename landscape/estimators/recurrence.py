"""The three-term Lanczos recurrence of several columns at once, each from a vector of its own."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from landscape.checkpoint import State
from landscape.estimators.quadrature import Tridiagonal
from landscape.estimators.sums import dots, norms


@dataclass
class Recurrence:
    """Where the recurrences stand: `q` (p, K) is to be multiplied next.

    A column whose residual vanishes, in proportion to the largest number seen in it or to the given
    `largest`, has found its invariant subspace: it is no longer `alive` and keeps its length.
    """

    q: Tensor
    previous: Tensor
    beta: Tensor  # (K,), and so on
    largest: Tensor
    alive: Tensor
    lengths: Tensor
    diagonals: list[Tensor]
    couplings: list[Tensor]

    @property
    def steps(self) -> int:
        return len(self.diagonals)

    def take(self, w: Tensor, orthogonalize: Callable[[Tensor], None] | None = None) -> None:
        """One step of every column, given w = A q, which is used up."""
        self.lengths = self.lengths + self.alive
        w.addcmul_(self.previous, self.beta, value=-1)
        alpha = dots(self.q, w).to(self.q)
        w.addcmul_(self.q, alpha, value=-1)
        if orthogonalize is not None:
            orthogonalize(w)
        beta = norms(w).to(self.q)
        self.largest = torch.maximum(self.largest, alpha.abs() + beta)
        # Relative to the matrix's own size, never to 1.
        self.alive = self.alive & (beta > 10 * torch.finfo(w.dtype).eps * self.largest)
        self.beta = torch.where(self.alive, beta, 0)
        self.diagonals.append(alpha)
        self.couplings.append(self.beta)
        self.previous, self.q = self.q, w.div_(torch.where(self.alive, beta, torch.inf))

    def tridiagonals(self) -> list[Tridiagonal]:
        """The matrix of every column."""
        alphas, betas = (
            torch.stack(part, dim=1).double().cpu().numpy()
            for part in (self.diagonals, self.couplings)
        )
        return [
            Tridiagonal(alpha[:length], beta[:length])
            for alpha, beta, length in zip(alphas, betas, self.lengths.tolist(), strict=True)
        ]

    def state(self) -> State:
        """What has to be saved to go on later."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def begun(start: Tensor, largest: float = 0.0) -> Recurrence:
    """Recurrences from the columns of a block (p, K)."""
    q = start / norms(start).to(start)
    zero = torch.zeros_like(q[0])
    return Recurrence(
        q=q,
        previous=torch.zeros_like(q),
        beta=zero,
        largest=torch.full_like(zero, largest),
        alive=torch.ones_like(zero, dtype=torch.bool),
        lengths=torch.zeros_like(zero, dtype=torch.int64),
        diagonals=[],
        couplings=[],
    )


def restored(state: State, device: torch.device) -> Recurrence:
    """What goes on from a `state`."""

    def there(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if isinstance(value, list):
            return [part.to(device) for part in value]
        return value.to(device)

    return Recurrence(**{name: there(value) for name, value in state.items()})  # type: ignore[arg-type]
