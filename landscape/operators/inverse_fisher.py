"""The inverse of a damped Fisher matrix of a few gradients."""

import copy
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.memory import available_bytes
from landscape.operators import sample_gradients
from landscape.operators.base import Operator
from landscape.operators.block_inverse import BlockInverse
from landscape.operators.gradient_rows import Rows, checked_coefficients, require_row
from landscape.operators.gram_inverse import GramInverse, checked_damping
from landscape.operators.products.plan import Memory
from landscape.operators.row_storage import Storage, allocate
from landscape.operators.sample_gradients import Drawn, Per, draw
from landscape.operators.stopwatch import Stopwatch
from landscape.parameters import canonical_device
from landscape.problem import Problem

DEFAULT_COUNT = 256  # gradients


class InverseFisher(Operator):
    """F⁻¹ of F = λI + GᵀG/m, G (m, P) the gradients: an operator, whose every method describes F⁻¹.

    With K = GGᵀ = Q diag(s) Qᵀ, one eigen-decomposition of order m in float64, O(Pm²), serves every vector
    (O(Pm) each), every damping, the diagonal, entries, the determinant and the trace. Nothing is
    approximated: the rounding is that of float64, 1e-16 · s/(mλ) at the worst, s the largest eigenvalue
    of K, and less for what lies in the span of the gradients, which is split off where it would matter (but
    not in blocks smaller than m). (Frantar, Kurtic & Alistarh 2021, arXiv:2107.03356, compute the same
    matrix by the recursions of `StaticMFAC` and `DynamicMFAC`.)

    Args:
        problem: the loss, its model and data.
        gradients: m, how many; default 256, or all there are if they are fewer.
        damping: λ, in the unit of F, loss² / parameter².
        per: "sample": gᵢ is the gradient of a sample's own loss, scaled as in `EmpiricalFisher`, so that
            with all samples F − λI is that matrix; they are drawn at random without replacement. With batch
            statistics in batch normalisation it is that of its loss within its batch. "batch": gᵢ is the
            gradient of the mean over the i-th batch with a loss; with batches of B random samples the
            expectation of gᵢgᵢᵀ is E/B + (1 − 1/B) ∇L∇Lᵀ, E the empirical Fisher matrix.
        block_size: B, to invert the block diagonal of F instead, in independent blocks of B consecutive
            parameters.
        seed: of the draw.
        storage: of the gradients: "device", "cpu" (they travel to the device in pieces), "file" (a temporary
            one, mapped into memory), "sparse" (the largest 1 % of each, on every device of its own columns,
            with error feedback: another matrix, see `SparseRows`), or "auto": the first of the first three
            that has room.
        precision: dtype in which they are kept, by default the problem's; torch.bfloat16 halves float32.
        devices: several, over which the columns of G are split; the first should be the problem's.
        memory: bytes that the gradients may take on a device; "auto" is half of what is free.

    Attributes:
        rows: G, see `Rows`.
        count: m.
        drawn: which samples, and how they were differentiated; None without a problem.

    Raises:
        InputError: m is larger than the data, λ is not positive, a gradient is not finite, or samples are
            asked of a closure.

    Example:
        >>> import torch, landscape as ls
        >>> G = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
        >>> inverse = ls.InverseFisher.from_gradients(G, damping=0.5)
        >>> (7 * (inverse @ torch.ones(3, dtype=torch.float64))).round(decimals=8)
        tensor([5., 2., 8.], dtype=torch.float64)
        >>> round(7 * inverse.trace(), 8)
        23.0
    """

    problem: Problem | None
    drawn: Drawn | None
    _core: GramInverse | BlockInverse

    def __init__(
        self,
        problem: Problem,
        gradients: int | None = None,
        damping: float = 1e-3,
        *,
        per: Per = "sample",
        block_size: int | None = None,
        seed: int = 0,
        storage: Storage = "auto",
        precision: torch.dtype | None = None,
        devices: Sequence[str | torch.device] | None = None,
        memory: Memory = "auto",
    ) -> None:
        if not hasattr(problem, "evaluation"):
            raise InputError(
                f"a {type(problem).__name__} is no problem: pass ls.Problem(model, loss, data), or the "
                "gradients themselves to ls.InverseFisher.from_gradients"
            )
        damping = checked_damping(damping)
        drawn, losses = draw(problem, gradients, per=per, seed=seed, default=DEFAULT_COUNT)
        rows = allocate(
            len(drawn.samples),
            problem.size,
            dtype=precision or problem.dtype,
            devices=[canonical_device(device) for device in devices or [problem.device]],
            storage=storage,
            memory=memory,
        )
        filled = 0

        def keep(block: Tensor) -> None:
            nonlocal filled
            rows.put(filled, block)
            filled += len(block)

        sample_gradients.compute(problem, drawn, losses, keep)
        self._set_up(rows, damping, block_size, problem.dtype)
        self.problem, self.drawn = problem, drawn

    @classmethod
    def from_gradients(
        cls, gradients: Tensor | Rows, damping: float, *, block_size: int | None = None
    ) -> "InverseFisher":
        """F⁻¹ from the gradients themselves.

        Args:
            gradients: G (m, P), which is not copied, or rows in some other storage. The operator has its
                dtype, but float32 where G is narrower.
            damping: λ.
            block_size: see above.
        """
        inverse = cls.__new__(cls)
        rows = gradients if isinstance(gradients, Rows) else Rows(gradients)
        inverse._set_up(rows, damping, block_size, torch.promote_types(rows.dtype, torch.float32))
        return inverse

    def _set_up(
        self, rows: Rows, damping: float, block_size: int | None, dtype: torch.dtype
    ) -> None:
        count, size = rows.shape
        if block_size is not None and not (isinstance(block_size, int) and block_size > 0):
            raise InputError(f"block_size is {block_size!r}: give a whole number, at least 1")
        super().__init__(size, dtype, rows.device)
        self.problem, self.drawn = None, None
        self.rows, self.damping, self.count = rows, checked_damping(damping), count
        self._core = (
            GramInverse(rows)
            if block_size is None or block_size >= size
            else BlockInverse(rows, block_size)
        )

    @property
    def gram(self) -> Tensor:
        """GGᵀ, (m, m) in float64."""
        return self._core.gram

    def with_damping(self, damping: float) -> "InverseFisher":
        """The same with another λ, at no cost; a gradient replaced in one is replaced in both."""
        other = copy.copy(self)
        other.damping = checked_damping(damping)
        other.products, other._clock = 0, Stopwatch(self.device)
        return other

    def replace(self, i: int, gradient: Tensor) -> None:
        """Put another gradient (P,) in the place of the i-th, in O(Pm + m³), of a tensor G in G itself.

        With blocks everything is decomposed anew.
        """
        if not 0 <= i < self.count:
            raise InputError(f"there is no gradient {i}: they run from 0 to {self.count - 1}")
        require_row(self.rows, gradient)
        self._core.replace(i, gradient)

    def span(self, coefficients: Tensor) -> Tensor:
        """F⁻¹Gᵀc for coefficients c (m,) or (m, K): of gradients and their combinations, without cancellation."""
        c = checked_coefficients(coefficients, self.count).to(self.device)
        result = self._core.span(c, self.damping).to(self.dtype)
        return result.reshape(self.shape[0], *coefficients.shape[1:])

    def diagonal(self) -> Tensor:
        """The diagonal of F⁻¹, (P,) in float64, in O(Pm²)."""
        return self._core.diagonal(self.damping)

    def prepare_entries(self) -> None:
        """Make single entries cost O(m) rather than O(m²), at every λ, by O(Pm²) work and 8Pm bytes.

        It lasts until a gradient is replaced. Blocks smaller than m need nothing.

        Raises:
            InputError: there is no memory for it.
        """
        needed = self._core.entry_bytes
        if needed and needed > (free := available_bytes(self.device)):
            raise InputError(
                f"fast entries take {needed:,} bytes and {free:,} are free: ask for entries without "
                "preparing them"
            )
        self._core.prepare_entries()

    @overload
    def entry(self, i: int, j: int) -> float: ...
    @overload
    def entry(self, i: Tensor, j: Tensor) -> Tensor: ...
    def entry(self, i: int | Tensor, j: int | Tensor) -> float | Tensor:
        """[F⁻¹]_ij of two positions, or for positions (k,) and (k,), int64, all of them, (k,) in float64.

        In O(m²) each, O(m) after `prepare_entries`.
        """
        left, right = (torch.as_tensor(p, device=self.device).reshape(-1) for p in (i, j))
        both = torch.cat([left, right])
        if left.shape != right.shape or both.dtype != torch.int64:
            raise InputError(
                "entries are chosen by two numbers, or two int64 tensors of one length"
            )
        if both.numel() and not 0 <= int(both.min()) <= int(both.max()) < self.shape[0]:
            raise InputError(
                f"an entry at {int(both.min())} … {int(both.max())} lies outside: positions run from 0 "
                f"to {self.shape[0] - 1}"
            )
        found = self._core.entries(left, right, self.damping)
        return found if isinstance(i, Tensor) and i.ndim else float(found)

    def logdet(self) -> float:
        """log det F⁻¹."""
        return self._core.logdet(self.damping)

    def trace(self) -> float:
        """tr F⁻¹."""
        return self._core.trace(self.damping)

    def _multiply(self, block: Tensor) -> Tensor:
        return self._core.product(block, self.damping)
