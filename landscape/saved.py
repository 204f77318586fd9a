"""Results as JSON and back: every field of a frozen dataclass, read by its annotation."""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from landscape.errors import InputError
from landscape.results import atomic, to_json

NOT_SAVED = {"saved": False}  # metadata of a field that is no part of the JSON and has a default


class Result:
    """A result that can be saved: inherited by a frozen dataclass, which names its schema.

    Fields may be numbers, texts, arrays, lists, mappings, other dataclasses and named tuples. NaN and
    infinities become null, and null becomes NaN again in a field of type `float`. Keys that are not
    known are ignored, and fields with a default may be absent, so that a version reads the files of others.
    """

    SCHEMA: ClassVar[str]

    def __init_subclass__(cls, *, schema: str) -> None:
        cls.SCHEMA = schema

    def to_dict(self) -> dict[str, Any]:
        """All that is saved, with the schema; arrays are left as they are."""
        return {"schema": self.SCHEMA, **plain(self)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InputError: another schema, or parts are missing or of another kind.
        """
        require_schema(saved, cls.SCHEMA)
        try:
            result: Self = _built(cls, saved)
        except KeyError as error:
            raise InputError(f"this result of kind {cls.SCHEMA!r} lacks {error}") from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"a part of this {cls.SCHEMA!r} is of another kind: {error}"
            ) from error
        return result

    def save(self, path: str | Path) -> None:
        """Write the result as JSON; the file appears whole or not at all."""
        with atomic(path) as temporary:
            temporary.write_text(to_json(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: it cannot be read, or is no such result.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {str(path)!r}: {error}") from error


def require_schema(saved: Any, schema: str, writer: str | None = None) -> None:
    """
    Args:
        writer: the command that writes such results, for the message.

    Raises:
        InputError: this is no result, or one of another kind.
    """
    is_mapping = isinstance(saved, Mapping)
    if not is_mapping or saved.get("schema") != schema:
        seen = repr(saved.get("schema")) if is_mapping else f"a {type(saved).__name__}"
        hint = "" if writer is None else f", as `{writer}` writes it"
        raise InputError(f"this is {seen}, not a result of kind {schema!r}{hint}")


def plain(value: Any) -> Any:
    """Dataclasses and named tuples as mappings, all the way down; what is not saved is left out."""
    if is_dataclass(value):
        kept = [f.name for f in fields(value) if f.metadata.get("saved", True)]
        return {name: plain(getattr(value, name)) for name in kept}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(getattr(value, name)) for name in value._fields}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _built(kind: Any, value: Any) -> Any:
    """What an annotation says, from plain JSON."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        others = [option for option in inside if option is not NoneType]
        return value if value is None or len(others) > 1 else _built(others[0], value)
    if kind is float:
        return math.nan if value is None else float(value)
    if origin is np.ndarray:
        return np.array(value, get_args(inside[1])[0])
    if origin is list:
        return [_built(inside[0], item) for item in value]
    if origin is tuple:
        kinds = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        return tuple(_built(*pair) for pair in zip(kinds, value, strict=True))
    if origin is dict:
        return {key: _built(inside[1], item) for key, item in value.items()}
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        given = [name for name in _parts(kind) if name in value or _required(kind, name)]
        return kind(**{name: _built(hints[name], value[name]) for name in given})
    return value


def _parts(kind: Any) -> list[str]:
    """Names of what is saved of a dataclass or a named tuple."""
    if is_dataclass(kind):
        return [f.name for f in fields(kind) if f.metadata.get("saved", True)]
    return list(kind._fields)


def _required(kind: Any, name: str) -> bool:
    if not is_dataclass(kind):
        return name not in kind._field_defaults
    part = next(f for f in fields(kind) if f.name == name)
    return part.default is MISSING and part.default_factory is MISSING
