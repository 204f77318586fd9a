"""What does training with SAM do to every measure of sharpness?  The CNN on digits, without and with two radii.

    python tests/benchmarks/sharpness.py [--seeds 0 1 2] [--json figures/data/sharpness.json]

All trainings of a seed have the same initial weights, batches, schedule and AdamW (the recipe of the demo);
SAM (Foret 2021, arXiv:2010.01412) takes every gradient at w + ρg/‖g‖ of the same batch. Sharpness is measured
on all training samples, with AdamW's own state. The file is written after every run, and a run that it holds is
not made again.
"""

import argparse
import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import landscape as ls
from landscape.demos import DEMOS
from landscape.demos.data import load_data
from landscape.demos.train import RECIPES, build_model
from landscape.results import jsonable

DEMO = DEMOS["cnn"]
RADII = (0.0, 0.05, 0.2)  # ρ of SAM; 0 is without


def train(seed: int, rho: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The recipe of the demo, every gradient at the perturbed weights if ρ > 0."""
    recipe = RECIPES["cnn"]
    inputs, targets = load_data(DEMO.data)
    torch.manual_seed(seed)
    model = build_model(DEMO).train()
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(inputs) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=steps
    )
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(inputs)).split(recipe.batch_size):

            def gradient(rows: Tensor = rows) -> list[Tensor]:
                loss = cross_entropy(model(inputs[rows]), targets[rows])
                return list(torch.autograd.grad(loss, parameters))

            found = gradient()
            if rho:
                length = torch.cat([part.reshape(-1) for part in found]).norm()
                step = [rho * part / length for part in found]
                with torch.no_grad():
                    for parameter, part in zip(parameters, step, strict=True):
                        parameter += part
                found = gradient()
                with torch.no_grad():
                    for parameter, part in zip(parameters, step, strict=True):
                        parameter -= part
            for parameter, part in zip(parameters, found, strict=True):
                parameter.grad = part
            optimizer.step()
            schedule.step()
    return model.eval(), optimizer


@torch.no_grad()
def quality(model: nn.Module, part: str) -> dict[str, float]:
    inputs, targets = load_data(part)
    logits = model(inputs)
    return {
        "loss": cross_entropy(logits, targets).item(),
        "accuracy": (logits.argmax(1) == targets).double().mean().item(),
    }


def run(seed: int, rho: float) -> dict[str, Any]:
    """One training and its table."""
    model, optimizer = train(seed, rho)
    problem = ls.Problem(model, DEMO.loss, load_data(DEMO.data))
    found = ls.sharpness(problem, optimizer=optimizer.state_dict(), seed=seed)
    return {
        "seed": seed,
        "sam_rho": rho,
        "train": quality(model, DEMO.data),
        "test": quality(model, DEMO.test_data),
        "measures": jsonable([asdict(row) for row in found.measures]),
        "layers": jsonable([asdict(layer) for layer in found.layers]),
        "left_out": found.left_out,
        "failures": found.failures,
        "seconds": found.cost.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=Path("figures/data/sharpness.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"runs": []}
    if options.json.exists():
        content = json.loads(options.json.read_text())
    for seed in options.seeds:
        for rho in RADII:
            if any((r["seed"], r["sam_rho"]) == (seed, rho) for r in content["runs"]):
                continue
            content["runs"].append(run(seed, rho))
            content["setting"] = {
                "epochs": RECIPES["cnn"].epochs,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "platform": platform.platform(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            options.json.write_text(json.dumps(content, indent=1) + "\n")
            last = content["runs"][-1]
            print(seed, rho, last["train"], last["test"], f"{last['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
