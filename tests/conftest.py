"""Shared fixtures; the suite runs on one thread per process, which small models like best."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import landscape as ls

torch.set_num_threads(1)


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
