"""Sophia: momentum over an estimate of the Hessian's diagonal, each coordinate clipped."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from landscape.errors import InputError
from landscape.training.optimizers.base import Parameters, evaluated, working_dtype
from landscape.training.optimizers.estimates import (
    DiagonalOptimizer,
    collect,
    collect_products,
    gaussian,
    gradients,
    shared_state,
)


class _Sophia(DiagonalOptimizer):
    """What the two have in common: all but how the diagonal is estimated."""

    def __init__(
        self,
        params: Parameters,
        lr: float | Tensor = 1e-4,
        *,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        every: int = 10,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, shared_state(seed, every) | {"unclipped": {}, "moved": 0}
        )

    def _estimate(self, total: Tensor, count: int) -> Tensor:
        """The estimate of the diagonal, from what was collected for a parameter and its number."""
        raise NotImplementedError

    @property
    def win_rate(self) -> float:
        """The share of coordinates that the last step did not clip; NaN before the first.

        The authors advise a ρ with which it lies between 0.1 and 0.5.
        """
        total = sum(int(count) for count in self.shared["unclipped"].values())
        return total / self.shared["moved"] if self.shared["moved"] else math.nan

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients in `.grad` and the estimates found since the last.

        Args:
            closure: Computes loss, estimate and gradients anew and returns the loss. Default: None.

        Returns:
            What the closure returned.
        """
        loss = evaluated(closure)
        moving = self._moving()
        if not moving:
            return loss
        collected, count = self._estimates()
        shared = self.shared
        shared["steps"] += 1
        shared["unclipped"], shared["moved"] = {}, 0
        for group, parameter, gradient in moving:
            state = self.state[parameter]
            if not state:
                state["mean"], state["hessian"] = (torch.zeros_like(gradient) for _ in range(2))
            (first, second), lr = group["betas"], group["lr"]
            mean = state["mean"].lerp_(gradient, 1 - first)
            if parameter in collected:
                found = self._estimate(collected[parameter], count)
                state["hessian"].lerp_(found, 1 - second)
            move = mean / (group["rho"] * state["hessian"]).clamp_(min=group["eps"])
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.sub_((lr * move.clamp(-1, 1)).to(parameter.dtype))
            unclipped = (move.abs() < 1).sum()
            device = str(unclipped.device)
            shared["unclipped"][device] = shared["unclipped"].get(device, 0) + unclipped
            shared["moved"] += move.numel()
        return loss


class SophiaH(_Sophia):
    """Sophia with Hutchinson's estimate of the Hessian's diagonal.

    m ← β₁m + (1 − β₁)g at every step; at every k-th, with z standard normal, h ← β₂h + (1 − β₂) z⊙Hz,
    an unbiased estimate of the diagonal; then θ ← (1 − lr·weight_decay)θ and
    θ ← θ − lr·clip(m / max(ρh, ε), 1) (Liu et al. 2024, arXiv:2305.14342, Algorithms 1 and 3). Where h is
    small or negative, the step is the sign of m, times lr.

    Call `update_hessian(loss)` before every step: with the loss itself, not the one that a
    `torch.amp.GradScaler` has scaled, and after `zero_grad`. It does nothing at the steps between, see
    `hessian_due`. In parts of a batch, call it for each part. An estimate that is not finite, or whose
    square is not, changes nothing. Processes that train together draw the same z, but each multiplies by
    the Hessian of its own data: average `state[parameter]["collected"]` over them before `step`, as the
    gradients are.

    Args:
        params: Parameters, or groups of them that may set all options but every and seed.
        lr: Learning rate, the most that a coordinate moves in one step. Default: 1e-4.
        betas: (β₁, β₂). Default: (0.965, 0.99), as published.
        rho: ρ, by which the share of unclipped coordinates is set, see `win_rate`. Default: 0.04.
        eps: ε. Default: 1e-12.
        weight_decay: Decoupled, times lr. Default: 0.1, as published.
        every: k, the steps from one estimate to the next; the first step has one. Default: 10.
        seed: Of z. Default: 0.

    Raises:
        InputError: an option out of its range; in `step`, where an estimate is due and none was made.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SophiaH(model.parameters(), lr=1e-2)
        >>> optimizer.zero_grad()
        >>> loss = model(torch.ones(4, 2)).square().mean()
        >>> optimizer.update_hessian(loss)
        >>> loss.backward()
        >>> optimizer.step()
        >>> 0 <= optimizer.win_rate <= 1
        True
    """

    def update_hessian(self, loss: Tensor) -> None:
        """Find z⊙Hz of a loss for the coming step, if it is due; `.grad` stays as it is.

        Args:
            loss: One number, with its graph, which stays for `loss.backward()`.

        Raises:
            InputError: the loss has no graph, or is no single number.
        """
        if self.hessian_due:
            collect_products(self, loss, gaussian)

    def _estimate(self, total: Tensor, count: int) -> Tensor:
        return total


