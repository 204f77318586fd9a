"""Less arithmetic for the same product: the algebra that autograd leaves undone.

Everything here moves work from the part of a product that runs once per vector to the part that runs once
per batch, or leaves out what does nothing. Rounding changes, the product does not.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from landscape.operators.products.splitting import dependent_nodes

aten = torch.ops.aten

# Elementwise and linear in their first argument: op(c, …) = c · op(1, …).
_SLOPES = {
    aten.tanh_backward.default,
    aten.sigmoid_backward.default,
    aten.gelu_backward.default,
    aten.silu_backward.default,
    aten.elu_backward.default,
    aten.softplus_backward.default,
    aten.leaky_relu_backward.default,
    aten.hardswish_backward.default,
    aten.mish_backward.default,
    aten.log_sigmoid_backward.default,
}
_MOVES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}


class Simplification:
    """Rewrites of one graph, linear in its last inputs, the vectors."""

    def __init__(self, traced: fx.GraphModule, vectors: int) -> None:
        self.traced, self.graph = traced, traced.graph
        CSEPass()(traced)
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.linear = dependent_nodes(self.graph, inputs[-vectors:])

    def run(self) -> fx.GraphModule:
        for node in list(self.graph.nodes):
            if node in self.linear and node.op == "call_function":
                for rule in (self._idle, self._slope, self._product, self._sum, self._spread):
                    other = rule(node)
                    if other is not None and other is not node:
                        node.replace_all_uses_with(other)
                        self.graph.erase_node(node)
                        node = other
                        if node.op != "call_function":
                            break
        self.graph.eliminate_dead_code()
        CSEPass()(self.traced)
        self.graph.lint()
        self.traced.recompile()
        return self.traced

    def _new(self, before: fx.Node, target: Any, *args: Any) -> fx.Node:
        """A node in front of another, with its shape worked out."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        values = fx.node.map_arg(args, lambda argument: argument.meta["val"])
        mode = next(v for v in values if isinstance(v, torch.Tensor)).fake_mode
        with mode, torch.no_grad():
            node.meta["val"] = target(*values)
        if any(argument in self.linear for argument in node.all_input_nodes):
            self.linear.add(node)
        return node

    def _one(self, thing: Any) -> bool:
        """Whether something is a linear node that nothing else needs."""
        return isinstance(thing, fx.Node) and thing in self.linear and len(thing.users) == 1

    def _primal(self, thing: Any) -> bool:
        return not (isinstance(thing, fx.Node) and thing in self.linear)

    def _idle(self, node: fx.Node) -> fx.Node | None:
        """Operations that change nothing."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
            return None
        if node.target is aten.t.default and source.target is aten.t.default:
            return source.args[0]
        if node.target is aten.transpose.int and source.target is aten.transpose.int:
            dims = [{d % node.meta["val"].ndim for d in n.args[1:]} for n in (node, source)]
            return source.args[0] if dims[0] == dims[1] else None
        if node.target in _MOVES and source.target in _MOVES and len(source.users) == 1:
            inner = source.args[0]
            if same(inner, node):
                return inner
        if node.target in (
            *_MOVES,
            aten.expand.default,
            aten._to_copy.default,
            aten.detach.default,
            aten.alias.default,
        ):
            return source if same(source, node) else None
        if node.target is aten.constant_pad_nd.default and not any(node.args[1]):
            return source if same(source, node) else None
        if node.target in (aten.add.Tensor, aten.sub.Tensor):
            left, right = node.args[:2]
            if _is_zero(right) and same(left, node):
                return left
            if (
                node.target is aten.add.Tensor
                and _is_zero(left)
                and same(right, node)
                and not node.kwargs
            ):
                return right
        return None

    def _slope(self, node: fx.Node) -> fx.Node | None:
        """op(c, …) → c · op(1, …) where the second factor does not depend on the vector."""
        if node.target not in _SLOPES or not all(map(self._primal, node.args[1:])):
            return None
        if node.kwargs:
            slope_target = lambda *a: node.target(*a, **node.kwargs)
        example = next(a for a in node.args[1:] if isinstance(a, fx.Node))
        ones = self._new(node, aten.ones_like.default, example)
        with self.graph.inserting_before(node):
            slope = self.graph.call_function(node.target, (ones, *node.args[1:]), node.kwargs)
        slope.meta["val"] = node.meta["val"]
        return self._new(node, aten.mul.Tensor, node.args[0], slope)

    def _product(self, node: fx.Node) -> fx.Node | None:
        """(c · a) · b → c · (a · b), divisions and signs included."""
        factor = self._factor(node)
        if factor is None:
            return None
        vector, outer = factor
        if not self._one(vector) or (inner := self._factor(vector)) is None:
            if node.target is aten.div.Tensor:
                return self._scaled(node, vector, outer)
            if node.target is aten.mul.Tensor and node.args[0] is not vector:
                return self._scaled(node, vector, outer)
            return None
        base, first = inner
        if not same(vector, node):
            return None
        return self._scaled(node, base, self._times(node, first, outer))

    def _scaled(self, node: fx.Node, vector: fx.Node, factor: Any) -> fx.Node | None:
        if isinstance(factor, fx.Node):
            result = self._new(node, aten.mul.Tensor, vector, factor)
        else:
            result = self._new(node, aten.mul.Scalar, vector, factor)
        if not same(result, node):
            self.graph.erase_node(result)
            self.linear.discard(result)
            return None
        return result

    def _times(self, before: fx.Node, left: Any, right: Any) -> Any:
        """The product of two factors, each a node or a number."""
        if isinstance(left, fx.Node) and isinstance(right, fx.Node):
            return self._new(before, aten.mul.Tensor, left, right)
        if isinstance(left, fx.Node):
            return self._new(before, aten.mul.Scalar, left, right)
        if isinstance(right, fx.Node):
            return self._new(before, aten.mul.Scalar, right, left)
        return left * right

    def _factor(self, node: fx.Node) -> tuple[fx.Node, Any] | None:
        """A node as (what depends on the vector, what it is multiplied by, of the same dtype)."""
        factor = self._any_factor(node)
        if factor is not None and isinstance(factor[1], fx.Node):
            if factor[1].meta["val"].dtype != node.meta["val"].dtype:
                return None
        return factor

    def _any_factor(self, node: fx.Node) -> tuple[fx.Node, Any] | None:
        if node.target is aten.neg.default:
            return node.args[0], -1.0
        if node.kwargs or len(node.args) != 2:
            return None
        left, right = node.args
        if node.target in (aten.mul.Tensor, aten.mul.Scalar):
            if self._primal(right) and not self._primal(left):
                return left, right
            if self._primal(left) and not self._primal(right):
                return right, left
        if node.target in (aten.div.Tensor, aten.div.Scalar) and self._primal(right):
            if not isinstance(right, fx.Node):
                return left, 1.0 / right
            if right.meta["val"].dtype == node.meta["val"].dtype:  # 1/n of integers is float32
                return left, self._new(node, aten.reciprocal.default, right)
        return None

    def _sum(self, node: fx.Node) -> fx.Node | None:
        """c · a + c · b → c · (a + b)."""
        if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
            return None
        left, right = node.args
        if not (self._one(left) and self._one(right)) or left is right:
            return None
        one, two = self._factor(left), self._factor(right)
        if one is None or two is None or one[0] is not two[0]:
            return None
        if not (isinstance(one[1], fx.Node) and isinstance(two[1], fx.Node)):
            return None
        return self._scaled(node, one[0], self._new(node, node.target, one[1], two[1]))

    def _spread(self, node: fx.Node) -> fx.Node | None:
        """An expanded operand of an elementwise operation → the operand itself."""
        if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
            return None
        for place, argument in enumerate(node.args):
            if isinstance(argument, fx.Node) and argument.target is aten.expand.default:
                others = [a for a in node.args if isinstance(a, fx.Node) and a is not argument]
                shapes = [a.meta["val"].shape for a in (argument.args[0], *others)]
                if others and torch.broadcast_shapes(*shapes) == node.meta["val"].shape:
                    node.update_arg(place, argument.args[0])
        return None


def same(left: Any, right: Any) -> bool:
    """Whether two nodes give tensors of one shape, type and memory layout."""
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return False
    one, two = left.meta.get("val"), right.meta.get("val")
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
        return False
    return one.shape == two.shape and one.dtype == two.dtype and one.device == two.device


def _is_zero(thing: Any) -> bool:
    return isinstance(thing, fx.Node) and thing.target in (
        aten.zeros_like.default,
        aten.zeros.default,
    )
