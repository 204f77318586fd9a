"""The result contract: cost, provenance, and files that are never half-written."""

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.memory import peak_bytes

if TYPE_CHECKING:
    from landscape.operators.base import Operator
    from landscape.problem import Problem

SPECTRUM_SCHEMA = "landscape/spectrum/1"
LAYERS_SCHEMA = "landscape/layers/1"
EIGEN_SCHEMA = "landscape/eigen/1"
TRACE_SCHEMA = "landscape/trace/1"
INFLUENCE_SCHEMA = "landscape/influence/1"
PRUNING_SCHEMA = "landscape/pruning/1"
SURFACE_SCHEMA = "landscape/surface/1"
CONNECTIVITY_SCHEMA = "landscape/connectivity/1"
TOPOLOGY_SCHEMA = "landscape/topology/1"
SHARPNESS_SCHEMA = "landscape/sharpness/1"
Progress = Callable[[int, int], None]  # (products done, products expected)


@dataclass(frozen=True)
class Cost:
    """What a number cost.

    `products` counts matrix–vector products, `gradient_equivalents` the time of those products divided
    by the time of one gradient over the same data in the same process (None where there is no model),
    `seconds` the wall-clock time, `peak_bytes` the largest memory: of the process on the CPU, of the
    allocator on CUDA; `engine` says how the products were made (None where there is no model).
    """

    products: int
    gradient_equivalents: float | None
    seconds: float
    peak_bytes: int
    engine: str | None = None

    def __add__(self, other: "Cost") -> "Cost":
        parts = (self.gradient_equivalents, other.gradient_equivalents)
        return Cost(
            self.products + other.products,
            None if None in parts else sum(p for p in parts if p is not None),
            self.seconds + other.seconds,
            max(self.peak_bytes, other.peak_bytes),
            ", ".join(dict.fromkeys(e for e in (self.engine, other.engine) if e)) or None,
        )


def cost_of_time(problem: "Problem", seconds: float, *, products: int = 0) -> Cost:
    """The cost of work that is more than products: its gradient equivalents are those of the whole time."""
    share = seconds / problem.gradient_seconds()
    return Cost(products, share, seconds, peak_bytes(problem.device.type))


class Meter:
    """Reads the cost of what an operator has been used for since the meter was made.

    Args:
        operator: whose products are counted.
        earlier: what the same work has cost in a run before.
    """

    def __init__(self, operator: "Operator", earlier: Cost | None = None) -> None:
        self._operator, self._earlier = operator, earlier
        self._products, self._seconds = operator.products, operator.seconds
        self._start = time.perf_counter()

    def read(self) -> Cost:
        problem = getattr(self._operator, "problem", None)
        elapsed = time.perf_counter() - self._start
        spent = self._operator.seconds - self._seconds
        cost = Cost(
            self._operator.products - self._products,
            None if problem is None else spent / problem.gradient_seconds(),
            elapsed,
            peak_bytes(self._operator.device.type),
            None if self._operator.plan is None else self._operator.plan.engine,
        )
        return cost if self._earlier is None else self._earlier + cost


@dataclass(frozen=True)
class Measured:
    """A number with its standard error, NaN where that is unknown."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error over `probes` independent probes, and a confidence interval.

    The interval from `lower` to `upper` holds the truth with probability `confidence`, by Student's t
    with `degrees_of_freedom` (None for an exact number). Where `indicator` is true, the
    standard error is no more than an indicator of size, and there is no interval. `method` is the
    one that was used; "exact" means by products with the identity.
    """

    value: float
    standard_error: float
    probes: int
    converged: bool | None  # whether the asked tolerance was reached; None if none was asked
    cost: Cost
    method: str = "hutchinson"
    lower: float | None = None
    upper: float | None = None
    confidence: float = 0.95
    degrees_of_freedom: int | None = None
    indicator: bool = False

    def __str__(self) -> str:
        note = " (an indicator, no interval)" if self.indicator else ""
        note += " (tolerance not reached)" if self.converged is False else ""
        return f"{self.value:.6g} ± {self.standard_error:.2g}{note}"


def student_quantile(confidence: float, degrees: int | None) -> float:
    """Standard errors to either side of an interval: Student's t, or the normal if `degrees` is None.

    NaN without a degree of freedom.

    >>> round(student_quantile(0.95, 9), 3), round(student_quantile(0.95, None), 3)
    (2.262, 1.96)
    """
    from scipy.special import ndtri, stdtrit

    upper = (1 + confidence) / 2
    return float(ndtri(upper) if degrees is None else stdtrit(degrees, upper))


def provenance(operator: "Operator | Problem", *, seed: int, command: str | None) -> dict[str, Any]:
    """Versions, machine, seed, time, command, and what was measured, an operator or a problem."""
    import scipy
    import torch

    from landscape import __version__

    itself = operator if hasattr(operator, "evaluation") else None
    problem: Any = getattr(operator, "problem", itself)
    plan = getattr(operator, "plan", None)
    device = torch.device(operator.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "landscape": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(operator.device),
        "device_name": name or platform.machine(),
        "dtype": str(operator.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "plan": None if plan is None else plan.to_dict(),
        "problem": None if problem is None else problem.summary(),
    }


def jsonable(value: Any) -> Any:
    """Plain JSON values: arrays become lists, NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, Cost):
        return jsonable(asdict(value))
    return value


def to_json(result: dict[str, Any]) -> str:
    return json.dumps(jsonable(result), allow_nan=False, indent=1)


def write_tensors(state: Mapping[str, Any], path: str | Path) -> None:
    """Write the tensors of a state dict as safetensors, to be loaded like any weights."""
    from safetensors.torch import save_file
    from torch import Tensor

    tensors = {k: v.contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved into its place only after everything was written."""
    final = Path(path)
    handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.stem}.", suffix=final.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
