"""A file is data: no payload of `exploits.py` runs, and each of them is live without the guard."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from exploits import EXPLOITS, LIVE
from files import samples

import landscape as ls

# These hold nothing that runs: they open, and their payload is left out.
OPENS = {
    "pickle deep in a checkpoint": "an object of an unknown class is kept as an inert one",
    "pickle in a problem archive": "an object of an unknown class is kept as an inert one",
    "program: sample inputs": "never looked at",
    "program: guard that is code": "never looked at",
    "program: name of an argument that is code": "a name is only a name",
    "program: name of a node that is code": "a name is only a name",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A folder that is current and importable, and the witness that must not appear."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path, Path("witness")  # relative, so that sentences show the payload and no path
    sys.modules.pop("evil_module", None)


@pytest.mark.parametrize("name", EXPLOITS)
def test_no_payload_runs(name: str, place: tuple[Path, Path], record: Callable[..., None]) -> None:
    folder, witness = place
    path, options = EXPLOITS[name](folder, witness)
    options = {"data": samples(), **options}
    if name in OPENS:
        problem = ls.load_problem(path, **options)
        assert problem.loss() > 0
        outcome = f"opens: {OPENS[name]}"
    else:
        with pytest.raises(ls.InputError) as error:
            ls.load_problem(path, **options)
        assert "\n" not in str(error.value)
        outcome = str(error.value).replace(f"{folder}/", "").replace(str(folder), ".")
    assert not witness.exists()
    assert "evil_module" not in sys.modules
    record("exploits", name=name, outcome=outcome, live=name in LIVE)


@pytest.mark.parametrize("name", LIVE)
def test_the_payload_is_live_without_the_guard(name: str, place: tuple[Path, Path]) -> None:
    folder, witness = place
    path, _ = EXPLOITS[name](folder, witness)
    assert not witness.exists()
    with contextlib.suppress(Exception):  # torch may stumble after the payload has run
        LIVE[name](path)
    assert witness.exists()
