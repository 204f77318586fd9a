"""Write the tables of inverse curvature in the README from their saved runs."""

import statistics
from typing import Any

from tables import load, table, write


def engine(report: dict[str, Any]) -> str:
    setup, block = report["setup"], report["block"]
    middle = {name: statistics.median(times) for name, times in block["seconds"].items()}
    rows = [
        [
            "set-up, the recursion as published",
            f"{setup['medians']['recursion']:.1f} s",
            f"{setup['times_faster']:.1f}",
        ],
        ["set-up, ours", f"{setup['medians']['ours']:.1f} s", "1.0"],
        *(
            [f"32 products, {name}", f"{seconds:.1f} s", f"{seconds / middle['at once']:.1f}"]
            for name, seconds in middle.items()
        ),
    ]
    note = (
        f"(1,000,000 parameters, 256 gradients in float32; medians of {setup['rounds']} interleaved runs; "
        f"{setup['machine']}; torch {setup['torch']}; {setup['date'][:10]}.)"
    )
    return table(["", "time", "÷ ours"], rows) + f"\n\n{note}"


def main() -> None:
    write("inverse", engine(load("inverse")))


if __name__ == "__main__":
    main()
