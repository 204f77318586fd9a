"""`landscape sharpness`: what is printed, written and refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from conftest import Run

import landscape as ls
from landscape.analyses.sharpness.battery import FAMILIES
from landscape.numerals import number, with_error
from landscape.results import to_json

FEW = ("--steps", "3", "--draws", "3", "--probes", "4", "--m", "16")


def test_sharpness_prints_and_writes_what_the_analysis_finds(
    run: Run, tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    done = run("sharpness", tiny_archive, *FEW, "--rho", "0.1", "--json", "s.json", "--resume", "r")
    assert done.returncode == 0, done.stderr
    assert not Path("r").exists()
    saved = json.loads(Path("s.json").read_text())
    assert saved["schema"] == "landscape/sharpness/1"
    problem = ls.load_problem(tiny_archive)
    truth = ls.sharpness(problem, rho=0.1, steps=3, draws=3, probes=4, m=16)
    assert [row["value"] for row in saved["measures"]] == [row.value for row in truth.measures]
    for row in truth.measures:
        assert row.name in done.stdout and row.definition in done.stdout
    for said in ("value ± error", "left out", "Andriushchenko 2023", "relative flatness of"):
        assert said in done.stdout
    assert json.loads(to_json(ls.Sharpness.load("s.json").to_dict())) == saved


def test_brackets_in_definitions_are_printed(
    tiny_archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in E[drop of the accuracy], which must not be taken for a style."""
    from landscape_cli.output import console
    from landscape_cli.sharpness import _show

    found = ls.sharpness(ls.load_problem(tiny_archive), measures="gradient")
    row = replace(found.measures[0], definition="E[drop]", note="of [red]", family="critical")
    left_out = {"other": "for [blue]"}
    _show(console(), replace(found, measures=[row], left_out=left_out), tiny_archive)
    shown = capsys.readouterr().out
    for said in ("E[drop]", "of [red]", "for [blue]"):
        assert said in shown


def test_numbers_are_not_broken_on_a_terminal_of_80_columns(
    tiny_archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from landscape_cli.output import console
    from landscape_cli.sharpness import _show

    monkeypatch.setenv("COLUMNS", "80")
    found = ls.sharpness(ls.load_problem(tiny_archive), measures=["worst", "average"], steps=20)
    _show(console(), found, tiny_archive)
    shown = capsys.readouterr().out
    for row in found.measures:
        assert f"{with_error(row.value, row.standard_error)} " in shown
        assert f"ρ {number(row.rho or 0)}, c {row.scaling} " in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_help_names_every_family() -> None:
    from landscape_cli.sharpness import sharpness

    *_, (option,) = [
        hint.__metadata__
        for name, hint in get_type_hints(sharpness, include_extras=True).items()
        if name == "measures"
    ]
    assert option.help.startswith(", ".join(FAMILIES) + ".")


def test_families_are_chosen(run: Run, tiny_archive: Path) -> None:
    done = run("sharpness", tiny_archive, *FEW, "--measures", "average, gradient", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert [row["family"] for row in json.loads(done.stdout)["measures"]] == [
        "gradient",
        "average",
        "average",
    ]
    assert "adaptive average" in done.stderr


def test_the_state_of_an_optimiser_is_read(run: Run, tiny_archive: Path) -> None:
    problem = ls.load_problem(tiny_archive)
    optimizer = torch.optim.Adam(problem.model.parameters())
    for parameter in problem.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict()}, "o.pt")
    asked = ("sharpness", tiny_archive, "--measures", "preconditioned", "--optimizer")
    done = run(*asked, "o.pt", "--json", "s.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(Path("s.json").read_text())["measures"]
    assert row["scaling"] == "P^−½" and row["value"] > 0
    assert "Adam after 1 steps" in done.stdout
    refused = run(*asked, tiny_archive)
    assert refused.returncode == 2 and "holds no state of an optimiser" in refused.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--measures", "sharp"), "'sharp' is no family of measures"),
        (("--scaled", "some"), "--scaled is 'some': choose all or matrices"),
        (("--rho", "-1"), "rho is -1.0: it must be positive"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(
    options: tuple[str, ...], sentence: str, run: Run, tiny_archive: Path
) -> None:
    done = run("sharpness", tiny_archive, *options)
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr
