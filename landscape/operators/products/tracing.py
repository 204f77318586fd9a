"""The arithmetic of a function of tensors as a graph of plain operations, free of side effects."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx


class NotTraceable(Exception):
    """Why a function cannot be written as such a graph, in one clause."""


def traced(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of `function(*inputs)`, which returns nested lists of tensors.

    Tracing computes with shapes only, so that whatever depends on values (control flow, shapes of
    results, numbers taken out of tensors) is refused, not frozen into the graph. Tensors that are no
    inputs are kept by reference.

    Raises:
        NotTraceable: with the reason.
    """
    try:
        graph = _record(function, inputs)
        if not _without_mutation(graph.graph):
            with torch.no_grad():
                graph = _record(functionalize(graph, remove="mutations"), inputs)
    except Exception as error:  # whatever keeps a function from being traced is a reason not to
        text = (str(error).strip() or "no reason given").splitlines()[0]
        raise NotTraceable(f"{type(error).__name__}: {text}") from error
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotTraceable(f"{node.target} draws random numbers")
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            raise NotTraceable(f"{node.target} writes to an input")
        value = node.meta.get("val")
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, torch.SymInt):
                raise NotTraceable("the shapes of tensors depend on values")
            if isinstance(part, Tensor) and part.layout != torch.strided:
                raise NotTraceable("sparse tensors are at work")
            if isinstance(part, Tensor) and any(isinstance(n, torch.SymInt) for n in part.shape):
                raise NotTraceable("the shapes of tensors depend on values")
    graph.graph.eliminate_dead_code()
    return graph


def _record(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    # Torch describes every tensor to this log, in minutes, if anything in the process listens to it.
    log = logging.getLogger("torch.__trace")
    handlers, log.handlers = log.handlers, []
    try:
        record = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph: fx.GraphModule = record(*inputs)
    finally:
        log.handlers = handlers
    return graph


def _without_mutation(graph: fx.Graph) -> bool:
    """Turn operations in place into those that return, where nothing else sees what they change.

    Returns:
        Whether none is left. `functionalize` would do for all of them, in twice the time.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node, place in order.items():
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        changed, plain = node.args[0], _returning(node.target)
        if plain is None or changed.op != "call_function":
            return False
        if any(is_view(other) for other in (changed, *changed.users)):
            return False
        if len({other.meta["val"].dtype for other in node.all_input_nodes}) > 1:
            return False
        node.target = plain
        later = {user for user in changed.users if order[user] > place}
        changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    return True


def _returning(operation: Any) -> Any:
    """The form of `add_` and its like that leaves its argument alone, None if there is none."""
    name = operation._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, operation._overloadname, None)


def is_view(node: fx.Node) -> bool:
    """Whether a node shares the memory of its first argument."""
    return bool(getattr(node.target, "is_view", False))
