"""What the optimisers of curvature share: options that are checked, gradients, and state that is saved as it is."""

import copy
import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from landscape.errors import InputError

Parameters: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Group: TypeAlias = dict[str, Any]

SHARED = (
    "shared"  # the key of what belongs to no single parameter, beside the parameters in `state`
)


class CurvatureOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose state is all in its state dict, with its own types.

    Args:
        params: As for every optimiser of torch: parameters, or groups of them with options of their own.
        defaults: The options of a group that sets none.
        shared: State and options of the optimiser as a whole.

    Raises:
        InputError: an option out of its range, or a parameter that is not real.
    """

    def __init__(self, params: Parameters, defaults: Group, shared: dict[str, Any]) -> None:
        super().__init__(cast(Any, params), defaults)
        shared["class"] = type(self).__name__
        cast(dict[Any, Any], self.state)[SHARED] = shared

    @property
    def shared(self) -> dict[str, Any]:
        """State and options of the optimiser as a whole; saved and restored with the rest."""
        return cast(dict[Any, dict[str, Any]], self.state)[SHARED]

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with options of their own, as in torch."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for option in self.defaults:
                _check(option, group[option])
            if not all(p.is_floating_point() for p in group["params"]):
                raise InputError("a parameter is not of a real floating-point type: leave it out")
        except InputError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state: copies, bit by bit, in the types in which they were saved.

        Raises:
            InputError: the state is that of another optimiser.
        """
        saved = state_dict["state"]
        if saved.get(SHARED, {}).get("class") != self.shared["class"]:
            raise InputError(
                f"the state is not that of {type(self).__name__}: load it into an optimiser of the "
                "class that saved it"
            )
        super().load_state_dict(state_dict)
        # torch casts state to the type of its parameter and shares the rest with the saved dict.
        names = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for name, (_, parameter) in zip(names, self._parameters(), strict=True):
            if name in saved:
                self.state[parameter] = _placed(saved[name], parameter.device)
        cast(dict[Any, Any], self.state)[SHARED] = _placed(saved[SHARED], self._device())

    def _parameters(self) -> Iterable[tuple[Group, Tensor]]:
        """Every parameter with its group."""
        return ((group, p) for group in self.param_groups for p in group["params"])

    def _device(self) -> torch.device:
        """Where the first parameter is, and with it what belongs to no single one."""
        return next((p.device for _, p in self._parameters()), torch.device("cpu"))

    def _moving(self) -> list[tuple[Group, Tensor, Tensor]]:
        """Group, parameter and gradient, wherever there is a gradient; at least in float32."""
        found = []
        for group, parameter in self._parameters():
            if (gradient := parameter.grad) is None:
                continue
            if gradient.layout != torch.strided:
                raise InputError(
                    f"a gradient is {gradient.layout}: make it dense, sparse=False in an embedding"
                )
            found.append((group, parameter, gradient.to(working_dtype(parameter))))
        return found


def working_dtype(parameter: Tensor) -> torch.dtype:
    """The type of averages over steps: a step of 1e-3 is lost in half precision."""
    return torch.promote_types(parameter.dtype, torch.float32)


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What a closure returns that computes the loss and its gradients anew, None if there is none."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite: one look at the device for all tensors on it."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
    return all(bool(torch.stack(flags).all()) for flags in by_device.values())


def require(option: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a number outside of [low, high), or of (low, high)."""
    number = float(value)
    if not ((low < number if open_low else low <= number) and number < high):
        least = f"above {low:g}" if open_low else f"at least {low:g}"
        most = "finite" if high == math.inf else f"below {high:g}"
        raise InputError(f"{option} is {value}: it must be {least} and {most}")


def _check(option: str, value: Any) -> None:
    if option in ("lr", "weight_decay"):
        require(option, value, 0, math.inf)
    elif option == "momentum":
        require(option, value, 0, 1)
    elif option == "betas":
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise InputError(f"betas is {value}: give two numbers, (β₁, β₂)")
        for beta in value:
            require("each of betas", beta, 0, 1)
    elif option in ("eps", "rho"):
        require(option, value, 0, math.inf, open_low=True)
    elif option == "hessian_power" and not 0 <= value <= 1:
        raise InputError(f"hessian_power is {value}: it must be from 0 to 1")


def _placed(saved: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in saved.items()
    }
