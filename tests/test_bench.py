"""Products timed on the user's model, and the options that say how products are executed."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from landscape_cli.parsing import parse_memory
from torch import Tensor, nn

import landscape as ls
from landscape.analyses.bench import MATRICES
from landscape.analyses.forecast import forecast
from landscape.memory import Peak, peak_bytes

ENGINES = ["double backward", "split"]
QUICK = ("--vectors", "2", "--rounds", "2")


class Branching(nn.Module):
    """Cannot be traced: what it computes depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y.tanh() if y.sum() > 0 else y.sigmoid()


def _problem(model: nn.Module | None = None, loss: str = "cross_entropy") -> ls.Problem:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(40, 3)
    y = torch.randint(0, 2, (40,)) if loss == "cross_entropy" else torch.randn(40, 2)
    return ls.Problem(model, loss, (x, y), batch_size=16)


@pytest.fixture(scope="module")
def benched() -> tuple[ls.Bench, list[tuple[str, int, int]]]:
    seen: list[tuple[str, int, int]] = []
    result = ls.bench(_problem(), vectors=4, rounds=3, progress=lambda *step: seen.append(step))
    return result, seen


def test_every_matrix_has_a_row_for_every_engine(
    benched: tuple[ls.Bench, list[tuple[str, int, int]]],
) -> None:
    result, _ = benched
    assert [(row.matrix, row.engine) for row in result.rows] == [
        (matrix, engine) for matrix in MATRICES for engine in ENGINES
    ]
    for row in result.rows:
        assert row.reason is None and row.plan is not None
        assert row.plan["engine"] == row.engine
    assert [row.command for row in result.forecasts] == ["spectrum", "check"]


def test_the_unit_is_the_gradient_of_the_same_rounds(
    benched: tuple[ls.Bench, list[tuple[str, int, int]]],
) -> None:
    for row in benched[0].rows:
        assert row.gradients and row.gradient_seconds and row.seconds_per_product
        assert row.seconds_per_product / row.gradient_seconds == pytest.approx(row.gradients.median)
        assert 0 < row.gradients.lower <= row.gradients.median <= row.gradients.upper
        assert row.setup_seconds is not None and row.setup_seconds >= 0


