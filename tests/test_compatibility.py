"""The published tables are those of this test suite: the same rows, and the page that they make."""

import importlib.util
from pathlib import Path
from types import ModuleType

from exploits import EXPLOITS, LIVE
from files import OPENS, REFUSED
from module_kinds import KINDS

ROOT = Path(__file__).parent.parent


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compat", ROOT / "figures/compatibility.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_saved_tables() -> None:
    assert (ROOT / "docs/compatibility.md").read_text() == _script().page()


def test_the_saved_tables_have_the_rows_of_the_suite() -> None:
    table = _script().table
    outcomes = {row["kind"]: row["outcome"] for row in table("files")["rows"]}
    expected = dict.fromkeys(OPENS, "opens") | dict.fromkeys(REFUSED, "refused")
    assert expected.items() <= outcomes.items()
    live = {row["name"]: row["live"] for row in table("exploits")["rows"]}
    assert live == {name: name in LIVE for name in EXPLOITS}
    assert set(KINDS) <= {row["kind"] for row in table("modules")["rows"]}


def test_no_machine_is_named() -> None:
    assert "/tmp/" not in (ROOT / "docs/compatibility.md").read_text()
