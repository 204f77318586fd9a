"""Write the table of surfaces in the README from figures/data/surfaces.json.

python tests/benchmarks/surfaces.py
python figures/surfaces_table.py
"""

from typing import Any

from tables import load, table, write

from landscape.numerals import number

NAMES = {"cnn": "CNN", "mlp": "MLP", "resnet": "ResNet-20"}


def times(found: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{found['medians'][key]:.2f}",
            f"{found['medians']['peer'] / found['medians'][key]:.2f}",
        ]
        for key, name in (
            ("peer", "loss-landscapes 3.0.6, `random_plane`"),
            ("whole", "every point, with standard errors and accuracy"),
            ("adaptive", f"`--adaptive`, {found['interpolation']['computed']:,} points"),
        )
    ]
    return table(["51 × 51 points, digits CNN", "seconds", "times as fast"], rows)


def curvatures(demos: dict[str, Any]) -> str:
    rows = []
    for name, found in demos.items():
        cells = []
        for axis, check in zip(found["axes"], found["checks"], strict=True):
            off = check["relative_error"]
            value = number(axis["eigenvalue"], 3)
            cells.append(f"{value}: " + ("no plateau" if off is None else number(off, 2)))
        rows.append([NAMES.get(name, name), f"{found['parameters']:,}", *cells])
    return table(["demo", "parameters", "λ₁: error", "λ₂: error", "λ_min: error"], rows)


def main() -> None:
    report = load("surfaces")
    time, machine = report["time"], report["machine"]
    text = (
        f"{times(time)}\n\n"
        f"The interpolated surface is off by {100 * time['largest_error_of_all_points']:.2f} % of the span at most, over "
        f"all points; {100 * time['interpolation']['error']:.2f} % was certified on "
        f"{time['interpolation']['held_back']} held back. Medians of {len(time['seconds']['peer'])} rounds taken in "
        f"turns on {machine['cores']} cores, torch {machine['torch']}, {machine['date'][:10]}.\n\n"
        f"{curvatures(report['curvature'])}"
    )
    write("surfaces", text)


if __name__ == "__main__":
    main()
