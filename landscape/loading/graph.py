"""Runs a graph of torch's own operators that was read as data: no source code is ever made of it.

A node names an operator, its arguments and its results; values travel in a table by name. Operators are
looked up in a fixed place (`torch.ops.aten`), so a name can mean an operator and nothing else.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Values = dict[Any, Any]
Getter = Callable[[Values], Any]
DEVICE = 0  # the key of the device in a table of values; names are strings

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_STRIDED = 7

# Operators that reach outside, or behind the shape of a tensor.
_DENIED = re.compile(
    r"from_file|save|load|set_?|set_data|data_ptr|resize\w*|storage\w*|record_stream"
)
# Of the operators that torch keeps to itself, those that programs are made of.
_PRIVATE = re.compile(
    r"__(and|or|xor|lshift|rshift)__|_softmax|_log_softmax|_to_copy|_unsafe_view|_convolution|_weight_norm"
    r"|_native_batch_norm_legit(_no_training|_functional)?|_adaptive_avg_pool[23]d|_trilinear|_fft_\w\d\w"
    r"|_local_scalar_dense|_scaled_dot_product_\w+|_cdist_forward|_unique2?"
    r"|_upsample_\w+|_pdist_forward|_unsafe_index"
)
# These only repeat what the trace saw; a program in another type would fail for nothing.
_ASSERTIONS = re.compile(r"_assert_\w+|sym_constrain_range\w*|_functional_assert\w*")
_MOST = 2**63


class Refused(ValueError):
    """A graph that is not run; the message says what is wrong with it."""


@dataclass(frozen=True)
class Node:
    """One call: a function of the values so far, and the names of its results."""

    call: Getter
    results: tuple[Any, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in order, the names of the inputs, and the outputs."""

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Getter, ...]

    def run(self, given: Sequence[Any], device: Any) -> list[Any]:
        """The outputs for the values of the inputs."""
        values: Values = dict(zip(self.inputs, given, strict=True))
        values[DEVICE] = device
        for node in self.nodes:
            _store(values, node.results, node.call(values))
        return [output(values) for output in self.outputs]


