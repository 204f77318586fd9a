"""Named parameters ↔ one flat vector, and the selection of parameters by name."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from landscape.errors import InputError


@dataclass(frozen=True)
class Layout:
    """The order in which named tensors lie in a flat vector of length `size`."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes]

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def flatten(self, tensors: Sequence[Tensor | None], like: Tensor) -> Tensor:
        """Join one tensor per name into a vector (P,) of `like`'s dtype; None counts as zeros."""
        parts = [
            like.new_zeros(size) if tensor is None else tensor.reshape(-1)
            for tensor, size in zip(tensors, self.sizes, strict=True)
        ]
        return torch.cat(parts)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector (P,) into one view per name."""
        pieces = vector.split(self.sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def indices(self, patterns: str | Sequence[str]) -> Tensor:
        """Positions in the flat vector of every parameter whose name matches a glob.

        Raises:
            InputError: no name matches.
        """
        wanted = set(match(self.names, patterns))
        offset, ranges = 0, []
        for name, size in zip(self.names, self.sizes, strict=True):
            if name in wanted:
                ranges.append(torch.arange(offset, offset + size))
            offset += size
        return torch.cat(ranges)


def canonical_device(wanted: str | torch.device) -> torch.device:
    """A device as tensors on it name theirs: "cuda" is "cuda:0", "cpu:0" is "cpu".

    Raises:
        InputError: it cannot be used.
    """
    try:
        device = torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"the device {str(wanted)!r} cannot be used: {reason}") from error
    if device.type == "meta":
        raise InputError("the device 'meta' cannot be used: its tensors have no values")
    return torch.device("cpu") if device.type == "cpu" else device


def match(names: Sequence[str], patterns: str | Sequence[str]) -> list[str]:
    """The names that match at least one glob, in their own order.

    Raises:
        InputError: a glob matches no name; the closest names are listed.
    """
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    if not globs:
        raise InputError("no trainable parameter is selected: params is empty, and '*' selects all")
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            close = difflib.get_close_matches(glob, names, n=3, cutoff=0.3) or list(names[:3])
            listed = ", ".join(close) if close else "none at all"
            raise InputError(
                f"no trainable parameter matches {glob!r}: the closest names are {listed}"
            )
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def select(model: nn.Module, patterns: str | Sequence[str]) -> list[str]:
    """Names of the trainable parameters matching the glob(s), each tied weight once.

    A tied weight is listed under its first name and may be selected by any of its names.

    Raises:
        InputError: nothing is selected.
    """
    first: dict[int, str] = {}
    canonical: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:  # then real or complex: torch allows no other
            canonical[name] = first.setdefault(id(parameter), name)
    if not canonical:
        total = sum(1 for _ in model.parameters())
        raise InputError(
            f"the model has no trainable parameter ({total} in all, every one frozen): "
            "call requires_grad_(True) on those to be studied"
        )
    return list(dict.fromkeys(canonical[name] for name in match(list(canonical), patterns)))
