"""Which parameters form a block: those of a module, of a type of module, or those that globs name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.parameters import match
from landscape.problem import Problem

By = str | Sequence[str]  # "module", "type", or globs
REST = "the rest"
ROOT = "the model itself"


@dataclass(frozen=True)
class Group:
    """A block of parameters: its name, the classes of the modules they belong to, and their names."""

    name: str
    kinds: tuple[str, ...]
    tensors: tuple[str, ...]


def groups(problem: Problem, by: By) -> list[Group]:
    """The selected parameters in blocks, in the order of the model; a tied weight is in one of them.

    Args:
        problem: whose selected parameters are meant; a tied weight goes by its first name.
        by: "module" for the module that owns them, "type" for the class of that module, or globs, each
            a block; what no glob matches forms a last block, "the rest".

    Raises:
        InputError: another word, no glob, a glob without a match, or two for one parameter.
    """
    if by == "module":
        keys = {name: _owner(name) or ROOT for name in problem.names}
    elif by == "type":
        keys = {name: _kind(problem, name) for name in problem.names}
    elif isinstance(by, str):
        raise InputError(f"by is {by!r}: choose 'module', 'type', or a list of globs, [{by!r}]")
    else:
        keys = _by_globs(problem.names, list(by))
    order = [*by, REST] if not isinstance(by, str) else list(dict.fromkeys(keys.values()))
    found = []
    for key in order:
        members = tuple(name for name in problem.names if keys[name] == key)
        if members:
            kinds = dict.fromkeys(_kind(problem, name) for name in members)
            found.append(Group(key, tuple(kinds), members))
    return found


def positions(problem: Problem, group: Group) -> Tensor:
    """Where a block's parameters lie in the flat vector, int64 (p,)."""
    ends = torch.tensor(problem.layout.sizes).cumsum(0).tolist()
    ranges = [
        torch.arange(end - size, end)
        for name, size, end in zip(problem.names, problem.layout.sizes, ends, strict=True)
        if name in group.tensors
    ]
    return torch.cat(ranges)


def _by_globs(names: Sequence[str], globs: Sequence[str]) -> dict[str, str]:
    if not globs:
        raise InputError("by is empty: name at least one glob, such as ['layer4.*']")
    keys: dict[str, str] = {}
    for glob in globs:
        for name in match(names, glob):
            if name in keys:
                both = f"{keys[name]!r} and {glob!r}"
                raise InputError(f"{both} both match {name!r}: blocks must not overlap")
            keys[name] = glob
    return {name: keys.get(name, REST) for name in names}


def _owner(name: str) -> str:
    """The module that a parameter belongs to; of a parametrised one, that whose weight it makes.

    >>> _owner("a.weight"), _owner("weight"), _owner("a.parametrizations.weight.original0")
    ('a', '', 'a')
    """
    path = name.split(".")
    end = path.index("parametrizations") if "parametrizations" in path else -1
    return ".".join(path[:end])


def _kind(problem: Problem, name: str) -> str:
    modules = dict(problem.model.named_modules())
    return type(modules.get(_owner(name), problem.model)).__name__
