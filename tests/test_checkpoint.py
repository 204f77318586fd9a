"""Work that was killed goes on to the same bits; a file of other work is refused."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectra import SPECTRA, small_net, with_spectrum

import landscape as ls
from landscape import checkpoint
from landscape.checkpoint import Checkpoint, Stage
from landscape.estimators import auto
from landscape.estimators.lanczos import Eigenpairs
from landscape.estimators.slq import SpectralDensity
from landscape.operators.base import Operator
from landscape.results import Estimate, Meter


class Killed(Exception):
    """Like a signal that nothing catches."""


def mortal(A: Operator, lives: Iterator[int]) -> Operator:
    """A matrix whose products end the run after some number of them."""
    left = next(lives)
    multiply = A._multiply

    def product(block: torch.Tensor) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return multiply(block)

    A._multiply = product  # type: ignore[method-assign]
    return A


def revived(make: Callable[[], Operator], run: Callable[[Operator], Any], seed: int) -> Any:
    """The result of a run that is killed again and again, each time after a few products."""
    draws = np.random.default_rng(seed)
    lives = iter(lambda: int(draws.integers(2, 12)), -1)
    for _ in range(2000):
        try:
            return run(mortal(make(), lives))
        except Killed:
            continue
    raise AssertionError("it never ends")


def equal(first: Eigenpairs, second: Eigenpairs) -> bool:
    return (
        all(
            torch.equal(getattr(first, name), getattr(second, name))
            for name in ("values", "vectors", "residuals", "converged", "gaps")
        )
        and (first.complete, first.missing, first.norm, first.steps, first.ends)
        == (second.complete, second.missing, second.norm, second.steps, second.ends)
        and first.cost.products == second.cost.products
    )


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every offer is written."""
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("name", ["network", "few distinct", "clustered", "gap 1e-3"])
def test_killed_searches_end_with_the_bits_of_undisturbed_ones(
    name: str, block: int, tmp_path: Path, eager: None
) -> None:
    def make() -> Operator:
        return ls.as_operator(with_spectrum(SPECTRA[name]), dtype=torch.float32)

    def run(A: Operator, resume: Path | None = None) -> Eigenpairs:
        return ls.eigenpairs(A, 4, tolerance=1e-5, basis=18, block=block, resume=resume)

    whole = run(make())
    file = tmp_path / "work.pt"
    pieces = revived(make, lambda A: run(A, file), seed=block)
    assert equal(whole, pieces)
    # What is finished is read, not computed.
    assert equal(whole, run(mortal(make(), iter([1])), file))  # the fingerprint takes the one


@pytest.mark.parametrize("steps", [40, "auto"])
@pytest.mark.parametrize("reorthogonalize", [False, True])
def test_killed_densities_end_with_the_bits_of_undisturbed_ones(
    steps: int | str, reorthogonalize: bool, tmp_path: Path, eager: None
) -> None:
    matrix = with_spectrum(SPECTRA["network"])
    pairs = ls.eigenpairs(ls.as_operator(matrix), 3)

    def make() -> Operator:
        return ls.as_operator(matrix, dtype=torch.float32)

    def run(A: Operator, resume: Path | None = None) -> SpectralDensity:
        return ls.spectral_density(
            A,
            probes=3,
            steps=steps,
            deflate=pairs,
            reorthogonalize=reorthogonalize,
            resume=resume,
        )

    whole, pieces = run(make()), revived(make, lambda A: run(A, tmp_path / "work.pt"), seed=0)
    assert np.array_equal(whole.values, pieces.values)
    for one, two in zip(whole.ritz, pieces.ritz, strict=True):
        assert np.array_equal(one.nodes, two.nodes)
        assert np.array_equal(one.weights, two.weights)
    assert whole.steps == pieces.steps
    assert whole.cost.products == pieces.cost.products


