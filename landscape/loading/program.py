"""Exported programs (`.pt2`): read as data and run by `landscape.loading.graph`, never by their loader.

`torch.export.load` trusts its file. It unpickles sample inputs and whatever says `use_pickle`, imports
modules that the structure of the inputs names, evaluates guards and expressions of sizes, and writes names
from the file into Python source that it runs. Here only two kinds of members are looked at: plain numbers,
and the description of the program, whose operators are looked up among torch's own. This protects against
code in a file. It is no sandbox against bugs in torch's kernels, and running a program takes the time and
memory that its author wrote into it.
"""

import contextlib
import io
import json
import logging
import math
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.loading.container import require_honest_zip
from landscape.loading.graph import DTYPES, Refused, constant_of, only, read_graph
from landscape.loading.structure import read_structure

_PROGRAM = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_CONFIGS = {
    _WEIGHTS: f"{_WEIGHTS}model_weights_config.json",
    _CONSTANTS: f"{_CONSTANTS}model_constants_config.json",
}
# Members that a program may have; those that are not read need not be refused, but say what they are.
_KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|extra/.*"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt"
)
_NUMBERS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_SIZE_WORD = re.compile(
    r"[su]\d+|Symbol|positive|nonnegative|integer|True|False|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv"
    r"|ModularIndexing|(Ceil|Floor|Trunc|Round)ToInt|ToFloat|TruncToFloat|(Int|Float)TrueDiv|Where|Max|Min"
    r"|Identity|IsNonOverlappingAndDenseIndicator|Eq|Ne|Lt|Le|Gt|Ge|(Strict)?(Greater|Less)Than|Equality|Unequality|And|Or|Not|Integer|Add|Mul|Pow|floor"
)
_SYMBOL = re.compile(r"(?:Symbol\('(\w+)'.*\)|(\w+))", re.ASCII)


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
        trust: load the file as torch does, code included.

    Raises:
        InputError: a member could run code or is of unknown kind, or the program needs more than torch's
            own operators.
    """
    require_honest_zip(path, stored=True, name=name)
    content = path.read_bytes() if isinstance(path, Path) else path
    members = _members(content, name)
    if trust:
        module = _load_as_torch_does(content, name)
    try:
        description = _json(members, _PROGRAM)
        if not trust:
            module = _module(members, description)
        return Program(module, *_rows(description), _batch_norms(description))
    except RecursionError as error:
        raise InputError(f"the program in {name!r} is nested too deeply to be one") from error
    except (Refused, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        reason = str(error) if isinstance(error, Refused) else f"it is damaged: {error!r}"
        raise InputError(
            f"the program in {name!r} is not opened: {reason.splitlines()[0]}; if you trust the file, say "
            "--trust-pickle (trust_pickle=True)"
        ) from error


def _load_as_torch_does(content: bytes, name: str) -> nn.Module:
    level = logging.root.manager.disable
    # torch logs the traces of its own attempts; an error is reported in a sentence.
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # torch.export raises a large family
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the program in {name!r} cannot be loaded: {reason}") from error
    finally:
        logging.disable(level)


def _members(content: bytes, name: str) -> dict[str, bytes]:
    """The members of the archive, without the one folder that they all lie in."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tops = {entry.partition("/")[0] for entry in archive.namelist()}
        if len(tops) != 1:
            raise InputError(f"{name!r} is no exported program: it has {len(tops)} top folders")
        return {entry.partition("/")[2]: archive.read(entry) for entry in archive.namelist()}


