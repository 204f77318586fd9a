"""Every block of Python in the README runs, in the order in which it stands there."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)  # noqa: S102 the README is ours
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"spectrum.json", "spectrum.pdf", "work.pt", "eigen.json"}


def test_pictures_exist_and_nothing_is_left_to_fill_in() -> None:
    root = Path(__file__).parent.parent
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README, re.DOTALL)
    assert pictures and all((root / picture).exists() for picture in pictures)
    assert "@@" not in README
    # The generated tables.
    for row in (
        "| cnn |",
        "| ours, not verified |",
        "| 15 outliers, exponential bulk |",
        "| set-up, ours |",
        "| ResNet-20 | 269,434 |",
    ):
        assert README.count(f"\n{row}") == 1
