"""One-shot pruning of two demos, M-FAC against magnitude: held-out accuracy over sparsity, five seeds.

Five trainings each; the seed is that of the training and of the samples whose gradients are taken. No
training after pruning; batch normalisation keeps its running statistics for both methods. Gradients are
computed anew three times on the way to each sparsity, so that a model at 90 % has seen fifteen. Damping and number of gradients were chosen on seed 99.

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
RECOMPUTE = 3
SEEDS = range(5)
SETTINGS: dict[str, dict[str, Any]] = {
    "cnn": {"gradients": 512, "damping": 1e-5},
    "resnet": {"gradients": 256, "damping": 1e-5},
}


def model_of(name: str, seed: int, folder: Path | None) -> torch.nn.Module:
    """The demo trained with a seed, or as it was kept in a folder as {name}{seed}.pt."""
    file = None if folder is None else folder / f"{name}{seed}.pt"
    if file is not None and file.exists():
        return ls.load_problem(file).model
    return train(name, seed=seed).model


def curves(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
    demo = DEMOS[name]
    problem = ls.Problem(model_of(name, seed, folder), demo.loss, load_data(demo.data))
    begin = time.perf_counter()
    found = ls.prune(
        problem,
        SPARSITIES,
        recompute=RECOMPUTE,
        held_out=load_data(demo.test_data),
        seed=seed,
        **SETTINGS[name],
    )
    return {
        "seed": seed,
        "dense": asdict(found.steps[0].quality),
        "mfac": [asdict(step) for step in found.steps[RECOMPUTE::RECOMPUTE]],
        "magnitude": [asdict(step) for step in found.magnitude_steps[RECOMPUTE::RECOMPUTE]],
        "weights_fingerprint": found.provenance["problem"]["weights_fingerprint"],
        "seconds": time.perf_counter() - begin,
        "provenance": found.provenance,
    }


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def bar(runs: list[dict[str, Any]], sparsity: float) -> dict[str, Any]:
    """Mean ± s.e. of both, and of the paired margin, at one sparsity."""
    place = SPARSITIES.index(sparsity)
    both = {
        method: [run[method][place]["quality"]["accuracy"] for run in runs]
        for method in ("mfac", "magnitude")
    }
    margins = [a - b for a, b in zip(both["mfac"], both["magnitude"], strict=True)]
    margin, error = mean_and_error(margins)
    return {
        "sparsity": sparsity,
        **{method: mean_and_error(values) for method, values in both.items()},
        "margin": (margin, error),
        "met": margin > 2 * error,
    }


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
            "settings": SETTINGS[name] | {"recompute": RECOMPUTE, "sparsities": SPARSITIES},
            "runs": runs,
            "bars": [bar(runs, sparsity) for sparsity in (0.8, 0.9)],
        }
        with atomic(asked.output) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
