"""How much memory a traced graph will take, told before it runs."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx


def storage_bytes(tensors: Iterable[Tensor], known: Iterable[Tensor] = ()) -> int:
    """Memory of tensors beyond the known ones; views of one block count once."""
    seen = {tensor.untyped_storage()._cdata for tensor in known}
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            total += storage.nbytes()
    return total


def working_bytes(module: fx.GraphModule) -> int:
    """The most that a graph holds at once beyond its inputs, every value freed after its last use."""
    nodes = list(module.graph.nodes)
    owners: dict[int, int] = {}  # storage → place of its last use
    sizes: dict[int, int] = {}
    given: set[int] = set()
    for place, node in enumerate(nodes):
        for other in (node, *node.all_input_nodes):
            for tensor in tensors(other):
                storage = tensor.untyped_storage()
                owners[storage._cdata] = place
                sizes[storage._cdata] = storage.nbytes()
                if other.op in ("placeholder", "get_attr"):
                    given.add(storage._cdata)
    held, peak = 0, 0
    alive: set[int] = set()
    for place, node in enumerate(nodes):
        for tensor in tensors(node):
            key = tensor.untyped_storage()._cdata
            if key not in alive and key not in given:
                alive.add(key)
                held += sizes[key]
        peak = max(peak, held)
        for key in [key for key in alive if owners[key] == place]:
            alive.discard(key)
            held -= sizes[key]
    return peak


def tensors(node: fx.Node) -> list[Tensor]:
    """What a node gives, without its data."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tensor for tensor in values if isinstance(tensor, torch.Tensor)]
