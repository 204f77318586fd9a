"""Write the table of docs/sharpness.md: the CNN trained without and with SAM.

python tests/benchmarks/sharpness.py
python figures/sharpness.py
"""

import statistics
from typing import Any

from tables import ROOT, load, table, write

from landscape.numerals import number, with_error

PAGE = ROOT / "docs/sharpness.md"


def cell(values: list[float]) -> str:
    """Mean and standard error over trainings."""
    return with_error(statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5)


def value_of(run: dict[str, Any], name: str) -> float:
    """By name: rows stand elsewhere in a run that left one out."""
    (value,) = [row["value"] for row in run["measures"] if row["name"] == name]
    return float(value)


def trained(runs: list[dict[str, Any]], radii: list[float]) -> str:
    def of(rho: float) -> list[dict[str, Any]]:
        return [run for run in runs if run["sam_rho"] == rho]

    header = ["", "ρ", "m", "c", *(f"SAM, ρ = {rho:g}" if rho else "without SAM" for rho in radii)]
    rows = [
        [
            f"{part} {what}",
            "",
            "",
            "",
            *(cell([run[part][what] for run in of(rho)]) for rho in radii),
        ]
        for part, what in (("test", "accuracy"), ("test", "loss"), ("train", "loss"))
    ]
    for measure in runs[0]["measures"]:
        name = measure["name"]
        fixed = measure["family"] != "pac-bayes" and measure["rho"] is not None
        values = [[value_of(run, name) for run in of(rho)] for rho in radii]
        rows.append(
            [
                name,
                number(measure["rho"]) if fixed else "",
                f"{measure['m']:,}",
                measure["scaling"].replace("|", "\\|"),
                *map(cell, values),
            ]
        )
    return table(header, rows)


def main() -> None:
    content = load("sharpness")
    runs = content["runs"]
    radii = sorted({run["sam_rho"] for run in runs})
    seconds = statistics.fmean(run["seconds"] for run in runs)
    setting = content["setting"]
    text = (
        f"{trained(runs, radii)}\n\n"
        f"Mean ± standard error over {len(runs) // len(radii)} trainings, errors of single tables left out; one "
        f"table takes {seconds:.0f} s on one thread; torch {setting['torch']}, {setting['date'][:10]}."
    )
    write("SAM", text, PAGE)


if __name__ == "__main__":
    main()
