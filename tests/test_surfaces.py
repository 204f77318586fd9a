"""Surfaces of several models can be compared: one range, one seed, and each model's own axes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from torch import nn

import landscape as ls
from landscape.demos.models import regression


def net(seed: int, scale: float = 1.0) -> ls.Problem:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    source = torch.Generator().manual_seed(1)
    x = scale * torch.randn(30, 4, generator=source, dtype=torch.float64)
    return ls.Problem(model, "cross_entropy", (x, torch.arange(30) % 3))


@pytest.mark.parametrize("axes", ["hessian", "random", "gradient"])
def test_all_models_have_the_widest_range_and_their_own_axes(axes: Any) -> None:
    problems = [net(0), net(1, scale=3)]
    alone = [ls.surface(problem, axes, points=3, seed=2) for problem in problems]
    done: list[tuple[int, str]] = []
    found = ls.surfaces(
        problems, axes, points=3, seed=2, progress=lambda i, phase, *_: done.append((i, phase))
    )
    for i in (0, 1):
        widest = max(float(surface.grid[i][-1]) for surface in alone)
        assert [float(surface.grid[i][-1]) for surface in found] == [widest] * 2
    for surface, problem in zip(found, problems, strict=True):
        assert surface.kind == axes and surface.center == problem.loss()
        assert surface.loss[1, 1] == pytest.approx(surface.center)
        D, own = surface.directions, ls.surface(problem, axes, points=3, seed=2).directions
        assert D is not None and own is not None
        cosines = (D * own).sum(0) / D.norm(dim=0) / own.norm(dim=0)
        torch.testing.assert_close(cosines.abs(), torch.ones(2).double(), atol=1e-6, rtol=0)
    assert {(0, "points"), (1, "points")} <= set(done)
    ls.plot_surfaces([surface.to_dict() for surface in found], names=["a", "b"])


def test_a_given_range_is_that_of_all() -> None:
    found = ls.surfaces([net(0), net(1)], "random", points=3, extent=0.2)
    assert all((surface.grid[0] == np.array([-0.2, 0.0, 0.2])).all() for surface in found)


def test_one_model_and_unknown_axes_are_refused() -> None:
    with pytest.raises(ls.InputError, match="1 model was given"):
        ls.surfaces([net(0)])
    with pytest.raises(ls.InputError, match="choose 'hessian', 'random' or 'gradient'"):
        ls.surfaces([net(0), net(1)], "models")  # type: ignore[arg-type]


def test_compare_measures_models_saves_and_draws_them(run: Run, tiny_archive: Path) -> None:
    other = tiny_archive.with_name("other.pt")
    torch.manual_seed(1)
    about: Any = {"factory": "landscape.demos.models:regression", "data": "diabetes:train"}
    ls.save_problem(other, regression(), loss="mse", limit=64, **about)
    asked = ("compare", tiny_archive, other, "--points", "3", "-o", "c.png")
    done = run(*asked, "--save", "kept")
    assert done.returncode == 0, done.stderr
    assert "wrote c.png" in done.stdout and Path("c.png").stat().st_size > 10_000
    first, second = (ls.Surface.load(f"kept/{name}.json") for name in ("model", "other"))
    for surface, path in ((first, tiny_archive), (second, other)):
        assert surface.center == pytest.approx(ls.load_problem(path).loss())
    assert first.center != second.center
    np.testing.assert_array_equal(first.grid, second.grid)
    assert first.provenance["command"].startswith("landscape compare")
    assert run("compare", "kept/model.json", "kept/other.json", "-o", "d.png").returncode == 0
    for more, sentence in (
        (("--name", "a"), "--name was given 1 times for 2"),
        (("--name", "a", "--name", "a", "--save", "kept"), "do not make a file each"),
        (("--quantity", "convexity"), "is for saved surfaces"),
        (("--save", "c.png"), "which is no folder"),
    ):
        refused = run(*asked, *more)
        assert refused.returncode == 2 and sentence in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr
    refused = run("compare", "kept/model.json", "kept/other.json", "--save", "kept")
    assert refused.returncode == 2 and "saved already" in refused.stderr
