"""Accuracy of two demos over sparsity, M-FAC beside magnitude, and the table of the README, from saved runs.

python tests/benchmarks/pruning.py figures/data/pruning.json
python figures/pruning.py
"""

import statistics
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from tables import ROOT, load, table, write

from landscape.plots.style import BLUE, HAIRLINE, ORANGE, publication

WIDTH = 6.75  # across both columns of a paper, in inches
NAMES = {"cnn": "tanh CNN, 8×8 digits", "resnet": "ResNet-20, 5,000 MNIST images"}
CURVES = {"mfac": ("M-FAC", BLUE, "o"), "magnitude": ("magnitude", ORANGE, "s")}


def curve(found: dict[str, Any], method: str) -> tuple[list[float], list[float], list[float]]:
    """Sparsity, mean accuracy and its standard error over the seeds, all in %."""
    runs, shares = found["runs"], found["settings"]["sparsities"]
    columns = [
        [100 * run[method][i]["quality"]["accuracy"] for run in runs] for i in range(len(shares))
    ]
    errors = [statistics.stdev(column) / len(column) ** 0.5 for column in columns]
    return [100 * share for share in shares], [statistics.mean(c) for c in columns], errors


def draw(axes: Axes, name: str, found: dict[str, Any]) -> None:
    dense = statistics.mean(100 * run["dense"]["accuracy"] for run in found["runs"])
    axes.axhline(dense, color=HAIRLINE, linewidth=0.6, label="before", zorder=1)
    for method, (label, color, marker) in CURVES.items():
        shares, means, errors = curve(found, method)
        axes.errorbar(
            shares,
            means,
            errors,
            color=color,
            marker=marker,
            markersize=2.5,
            capsize=1.5,
            label=label,
        )
    axes.set_title(NAMES[name])
    axes.set_xlabel("weights removed (%)")
    axes.set_ylim(0, 103)


def summary(report: dict[str, Any]) -> str:
    header = [
        "",
        "before",
        "M-FAC at 80 %",
        "magnitude at 80 %",
        "M-FAC at 90 %",
        "magnitude at 90 %",
        "margin at 90 %",
    ]
    rows = []
    for name, found in report.items():
        dense = statistics.mean(100 * run["dense"]["accuracy"] for run in found["runs"])
        cells = [NAMES[name], f"{dense:.1f} %"]
        for bar in found["bars"]:
            cells += [percent(bar[method]) for method in CURVES]
        rows.append([*cells, percent(found["bars"][-1]["margin"])])
    runs = report["cnn"]["runs"]
    return (
        table(header, rows)
        + f"\n\nHeld-out accuracy, mean ± standard error over {len(runs)} trainings each; torch "
        f"{runs[0]['provenance']['torch']}. {steps(report['cnn'])} {statistics_anew(report['resnet'])}"
    )


def steps(found: dict[str, Any]) -> str:
    """What other numbers of steps give."""
    bars = {int(count): bar for count, bar in found["by_steps"].items()}
    bars[found["settings"]["recompute"]] = found["bars"][-1]
    listed = ", ".join(f"{percent(bars[count]['mfac'])} with {count}" for count in sorted(bars))
    return f"By steps to each sparsity, the CNN at 90 %: {listed}; the table has {found['settings']['recompute']}."


def statistics_anew(found: dict[str, Any]) -> str:
    """Whether the margin is one of batch normalisation alone."""
    at = found["recalibrated"]["at 0.9"]
    return (
        "Batch normalisation keeps its running statistics; estimated anew after pruning, ResNet-20 at 90 % has "
        f"{percent(at['mfac'])} by M-FAC and {percent(at['magnitude'])} by magnitude, margin {percent(at['margin'])}."
    )


def percent(found: list[float]) -> str:
    return f"{100 * found[0]:.1f} ± {100 * found[1]:.1f} %"


def main() -> None:
    report = load("pruning")
    with publication(WIDTH, aspect=0.36):
        figure, axes = plt.subplots(1, len(report), sharey=True, squeeze=False)
        for one, (name, found) in zip(axes[0], report.items(), strict=True):
            draw(one, name, found)
        axes[0][0].set_ylabel("held-out accuracy (%)")
        axes[0][0].legend(loc="lower left")
        for ending in ("pdf", "png"):
            figure.savefig(ROOT / f"figures/pruning.{ending}")
    write("pruning", summary(report))


if __name__ == "__main__":
    main()
