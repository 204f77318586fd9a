"""M-FAC: the gradient, preconditioned by the inverse Fisher matrix of the last m gradients."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.training.optimizers import window
from landscape.training.optimizers.base import (
    CurvatureOptimizer,
    Parameters,
    evaluated,
    finite,
    require,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class MFAC(CurvatureOptimizer):
    """Steps along F⁻¹g, with F = λI + GᵀG/k of the last k ≤ m gradients, g the newest of them.

    One window spans the parameters of all groups. As g is a row of G, its product with the inverse is
    F⁻¹g = k Gᵀ(kλI + GGᵀ)⁻¹e with e the unit vector of that row; it costs two passes over the window and
    a Cholesky factor of order m, in float64. Its relative error is at most about 2e-16·‖g‖²/λ, which
    gradients that repeat each other come near to. Then v ← μv + (1 − μ)F⁻¹g and θ ← θ − lr·v (Frantar,
    Kurtic & Alistarh 2021, arXiv:2107.03356, section 3.2). While the window fills, F divides by the k
    gradients seen; the authors' code divides by m, and so begins with steps about m/k times as long.
    Each gradient is the mean over its batch: F is the empirical Fisher matrix of batch means.

    A parameter without a gradient counts as zero in the window and stays as it is. State takes
    4·m bytes per parameter (2·m with a bfloat16 window).

    Args:
        params: Parameters, or groups of them that may set lr, momentum, weight_decay and
            decoupled_weight_decay.
        lr: Learning rate. Default: 1e-3.
        momentum: μ, of the preconditioned gradient, in [0, 1). Default: 0.9.
        weight_decay: Added to the gradient as weight_decay·θ before the window sees it. Default: 0.
        decoupled_weight_decay: Shrink θ by 1 − lr·weight_decay instead. Default: False, as published.
        window: m, the number of gradients. Default: 1024, as published.
        damping: λ. Default: 1e-5, as published.
        window_dtype: Of the stored gradients: float32, float64 or bfloat16. g is then the gradient as it
            was stored. Default: the type of the parameter, float32 at least.
        density: Store only this share of each gradient, the largest numbers of each parameter, and carry
            the rest over to the next gradients (Modoranu et al. 2024, arXiv:2306.06098, who take 0.01).
            g is then the stored, sparse one. Default: None, all of it.

    Raises:
        InputError: an option out of its range; in `step`, a gradient that is not finite (nothing has
            changed then), or a damping too small for float64.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = MFAC(model.parameters(), lr=0.1, window=8, damping=0.1)
        >>> model(torch.ones(4, 2)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.shared["seen"]
        1
    """

    def __init__(
        self,
        params: Parameters,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        window: int = 1024,
        damping: float = 1e-5,
        window_dtype: torch.dtype | None = None,
        density: float | None = None,
    ) -> None:
        require("damping", damping, 0, math.inf, open_low=True)
        if window < 1:
            raise InputError(f"window is {window}: keep at least 1 gradient")
        if window_dtype is not None and window_dtype not in DTYPES:
            raise InputError(f"window_dtype is {window_dtype}: use float32, float64 or bfloat16")
        if density is not None and not 0 < density <= 1:
            raise InputError(f"density is {density}: it must be above 0 and at most 1")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        shared: dict[str, Any] = {
            "seen": 0,
            "damping": damping,
            "window_dtype": window_dtype,
            "density": density,
        }
        super().__init__(params, defaults, shared)
        shared["gram"] = torch.zeros(window, window, dtype=torch.float64, device=self._device())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients in `.grad`.

        Args:
            closure: Computes loss and gradients anew and returns the loss. Default: None.

        Returns:
            What the closure returned.
        """
        loss = evaluated(closure)
        moving = self._moving()
        if not moving:
            return loss
        if not finite(gradient for _, _, gradient in moving):
            raise InputError(
                "a gradient is not finite, and one such would spoil the window: no step was taken; "
                "skip such steps (torch.amp.GradScaler does) or lower the learning rate"
            )
        weights = self._seen(moving)
        for group, parameter, gradient in moving:
            state = self.state[parameter]
            direction = window.combined(state, weights.to(parameter.device)).view_as(parameter)
            velocity = direction.to(gradient.dtype)
            if momentum := group["momentum"]:
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(velocity)
                velocity = state["velocity"].lerp_(velocity, 1 - momentum)
            if group["decoupled_weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_((group["lr"] * velocity).to(parameter.dtype))
        return loss

    def _seen(self, moving: list[tuple[dict[str, Any], Tensor, Tensor]]) -> Tensor:
        """Put the gradients into the window; the weights of its rows in F⁻¹g, (k,) in float64."""
        shared, gram = self.shared, self.shared["gram"]
        length = len(gram)
        place = shared["seen"] % length
        count = min(shared["seen"] + 1, length)
        gradients = {parameter: (group, gradient) for group, parameter, gradient in moving}
        row = gram.new_zeros(count)
        for _, parameter in self._parameters():
            if parameter not in gradients:
                if parameter in self.state:
                    window.clear(self.state[parameter], place)
                continue
            state = self.state[parameter]
            group, gradient = gradients[parameter]
            if group["weight_decay"] and not group["decoupled_weight_decay"]:
                gradient = gradient.add(parameter, alpha=group["weight_decay"])
            window.put(
                state,
                place,
                gradient.flatten(),
                length=length,
                dtype=shared["window_dtype"] or gradient.dtype,
                density=shared["density"],
            )
            row += window.products(state, place, count).to(row.device)
        gram[place, :count] = gram[:count, place] = row
        shared["seen"] += 1
        # k (kλI + K)⁻¹ e
        shifted = gram[:count, :count].clone()
        shifted.diagonal().add_(count * shared["damping"])
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed:
            raise InputError(
                f"damping {shared['damping']:g} is lost beside gradients of size "
                f"{float(row[place].sqrt()):.3g}: choose a larger one"
            )
        unit = gram.new_zeros(count, 1)
        unit[place] = count
        return torch.cholesky_solve(unit, factor)[:, 0]
