"""Products of a curvature operator over all batches: which engine, in what chunks, within what memory."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.evaluation import Evaluation
from landscape.memory import available_bytes, is_out_of_memory
from landscape.operators.products.capture import Captured
from landscape.operators.products.plan import Memory, Plan, Settings
from landscape.operators.products.preparation import Form, Preparation, Prepared
from landscape.operators.products.recipes import Recipe
from landscape.operators.products.tracing import NotTraceable
from landscape.problem import Problem
from landscape.slots import slots
from landscape.undisturbed import float32_arithmetic

# Tracing takes a second or so, which few products, or those of a tiny problem, would not give back.
LEAST_COLUMNS, LEAST_ARITHMETIC = 20, 5e9
# Shares of the time that what takes more memory must save: kept residuals, and several vectors at once.
WORTH_KEEPING, WORTH_CHUNKING = 0.1, 0.05
CHUNKS = {"cpu": (4,), "cuda": (8, 32)}  # vectors at once, tried beside one by one
# What one vector works on: beyond it a CPU gains nothing from several at once, and pays for their memory.
SMALL = 32 * 2**20
Result = TypeVar("Result")


class Products:
    """Σ over the batches of their products with a block, kept fast from call to call.

    Args:
        problem: its batches, and the dtype of the products.
        form: what is multiplied.
        accumulation: dtype of the sums over batches.
        settings: see there.
    """

    def __init__(
        self, problem: Problem, form: Form, accumulation: torch.dtype, settings: Settings
    ) -> None:
        self.problem, self.settings = problem, settings
        self.accumulation = accumulation
        self.done, self.announced = 0, 0  # columns so far, and those still to come
        self.widest = 1  # block among them
        self.error: float | None = None  # of another dtype than the accumulation's
        self.plan = Plan(
            "split" if settings.engine == "split" else "double backward",
            "too few products to be worth tracing" if settings.engine == "auto" else "asked for",
            layout=settings.layout or "contiguous",
            chunk=settings.chunk or 1,
            dtype="tf32" if settings.precision == "tf32" else _name(problem.dtype),
            accumulation=_name(accumulation),
            device=str(problem.device),
        )
        self._preparation = Preparation(problem, form, settings.precision)
        self._kept: dict[int, Prepared] = {}
        self._captured: dict[torch.Size, Captured] = {}
        self._captures = problem.device.type == "cuda"
        self._state: list[Tensor] = []
        self._budget = 0
        self._width = 0  # columns of the block that the plan was chosen for; 0 before
        self._seconds = {"primal": 0.0, "linear": 0.0}

    def multiply(self, block: Tensor) -> Tensor:
        """Σ over batches of the products with a block (P, K)."""
        self.done += block.shape[1]
        self.announced = max(0, self.announced - block.shape[1])
        rows = block.T.to(self.problem.dtype).contiguous()
        if self._splits():
            try:
                return self._by_split(rows).T
            except NotTraceable as reason:
                if self.settings.engine == "split":
                    raise InputError(
                        f"this model cannot be multiplied by the split product ({reason}): "
                        "use engine='auto'"
                    ) from reason
                self._forget()
                self.settings = replace(self.settings, engine="double backward")
                self.plan = replace(self.plan, engine="double backward", reason=str(reason))
        return self._by_double_backward(rows).T

    def _splits(self) -> bool:
        if self.settings.engine != "auto":
            return self.settings.engine == "split"
        if self.plan.engine == "split":
            return True
        # At least 12 operations per parameter and sample; convolutions do more.
        arithmetic = 12.0 * self.problem.size * max(self.problem.samples, self.problem.terms)
        columns = self.done + self.announced
        return columns > LEAST_COLUMNS and columns * arithmetic > LEAST_ARITHMETIC

    def _by_double_backward(self, rows: Tensor) -> Tensor:
        result = torch.zeros_like(rows, dtype=self.accumulation)
        with self.problem.evaluation() as run, float32_arithmetic(self.settings.precision):
            for place, batch in enumerate(run.batches()):
                product = self._preparation.eager(run, place, batch)
                for k, vector in enumerate(rows):
                    result[k] += product(vector)
        return result

    def by_batch(self, block: Tensor, measure: Callable[[int, Tensor], Result]) -> list[Result]:
        """What `measure` makes of the place of every batch and of its product with a block (P, K).

        By double backward: for one pass there is nothing to share.
        """
        rows, found = block.T.to(self.problem.dtype).contiguous(), []
        with self.problem.evaluation() as run, float32_arithmetic(self.settings.precision):
            for place, batch in enumerate(run.batches()):
                product = self._preparation.eager(run, place, batch)
                images = torch.stack([product(vector) for vector in rows], dim=1)
                found.append(measure(place, images.to(self.accumulation)))
        return found

    @contextlib.contextmanager
    def one_batch(self) -> Iterator[Callable[[int, Tensor], Tensor]]:
        """Within it, the product of the batch at a place with a block (P, K), by double backward."""
        with self.problem.evaluation() as run, float32_arithmetic(self.settings.precision):
            held = list(run.batches())

            def multiply(place: int, block: Tensor) -> Tensor:
                product = self._preparation.eager(run, place, held[place])
                rows = block.T.to(self.problem.dtype).contiguous()
                return torch.stack([product(row) for row in rows], dim=1).to(self.accumulation)

            yield multiply

    def _by_split(self, rows: Tensor) -> Tensor:
        while True:
            try:
                return self._once(rows)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self._degrade():
                    raise

    def _once(self, rows: Tensor) -> Tensor:
        self.widest = max(self.widest, len(rows))
        if self._undecided():
            self._forget()
        if len(self._kept) == self.problem.batch_count:
            return self._from_kept(rows)
        result = torch.zeros_like(rows, dtype=self.accumulation)
        with self.problem.evaluation() as run, float32_arithmetic(self.settings.precision):
            if not self._kept:
                self._state = run.values
            for place, batch in enumerate(run.batches()):
                prepared = self._kept.get(place) or self._prepare(run, place, batch)
                self._add(result, prepared, rows)
                self._keep(place, prepared, len(rows))
        return result

    def _from_kept(self, rows: Tensor) -> Tensor:
        """The product where nothing is left to do but linear maps; on CUDA one graph for all of them."""
        if self._captures and rows.shape not in self._captured:
            try:
                self._captured[rows.shape] = Captured(self._sum_of_kept, rows)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._captures = False
            self.plan = replace(self.plan, captured=self._captures)
        return self._captured.get(rows.shape, self._sum_of_kept)(rows)

    def _sum_of_kept(self, rows: Tensor) -> Tensor:
        result = torch.zeros_like(rows, dtype=self.accumulation)
        with float32_arithmetic(self.settings.precision):
            for prepared in self._kept.values():
                self._add(result, prepared, rows)
        return result

    def _add(self, result: Tensor, prepared: Prepared, rows: Tensor) -> None:
        start, chunk = 0, self.plan.chunk
        while start < len(rows):
            width = chunk if start + chunk <= len(rows) else 1
            result[start : start + width] += prepared.images(rows[start : start + width])
            start += width

    def hold(self) -> bool:
        """Stay with the engine, layout and chunk of the plan; False if they were not chosen yet."""
        settings, plan = self.settings, self.plan
        if settings.engine != "double backward" and settings.layout is None and not self.done:
            return False
        chosen: dict[str, Any] = {"engine": plan.engine}
        if plan.engine == "split":
            chosen |= {"layout": plan.layout, "chunk": plan.chunk}
        self.settings = replace(settings, **chosen)
        return True

    # What is kept between calls.

    def refresh(self) -> None:
        """Forget residuals computed from other weights and buffers than those of now."""
        if not self._kept:
            return
        now = slots(self.problem).originals
        same = len(now) == len(self._state) and all(
            new.shape == old.shape and torch.equal(new.detach().to(old), old)
            for new, old in zip(now, self._state, strict=True)
        )
        if not same:
            self._forget()

    def _forget(self) -> None:
        self._kept.clear()
        self._captured.clear()
        self._state = []
        self.plan = replace(self.plan, kept=0, captured=False)

    def _keep(self, place: int, prepared: Prepared, width: int) -> None:
        """Hold on to the residuals of a batch if that saves enough time and fits."""
        primal, linear = self._seconds["primal"], self._seconds["linear"] * width
        if place in self._kept or primal < WORTH_KEEPING * (primal + linear):
            return
        held = sum(other.bytes() for other in self._kept.values())
        if held + prepared.bytes() + self._working(prepared.recipe) <= self._budget:
            self._kept[place] = prepared
            self.plan = replace(self.plan, kept=len(self._kept))

    def _working(self, recipe: Recipe) -> int:
        """Memory at work beside the kept residuals."""
        images = self.plan.chunk * self.problem.size * self.problem.dtype.itemsize
        return recipe.residual_bytes + recipe.working_bytes[self.plan.chunk] + images

    def _degrade(self) -> bool:
        """Give something up after memory ran out; False if nothing is left."""
        chunk = self.settings.chunk or self.plan.chunk
        if self._captured:  # a graph holds on to its working memory
            self._captured.clear()
            self._captures, given_up = False, "capture"
        elif self._kept:
            self._forget()
            self._budget, given_up = 0, "kept residuals"
        elif chunk > 1:
            given_up, chunk = f"chunks of {chunk}", chunk // 2
            try:
                for recipe in self._preparation.recipes.values():
                    recipe.prepare(chunk)
            except NotTraceable:
                chunk = 1
            self.plan = replace(self.plan, chunk=chunk)
            if self.settings.chunk:
                self.settings = replace(self.settings, chunk=chunk)
        else:
            return False
        self.plan = replace(self.plan, degraded=(*self.plan.degraded, given_up))
        if self.problem.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    # How it is done: decided on the first batch.

    def _prepare(self, run: Evaluation, place: int, batch: Any) -> Prepared:
        if self._undecided():
            self._decide(run, place, batch, self.widest)
        recipe = self._preparation.recipe(run, place, batch, self.plan.layout)
        recipe.prepare(self.plan.chunk, compiled=self.plan.compiled)
        return self._preparation.prepared(run, place, batch, recipe)

    def _undecided(self) -> bool:
        """Whether no product was made yet, or a wider block allows ways that were not tried."""
        if not self._width:
            return True
        if self.settings.chunk or self.plan.degraded:
            return False
        return len(self._chunks(self.widest)) > len(self._chunks(self._width))

    def _decide(self, run: Evaluation, place: int, batch: Any, width: int) -> None:
        """Layout and chunk: the fastest on this batch of those that fit into memory."""
        given = self.settings
        self._budget = _budget(given.memory, self.problem.device)
        # Once chosen the layout stays: what was computed before can be replayed.
        layout = given.layout or (self.plan.layout if self._width else None)
        layouts = [layout or "contiguous"]
        recipe = self._preparation.recipe(run, place, batch, layouts[0])
        if layout is None and recipe.convolves:
            layouts.append("channels last")
        seconds: dict[tuple[str, int], float] = {}
        for layout in layouts:  # in turns, as each holds the residuals of the batch
            seconds |= self._measure(run, place, batch, layout, width)
        if not self._fits(recipe, 1) and given.memory != "auto":
            raise InputError(
                f"memory={given.memory:,} bytes do not hold one product: the residuals of the first batch "
                f"take {recipe.residual_bytes:,} and the product {recipe.working_bytes[1]:,}; "
                "make the batches smaller, or the budget larger"
            )
        layout, chunk = min(
            seconds, key=lambda how: seconds[how] * (1 + WORTH_CHUNKING * (how[1] > 1))
        )
        start = _now(self.problem.device)
        self._preparation.recipe(run, place, batch, layout).residuals(run, batch)
        self._seconds = {
            "primal": _now(self.problem.device) - start,
            "linear": seconds[layout, chunk],
        }
        self._width = max(self._width, width)
        self.plan = replace(
            self.plan,
            engine="split",
            reason="traced, and equal to double backward on the first batch",
            layout=layout,
            chunk=chunk,
            compiled=given.compile,
            measured={_label(*how): value for how, value in seconds.items()},
        )

    def _chunks(self, width: int) -> list[int]:
        """Numbers of vectors at once that are worth trying."""
        kind = self.problem.device.type
        return [chunk for chunk in CHUNKS.get(kind, CHUNKS["cpu"]) if chunk <= width]

    def _fits(self, recipe: Recipe, chunk: int) -> bool:
        return recipe.residual_bytes + recipe.working_bytes[chunk] <= self._budget

    def _measure(
        self, run: Evaluation, place: int, batch: Any, layout: str, width: int
    ) -> dict[tuple[str, int], float]:
        """Seconds per vector in a layout, by the chunk, for those that fit."""
        given, recipe = self.settings, self._preparation.recipe(run, place, batch, layout)
        chunks = [given.chunk] if given.chunk else [1]
        small = self.problem.device.type != "cpu" or recipe.working_bytes[1] <= SMALL
        for chunk in self._chunks(width) if small and not given.chunk else []:
            with contextlib.suppress(NotTraceable):
                recipe.prepare(chunk)
                chunks += [chunk] if self._fits(recipe, chunk) else []
        recipe.prepare(chunks[0])
        prepared = self._preparation.prepared(run, place, batch, recipe)
        return {(layout, chunk): value for chunk, value in self._time(prepared, chunks).items()}

    def _time(self, prepared: Prepared, chunks: list[int]) -> dict[int, float]:
        """Seconds per vector by the chunk: the best of three after a warm-up, taken in turns."""
        vectors = torch.ones(max(chunks), self.problem.size).to(
            self.problem.device, self.problem.dtype
        )
        times: dict[int, list[float]] = {chunk: [] for chunk in chunks}
        for _ in range(4):
            for chunk in list(times):
                start = _now(self.problem.device)
                try:
                    prepared.images(vectors[:chunk])
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error) or len(times) == 1:
                        raise
                    del times[chunk]
                    continue
                times[chunk].append((_now(self.problem.device) - start) / chunk)
        return {chunk: min(values[1:]) for chunk, values in times.items()}


def _budget(memory: Memory, device: torch.device) -> int:
    """Bytes that residuals and products may take: as asked, or half of what is free."""
    if memory != "auto":
        return memory
    return available_bytes(device) // 2


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _label(layout: str, chunk: int) -> str:
    return f"{layout}, " + ("one by one" if chunk == 1 else f"{chunk} at once")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
