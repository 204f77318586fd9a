"""What will a command cost on this machine? Measured on a few products, and counted for the rest."""

import time
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from landscape.estimators.lanczos import basis_size, checked_limit
from landscape.memory import Peak, available_bytes, peak_bytes
from landscape.operators.hessian import Hessian
from landscape.operators.products.plan import Execution, Plan
from landscape.problem import Problem

LEAST_STEPS = 30  # of a search for eigenvalues that ends early; it may go on to its limit
SAMPLING = 12  # products by double backward, beside those with the eigenvectors, for the data error
BLOCK = 4  # columns of the measured blocks, enough for the choice of a chunk
MEASURED = 3 * BLOCK + 2  # columns that a measurement takes
# Of `landscape check`: products compared with each other, eigenvalues, power iterations, seconds.
CONSISTENCY, COMPARED, ITERATIONS, BUDGET = 3, 3, 12, 60.0
# Of PyHessian, per product: it differentiates the loss anew for each one.
GRADIENTS_PER_FOREIGN_PRODUCT = 3.3


@dataclass(frozen=True)
class Forecast:
    """The cost of a command with its default options: products, seconds and bytes, from … to.

    `plan` is how its products will be executed, as it was chosen here.
    """

    command: str
    products: tuple[int, int]
    seconds: tuple[float, float]
    peak_bytes: int
    fits: bool
    plan: Plan


@dataclass(frozen=True)
class Pace:
    """How fast an operator multiplies: seconds once, for a vector by itself, and per column of a block.

    `working_bytes` is what it took of the `free_bytes` there were.
    """

    setup: float
    single: float
    column: float
    working_bytes: int
    free_bytes: int


def forecast(
    problem: Problem,
    *,
    probes: int = 10,
    steps: int = 50,
    top: int = 5,
    **execution: Unpack[Execution],
) -> list[Forecast]:
    """Costs of the commands on a model, each with its defaults.

    The products are announced, so that the engine is the one that the commands will use. The set-up
    (tracing, and the choice of layout and chunk), a steady block of four and a single vector are timed,
    14 products in all, and what they add to the peak of memory is read; everything else is counted. On a
    busy machine the times are as wrong as the machine is busy.

    Args:
        problem: the loss.
        probes, steps, top: defaults of `landscape spectrum`.
        execution: as for `spectrum`.
    """
    H = Hessian(problem, **execution)
    return forecasts(H, pace(H), probes=probes, steps=steps, top=top)


def pace(H: Hessian, *, products: int = 800) -> Pace:
    """Measure an operator that is about to multiply some columns (default: those of `spectrum`)."""
    H.expect(products)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(H.shape[0], BLOCK, generator=generator, dtype=torch.float32)
    block = block.to(H.device, H.dtype)
    before, free = peak_bytes(H.device.type), available_bytes(H.device)
    with Peak(H.device) as taken:
        # What is kept after the first product may be compiled anew for the second.
        first = product_seconds(H, block) + product_seconds(H, block)
        steady = product_seconds(H, block)
        # The first product by itself may keep more than those of a block did.
        single = min(product_seconds(H, block[:, :1]) for _ in range(2))
    working = taken.bytes
    if working is None:
        working = max(peak_bytes(H.device.type) - before, 0)
    return Pace(max(first - 2 * steady, 0.0), single, steady / BLOCK, working, free)


def forecasts(
    H: Hessian,
    measured: Pace,
    *,
    probes: int = 10,
    steps: int = 50,
    top: int = 5,
) -> list[Forecast]:
    """Count the costs of the commands on the problem of a measured operator.

    Args:
        H: the operator.
        measured: its pace.
        probes, steps, top: of `landscape spectrum`.
    """
    problem, single = H.problem, measured.single
    gradient = problem.gradient_seconds()
    # The search ends with one product more; in float64 every pair takes one, at about twice the time.
    again = 0 if problem.dtype == torch.float64 else 1
    rest = measured.setup + 2 * gradient

    density = probes * min(steps, problem.size)
    ends = top + min(1, problem.size - top)
    few, many, room = _search(H, top)
    fixed = rest + density * measured.column + (1 + 2 * ends * again + SAMPLING + ends) * single
    measure = 1 + ends * again
    spectrum = (
        (density + few + measure, density + many + measure),
        (fixed + few * single, fixed + many * single),
        max(5 * probes, room + ends),
    )

    compared = min(COMPARED, problem.size)
    few, many, room = _search(H, compared)
    seconds = comparison_seconds(H, measured, top=compared, iterations=ITERATIONS)
    share = min(1.0, BUDGET / seconds[0])  # of the samples, when it would take too long
    before = rest + CONSISTENCY * single + MEASURED * measured.column
    others = MEASURED + CONSISTENCY + 1 + compared * again
    check = (
        (few + others, many + others),
        (before + share * seconds[0], before + share * seconds[1]),
        room + 2 * compared,
    )
    number = torch.finfo(H.dtype).bits // 8 * problem.size
    held = peak_bytes(H.device.type)  # the work of products is in it
    return [
        Forecast(
            command,
            products,
            seconds,
            held + number * vectors,
            measured.working_bytes + number * vectors < measured.free_bytes,
            H.plan,
        )
        for command, (products, seconds, vectors) in {"spectrum": spectrum, "check": check}.items()
    ]


def comparison_seconds(
    H: Hessian, measured: Pace, *, top: int, iterations: int
) -> tuple[float, float]:
    """Time of a search for eigenvalues and of PyHessian's power iterations beside it, from … to.

    Args:
        H: the operator.
        measured: its pace.
        top: number of eigenvalues.
        iterations: of PyHessian, per eigenvalue; 0 where it is not asked.
    """
    few, many, _ = _search(H, top)
    foreign = (iterations + 2) * top if iterations else 0
    fixed = 4 * top * measured.single  # residuals, once more in float64, and PyHessian's vectors
    fixed += foreign * GRADIENTS_PER_FOREIGN_PRODUCT * H.problem.gradient_seconds()
    return fixed + few * measured.single, fixed + many * measured.single


def _search(H: Hessian, wanted: int) -> tuple[int, int, int]:
    """Steps of a search for eigenvalues, few and many, and the vectors that it has room for."""
    limit = checked_limit(H, [("largest", wanted)], 1e-4, None)
    limit = min(limit, 3 * H.shape[0])  # when all directions are known it ends
    return min(LEAST_STEPS, limit), limit, basis_size(H, wanted) + 6


def product_seconds(H: Hessian, block: Tensor) -> float:
    """Time of one product with a block."""
    start = time.perf_counter()
    H @ block
    return time.perf_counter() - start
