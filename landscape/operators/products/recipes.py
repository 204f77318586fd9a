"""The product of one batch as traced graphs, for all batches of the same shapes."""

import contextlib
import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from landscape.evaluation import Evaluation
from landscape.operators.products.double_backward import Product
from landscape.operators.products.footprint import storage_bytes, working_bytes
from landscape.operators.products.reuse import reusing
from landscape.operators.products.rewritten import ChannelsLast, Rewritten, channels_last
from landscape.operators.products.simplification import Simplification
from landscape.operators.products.splitting import split
from landscape.operators.products.tracing import NotTraceable, traced

# The linear maps of a batch, given the value (loss or output) they were differentiated from: first of a
# parameter vector, then of what the map before has given.
Maps = Callable[[Evaluation, Tensor], Sequence[Product]]
# The value of a batch that the maps are derived from.
Value = Callable[[Evaluation, Any], Tensor]


class Recipe:
    """A traced product of one batch shape: its residuals, and its maps of one vector or of a chunk.

    Args:
        run: a stay in the model.
        batch: one with the shapes in question.
        value, maps: what is traced.
        example: the value of this batch.
        layout: of images, "contiguous" or "channels last".

    Raises:
        NotTraceable: with the reason.
    """

    def __init__(
        self, run: Evaluation, batch: Any, value: Value, maps: Maps, example: Tensor, layout: str
    ) -> None:
        self.layout = layout
        tensors, spec = flat(batch)
        places = [i for i, thing in enumerate(tensors) if isinstance(thing, Tensor)]
        inputs = [*run.values, *(tensors[i] for i in places)]
        vectors = [example.new_empty(run.problem.size), example.new_empty(example.shape)]
        known = len(run.values)
        count = (
            1 if example.ndim == 0 else 2
        )  # a loss has a Hessian, an output a Jacobian and its transpose

        def function(*everything: Tensor) -> list[Tensor]:
            with contextlib.ExitStack() as stack:
                if layout == "channels last":
                    stack.enter_context(ChannelsLast())
                    everything = tuple(map(channels_last, everything))
                stack.enter_context(torch.enable_grad())
                run.place(everything[:known])
                own = list(tensors)
                for place, tensor in zip(places, everything[known:], strict=False):
                    own[place] = tensor
                with Rewritten():
                    found = value(run, tree_unflatten(own, spec))
                products = maps(run, found)
                images = [p(v) for p, v in zip(products, everything[-count:], strict=True)]
                return [found.detach(), *images]

        try:
            graph = traced(function, [*inputs, *vectors[:count]])
        finally:
            run.place(run.values)
        Simplification(graph, count).run()
        self._split = split(graph, count)
        self._chunks: dict[int, list[Callable[..., Tensor]]] = {}
        self._chunks[1] = list(map(reusing, self._split.linear))
        self._compiled: set[int] = set()
        outputs = [n.meta["val"] for n in self._split.primal.graph.output_node().all_input_nodes]
        given = [n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"]
        self.residual_bytes = storage_bytes(outputs, given)
        self.primal_bytes = working_bytes(self._split.primal)
        self.working_bytes = {1: max(map(working_bytes, self._split.linear))}
        self.convolves = any(
            n.target is torch.ops.aten.convolution.default and n.meta["val"].ndim == 4
            for n in self._split.primal.graph.nodes
        )

    def residuals(self, run: Evaluation, batch: Any) -> list[Tensor]:
        """What every vector shares: computed once per batch."""
        tensors = [thing for thing in flat(batch)[0] if isinstance(thing, Tensor)]
        with torch.no_grad():
            return list(self._split.primal(*run.values, *tensors))

    def value(self, residuals: list[Tensor]) -> Tensor:
        """The value of the batch whose residuals these are."""
        return residuals[self._split.values[0]]

    def images(self, i: int, residuals: list[Tensor], vectors: Tensor) -> Tensor:
        """Images (c, …) of vectors (c, …) under map i."""
        needed = [residuals[k] for k in self._split.needs[i]]
        with torch.no_grad():
            if len(vectors) == 1:
                return self._chunks[1][i](*needed, vectors[0])[None]
            return self._chunks[len(vectors)][i](*needed, vectors)

    def prepare(self, chunk: int, *, compiled: bool = False) -> None:
        """Make ready to multiply `chunk` vectors at once, and one; `compiled` hands them to Inductor.

        Raises:
            NotTraceable: some operation cannot be batched.
        """
        if chunk not in self._chunks:
            parts = [_batched(part, chunk) for part in self._split.linear]
            self._chunks[chunk] = list(map(reusing, parts))
            self.working_bytes[chunk] = max(map(working_bytes, parts))
        for width in {1, chunk} - self._compiled if compiled else ():
            self._chunks[width] = [torch.compile(part) for part in self._chunks[width]]
            self._compiled.add(width)


def _batched(part: fx.GraphModule, chunk: int) -> fx.GraphModule:
    """A linear map of vectors (chunk, …)."""
    *residuals, vector = (n.meta["val"] for n in part.graph.nodes if n.op == "placeholder")
    several = vector.new_empty(chunk, *vector.shape)
    loose = fx.GraphModule(part, copy.deepcopy(part.graph))
    for node in loose.graph.nodes:  # batched, a tensor may have other strides than the view expects
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
    loose.recompile()
    graph = traced(torch.vmap(loose, (None,) * len(residuals) + (0,)), [*residuals, several])
    Simplification(graph, 1).run()
    return graph


def flat(batch: Any) -> tuple[list[Any], TreeSpec]:
    """The tensors and other things in a batch, and how they are nested.

    Raises:
        NotTraceable: there are things whose sameness cannot be told.
    """
    leaves, spec = tree_flatten(batch)
    for thing in leaves:
        if not isinstance(thing, (Tensor, int, float, str, bool, type(None))):
            raise NotTraceable(f"the batches hold a {type(thing).__name__}")
    return leaves, spec


def key(run: Evaluation, batch: Any) -> Any:
    """Two batches with one key are multiplied by one recipe."""
    leaves, spec = flat(batch)
    described = [_described(x) if isinstance(x, Tensor) else (type(x), x) for x in leaves]
    return (*map(_described, run.values), *described, str(spec), *_configuration(run))


def _described(tensor: Tensor) -> Any:
    return tensor.shape, tensor.stride() if tensor.layout == torch.strided else None, tensor.dtype


def _configuration(run: Evaluation) -> Any:
    """Everything in the modules that is no tensor: a trace has it frozen in."""
    for module in run.problem.modules:
        for name, value in vars(module).items():
            if isinstance(value, (int, float, str, bool)):
                yield name, value
            elif isinstance(value, dict):
                if name not in ("_parameters", "_buffers"):
                    yield name, tuple(map(_identity, value.values()))
            elif isinstance(value, (list, tuple)):
                yield name, tuple(map(_identity, value))
            elif not isinstance(value, Tensor):
                yield name, id(value)


def _identity(thing: Any) -> Any:
    """What tells an entry of a module's list from another; caches of the weights are made anew."""
    if isinstance(thing, weakref.ref) or (isinstance(thing, Tensor) and thing.requires_grad):
        return type(thing)
    return thing if isinstance(thing, (int, float, str, bool)) else id(thing)
