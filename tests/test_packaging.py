"""What an editable install hides: every package is listed, and pins exist for every dependency."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_in_the_wheel() -> None:
    folders = {path.parent for path in (ROOT / "landscape").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"landscape_cli"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_every_dependency_is_pinned_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower() for line in lines if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"].values()
    required = [*PROJECT["project"]["dependencies"], *(r for e in extras for r in e)]
    names = {re.split(r"[<>=~!\[]", requirement)[0].lower() for requirement in required}
    assert names - {PROJECT["project"]["name"]} <= pins
    assert "torch==2.13.0" in lines


def test_the_version_is_said_once() -> None:
    from landscape import __version__

    assert __version__ == PROJECT["project"]["version"]