def test_rounds_are_measured_as_their_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only gradients (1 s) and columns (2, 4, 6, … s each, by round) move."""
    import landscape.analyses.bench as module

    now, paces = [0.0], iter([9.0, 9.0, 2.0, 4.0, 6.0, 8.0, 10.0])  # set-up and warm-up first
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "forecast", lambda *_, **__: [])
    monkeypatch.setattr(module, "_load_tracing", lambda: None)
    problem = _problem()
    gradient = problem.gradient

    def slow_gradient() -> Tensor:
        now[0] += 1.0
        return gradient()

    def slow_product(A: ls.Operator, block: Tensor) -> Tensor:
        now[0] += next(paces) * block.shape[1]
        return block

    monkeypatch.setattr(problem, "gradient", slow_gradient)
    monkeypatch.setattr(ls.Hessian, "__matmul__", slow_product)
    result = ls.bench(problem, operators=["hessian"], vectors=3, rounds=5, engine="split")
    (row,) = result.rows
    assert row.gradients is not None
    expected = statistics.quantiles([2, 4, 6, 8, 10], n=4, method="inclusive")
    assert [row.gradients.lower, row.gradients.median, row.gradients.upper] == expected
    assert (row.gradient_seconds, row.seconds_per_product) == (1.0, 6.0)
    assert row.setup_seconds == 3 * (9.0 - 6.0)


def test_progress_ends_where_it_was_expected_to(
    benched: tuple[ls.Bench, list[tuple[str, int, int]]],
) -> None:
    last = {phase: (done, expected) for phase, done, expected in benched[1]}
    assert list(last) == list(MATRICES)
    # Two engines: the set-up, a round to warm up and three that count, of four columns.
    assert set(last.values()) == {(2 * 5 * 4, 2 * 5 * 4)}
    assert benched[0].cost.products == 4 * 2 * 5 * 4


def test_what_cannot_be_traced_is_a_row_with_the_reason() -> None:
    result = ls.bench(_problem(Branching()), operators=["hessian"], vectors=2, rounds=1)
    plain, split = result.rows
    assert plain.reason is None and plain.gradients is not None
    assert split.gradients is None and "cannot be multiplied by the split" in str(split.reason)
    assert result.fastest("hessian") == plain
    assert result.provenance["plan"]["engine"] == "double backward"
    alone = ls.bench(_problem(Branching()), operators=["hessian"], engine="split")
    assert [row.reason for row in alone.rows] == [split.reason]
    assert alone.forecasts == [] and alone.provenance["plan"] is None


def test_a_matrix_that_the_loss_does_not_have_is_a_row_with_the_reason() -> None:
    result = ls.bench(_problem(loss="huber"), operators=["fisher", "hessian"], vectors=2, rounds=1)
    fisher, hessian = result.rows[:2], result.rows[2:]
    assert all("needs a loss that is a likelihood" in str(row.reason) for row in fisher)
    assert all(row.reason is None for row in hessian)
    assert result.fastest("fisher") is None
    assert result.provenance["plan"] == result.fastest("hessian").plan  # type: ignore[union-attr]


def test_a_chosen_engine_is_the_only_one() -> None:
    result = ls.bench(_problem(), operators=["hessian"], vectors=1, rounds=1, engine="split")
    assert [row.engine for row in result.rows] == ["split"]


@pytest.mark.slow
def test_compiled_products_are_timed_where_they_are_asked_for() -> None:
    result = ls.bench(_problem(), operators=["hessian"], vectors=4, rounds=1, compile=True)
    assert [row.engine for row in result.rows] == [*ENGINES, "split, compiled"]
    assert [row.plan["compiled"] for row in result.rows if row.plan] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"operators": ["jacobian"]}, "unknown operator 'jacobian'"),
        ({"vectors": 0}, "vectors=0 and rounds=5 must both be at least 1"),
        ({"rounds": 0}, "vectors=8 and rounds=0"),
        ({"memory": -1}, "memory is -1"),
        ({"plan": {"engine": "split"}}, "leave the plan out"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ls.InputError, match=sentence):
        ls.bench(_problem(), **options)


def test_the_forecast_counts_and_times_the_engine_that_the_command_uses() -> None:
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 64, generator=source), torch.randint(0, 10, (600,), generator=source)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    problem = ls.Problem(model, "cross_entropy", (x, y))
    rows = {row.command: row for row in forecast(problem)}
    assert rows["spectrum"].plan.engine == rows["check"].plan.engine == "split"
    # 10 probes of 50 steps; 30 to 1000 steps for 6 eigenvalues, one more, and residuals in float64.
    assert rows["spectrum"].products == (500 + 30 + 1 + 6, 500 + 1000 + 1 + 6)
    # 14 to measure, 3 to compare; 30 to 1000 steps for 3 eigenvalues, one more, and residuals.
    assert rows["check"].products == (14 + 3 + 30 + 1 + 3, 14 + 3 + 1000 + 1 + 3)
    for row in rows.values():
        assert all(math.isfinite(s) and s > 0 for s in row.seconds)
        assert row.seconds[0] <= row.seconds[1] and row.fits and row.peak_bytes > 0
    plain = forecast(problem, engine="double backward")
    assert {row.plan.engine for row in plain} == {"double backward"}


def test_spectrum_and_check_execute_products_as_they_are_told() -> None:
    problem = _problem()
    quick: dict[str, Any] = {"probes": 2, "steps": 5, "top": 2}
    result = ls.spectrum(problem, **quick, engine="split")
    assert result.cost.engine == "split, double backward"  # float64 residuals check the products
    assert result.provenance["plan"]["engine"] == "split"
    wide = ls.spectrum(problem, **quick, products=torch.float64)
    assert wide.provenance["plan"]["dtype"] == "float64"
    from landscape.analyses.check import check

    assert check(problem, opinion=False, engine="split").engine == "split"
    with pytest.raises(ls.InputError, match="engine cannot be chosen for Hessian"):
        ls.spectrum(ls.Hessian(problem), **quick, engine="split")


def test_the_spectrum_of_an_operator_knows_the_loss_of_its_problem() -> None:
    problem = _problem()
    result = ls.spectrum(ls.GaussNewton(problem), probes=1, steps=3, top=1)
    assert result.loss == pytest.approx(problem.loss())
    assert result.gradient_norm == pytest.approx(float(problem.gradient().norm()))


def test_the_peak_of_memory_is_that_of_the_block_alone() -> None:
    before = peak_bytes()
    with Peak(torch.device("cpu")) as large:
        thing = torch.ones(16 * 2**20)  # 64 MiB
        del thing
    with Peak(torch.device("cpu")) as small:
        pass
    assert peak_bytes() >= before  # the peak of the process is remembered
    if large.bytes is None or small.bytes is None:
        pytest.skip("the system does not tell")
    assert 60 * 2**20 < large.bytes < 80 * 2**20
    assert small.bytes < 4 * 2**20


def test_the_peak_is_unknown_where_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    with Peak(torch.device("cpu")) as taken:
        pass
    assert taken.bytes is None


def test_bench_on_the_command_line(run: Run, tiny_archive: Path) -> None:
    done = run("bench", tiny_archive, *QUICK, "--json", "b.json")
    assert (done.returncode, done.stderr) == (0, "")
    for word in (*MATRICES, *ENGINES, "gradients", "set-up", "landscape spectrum"):
        assert word in done.stdout, word
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    result = json.loads(Path("b.json").read_text())
    assert result["schema"] == "landscape/bench/1"
    assert len(result["rows"]) == len(MATRICES) * len(ENGINES)
    assert result["provenance"]["command"].startswith("landscape bench")
    assert {"vectors", "rounds", "forecasts", "cost"} <= set(result)


def test_bench_says_what_it_could_not_do(run: Run, tiny_archive: Path) -> None:
    done = run(
        *("bench", tiny_archive, *QUICK, "--operators", "fisher, hessian"),
        *("--loss", "huber", "--json", "-", "--memory", "1kB"),
    )
    assert done.returncode == 0
    assert "no fisher: the Fisher matrix needs a loss" in done.stderr
    assert "no hessian, split: memory=1,000 bytes do not hold one product" in done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["gradients"] is None for row in rows] == [True, True, False, True]


def test_a_replayed_plan_gives_the_same_bits(run: Run, tiny_archive: Path) -> None:
    quick = ("spectrum", tiny_archive, "--probes", "5", "--steps", "8", "--top", "3")
    assert run(*quick, "--engine", "split", "--json", "saved.json").returncode == 0
    saved, spectra = json.loads(Path("saved.json").read_text()), []
    for chunk in (1, 4):  # which of them is faster differs from run to run
        saved["provenance"]["plan"]["chunk"] = chunk
        Path("first.json").write_text(json.dumps(saved))
        first = json.loads(run(*quick, "--plan", "first.json", "--json", "-").stdout)
        Path("again.json").write_text(json.dumps(first))
        again = json.loads(run(*quick, "--plan", "again.json", "--json", "-").stdout)
        plan = again["provenance"]["plan"]
        assert (plan["engine"], plan["chunk"]) == ("split", chunk)
        assert again["eigenvalues"] == first["eigenvalues"] and again["ritz"] == first["ritz"]
        spectra.append(first["ritz"])
    assert saved["ritz"] in spectra
    assert spectra[0] != spectra[1]  # so that equality means something


def test_execution_options_reach_the_products(run: Run, tiny_archive: Path) -> None:
    done = run(
        *("spectrum", tiny_archive, "--probes", "2", "--steps", "4", "--dtype", "float64"),
        *("--products", "float32", "--engine", "split", "--memory", "1GB", "--json", "-"),
    )
    plan = json.loads(done.stdout)["provenance"]["plan"]
    assert (plan["engine"], plan["dtype"], plan["accumulation"]) == ("split", "float32", "float64")
    assert 0 < plan["error"] < 1e-4


@pytest.mark.parametrize(
    ("text", "size"),
    [("auto", "auto"), ("12", 12), ("3kB", 3000), ("500MB", 5 * 10**8), ("1.5GiB", 3 * 2**29)]
    + [("2 gb", 2 * 10**9), ("1TiB", 2**40), ("7b", 7)],
)
def test_sizes_are_read(text: str, size: int | str) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-3", "lots", "2XB", "1e9", "GB", "0.5", "1 2", "9" * 99]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ls.InputError, match="is no size: write auto, a number of bytes"):
        parse_memory(text)


WRONG: list[tuple[list[str], str]] = [
    (["--memory", "lots"], "--memory 'lots' is no size"),
    (["--engine", "warp"], "--engine is 'warp': choose auto, split or double-backward"),
    (["--products", "int8"], "--products is 'int8': choose float32, float64, bfloat16 or tf32"),
    (["--plan", "missing.json"], "--plan 'missing.json' cannot be read: No such file"),
    (["--plan", "text.json"], "--plan 'text.json' is not JSON"),
    (["--plan", "list.json"], "--plan 'list.json' holds no plan"),
    (["--plan", "null.json"], "--plan 'null.json' holds no plan"),
    (["--plan", "odd.json"], "the plan says engine 'warp'"),
    (["--plan", "few.json"], "the plan has the entries engine"),
    (["--plan", "null.json", "--compile"], "--plan says what --compile would"),
    (
        ["--plan", "null.json", "--engine", "split", "--products", "float32"],
        "--plan says what --engine and --products would: leave one of them out",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_wrong_execution_is_one_sentence_and_exit_code_2(
    run: Run, tiny_archive: Path, arguments: list[str], sentence: str
) -> None:
    odd = ls.Hessian(_problem()).plan.to_dict() | {"engine": "warp"}
    files: dict[str, Any] = {
        "list": [],
        "null": {"provenance": {"plan": None}},
        "odd": {"provenance": {"plan": odd}},
        "few": {"provenance": {"plan": {"engine": "split"}}},
    }
    for name, content in files.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    Path("text.json").write_text("not JSON\n")
    done = run("spectrum", tiny_archive, *arguments)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("landscape: ")
    assert done.stdout == ""


def test_bench_refuses_a_plan(run: Run, tiny_archive: Path) -> None:
    done = run("bench", tiny_archive, "--plan", "x.json")
    assert done.returncode == 2 and "leave --plan out" in done.stderr
