"""Pictures of surfaces show the right values at the right places, and the same result is the same file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.plots.surface import plot_surface


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    problem = ls.Problem(model, "cross_entropy", (x, torch.arange(40) % 3))
    return ls.surface(problem, points=(9, 5), extent=[2.0, (-0.5, 1.0)], check=False).to_dict()


def test_the_first_axis_is_the_horizontal_one(saved: dict[str, Any]) -> None:
    tilted = saved | {"loss": np.exp(np.linspace(0, 3, 9))[:, None] * np.ones(5)}
    axes = plot_surface(tilted).axes[0]
    assert axes.get_xlim() == (-2, 2) and axes.get_ylim() == (-0.5, 1.0)
    # The loss depends on the first axis alone, so that every contour is a vertical line.
    lines = [
        path.vertices
        for kind in axes.collections
        for path in kind.get_paths()
        if len(path.vertices) and not kind.get_fill()
    ]
    assert lines
    for vertices in lines:
        assert np.ptp(np.asarray(vertices)[:, 0]) < 1e-9
    assert "largest eigenvalue" in axes.get_xlabel().replace("\n", " ")
    assert "eigenvalue 2" in axes.get_ylabel().replace("\n", " ")


@pytest.mark.parametrize("ending", ["pdf", "png", "svg", "html"])
def test_the_same_result_is_the_same_file(
    tmp_path: Path, saved: dict[str, Any], ending: str
) -> None:
    files = [tmp_path / f"{i}.{ending}" for i in range(2)]
    for file in files:
        plot_surface(saved, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert ending != "html" or "<script src" not in files[0].read_text(encoding="utf-8")


def test_points_that_are_not_finite_are_named(saved: dict[str, Any]) -> None:
    loss = saved["loss"].copy()
    loss[0, 0] = np.nan
    figure = plot_surface(saved | {"loss": loss})
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    texts += [
        text.get_text()
        for axes in figure.axes
        if axes.get_legend()
        for text in axes.get_legend().get_texts()
    ]
    assert "not finite" in texts


def test_a_line_has_the_values_of_its_axis(saved: dict[str, Any]) -> None:
    line = saved | {
        name: saved[name][:, 0]
        for name in ("loss", "loss_standard_error", "rise_standard_error", "accuracy")
    }
    line |= {"axes": saved["axes"][:1], "grid": saved["grid"][:1]}
    axes = plot_surface(line).axes[0]
    x, y = max((one.get_data() for one in axes.lines), key=lambda data: len(data[0]))
    np.testing.assert_allclose(x, saved["grid"][0])
    np.testing.assert_allclose(y, saved["loss"][:, 0])


def test_what_cannot_be_drawn_is_refused_in_a_sentence(
    tmp_path: Path, saved: dict[str, Any]
) -> None:
    for change, path, sentence in (
        ({"schema": "landscape/trace/1"}, None, "as `landscape surface --json FILE` writes it"),
        ({}, tmp_path / "a.jpg", "its ending must be one of"),
    ):
        with pytest.raises(ls.InputError, match=sentence):
            plot_surface(saved | change, path)
    with pytest.raises(ls.InputError):
        plot_surface(saved, kind="line")
    assert list(tmp_path.iterdir()) == []
