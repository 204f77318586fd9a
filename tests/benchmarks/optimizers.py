"""Which optimiser reaches the lowest training loss in equally many epochs?  ResNet-20 on mnist5k.

    python tests/benchmarks/optimizers.py [Adam MFAC AdaHessian SophiaH ...] [--json figures/data/optimizers.json]

Every optimiser has the same grid of peak learning rates, the same one-cycle schedule, the same initial
weights and batches for a seed, no weight decay, and its published options for all else. The rate with
the lowest training loss on seed 0 is run on seeds 1 to 3, which are reported. The file is written after
every run, and a run that it holds is not made again.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from landscape import training
from landscape.demos import DEMOS
from landscape.demos.data import load_data
from landscape.demos.train import RECIPES, build_model
from landscape.errors import InputError

GRID = (1e-3, 3e-3, 1e-2, 3e-2)
TUNING, SEEDS = 0, (1, 2, 3)
EPOCHS = 4
DEMO = DEMOS["resnet"]

MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    # As published for ResNet-20: m = 512, λ = 1e-5, momentum 0.9. The window holds all gradients of a run.
    "MFAC": lambda p, lr: training.MFAC(p, lr, window=512, damping=1e-5, momentum=0.9),
    # A window that is full after one epoch.
    "MFAC-64": lambda p, lr: training.MFAC(p, lr, window=64, damping=1e-5, momentum=0.9),
    "AdaHessian": lambda p, lr: training.AdaHessian(p, lr),
    "SophiaH": lambda p, lr: training.SophiaH(p, lr, weight_decay=0.0),
    "SophiaG": lambda p, lr: training.SophiaG(p, lr, weight_decay=0.0),
}


def run(name: str, rate: float, seed: int, epochs: int) -> dict[str, Any]:
    """Train once; losses in evaluation mode over whole data sets, none where training broke down."""
    start = time.perf_counter()
    inputs, targets = load_data(DEMO.data)
    torch.manual_seed(seed)
    model = build_model(DEMO).train()
    optimizer = MAKERS[name](model.parameters(), lr=rate)
    batch = RECIPES["resnet"].batch_size
    steps = epochs * -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, cycle_momentum=False
    )
    history: list[float] = []
    try:
        for _ in range(epochs):
            losses = []
            for rows in torch.randperm(len(inputs)).split(batch):
                losses.append(step(model, optimizer, inputs[rows], targets[rows]))
                schedule.step()
            if not math.isfinite(mean := statistics.fmean(losses)):
                raise InputError("the loss is not finite")
            history.append(mean)
    except InputError as error:
        print(name, rate, seed, error, flush=True)
    seconds = time.perf_counter() - start
    broke = len(history) < epochs
    train_loss, _ = evaluation(model, inputs, targets)
    test_loss, accuracy = evaluation(model, *load_data(DEMO.test_data))
    return {
        "optimizer": name,
        "rate": rate,
        "seed": seed,
        "epochs": epochs,
        "steps": steps,
        "train_loss": None if broke else finite(train_loss),
        "test_loss": None if broke else finite(test_loss),
        "test_accuracy": accuracy,
        "epoch_losses": history,
        "seconds": seconds,
    }


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def step(model: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor) -> float:
    optimizer.zero_grad()
    logits = model(inputs)
    loss = cross_entropy(logits, targets)
    if isinstance(optimizer, training.SophiaG):
        optimizer.update_hessian(logits)
    elif isinstance(optimizer, (training.AdaHessian, training.SophiaH)):
        optimizer.update_hessian(loss)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluation(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    model.eval()
    logits = torch.cat([model(part) for part in inputs.split(250)])
    right = (logits.argmax(1) == targets).double().mean()
    return cross_entropy(logits, targets).item(), right.item()


def tuning_runs(runs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [r for r in runs if r["optimizer"] == name and r["seed"] == TUNING]


def tuned(tuning: list[dict[str, Any]]) -> float:
    """The rate of the lowest training loss."""
    best = min(tuning, key=lambda r: math.inf if r["train_loss"] is None else r["train_loss"])
    return float(best["rate"])


def summary(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The tuned rate, and mean and standard error over the seeds that did not choose it."""
    tuning = tuning_runs(runs, name)
    best = tuned(tuning)
    final = [r for r in runs if r["optimizer"] == name and r["seed"] in SEEDS and r["rate"] == best]
    found: dict[str, Any] = {
        "optimizer": name,
        "rate": best,
        "tuning": {f"{r['rate']:g}": r["train_loss"] for r in tuning},
        "at_the_edge": best in (min(GRID), max(GRID)),
    }
    for key in ("train_loss", "test_loss", "test_accuracy", "seconds"):
        values = [r[key] for r in final]
        found[key] = statistics.fmean(values)
        found[f"{key}_se"] = statistics.stdev(values) / len(values) ** 0.5
    return found


def table(content: dict[str, Any]) -> str:
    """The summary for people."""
    head = (
        "| optimiser | peak rate | training loss | test loss | test accuracy | seconds |\n|"
        + "---|" * 6
    )
    rows = [
        f"| {s['optimizer']} | {s['rate']:g}{' (edge)' if s['at_the_edge'] else ''} "
        f"| {s['train_loss']:.4f} ± {s['train_loss_se']:.4f} "
        f"| {s['test_loss']:.4f} ± {s['test_loss_se']:.4f} "
        f"| {s['test_accuracy']:.4f} ± {s['test_accuracy_se']:.4f} | {s['seconds']:.0f} |"
        for s in content["summary"]
    ]
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", default=["Adam", "MFAC"])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", type=Path, default=Path("figures/data/optimizers.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"runs": [], "summary": []}
    if options.json.exists():
        content = json.loads(options.json.read_text())
    runs = content["runs"]

    def made(name: str, rate: float, seed: int) -> None:
        key = (name, rate, seed, options.epochs)
        if any((r["optimizer"], r["rate"], r["seed"], r["epochs"]) == key for r in runs):
            return
        runs.append(run(*key))
        print(runs[-1], flush=True)
        content["summary"] = [s for s in content["summary"] if s["optimizer"] != name]
        content["setting"] = {
            "grid": GRID,
            "epochs": options.epochs,
            "batch_size": RECIPES["resnet"].batch_size,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")

    for name in options.names:
        for rate in GRID:
            made(name, rate, TUNING)
    for seed in SEEDS:
        for name in options.names:
            made(name, tuned(tuning_runs(runs, name)), seed)
    content["summary"] = [s for s in content["summary"] if s["optimizer"] not in options.names]
    content["summary"] += [summary(runs, name) for name in options.names]
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))


if __name__ == "__main__":
    main()
