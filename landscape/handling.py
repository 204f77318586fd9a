"""Modules that are treated in a special way while the loss is evaluated: which, how, and why."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from landscape import culprits
from landscape.substitutes import SUBSTITUTES, WATCHED

if TYPE_CHECKING:
    from landscape.problem import Problem

NormStats = Literal["running", "batch"]


class Rule(NamedTuple):
    """What is done about a kind of module."""

    applies: Callable[[nn.Module], bool]
    done: str
    treat: Callable[[nn.Module], None] | None = None  # beyond evaluation mode; undone afterwards


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module normalises differently in training and in evaluation mode."""
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.running_mean is not None
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def rules(norm_stats: NormStats, device: torch.device) -> list[Rule]:
    """What holds for whole modules; functions are dealt with in `landscape.substitutes`."""
    chosen = (
        Rule(keeps_statistics, "statistics of each batch; the running ones stay", _batch_statistics)
        if norm_stats == "batch"
        else Rule(keeps_statistics, "running statistics")
    )
    found = [
        chosen,
        Rule(_drops, "dropout switched off"),
        Rule(_iterates, "power iteration stopped: the vectors found in training are kept"),
        Rule(
            lambda module: isinstance(module, (nn.DataParallel, _Distributed)),
            "its inner module alone: no replicas, no communication",
            _inner_module_only,
        ),
        Rule(_is_compiled, "run uncompiled: compiled code cannot be differentiated twice"),
    ]
    if device.type == "cuda":
        found.append(
            Rule(
                lambda module: isinstance(module, nn.RNNBase),
                "torch's own kernel: that of cuDNN has no second derivative",
            )
        )
    return found


_Distributed = nn.parallel.DistributedDataParallel


def _batch_statistics(module: Any) -> None:
    # Batch statistics come with training=True; the rest keeps the running ones from moving.
    module.training, module.track_running_stats = True, False
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        module.running_mean = module.running_var = None


def _inner_module_only(module: nn.Module) -> None:
    module.__dict__["forward"] = module.module


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    recurrent = isinstance(module, (nn.RNNBase, nn.MultiheadAttention))
    return recurrent and float(module.dropout) > 0  # type: ignore[arg-type]


def _iterates(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return any("SpectralNorm" in type(thing).__name__ for thing in (module, *hooks))


def _is_compiled(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return (
        hasattr(module, "_orig_mod")
        or module._compiled_call_impl is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and data-parallel wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, (nn.DataParallel, _Distributed)):
            model = model.module
        else:
            return model


def special_modules(problem: "Problem") -> list[tuple[str, str]]:
    """Every module that is treated in a special way, and in one phrase how and why.

    Phrases are the same for modules treated alike, so that they can be grouped. The first batch is run
    once, to see which functions the modules call and which buffers they write to.

    Returns:
        Pairs such as ("1 (BatchNorm2d)", "running statistics"), in the order of the model.

    Example:
        >>> import torch, landscape as ls
        >>> from landscape.handling import special_modules
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(), torch.nn.Linear(3, 1))
        >>> special_modules(ls.Problem(model, "mse", (torch.ones(4, 2), torch.ones(4, 1))))
        [('1 (Dropout)', 'dropout switched off')]
    """
    model = problem.model
    found: dict[str, dict[str, None]] = {name: {} for name, _ in model.named_modules()}
    for name, module in model.named_modules():
        for rule in rules(problem.norm_stats, problem.device):
            if rule.applies(module):
                found[name][rule.done] = None
    narrow = {str(p.dtype) for p in model.parameters() if p.dtype.itemsize < 4}
    if narrow:
        found[""][f"weights of {', '.join(sorted(narrow))} computed with in {problem.dtype}"] = None
    with culprits.at_work(model) as stack:
        # Noticed outside every module is what a loss or a closure does.
        def notice(phrase: str) -> None:
            found[stack[-1].name if stack else ""][phrase] = None

        with problem.evaluation(SUBSTITUTES | WATCHED, notice) as run, torch.no_grad():
            for batch in run.batches():
                run.total(batch)
                break
            written = run.written_to()
        for name, module in model.named_modules():
            if module in written:
                found[name]["its buffers are put back after every batch"] = None
    return [(culprits.describe(model, name), phrase) for name in found for phrase in found[name]]
