"""The operator that belongs to a problem: what curvature matrices share."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.operators.base import Operator, Submatrix
from landscape.operators.products.engine import Products
from landscape.operators.products.plan import Arithmetic, Memory, Plan, Settings, settings_of
from landscape.operators.products.preparation import Form
from landscape.operators.stopwatch import Stopwatch

if TYPE_CHECKING:
    from landscape.problem import Problem

Result = TypeVar("Result")
# The place of a batch and a block (P, K) to that batch's own product (P, K).
BatchProduct = Callable[[int, Tensor], Tensor]


class CurvatureOperator(Operator):
    """An operator that belongs to a `Problem`; it can be restricted by parameter names.

    Subclasses say what is multiplied, batch by batch (`form`), and by what the sum is divided.

    Args:
        problem: the loss whose curvature is meant.
        engine: "split" traces the product once per batch shape and shares what does not depend on the
            vector; "double backward" is autograd's; "auto" (default) splits what can be traced, after
            20 products, and what an estimator announces.
        memory: bytes that kept residuals and the work on one batch may take; "auto" (default) is half of
            what is free.
        products: dtype of the arithmetic in a product, by default the problem's, or "tf32" for what
            tensor cores make of float32; sums over batches and vectors stay in the problem's dtype.
        compile: hand the split product to Inductor.
        plan: the `plan` of an earlier operator or result, to be executed in the same way to the last bit.

    Raises:
        InputError: an unknown engine, a memory that is not positive, a dtype that is no floating-point
            type, or a plan for other threads.
    """

    def __init__(
        self,
        problem: "Problem",
        *,
        engine: str = "auto",
        memory: Memory = "auto",
        products: Arithmetic = None,
        compile: bool = False,
        plan: Plan | Mapping[str, Any] | None = None,
    ) -> None:
        if not hasattr(problem, "evaluation"):
            raise InputError(
                f"a {type(problem).__name__} is no problem: pass ls.Problem(model, loss, data)"
            )
        super().__init__(problem.size, problem.dtype, problem.device)
        self.problem = problem
        self.arithmetic, settings = settings_of(engine, memory, products, compile, plan)
        self._products = self._engine(settings)

    def form(self) -> Form:
        """What is multiplied."""
        raise NotImplementedError

    def divisor(self, terms: float, rows: float) -> float:
        """What the sum over batches is divided by: the number of loss terms.

        Args:
            terms: their number in those batches.
            rows: rows of the loss's input there, see `EmpiricalFisher`.
        """
        return terms

    def _divisor(self) -> float:
        return self.divisor(self.problem.terms, 0)

    def _engine(self, settings: Settings) -> Products:
        dtype = self.arithmetic or self.problem.dtype
        problem = self.problem if dtype == self.problem.dtype else self.problem.astype(dtype)
        return Products(problem, self.form(), self.problem.dtype, settings)

    def _multiply(self, block: Tensor) -> Tensor:
        result = self._products.multiply(block)
        narrower = self._products.plan.dtype != self._products.plan.accumulation
        if narrower and self._products.error is None:
            # What the narrower type costs, measured on the first vector.
            exact = Products(self.problem, self.form(), self.dtype, Settings("double backward"))
            expected = exact.multiply(block[:, :1])[:, 0]
            self._products.error = float((result[:, 0] - expected).norm() / expected.norm())
        return result.div_(self._divisor())

    def expect(self, products: int, *, width: int = 1) -> None:
        self._products.announced = max(self._products.announced, products)
        self._products.widest = max(self._products.widest, width)
        self._refresh()

    def hold(self) -> Plan | None:
        return self.plan if self._products.hold() else None

    def replay(self, plan: Plan | Mapping[str, Any]) -> None:
        memory = self._products.settings.memory
        self.arithmetic, settings = settings_of("auto", memory, None, False, plan)
        self._products = self._engine(settings)

    def _refresh(self) -> None:
        self._products.refresh()

    @property
    def plan(self) -> Plan:
        """How products are executed, as of the last one."""
        return replace(self._products.plan, error=self._products.error)

    def astype(self, dtype: torch.dtype, *, engine: str | None = None) -> "CurvatureOperator":
        """The same matrix in another floating-point type, its counters at zero.

        Args:
            dtype: of everything.
            engine: another one (default: the same settings).
        """
        other = copy.copy(self)
        other.problem = self.problem.astype(dtype)
        other.dtype, other.products, other._clock = dtype, 0, Stopwatch(self.device)
        other.arithmetic = None
        settings = replace(self._products.settings, precision="ieee")
        if engine is not None:
            _, settings = settings_of(engine, settings.memory, None, False, None)
        other._products = other._engine(settings)
        return other

    def on(self, problem: "Problem") -> "CurvatureOperator":
        """The same kind of matrix of another problem, its counters at zero."""
        other = copy.copy(self)
        other.problem = problem
        other.products, other._clock = 0, Stopwatch(self.device)
        other._products = other._engine(self._products.settings)
        return other

    def by_batch(self, block: Tensor, measure: Callable[[int, Tensor], Result]) -> list[Result]:
        """What `measure` makes of every batch's own product with a block (P, K), in one pass over the data.

        Args:
            block: vectors.
            measure: is given the place of the batch and the product (P, K), of which the sum over the
                batches divided by `divisor` is A @ block (but for `GradientCovariance`: before it is
                centred).
        """
        with (
            self._clock.running(),
            torch.inference_mode(False),
            torch.autocast(self.device.type, enabled=False),
        ):
            found = self._products.by_batch(
                block.detach(), lambda place, images: measure(place, images.detach())
            )
        self.products += block.shape[1]
        return found

    @contextlib.contextmanager
    def one_batch(self) -> Iterator[BatchProduct]:
        """Within it, products of single batches, of which the mean over the batches is A @ block.

        (For `GradientCovariance`: before it is centred.) The batches are held in memory meanwhile. As
        many columns as there are batches count as one product.
        """
        count, columns = self.problem.batch_count, 0

        def product(place: int, block: Tensor) -> Tensor:
            nonlocal columns
            columns += block.shape[1]
            image = multiply(place, block.detach()).detach()
            return image.mul_(count / divisor)

        divisor = self._divisor()
        with (
            self._clock.running(),
            torch.inference_mode(False),
            torch.autocast(self.device.type, enabled=False),
            self._products.one_batch() as multiply,
        ):
            yield product
        self.products += -(-columns // count)

    def block(self, patterns: str | Sequence[str]) -> Operator:
        """The diagonal block of the parameters whose names match the glob(s).

        Raises:
            InputError: no selected parameter matches.
        """
        return Submatrix(self, self.problem.layout.indices(patterns))
