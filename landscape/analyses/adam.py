"""What the state of Adam says about every weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.problem import Problem


@dataclass(frozen=True)
class Adam:
    """What a state of Adam or AdamW says about every weight, each (P,): groups may differ in all of it.

    `largest` is the maximum of the second moment so far where AMSGrad keeps one, else zero.
    """

    first: Tensor
    second: Tensor
    largest: Tensor
    steps: Tensor
    beta1: Tensor
    beta2: Tensor
    epsilon: Tensor
    rate: Tensor

    def preconditioner(self) -> Tensor:
        """P = (1 − β₁ᵗ)(√(ν/(1 − β₂ᵗ)) + ε) (Cohen 2022, arXiv:2207.14484)."""
        corrected = torch.maximum(self.largest, self.second) / (1 - self.beta2**self.steps)
        return (1 - self.beta1**self.steps) * (corrected.sqrt() + self.epsilon)

    def update(self, gradient: Tensor) -> Tensor:
        """The next step of unit learning rate, without weight decay, if this is the gradient."""
        steps = self.steps + 1
        first = self.beta1 * self.first + (1 - self.beta1) * gradient
        second = self.beta2 * self.second + (1 - self.beta2) * gradient.square()
        corrected = torch.maximum(self.largest, second) / (1 - self.beta2**steps)
        return first / (1 - self.beta1**steps) / (corrected.sqrt() + self.epsilon)


def adam_state(problem: Problem, state: Mapping[str, Any]) -> Adam:
    """Lay out the `state_dict` of a torch Adam or AdamW along the selected parameters.

    A state knows its parameters by number only. The k-th one of a shape is taken to be the model's k-th
    trainable one of that shape, which holds for any grouping that keeps the order of equal shapes; where the
    state has names (`param_names`), they decide.

    Raises:
        InputError: it is no such state, or does not fit the model.
    """
    try:
        groups, moments = state["param_groups"], state["state"]
        numbers = [number for group in groups for number in group["params"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            "the optimiser's state lacks param_groups and state: save optimizer.state_dict()"
        ) from error
    known = [number for number in numbers if number in moments]
    if not known or any("exp_avg_sq" not in moments[number] for number in known):
        raise InputError(
            "the optimiser's state has no second moments (exp_avg_sq): this needs the state of an Adam or "
            "AdamW that has taken at least one step"
        )
    where = _numbers_of(problem, groups, moments)
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in zip(problem.names, problem.selected(), strict=True):
        number = where.get(name)
        if number is None or number not in moments:
            raise InputError(
                f"the optimiser's state has no moments for {name!r} of shape {tuple(parameter.shape)}: "
                "select only what it trained (--params), or name the state that belongs to this model"
            )
        own = moments[number]
        group = next(group for group in groups if number in group["params"])
        if parameter.is_complex():
            raise InputError(f"{name!r} is complex: the state of Adam is read for real weights")
        if own["exp_avg_sq"].shape != parameter.shape:
            raise InputError(
                f"{name!r} has shape {tuple(parameter.shape)} in the model and "
                f"{tuple(own['exp_avg_sq'].shape)} in the optimiser's state: name the state that belongs to "
                "this model"
            )
        values = {"first": own["exp_avg"], "second": own["exp_avg_sq"], "steps": own["step"]}
        values |= {"largest": own.get("max_exp_avg_sq", 0.0)}
        values |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
        values |= {"epsilon": group["eps"], "rate": group["lr"]}
        for key, value in values.items():
            full = torch.as_tensor(value, dtype=torch.float64, device=problem.device)
            parts.setdefault(key, []).append(full.expand(parameter.shape).reshape(-1))
    return Adam(**{key: torch.cat(values) for key, values in parts.items()})


def _numbers_of(problem: Problem, groups: Any, moments: Any) -> dict[str, int]:
    """Names of the model's parameters to their numbers in the state."""
    if all("param_names" in group for group in groups):
        return {
            name: number
            for group in groups
            for name, number in zip(group["param_names"], group["params"], strict=True)
        }
    names: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in problem.model.named_parameters():
        if parameter.requires_grad:
            names.setdefault(tuple(parameter.shape), []).append(name)
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number in (number for group in groups for number in group["params"]):
        if number in moments:
            numbers.setdefault(tuple(moments[number]["exp_avg"].shape), []).append(number)
    found: dict[str, int] = {}
    for shape, having in names.items():
        matching = numbers.get(shape, [])
        if len(matching) != len(having):
            raise InputError(
                f"the model has {len(having)} trainable parameters of shape {shape}, {having[0]!r} first, "
                f"and the optimiser's state {len(matching)}: name the state that belongs to this model"
            )
        found |= dict(zip(having, matching, strict=True))
    return found
