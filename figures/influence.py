"""Predicted and actual effects of leaving a sample out, and the tables of docs/influence.md.

python tests/benchmarks/influence.py figures/data/influence.json
python figures/influence.py
"""

from typing import Any

import numpy as np
from tables import ROOT, load, table, write

from landscape.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, publication

PAGE = ROOT / "docs/influence.md"
COLORS = (BLUE, GREEN, ORANGE, VERMILLION)


def scatter(rows: list[dict[str, Any]]) -> None:
    """One panel for every penalty of which effects were kept, one colour for each of four queries."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if "predicted" in row][::-1]
    with publication(5.5):
        figure = Figure(figsize=(5.5, 2.6))
        for axes, row in zip(figure.subplots(1, len(shown)), shown, strict=True):
            predicted, actual = 1e3 * np.array(row["predicted"]), 1e3 * np.array(row["actual"])
            ends = [min(predicted.min(), actual.min()), max(predicted.max(), actual.max())]
            axes.plot(ends, ends, color=GREY, linewidth=0.5, zorder=1)
            for x, y, color in zip(predicted, actual, COLORS, strict=True):
                axes.scatter(x, y, s=4, color=color, linewidths=0, alpha=0.7, zorder=2)
            axes.set_xlabel("predicted change of the loss / 10⁻³")
            axes.set_title(
                f"λ = {row['penalty']:g}: r = {row['pearson']:.4f} over {row['queries']} queries",
                loc="left",
                color=GREY,
            )
        figure.axes[0].set_ylabel("actual change / 10⁻³")
        figure.draw_without_rendering()
        for ending in ("pdf", "png"):
            metadata = {"CreationDate": None} if ending == "pdf" else {}
            figure.savefig(ROOT / f"figures/influence.{ending}", metadata=metadata)


def leaving_out(rows: list[dict[str, Any]]) -> str:
    header = ["λ", "Pearson", "of the worst query", "Spearman", "slope", "one Newton step: Pearson"]
    return table(
        header,
        [
            [
                f"{row['penalty']:g}",
                f"{row['pearson']:.4f}",
                f"{row['pearson_per_query']['least']:.3f}",
                f"{row['spearman']:.4f}",
                f"{row['slope']:.2f}",
                f"{row['pearson_of_one_newton_step']:.4f}",
            ]
            for row in rows
        ],
    )


def datamodelling(models: list[dict[str, Any]]) -> str:
    rows = [
        [
            model["model"],
            row["effects"],
            f"{row['score']:.3f} ± {row['standard_error']:.3f}",
            "yes" if row["failures"] else "",
        ]
        for model in models
        for row in model["rows"]
    ]
    return table(["model", "effects by", "score ± s.e.", "warned"], rows)


def main() -> None:
    report = load("influence")
    scatter(report["leave_one_out"])
    write("leave-one-out", leaving_out(report["leave_one_out"]), PAGE)
    write("datamodelling", datamodelling(report["datamodelling"]), PAGE)


if __name__ == "__main__":
    main()
