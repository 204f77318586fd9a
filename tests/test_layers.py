"""Spectra of a model's parts against dense blocks in float64, grouping, saving, and the command."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from spectra import dense_hessian, small_net, small_net_hessian
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.utils.parametrize import register_parametrization

import landscape as ls
from landscape.analyses import layers as module
from landscape.analyses.parameter_groups import groups, positions
from landscape.estimators.block_eigenvalues import products_of
from landscape.estimators.blocks import block_spectra, block_traces
from landscape.results import to_json

BLOCKS = {"0": range(30), "2": range(30, 51)}  # of the small net: 4·6 + 6 and 6·3 + 3


def small_problem(dtype: torch.dtype = torch.float64) -> ls.Problem:
    model, inputs, target = small_net()
    return ls.Problem(
        model, "cross_entropy", (inputs.to(dtype), target), batch_size=64, dtype=dtype
    )


@cache
def small_gauss_newton() -> Tensor:
    """JᵀΛJ / N of the small net, Λ = diag(p) − ppᵀ per sample, by torch.func in float64."""
    model, inputs, _ = small_net()
    parameters = {name: p.detach().double() for name, p in model.named_parameters()}

    def output(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in parameters.values()])
        shaped = {n: part.view_as(parameters[n]) for n, part in zip(parameters, parts, strict=True)}
        return functional_call(model, shaped, (inputs.double(),))

    flat = torch.cat([p.flatten() for p in parameters.values()])
    slopes, p = jacrev(output)(flat), output(flat).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nci,ncd,ndj->ij", slopes, inner, slopes) / len(inputs)


ORACLES = {"hessian": small_net_hessian, "gauss-newton": small_gauss_newton}


def block(matrix: Tensor, name: str, other: str | None = None) -> Tensor:
    rows, columns = list(BLOCKS[name]), list(BLOCKS[other or name])
    return matrix[rows][:, columns]


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("operator", ORACLES)
def test_small_blocks_are_exact(operator: str, dtype: torch.dtype) -> None:
    matrix = ORACLES[operator]()
    found = ls.layers(small_problem(dtype), operator=operator)
    # Entries in float32 carry a relative error of some 1e-6 of the largest eigenvalue.
    rounding = (1e-12 if dtype == torch.float64 else 1e-5) * float(matrix.norm())
    assert [b.name for b in found.blocks] == ["0", "2"] and not found.failures
    assert found.trace.value == pytest.approx(float(matrix.trace()), abs=10 * rounding)
    assert found.trace.standard_error == 0
    for own in found.blocks:
        truth = torch.linalg.eigvalsh(block(matrix, own.name)).flip(0).tolist()
        assert own.exact and own.trace.standard_error == 0 and own.kinds == ["Linear"]
        assert own.trace.value == pytest.approx(sum(truth), abs=10 * rounding)
        np.testing.assert_allclose(own.ritz[0].nodes, truth[::-1], atol=rounding)
        pairs = [*own.eigenvalues, own.smallest_eigenvalue]
        for pair, value in zip(pairs, [*truth[:3], truth[-1]], strict=True):
            # In float32 the residual is measured in float64, so that it holds for the true matrix.
            assert abs(pair.value - value) <= pair.residual + 1e-12 and pair.converged
        assert np.trapezoid(own.density.values, own.density.grid) == pytest.approx(1, abs=1e-6)
        assert not own.density.standard_error.any()
    truth = [[float(block(matrix, a, b).norm()) for b in BLOCKS] for a in BLOCKS]
    np.testing.assert_allclose(found.norms, truth, atol=rounding)
    assert (found.norms**2).sum() == pytest.approx(float(matrix.norm()) ** 2, rel=1e-5)
    assert not found.norm_errors.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("operator", ORACLES)
def test_large_blocks_are_estimated_within_their_errors(
    operator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    matrix = ORACLES[operator]()
    found = ls.layers(small_problem(dtype), operator=operator, probes=20, steps=15, seed=1)
    assert not found.failures
    for own in found.blocks:
        truth = torch.linalg.eigvalsh(block(matrix, own.name)).flip(0).tolist()
        assert not own.exact and own.trace.standard_error > 0 and len(own.ritz) == 20
        # Six numbers per run within 4 standard errors: missed once in some thousands of runs.
        assert abs(own.trace.value - sum(truth)) < 4 * own.trace.standard_error
        pairs = [*own.eigenvalues, own.smallest_eigenvalue]
        for pair, value in zip(pairs, [*truth[:3], truth[-1]], strict=True):
            assert abs(pair.value - value) <= pair.residual + 1e-12
            assert pair.residual <= 1e-3 * truth[0]
    assert abs(found.trace.value - float(matrix.trace())) < 4 * found.trace.standard_error
    exact = np.array([[float(block(matrix, a, b).norm()) for b in BLOCKS] for a in BLOCKS])
    assert (np.abs(found.norms - exact) < 4 * found.norm_errors).all()


def test_errors_of_norms_follow_from_those_of_their_squares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(n + e)² − (n − e)² = 4ne is twice the error of n²."""
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    problem = small_problem()
    found = ls.layers(problem, probes=6, steps=4, seed=3)
    at = [positions(problem, group) for group in groups(problem, "module")]
    squares = block_spectra(ls.Hessian(problem), at, probes=6, steps=4, seed=3)
    np.testing.assert_allclose(found.norms**2, squares.squares, rtol=1e-10)
    np.testing.assert_allclose(4 * found.norms * found.norm_errors, 2 * squares.squares_error)


