"""Where the tensors of a problem stand in its modules."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from landscape.problem import Problem


class Slots(NamedTuple):
    """Where a problem's tensors stand: distinct ones, the selected parameters first, and their places."""

    originals: list[Tensor]
    places: list[tuple[dict[str, Any], str, int]]
    buffers: list[tuple[nn.Module, str, int]]  # renewed for every batch


def slots(problem: "Problem") -> Slots:
    """Every tensor of a problem's modules: parameters, plain attributes and buffers."""
    found = Slots([], [], [])
    known: dict[int, int] = {}

    def position(tensor: Tensor) -> int:
        if id(tensor) not in known:
            known[id(tensor)] = len(found.originals)
            found.originals.append(tensor)
        return known[id(tensor)]

    for parameter in problem.selected():
        position(parameter)
    for module in problem.modules:
        for name, value in module._parameters.items():
            if value is not None:
                found.places.append((module._parameters, name, position(value)))  # type: ignore[arg-type]
        # Constants in plain attributes; those with a graph lead to parameters, which is refused.
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.requires_grad:
                found.places.append((module.__dict__, name, position(value)))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                found.buffers.append((module, name, position(buffer)))
    return found


def buffer_places(problem: "Problem", moves: Mapping[str, Tensor]) -> list[tuple[int, Tensor]]:
    """Where buffers of the model stand among the originals, with what belongs to each.

    Args:
        problem: the problem.
        moves: tensors by the name of the buffer; they come back on the problem's device, in its dtype.
    """
    where = {id(tensor): i for i, tensor in enumerate(slots(problem).originals)}
    own = dict(problem.model.named_buffers(remove_duplicate=False))
    found = {where[id(own[name])]: move for name, move in moves.items()}
    return [(i, move.to(problem.device, problem.dtype)) for i, move in found.items()]
