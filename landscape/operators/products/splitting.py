"""A traced product in two parts: what depends on the vector, and what does not.

The primal part runs once per batch and serves every vector; a linear part is the product itself.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx


@dataclass(frozen=True)
class Split:
    """A function f(inputs, vectors) that is linear in every vector and has an image for each.

    `primal(*inputs)` gives a list of tensors, the residuals, of which those at `needs[i]` are the first
    arguments of `linear[i]`, and vector i the last; those at `values` are what f returns beside the
    images.
    """

    primal: fx.GraphModule
    linear: list[fx.GraphModule]
    needs: list[list[int]]
    values: list[int]

    def apply(self, i: int, residuals: list[Tensor], vector: Tensor) -> Tensor:
        """Image of vector i."""
        image: Tensor = self.linear[i](*(residuals[k] for k in self.needs[i]), vector)
        return image


def dependent_nodes(graph: fx.Graph, inputs: list[fx.Node]) -> set[fx.Node]:
    """The given inputs and every node that depends on them, the output excepted."""
    found = set(inputs)
    for node in graph.nodes:
        if node.op != "output" and any(argument in found for argument in node.all_input_nodes):
            found.add(node)
    return found


def split(traced: fx.GraphModule, vectors: int) -> Split:
    """Cut a traced function at what depends on its last inputs.

    Args:
        traced: a graph without side effects that returns a list whose last entries are the images.
        vectors: how many of the last inputs are vectors; no image depends on two of them.
    """
    graph = traced.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"][-vectors:]
    returned: list[Any] = list(graph.output_node().args[0])  # type: ignore[arg-type]
    values, images = returned[:-vectors], returned[-vectors:]
    parts = [dependent_nodes(graph, [node]) for node in inputs]
    linear = set().union(*parts)

    used = dict.fromkeys(values)
    for node in linear:
        used |= dict.fromkeys(a for a in node.all_input_nodes if a not in linear)
    used |= dict.fromkeys(image for image in images if image not in linear)
    residuals = [node for node in graph.nodes if node in used]
    place = {node: k for k, node in enumerate(residuals)}

    primal = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in linear and node.op != "output":
            copies[node] = primal.node_copy(node, copies.__getitem__)
    primal.output([copies[node] for node in residuals])
    primal.eliminate_dead_code()

    found = Split(fx.GraphModule(traced, primal), [], [], [place[node] for node in values])
    for part, vector, image in zip(parts, inputs, images, strict=True):
        needed = dict.fromkeys(
            a for node in graph.nodes if node in part for a in node.all_input_nodes if a not in part
        )
        if image not in part:  # constant in the vector, hence zero
            needed[image] = None
        graph_of_part = fx.Graph()
        copies = {}
        for k, node in enumerate(needed):
            copies[node] = graph_of_part.placeholder(f"residual_{k}")
        for node in (vector, *(n for n in graph.nodes if n in part and n is not vector)):
            copies[node] = graph_of_part.node_copy(node, copies.__getitem__)
        for node, copied in copies.items():
            copied.meta = dict(node.meta)
        graph_of_part.output(copies[image])
        graph_of_part.eliminate_dead_code()
        found.linear.append(fx.GraphModule(traced, graph_of_part))
        found.needs.append([place[node] for node in needed])
    return found
