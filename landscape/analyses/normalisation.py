"""Directions in weight space on the scale of the weights: by filter, layer, weight or model."""

from typing import Literal, get_args

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.problem import Problem

Normalisation = Literal["filter", "layer", "weight", "model"]
Vectors = Literal[
    "scale", "keep", "leave out"
]  # what becomes of biases and normalisation parameters


def normalised(
    problem: Problem, direction: Tensor, by: Normalisation, *, vectors: Vectors = "scale"
) -> Tensor:
    """A direction d with the scale of the weights w (Li et al. 2018, arXiv:1712.09913, section 4).

    "filter": d_f ← d_f ‖w_f‖/‖d_f‖ for every output index f of a tensor with two or more dimensions; "layer": the
    same for whole tensors; "weight": d ← d ∘ |w|; "model": for the whole vector. Parameters with one dimension, biases and those
    of normalisation layers, have no filters: with "filter" each is scaled as a whole.

    Args:
        problem: whose model's weights these are.
        direction: (P,).
        by: the scale.
        vectors: of parameters with at most one dimension: "scale" them like the rest, "keep" their
            entries as they are, or "leave out": zeros there.

    Returns:
        A new tensor (P,); zero where the weights of a filter are.

    Raises:
        InputError: an unknown choice.

    Example:
        >>> import torch, landscape as ls
        >>> from landscape.analyses.normalisation import normalised
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> problem = ls.Problem(model, "mse", (torch.ones(1, 2), torch.ones(1, 1)))
        >>> normalised(problem, torch.tensor([0.0, 2.0]), "filter").tolist()
        [0.0, 5.0]
    """
    for name, value, choices in (
        ("the normalisation", by, get_args(Normalisation)),
        ("vectors", vectors, get_args(Vectors)),
    ):
        if value not in choices:
            raise InputError(f"{name} is {value!r}: choose {', '.join(map(repr, choices))}")
    weights = problem.weights()
    parts = []
    for d, w in zip(problem.layout.split(direction), problem.layout.split(weights), strict=True):
        if d.ndim > 1 or vectors == "scale":
            parts.append(_scaled(d, w, by))
        else:
            parts.append(d if vectors == "keep" else torch.zeros_like(d))
    found = torch.cat([part.reshape(-1) for part in parts])
    if by == "model":
        found = _to_norm(found, weights)
    return found


def _scaled(d: Tensor, w: Tensor, by: Normalisation) -> Tensor:
    """One parameter's part."""
    if by == "weight":
        return d * w.abs()
    if by == "filter" and d.ndim > 1:
        rows = [_to_norm(a, b) for a, b in zip(d.flatten(1), w.flatten(1), strict=True)]
        return torch.stack(rows)
    if by == "model":
        return d  # the whole vector's turn comes
    return _to_norm(d, w)


def _to_norm(d: Tensor, w: Tensor) -> Tensor:
    """d with the length of w; zero where d is."""
    length = d.norm()
    return d * torch.where(length > 0, w.norm() / length, torch.zeros_like(length))
