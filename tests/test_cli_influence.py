"""`landscape influence`: what is printed, written and refused."""

import json
from pathlib import Path

import pytest
from conftest import Run

import landscape as ls
from landscape.results import to_json


def test_influence_prints_and_writes_what_the_analysis_finds(run: Run, tiny_archive: Path) -> None:
    asked = ("--query", "0,5", "--query-data", "diabetes:test", "--damping", "0.02", "--top", "3")
    asked += ("--operator", "fisher", "--samples", "2", "--seed", "7")
    done = run("influence", tiny_archive, *asked, "--json", "i.json", "-o", "i.png")
    assert done.returncode == 0, done.stderr
    saved = json.loads(Path("i.json").read_text())
    assert saved["schema"] == "landscape/influence/1"
    assert [query["position"] for query in saved["queries"]] == [0, 5]
    assert saved["samples"] == 354 and not saved["queries_from_training"]
    problem = ls.load_problem(tiny_archive, limit=0)  # the archive is measured on 64 of them
    from landscape.demos.data import load_data

    expected = ls.influence(
        problem,
        [0, 5],
        data=load_data("diabetes:test"),
        damping=0.02,
        operator="fisher",
        samples=2,
        seed=7,
    )
    found = ls.Influence.load("i.json")
    assert (found.queries[1].effects == expected.queries[1].effects).all()
    assert json.loads(to_json(found.to_dict())) == saved
    for said in (
        "Fisher of",
        "query 5, sample of diabetes:test: loss",
        "helps",
        "harms",
        f"{found.queries[0].most_helpful(1)[0]}",
        "of the query's loss if the training sample were left out",
        "wrote i.png",
    ):
        assert said in done.stdout
    from matplotlib.image import imread

    found.plot("three.png", top=3)
    assert imread("i.png").shape == imread("three.png").shape  # as high as its bars need


def test_queries_are_training_samples_unless_said(run: Run, tiny_archive: Path) -> None:
    done = run(
        "influence", tiny_archive, "--query", "7", "--damping", "0.01", "--json", "-", "-o", "i.pdf"
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    assert saved["queries_from_training"] and "query 7, training sample: loss" in done.stderr
    # A sample helps most where it is asked about itself.
    effects = saved["queries"][0]["effects"]
    assert effects[7] > 0


def test_other_matrices_and_solvers_are_at_hand(run: Run, tiny_archive: Path) -> None:
    common = ("influence", tiny_archive, "--query", "1", "-o", "i.pdf", "--json", "i.json")
    solver = run(*common, "--method", "mfac", "--rank", "20", "--damping", "0.01")
    assert solver.returncode == 0, solver.stderr
    assert "mfac, residuals" in solver.stdout
    inverse = run(*common, "--operator", "inverse-fisher", "--damping", "0.01")
    assert inverse.returncode == 0, inverse.stderr
    assert "woodbury, exact" in inverse.stdout


def test_what_is_not_solved_is_exit_code_three(run: Run, tiny_archive: Path) -> None:
    done = run(
        "influence", tiny_archive, "--query", "1", "--operator", "hessian", "--damping", "0",
        "--max-iterations", "5", "--json", "i.json", "-o", "i.pdf",
    )  # fmt: skip
    assert done.returncode == 3
    assert "raise --damping" in done.stderr
    assert Path("i.json").exists() and Path("i.pdf").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--query", "1,x"), "--query '1,x' is no list of samples: write positions such as 0,5,17"),
        (
            ("--query", "354"),
            "sample 354 was asked for, and the data hold 354: count from 0 to 353",
        ),
        (
            ("--query", "1", "--limit", "64"),
            "--limit takes a random part of the data, in which positions",
        ),
        (("--query", "1", "--top", "51"), "--top (top=) is 51: a figure shows 1 to 50 samples"),
        (
            ("--query", "1", "--operator", "inverse-fisher", "--engine", "split"),
            "engine is about products with a matrix, and 'inverse-fisher' needs none",
        ),
        (("--query", "1", "--method", "lu"), "--method is 'lu': choose one of auto, cg"),
        (("--query", "1", "--query-data", "digts"), "unknown data 'digts': did you mean digits"),
        (("--query", "1", "-o", "i.html"), "its ending must be one of .png, .svg, .pdf"),
        (("--query", ",".join("0" * 13)), "a figure holds 12 queries, and there are 13"),
        ((), "Missing option '--query'"),
    ],
)
def test_wrong_usage_is_refused_in_a_sentence(
    options: tuple[str, ...], sentence: str, run: Run, tiny_archive: Path
) -> None:
    done = run("influence", tiny_archive, "-o", "i.pdf", *options)
    assert done.returncode == 2 and sentence in done.stderr
    assert "Traceback" not in done.stderr and not Path("i.pdf").exists()


def test_other_texts_are_read_with_the_tokenizer_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tokens would give the queries another meaning, and no error."""
    from landscape_cli.options import ModelOptions
    from landscape_cli.output import console

    text, folder = tmp_path / "query.txt", tmp_path / "model"
    text.write_text("a text")
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    asked: list[object] = []
    monkeypatch.setattr(
        "landscape.loading.data.read_data", lambda name, **how: asked.append(how["tokenizer"])
    )
    for options, name in (
        (ModelOptions(folder), str(text)),
        (ModelOptions(folder, tokenizer="ascii"), str(text)),
        (ModelOptions(folder), "digits:test"),
        (ModelOptions(tmp_path), str(text)),
    ):
        options.read(name, console())
    assert asked == [str(folder), "ascii", None, None]