@pytest.mark.parametrize(
    ("name", "method", "tolerance"),
    [
        ("network", "auto", 0.02),
        ("indefinite", "auto", 0.1),
        ("network", "hutchinson", 0.05),
        ("network", "hutch++", 0.01),
        ("network", "xtrace", 0.05),
        ("network", "hutchinson", None),
    ],
)
def test_killed_traces_end_with_the_bits_of_undisturbed_ones(
    name: str, method: str, tolerance: float | None, tmp_path: Path, eager: None
) -> None:
    def make() -> Operator:
        return ls.as_operator(with_spectrum(SPECTRA[name]), dtype=torch.float32)

    def run(A: Operator, resume: Path | None = None) -> Estimate:
        return ls.trace(A, method=method, tolerance=tolerance, probes=12, resume=resume)

    whole, pieces = run(make()), revived(make, lambda A: run(A, tmp_path / "work.pt"), seed=0)
    names = ("value", "standard_error", "lower", "upper", "probes", "method", "converged")
    assert [getattr(whole, n) for n in names] == [getattr(pieces, n) for n in names]
    assert whole.cost.products == pieces.cost.products


def test_a_model_goes_on_with_its_execution_plan(tmp_path: Path, eager: None) -> None:
    model, inputs, target = small_net()

    def make() -> Operator:
        problem = ls.Problem(model, "cross_entropy", (inputs, target), batch_size=64)
        return ls.Hessian(problem, engine="split")

    whole = ls.eigenpairs(make(), 3)
    file = tmp_path / "work.pt"
    operators = []

    def run(A: Operator) -> Eigenpairs:
        operators.append(A)
        return ls.eigenpairs(A, 3, resume=file)

    assert equal(whole, revived(make, run, seed=0))
    assert len(operators) > 2
    assert {A.plan.engine for A in operators[1:]} == {"split"}  # type: ignore[union-attr]


