"""Running statistics of batch normalisation, estimated anew where the weights are now."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.evaluation import Evaluation
from landscape.handling import keeps_statistics
from landscape.problem import Problem
from landscape.slots import slots

Statistics = list[tuple[nn.Module, int, int]]


def running_statistics(problem: Problem) -> Statistics:
    """Modules with running statistics: which of mean (0) and variance (1), and their place among values.

    Raises:
        InputError: some are of a kind that cannot be estimated anew.
    """
    found: Statistics = []
    for module, name, place in slots(problem).buffers:
        if name not in ("running_mean", "running_var") or not keeps_statistics(module):
            continue
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"the running statistics of {type(module).__name__} cannot be estimated anew: choose "
                "norm_stats='running' or 'batch'"
            )
        found.append((module, int(name == "running_var"), place))
    return found


@torch.no_grad()
def reestimate(run: Evaluation, known: Statistics, data: Iterable[Any]) -> None:
    """Put the statistics of the data at this point in the place of the running ones."""
    sums: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        if x.numel() == x.shape[1]:
            return  # one value of each: torch refuses
        others = [dim for dim in range(x.ndim) if dim != 1]
        variance, mean = torch.var_mean(x, dim=others)
        a, b, rows = sums.get(module, (torch.zeros_like(mean), torch.zeros_like(mean), 0))
        sums[module] = a + len(x) * mean, b + len(x) * variance, rows + len(x)

    modules = list(dict.fromkeys(module for module, *_ in known))
    hooks = [module.register_forward_pre_hook(watch) for module in modules]
    try:
        for module in modules:
            module.training, module.track_running_stats = True, False  # type: ignore[assignment]
        for batch in data:
            run.total(batch)
    except ValueError as error:  # torch refuses a batch of one value
        raise InputError(
            f"running statistics cannot be estimated on these batches ({error}): make them larger"
        ) from error
    finally:
        for module, hook in zip(modules, hooks, strict=True):
            module.training, module.track_running_stats = False, True  # type: ignore[assignment]
            hook.remove()
    values = list(run.placed)
    for module, which, place in known:
        if module in sums:
            *both, rows = sums[module]
            values[place] = both[which] / rows
    run.place(values)