class SophiaG(_Sophia):
    """Sophia with the Gauss–Newton–Bartlett estimate, for losses that are the cross entropy of logits.

    As `SophiaH`, but with h ← β₂h + (1 − β₂) B ĝ⊙ĝ, ĝ the gradient of the mean cross entropy of the
    B predictions of a batch with labels that are drawn from the predictions themselves. As gradients of
    drawn labels have mean zero and are independent, this is unbiased for the diagonal of the Gauss–Newton
    matrix (Liu et al. 2024, arXiv:2305.14342, Algorithm 2). One more backward at every k-th step.

    Call `update_hessian(logits)` before every step and after `zero_grad`. Logits are of shape (…, classes),
    and every row counts as one independent sample: leave out the rows that the loss leaves out
    (`logits[targets != ignored]`). Processes that train together must draw independently: give each a
    seed of its own, and sum `state[parameter]["collected"]` and `shared["collected"]` over them before
    `step`. The rest is as with `SophiaH`.

    Args:
        params: Parameters, or groups of them that may set all options but every and seed.
        lr: Learning rate, the most that a coordinate moves in one step. Default: 1e-4.
        betas: (β₁, β₂). Default: (0.965, 0.99), as published.
        rho: ρ, by which the share of unclipped coordinates is set, see `win_rate`. Default: 0.04.
        eps: ε. Default: 1e-12.
        weight_decay: Decoupled, times lr. Default: 0.1, as published.
        every: k, the steps from one estimate to the next; the first step has one. Default: 10.
        seed: Of the labels. Default: 0.

    Raises:
        InputError: an option out of its range; in `step`, where an estimate is due and none was made.

    Example:
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = SophiaG(model.parameters(), lr=1e-2)
        >>> optimizer.zero_grad()
        >>> logits = model(torch.randn(4, 2))
        >>> optimizer.update_hessian(logits)
        >>> torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        >>> optimizer.step()
    """

    def update_hessian(self, logits: Tensor) -> None:
        """Draw labels for the coming step, if it is due, and find their gradients; `.grad` stays as it is.

        Args:
            logits: (…, classes), with their graph, which stays for `loss.backward()`.

        Raises:
            InputError: the logits have no graph, or another shape.
        """
        if not self.hessian_due:
            return
        if logits.ndim < 2 or not logits.numel() or not logits.requires_grad:
            raise InputError(
                f"update_hessian takes logits (…, classes) with their graph, not {tuple(logits.shape)}"
                f"{'' if logits.requires_grad else ' without one'}: call it before loss.backward()"
            )
        rows = logits.flatten(0, -2).to(working_dtype(logits))
        wanted = [p for _, p in self._parameters() if p.requires_grad]
        labels = sampled_labels(rows.detach(), self._sources()(rows.device))
        self.shared["draws"] += 1
        with torch.enable_grad():
            total = cross_entropy(rows, labels, reduction="sum")
        found = gradients(total, wanted)
        pairs = ((p, g) for p, g in zip(wanted, found, strict=True) if g is not None)
        collect(self, ((p, g.to(working_dtype(p))) for p, g in pairs))
        self.shared["collected"] += len(rows)

    def _estimate(self, total: Tensor, count: int) -> Tensor:
        return total.square() / count  # B ĝ² with ĝ = (sum of gradients)/B


def sampled_labels(logits: Tensor, source: torch.Generator) -> Tensor:
    """A class (B,) for each row of logits (B, C), drawn with the probabilities of its softmax."""
    # The largest of pᵢ/Eᵢ, E exponential, is i with probability pᵢ.
    times = torch.empty_like(logits).exponential_(generator=source)
    return (logits - times.log()).argmax(1)
