"""Tables that several commands print."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .output import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from landscape.analyses.forecast import Forecast


def fact_grid() -> "Table":
    """Two columns: what is told, and what it is."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def plain_table(*columns: str) -> "Table":
    """A table without lines: names on the left, numbers on the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def escaped(text: object) -> str:
    """Text from a file on one line, as it stands."""
    from rich.markup import escape

    return escape(one_line(text))


def how(plan: Mapping[str, Any]) -> str:
    """The layout of images and the vectors at once of a split product; empty for another."""
    if plan["engine"] != "split":
        return ""
    parts = [] if plan["layout"] == "contiguous" else [plan["layout"]]
    parts += [] if plan["chunk"] == 1 else [f"{plan['chunk']} at once"]
    return ", ".join(parts) or "one by one"


def forecast_table(forecasts: "Sequence[Forecast]") -> "Table":
    """What each command will cost."""
    from landscape.numerals import duration, memory

    table = plain_table("command on this machine", "products", "time", "peak memory", "")
    for row in forecasts:
        few, many = row.products
        short, long = map(duration, row.seconds)
        table.add_row(
            f"landscape {row.command}",
            f"{few:,} to {many:,}" if few != many else f"{few:,}",
            f"{short} to {long}" if short != long else short,
            memory(row.peak_bytes),
            ""
            if row.fits
            else "[red]more than is free: choose fewer --params or --max-steps[/red]",
        )
    return table
