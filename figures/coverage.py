"""How often the 95 % interval of the trace holds the truth, from figures/data/coverage.json.

python tests/benchmarks/coverage.py --json figures/data/coverage.json
python figures/coverage.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from scipy import stats

from landscape.plots.style import BLACK, BLUE, GREEN, GREY, HAIRLINE, VERMILLION, publication

HERE = Path(__file__).parent
WIDTH = 6.75  # across both columns of a paper, in inches
# The package's own intervals, then the rules that it does not use.
NAMES = {
    "auto, 1 %": "auto, to 1 %",
    "auto": "auto",
    "hutchinson": "Hutchinson",
    "hutch++": "Hutch++",
    "deflated": "deflated",
    "fresh probes": "pilot, then fresh probes",
    "stop when small": "stop when small",
    "xtrace, leave-one-out": "XTrace, leave-one-out",
}
COLOURS = {
    "auto, 1 %": BLUE,
    "auto": BLUE,
    "hutchinson": BLACK,
    "hutch++": BLACK,
    "deflated": BLACK,
}
OTHERS = ("fresh probes", "stop when small", "xtrace, leave-one-out")


def draw(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """One dot a method, with the 95 % interval of the binomial (Clopper & Pearson 1934)."""
    size = matplotlib.rcParams["legend.fontsize"]
    methods = [name for name in NAMES if any(row["method"] == name for row in rows)]
    axis.axvspan(92, 98, color=GREEN, alpha=0.13, linewidth=0)
    axis.axvline(95, color=GREEN, linewidth=0.8)
    for row in rows:
        place = -methods.index(row["method"]) - 0.5 * (row["method"] in OTHERS)
        proportion = stats.binomtest(row["covered"], row["seeds"]).proportion_ci()
        colour = VERMILLION if row["method"] in OTHERS else COLOURS[row["method"]]
        axis.plot([100 * proportion.low, 100 * proportion.high], [place, place], color=colour)
        filled = colour if row["method"] not in OTHERS else "white"
        axis.plot(
            100 * row["coverage"], place, "o", markersize=3.4, color=colour, markerfacecolor=filled
        )
        axis.annotate(
            f"{row['median_products']:,.0f}",
            (1.0, place),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=0.85 * size,
            color=GREY,
        )
    axis.axhline(0.75 - methods.index(OTHERS[0]) - 0.5, color=HAIRLINE, linewidth=0.4)
    tolerance = max(row["tolerance"] for row in rows)
    title = f"{rows[0]['problem']}\n$P$ = {rows[0]['order']}, to {100 * tolerance:.0f} %"
    axis.set_title(title, fontsize=1.1 * size)
    axis.annotate(
        "products",
        (1.0, 0.75),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="center",
        fontsize=0.85 * size,
        color=GREY,
    )
    axis.set_ylim(-len(methods) - 0.1, 1.0)
    places = [-i - 0.5 * (name in OTHERS) for i, name in enumerate(methods)]
    axis.set_yticks(places, [NAMES[name] for name in methods])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def main() -> None:
    report = json.loads((HERE / "data" / "coverage.json").read_text())
    problems = list(dict.fromkeys(row["problem"] for row in report["rows"]))
    low = min(
        100 * stats.binomtest(row["covered"], row["seeds"]).proportion_ci().low
        for row in report["rows"]
    )
    with publication(WIDTH, aspect=0.36):
        figure, axes = plt.subplots(1, len(problems), sharex=True, sharey=True)
        for axis, problem in zip(axes, problems, strict=True):
            draw(axis, [row for row in report["rows"] if row["problem"] == problem])
            axis.set_xlim(low - 1, 103.5)
            axis.set_xticks([88, 92, 95, 98])
        label = "runs in which the 95 % interval holds the trace, in %"
        figure.supxlabel(label, fontsize=matplotlib.rcParams["axes.labelsize"])
        for ending in ("pdf", "png"):
            figure.savefig(HERE / f"coverage.{ending}")


if __name__ == "__main__":
    main()
