"""One-shot pruning of two demos, M-FAC against magnitude: held-out accuracy over sparsity, five seeds.

Five trainings each; the seed is that of the training and of the samples whose gradients are taken. No
training after pruning; batch normalisation keeps its running statistics for both methods. One run goes
through all sparsities, and gradients are computed anew on the way to each. Damping and number of gradients
were chosen on seed 99. The number of steps was not: `by_steps` shows what others give on the same seeds.

`recalibrated`: the same at 90 % with the running statistics estimated anew on the pool, for both methods.

    python tests/benchmarks/pruning.py figures/data/pruning.json [--models FOLDER] [cnn resnet]
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import landscape as ls
from landscape.demos import DEMOS
from landscape.demos.data import load_data
from landscape.demos.train import train
from landscape.results import atomic

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
SEEDS = range(5)
# `pool`: so many training samples, of which gradients are drawn; `recompute`: steps to every sparsity.
SETTINGS: dict[str, dict[str, Any]] = {
    "cnn": {"pool": None, "recompute": 4, "gradients": 512, "damping": 1e-5},
    "resnet": {"pool": 1000, "recompute": 2, "gradients": 256, "damping": 1e-5},
}
OTHER_STEPS = {"cnn": (1, 2, 3, 8), "resnet": ()}
RECALIBRATED = ("resnet",)  # has batch normalisation


def model_of(name: str, seed: int, folder: Path | None) -> torch.nn.Module:
    """The demo trained with a seed, or as it was kept in a folder as {name}{seed}.pt."""
    file = None if folder is None else folder / f"{name}{seed}.pt"
    if file is not None and file.exists():
        return ls.load_problem(file).model
    return train(name, seed=seed).model


def problem_of(name: str, seed: int, folder: Path | None) -> ls.Problem:
    demo, pool = DEMOS[name], SETTINGS[name]["pool"]
    inputs, targets = load_data(demo.data)  # shuffled, so that the first are a fair sample
    data = (inputs[:pool], targets[:pool])
    return ls.Problem(model_of(name, seed, folder), demo.loss, data)


def options_of(name: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of every pruning, and of that by M-FAC."""
    settings = {key: value for key, value in SETTINGS[name].items() if key != "pool"}
    return {"held_out": load_data(DEMOS[name].test_data), "compare": False, "seed": seed}, settings


def curves(
    name: str, seed: int, folder: Path | None, *, recompute: int | None = None
) -> dict[str, Any]:
    problem = problem_of(name, seed, folder)
    options, settings = options_of(name, seed)
    steps = settings["recompute"] = recompute or settings["recompute"]
    begin = time.perf_counter()
    found = ls.prune(problem, SPARSITIES, **options, **settings)
    plain = ls.prune(problem, SPARSITIES, recompute=1, method="magnitude", **options)
    return {
        "seed": seed,
        "dense": asdict(found.steps[0].quality),
        "mfac": [asdict(step) for step in found.steps[steps::steps]],
        "magnitude": [asdict(step) for step in plain.steps[1:]],
        "seconds": time.perf_counter() - begin,
        "provenance": found.provenance,
    }


def recalibrated(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
    """Held-out accuracy at 90 % after the running statistics were estimated anew, by either method."""
    problem = problem_of(name, seed, folder)
    options, settings = options_of(name, seed)
    way = [share for share in SPARSITIES if share <= 0.9]
    found = {
        "mfac": ls.prune(problem, way, **options, **settings),
        "magnitude": ls.prune(problem, 0.9, recompute=1, method="magnitude", **options),
    }
    return {"seed": seed} | {
        method: accuracy_with_new_statistics(pruned.apply(problem.model), problem, options)
        for method, pruned in found.items()
    }


@torch.no_grad()
def accuracy_with_new_statistics(
    model: torch.nn.Module, problem: ls.Problem, options: dict[str, Any]
) -> float:
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches
    model.train()
    for inputs, _ in problem.data:
        model(inputs)
    model.eval()
    inputs, targets = options["held_out"]
    return float((model(inputs).argmax(1) == targets).float().mean())


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def margin(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Mean ± s.e. of M-FAC and of magnitude over the seeds, and of the paired margin."""
    ours, plain = ([pair[i] for pair in pairs] for i in range(2))
    mean, error = mean_and_error([a - b for a, b in pairs])
    return {
        "mfac": mean_and_error(ours),
        "magnitude": mean_and_error(plain),
        "margin": (mean, error),
        "met": mean > 2 * error,
    }


def bar(runs: list[dict[str, Any]], sparsity: float) -> dict[str, Any]:
    place = SPARSITIES.index(sparsity)
    accuracies = [
        tuple(run[method][place]["quality"]["accuracy"] for method in ("mfac", "magnitude"))
        for run in runs
    ]
    return {"sparsity": sparsity} | margin(accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("demos", nargs="*", default=list(SETTINGS))
    parser.add_argument("--models", type=Path, help="where trained archives {demo}{seed}.pt lie")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    for name in asked.demos:
        runs = []
        for seed in SEEDS:
            runs.append(curves(name, seed, asked.models))
            at = runs[-1]["mfac"][SPARSITIES.index(0.9)]["quality"]["accuracy"]
            print(
                f"{name} seed {seed}: {100 * at:.1f} % at 90 %, {runs[-1]['seconds']:.0f} s",
                flush=True,
            )
        report[name] = {
            "settings": SETTINGS[name] | {"sparsities": SPARSITIES},
            "runs": runs,
            "bars": [bar(runs, sparsity) for sparsity in (0.8, 0.9)],
            "by_steps": {
                steps: bar(
                    [curves(name, seed, asked.models, recompute=steps) for seed in SEEDS], 0.9
                )
                for steps in OTHER_STEPS[name]
            },
        }
        if name in RECALIBRATED:
            again = [recalibrated(name, seed, asked.models) for seed in SEEDS]
            found = margin([(run["mfac"], run["magnitude"]) for run in again])
            report[name]["recalibrated"] = {"runs": again, "at 0.9": found}
        with atomic(asked.output) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
