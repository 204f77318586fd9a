"""The command line as a person meets it: output, files, exit codes, and no traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

QUICK = ("--probes", "3", "--steps", "8")


def test_spectrum_prints_a_table_and_writes_a_figure_beside_the_model(
    run: Run, tiny_archive: Path
) -> None:
    done = run("spectrum", tiny_archive, *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("λ1", "λ5", "λ min", "trace", "negative", "products", "gradient norm", " ± "):
        assert word in done.stdout
    for word in ("dimension", "stable rank", "r_e, K_H0.5", "3 probes × 8 steps, 6 deflated"):
        assert word in done.stdout
    figure = tiny_archive.with_name("model.spectrum.pdf")
    assert figure.read_bytes().startswith(b"%PDF")


def test_json_on_stdout_is_pure_and_follows_the_schema(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    done = run("spectrum", tiny_archive, *QUICK, "--top", "3", "--json", "-", "-o", "a.svg")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert "λ1" in done.stderr
    assert (tmp_path / "a.svg").exists()
    assert result["schema"] == "landscape/spectrum/1"
    assert {"parameters", "operator", "cost", "provenance"} <= set(result)
    values = [pair["value"] for pair in result["eigenvalues"]]
    assert len(values) == 3 and values == sorted(values, reverse=True)
    assert set(result["trace"]) == {"value", "standard_error"}
    density = result["density"]
    area = np.trapezoid(density["values"], density["grid"])
    assert area == pytest.approx(1, abs=1e-6)
    assert len(density["standard_error"]) == len(density["grid"])
    assert len(result["ritz"]) == 3
    assert all(sum(probe["weights"]) == pytest.approx(1) for probe in result["ritz"])
    cost = {"products", "gradient_equivalents", "seconds", "peak_bytes", "engine"}
    assert set(result["cost"]) == cost
    assert result["provenance"]["command"].startswith("landscape spectrum")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "html"])
def test_figures_of_every_kind(run: Run, tiny_archive: Path, tmp_path: Path, ending: str) -> None:
    assert run("spectrum", tiny_archive, *QUICK, "-o", f"x.{ending}").returncode == 0
    assert (tmp_path / f"x.{ending}").stat().st_size > 5_000
    assert [p.name for p in tmp_path.iterdir()] == [f"x.{ending}"]  # no temporary file is left


@pytest.mark.parametrize(
    "operator", ["gauss-newton", "fisher", "empirical-fisher", "gradient-covariance"]
)
def test_every_operator_runs(run: Run, tiny_archive: Path, operator: str) -> None:
    done = run("spectrum", tiny_archive, *QUICK, "--operator", operator, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["eigenvalues"][0]["value"] > 0


def test_options_reach_the_computation(run: Run, tiny_archive: Path) -> None:
    done = run(
        *("spectrum", tiny_archive, *QUICK, "--params", "0.*", "--dtype", "float64"),
        *("--data", "diabetes:test", "--limit", "30", "--batch-size", "7", "--loss", "huber"),
        *("--json", "-", "--seed", "5", "--operator", "gauss-newton"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    about = result["provenance"]["problem"]
    assert result["parameters"] == 10 * 32 + 32
    assert (about["samples"], about["batches"], about["loss"]) == (30, 5, "huber_loss")
    assert (about["dtype"], result["provenance"]["seed"]) == ("float64", 5)


def test_the_same_seed_gives_the_same_numbers(run: Run, tiny_archive: Path) -> None:
    first, second, other = (
        json.loads(run("spectrum", tiny_archive, *QUICK, "--json", "-", "--seed", seed).stdout)
        for seed in ("1", "1", "2")
    )
    assert first["ritz"] == second["ritz"] and first["eigenvalues"] == second["eigenvalues"]
    assert first["ritz"] != other["ritz"]


def test_state_dict_with_a_factory_of_the_users(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def build(width=3):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width),\n"
        "                               torch.nn.Tanh(), torch.nn.Linear(width, 10))\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import net  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    torch.save(net.build(5).state_dict(), tmp_path / "w.pt")
    common = ("spectrum", "w.pt", "--model", "net:build", *QUICK, "--limit", "50")
    done = run(*common, "--model-args", '{"width": 5}', "--data", "digits")
    assert done.returncode == 0, done.stderr
    assert "no loss was given: cross_entropy fits the targets" in done.stderr
    assert (tmp_path / "w.spectrum.pdf").exists()
    wrong = run(*common, "--data", "digits")
    assert wrong.returncode == 2 and "do not fit Sequential" in wrong.stderr


def test_errors_from_the_choice_of_samples_stand_beside_the_others(
    run: Run, tiny_archive: Path
) -> None:
    done = run("spectrum", tiny_archive, *QUICK, "--json", "r.json")
    assert done.returncode == 0
    result = json.loads(Path("r.json").read_text())
    assert result["sampling"]["samples"] == 64 and result["sampling"]["population"] is None
    assert done.stdout.count("data ± ") == 9  # loss, λ1 … λ5, λ min, trace, and what it means
    assert "64 samples in 32 random groups" in done.stdout
    assert "about their distribution" in done.stdout


def test_limit_auto_grows_the_data_until_they_are_enough(run: Run, tiny_archive: Path) -> None:
    auto = ("spectrum", tiny_archive, *QUICK, "--top", "1", "--limit", "auto", "--json", "r.json")
    done = run(*auto, "--data-tolerance", "0.5")
    assert done.returncode == 0, done.stderr
    sampling = json.loads(Path("r.json").read_text())["sampling"]
    assert (sampling["reached"], sampling["tolerance"]) == (True, 0.5)
    assert (sampling["samples"], sampling["population"]) == (256, 354)
    assert "256 samples in 32 random groups" in done.stdout
    assert "about all 354 samples" in done.stdout


WRONG: list[tuple[list[str], str]] = [
    (["spectrum", "missing.pt"], "there is no file 'missing.pt'"),
    (["spectrum"], "Missing argument"),
    (["spectrm"], "No such command 'spectrm'"),
    (["spectrum", "MODEL", "--probes", "many"], "Invalid value for '--probes'"),
    (["spectrum", "MODEL", "--probes", "0"], "probes=0"),
    (["spectrum", "MODEL", "--top", "0"], "top is 0"),
    (["spectrum", "MODEL", "--top", "100000"], "top is 100000"),
    (["spectrum", "MODEL", "--operator", "jacobian"], "unknown operator 'jacobian'"),
    (["spectrum", "MODEL", "--samples", "2"], "only goes with the operator 'fisher'"),
    (["spectrum", "MODEL", "--limit", "many"], "--limit 'many' is no number of samples"),
    (["spectrum", "MODEL", "--limit", "-3"], "--limit '-3' is no number of samples"),
    (["check", "MODEL", "--limit", "auto"], "for landscape spectrum, auto"),
    (["spectrum", "MODEL", "--data-tolerance", "0.1"], "--limit auto has enough"),
    (
        ["spectrum", "MODEL", "--limit", "auto", "--data-tolerance", "0"],
        "data_tolerance is 0.0: it must be positive",
    ),
    (["spectrum", "MODEL", "--params", "layer9.*"], "no trainable parameter matches 'layer9.*'"),
    (["spectrum", "MODEL", "--data", "imagenet"], "unknown data 'imagenet'"),
    (["spectrum", "MODEL", "--data", "digits"], "the data do not fit the model: "),
    (["spectrum", "MODEL", "--loss", "hinge"], "unknown loss 'hinge'"),
    (["spectrum", "MODEL", "--device", "abacus"], "the device 'abacus' cannot be used"),
    (["spectrum", "MODEL", "--dtype", "int8"], "--dtype is 'int8'"),
    (["spectrum", "MODEL", "--norm-stats", "none"], "--norm-stats is 'none'"),
    (["spectrum", "MODEL", "--axis", "polar"], "cannot draw a spectrum on axis 'polar'"),
    (["spectrum", "MODEL", "-o", "x.bmp"], "its ending must be one of"),
    (["spectrum", "MODEL", "-o", "nowhere/x.png"], "the folder 'nowhere' does not exist"),
    (["spectrum", "MODEL", "--json", "MODEL"], "is the model itself"),
    (["spectrum", "MODEL", "--model-args", "width=3"], "is not JSON"),
    (["bench", "MODEL", "--operators", "jacobian"], "unknown operator 'jacobian'"),
    (["bench", "MODEL", "--rounds", "0"], "rounds=0"),
    (["bench", "MODEL", "--json", "MODEL"], "is the model itself"),
    (["demo", "vgg"], "vgg"),
    (["demo", "-o", "nowhere/model.pt"], "the folder 'nowhere' does not exist"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    run: Run, tiny_archive: Path, arguments: list[str], sentence: str
) -> None:
    before = tiny_archive.read_bytes()
    done = run(*[str(tiny_archive) if a == "MODEL" else a for a in arguments])
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("landscape: ")
    assert done.stdout == ""
    assert tiny_archive.read_bytes() == before


def test_debug_shows_the_traceback(run: Run) -> None:
    assert "Traceback" in run("spectrum", "missing.pt", "--debug").stderr


def test_an_unconverged_result_is_written_and_exits_3(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    done = run("spectrum", tiny_archive, *QUICK, "--max-steps", "6", "--json", "r.json")
    assert done.returncode == 3
    assert "residual" in done.stderr and "after 6 Lanczos steps" in done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["failures"] and not all(p["converged"] for p in result["eigenvalues"])


def test_a_demo_never_overwrites_unasked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("precious")
    done = run("demo", "regression")
    assert done.returncode == 2 and "--force" in done.stderr
    assert (tmp_path / "model.pt").read_text() == "precious"


def test_demo_writes_an_archive_that_the_printed_command_opens(run: Run, tmp_path: Path) -> None:
    done = run("demo", "regression", "-o", "r.pt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("next: landscape spectrum r.pt\n")
    assert run("spectrum", "r.pt", *QUICK).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for child processes")
def test_an_interrupt_ends_with_130_and_leaves_no_files(tiny_archive: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, torch\n"
        "def data():\n"
        "    pathlib.Path('started').touch()\n"
        "    return torch.randn(64, 10), torch.randn(64, 1)\n"
    )
    # A suite in the background inherits an ignored SIGINT; the child listens again.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from landscape_cli.main import main; main()"
    command = [sys.executable, "-c", code, "spectrum", str(tiny_archive)]
    child = subprocess.Popen(
        [*command, "--probes", "500", "--steps", "1000", "--data", "slow:data", "--json", "x.json"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "started").exists():
        assert child.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors == "ran slow:data from slow.py\nlandscape: interrupted\n"
    assert not (tmp_path / "x.json").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("spectrum", "demo", "check", "bench"))],
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from landscape_cli.main import main\n"
        f"sys.argv = ['landscape', *{arguments}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'plotly', 'sklearn', 'pyhessian'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_version_and_the_installed_command() -> None:
    command = Path(sys.executable).with_name("landscape")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("landscape 0.")


def test_names_in_a_file_cannot_forge_what_the_terminal_shows(run: Run, tmp_path: Path) -> None:
    weights = {
        "0.weight\x1b[2J\nlandscape: all is well": torch.zeros(2),
        "[red]x[/red]": torch.zeros(1),
    }
    torch.save(weights, tmp_path / "w.pt")
    done = run(
        *("check", "w.pt", "--data", "diabetes"),
        *("--model", "landscape.demos.models:regression", "--limit", "20"),
    )
    assert done.returncode == 2
    assert "\x1b" not in done.stderr and "\\x1b[2J\\nlandscape: all is well" in done.stderr
    assert done.stderr.count("\n") == 2  # what was run, and the refusal
