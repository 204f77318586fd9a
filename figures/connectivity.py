"""Barriers between demos of two seeds: trained paths, and what batch normalisation does to ResNet-20.

landscape demo cnn -o cnn0.pt && landscape demo cnn --seed 1 -o cnn1.pt      # and resnet
python figures/connectivity.py --measure cnn0.pt cnn1.pt resnet0.pt resnet1.pt
python figures/connectivity.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import landscape as ls
from landscape.demos.data import load_data
from landscape.estimators.loss_at import NORM_STATS
from landscape.numerals import with_error
from landscape.plots.style import BLACK, BLUE, GREEN, ORANGE, publication
from landscape.results import jsonable

HERE = Path(__file__).parent
DATA = HERE / "data" / "connectivity.json"
WIDTH = 6.75  # across both columns of a paper, in inches
POOL = {
    "limit": 1000,
    "batch_size": 100,
}  # of ResNet-20: a random subset with class proportions kept
SHOWN = {
    "linear": ("straight line", ORANGE, "s"),
    "bezier": ("Bézier curve", BLUE, "o"),
    "polygon": ("polygonal chain", GREEN, "^"),
    "running": ("running statistics, interpolated", ORANGE, "s"),
    "batch": ("statistics of the batch", GREEN, "^"),
    "reestimated": ("estimated anew at every t", BLUE, "o"),
    "around": ("the same on a Bézier curve", BLACK, "v"),
}


def measure(models: list[str]) -> None:
    first, second, third, fourth = models
    cnn, other = ls.load_problem(first), ls.load_problem(second).model
    report: dict[str, Any] = {"cnn": {}, "resnet": {}}
    for path in ("bezier", "polygon"):
        found = ls.connectivity(cnn, other, path, held_out=load_data("digits:test"))  # type: ignore[arg-type]
        report["cnn"][path] = found.to_dict()
    resnet, other = ls.load_problem(third, **POOL), ls.load_problem(fourth, **POOL).model  # type: ignore[arg-type]
    for stats in NORM_STATS:
        path: Any = "bezier" if stats == "reestimated" else "linear"
        found = ls.connectivity(resnet, other, path, norm_stats=stats)
        report["resnet"][stats] = found.to_dict()
        print(stats, found.linear.train.over_line, flush=True)
    DATA.write_text(json.dumps(jsonable(report)) + "\n")


def curve(axes: Axes, t: list[float], along: dict[str, Any], name: str) -> None:
    """Training loss with its band, held-out loss dashed, and the barrier in the legend."""
    label, color, marker = SHOWN[name]
    for data, style in (("train", "-"), ("held_out", "--")):
        profile = along[data]
        if profile is None:
            continue
        barrier = with_error(profile["over_line"]["height"], profile["over_line"]["standard_error"])
        loss, error = profile["loss"], profile["standard_error"]
        axes.plot(
            t,
            loss,
            style,
            color=color,
            marker=marker if data == "train" else None,
            markersize=2,
            label=f"{label}: {barrier}" if data == "train" else None,
        )
        low = [value - e for value, e in zip(loss, error, strict=True)]
        high = [value + e for value, e in zip(loss, error, strict=True)]
        axes.fill_between(t, low, high, color=color, alpha=0.2, linewidth=0)


def main() -> None:
    report = json.loads(DATA.read_text())
    with publication(WIDTH, aspect=0.44):
        figure, (left, right) = plt.subplots(1, 2)
        t = report["cnn"]["bezier"]["t"]
        curve(left, t, report["cnn"]["bezier"]["linear"], "linear")
        for path in ("bezier", "polygon"):
            curve(left, t, report["cnn"][path]["trained"], path)
        left.set_title("tanh CNN, 8×8 digits (dashed: held-out)")
        for stats in NORM_STATS:
            curve(right, report["resnet"][stats]["t"], report["resnet"][stats]["linear"], stats)
        curve(right, t, report["resnet"]["reestimated"]["trained"], "around")
        right.set_title("ResNet-20, 1,000 MNIST images, straight line and curve")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_xlabel("t, from seed 0 to seed 1")
            axes.set_xlim(0, 1)
            axes.legend(
                title="barrier over the line", title_fontsize=6, alignment="left", loc="upper left"
            )
            low, high = axes.get_ylim()
            axes.set_ylim(low, high**1.5 / low**0.5)  # room for the legend
        left.set_ylabel("loss")
        for ending in ("pdf", "png"):
            figure.savefig(HERE / f"connectivity.{ending}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", nargs=4, metavar="MODEL")
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure)
    main()
