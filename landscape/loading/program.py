"""Exported programs (`.pt2`): read as data, checked member by member, rebuilt, and only then loaded.

`torch.export.load` trusts its file: it unpickles sample inputs and whatever says `use_pickle`, imports
modules that the structure of the inputs names, evaluates guards and expressions of sizes, writes names
of arguments into source code that it runs, and calls any operator, those that write files too. So
nothing of a file reaches it here but members of known kind, and a program description in which every
string has been held against a rule; what has no rule is refused.

This protects against code in a file. It is no sandbox against bugs in torch's own kernels.
"""

import ast
import contextlib
import io
import json
import logging
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.errors import InputError
from landscape.loading.container import require_honest_zip

_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_CONFIGS = (f"{_WEIGHTS}model_weights_config.json", f"{_CONSTANTS}model_constants_config.json")
_PROGRAM, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
# Copied as they are; every other member is refused, but for what is dropped.
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.format_version|\.storage_alignment"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
)
_DROPPED = re.compile(r"extra/.*|\.data/serialization_id")
_ELEMENT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2}

_NAME = re.compile(r"[A-Za-z0-9_.]*", re.ASCII)
# Text given to an operator, such as "bij,bjk->bik": nothing that could end a string of Python.
_TEXT = re.compile(r"[A-Za-z0-9_ .,;:<>=+*/()\[\]-]*", re.ASCII)
_FILE_OPERATORS = {"from_file", "save"}
_HIGHER_ORDER = {"wrap_with_set_grad_enabled", "wrap_with_autocast", "cond", "invoke_subgraph"}
_PLAIN_FUNCTIONS = re.compile(
    r"_operator\.(add|sub|mul|neg|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|pos)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(int|float|max|min|not|sqrt|ite|sum)"
)
# The kinds of container that inputs and outputs may be made of.
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_SHAPE_FUNCTIONS = {
    *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt"),
    *("FloorToInt", "CeilDiv", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt"),
    *("RoundToInt", "ToFloat", "Identity", "IsNonOverlappingAndDenseIndicator"),
    *("Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Integer"),
    *("Add", "Mul"),
}
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_SYMBOL = re.compile(r"[su]\d+", re.ASCII)


@dataclass(frozen=True)
class Program:
    """A loaded program: its module, the numbers of rows it accepts, and how it treats batch norm."""

    module: nn.Module
    fewest_rows: int
    most_rows: float
    batch_norms: tuple[bool, ...]  # for each: whether it was exported with statistics of the batch


def load_program(path: Path | bytes, name: str, *, trust: bool = False) -> Program:
    """Load an exported program from a file, or from bytes inside an archive.

    Args:
        path: the file or its content; read once.
        name: what to call it in messages.
        trust: load the file as it is, pickles included.

    Raises:
        InputError: a member could run code or is of unknown kind, or torch cannot load what remains.
    """
    require_honest_zip(path, stored=True, name=name)
    content = path.read_bytes() if isinstance(path, Path) else path
    members = _members(content, name)
    description = _description(members, name)
    if not trust:
        content = _rebuilt(members, description, name)
    try:
        with _quiet():
            module = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # torch.export raises a large family
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the program in {name!r} cannot be loaded: {reason}") from error
    fewest, most = _rows(description)
    return Program(module, fewest, most, _batch_norms(description))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs of its own attempts: traces of errors that are reported in a sentence."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _members(content: bytes, name: str) -> dict[str, bytes]:
    """The members of the archive, without the one folder that they all lie in."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tops = {entry.partition("/")[0] for entry in archive.namelist()}
        if len(tops) != 1:
            raise InputError(f"{name!r} is no exported program: it has {len(tops)} top folders")
        return {entry.partition("/")[2]: archive.read(entry) for entry in archive.namelist()}


def _description(members: dict[str, bytes], name: str) -> dict[str, Any]:
    if _PROGRAM not in members:
        found = [member for member in members if member.startswith("models/")]
        raise InputError(
            f"{name!r} holds no program {_PROGRAM!r} (found {', '.join(found) or 'none'}): save it with "
            "torch.export.save"
        )
    return _json(members[_PROGRAM], _PROGRAM, name)


def _json(content: bytes, member: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{member!r} of {name!r} is no readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{member!r} of {name!r} is no JSON object")
    return found


def _rebuilt(members: dict[str, bytes], description: dict[str, Any], name: str) -> bytes:
    """The archive written anew, from the members that are data and the checked description."""

    def refuse(what: str, why: str) -> InputError:
        return InputError(
            f"{what} in {name!r} {why}: if you trust the file, say --trust-pickle (trust_pickle=True)"
        )

    kept = {member: content for member, content in members.items() if _PLAIN.fullmatch(member)}
    for member in members:
        known = member in (*_CONFIGS, _PROGRAM, _SAMPLES) or _DROPPED.fullmatch(member)
        if member not in kept and not known:
            raise refuse(f"the member {member!r}", "may run code when it is loaded")
    for config in _CONFIGS:
        payload = _json(members.get(config, b'{"config": {}}'), config, name)
        _check_payload(payload, members, config.rpartition("/")[0] + "/", refuse)
        kept[config] = json.dumps(payload).encode()
    try:
        checked = _checked(_without_extras(description), "", refuse)
    except RecursionError as error:
        raise refuse("the program", "is nested too deeply") from error
    kept[_PROGRAM] = json.dumps(checked).encode()
    kept[_SAMPLES] = b""  # torch would unpickle them, and runs as well without
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for member, content in kept.items():
            archive.writestr(f"program/{member}", content)
    return buffer.getvalue()


def _check_payload(
    payload: dict[str, Any],
    members: dict[str, bytes],
    folder: str,
    refuse: Callable[[str, str], InputError],
) -> None:
    """Refuse a weight or constant that is not plain numbers of the declared size."""
    entries = payload.get("config")
    if not isinstance(entries, dict):
        raise refuse(f"the list of {folder!r}", "is damaged")
    for key, entry in entries.items():
        what = f"the tensor {key!r}"
        if not isinstance(entry, dict) or not _NAME.fullmatch(key):
            raise refuse(what, "is not described as torch does")
        if entry.get("use_pickle") is not False:
            raise refuse(what, "is stored as a pickle, which can run code")
        place = f"{folder}{entry.get('path_name')}"
        if not _PLAIN.fullmatch(place):
            raise refuse(what, f"lies in {place!r}, which is not plain numbers")
        meta = entry.get("tensor_meta")
        meta = meta if isinstance(meta, dict) else {}
        sizes = [_fixed(size) for size in meta.get("sizes", [None])]
        if None in sizes or place not in members or meta.get("dtype") not in _ELEMENT_BYTES:
            raise refuse(what, "has no fixed shape, no known type, or no numbers")
        needed = math.prod(size for size in sizes if size is not None)
        if needed and not members[place]:
            raise refuse(what, f"declares {needed:,} numbers and holds none")


def _without_extras(description: dict[str, Any]) -> dict[str, Any]:
    """The description without what a run does not need: guards are code, traces are text.

    What the guards say of single sizes, torch checks anew from the shapes and ranges of the inputs.
    """
    return {key: value for key, value in description.items() if key != "torch_version"} | {
        "guards_code": []
    }


def _checked(value: Any, key: str, refuse: Callable[[str, str], InputError]) -> Any:
    """A copy of a part of the description in which every string obeys the rule of its key."""
    if isinstance(value, dict):
        found = {}
        for inner, item in value.items():
            if not _NAME.fullmatch(inner):
                raise refuse(f"the name {inner[:60]!r}", "is not a plain name")
            # The metadata of a node are stack traces and names of the modules it came from.
            found[inner] = {} if inner == "metadata" else _checked(item, inner, refuse)
        return found
    if isinstance(value, list):
        return [_checked(item, key, refuse) for item in value]
    if not isinstance(value, str):
        return value
    if key in ("target", "as_operator"):
        _check_operator(value, refuse)
    elif key == "expr_str":
        _check_expression(value, refuse)
    elif key in ("in_spec", "out_spec"):
        _check_structure(value, refuse)
    elif key in ("as_string", "as_strings"):
        if not _TEXT.fullmatch(value):
            raise refuse(f"the text {value[:60]!r}", "holds more than plain characters")
    elif not _NAME.fullmatch(value):
        raise refuse(f"the {key or 'program'} {value[:60]!r}", "is not a plain name")
    return value


def _check_operator(target: str, refuse: Callable[[str, str], InputError]) -> None:
    what = f"the operation {target[:80]!r}"
    parts = target.split(".")
    if _PLAIN_FUNCTIONS.fullmatch(target):
        return
    if target.startswith("torch.ops.higher_order.") and parts[-1] in _HIGHER_ORDER:
        return
    if len(parts) != 5 or parts[:3] != ["torch", "ops", "aten"]:
        raise refuse(what, "is none of torch's own operators")
    if parts[3].strip("_") in _FILE_OPERATORS:
        raise refuse(what, "reads or writes files")
    operator = getattr(getattr(torch.ops.aten, parts[3], None), parts[4], None)
    if not isinstance(operator, torch._ops.OpOverload):
        raise refuse(what, "is unknown to this version of torch")


def _check_structure(text: str, refuse: Callable[[str, str], InputError]) -> None:
    """The nesting of inputs or outputs; torch would import modules that an odd one names."""

    def walk(node: Any) -> bool:
        if not isinstance(node, dict) or node.get("type") not in _CONTAINERS:
            return False
        context = node.get("context")
        keys = json.loads(context) if isinstance(context, str) else context
        plain = keys is None or (
            isinstance(keys, list)
            and all(isinstance(k, (str, int)) and _NAME.fullmatch(str(k)) for k in keys)
        )
        children = node.get("children_spec")
        return plain and isinstance(children, list) and all(map(walk, children))

    try:
        version, tree = json.loads(text)
        fine = version == 1 and walk(tree)
    except (ValueError, TypeError):
        fine = False
    if not fine:
        raise refuse(
            f"the structure {text[:60]!r} of inputs or outputs",
            "holds more than tuples, lists and dictionaries with plain keys",
        )


def _check_expression(text: str, refuse: Callable[[str, str], InputError]) -> None:
    """A size such as `2*Symbol('s0', positive=True, integer=True) + 1`, which torch evaluates."""
    what = f"the size {text[:60]!r}"
    try:
        tree = ast.parse(text, mode="eval") if len(text) < 5000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not _is_size(tree.body):
        raise refuse(what, "is more than arithmetic of sizes, and torch would evaluate it")


def _is_size(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int) and abs(node.value) < 2**63
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        # Of symbols only, and not nested: a tower of powers would never end.
        power = node.right.value if isinstance(node.right, ast.Constant) else None
        return type(power) is int and 0 < power <= 8 and _is_symbol(node.left)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, _ARITHMETIC) and _is_size(node.left) and _is_size(node.right)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, (ast.USub, ast.UAdd)) and _is_size(node.operand)
    if isinstance(node, ast.Compare):
        return _is_size(node.left) and all(map(_is_size, node.comparators))
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "Symbol":
            return _is_symbol(node)
        return (
            node.func.id in _SHAPE_FUNCTIONS and not node.keywords and all(map(_is_size, node.args))
        )
    return False


def _is_symbol(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.fullmatch(node.id))
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return False
    name = node.args[0] if len(node.args) == 1 else None
    return (
        node.func.id == "Symbol"
        and isinstance(name, ast.Constant)
        and isinstance(name.value, str)
        and bool(_SYMBOL.fullmatch(name.value))
        and all(
            keyword.arg in ("positive", "integer", "nonnegative")
            and isinstance(keyword.value, ast.Constant)
            and type(keyword.value.value) is bool
            for keyword in node.keywords
        )
    )


def _fixed(size: Any) -> int | None:
    value = size.get("as_int") if isinstance(size, dict) else None
    return value if type(value) is int and value >= 0 else None


def _rows(description: dict[str, Any]) -> tuple[int, float]:
    """The fewest and the most rows that the program takes: the first size of its first input."""
    try:
        module = description["graph_module"]
        inputs = [
            s["user_input"]["arg"] for s in module["signature"]["input_specs"] if "user_input" in s
        ]
        name = next(arg["as_tensor"]["name"] for arg in inputs if "as_tensor" in arg)
        first = module["graph"]["tensor_values"][name]["sizes"][0]
        if (rows := _fixed(first)) is not None:
            return rows, rows
        symbol = re.fullmatch(r"Symbol\('(\w+)'.*\)|(\w+)", first["as_expr"]["expr_str"])
        limits = (
            description["range_constraints"][symbol.group(1) or symbol.group(2)] if symbol else {}
        )
        most = limits.get("max_val")
        fewest = limits.get("min_val") or 1
        # torch writes 2 for "anything": it traces with sizes of two and more.
        return (fewest if fewest > 2 else 1), (math.inf if most is None else most)
    except (KeyError, IndexError, TypeError, StopIteration):
        return 1, math.inf


def _batch_norms(description: dict[str, Any]) -> tuple[bool, ...]:
    """For each batch normalisation of the program, whether it uses statistics of the batch."""
    found = []
    for node in description.get("graph_module", {}).get("graph", {}).get("nodes", []):
        if "batch_norm" in node.get("target", ""):
            flags = [i["arg"].get("as_bool") for i in node["inputs"] if i["name"] == "training"]
            found.append(bool(flags and flags[0]))
    return tuple(found)
