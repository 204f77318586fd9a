"""One-shot pruning of two demos, M-FAC against magnitude: held-out accuracy over sparsity, five seeds.

Five trainings each; the seed is that of the training and of the samples whose gradients are taken. No
training after pruning; batch normalisation keeps its running statistics for both methods. One run goes
through all sparsities, and gradients are computed anew on the way to each. Settings were chosen on seed 99.

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


def model_of(name: str, seed: int, folder: Path | None) -> torch.nn.Module:
    """The demo trained with a seed, or as it was kept in a folder as {name}{seed}.pt."""
    file = None if folder is None else folder / f"{name}{seed}.pt"
    if file is not None and file.exists():
        return ls.load_problem(file).model
    return train(name, seed=seed).model


def curves(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
    demo = DEMOS[name]
    inputs, targets = load_data(demo.data)  # shuffled, so that the first are a fair sample
    settings = dict(SETTINGS[name])
    pool, steps = settings.pop("pool"), settings["recompute"]
    data = (inputs[:pool], targets[:pool])
    problem = ls.Problem(model_of(name, seed, folder), demo.loss, data)
    held_out = load_data(demo.test_data)
    begin = time.perf_counter()
    options: dict[str, Any] = {"held_out": held_out, "compare": False, "seed": seed}
    found = ls.prune(problem, SPARSITIES, **options, **settings)
    plain = ls.prune(problem, SPARSITIES, recompute=1, method="magnitude", **options)
    return {
        "seed": seed,
        "dense": asdict(found.steps[0].quality),
        "mfac": [asdict(step) for step in found.steps[steps::steps]],
        "magnitude": [asdict(step) for step in plain.steps[1:]],
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
            "settings": SETTINGS[name] | {"sparsities": SPARSITIES},
            "runs": runs,
            "bars": [bar(runs, sparsity) for sparsity in (0.8, 0.9)],
        }
        with atomic(asked.output) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
