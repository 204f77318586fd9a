"""`landscape eigen` and `landscape trace`: what is printed, written, refused, and gone on with."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Run

import landscape as ls
from landscape import checkpoint
from landscape.estimators import search
from landscape.operators.curvature import CurvatureOperator
from landscape.results import to_json


def test_eigen_prints_and_writes_what_the_estimator_finds(run: Run, tiny_archive: Path) -> None:
    done = run("eigen", tiny_archive, "--top", "3", "--json", "e.json", "--vectors", "v.pt")
    assert done.returncode == 0, done.stderr
    saved = json.loads(Path("e.json").read_text())
    assert saved["schema"] == "landscape/eigen/1"
    truth = torch.linalg.eigvalsh(ls.Hessian(ls.load_problem(tiny_archive)).dense().double())
    values = torch.tensor([pair["value"] for pair in saved["eigenvalues"]])
    assert torch.allclose(values.double(), truth.flip(0)[:3], rtol=1e-4)
    assert saved["complete"] and saved["missing"] <= 1e-3
    assert saved["sampling"]["samples"] == 64
    for said in (
        "eigenvalue ± residual",
        "none is missing",
        "64 samples in 32 random groups",
        "wrote v.pt",
    ):
        assert said in done.stdout
    again = ls.Eigen.load("e.json")
    assert json.loads(to_json(again.to_dict())) == saved
    vectors = torch.load("v.pt")["vectors"].double()
    matrix = ls.Hessian(ls.load_problem(tiny_archive, dtype=torch.float64))
    rest = (matrix @ vectors - vectors * values.double()).norm(dim=0)
    assert rest.max() <= 2e-4 * truth.abs().max()


def test_eigen_begins_near_earlier_vectors(run: Run, tiny_archive: Path) -> None:
    common = ("eigen", tiny_archive, "--top", "2", "--no-verify", "--json")
    assert run(*common, "cold.json", "--vectors", "v.pt").returncode == 0
    warm = run(*common, "warm.json", "--start", "v.pt")
    assert warm.returncode == 0, warm.stderr
    assert "was not searched" in warm.stdout
    cold, warm_saved = (json.loads(Path(f"{name}.json").read_text()) for name in ("cold", "warm"))
    assert warm_saved["cost"]["products"] < cold["cost"]["products"]
    Path("other.pt").write_bytes(b"no vectors")
    refused = run(*common, "-", "--start", "other.pt")
    assert refused.returncode == 2
    assert "'other.pt' holds no eigenvectors" in refused.stderr


def test_trace_prints_and_writes_what_the_estimator_finds(run: Run, tiny_archive: Path) -> None:
    done = run("trace", tiny_archive, "--tolerance", "0.05", "--json", "t.json")
    assert done.returncode == 0, done.stderr
    saved = json.loads(Path("t.json").read_text())
    assert saved["schema"] == "landscape/trace/1"
    truth = float(ls.Hessian(ls.load_problem(tiny_archive)).dense().double().trace())
    found = saved["estimate"]
    assert abs(found["value"] - truth) <= 4 * found["standard_error"] + 1e-4 * truth
    assert found["standard_error"] <= 0.05 * found["value"]
    for said in ("trace", "with 95 % confidence", "method", "64 samples in 32 random groups"):
        assert said in done.stdout
    assert json.loads(to_json(ls.Trace.load("t.json").to_dict())) == saved


def test_a_budget_that_does_not_suffice_is_exit_code_three(run: Run, tiny_archive: Path) -> None:
    asked = ("--method", "hutchinson", "--tolerance", "1e-4", "--budget", "40", "--json", "t.json")
    done = run("trace", tiny_archive, *asked)
    assert done.returncode == 3
    assert "after 40 products: raise --budget" in done.stderr
    assert Path("t.json").exists()


@pytest.mark.parametrize("command", ["eigen", "trace", "spectrum"])
def test_interrupted_commands_go_on_to_the_same_numbers(
    command: str, run: Run, tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)  # every step is written
    options = {
        "eigen": ("--top", "3"),
        "trace": ("--tolerance", "0.02"),
        "spectrum": ("--top", "2", "--probes", "3", "--steps", "20", "-o", "s.pdf"),
    }[command]
    asked = (command, tiny_archive, *options, "--seed", "3")
    assert run(*asked, "--json", "whole.json").returncode == 0

    made = 0
    multiply = CurvatureOperator._multiply

    def interrupted(self: CurvatureOperator, block: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        if made == 9:
            raise KeyboardInterrupt
        return multiply(self, block)

    monkeypatch.setattr(CurvatureOperator, "_multiply", interrupted)
    for _ in range(40):
        made = 0
        done = run(*asked, "--json", "pieces.json", "--resume", "work.pt")
        if done.returncode != 130:
            break
        assert "interrupted; the same command goes on" in done.stderr
        assert Path("work.pt").exists()
    assert done.returncode == 0, done.stderr
    assert not Path("work.pt").exists()
    whole, pieces = (json.loads(Path(f"{name}.json").read_text()) for name in ("whole", "pieces"))
    assert _numbers(whole) == _numbers(pieces)


def _numbers(result: dict) -> dict:
    """Everything but times and what was typed."""
    drop = {"seconds", "gradient_equivalents", "peak_bytes", "date", "command", "plan", "engine"}

    def kept(value):  # type: ignore[no-untyped-def]
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if k not in drop}
        return [kept(v) for v in value] if isinstance(value, list) else value

    return kept(result)


def test_a_foreign_resume_file_is_refused_in_a_sentence(run: Run, tiny_archive: Path) -> None:
    before = tiny_archive.read_bytes()
    refused = run("eigen", tiny_archive, "--resume", tiny_archive)
    assert refused.returncode == 2 and "is the model itself" in refused.stderr
    Path("work.pt").write_bytes(before[:100])
    damaged = run("trace", tiny_archive, "--resume", "work.pt")
    assert damaged.returncode == 2
    assert "cannot resume from 'work.pt': it is damaged or no resume file" in damaged.stderr
    assert tiny_archive.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("eigen", "--which", "top"), "--which is 'top': choose largest"),
        (("eigen", "--top", "0"), "k is 0: it must lie between 1 and"),
        (
            ("eigen", "--basis", "2"),
            "basis is 2: 5 eigenpairs in blocks of 1 need at least 7 vectors",
        ),
        (
            ("eigen", "--json", "a.pt", "--vectors", "a.pt"),
            "two results would both be written to 'a.pt'",
        ),
        (("trace", "--method", "guess"), "--method is 'guess': choose auto"),
        (("trace", "--tolerance", "-1"), "tolerance is -1.0: it must be positive"),
        (
            ("spectrum", "--resume", "w.pt", "--limit", "auto"),
            "--resume needs a fixed number of samples",
        ),
        (("spectrum", "--resume", "w.pt", "--per-layer"), "--resume does not go with --per-layer"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(
    arguments: tuple[str, ...], sentence: str, run: Run, tiny_archive: Path
) -> None:
    command, *options = arguments
    done = run(command, tiny_archive, *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_searches_that_stop_early_say_so(
    run: Run, tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MISSING", 0.0)  # never certain
    done = run("eigen", tiny_archive, "--top", "2", "--max-steps", "12")
    assert done.returncode == 3
    assert "others may be missing" in done.stdout
    assert "it is not certain that no eigenvalue is missing: raise --max-steps" in done.stderr
