"""Shared fixtures; the suite runs on one thread per process, which small models like best."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import landscape as ls

torch.set_num_threads(1)

TABLES: dict[str, list[dict[str, Any]]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tables", metavar="FOLDER", help="write what the tests found, as JSON tables"
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.getoption("--tables")
    for name, rows in TABLES.items() if folder else ():
        content = {"torch": torch.__version__, "rows": rows}
        Path(folder, f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


@pytest.fixture
def record() -> Callable[..., None]:
    """`record(table, **row)`: a row of a table that `--tables FOLDER` writes at the end."""

    def add(table: str, **row: Any) -> None:
        TABLES.setdefault(table, []).append(row)

    return add


@pytest.fixture(scope="session")
def tiny_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A problem archive that opens in no time: the untrained regression demo on its own data."""
    from landscape.demos.models import regression

    path = tmp_path_factory.mktemp("archive") / "model.pt"
    torch.manual_seed(0)
    ls.save_problem(
        path,
        regression(),
        factory="landscape.demos.models:regression",
        data="diabetes:train",
        loss="mse",
        limit=64,
    )
    return path


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder, in this process: torch is loaded once, not per test."""
    from landscape_cli.main import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr("sys.argv", ["landscape", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Done(end.value.code or 0, *capsys.readouterr())  # type: ignore[arg-type]

    return call
