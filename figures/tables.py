"""Tables in the README and the documents, each between two comments, from saved JSON."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def load(name: str) -> Any:
    """A saved run."""
    return json.loads((ROOT / f"figures/data/{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, text: str, page: Path = README) -> None:
    """Put a text between `<!-- name table … -->` and `<!-- end -->`."""
    whole, count = re.subn(
        rf"(<!-- {name} table.*?-->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{text}\n{m[2]}",
        page.read_text(),
        count=1,
        flags=re.DOTALL,
    )
    if not count:
        raise SystemExit(f"{page.name} has no place for the table {name!r}")
    page.write_text(whole)
