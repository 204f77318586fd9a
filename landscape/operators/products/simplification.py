"""Less arithmetic for the same product: the algebra that autograd leaves undone.

Every rule moves work from the part of a product that runs once per vector to the part that runs once per
batch, or leaves out what does nothing. Rounding changes, the product does not.
"""

from typing import Any, NamedTuple

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
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
}
_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
_IDLE = _RESHAPES | {aten.expand.default, aten._to_copy.default, aten.detach.default}
_ZEROS = {aten.zeros_like.default, aten.zeros.default}


class Scaled(NamedTuple):
    """A node as a product: what depends on the vector, and a node or number that does not."""

    vector: fx.Node
    factor: Any


class Simplification:
    """Rewrites of one graph, which is linear in its last inputs, the vectors."""

    def __init__(self, traced: fx.GraphModule, vectors: int) -> None:
        self.traced, self.graph = traced, traced.graph
        CSEPass()(traced)
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.linear = dependent_nodes(self.graph, inputs[-vectors:])

    def run(self) -> None:
        """Apply every rule to every node that depends on a vector, in the order of the graph."""
        rules = (self._idle, self._slope, self._product, self._sum, self._spread)
        for node in list(self.graph.nodes):
            for rule in rules:
                if node.op != "call_function" or node not in self.linear:
                    break
                other = rule(node)
                if other is not None:
                    node.replace_all_uses_with(other)
                    self.graph.erase_node(node)
                    node = other
        self.graph.eliminate_dead_code()
        CSEPass()(self.traced)
        self.graph.lint()
        self.traced.recompile()

    def _new(self, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node in front of another, its shape worked out."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        values: Any = fx.node.map_arg(args, lambda argument: argument.meta["val"])
        mode = next(v for v in values if isinstance(v, FakeTensor)).fake_mode
        with mode, torch.no_grad():
            node.meta["val"] = target(*values, **kwargs)
        if any(argument in self.linear for argument in node.all_input_nodes):
            self.linear.add(node)
        return node

    def _idle(self, node: fx.Node) -> fx.Node | None:
        """Operations that change nothing."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return None
        before = source.args[0] if source.args else None
        twice = node.target is source.target and isinstance(before, fx.Node)
        if twice and node.target is aten.t.default:
            return before  # type: ignore[return-value]
        if twice and node.target is aten.transpose.int and _same_axes(node, source):
            return before  # type: ignore[return-value]
        if node.target in _RESHAPES and source.target in _RESHAPES and alike(before, node):
            return before  # type: ignore[return-value]
        padding = node.target is aten.constant_pad_nd.default and not any(node.args[1])  # type: ignore[arg-type]
        if (node.target in _IDLE or padding) and alike(source, node):
            return source
        if node.target in (aten.add.Tensor, aten.sub.Tensor) and not node.kwargs:
            left, right = node.args
            if _is_zero(right) and alike(left, node):
                return source
            if node.target is aten.add.Tensor and _is_zero(left) and alike(right, node):
                return right  # type: ignore[return-value]
        return None

    def _slope(self, node: fx.Node) -> fx.Node | None:
        """op(c, …) → c · op(1, …)."""
        if node.target not in _SLOPES or any(a in self.linear for a in node.args[1:]):
            return None
        cotangent, *others = node.args
        ones = self._new(node, aten.ones_like.default, next(a for a in others if _is_node(a)))
        slope = self._new(node, node.target, ones, *others, **node.kwargs)
        return self._new(node, aten.mul.Tensor, cotangent, slope)

    def _product(self, node: fx.Node) -> fx.Node | None:
        """(c · a) · b → c · (a · b), divisions and signs included."""
        outer = self._scaled(node)
        if outer is None or not self._only_here(outer.vector) or not alike(outer.vector, node):
            return None
        inner = self._scaled(outer.vector)
        if inner is None:
            return None
        return self._multiplied(node, inner.vector, self._times(node, inner.factor, outer.factor))

    def _sum(self, node: fx.Node) -> fx.Node | None:
        """c · a + c · b → c · (a + b)."""
        if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
            return None
        left, right = node.args
        if left is right or not (self._only_here(left) and self._only_here(right)):
            return None
        one, two = self._scaled(left), self._scaled(right)
        if one is None or two is None or one.vector is not two.vector:
            return None
        if not (_is_node(one.factor) and _is_node(two.factor)):
            return None
        both = self._new(node, node.target, one.factor, two.factor)
        return self._multiplied(node, one.vector, both)

    def _spread(self, node: fx.Node) -> fx.Node | None:
        """An expanded operand of an elementwise operation is as good unexpanded."""
        if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
            return None
        for place, argument in enumerate(node.args):
            if isinstance(argument, fx.Node) and argument.target is aten.expand.default:
                others = [a for a in node.args if isinstance(a, fx.Node) and a is not argument]
                shapes = [a.meta["val"].shape for a in (argument.args[0], *others)]  # type: ignore[union-attr]
                if others and torch.broadcast_shapes(*shapes) == node.meta["val"].shape:
                    node.update_arg(place, argument.args[0])
        return None

    def _only_here(self, thing: Any) -> bool:
        """Whether something depends on a vector and is used once."""
        return isinstance(thing, fx.Node) and thing in self.linear and len(thing.users) == 1

    def _scaled(self, node: Any) -> Scaled | None:
        """A node as a product, if it is one whose factor has the node's own dtype."""
        found = self._read(node)
        if found is None or not _is_node(found.factor):
            return found
        return found if found.factor.meta["val"].dtype == node.meta["val"].dtype else None

    def _read(self, node: fx.Node) -> Scaled | None:
        if node.target is aten.neg.default:
            return Scaled(node.args[0], -1.0)  # type: ignore[arg-type]
        if node.kwargs or len(node.args) != 2:
            return None
        left: Any
        right: Any
        left, right = node.args
        if node.target in (aten.mul.Tensor, aten.mul.Scalar):
            if left in self.linear and right not in self.linear:
                return Scaled(left, right)
            if right in self.linear and left not in self.linear:
                return Scaled(right, left)
        if node.target in (aten.div.Tensor, aten.div.Scalar) and right not in self.linear:
            if not _is_node(right):
                return Scaled(left, 1.0 / right)
            if right.meta["val"].dtype == node.meta["val"].dtype:  # 1/n of integers is float32
                return Scaled(left, self._new(node, aten.reciprocal.default, right))
        return None

    def _times(self, before: fx.Node, left: Any, right: Any) -> Any:
        """The product of two factors, each a node or a number."""
        if not _is_node(left):
            left, right = right, left
        if not _is_node(left):
            return left * right
        target = aten.mul.Tensor if _is_node(right) else aten.mul.Scalar
        return self._new(before, target, left, right)

    def _multiplied(self, node: fx.Node, vector: fx.Node, factor: Any) -> fx.Node | None:
        """vector · factor in place of a node, if that has the node's shape and type."""
        result: fx.Node = self._times(node, vector, factor)
        if alike(result, node):
            return result
        self.linear.discard(result)
        self.graph.erase_node(result)
        return None


def alike(left: Any, right: fx.Node) -> bool:
    """Whether two nodes give tensors of one shape, type and device."""
    one, two = left.meta.get("val") if _is_node(left) else None, right.meta.get("val")
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
        return False
    return (one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device)


def _is_node(thing: Any) -> bool:
    return isinstance(thing, fx.Node)


def _is_zero(thing: Any) -> bool:
    return isinstance(thing, fx.Node) and thing.target in _ZEROS


def _same_axes(one: fx.Node, other: fx.Node) -> bool:
    rank = one.meta["val"].ndim
    axes: list[Any] = [{axis % rank for axis in node.args[1:]} for node in (one, other)]  # type: ignore[operator]
    return bool(axes[0] == axes[1])