def read_graph(description: Any) -> Graph:
    """A graph from its description, with every operator found and every argument understood.

    Raises:
        Refused: something in it is no operator, value or name that is known here.
    """
    try:
        return Graph(
            tuple(_name(only(item)[1]) for item in description["inputs"]),
            tuple(_node(node) for node in description["nodes"] if not _is_assertion(node)),
            tuple(_argument(item) for item in description["outputs"]),
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise Refused(f"the graph is not described as torch does ({error!r})") from error


def only(union: Any) -> tuple[str, Any]:
    """The one entry of a dictionary: a kind and a value."""
    if not isinstance(union, dict) or len(union) != 1:
        raise Refused(f"{str(union)[:60]!r} is no value of one kind")
    return next(iter(union.items()))


def _name(value: Any) -> str:
    """The name in `{"name": …}` or `{"as_name": …}`."""
    kind, name = only(value)
    if kind not in ("name", "as_name") or not isinstance(name, str):
        raise Refused(f"{str(value)[:60]!r} is no name")
    return name


def _is_assertion(node: Any) -> bool:
    parts = str(node["target"]).split(".")
    return parts[:3] == ["torch", "ops", "aten"] and bool(_ASSERTIONS.fullmatch(parts[3]))


def _node(node: Any) -> Node:
    target = node["target"]
    if not isinstance(target, str):
        raise Refused(f"the operation {target!r} is no name")
    results = tuple(_result(item) for item in node["outputs"])
    if target.startswith("torch.ops.higher_order."):
        return Node(_inner_graph(target, node["inputs"]), results)
    function = _function(target)
    positional, keywords = [], {}
    for item in node["inputs"]:
        getter = _argument(item["arg"])
        if item.get("kind") == 2 or (item.get("kind") is None and item["name"]):
            keywords[str(item["name"])] = getter
        else:
            positional.append(getter)

    def call(values: Values) -> Any:
        args = [getter(values) for getter in positional]
        return function(*args, **{name: getter(values) for name, getter in keywords.items()})

    return Node(call, results)


def _inner_graph(target: str, inputs: Any) -> Getter:
    """A part of the program under `torch.no_grad()`, or under autocast, which evaluations switch off."""
    kind = target.removeprefix("torch.ops.higher_order.")
    place = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(kind)
    if place is None:
        raise Refused(
            f"the operation {target!r} is control flow or custom code, which is not opened"
        )
    body = read_graph(inputs[place]["arg"]["as_graph"]["graph"])
    given = [_argument(item["arg"]) for item in inputs[place + 1 :]]
    switch = inputs[0]["arg"].get("as_bool") if place == 1 else None

    def call(values: Values) -> Any:
        enabled = torch.is_grad_enabled() if switch is None else switch and torch.is_grad_enabled()
        with torch.set_grad_enabled(enabled):
            return body.run([getter(values) for getter in given], values[DEVICE])

    return call


def _result(item: Any) -> Any:
    """Where a result goes: a name, a list of places, or nowhere."""
    kind, value = only(item)
    if kind == "as_none":
        return None
    if kind in ("as_tensors", "as_sym_ints", "as_sym_floats"):
        return [_name(entry) for entry in value]
    if kind in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        return _name(value) if kind != "as_optional_tensor" else _result(value)
    raise Refused(f"a result of kind {kind!r} is unknown")


def _store(values: Values, places: Sequence[Any], result: Any) -> None:
    if not places:
        return
    if len(places) == 1 and not (isinstance(result, (list, tuple)) and isinstance(places[0], str)):
        result = [result]
    for place, value in zip(places, result, strict=True):
        if isinstance(place, list):
            _store(values, place, value)
        elif place is not None:
            values[place] = value


def _argument(item: Any) -> Getter:
    """How to get an argument from the values so far."""
    kind, value = only(item)
    if kind in ("as_tensor", "as_custom_obj"):
        if kind == "as_custom_obj":
            raise Refused("the program holds an object of its author's class")
        name = _name(value)
        return lambda values: values[name]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        inner, content = only(value)
        if inner == "as_name":
            return lambda values: values[content]
        return _constant(inner, content)
    if kind == "as_device":
        return lambda values: values[DEVICE]  # wherever the problem is, not where it was exported
    parts = {"as_tensors": "as_tensor", "as_nested_tensors": "as_tensors"}.get(kind)
    parts = parts or {f"as_sym_{n}s": f"as_sym_{n}" for n in ("int", "float", "bool")}.get(kind)
    if parts is not None:
        return _listed([_argument({parts: entry}) for entry in value])
    if kind == "as_optional_tensors":
        return _listed([_argument(entry) for entry in value])
    if kind == "as_optional_tensor":
        return _argument(value)
    return _constant(kind, value)


def _listed(getters: list[Getter]) -> Getter:
    return lambda values: [getter(values) for getter in getters]


def _constant(kind: str, value: Any) -> Getter:
    constant = constant_of(kind, value)
    return lambda values: constant


def constant_of(kind: str, value: Any) -> Any:
    """A number, text, type or list of these.

    Raises:
        Refused: the value is not of the kind it says.
    """
    if kind == "as_none":
        return None
    if kind == "as_scalar_type" and value in DTYPES:
        return DTYPES[value]
    if kind == "as_memory_format" and value in _MEMORY_FORMATS:
        return _MEMORY_FORMATS[value]
    if kind == "as_layout" and value == _STRIDED:
        return torch.strided
    if kind == "as_float" and value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if kind == "as_complex":
        return complex(float(value["real"]), float(value["imag"]))
    types = {"as_int": (int,), "as_float": (float, int), "as_bool": (bool,), "as_string": (str,)}
    if kind in types and type(value) in types[kind]:
        return value
    if kind.endswith("s") and kind[:-1] in types and isinstance(value, list):
        return [constant_of(kind[:-1], entry) for entry in value]
    if kind in ("as_int_lists", "as_float_lists") and isinstance(value, list):
        return [constant_of(f"{kind.removesuffix('_lists')}s", entry) for entry in value]
    raise Refused(f"the value {str(value)[:60]!r} is not of the kind {kind!r}")


def _function(target: str) -> Callable[..., Any]:
    """The function that a target names: an operator of aten, or arithmetic on sizes."""
    if target in _ARITHMETIC:
        return _of_numbers(_ARITHMETIC[target])
    if target == "_operator.getitem":
        return _entry
    parts = target.split(".")
    if len(parts) != 5 or parts[:3] != ["torch", "ops", "aten"]:
        raise Refused(f"the operation {target[:80]!r} is none of torch's own operators")
    name, overload = parts[3], parts[4]
    if _DENIED.fullmatch(name.strip("_")) or overload == "out" or overload.endswith("_out"):
        raise Refused(f"the operation {target!r} reaches outside of its arguments")
    if name.startswith("_") and not _PRIVATE.fullmatch(name):
        raise Refused(f"the operation {target!r} is internal to torch, and is not opened")
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise Refused(f"the operation {target!r} is unknown to this version of torch")
    if not any(
        "Tensor" in str(part.type) for part in (*found._schema.arguments, *found._schema.returns)
    ):
        raise Refused(f"the operation {target!r} has nothing to do with tensors")
    return found


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            *("add", "sub", "mul", "neg", "pos", "floordiv", "truediv", "mod"),
            *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"),
        )
    },
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "math.sqrt": math.sqrt,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_not": operator.not_,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_ite": lambda test, yes, no: yes if test else no,
}


def _of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes and gives numbers of the size of sizes."""

    def call(*args: Any) -> Any:
        if not all(isinstance(arg, (int, float)) for arg in args):
            raise Refused("arithmetic on sizes was given something else")
        result = function(*args)
        if isinstance(result, int) and abs(result) >= _MOST:
            raise Refused("arithmetic on sizes exceeds 64 bits")
        return result

    return call


def _entry(things: Any, index: Any) -> Any:
    if not isinstance(things, (list, tuple)) or not isinstance(index, int):
        raise Refused("an entry is taken of something that is no list")
    return things[index]
