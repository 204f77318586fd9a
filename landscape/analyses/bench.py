"""How fast are products with this model? Every engine on it, beside its gradient."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from landscape.analyses.forecast import Forecast, forecast
from landscape.analyses.operators import OPERATORS
from landscape.errors import InputError
from landscape.memory import Peak, peak_bytes
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.hessian import Hessian
from landscape.operators.products.plan import Execution, settings_of
from landscape.problem import Problem
from landscape.results import Cost, provenance
from landscape.saved import Result

SCHEMA = "landscape/bench/1"
MATRICES = ("hessian", "gauss-newton", "fisher", "empirical-fisher")


@dataclass(frozen=True)
class Spread:
    """The median over rounds, between the lower and the upper quartile."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Row:
    """One matrix by one engine.

    Attributes:
        matrix, engine: their names.
        gradients: time of a product with one column of the block, in gradients over the same batches in
            the same round.
        gradient_seconds: of these gradients, the median.
        seconds_per_product: `gradients.median` times that.
        setup_seconds: what the first block took beyond a later one: tracing, and trying ways to compute.
        peak_bytes: the most memory that set-up and first block took above what was held before; None
            where the system does not tell.
        plan: how the products were executed.
        reason: why this engine cannot multiply by this matrix; everything above is None then.
    """

    matrix: str
    engine: str
    gradients: Spread | None = None
    gradient_seconds: float | None = None
    seconds_per_product: float | None = None
    setup_seconds: float | None = None
    peak_bytes: int | None = None
    plan: dict[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Bench(Result, schema=SCHEMA):
    """What products cost on a problem, by every engine.

    `rows` are all pairs of a matrix and an engine, `forecasts` the costs of the commands, none if these
    refuse the engine. The plan in the provenance is that of the fastest engine for the first matrix that
    could be multiplied by.
    """

    vectors: int
    rounds: int
    rows: list[Row]
    forecasts: list[Forecast]
    cost: Cost
    provenance: dict[str, Any]

    def fastest(self, matrix: str) -> Row | None:
        """The row with the smallest median; None if no engine can multiply by this matrix."""
        found = [row for row in self.rows if row.matrix == matrix and row.gradients is not None]
        return min(found, key=_median, default=None)


def bench(
    problem: Problem,
    *,
    operators: Sequence[str] = MATRICES,
    vectors: int = 8,
    rounds: int = 5,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    command: str | None = None,
    **execution: Unpack[Execution],
) -> Bench:
    """Time products with a block, by every engine, in turns with gradients over the same batches.

    Each matrix is set up once per engine, where its memory is read; then come a round to warm up and the
    rounds that count, the engines one after another in each, so that what else the machine does falls on
    all alike. The unit is the gradient: it depends little on the machine.

    Args:
        problem: the loss.
        operators: names of matrices, as for `spectrum`; one that the problem does not have is a row with
            the reason.
        vectors: columns of the block.
        rounds: that count.
        seed: of the block.
        progress: called with (matrix, products done, products expected).
        command: the command line, for provenance.
        execution: memory is that of each operator by itself; compile adds compiled split products; an
            engine other than "auto" is the only one timed.

    Raises:
        InputError: an unknown operator, something out of range, or a plan, as plans are chosen here.
        UntrustedResult: a product is not finite.
    """
    for name in operators:
        if name not in OPERATORS:
            raise InputError(f"unknown operator {name!r}: choose among {', '.join(OPERATORS)}")
    if vectors < 1 or rounds < 1:
        raise InputError(f"vectors={vectors} and rounds={rounds} must both be at least 1")
    if execution.get("plan") is not None:
        raise InputError("a benchmark finds the fastest plan by itself: leave the plan out")
    engine, compile = execution.get("engine", "auto"), execution.get("compile", False)
    memory, products = execution.get("memory", "auto"), execution.get("products")
    settings_of(engine, memory, products, compile, None)
    ways: dict[str, Execution] = {
        "double backward": {"engine": "double backward"},
        "split": {"engine": "split", "memory": memory},
        "split, compiled": {"engine": "split", "memory": memory, "compile": True},
    }
    chosen = {
        name: Execution(**way, products=products)
        for name, way in ways.items()
        if engine in ("auto", way["engine"]) and (compile or not way.get("compile"))
    }
    start = time.perf_counter()
    _load_tracing()
    forecasts: list[Forecast] = []
    with contextlib.suppress(InputError):  # the rows will say why the commands would refuse
        # First, because its peak of memory is that of the process.
        forecasts = forecast(problem, **execution)
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(problem.size, vectors, generator=generator).to(
        problem.device, problem.dtype
    )
    rows: list[Row] = []
    done, seconds = 0, 0.0
    for name in dict.fromkeys(operators):
        turns = _Turns(problem, name, chosen, block, rounds, progress)
        rows += turns.run()
        done += sum(A.products for A in turns.ready.values())
        seconds += sum(A.seconds for A in turns.ready.values())
    found = Bench(
        vectors,
        rounds,
        rows,
        forecasts,
        Cost(
            done,
            seconds / problem.gradient_seconds(),
            time.perf_counter() - start,
            peak_bytes(problem.device.type),
        ),
        provenance(Hessian(problem), seed=seed, command=command),
    )
    best = [row for row in map(found.fastest, operators) if row is not None]
    found.provenance["plan"] = best[0].plan if best else None
    return found


class _Turns:
    """One matrix: its engines set up one by one, then timed in turns; `ready` are those that can."""

    def __init__(
        self,
        problem: Problem,
        name: str,
        ways: dict[str, Execution],
        block: Tensor,
        rounds: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.problem, self.name, self.ways = problem, name, ways
        self.block, self.rounds, self.progress = block, rounds, progress
        self.ready: dict[str, CurvatureOperator] = {}
        self._reasons: dict[str, str] = {}
        self._first: dict[str, float] = {}
        self._memory: dict[str, int | None] = {}

    def run(self) -> list[Row]:
        for engine in self.ways:
            self._set_up(engine)
            self._tell()
        gradients: list[float] = []
        rounds: dict[str, list[float]] = {engine: [] for engine in self.ready}
        for turn in range(1 + self.rounds if self.ready else 0):
            paces: list[float] = []
            for engine, A in self.ready.items():
                paces.append(self._gradient())
                rounds[engine].append(self._product(A))
                self._tell()
            gradients.append(statistics.median(paces))
            if not turn:
                gradients.clear()
                for times in rounds.values():
                    times.clear()
        return [self._row(engine, rounds.get(engine, []), gradients) for engine in self.ways]

    def _set_up(self, engine: str) -> None:
        """The first block by an engine; what prevents it is a finding, not a failure."""
        try:
            with Peak(self.problem.device) as taken:
                A = OPERATORS[self.name](self.problem, **self.ways[engine])
                self._first[engine] = self._product(A)
            self.ready[engine], self._memory[engine] = A, taken.bytes
        except (InputError, RuntimeError, MemoryError) as error:
            text = str(error).strip() or type(error).__name__
            self._reasons[engine] = text.splitlines()[0]

    def _product(self, A: CurvatureOperator) -> float:
        start = time.perf_counter()
        A @ self.block
        return time.perf_counter() - start

    def _gradient(self) -> float:
        start = time.perf_counter()
        float(self.problem.gradient()[0])  # waits for the device
        return time.perf_counter() - start

    def _tell(self) -> None:
        if self.progress is not None:
            columns = self.block.shape[1]
            expected = (len(self.ways) - len(self._reasons)) * (self.rounds + 2) * columns
            done = sum(A.products for A in self.ready.values())
            self.progress(self.name, done, max(expected, 1))

    def _row(self, engine: str, rounds: list[float], gradients: list[float]) -> Row:
        if engine not in self.ready:
            return Row(self.name, engine, reason=self._reasons[engine])
        columns = self.block.shape[1]
        spread = _spread([t / columns / g for t, g in zip(rounds, gradients, strict=True)])
        gradient = statistics.median(gradients)
        return Row(
            self.name,
            engine,
            spread,
            gradient,
            spread.median * gradient,
            max(0.0, self._first[engine] - columns * spread.median * gradient),
            self._memory[engine],
            self.ready[engine].plan.to_dict(),
        )


def _spread(values: list[float]) -> Spread:
    if len(values) == 1:
        return Spread(*values * 3)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def _median(row: Row) -> float:
    assert row.gradients is not None
    return row.gradients.median


def _load_tracing() -> None:
    """Let torch load what it traces with, which belongs to no engine's time or memory."""
    x = torch.ones(1, 1)
    Hessian(Problem(nn.Linear(1, 1), "mse", (x, x)), engine="split") @ torch.ones(2)