def test_writing_takes_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only moves when it is told to."""
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    A = ls.as_operator(torch.eye(3))
    work = Checkpoint(tmp_path / "work.pt", A, {})
    written: list[float] = []

    def state() -> dict[str, int]:
        written.append(now[0])
        now[0] += duration
        return {}

    duration = 0.5
    for _ in range(1000):
        work.stage("part").offer(Meter(A), state)
        now[0] += 1.0
    gaps = np.diff(written)
    assert written[0] == 0  # at once, since nothing is known of its duration
    assert 50 <= gaps.min() <= gaps.max() <= 50 + duration + 1
    duration = 10.0  # more than a hundredth of a minute
    written.clear()
    for _ in range(1000):
        work.stage("part").offer(Meter(A), state)
        now[0] += 1.0
    assert np.diff(written)[1:].max() <= 60 + duration + 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "another archive"])
def test_a_damaged_file_is_refused_and_left_alone(damage: str, tmp_path: Path, eager: None) -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    file = tmp_path / "work.pt"
    ls.eigenpairs(A, 3, resume=file)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "empty":
        content = bytearray()
    elif damage == "text":
        content = bytearray(b"not this one")
    if damage == "another archive":
        torch.save({"weights": torch.ones(3)}, file)
        content = bytearray(file.read_bytes())
    file.write_bytes(content)
    with pytest.raises(ls.InputError, match="cannot resume from .*damaged or no resume file"):
        ls.eigenpairs(A, 3, resume=file)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": 4}, "ends was .* and is"),
        ({"seed": 5}, "seed was 0 and is 5"),
        ({"tolerance": 1e-3}, "tolerance was 0.0001 and is 0.001"),
        ({"matrix": "indefinite"}, "matrix was"),
        ({"dtype": torch.float32}, "dtype was 'float64' and is 'float32'"),
    ],
)
def test_a_file_of_other_work_is_refused_with_what_differs(
    change: dict[str, object], sentence: str, tmp_path: Path, eager: None
) -> None:
    def run(matrix="network", dtype=torch.float64, k=3, **options):  # type: ignore[no-untyped-def]
        A = ls.as_operator(with_spectrum(SPECTRA[matrix][:90]), dtype=dtype)
        return ls.eigenpairs(A, k, resume=tmp_path / "work.pt", **options)

    run()
    content = (tmp_path / "work.pt").read_bytes()
    with pytest.raises(ls.InputError, match=f"belongs to other work: {sentence}"):
        run(**change)
    assert (tmp_path / "work.pt").read_bytes() == content


def test_operators_that_differ_in_more_than_their_name_are_told_apart(
    tmp_path: Path, eager: None
) -> None:
    model, inputs, target = small_net()

    def problem(factor: float) -> ls.Problem:
        def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return factor * torch.nn.functional.cross_entropy(output, target)

        return ls.Problem(model, loss, (inputs, target))

    file = tmp_path / "work.pt"
    ls.eigenpairs(ls.Hessian(problem(1.0)), 1, resume=file)
    with pytest.raises(ls.InputError, match="belongs to other work: loss value"):
        ls.eigenpairs(ls.Hessian(problem(3.0)), 1, resume=file)
    with pytest.raises(ls.InputError, match="belongs to other work: products"):
        ls.eigenpairs(ls.Hessian(problem(1.0), products=torch.float64), 1, resume=file)
    file.unlink()
    plain = ls.Problem(model, "cross_entropy", (inputs, target))
    ls.eigenpairs(ls.Fisher(plain, samples=1), 1, resume=file)
    with pytest.raises(ls.InputError, match="belongs to other work: samples was 1 and is None"):
        ls.eigenpairs(ls.Fisher(plain), 1, resume=file)


def test_traces_that_cannot_be_repeated_say_so(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Operator:
        return ls.as_operator(with_spectrum(SPECTRA["network"]))

    file = tmp_path / "work.pt"
    with pytest.raises(Killed):
        ls.trace(mortal(make(), iter([6])), tolerance=0.001, probes=20, resume=file)
    monkeypatch.setattr(auto, "affordable", lambda *_: False)
    with pytest.raises(ls.InputError, match="less memory is free than then"):
        ls.trace(make(), tolerance=0.001, probes=20, resume=file)


def test_a_full_disk_is_said_and_the_last_state_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    A = ls.as_operator(with_spectrum(SPECTRA["network"]))
    said: list[str] = []
    work = Checkpoint(tmp_path / "work.pt", A, {}, say=said.append)
    stage = work.stage("part")
    stage.offer(Meter(A), lambda: {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    stage.offer(Meter(A), lambda: {"step": 2})
    assert said == [
        f"the state cannot be written to {str(tmp_path / 'work.pt')!r}: No space left on device; going on"
    ]
    again = Checkpoint(tmp_path / "work.pt", A, {})
    assert again.stage("part").state == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["work.pt"]


def test_what_is_written_is_no_larger_than_what_is_shown(tmp_path: Path, eager: None) -> None:
    """A view would bring its whole storage."""
    A = ls.as_operator(torch.eye(3))
    work = Checkpoint(tmp_path / "work.pt", A, {})
    large = torch.zeros(1_000_000)
    work.stage("part").offer(Meter(A), lambda: {"view": large[:10]})
    assert (tmp_path / "work.pt").stat().st_size < 20_000
    assert [path.name for path in tmp_path.iterdir()] == [
        "work.pt"
    ]  # the part that was written moved


def test_no_checkpoint_costs_nothing() -> None:
    Stage().offer(Meter(ls.as_operator(torch.eye(2))), lambda: pytest.fail("asked for a state"))


def test_a_state_written_before_the_first_product_keeps_the_plan(tmp_path: Path) -> None:
    # As between two lives, the second of which only measures in float64 before it is killed again.
    problem = ls.Problem(torch.nn.Linear(3, 2), "mse", (torch.randn(40, 3), torch.randn(40, 2)))
    path, chunked = (
        tmp_path / "work.pt",
        {"engine": "split", "reason": "", "threads": 1, "chunk": 4},
    )
    plans = []
    for plan in (chunked, None, None):
        A = ls.Hessian(problem, plan=plan)
        stage = Checkpoint(path, A, {}).stage("some")
        stage.offer(stage.meter(A), dict, done=True)
        A @ torch.ones(8, 1)
        plans.append((A.plan.engine, A.plan.chunk))
    assert plans == [("split", 4)] * 3


@pytest.mark.slow
def test_a_command_killed_by_the_system_ends_with_the_same_bits(tmp_path: Path) -> None:
    from benchmarks.kills import killed

    few = ("--top", "5", "--probes", "4", "--steps", "40", "--limit", "400")
    found = killed(tmp_path, kills=3, seed=0, options=few)
    assert len(found["kills"]) == 3
    assert found["differences"] == []
    assert not [name for name in found["files_left"] if name.startswith("work.pt")]