def _json(members: dict[str, bytes], member: str) -> dict[str, Any]:
    if member not in members:
        found = ", ".join(sorted(members)[:4])
        raise Refused(f"it has no member {member!r} (but {found}): save it with torch.export.save")
    try:
        found = json.loads(members[member])
    except ValueError as error:
        raise Refused(f"the member {member!r} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise Refused(f"the member {member!r} is no JSON object")
    return found


def _module(members: dict[str, bytes], description: dict[str, Any]) -> "ProgramModule":
    for member in members:
        if not _KNOWN.fullmatch(member):
            raise Refused(f"the member {member!r} may run code when it is loaded")
    _check_expressions(description)
    version = description["schema_version"]["major"]
    if version != 8:
        raise Refused(f"it is written in version {version} of the format, not 8: export it again")
    return ProgramModule(
        description["graph_module"],
        description["range_constraints"],
        _tensors(members, _WEIGHTS) | _tensors(members, _CONSTANTS),
    )


def _tensors(members: dict[str, bytes], folder: str) -> dict[str, Tensor]:
    """The tensors that the list in a folder describes; tied ones are the same object."""
    found: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    # Every view is copied; many of one block would be a bomb.
    room = 2 * sum(len(content) for place, content in members.items() if _NUMBERS.fullmatch(place))
    for name, entry in _json(members, _CONFIGS[folder])["config"].items():
        what = f"the tensor {name!r}"
        if entry["use_pickle"] is not False:
            raise Refused(f"{what} is stored as a pickle, which can run code")
        place, meta = f"{folder}{entry['path_name']}", entry["tensor_meta"]
        if not _NUMBERS.fullmatch(place):
            raise Refused(f"{what} lies in {place!r}, which is not plain numbers")
        sizes, strides = ([_fixed(n) for n in meta[key]] for key in ("sizes", "strides"))
        offset, dtype = _fixed(meta["storage_offset"]), DTYPES.get(meta["dtype"])
        if dtype is None or None in (*sizes, *strides, offset) or len(sizes) != len(strides):
            raise Refused(f"{what} has no fixed shape or no known type")
        key = f"{place} {sizes} {strides} {offset} {dtype}"
        if key not in made:
            made[key] = _tensor(what, members[place], dtype, sizes, strides, offset)
            room -= made[key].nbytes
            if room < 0:
                raise Refused(f"{what} is one of too many views of the same numbers")
            if entry["is_param"] and dtype.is_floating_point:
                grad = meta["requires_grad"] is True
                made[key] = nn.Parameter(made[key], requires_grad=grad)
        found[name] = made[key]
    return found


def _tensor(
    what: str, content: bytes, dtype: torch.dtype, sizes: Any, strides: Any, offset: Any
) -> Tensor:
    count = math.prod(sizes)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1
    held = len(content) // dtype.itemsize
    if count and (last > held or count > held):
        raise Refused(f"{what} declares {count:,} numbers and holds {held:,}")
    if not count:
        return torch.empty(sizes, dtype=dtype)
    flat = torch.frombuffer(bytearray(content), dtype=dtype, count=held)
    return flat.as_strided(sizes, strides, offset).clone()


class ProgramModule(nn.Module):
    """An exported program: its graph, and its parameters and buffers under their own names.

    Args:
        description: graph, signature and structure of inputs and outputs, as `torch.export` writes them.
        ranges: the sizes that symbols may take.
        tensors: parameters, buffers and constants by name.

    Raises:
        Refused: something in the description is unknown here.
    """

    def __init__(
        self, description: dict[str, Any], ranges: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self._graph = read_graph(description["graph"])
        self._shapes = description["graph"]["tensor_values"]
        self._ranges = ranges
        signature = description["signature"]
        self._inputs = [self._input(only(spec), tensors) for spec in signature["input_specs"]]
        if len(self._inputs) != len(self._graph.inputs):
            raise Refused("its inputs and its graph do not fit together")
        kinds = [only(spec)[0] for spec in signature["output_specs"]]
        # What it writes to buffers and inputs is of no use here: every batch begins anew.
        self._returned = [
            i for i, kind in enumerate(kinds) if kind in ("user_output", "loss_output")
        ]
        calls = {entry["fqn"]: entry["signature"] for entry in description["module_call_graph"]}
        self._names = calls[""]["forward_arg_names"] or []
        self._args, self._kwargs = read_structure(calls[""]["in_spec"]).children
        self._output = read_structure(calls[""]["out_spec"])

    def _input(self, spec: tuple[str, Any], tensors: dict[str, Tensor]) -> tuple[str, Any]:
        """Where an input of the graph comes from: (kind, place)."""
        kind, content = spec
        if kind in ("parameter", "buffer", "tensor_constant"):
            name = content[f"{kind}_name"]
            return kind, self._keep(kind, name, tensors[name])
        if kind == "user_input":
            how, value = only(content["arg"])
            if how == "as_tensor":
                return kind, value["name"]
            return "constant", None if how.startswith("as_sym") else constant_of(how, value)
        if kind == "constant_input":
            return "constant", constant_of(*only(content["value"]))
        raise Refused(f"it takes an input of kind {kind!r}")

    def _keep(self, kind: str, name: str, tensor: Tensor) -> tuple[str, str]:
        """Store a tensor under its name in a tree of empty modules; (module, last part of the name)."""
        owner, _, last = name.rpartition(".")
        module: nn.Module = self
        for part in owner.split(".") if owner else ():
            module = module._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        if isinstance(tensor, nn.Parameter):
            module._parameters[last] = tensor
        else:
            module._buffers[last] = tensor
        return owner, last

    def _kept(self, place: tuple[str, str]) -> Tensor:
        owner, last = place
        module: Any = self
        for part in owner.split(".") if owner else ():
            module = module._modules[part]
        found: Tensor = (
            module._parameters[last] if last in module._parameters else module._buffers[last]
        )
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = iter(self._flat(args, kwargs))
        values: list[Any] = []
        symbols: dict[str, int] = {}
        for kind, place in self._inputs:
            if kind in ("parameter", "buffer", "tensor_constant"):
                values.append(self._kept(place))
                continue
            value = next(given)
            if kind == "user_input":
                self._check(place, value, symbols)
            values.append(value)
        device = next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
        results = self._graph.run(values, device)
        return self._output.nested(iter([results[i] for i in self._returned]))

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The leaves of the arguments, in the order of the program's inputs."""
        named = dict(kwargs)
        missing = self._names[len(args) : len(self._args.children)]
        args = (*args, *(named.pop(name) for name in missing if name in named))
        return [*self._args.leaves(args), *self._kwargs.leaves(named)]

    def _check(self, name: str, value: Any, symbols: dict[str, int]) -> None:
        """Refuse an input of another shape than the program was exported for."""
        if not isinstance(value, Tensor):
            raise TypeError(f"the program's input {name!r} must be a tensor, not {value!r}")
        sizes = self._shapes[name]["sizes"]
        listed = [_fixed(n) or _symbol(n) for n in sizes]
        fits = value.ndim == len(sizes)
        for size, wanted in zip(value.shape, listed, strict=False):
            if isinstance(wanted, str):
                limits = self._ranges.get(wanted, {})
                most, fewest = limits.get("max_val"), limits.get("min_val") or 0
                fits &= size == symbols.setdefault(wanted, size)
                fits &= (most is None or size <= most) and (fewest <= 2 or size >= fewest)
            elif wanted is not None:
                fits &= size == wanted
        if not fits:
            shown = ", ".join("any" if wanted is None else str(wanted) for wanted in listed)
            raise ValueError(
                f"the program was exported for {name!r} of shape ({shown}), not {tuple(value.shape)}"
            )


def _check_expressions(part: Any) -> None:
    """Refuse an expression of sizes with more in it than arithmetic; none is ever evaluated here."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if key == "expr_str":
            words = set(re.findall(r"[^\W\d]\w*", str(value)))
            unknown = {word for word in words if not _SIZE_WORD.fullmatch(word)}
            if unknown or not re.fullmatch(r"[\w\s'(),=+*/%<>!.-]*", str(value), re.ASCII):
                raise Refused(f"the size {str(value)[:60]!r} is more than arithmetic of sizes")
        elif isinstance(value, (dict, list)):
            _check_expressions(value)


def _fixed(size: Any) -> int | None:
    """A size that is a number."""
    value = size.get("as_int") if isinstance(size, dict) else None
    return value if type(value) is int and 0 <= value < 2**63 else None


def _symbol(size: Any) -> str | None:
    """The name of a size that is a plain symbol; expressions of symbols are not checked."""
    expression = size.get("as_expr") if isinstance(size, dict) else None
    found = _SYMBOL.fullmatch(str(expression["expr_str"])) if isinstance(expression, dict) else None
    return (found[1] or found[2]) if found else None


def _rows(description: dict[str, Any]) -> tuple[int, float]:
    """The fewest and the most rows that the program takes: the first size of its first input."""
    with contextlib.suppress(KeyError, IndexError, TypeError, StopIteration, AttributeError):
        module = description["graph_module"]
        specs = [
            spec["user_input"]
            for spec in module["signature"]["input_specs"]
            if "user_input" in spec
        ]
        name = next(s["arg"]["as_tensor"]["name"] for s in specs if "as_tensor" in s["arg"])
        first = module["graph"]["tensor_values"][name]["sizes"][0]
        if (rows := _fixed(first)) is not None:
            return rows, rows
        limits = description["range_constraints"][_symbol(first)]
        most, fewest = limits.get("max_val"), limits.get("min_val") or 1
        # torch writes 2 for "anything": it traces with sizes of two and more.
        return (fewest if fewest > 2 else 1), (math.inf if most is None else most)
    return 1, math.inf


def _batch_norms(description: dict[str, Any]) -> tuple[bool, ...]:
    """For each batch normalisation of the program, whether it uses statistics of the batch."""
    found = []
    for node in description["graph_module"]["graph"]["nodes"]:
        if "batch_norm" in node["target"]:
            flags = [i["arg"].get("as_bool") for i in node["inputs"] if i["name"] == "training"]
            found.append(bool(flags and flags[0]))
    return tuple(found)
