"""A sliding window of the gradients of one parameter, dense or sparse, in the parameter's optimiser state."""

from typing import Any

import torch
from torch import Tensor

PIECE = 2**17  # numbers of a piece that is worked on in float64: they stay in the processor's cache


def put(
    state: dict[str, Any],
    i: int,
    gradient: Tensor,
    *,
    length: int,
    dtype: torch.dtype,
    density: float | None,
) -> None:
    """Store a gradient (n,) as row i of a window of `length` rows.

    Without a density, rows are stored whole. With one, top-k with error feedback (Modoranu et al. 2024,
    arXiv:2306.06098, Algorithm 1): what earlier rows left out is added, the share `density` of largest
    size is stored, and the rest is kept for later.
    """
    if density is None:
        if "rows" not in state:
            state["rows"] = gradient.new_zeros(length, gradient.numel(), dtype=dtype)
        state["rows"][i] = gradient
        return
    kept = min(max(1, round(density * gradient.numel())), gradient.numel())
    if "places" not in state:
        state["places"] = gradient.new_zeros(length, kept, dtype=torch.int32)
        state["values"] = gradient.new_zeros(length, kept, dtype=dtype)
        state["error"] = torch.zeros_like(gradient)
    error = state["error"].add_(gradient)
    places = error.abs().topk(kept, sorted=False).indices
    state["places"][i], state["values"][i] = places, error[places]
    error[places] -= state["values"][i].to(error)  # with what rounding to the stored type left out


def clear(state: dict[str, Any], i: int) -> None:
    """Row i becomes zero: the parameter had no gradient."""
    for name in ("rows", "values"):
        if name in state:
            state[name][i] = 0


def products(state: dict[str, Any], i: int, count: int) -> Tensor:
    """The first `count` rows times row i, (count,) in float64."""
    if "places" in state:
        newest = _dense(state, state["error"].numel(), i)
        picked = newest.index_select(0, state["places"][:count].flatten()).view(count, -1)
        return (picked * state["values"][:count].double()).sum(1)
    rows = state["rows"][:count]
    total = torch.zeros(count, dtype=torch.float64, device=rows.device)
    for piece in rows.split(max(1, PIECE // count), 1):
        wide = piece.double()
        total.addmv_(wide, wide[i])
    return total


def combined(state: dict[str, Any], weights: Tensor) -> Tensor:
    """The first rows, as many as there are weights, times the weights: (n,) in float64."""
    count = len(weights)
    if "places" in state:
        terms = state["values"][:count].double() * weights[:, None]
        total = torch.zeros(state["error"].numel(), dtype=torch.float64, device=weights.device)
        return total.index_add_(0, state["places"][:count].flatten(), terms.flatten())
    pieces = state["rows"][:count].split(max(1, PIECE // count), 1)
    return torch.cat([weights @ piece.double() for piece in pieces])


def _dense(state: dict[str, Any], size: int, i: int) -> Tensor:
    row = torch.zeros(size, dtype=torch.float64, device=state["values"].device)
    return row.index_add_(0, state["places"][i], state["values"][i].double())