def test_known_eigenpairs_make_traces_more_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    problem = small_problem()
    found = ls.layers(problem, probes=10, steps=4, seed=3)
    at = [positions(problem, group) for group in groups(problem, "module")]
    plain = block_traces(block_spectra(ls.Hessian(problem), at, probes=10, steps=4, seed=3))
    for own, error in zip(found.blocks, plain.standard_errors, strict=True):
        assert own.trace.standard_error < 0.9 * error


def test_cost_is_what_the_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small_problem()
    assert ls.layers(problem).cost.products == 51  # one per parameter: all is built
    single = ls.layers(small_problem(torch.float32)).cost
    assert single.products == 51 + 2 * 4  # each pair once more in float64
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    found = ls.layers(problem, probes=4, steps=10, shared_probes=12)
    search = found.cost.products - 2 * 4 * 10 - 12
    # The pairs take the rest: at most what two searches of whole blocks, and measuring, can.
    assert 0 < search <= 2 * (30 + 21) + 2 * 8
    assert products_of(3) == 70


def test_block_diagonal_matrix_has_no_norm_beside_the_diagonal() -> None:
    """Two towers that never meet: their losses add up."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.left(x), self.right(x)], dim=1)

    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    problem = ls.Problem(Towers(), "mse", (inputs, torch.zeros(40, 2).double()), dtype=inputs.dtype)
    found = ls.layers(problem)
    assert abs(found.norms[0, 1]) < 1e-12 < found.norms[0, 0] == pytest.approx(found.norms[1, 1])


def test_unused_parameters_are_a_block_of_zeros() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(400, 30)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    data = (torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 2))
    found = ls.layers(ls.Problem(Net(), "mse", data))
    used, idle = found.blocks
    assert not found.failures and found.cost.products == 8 + 4
    assert idle.exact and idle.parameters == 12_030
    assert (idle.trace.value, idle.trace.standard_error) == (0, 0)
    assert [pair.value for pair in idle.eigenvalues] == [0, 0, 0]
    assert found.trace.value == pytest.approx(used.trace.value)
    assert not found.norms[1].any()
    found.plot()


def test_what_did_not_converge_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    found = ls.layers(small_problem(), tolerance=1e-10, max_steps=5, probes=2, steps=5)
    said = "\n".join(found.failures)
    assert "eigenvalue 3 of 0 = " in said and "above the tolerance 1e-10" in said
    assert "no eigenvalue of 2 is missing" in said


def test_the_same_seed_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE_LIMIT", 25)
    first, second, other = (
        ls.layers(small_problem(), seed=seed, probes=3, steps=6).to_dict() for seed in (1, 1, 2)
    )
    for name in ("blocks", "norms", "trace"):
        assert to_json({"x": first[name]}) == to_json({"x": second[name]})
    assert to_json({"x": first["blocks"]}) != to_json({"x": other["blocks"]})


# --- blocks --------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A convolution with normalisation, a tied pair, a parametrised layer, and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 2)
        register_parametrization(self.head, "weight", nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.second(torch.tanh(self.first(x)))) * self.scale


def mixed_problem(params: str = "*") -> ls.Problem:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(12, 1, 5, 5, generator=generator), torch.arange(12) % 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed().eval()
    return ls.Problem(model, "cross_entropy", data, params=params)


def test_blocks_by_module_follow_the_owner_and_hold_a_tied_weight_once() -> None:
    found = {group.name: group for group in groups(mixed_problem(), "module")}
    assert list(found) == ["the model itself", "conv", "norm", "first", "second", "head"]
    assert found["first"].tensors == ("first.weight", "first.bias")
    assert found["second"].tensors == ("second.bias",)
    assert len(found["head"].tensors) == 2 and found["head"].kinds == ("ParametrizedLinear",)
    assert found["the model itself"].kinds == ("Mixed",)


def test_blocks_by_type_join_the_modules_of_a_class() -> None:
    found = {group.name: group for group in groups(mixed_problem(), "type")}
    assert list(found) == ["Mixed", "Conv2d", "BatchNorm2d", "Linear", "ParametrizedLinear"]
    assert found["Linear"].tensors == ("first.weight", "first.bias", "second.bias")


def test_globs_are_blocks_in_their_order_and_leave_a_rest() -> None:
    found = groups(mixed_problem(), ["head.*", "conv*", "norm.*"])
    assert [group.name for group in found] == ["head.*", "conv*", "norm.*", "the rest"]
    assert found[-1].kinds == ("Mixed", "Linear")


@pytest.mark.parametrize("by", ["module", "type", ["*.weight"], ["first.*", "*norm*"]])
@pytest.mark.parametrize("params", ["*", "[cfn]*"])
def test_blocks_partition_the_selected_parameters(by: str | list[str], params: str) -> None:
    problem = mixed_problem(params)
    every = torch.cat([positions(problem, group) for group in groups(problem, by)])
    assert torch.equal(every.sort().values, torch.arange(problem.size))


def test_positions_are_those_of_the_named_tensors() -> None:
    problem = mixed_problem()
    vector = torch.arange(problem.size)
    pieces = dict(zip(problem.names, problem.layout.split(vector), strict=True))
    for group in groups(problem, "type"):
        expected = torch.cat([pieces[name].flatten() for name in group.tensors])
        assert torch.equal(positions(problem, group), expected)


@pytest.mark.parametrize(
    ("by", "sentence"),
    [
        (["conv.*", "*.weight"], "'conv.*' and '*.weight' both match 'conv.weight'"),
        (["cnov.*"], "no trainable parameter matches 'cnov.*'"),
        ([], "by is empty"),
        ("conv.*", "by is 'conv.*': choose 'module', 'type', or a list of globs"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(by: str | list[str], sentence: str) -> None:
    with pytest.raises(ls.InputError) as refused:
        ls.layers(mixed_problem(), by=by)
    assert sentence in str(refused.value)


def test_blocks_of_a_mixed_model_equal_those_of_the_dense_hessian() -> None:
    problem = mixed_problem()
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(12, 1, 5, 5, generator=generator), torch.arange(12) % 2
    found = ls.layers(problem, by="type")
    matrix = dense_hessian(problem.model, F.cross_entropy, inputs, target)
    for own, group in zip(found.blocks, groups(problem, "type"), strict=True):
        at = positions(problem, group)
        truth = torch.linalg.eigvalsh(matrix[at][:, at])
        assert (
            abs(own.eigenvalues[0].value - float(truth[-1])) <= own.eigenvalues[0].residual + 1e-9
        )
        assert own.trace.value == pytest.approx(float(truth.sum()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"operator": "hesian"}, "unknown operator 'hesian'"),
        ({"samples": 2}, "only goes with the operator 'fisher'"),
        ({"top": 0}, "k is 0"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"probes": 0}, "probes=0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ls.InputError) as refused:
        ls.layers(small_problem(), **options)  # type: ignore[arg-type]
    assert sentence in str(refused.value)
    with pytest.raises(ls.InputError, match="layers needs a Problem"):
        ls.layers(torch.eye(3))  # type: ignore[arg-type]


# --- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [25, 1000])
@pytest.mark.parametrize("probes", [1, 3])
def test_saved_result_comes_back(
    tmp_path: Path, limit: int, probes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DENSE_LIMIT", limit)
    found = ls.layers(small_problem(), probes=probes, steps=6, shared_probes=0)
    found.save(tmp_path / "layers.json")
    saved = json.loads((tmp_path / "layers.json").read_text())
    assert saved["schema"] == "landscape/layers/1"
    back = ls.Layers.load(tmp_path / "layers.json")
    assert to_json(back.to_dict()) == to_json(found.to_dict())
    assert math.isnan(back.blocks[0].trace.standard_error) == (probes == 1 and limit == 25)


# --- the command ---------------------------------------------------------------------------------

QUICK = ("--per-layer", "--probes", "2", "--steps", "5", "--top", "1")


def test_command_prints_a_table_and_writes_a_figure_beside_the_model(
    run: Run, tiny_archive: Path
) -> None:
    done = run("spectrum", tiny_archive, *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for word in ("block", "kind", "share", "λ1", "λ min", "residual", "trace of all", "products"):
        assert word in done.stdout
    rows = [line.split() for line in lines if "Linear" in line]
    assert [row[0] for row in rows] == ["0", "2", "4"]
    assert "…" not in done.stdout
    figure = tiny_archive.with_name("model.layers.pdf")
    assert figure.read_bytes().startswith(b"%PDF")


def test_command_writes_the_numbers_and_takes_its_own_defaults(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    done = run(
        "spectrum", tiny_archive, "--per-layer", "--json", "-", "-o", "a.png", "--steps", "7"
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    assert saved["schema"] == "landscape/layers/1" and (tmp_path / "a.png").exists()
    expected = {"top": 3, "probes": 5, "steps": 7, "shared_probes": 30, "tolerance": 1e-3}
    assert saved["provenance"]["arguments"] == expected
    assert saved["provenance"]["command"].startswith("landscape spectrum")


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (("--by", "type"), ["Linear"]),
        (("--by", "0.*, 2.*"), ["0.*", "2.*", "the rest"]),
        (("--by", "*.weight", "--by", "*.bias"), ["*.weight", "*.bias"]),
    ],
)
def test_command_takes_types_and_globs(
    run: Run, tiny_archive: Path, by: tuple[str, ...], names: list[str]
) -> None:
    done = run("spectrum", tiny_archive, *QUICK, *by, "--json", "-", "-o", "a.svg")
    assert done.returncode == 0, done.stderr
    assert [block["name"] for block in json.loads(done.stdout)["blocks"]] == names


def test_command_ends_with_3_where_an_eigenvalue_cannot_be_trusted(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    done = run(
        *("spectrum", tiny_archive, *QUICK, "--max-steps", "3", "--tolerance", "1e-9"),
        *("--json", "x.json", "-o", "x.png"),
    )
    assert done.returncode == 3 and "above the tolerance" in done.stderr
    assert json.loads((tmp_path / "x.json").read_text())["failures"]
    assert (tmp_path / "x.png").exists() and "not converged" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--by", "type"), "--by says what a part is: it only goes with --per-layer"),
        (("--per-layer", "--by", "0.*,,2.*"), "holds an empty glob"),
        (("--per-layer", "--axis", "linear"), "on a symlog axis only"),
        (("--per-layer", "--by", "9.*"), "no trainable parameter matches '9.*'"),
        (("--per-layer", "-o", "a.gif"), "its ending must be one of"),
        (("--per-layer", "-o", "nowhere/a.pdf"), "does not exist"),
    ],
)
def test_command_refuses_with_a_sentence(
    run: Run, tiny_archive: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = run("spectrum", tiny_archive, *arguments)
    assert done.returncode == 2 and sentence in done.stderr
    assert done.stderr.count("\n") == 1
