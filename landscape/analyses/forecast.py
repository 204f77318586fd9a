"""What will a command cost on this machine? Measured on a few products, and counted for the rest."""

import time
from dataclasses import dataclass

import torch

from landscape.memory import available_bytes, peak_bytes
from landscape.operators.hessian import Hessian
from landscape.problem import Problem

LEAST_STEPS = 60  # of a search for eigenvalues that ends early; it may go on to its limit


@dataclass(frozen=True)
class Forecast:
    """The cost of a command with its default options: products, seconds and bytes, from … to."""

    command: str
    products: tuple[int, int]
    seconds: tuple[float, float]
    peak_bytes: int
    fits: bool


def forecast(
    problem: Problem, *, probes: int = 10, steps: int = 50, top: int = 5
) -> list[Forecast]:
    """Costs of the commands on a model, each with its defaults.

    A product with one vector and one with a block of two are timed here, and what they add to the peak
    of memory is read; everything else is counted. On a busy machine the times are as wrong as the
    machine is busy.

    Args:
        problem: the loss.
        probes, steps, top: defaults of `landscape spectrum`.
    """
    H = Hessian(problem)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(problem.size, 2, generator=generator, dtype=torch.float32)
    block = block.to(problem.device, problem.dtype)
    held = peak_bytes()
    single = product_seconds(H, block[:, :1])
    # Every further vector of a block shares the graph of the first.
    several = max(product_seconds(H, block) - single, 0.1 * single)
    working = max(peak_bytes() - held, 0)
    limit = min(problem.size, max(300, 20 * top))
    # Lanczos keeps its whole basis, and doubles its room as it grows.
    number = block.element_size() * problem.size
    vectors = max(5 * probes, limit + min(limit, 64) + top)
    peak = held + working + number * vectors
    density = probes * min(steps, problem.size)
    few, many = min(LEAST_STEPS, limit), limit
    # Residuals are measured once more in float64, at about twice the time.
    last = 0 if problem.dtype == torch.float64 else top + 1
    extra = last * 2 * single + problem.gradient_seconds() * 2
    blocks = density / probes * (single + (probes - 1) * several)
    seconds = tuple(blocks + found * single + extra for found in (few, many))
    return [
        Forecast(
            "spectrum",
            (density + few + last, density + many + last),
            (seconds[0], seconds[1]),
            peak,
            number * vectors + working < available_bytes() or problem.device.type != "cpu",
        )
    ]


def product_seconds(H: Hessian, block: torch.Tensor) -> float:
    """Time of one product with a block."""
    start = time.perf_counter()
    H @ block
    return time.perf_counter() - start
