"""How products are executed: everything on which the last bit of a result depends."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypedDict

import torch

from landscape.errors import InputError

ENGINES = ("auto", "split", "double backward")
LAYOUTS = ("contiguous", "channels last")
Memory = int | Literal["auto"]
Arithmetic = torch.dtype | Literal["tf32"] | None


@dataclass(frozen=True)
class Settings:
    """What the user decides about products; layout and chunk only by replaying a plan."""

    engine: str = "auto"
    memory: Memory = "auto"
    compile: bool = False
    precision: Literal["ieee", "tf32"] = "ieee"
    layout: str | None = None
    chunk: int | None = None


@dataclass(frozen=True)
class Plan:
    """The execution of an operator's products.

    With the same plan, threads and device a product is the same to the last bit, whether residuals are
    kept or recomputed.

    Attributes:
        engine: "split" (traced once, the part that does not depend on the vector shared by all), or
            "double backward" (autograd, one retained graph per batch).
        reason: why this engine.
        layout: "contiguous" or "channels last", the memory layout of images.
        chunk: vectors multiplied at once; 1 for one by one.
        compiled: whether the linear part was compiled by Inductor.
        captured: whether whole products were replayed as one CUDA graph.
        kept: batches whose residuals are held from product to product.
        dtype: of the products, "tf32" for float32 rounded to three digits in matrix products;
            `accumulation` of the sums over batches and of the vectors.
        error: relative difference of a product from one in the accumulation's dtype, where they differ.
        threads, device: where it ran.
        measured: seconds per vector of what was tried on the first batch, by name.
        degraded: what was given up because memory ran out.
    """

    engine: str
    reason: str
    layout: str = "contiguous"
    chunk: int = 1
    compiled: bool = False
    captured: bool = False
    kept: int = 0
    dtype: str = "float32"
    accumulation: str = "float32"
    error: float | None = None
    threads: int = field(default_factory=torch.get_num_threads)
    device: str = "cpu"
    measured: dict[str, float] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()

    @property
    def eps(self) -> float:
        """Relative spacing of the numbers in a product."""
        return 2**-10 if self.dtype == "tf32" else torch.finfo(getattr(torch, self.dtype)).eps

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Execution(TypedDict, total=False):
    """What may be said about the execution of products; see `CurvatureOperator` for each."""

    engine: str
    memory: Memory
    products: Arithmetic
    compile: bool
    plan: Plan | Mapping[str, Any] | None


def settings_of(
    engine: str,
    memory: Memory,
    products: Arithmetic,
    compile: bool,
    plan: Plan | Mapping[str, Any] | None,
) -> tuple[torch.dtype | None, Settings]:
    """What was asked for, checked: the dtype of products (None for the problem's), and the rest.

    Raises:
        InputError: something is out of range, or the plan is no plan or for other threads.
    """
    if engine not in ENGINES:
        raise InputError(f"the engine is {engine!r}: choose one of {', '.join(ENGINES)}")
    if memory != "auto" and not (isinstance(memory, int) and memory > 0):
        raise InputError(f"memory is {memory!r}: give a positive number of bytes, or 'auto'")
    layout = chunk = None
    if plan is not None:
        found = _read(plan)
        engine, compile, layout, chunk = found.engine, found.compiled, found.layout, found.chunk
        products = "tf32" if found.dtype == "tf32" else getattr(torch, found.dtype)
    if products == "tf32":
        return torch.float32, Settings(engine, memory, compile, "tf32", layout, chunk)
    if products is not None and not products.is_floating_point:
        raise InputError(f"products is {products}: choose a floating-point type, or 'tf32'")
    return products, Settings(engine, memory, compile, "ieee", layout, chunk)


def _read(plan: Plan | Mapping[str, Any]) -> Plan:
    """A plan, or what `to_dict` made of one."""
    if not isinstance(plan, Plan):
        known = {f.name for f in fields(Plan)}
        if not {"engine", "reason", "threads"} <= set(plan) or set(plan) - known:
            raise InputError(
                f"the plan has the entries {', '.join(map(str, plan))}: pass operator.plan, what its "
                "to_dict() gave, or the plan of a saved result"
            )
        plan = Plan(**{**plan, "degraded": ()})
    dtype = torch.float32 if plan.dtype == "tf32" else getattr(torch, str(plan.dtype), None)
    if (
        plan.engine not in ENGINES[1:]
        or plan.layout not in LAYOUTS
        or not (isinstance(plan.chunk, int) and plan.chunk > 0)
        or not (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    ):
        raise InputError(
            f"the plan says engine {plan.engine!r}, layout {plan.layout!r}, chunk {plan.chunk!r} and dtype "
            f"{plan.dtype!r}, which cannot all be executed: make it anew"
        )
    if plan.threads != torch.get_num_threads():
        raise InputError(
            f"the plan was made with {plan.threads} threads and this process uses "
            f"{torch.get_num_threads()}, which rounds differently: set OMP_NUM_THREADS={plan.threads}, or call "
            f"torch.set_num_threads({plan.threads})"
        )
    return plan
