"""What a surface costs, against loss-landscapes; and whether it bends as the Hessian says, on every demo.

    python tests/benchmarks/surfaces.py [time curvature] [--json figures/data/surfaces.json] [--device cuda]

`time` needs loss-landscapes 3.0.6. All work takes turns in one process, 51 × 51 points of the digits CNN on
all its training data; ratios are of medians. The peer has one batch; its grid is a zig-zag, which costs
the same. `curvature`: along the two leading Hessian axes and the most negative one, see `AxisCheck`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import landscape as ls
from landscape.analyses.curvature_check import curvature_checks
from landscape.demos import DEMOS
from landscape.demos.data import load_data
from landscape.demos.train import train
from landscape.estimators.loss_at import LossAt

POINTS = 51
BARS = {"whole": 1.0, "adaptive": 3.0, "curvature": 0.01}


def timed(rounds: int, device: str) -> dict[str, Any]:
    """Seconds of a plane by the peer, and by us whole and adaptive, with the axes and range given."""
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    inputs, targets = load_data(DEMOS["cnn"].data)
    model = train("cnn", seed=0).model.to(device)
    problem = ls.Problem(model, "cross_entropy", (inputs, targets))
    axes = ls.random_axes(problem)
    x, y = inputs.to(device), targets.to(device)
    metric = Loss(torch.nn.functional.cross_entropy, x, y)
    found: dict[str, ls.Surface] = {}

    def peer() -> None:
        loss_landscapes.random_plane(
            model, metric, distance=1, steps=POINTS, normalization="filter", deepcopy_model=True
        )

    def ours(name: str, *, adaptive: bool) -> Callable[[], None]:
        def run() -> None:
            found[name] = ls.surface(
                problem, axes, points=POINTS, extent=0.3, adaptive=adaptive, check=False
            )

        return run

    work = {
        "peer": peer,
        "whole": ours("whole", adaptive=False),
        "adaptive": ours("adaptive", adaptive=True),
    }
    seconds = in_turns(work, rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    whole, filled = found["whole"], found["adaptive"]
    assert filled.interpolation is not None
    off = np.abs(filled.loss - whole.loss).max() / np.ptp(whole.loss)
    return {
        "seconds": seconds,
        "medians": medians,
        "peer_over_whole": medians["peer"] / medians["whole"],
        "peer_over_adaptive": medians["peer"] / medians["adaptive"],
        "whole_over_adaptive": medians["whole"] / medians["adaptive"],
        "at_once": whole.at_once,
        "samples": problem.samples,
        "interpolation": asdict(filled.interpolation),
        "largest_error_of_all_points": float(off),
        "device": str(problem.device),
    }


def in_turns(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every work, one after the other, round after round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
                print(f"round {number}, {name}: {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def curvature(name: str) -> dict[str, Any]:
    """The self-check of a demo along Hessian axes."""
    start = time.perf_counter()
    demo = DEMOS[name]
    inputs, targets = load_data(demo.data)
    data = (inputs[: demo.limit], targets[: demo.limit])
    problem = ls.Problem(train(name, seed=0).model, demo.loss, data)
    axes = ls.hessian_axes(problem, (1, 2, -1))
    checks = curvature_checks(problem, axes, problem.norm_stats)
    center = LossAt(problem, axes.directions)(torch.zeros(1, 3)).loss
    return {
        "parameters": problem.size,
        "samples": problem.samples,
        "axes": [asdict(axis) for axis in axes.axes],
        "checks": None if checks is None else [asdict(check) for check in checks],
        "centre_relative_error": abs(float(center) - problem.loss()) / problem.loss(),
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", default=["time", "curvature"])
    parser.add_argument("--json", type=Path, default=Path("figures/data/surfaces.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    report = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    report["bars"] = BARS
    report["machine"] = {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if "time" in asked.parts:
        report["time"] = timed(asked.rounds, asked.device)
    if "curvature" in asked.parts:
        for name in DEMOS:
            found = curvature(name)
            report.setdefault("curvature", {})[name] = found
            errors = [check["relative_error"] for check in found["checks"] or []]
            print(name, errors, f"{found['seconds']:.0f} s", flush=True)
    asked.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
