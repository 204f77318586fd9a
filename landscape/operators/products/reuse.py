"""Less traffic for the same product: results written over operands that nothing needs any more.

Elementwise operations wait for memory, and a fresh result costs a third more of it than one written in
place.
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx

from landscape.operators.products.footprint import tensors

aten = torch.ops.aten

_WITH = {  # x + a · b in one operation, and the name of the factor of a · b
    aten.mm.default: (aten.addmm.default, "alpha"),
    aten.bmm.default: (aten.baddbmm.default, "alpha"),
    aten.mul.Tensor: (aten.addcmul.default, "value"),
}
_OVER = {  # operations in place, all on their first argument
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.div.Tensor: aten.div_.Tensor,
    aten.neg.default: aten.neg_.default,
    aten.addmm.default: aten.addmm_.default,
    aten.baddbmm.default: aten.baddbmm_.default,
    aten.addcmul.default: aten.addcmul_.default,
}
_COMMUTE = {aten.add.Tensor, aten.mul.Tensor}


def reusing(module: fx.GraphModule) -> fx.GraphModule:
    """The same function, its inputs left alone, its values written over each other where that is safe."""
    graph = copy.deepcopy(module.graph)
    _merge_sums(graph)
    _write_over(graph)
    graph.lint()
    return fx.GraphModule(module, graph)


def _merge_sums(graph: fx.Graph) -> None:
    """x ± a · b in one operation, for products of numbers and of matrices."""
    for node in graph.nodes:
        if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
            continue
        minus = node.target is aten.sub.Tensor
        for other, product in (node.args,) if minus else (node.args, node.args[::-1]):
            if not (isinstance(product, fx.Node) and product.target in _WITH):
                continue
            single = len(product.users) == 1 and not product.kwargs
            if not (single and _same(product, node) and _same(other, node)):
                continue
            if not all(isinstance(factor, fx.Node) for factor in product.args):
                continue
            target, factor = _WITH[product.target]
            node.target, node.args = target, (other, *product.args)
            node.kwargs = {factor: -1} if minus else {}
            graph.erase_node(product)
            break


def _write_over(graph: fx.Graph) -> None:
    """Operations in place, where the first operand's memory is the graph's own and used for the last time."""
    nodes = list(graph.nodes)
    last: dict[int, int] = {}  # block of memory → place of its last use
    given: set[int] = set()
    for place, node in enumerate(nodes):
        for other in (node, *node.all_input_nodes):
            last |= dict.fromkeys(_blocks(other), place)
        if node.op in ("placeholder", "get_attr"):
            given |= _blocks(node)
    for place, node in enumerate(nodes):
        if node.target not in _OVER:
            continue
        swap = node.target in _COMMUTE and not node.kwargs
        for arguments in (node.args, node.args[::-1]) if swap else (node.args,):
            first, *others = arguments
            if not _same(first, node):
                continue
            own = _blocks(first)
            shared = any(isinstance(x, fx.Node) and _blocks(x) & own for x in others)
            if shared or own & given or any(last[block] > place for block in own):
                continue
            node.target, node.args = _OVER[node.target], tuple(arguments)
            break


def _same(one: Any, other: fx.Node) -> bool:
    """Whether something is a tensor that lies in memory in the same way as another."""
    a, b = one.meta["val"] if isinstance(one, fx.Node) else None, other.meta["val"]
    if not isinstance(a, Tensor):
        return False
    return (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def _blocks(node: fx.Node) -> set[Any]:
    return {tensor.untyped_storage()._cdata for tensor in tensors(node)}
