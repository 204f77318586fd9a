"""`landscape prune`: what is printed, written and refused, and the picture."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file

import landscape as ls
from landscape.errors import InputError
from landscape.plots.pruning import plot_pruning
from landscape.results import to_json


@pytest.fixture(scope="module")
def digits_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of digits, untrained, as an archive that names its training data."""
    from landscape.demos.models import mlp

    path = tmp_path_factory.mktemp("archive") / "net.pt"
    torch.manual_seed(0)
    ls.save_problem(
        path,
        mlp(hidden=(8,)),
        factory="landscape.demos.models:mlp",
        arguments={"hidden": [8]},
        data="digits:train",
        loss="cross_entropy",
        limit=60,
    )
    return path


def test_prune_writes_masks_weights_numbers_and_a_figure_beside_the_model(
    run: Run, digits_archive: Path
) -> None:
    before = digits_archive.read_bytes()
    done = run("prune", digits_archive, "--sparsity", "0.8", "--recompute", "2", "--json", "p.json")
    assert done.returncode == 0, done.stderr
    assert digits_archive.read_bytes() == before
    for said in ("M-FAC, one-shot", "held-out accuracy", "by magnitude", "80.1 %", "training loss"):
        assert said in done.stdout
    assert "held-out data: digits:test" in done.stderr
    for ending in ("masks.safetensors", "pruned.safetensors", "pruning.pdf"):
        assert digits_archive.with_name(f"net.{ending}").exists()
        assert f"net.{ending}" in done.stdout.replace("\n", "")
    masks = load_file(digits_archive.with_name("net.masks.safetensors"))
    weights = load_file(digits_archive.with_name("net.pruned.safetensors"))
    assert all(torch.equal(mask, weights[name] != 0) for name, mask in masks.items())
    saved = json.loads(Path("p.json").read_text())
    assert saved["schema"] == "landscape/pruning/1"
    assert saved["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert json.loads(to_json(ls.Pruning.load("p.json").to_dict())) == saved
    shown = {line.split("  ")[0]: line.count("%") for line in done.stdout.splitlines()}
    assert (
        shown["training accuracy"] == 2 and shown["held-out accuracy"] == 3
    )  # magnitude: held-out
    (axes,) = ls.Pruning.load("p.json").plot().axes
    assert axes.get_lines()[-1].get_ydata()[-1] == 100 * saved["held_out_after"]["accuracy"]
    assert axes.get_ylabel() == "accuracy on held-out data (%)"
    problem = ls.load_problem(digits_archive)
    found = ls.prune(problem, 0.8, recompute=2, compare=False)
    assert found.state is not None
    assert all(torch.equal(found.state[name], weights[name]) for name in weights)


def test_pruned_weights_open_in_the_next_command(run: Run, digits_archive: Path) -> None:
    done = run(
        *("prune", digits_archive, "--pattern", "2:4", "--method", "magnitude"),
        *("--recompute", "1", "--held-out", "none", "--pruned", "w.safetensors"),
        *("--masks", "m.safetensors", "-o", "curve.png"),
    )
    assert done.returncode == 0, done.stderr
    assert "held-out" not in done.stdout
    assert Path("curve.png").stat().st_size > 1000
    factory = ("--model", "landscape.demos.models:mlp", "--model-args", '{"hidden": [8]}')
    checked = run("check", "w.safetensors", *factory, "--data", "digits:train", "--limit", "20")
    assert checked.returncode == 0, checked.stderr


def test_a_regression_is_judged_by_its_loss(run: Run, tiny_archive: Path) -> None:
    done = run(
        *("prune", tiny_archive, "--sparsity", "0.5,0.7", "--recompute", "1", "--json", "-"),
        *("--schedule", "gradual", "--structured", "--method", "diagonal", "--scope", "layer"),
        *("--gradients", "9", "--damping", "0.01", "--seed", "3", "--prunable", "*weight"),
        *("--epochs-per-step", "2", "--learning-rate", "0.01", "--no-compare"),
        *("--masks", "m.safetensors", "--pruned", "w.safetensors", "-o", "curve.svg"),
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    assert saved["before"]["accuracy"] is None and len(saved["steps"]) == 3
    assert "diagonal Fisher, gradual" in done.stderr
    assert saved["magnitude_steps"] == []
    options = {"method": "diagonal", "schedule": "gradual", "structured": True, "scope": "layer"}
    options |= {"recompute": 1, "gradients": 9, "damping": 0.01, "seed": 3, "prunable": ["*weight"]}
    options |= {"epochs_per_step": 2, "learning_rate": 0.01, "sparsity": [0.5, 0.7]}
    assert options.items() <= saved["provenance"]["arguments"].items()


def test_training_that_diverges_is_not_trusted_and_its_numbers_are_written(
    run: Run, tiny_archive: Path
) -> None:
    done = run(
        *("prune", tiny_archive, "--sparsity", "0.5", "--recompute", "3", "--json", "p.json"),
        *("--schedule", "gradual", "--learning-rate", "1e30", "--epochs-per-step", "2"),
        *("--masks", "m.safetensors", "--pruned", "w.safetensors", "-o", "curve.png"),
    )
    assert done.returncode == 3, done.stderr
    assert "where pruning stopped: raise the damping, lower the learning rate, or prune less" in (
        " ".join(done.stderr.split())
    )
    assert "training loss" in done.stdout and "nan" in done.stdout
    assert len(ls.Pruning.load("p.json").steps) == 2
    assert all(Path(name).exists() for name in ("m.safetensors", "w.safetensors", "curve.png"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say how much is to go: --sparsity 0.9, or --pattern 2:4"),
        (("--sparsity", "most"), "--sparsity 'most' is no share of weights"),
        (("--sparsity", "1.5"), "sparsity is 1.5"),
        (("--pattern", "half"), "--pattern 'half' is none"),
        (("--sparsity", "0.5", "--engine", "split"), "--engine is about products"),
        (("--sparsity", "0.5", "-o", "curve.html"), "its ending must be one of .png, .svg, .pdf"),
        (("--sparsity", "0.5", "--masks", "a", "--pruned", "a"), "two results would both"),
        (("--sparsity", "0.5", "--method", "luck"), "method is 'luck'"),
        (("--sparsity", "0.5", "--held-out", "digit"), "unknown data 'digit'"),
    ],
)
def test_what_is_refused(
    run: Run, tiny_archive: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = run("prune", tiny_archive, *arguments)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_picture_shows_both_curves_and_refuses_other_results(tiny_archive: Path) -> None:
    found = ls.prune(ls.load_problem(tiny_archive), 0.5, recompute=2, gradients=8)
    (axes,) = found.plot().axes
    before, magnitude, own = axes.get_lines()
    assert list(own.get_xdata()) == [100 * step.sparsity for step in found.steps]
    assert list(own.get_ydata()) == [step.quality.loss for step in found.steps]
    assert list(magnitude.get_ydata()) == [s.quality.loss for s in found.magnitude_steps]
    assert before.get_ydata()[0] == found.before.loss
    assert axes.get_ylabel() == "loss on the training data"
    with pytest.raises(InputError, match="not a result of kind 'landscape/pruning/1'"):
        plot_pruning({"schema": "landscape/eigen/1"})
