"""How the inputs and outputs of a program are nested: tuples, lists and dictionaries around tensors."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from landscape.loading.graph import Refused

# The kinds of container that inputs and outputs may be made of.
_CONTAINERS = {
    "builtins.tuple": tuple,
    "builtins.list": list,
    "builtins.dict": dict,
    "collections.OrderedDict": dict,
}


@dataclass(frozen=True)
class Structure:
    """How leaves are nested in tuples, lists and dictionaries; no kind means a leaf."""

    kind: type | None
    keys: tuple[Any, ...]
    children: tuple["Structure", ...]

    def leaves(self, value: Any) -> Iterator[Any]:
        if self.kind is None:
            yield value
            return
        kind = (tuple, list) if self.kind in (tuple, list) else (dict,)
        fits = isinstance(value, kind) and len(value) == len(self.children)
        if not fits or (self.kind is dict and set(value) != set(self.keys)):
            what = f"a dictionary of {', '.join(map(str, self.keys))}" if self.keys else ""
            what = what or f"a {self.kind.__name__} of {len(self.children)}"
            raise ValueError(f"the program takes {what}, and was given {type(value).__name__}")
        parts = [value[key] for key in self.keys] if self.kind is dict else value
        for child, part in zip(self.children, parts, strict=True):
            yield from child.leaves(part)

    def nested(self, leaves: Iterator[Any]) -> Any:
        if self.kind is None:
            return next(leaves)
        parts = [child.nested(leaves) for child in self.children]
        if self.kind is dict:
            return dict(zip(self.keys, parts, strict=True))
        return self.kind(parts)


def read_structure(text: str) -> Structure:
    """The structure of inputs or outputs; torch would import modules that an odd one names."""

    def read(node: Any) -> Structure:
        kind, context = node["type"], node["context"]
        children = tuple(map(read, node["children_spec"]))
        if kind is None and not children:
            return Structure(None, (), ())
        keys = json.loads(context) if isinstance(context, str) else context
        named = isinstance(keys, list) and all(type(key) in (str, int) for key in keys)
        # Outputs of a library's own class with named fields are given as a plain dictionary.
        container = _CONTAINERS.get(kind, dict if named else None)
        fits = len(keys) == len(children) if container is dict and named else keys is None
        if container is None or not fits:
            raise Refused(
                f"its inputs or outputs are of kind {str(kind)[:60]!r}: only tuples, lists and "
                "dictionaries with plain keys are opened"
            )
        return Structure(container, tuple(keys or ()), children)

    try:
        version, tree = json.loads(text)
    except (ValueError, TypeError) as error:
        raise Refused(f"the structure {str(text)[:60]!r} cannot be read") from error
    if version != 1:
        raise Refused(f"the structure of its inputs is written in version {version}, not 1")
    return read(tree)
