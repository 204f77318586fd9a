"""AdaHessian: Adam with Hessian-vector products of random signs in place of squared gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from landscape.training.optimizers.base import Parameters, evaluated
from landscape.training.optimizers.estimates import (
    DiagonalOptimizer,
    collect_products,
    rademacher,
    shared_state,
)


class AdaHessian(DiagonalOptimizer):
    """Adam's step with the size of the curvature in the place of the size of the gradient.

    With random signs z and D = |Hz|, averaged over each kernel of a convolution:
    m ← β₁m + (1 − β₁)g, s ← β₂s + (1 − β₂)D², then
    θ ← θ − lr·(m/(1 − β₁ᵗ) / ((s/(1 − β₂ᵗ))^(κ/2) + ε) + weight_decay·θ)
    (Yao et al. 2021, arXiv:2006.00719, Algorithm 1).

    The published method speaks of the diagonal of H. What is squared, though, is a single draw of z⊙Hz,
    whose expectation is the diagonal, but E[(z⊙Hz)ᵢ²] = Σⱼ Hᵢⱼ²: without averaging over kernels, √s
    estimates the Euclidean norm of each *row* of H, which is |Hᵢᵢ| only where H is diagonal.

    Call `update_hessian(loss)` before every step: with the loss itself, not the one that a
    `torch.amp.GradScaler` has scaled, and after `zero_grad`. In parts of a batch, call it for each part.
    A product that is not finite, or whose square is not, changes nothing. Processes that train together
    draw the same signs, but each multiplies by the Hessian of its own data: average
    `state[parameter]["collected"]` over them before `step`, as the gradients are.

    Args:
        params: Parameters, or groups of them that may set all options up to block_average.
        lr: Learning rate. Default: 0.15, as published.
        betas: (β₁, β₂). Default: (0.9, 0.999).
        eps: ε. Default: 1e-4, as published.
        weight_decay: Decoupled, times lr. Default: 0.
        hessian_power: κ, from 0 (momentum alone) to 1. Default: 1.
        block_average: Average |Hz| over the positions of each kernel, the dimensions after the second
            of a parameter with more than two. Default: True.
        every: Steps from one product to the next; bias is corrected for the products made.
            Default: 1, as published.
        seed: Of the signs. Default: 0.

    Raises:
        InputError: an option out of its range; in `step`, where a product is due and none was made.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = AdaHessian(model.parameters())
        >>> optimizer.zero_grad()
        >>> loss = model(torch.ones(4, 2)).square().mean()
        >>> optimizer.update_hessian(loss)
        >>> loss.backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Parameters,
        lr: float | Tensor = 0.15,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        block_average: bool = True,
        every: int = 1,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "hessian_power": hessian_power,
            "block_average": block_average,
        }
        super().__init__(params, defaults, shared_state(seed, every))

    def update_hessian(self, loss: Tensor) -> None:
        """Find Hz of a loss for the coming step, by double backward; `.grad` stays as it is.

        Args:
            loss: One number, with its graph, which stays for `loss.backward()`.

        Raises:
            InputError: the loss has no graph, or is no single number.
        """
        if self.hessian_due:
            collect_products(self, loss, rademacher)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients in `.grad` and the products found since the last.

        Args:
            closure: Computes loss, product and gradients anew and returns the loss. Default: None.

        Returns:
            What the closure returned.
        """
        loss = evaluated(closure)
        moving = self._moving()
        if not moving:
            return loss
        products, _ = self._estimates()
        self.shared["steps"] += 1
        for group, parameter, gradient in moving:
            state = self.state[parameter]
            if not state:
                state["steps"] = state["products"] = 0
                state["mean"], state["square"] = (torch.zeros_like(gradient) for _ in range(2))
            (first, second), lr = group["betas"], group["lr"]
            state["steps"] += 1
            mean = state["mean"].lerp_(gradient, 1 - first)
            if parameter in products:
                size = products[parameter].abs()
                if group["block_average"] and size.ndim > 2:
                    size = size.mean(tuple(range(2, size.ndim)), keepdim=True).expand_as(size)
                state["square"].mul_(second).addcmul_(size, size, value=1 - second)
                state["products"] += 1
            if not state["products"]:
                continue  # nothing is known of its curvature yet
            square = state["square"] / (1 - second ** state["products"])
            scale = square.pow_(group["hessian_power"] / 2).add_(group["eps"])
            move = mean / (1 - first ** state["steps"]) / scale
            move.add_(parameter, alpha=group["weight_decay"])
            parameter.sub_((lr * move).to(parameter.dtype))
        return loss
