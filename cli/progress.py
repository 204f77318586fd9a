"""A progress bar on a terminal: products, or steps, done and time left, one line per phase."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def phases(
    console: "Console", *, unit: str = "products"
) -> Iterator[Callable[[str, int, int], None]]:
    """A function `(phase, done, expected)` that draws a bar for every phase; silent off a terminal."""
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} " + unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks = {}

        def show(phase: str, done: int, expected: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=expected)
            bar.update(tasks[phase], completed=done, total=expected)

        yield show
