"""Training of the demos: one plain recipe (AdamW, one-cycle learning rate), a few numbers each."""

import difflib
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.demos import DEMOS, Demo
from landscape.demos.data import load_data
from landscape.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """What differs between the demos; `learning_rate` is the peak of the cycle."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


RECIPES: dict[str, Recipe] = {
    "cnn": Recipe(epochs=60, batch_size=64, learning_rate=1e-2, weight_decay=1e-2),
    "mlp": Recipe(epochs=60, batch_size=64, learning_rate=5e-3, weight_decay=1e-2),
    "resnet": Recipe(epochs=7, batch_size=64, learning_rate=1e-2, weight_decay=1e-2),
    "transformer": Recipe(epochs=2, batch_size=16, learning_rate=3e-3, weight_decay=1e-1),
    "regression": Recipe(epochs=60, batch_size=32, learning_rate=3e-3, weight_decay=1.0),
}

EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Trained:
    """A trained demo and how well it does, each number in evaluation mode over all its samples.

    Attributes:
        demo: The problem that was trained.
        model: The network, in evaluation mode, without gradients, on the device asked for.
        train_loss: Mean loss per sample (per token, in nats, for text).
        test_loss: The same on the held-out part.
        train_accuracy: Fraction of right classes (next characters); `None` for a regression.
        test_accuracy: The same on the held-out part.
        seconds: Wall-clock time from the untrained network to these numbers.
        steps: Optimiser steps taken.
    """

    demo: Demo
    model: nn.Module
    train_loss: float
    test_loss: float
    train_accuracy: float | None
    test_accuracy: float | None
    seconds: float
    steps: int


def train(
    name: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train one demo from scratch: seconds for the small ones, about a minute for the large.

    AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with a one-cycle learning rate (Smith and
    Topin 2018, arXiv:1708.07120). The global random state of the caller is unchanged.

    Args:
        name: A key of `landscape.demos.DEMOS`.
        seed: Of the initial weights and the order of the batches; on one machine's CPU the same
            seed gives the same weights. Default: 0.
        device: Where to train, as torch names it. Default: `"cpu"`.
        progress: Called after every step with (step, steps in all, loss of the batch), step
            counting from 1. Default: nothing is called.

    Returns:
        The trained model with its losses and accuracies.

    Raises:
        InputError: The name is unknown, the device is not there, or the data is not installed.

    Example:
        >>> train("cnn").test_accuracy > 0.95
        True
    """
    demo = _named(name)
    _check_device(device)
    train_data = _on_device(load_data(demo.data), device)
    test_data = _on_device(load_data(demo.test_data), device)
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        # Only the CPU generator is drawn from: torch.manual_seed would reseed the GPUs as well.
        torch.default_generator.manual_seed(seed)
        with torch.device("cpu"):
            model = build_model(demo)
        model.to(device=device, dtype=torch.float32)
        steps = _optimise(model, demo, train_data, progress)
    model.eval().zero_grad(set_to_none=True)
    train_loss, train_accuracy = _evaluate(model, demo.loss, train_data)
    test_loss, test_accuracy = _evaluate(model, demo.loss, test_data)
    return Trained(
        demo=demo,
        model=model,
        train_loss=train_loss,
        test_loss=test_loss,
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        seconds=time.perf_counter() - start,
        steps=steps,
    )


def build_model(demo: Demo) -> nn.Module:
    """Call the demo's factory with its arguments: a fresh, untrained module on the CPU."""
    module, _, function = demo.factory.partition(":")
    return getattr(importlib.import_module(module), function)(**demo.arguments)


def loss_value(loss: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss over samples, or over tokens for `token_cross_entropy`.

    Args:
        loss: `"cross_entropy"`, `"token_cross_entropy"` or `"mse"`.
        outputs: Logits (batch, classes) or (batch, time, vocabulary), or predictions (batch, 1).
        targets: Classes (batch,), tokens (batch, time), or values (batch, 1).

    Returns:
        A scalar that can be differentiated.
    """
    if loss == "mse":
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def _optimise(
    model: nn.Module,
    demo: Demo,
    data: tuple[Tensor, Tensor],
    progress: Callable[[int, int, float], None] | None,
) -> int:
    """Run the demo's recipe on the model, in place, and return the number of steps."""
    recipe = RECIPES[demo.name]
    inputs, targets = data
    batches_per_epoch = -(-len(inputs) // recipe.batch_size)
    steps = recipe.epochs * batches_per_epoch
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    offsets = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": offsets, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=steps
    )
    model.train()
    step = 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(inputs), device="cpu").to(inputs.device)
        for rows in order.split(recipe.batch_size):
            loss = loss_value(demo.loss, model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if progress is not None:
                progress(step, steps, loss.item())
    return steps


@torch.no_grad()
def _evaluate(
    model: nn.Module, loss: str, data: tuple[Tensor, Tensor]
) -> tuple[float, float | None]:
    """Mean loss, and the fraction of right classes unless the loss is a regression's."""
    total_loss, right = 0.0, 0
    for inputs, targets in zip(*(part.split(EVALUATION_BATCH) for part in data), strict=True):
        outputs = model(inputs)
        total_loss += loss_value(loss, outputs, targets).item() * targets.numel()
        right += int((outputs.argmax(dim=-1) == targets).sum()) if loss != "mse" else 0
    count = data[1].numel()
    return total_loss / count, None if loss == "mse" else right / count


def _named(name: str) -> Demo:
    if name not in DEMOS:
        close = difflib.get_close_matches(name, DEMOS, n=1, cutoff=0.5)
        advice = f"did you mean {close[0]}?" if close else f"use one of {', '.join(DEMOS)}"
        raise InputError(f"unknown demo {name!r}: {advice}")
    return DEMOS[name]


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {device!r} cannot be used on this machine; use 'cpu' or a GPU that torch sees"
        ) from error


def _on_device(data: tuple[Tensor, Tensor], device: str) -> tuple[Tensor, Tensor]:
    inputs, targets = data
    return inputs.to(device), targets.to(device)
