"""What leads from the model of a problem to another of the same architecture?"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscape.analyses.axes import State, offset_of
from landscape.errors import InputError
from landscape.problem import Problem


def difference(problem: Problem, other: State | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What leads from the problem's model to another: of the weights (P,), float64, and of buffers by name.

    Buffers of a vector, and those that a state dict lacks, are taken to be the same.

    Raises:
        InputError: another architecture, weights that are not finite or the same, or that differ in what is
            not selected.
    """
    if isinstance(other, Tensor):
        end, buffers = _from_vector(problem, other), dict[str, Tensor]()
    else:
        end = offset_of(problem, other)
        buffers = _from_state(
            problem, other.state_dict() if isinstance(other, nn.Module) else other
        )
    if not bool(torch.isfinite(end).all()):
        raise InputError("the other model has weights that are not finite: it has no loss to go to")
    if not bool(end.any()):
        raise InputError("the other model has the same weights: there is nothing between the two")
    return end, buffers


def _from_vector(problem: Problem, vector: Tensor) -> Tensor:
    if vector.shape != (problem.size,):
        raise InputError(
            f"the other model is a tensor of shape {tuple(vector.shape)}: expected ({problem.size},), its "
            "selected parameters in order"
        )
    own = problem.weights(torch.float64)
    return vector.detach().to(own) - own


def _from_state(problem: Problem, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """How the buffers differ, after everything but the selected parameters was compared."""
    model = problem.model
    own = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    strange = [name for name, value in state.items() if isinstance(value, Tensor)]
    strange = [name for name in strange if name not in own and name not in buffers]
    if strange:
        raise InputError(
            f"the other model is of another architecture: {strange[0]!r} is none of this model's tensors"
        )
    selected = {id(parameter) for parameter in problem.selected()}
    for name, parameter in own.items():
        there = state.get(name, parameter)
        if id(parameter) not in selected and not torch.equal(
            there.detach().to(parameter), parameter.detach()
        ):
            raise InputError(
                f"{name!r} is not selected and differs between the two models, so that no path of the "
                "selected parameters leads to the other: select it (params), or give it the same value"
            )
    moves = {}
    for name, buffer in buffers.items():
        there = state.get(name, buffer)
        if not isinstance(there, Tensor) or there.shape != buffer.shape:
            raise InputError(f"the buffer {name!r} of the other model has another shape")
        if buffer.is_floating_point() and not torch.equal(there.to(buffer), buffer):
            moves[name] = there.detach().to(buffer.device, torch.float64) - buffer.double()
    return moves
