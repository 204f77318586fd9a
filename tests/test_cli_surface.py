"""`landscape surface`: what is printed, written, drawn anew and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

import landscape as ls


def test_surface_prints_and_writes_what_the_analysis_finds(run: Run, tiny_archive: Path) -> None:
    asked = ("--points", "7,5", "--ranks", "1,-1", "--arrays", "s.npz", "--resume", "state")
    done = run("surface", tiny_archive, *asked, "--json", "s.json", "-o", "s.png")
    assert done.returncode == 0, done.stderr
    found = ls.Surface.load("s.json")
    expected = ls.surface(ls.load_problem(tiny_archive), ranks=(1, -1), points=(7, 5))
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    assert [axis.name for axis in found.axes] == ["largest eigenvalue", "smallest eigenvalue"]
    np.testing.assert_array_equal(np.load("s.npz")["loss"], found.loss)
    for said in ("Loss along Hessian axes of", "largest eigenvalue", "off the Hessian by", "35"):
        assert said in done.stdout
    assert not Path("state").exists() and Path("s.png").exists()


def test_a_saved_surface_is_drawn_anew_without_the_model(run: Run, tiny_archive: Path) -> None:
    run("surface", tiny_archive, "--points", "5", "--json", "s.json", "-o", "first.pdf")
    done = run("surface", "--from", "s.json", "-o", "again.pdf")
    assert done.returncode == 0 and "wrote again.pdf" in done.stdout, done.stderr
    assert Path("again.pdf").read_bytes() == Path("first.pdf").read_bytes()


def test_axes_of_every_kind(run: Run, tiny_archive: Path) -> None:
    problem = ls.load_problem(tiny_archive)
    optimizer = torch.optim.Adam(problem.model.parameters())
    for x, y in problem.data:
        torch.nn.functional.mse_loss(problem.model(x), y).backward()
        optimizer.step()
    torch.save({"optimizer": optimizer.state_dict()}, "adam.pt")
    others = []
    for i in range(3):
        with torch.no_grad():
            for p in problem.model.parameters():
                p.add_(
                    0.1 * (i + 1) * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
                )
        ls.save_problem(
            f"{i}.pt",
            problem.model,
            factory="landscape.demos.models:regression",
            data="diabetes:train",
            loss="mse",
            limit=64,
        )
        others += ["--checkpoint", f"{i}.pt"]
    run("eigen", tiny_archive, "--top", "2", "--vectors", "v.pt")
    for asked, kind in (
        (("random", "--normalise", "layer", "--biases", "leave-out"), "random"),
        (("gradient", "--normalise", "filter"), "gradient"),
        (("optimizer", "--optimizer", "adam.pt"), "optimizer"),
        (("trajectory", *others), "trajectory"),
        (("models", *others[:4]), "models"),
        (("v.pt",), "given"),
    ):
        done = run(
            "surface", tiny_archive, "--axes", *asked, "--points", "3", "--json", "-", "-o", "a.svg"
        )
        assert done.returncode == 0, (asked, done.stderr)
        saved = json.loads(done.stdout)
        assert saved["kind"] == kind and np.isfinite(np.array(saved["loss"], float)).all()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("--axes", "adam"), "--axes is 'adam': choose hessian"),
        (("--axes", "optimizer"), "needs --optimizer FILE"),
        (("--axes", "hessian", "--normalise", "filter"), "no longer be eigenvectors"),
        (("--checkpoint", "x.pt"), "--checkpoint goes with --axes trajectory or models"),
        (("--points", "many"), "--points 'many' is no list of whole numbers"),
        (("--range", "far"), "--range 'far' is no list of numbers"),
        (("--arrays", "a.txt"), "end it in .npz or .safetensors"),
        (("-o", "a.jpg"), "its ending must be one of"),
        (("--from", "none.json"), "cannot read 'none.json'"),
    ],
)
def test_wrong_usage_is_refused_in_a_sentence(
    run: Run, tiny_archive: Path, asked: tuple[str, ...], sentence: str
) -> None:
    done = run("surface", tiny_archive, *asked)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_without_a_model_the_command_says_what_it_needs(run: Run) -> None:
    done = run("surface")
    assert done.returncode == 2 and "no model was named" in done.stderr
