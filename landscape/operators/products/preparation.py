"""Batches made ready to be multiplied: traced once per shape, and compared with autograd."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from landscape.batches import row_count, take_rows
from landscape.evaluation import Evaluation
from landscape.memory import is_out_of_memory
from landscape.operators.products.double_backward import Product
from landscape.operators.products.footprint import storage_bytes
from landscape.operators.products.recipes import Maps, Recipe, Value, key
from landscape.operators.products.tracing import NotTraceable
from landscape.problem import Problem

Middle = Callable[[Tensor], Tensor]
# Largest accepted difference from autograd: no rounding, but a sign of something frozen into the trace.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
TF32 = 0.02
SLICES = 4  # of a batch, in which it is compared


@dataclass(frozen=True)
class Form:
    """What an operator multiplies by, batch by batch: a Hessian, or Jᵀ M J.

    `value` gives the loss or the output of a batch, `maps` the linear maps derived from it, and `middle`
    the M of a batch, from its place, the batch and its output.
    """

    value: Value
    maps: Maps
    middle: Callable[[int, Any, Tensor], Middle] | None = None


@dataclass
class Prepared:
    """A batch ready to be multiplied: its recipe, its residuals, its M."""

    recipe: Recipe
    residuals: list[Tensor]
    middle: Middle | None

    def images(self, vectors: Tensor) -> Tensor:
        """Products with vectors (c, P)."""
        images = self.recipe.images(0, self.residuals, vectors)
        if self.middle is None:
            return images
        with torch.enable_grad():
            tangents = torch.stack([self.middle(image).contiguous() for image in images]).detach()
        return self.recipe.images(1, self.residuals, tangents)

    def bytes(self) -> int:
        return storage_bytes(self.residuals)


class Preparation:
    """What turns the batches of a problem into something that multiplies.

    Args:
        problem: its batches, and the dtype of the products.
        form: what is multiplied.
        precision: of float32, "ieee" or "tf32".
    """

    def __init__(self, problem: Problem, form: Form, precision: str) -> None:
        self.problem, self.form, self._precision = problem, form, precision
        self.recipes: dict[Any, Recipe] = {}
        self._checked: set[int] = set()  # batches whose value is the model's

    def eager(self, run: Evaluation, place: int, batch: Any) -> Product:
        """The product of one batch by autograd."""
        value = self.form.value(run, batch)
        first, *others = self.form.maps(run, value)
        if self.form.middle is None:
            return first
        middle = self.form.middle(place, batch, value.detach())
        return lambda vector: others[0](middle(first(vector)).detach())

    def recipe(self, run: Evaluation, place: int, batch: Any, layout: str) -> Recipe:
        """The recipe for batches like this one, traced and compared with autograd if it is new."""
        this = (layout, key(run, batch))
        if this not in self.recipes:
            with torch.no_grad():
                example = self.form.value(run, batch)
            try:
                recipe = Recipe(run, batch, self.form.value, self.form.maps, example, layout)
            except RuntimeError as error:  # torch's rewriting has its own surprises
                if is_out_of_memory(error):
                    raise
                raise NotTraceable(str(error).strip().splitlines()[0]) from error
            vector = torch.ones(self.problem.size, device=self.problem.device)
            vector[::2] = -1  # of both signs, and nothing random
            vector = vector.to(self.problem.dtype)
            try:
                found = self.prepared(run, place, batch, recipe).images(vector[None])[0]
            except (RuntimeError, TypeError) as error:  # some kernels run only under autograd
                if is_out_of_memory(error):
                    raise
                raise NotTraceable(str(error).strip().splitlines()[0]) from error
            self._verify(run, place, batch, vector, found)
            self.recipes[this] = recipe
        return self.recipes[this]

    def _verify(
        self, run: Evaluation, place: int, batch: Any, vector: Tensor, found: Tensor
    ) -> None:
        """Compare a product with autograd's, which takes more memory than anything else here.

        Where samples do not depend on each other, the sum over slices of the batch will do.
        """
        rows = row_count(batch)
        cuts = [rows * i // SLICES for i in range(SLICES + 1)]
        checked = self.problem.graphs_checked.copy()
        try:
            parts = [take_rows(batch, start, stop) for start, stop in pairwise(cuts)]
            expected = torch.zeros_like(found)
            for part in parts:
                expected += self.eager(run, place, part)(vector)
            self.problem.graphs_checked = checked
            self._require_close("product", found, expected)
        except Exception:  # noqa: BLE001 whatever a slice cannot do, the batch may
            self.problem.graphs_checked = checked
            self._require_close("product", found, self.eager(run, place, batch)(vector))

    def prepared(self, run: Evaluation, place: int, batch: Any, recipe: Recipe) -> Prepared:
        """A batch ready to be multiplied; the value of each is once compared with the model's."""
        residuals = recipe.residuals(run, batch)
        value = recipe.value(residuals)
        if place not in self._checked:
            with torch.no_grad():
                self._require_close("value", value, self.form.value(run, batch))
            self._checked.add(place)
        middle = self.form.middle(place, batch, value) if self.form.middle else None
        return Prepared(recipe, residuals, middle)

    def _require_close(self, what: str, found: Tensor, expected: Tensor) -> None:
        difference = float((found - expected.detach()).norm())
        size = float(expected.norm())
        tolerance = TF32 if self._precision == "tf32" else TOLERANCE[self.problem.dtype]
        if not difference <= tolerance * size:
            share = difference / size if size else difference
            raise NotTraceable(f"the traced {what} differs from autograd's by {share:.1g}")
