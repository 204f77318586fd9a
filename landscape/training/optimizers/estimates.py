"""Estimates of a Hessian's diagonal that an optimiser collects between two steps."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.training.optimizers.base import CurvatureOptimizer, finite, working_dtype

Draw = Callable[[Tensor, torch.Generator], Tensor]


class DiagonalOptimizer(CurvatureOptimizer):
    """An optimiser that is told of the curvature by `update_hessian`, before every so many of its steps.

    What `update_hessian` finds adds up over calls, as gradients do, until `step` uses it or `zero_grad`
    drops it.
    """

    @property
    def hessian_due(self) -> bool:
        """Whether the coming step needs an estimate; `update_hessian` does nothing where it does not."""
        return bool(self.shared["steps"] % self.shared["every"] == 0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients and the estimates that go with them."""
        super().zero_grad(set_to_none)
        self._drop()

    def _drop(self) -> None:
        self.shared["collected"] = self.shared["draws"] = 0
        for _, parameter in self._parameters():
            if parameter in self.state:
                self.state[parameter].pop("collected", None)

    def _estimates(self) -> tuple[dict[Tensor, Tensor], int]:
        """What was collected for the coming step, and over how many samples; then it is forgotten.

        Empty where none is due, or where numbers overflowed: the averages then stay as they are.
        """
        collected = {
            p: self.state[p]["collected"]
            for _, p in self._parameters()
            if "collected" in self.state.get(p, {})
        }
        count = self.shared["collected"]
        if self.hessian_due and not count:
            raise InputError(
                "the coming step needs an estimate of the Hessian: call update_hessian after "
                "zero_grad and before step"
            )
        self._drop()
        # Their squares, which the averages are of, overflow sooner.
        return (collected, count) if finite(v.square() for v in collected.values()) else ({}, count)

    def _sources(self) -> Callable[[torch.device], torch.Generator]:
        """A private generator per device, which seed, step and call within the step determine.

        So that a state dict holds integers in place of generators, on whatever device.
        """
        made: dict[torch.device, torch.Generator] = {}
        shared = self.shared

        def source(device: torch.device) -> torch.Generator:
            if device not in made:
                entropy = (shared["seed"], shared["steps"], shared["draws"], len(made))
                (word,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
                made[device] = torch.Generator(device).manual_seed(int(word >> 1))
            return made[device]

        return source


def shared_state(seed: int, every: int) -> dict[str, Any]:
    """What the optimiser as a whole holds, at the start."""
    if every < 1:
        raise InputError(f"every is {every}: it counts steps, from 1")
    if seed < 0:
        raise InputError(f"seed is {seed}: it must be at least 0")
    return {"steps": 0, "every": every, "seed": seed, "draws": 0, "collected": 0}


def collect(optimizer: DiagonalOptimizer, found: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add to what was found for each parameter since the last step."""
    for parameter, value in found:
        state = optimizer.state[parameter]
        state["collected"] = state["collected"] + value if "collected" in state else value


def collect_products(optimizer: DiagonalOptimizer, loss: Tensor, draw: Draw) -> None:
    """Collect z⊙Hz of a loss by double backward, z drawn anew for every step and the same within it.

    Over the parts of a batch, z⊙(ΣHᵢ)z is then what the whole batch gives. The graph of the loss is
    kept for its backward; the graph of its gradients ends here.
    """
    if loss.numel() != 1 or not loss.requires_grad:
        raise InputError(
            "update_hessian takes the loss, one number with a graph: call it before loss.backward()"
        )
    wanted = [p for _, p in optimizer._parameters() if p.requires_grad]
    source = optimizer._sources()
    with torch.enable_grad():
        found = gradients(loss, wanted, create_graph=True)
    pairs = [
        (p, g, draw(p, source(p.device)))
        for p, g in zip(wanted, found, strict=True)
        if g is not None
    ]
    curved = [(g, z) for _, g, z in pairs if g.requires_grad]
    parameters = [p for p, _, _ in pairs]
    if curved:
        try:
            products = torch.autograd.grad(
                [g for g, _ in curved],
                parameters,
                [z for _, z in curved],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        except RuntimeError as error:
            if not re.search("derivative for|ouble backward", str(error)):
                raise
            raise InputError(
                f"the model has a layer without second derivatives ({error}): run its forward within "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), recurrent layers on a GPU within "
                "torch.backends.cudnn.flags(enabled=False), or use SophiaG"
            ) from error
    else:  # the loss is linear
        products = tuple(torch.zeros_like(p) for p in parameters)
    collect(
        optimizer,
        ((p, (z * h).to(working_dtype(p))) for (p, _, z), h in zip(pairs, products, strict=True)),
    )
    optimizer.shared["collected"] += 1


def gradients(
    value: Tensor, wanted: list[Tensor], *, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients of a number, whose graph is kept; None where it does not depend on a parameter."""
    if not wanted:  # which torch refuses
        return ()
    return torch.autograd.grad(
        value, wanted, create_graph=create_graph, retain_graph=True, allow_unused=True
    )


def rademacher(parameter: Tensor, source: torch.Generator) -> Tensor:
    """Independent random signs of a parameter's shape."""
    signs = torch.randint(
        0, 2, parameter.shape, generator=source, device=parameter.device, dtype=torch.int8
    )
    return (2 * signs - 1).to(parameter.dtype)


def gaussian(parameter: Tensor, source: torch.Generator) -> Tensor:
    """Independent standard normal numbers of a parameter's shape."""
    return torch.randn(
        parameter.shape, generator=source, device=parameter.device, dtype=parameter.dtype
    )
