"""The operator contract: a symmetric matrix that multiplies vectors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError, UntrustedResult
from landscape.operators.products.plan import Plan
from landscape.operators.stopwatch import Stopwatch

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

DENSE_LIMIT = 20_000  # a float64 matrix of this order takes 3.2 GB


class Operator:
    """A real symmetric matrix known by its products `A @ V`, V of shape (P,) or (P, K).

    Subclasses say how to multiply a block (P, K). `products` counts the columns multiplied so
    far and `seconds` the time that took.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (size, size)
        self.dtype = dtype
        self.device = device
        self.products = 0
        self._clock = Stopwatch(device)

    @property
    def seconds(self) -> float:
        """Time spent on products."""
        return self._clock.seconds

    def _multiply(self, block: Tensor) -> Tensor:
        """A times a block of shape (P, K)."""
        raise NotImplementedError

    @property
    def plan(self) -> Plan | None:
        """How products are executed; None where there is no model to differentiate."""
        return None

    def expect(self, products: int, *, width: int = 1) -> None:
        """Announce about how many columns are still to come, so that the fastest way is prepared.

        Args:
            products: columns.
            width: of the widest block among them; the way is then chosen for it from the first.
        """

    def hold(self) -> Plan | None:
        """Stay with the execution that was chosen, whatever is still to come, and tell it.

        Returns:
            What `replay` takes; None where nothing was chosen yet, or there is no model.
        """
        return None

    def replay(self, plan: Plan | Mapping[str, Any]) -> None:
        """Go on as a plan says, to the last bit; nothing where there is no model.

        Raises:
            InputError: the plan is no plan, or for other threads.
        """

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """A times a vector (P,) or a block of column vectors (P, K).

        Raises:
            InputError: shape, dtype or device do not fit.
            UntrustedResult: the product is not finite.
        """
        size = self.shape[0]
        if not isinstance(vectors, Tensor):
            raise InputError(f"operators multiply torch tensors, not {type(vectors).__name__}")
        if vectors.ndim not in (1, 2) or vectors.shape[0] != size:
            raise InputError(
                f"the operator multiplies vectors ({size},) or blocks ({size}, K), "
                f"not shape {tuple(vectors.shape)}"
            )
        if vectors.dtype != self.dtype or _place(vectors.device) != _place(self.device):
            raise InputError(
                f"the operator works in {self.dtype} on {self.device}; the vectors are "
                f"{vectors.dtype} on {vectors.device}: use V.to({self.dtype}).to({str(self.device)!r})"
            )
        self._refresh()
        result = self.product(vectors.reshape(size, -1))
        self.require_finite(result)
        return result.reshape(vectors.shape)

    def product(self, block: Tensor) -> Tensor:
        """A times a block (P, K) in the inner loop of an estimator: nothing waits for the device.

        Neither the block nor the result is looked at; the caller hands what it brings to the host to
        `require_finite`. Between `expect` and the last product the matrix must stay the same.
        """
        # A product means the same whatever the caller is in the middle of.
        with (
            self._clock.running(),
            torch.inference_mode(False),
            torch.autocast(self.device.type, enabled=False),
        ):
            block = block.detach()
            result = self._multiply(block.clone() if block.is_inference() else block).detach()
        self.products += block.shape[1]
        return result

    def require_finite(self, numbers: Tensor) -> None:
        """Refuse what a product that is not finite has made.

        Raises:
            UntrustedResult: some number is not finite.
        """
        if not bool(torch.isfinite(numbers).all()):
            raise UntrustedResult(
                f"a product with {self!r} is not finite: something overflows or divides by zero; try "
                "dtype=torch.float64"
            )

    def _refresh(self) -> None:
        """Forget what was kept of a matrix that has changed since."""

    def __add__(self, other: "Operator") -> "Operator":
        return Combination([(1.0, self), (1.0, other)])

    def __sub__(self, other: "Operator") -> "Operator":
        return Combination([(1.0, self), (-1.0, other)])

    def __mul__(self, factor: float) -> "Operator":
        return Combination([(float(factor), self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Operator":
        return self * (1 / divisor)

    def __radd__(self, other: Any) -> "Operator":
        if other == 0:  # where `sum` begins
            return self
        return NotImplemented  # type: ignore[no-any-return]

    def __neg__(self) -> "Operator":
        return self * -1.0

    def restrict(self, indices: Tensor) -> "Operator":
        """The principal submatrix of the given positions, an int64 tensor (p,)."""
        return Submatrix(self, indices)

    def dense(self, *, block: int = 64) -> Tensor:
        """The matrix itself, shape (P, P), symmetrised.

        Raises:
            InputError: P is larger than 20,000.
        """
        size = self.shape[0]
        if size > DENSE_LIMIT:
            raise InputError(
                f"a dense matrix of order {size:,} is too large (limit {DENSE_LIMIT:,}): "
                "use products, or restrict to a block"
            )
        self.expect(size)
        columns = []
        for start in range(0, size, block):
            width = min(block, size - start)
            unit = torch.zeros(size, width, dtype=self.dtype, device=self.device)
            unit[torch.arange(start, start + width), torch.arange(width)] = 1
            columns.append(self @ unit)
        matrix = torch.cat(columns, dim=1)
        return (matrix + matrix.T) / 2

    def to_scipy(self) -> "LinearOperator":
        """The same operator for SciPy: NumPy vectors on the CPU, symmetric."""
        from scipy.sparse.linalg import LinearOperator

        def product(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            block = torch.as_tensor(np.ascontiguousarray(vectors), dtype=self.dtype)
            result: np.ndarray[Any, Any] = (self @ block.to(self.device)).cpu().numpy()
            return result

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(
            self.shape,
            matvec=product,
            matmat=product,
            rmatvec=product,
            rmatmat=product,
            dtype=dtype,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]:,} × {self.shape[1]:,}, {self.dtype})"


def _place(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0


def require_operator(thing: Any) -> None:
    """Refuse what is no operator."""
    if not isinstance(thing, Operator):
        raise InputError(
            f"a {type(thing).__name__} is no operator: pass ls.Hessian(problem), or ls.as_operator(…)"
        )


def rounding(A: Operator) -> float:
    """The relative spacing of the coarsest numbers in a product."""
    own = torch.finfo(A.dtype).eps
    return own if A.plan is None else max(own, A.plan.eps)


class Combination(Operator):
    """A weighted sum of operators of one size, dtype and device."""

    def __init__(self, terms: Sequence[tuple[float, Operator]]) -> None:
        first = terms[0][1]
        for _, other in terms:
            if not isinstance(other, Operator):
                raise InputError(f"only operators can be added, not {type(other).__name__}")
            if (other.shape, other.dtype, other.device) != (first.shape, first.dtype, first.device):
                raise InputError(f"cannot add {other!r} to {first!r}: size, dtype or device differ")
        super().__init__(first.shape[0], first.dtype, first.device)
        self.terms = list(terms)

    def expect(self, products: int, *, width: int = 1) -> None:
        for _, operator in self.terms:
            operator.expect(products, width=width)

    def _multiply(self, block: Tensor) -> Tensor:
        factor, first = self.terms[0]
        result = factor * first.product(block)
        for factor, operator in self.terms[1:]:
            result += factor * operator.product(block)
        return result

    def _refresh(self) -> None:
        for _, operator in self.terms:
            operator._refresh()


class Identity(Operator):
    """The identity of the same size, dtype and device as another operator."""

    def __init__(self, like: Operator) -> None:
        super().__init__(like.shape[0], like.dtype, like.device)

    def _multiply(self, block: Tensor) -> Tensor:
        return block.clone()


class Submatrix(Operator):
    """A principal submatrix: rows and columns at the given positions."""

    def __init__(self, operator: Operator, indices: Tensor) -> None:
        indices = torch.as_tensor(indices, device=operator.device)
        if indices.ndim != 1 or indices.dtype != torch.int64 or not indices.numel():
            raise InputError("a block is chosen by a one-dimensional, non-empty int64 tensor")
        if int(indices.min()) < 0 or int(indices.max()) >= operator.shape[0]:
            raise InputError(
                f"a block of {operator!r} reaches from position {int(indices.min())} to "
                f"{int(indices.max())}: positions run from 0 to {operator.shape[0] - 1}"
            )
        if indices.unique().numel() != indices.numel():
            raise InputError("the positions of a block must differ from each other")
        super().__init__(indices.numel(), operator.dtype, operator.device)
        self.operator, self.indices = operator, indices

    @property
    def plan(self) -> Plan | None:
        return self.operator.plan

    def expect(self, products: int, *, width: int = 1) -> None:
        self.operator.expect(products, width=width)

    def hold(self) -> Plan | None:
        return self.operator.hold()

    def replay(self, plan: Plan | Mapping[str, Any]) -> None:
        self.operator.replay(plan)

    def _multiply(self, block: Tensor) -> Tensor:
        wide = block.new_zeros(self.operator.shape[0], block.shape[1])
        wide[self.indices] = block
        return self.operator.product(wide)[self.indices]

    def _refresh(self) -> None:
        self.operator._refresh()
