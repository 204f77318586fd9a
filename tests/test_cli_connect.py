"""`landscape connect`: what is printed, written and refused."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file

import landscape as ls
from landscape.demos.data import load_data
from landscape.results import to_json


@pytest.fixture(scope="module")
def two_archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two untrained classifiers of digits, as archives that name their training data."""
    from landscape.demos.models import mlp

    folder = tmp_path_factory.mktemp("archives")
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        ls.save_problem(
            folder / f"{name}.pt",
            mlp(hidden=(8,)),
            factory="landscape.demos.models:mlp",
            arguments={"hidden": [8]},
            data="digits:train",
            loss="cross_entropy",
            limit=80,
        )
    return folder / "a.pt", folder / "b.pt"


QUICK = ("--points", "5", "--epochs", "2")


def test_connect_writes_numbers_figure_vectors_and_the_middle(
    run: Run, two_archives: tuple[Path, Path]
) -> None:
    a, b = two_archives
    before = a.read_bytes(), b.read_bytes()
    done = run(
        *("connect", a, b, *QUICK, "--bends", "2", "--seed", "3", "--learning-rate", "0.02"),
        *("--json", "c.json", "--vectors", "v.pt", "--middle", "m.safetensors"),
    )
    assert done.returncode == 0, done.stderr
    assert (a.read_bytes(), b.read_bytes()) == before
    for said in ("straight line", "Bézier curve", "held-out", "over line", "at the ends", "apart"):
        assert said in done.stdout
    assert "held-out data: digits:test" in done.stderr
    assert a.with_name("a.connectivity.pdf").stat().st_size > 1000
    saved = json.loads(Path("c.json").read_text())
    assert json.loads(to_json(ls.Connectivity.load("c.json").to_dict())) == saved
    assert saved["schema"] == "landscape/connectivity/1" and len(saved["t"]) == 5
    assert torch.load("v.pt")["vectors"].shape == (saved["parameters"], 3)
    problem = ls.load_problem(a, seed=3)
    found = ls.connectivity(
        problem,
        ls.load_problem(b).model,
        points=5,
        epochs=2,
        bends=2,
        seed=3,
        learning_rate=0.02,
        held_out=load_data("digits:test"),
    )
    assert saved["trained"]["train"]["loss"] == found.trained.train.loss  # type: ignore[union-attr]
    assert saved["linear"]["held_out"]["loss"] == found.linear.held_out.loss  # type: ignore[union-attr]
    middle = load_file("m.safetensors")
    assert all(torch.equal(value, found.state(0.5)[name]) for name, value in middle.items())


def test_the_straight_line_alone_to_stdout(run: Run, two_archives: tuple[Path, Path]) -> None:
    done = run(
        *("connect", *two_archives, "--path", "linear", "--points", "3", "--held-out", "none"),
        *("--json", "-", "-o", "line.png"),
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    assert saved["trained"] is None and saved["linear"]["held_out"] is None
    assert "Bézier" not in done.stderr and Path("line.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--path", "spiral"), "path is 'spiral': choose"),
        (("--points", "2"), "points is 2: 3 or more"),
        (("-o", "curve.html"), "its ending must be one of .png, .svg, .pdf"),
        (("--engine", "split"), "--engine is about products with a matrix, and connecting models"),
        (("--vectors", "a", "--middle", "a"), "two results would both"),
        (("--norm-stats", "none"), "--norm-stats is 'none'"),
        (("--held-out", "digit"), "unknown data 'digit'"),
    ],
)
def test_what_is_refused(
    run: Run, two_archives: tuple[Path, Path], arguments: tuple[str, ...], sentence: str
) -> None:
    done = run("connect", *two_archives, *arguments)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_other_model_is_neither_overwritten_nor_of_another_kind(
    run: Run, two_archives: tuple[Path, Path], tiny_archive: Path
) -> None:
    a, b = two_archives
    done = run("connect", a, b, "-o", "x.png", "--middle", b)
    assert done.returncode == 2 and "is the model itself" in " ".join(done.stderr.split())
    done = run("connect", a, tiny_archive, "-o", "x.png")
    assert done.returncode == 2 and "does not fit this model" in " ".join(done.stderr.split())
    done = run("connect", a, a, "-o", "x.png")
    assert done.returncode == 2 and "the same weights" in done.stderr
