"""Write docs/compatibility.md from the tables that the test suite saves: `make tables`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DATA = ROOT / "figures/data"


def table(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return found


def page() -> str:
    """The whole page."""
    files, data, exploits, modules = map(table, ("files", "data", "exploits", "modules"))
    measured = [row for row in modules["rows"] if "error_float64" in row]
    narrow = [row for row in modules["rows"] if "error_float32" in row and row not in measured]
    refused = [row for row in modules["rows"] if "outcome" in row]
    return f"""# What opens, what is refused, and how exact it is

Found by the test suite (torch {files["torch"]}) and written by `make tables`; every row is a test.

## Model files

{_markdown("file", "outcome", (_file(row) for row in files["rows"]))}

## Data

{_markdown("data", "outcome", (_data(row) for row in data["rows"]))}

## Payloads

Each file would create a witness file if anything in it ran. None does. "Live" ones were seen to run when
torch, pickle or Python opens the same file without the guard; the others stay refused all the same.

{_markdown("payload", "live without the guard", "with it", (_exploit(row) for row in exploits["rows"]))}

## Modules

Largest error of Hessian products, as a share of the largest entry, against a float64 computation that shares
no code with `landscape`; in float64 and float32.

{_markdown("module", "engine", "float64", "float32", (_module(row) for row in measured + narrow))}

Refused:

{_markdown("module", "sentence", ((row["kind"], row["outcome"]) for row in refused))}
"""


def _file(row: dict[str, Any]) -> tuple[str, str]:
    return row["kind"], "opens" if row["outcome"] == "opens" else f"refused: {row['said'][0]}"


def _data(row: dict[str, Any]) -> tuple[str, str]:
    return row["kind"], "opens" if row["outcome"] == "opens" else f"refused: {row['outcome']}"


def _exploit(row: dict[str, Any]) -> tuple[str, str, str]:
    opens = row["outcome"].startswith("opens")
    return (
        row["name"],
        "yes" if row["live"] else "no",
        row["outcome"] if opens else f"refused: {row['outcome']}",
    )


def _module(row: dict[str, Any]) -> tuple[str, str, str, str]:
    errors = [f"{row[k]:.0e}" if k in row else "" for k in ("error_float64", "error_float32")]
    return row["kind"], row["engine"], errors[0], errors[1]


def _markdown(*columns: str | Iterable[tuple[str, ...]]) -> str:
    *heads, rows = columns
    lines = [heads, ["---"] * len(heads), *rows]  # type: ignore[list-item]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)  # type: ignore[arg-type]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


if __name__ == "__main__":
    (ROOT / "docs/compatibility.md").write_text(page())
