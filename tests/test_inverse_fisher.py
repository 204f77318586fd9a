"""The inverse Fisher matrix against dense truth, at the edge of float32, and in every storage."""

import functools
import gc
import glob
import math
import os
import tempfile

import numpy as np
import oracles
import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn

import landscape as ls
from landscape.memory import Peak
from landscape.operators import gradient_rows, row_storage, sample_gradients
from landscape.operators.gradient_rows import Rows, SplitRows
from landscape.operators.row_storage import allocate
from landscape.operators.sparse_rows import SparseRows

DOUBLE = torch.float64
CPU = torch.device("cpu")
# Solving with a matrix of condition number κ in float64 costs κ · 1e-16; κ is below 1e4 in these tests.
RELATIVE = 1e-11


def gap(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def fisher(gradients: Tensor, damping: float) -> Tensor:
    """λI + GᵀG/m as it is written."""
    size = gradients.shape[1]
    return damping * torch.eye(size, dtype=DOUBLE) + gradients.T @ gradients / len(gradients)


def blocks_of(matrix: Tensor, size: int) -> Tensor:
    """The matrix with everything outside diagonal blocks set to zero."""
    block = torch.arange(len(matrix)) // size
    return matrix * (block[:, None] == block)


SUPERVISED = [name for name, build in CASES.items() if build().loss is not None]


@functools.cache
def case_named(name: str) -> Case:
    return CASES[name]()


# Against dense truth.


@pytest.mark.parametrize("name", SUPERVISED)
def test_with_all_samples_it_inverts_the_damped_empirical_fisher(name):
    problem = case_named(name).problem()
    inverse = ls.InverseFisher(problem, damping=0.1)
    assert (
        gap(inverse.rows.columns(slice(None)), oracles.sample_gradients(case_named(name))) < 1e-12
    )
    damped = ls.EmpiricalFisher(problem) + 0.1 * ls.Identity(inverse)
    vectors = random(problem.size, 3)
    assert gap(inverse @ (damped @ vectors), vectors) < RELATIVE
    assert gap(damped @ (inverse @ vectors), vectors) < RELATIVE


@pytest.mark.parametrize(("count", "size"), [(5, 12), (12, 5), (7, 7), (1, 4), (6, 1)])
@pytest.mark.parametrize("block_size", [None, 2, 3, 8, 100])
@pytest.mark.parametrize("piece", [2**20, 8])
def test_every_method_describes_the_inverse(count, size, block_size, piece, monkeypatch):
    monkeypatch.setattr(gradient_rows, "PIECE", piece)  # a few columns, or blocks, at a time
    monkeypatch.setattr("landscape.operators.block_inverse.PIECE", piece)
    monkeypatch.setattr("landscape.operators.gram_inverse.PIECE", piece)
    G, damping = random(count, size), 0.3
    dense = blocks_of(fisher(G, damping), block_size or size)
    truth = torch.linalg.inv(dense)
    inverse = ls.InverseFisher.from_gradients(G.clone(), damping, block_size=block_size)

    def check(inverse: ls.InverseFisher, truth: Tensor, G: Tensor) -> None:
        vectors, weights = random(size, 3, seed=1), random(count, 2, seed=2)
        assert gap(inverse @ vectors, truth @ vectors) < RELATIVE
        assert gap(inverse @ vectors[:, 0], truth @ vectors[:, 0]) < RELATIVE
        assert gap(inverse.span(weights), truth @ G.T @ weights) < RELATIVE
        assert gap(inverse.span(weights[:, 0]), truth @ G.T @ weights[:, 0]) < RELATIVE
        assert gap(inverse.diagonal(), truth.diagonal()) < RELATIVE
        assert inverse.trace() == pytest.approx(float(truth.trace()), rel=RELATIVE)
        assert inverse.logdet() == pytest.approx(float(truth.logdet()), rel=RELATIVE, abs=1e-12)
        assert gap(inverse.gram, G @ G.T) < RELATIVE
        i, j = torch.cartesian_prod(torch.arange(size), torch.arange(size)).T
        assert gap(inverse.entry(i, j), truth.reshape(-1)) < RELATIVE
        assert inverse.entry(size - 1, 0) == pytest.approx(float(truth[-1, 0]), rel=1e-9, abs=1e-11)
        assert gap(inverse.dense(), truth) < RELATIVE

    check(inverse, truth, G)
    other = inverse.with_damping(0.01)
    remote = torch.linalg.inv(dense - 0.29 * torch.eye(size, dtype=DOUBLE))
    check(other, remote, G)
    inverse.prepare_entries()
    check(inverse, truth, G)
    check(other, remote, G)
    changed = G.clone()
    changed[-1] = random(size, seed=3)
    inverse.replace(count - 1, changed[-1])
    dense = blocks_of(fisher(changed, damping), block_size or size)
    check(inverse, torch.linalg.inv(dense), changed)
    # The gradients are shared, so they are replaced in both.
    check(other, torch.linalg.inv(dense - 0.29 * torch.eye(size, dtype=DOUBLE)), changed)


def test_the_worked_example():
    G = torch.tensor([[1.0, 2, 0], [0, 1, -1]], dtype=DOUBLE)
    inverse = ls.InverseFisher.from_gradients(G, 0.5)
    expected = torch.tensor([[11.0, -4, -2], [-4, 4, 2], [-2, 2, 8]], dtype=DOUBLE) / 7
    assert gap(inverse.dense(), expected) < 1e-14
    x = torch.tensor([5.0, 2, 8], dtype=DOUBLE) / 7
    assert gap(inverse @ torch.ones(3, dtype=DOUBLE), x) < 1e-14
    assert inverse.logdet() == pytest.approx(-math.log(1.75), rel=1e-14)
    assert inverse.trace() == pytest.approx(23 / 7, rel=1e-14)


def test_it_is_an_operator_like_any_other():
    G = random(4, 9)
    inverse = ls.InverseFisher.from_gradients(G, 0.5)
    truth = torch.linalg.inv(fisher(G, 0.5))
    found = ls.eigenpairs(inverse, 2, which="smallest")
    expected = torch.linalg.eigvalsh(truth)[:2]
    assert np.allclose(np.sort(np.asarray(found.values)), expected.numpy(), rtol=1e-6)
    assert ls.trace(inverse, tolerance=1e-6).value == pytest.approx(float(truth.trace()))
    v = random(9, seed=1)
    assert np.allclose(inverse.to_scipy() @ v.numpy(), (truth @ v).numpy())
    assert gap((inverse + 2 * ls.Identity(inverse)) @ v, truth @ v + 2 * v) < RELATIVE
    assert inverse.products > 0
    assert inverse.with_damping(1.0).products == 0
    back = ls.solve(inverse, truth @ v)
    assert gap(back.x, v) < 1e-4


# At the edge of float32.


def exact_products(G: Tensor, damping: float, vectors: Tensor) -> Tensor:
    """F⁻¹x in 80-bit arithmetic (eps 1e-19): Woodbury's identity with a Cholesky factor made by hand."""
    g, x = (t.double().numpy().astype(np.longdouble) for t in (G, vectors))
    m = len(g)
    a = g @ g.T + m * np.longdouble(damping) * np.eye(m, dtype=np.longdouble)
    factor = np.zeros_like(a)
    for i in range(m):
        factor[i, i] = np.sqrt(a[i, i] - factor[i, :i] @ factor[i, :i])
        factor[i + 1 :, i] = (a[i + 1 :, i] - factor[i + 1 :, :i] @ factor[i, :i]) / factor[i, i]
    w = g @ x
    for i in range(m):
        w[i] = (w[i] - factor[i, :i] @ w[:i]) / factor[i, i]
    for i in reversed(range(m)):
        w[i] = (w[i] - factor[i + 1 :, i] @ w[i + 1 :]) / factor[i, i]
    return torch.from_numpy(((x - g.T @ w) / np.longdouble(damping)).astype(np.float64))


def decaying(count: int, size: int, least: float) -> Tensor:
    """Gradients that nearly depend on each other: singular values from 1 down to 10^`least`, times 50."""
    mix = torch.linalg.qr(random(count, count, seed=5)).Q * torch.logspace(0, least, count).double()
    return (50 * mix @ random(count, size, seed=6)).float()


GRADIENTS = {
    "independent": lambda: random(24, 4000).float(),
    "small": lambda: 0.03 * random(24, 4000).float(),
    "nearly dependent": lambda: decaying(24, 4000, -4),
    "more nearly dependent": lambda: decaying(24, 4000, -5.5),
    "each eight times": lambda: random(3, 4000)[[0, 1, 2] * 8].float(),
    "one twice": lambda: torch.cat([random(12, 4000), random(12, 4000)[:1]]).float(),
}
pytestmark_longdouble = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="the oracle needs 80-bit arithmetic"
)


@pytestmark_longdouble
@pytest.mark.parametrize("damping", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_rows_and_their_combinations_keep_their_digits_in_float32(kind, damping):
    """The bar is 1e-5; at λ = 1e-7 the textbook recursion leaves no digit.

    What float64 can give is 1e-16 · s/(mλ), s the largest eigenvalue of GGᵀ: 2e-6 at the worst here.
    """
    G = GRADIENTS[kind]()
    mix = random(len(G), 2, seed=7)
    combinations = (G.double().T @ mix).float()  # rounded, so not quite in the span
    vectors = torch.cat([G[:1].T, G[-1:].T, combinations, random(G.shape[1], 1).float()], dim=1)
    expected = exact_products(G, damping, vectors)
    inverse = ls.InverseFisher.from_gradients(G, damping)
    found = inverse @ vectors
    assert found.dtype == torch.float32
    for k in range(vectors.shape[1]):
        assert gap(found[:, k], expected[:, k]) < 4e-6, k
    units = torch.eye(len(G), dtype=DOUBLE)[:, [0, -1]]
    assert gap(inverse.span(units)[:, 0], expected[:, 0]) < 1e-5
    assert gap(inverse.span(units)[:, 1], expected[:, 1]) < 1e-5


@pytestmark_longdouble
@pytest.mark.parametrize("kind", GRADIENTS)
def test_blocks_keep_the_digits_of_rows_too(kind):
    G, damping, size = GRADIENTS[kind](), 1e-7, 1500
    vectors = torch.cat([G[[0, -1]].T, random(G.shape[1], 1).float()], dim=1)
    parts = zip(G.split(size, 1), vectors.split(size), strict=True)
    expected = torch.cat([exact_products(g, damping, x) for g, x in parts])
    found = ls.InverseFisher.from_gradients(G, damping, block_size=size) @ vectors
    for k in range(3):
        assert gap(found[:, k], expected[:, k]) < 5e-6, k


@pytestmark_longdouble
def test_the_textbook_formula_fails_where_the_operator_does_not():
    G, damping = GRADIENTS["independent"](), 1e-7
    x = G[3]
    expected = exact_products(G, damping, x[:, None])[:, 0]
    K = G @ G.T + len(G) * damping * torch.eye(len(G))
    textbook = (x - G.T @ torch.linalg.solve(K, G @ x)) / damping
    assert gap(textbook, expected) > 0.1
    assert gap(ls.InverseFisher.from_gradients(G, damping) @ x, expected) < 1e-6


def test_a_row_keeps_its_digits_where_float64_alone_loses_them():
    """At P = 200,000 and λ = 1e-12 Woodbury in float64 is off by 1e-16 · s/(mλ) = 1e-16 · 1e16."""
    G = random(8, 200_000)
    truth = torch.linalg.solve(G @ G.T, torch.eye(8, dtype=DOUBLE)[:, 2])  # λ → 0: mGᵀK⁻¹c
    found = ls.InverseFisher.from_gradients(G, 1e-12) @ G[2]
    assert gap(found, 8 * G.T @ truth) < 1e-9


def test_small_blocks_take_little_memory():
    """Their products of order m would take 2 GB here."""
    G = random(512, 2000).float()
    with Peak(CPU) as peak:
        inverse = ls.InverseFisher.from_gradients(G, 0.1, block_size=1)
        inverse.prepare_entries()
    assert peak.bytes is None or peak.bytes < 2e8  # whole pieces and what torch sets up
    truth = 1 / (0.1 + G.double().square().mean(0))
    assert gap(inverse.diagonal(), truth) < RELATIVE


# Gradients of a problem.


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data(lengths: tuple[int, ...] = (4, 4, 3)) -> list[tuple[Tensor, Tensor]]:
    return [(random(n, 3, seed=n + k), torch.arange(n) % 2) for k, n in enumerate(lengths)]


def test_samples_are_drawn_without_replacement_and_by_the_seed():
    problem = ls.Problem(mlp(), "cross_entropy", data())
    everything = ls.InverseFisher(problem).rows.columns(slice(None))
    assert len(everything) == 11
    draws = set()
    for seed in range(5):
        inverse = ls.InverseFisher(problem, 5, seed=seed)
        again = ls.InverseFisher(problem, 5, seed=seed)
        chosen = inverse.drawn.samples
        assert inverse.count == 5
        assert len(chosen.unique()) == 5
        assert torch.equal(inverse.rows.columns(slice(None)), again.rows.columns(slice(None)))
        # Sums within a batch of other samples round differently.
        assert gap(inverse.rows.columns(slice(None)), everything[chosen]) < 1e-13
        draws.add(tuple(chosen.tolist()))
    assert len(draws) > 1


def test_per_batch_takes_gradients_of_batch_means_in_order():
    batches, model = data((4, 4, 3)), mlp()
    inverse = ls.InverseFisher(ls.Problem(model, "cross_entropy", batches), 2, per="batch")
    for i, (x, y) in enumerate(batches[:2]):
        loss = nn.functional.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        expected = torch.cat([g.reshape(-1) for g in grads])
        assert gap(inverse.rows.row(i), expected) < 1e-13
    assert inverse.drawn.ways == {"batch means"}


def test_a_batch_without_a_loss_has_no_mean_and_is_passed_over():
    batches = data((4, 4, 3))
    batches[0] = (batches[0][0], torch.full([4], -100))
    problem = ls.Problem(mlp(), "cross_entropy", batches)
    inverse = ls.InverseFisher(problem, per="batch")
    assert inverse.count == 2
    alone = ls.InverseFisher(ls.Problem(problem.model, "cross_entropy", batches[1:]), per="batch")
    assert torch.equal(inverse.rows.columns(slice(None)), alone.rows.columns(slice(None)))


def test_batch_means_of_a_closure():
    batches, model = data(), mlp()
    problem = ls.Problem.from_closure(
        model, lambda m, b: (nn.functional.cross_entropy(m(b[0]), b[1]), len(b[1])), batches
    )
    found = ls.InverseFisher(problem, per="batch").rows.columns(slice(None))
    other = ls.InverseFisher(ls.Problem(model, "cross_entropy", batches), per="batch")
    assert gap(found, other.rows.columns(slice(None))) < 1e-13
    with pytest.raises(ls.InputError, match="closure, which hides"):
        ls.InverseFisher(problem)


def test_batches_beyond_those_asked_for_are_not_differentiated():
    model, seen = mlp(), []
    problem = ls.Problem(model, "cross_entropy", data((4, 4, 3)))
    drawn, known = sample_gradients.draw(problem, 2, per="batch", seed=0, default=256)
    hook = model.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    sample_gradients.compute(problem, drawn, known, lambda block: None)
    hook.remove()
    assert seen == [4, 4]


class Decides(nn.Module):
    """Control flow by value, which vmap refuses."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) > -1e9 else -x


class Mixes(nn.Module):
    """Every sample depends on the others."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0)


class Flattens(nn.Module):
    """Two rows of the loss for every row of the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 2)


@pytest.mark.parametrize(
    ("layer", "way"),
    [
        (nn.Identity(), "vmap"),
        (Decides(), "one by one"),
        (Mixes(), "within the batch"),
        (nn.BatchNorm1d(4, track_running_stats=False), "within the batch"),
    ],
)
def test_samples_are_differentiated_in_the_fastest_way_that_is_right(layer, way):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Tanh(), nn.Linear(4, 2)).double()
    problem = ls.Problem(model, "cross_entropy", data())
    inverse = ls.InverseFisher(problem, damping=0.1)
    assert inverse.drawn.ways == {way}
    damped = ls.EmpiricalFisher(problem) + 0.1 * ls.Identity(inverse)
    v = random(problem.size)
    assert gap(inverse @ (damped @ v), v) < RELATIVE


def test_rows_of_the_loss_that_are_no_rows_of_the_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Flattens()).double()
    batches = [(x, torch.arange(2 * len(x)) % 2) for x, _ in data()]
    problem = ls.Problem(model, "cross_entropy", batches)
    inverse = ls.InverseFisher(problem, damping=0.1)
    assert (inverse.count, inverse.drawn.ways) == (22, {"within the batch"})
    damped = ls.EmpiricalFisher(problem) + 0.1 * ls.Identity(inverse)
    v = random(problem.size)
    assert gap(inverse @ (damped @ v), v) < RELATIVE


def test_parameters_that_the_loss_never_uses_have_zero_gradients():
    case = case_named("unused_parameter")
    inverse = ls.InverseFisher(case.problem(), damping=0.25)
    assert gap(inverse.diagonal()[:3], torch.full([3], 4.0)) < 1e-14


def test_at_most_a_page_of_gradients_is_held_beside_the_storage(monkeypatch):
    problem = ls.Problem(mlp(), "cross_entropy", data())
    expected = ls.InverseFisher(problem).rows.columns(slice(None))
    monkeypatch.setattr(sample_gradients, "AT_ONCE", 2)
    drawn, losses = sample_gradients.draw(problem, None, per="sample", seed=0, default=256)
    held = []
    sample_gradients.compute(problem, drawn, losses, held.append)
    assert max(map(len, held)) == 2
    assert gap(torch.cat(held), expected) < 1e-13


def test_where_memory_runs_out_fewer_samples_are_taken_at_once(monkeypatch):
    problem = ls.Problem(mlp(), "cross_entropy", data())
    expected = ls.InverseFisher(problem).rows.columns(slice(None))
    by_vmap = sample_gradients._by_vmap

    def tight(run, batch, rows):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return by_vmap(run, batch, rows)

    monkeypatch.setattr(sample_gradients, "_by_vmap", tight)
    inverse = ls.InverseFisher(problem)
    assert inverse.drawn.ways == {"vmap"}
    assert gap(inverse.rows.columns(slice(None)), expected) < 1e-13


def test_nothing_of_the_users_is_changed():
    model = nn.Sequential(mlp(), nn.BatchNorm1d(2)).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    problem = ls.Problem(model, "cross_entropy", data())
    random_state = torch.get_rng_state()
    ls.InverseFisher(problem, 3)

    def broken(block: Tensor) -> None:
        raise KeyboardInterrupt

    drawn, losses = sample_gradients.draw(problem, None, per="sample", seed=0, default=256)
    with pytest.raises(KeyboardInterrupt):
        sample_gradients.compute(problem, drawn, losses, broken)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert all(p.grad is None and isinstance(p, nn.Parameter) for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_made_in_inference_mode_it_can_still_be_changed():
    problem = ls.Problem(mlp(), "cross_entropy", data())
    with torch.inference_mode():
        inverse = ls.InverseFisher(problem, 4, damping=0.1)
        sparse = ls.InverseFisher(problem, 4, damping=0.1, storage="sparse")
        given = ls.InverseFisher.from_gradients(random(4, problem.size), 0.1)
    v = random(problem.size)
    sparse.replace(1, v)
    for operator in (inverse, given):
        G = columns_of(operator.rows).clone()
        G[1] = v
        operator.replace(1, v)
        assert gap(operator @ v, torch.linalg.solve(fisher(G, 0.1), v)) < RELATIVE


def test_replacing_a_row_of_an_expanded_tensor_leaves_the_others():
    g, v = random(1, 6), random(6, seed=1)
    inverse = ls.InverseFisher.from_gradients(g.expand(3, 6), 0.1)
    inverse.replace(1, v)
    expected = fisher(torch.cat([g, v[None], g]), 0.1)
    assert gap(inverse @ v, torch.linalg.solve(expected, v)) < RELATIVE
    assert torch.equal(g, random(1, 6))


def test_a_refused_replacement_changes_nothing():
    G, v = random(4, 6).half(), random(6, seed=1).float()
    inverse = ls.InverseFisher.from_gradients(G.clone(), 0.1)
    before = inverse @ v
    refused("not finite in torch.float16", lambda: inverse.replace(0, torch.full([6], 1e6)))
    refused("is a list: pass a tensor", lambda: inverse.replace(0, [1.0] * 6))
    refused("complex64 of shape .*real", lambda: inverse.replace(0, torch.ones(6) * 1j))
    assert torch.equal(inverse @ v, before)
    assert torch.equal(columns_of(inverse.rows), G.double())


# Storage.


def columns_of(rows: Rows) -> Tensor:
    return rows.columns(slice(None))


@pytest.mark.parametrize("storage", ["device", "cpu", "file"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("devices", [None, ["cpu", "cpu"], ["cpu", "cpu", "cpu"]])
def test_every_storage_holds_the_same_matrix(storage, precision, devices):
    problem = ls.Problem(mlp().float(), "cross_entropy", data())
    whole = columns_of(ls.InverseFisher(problem).rows)
    inverse = ls.InverseFisher(
        problem, damping=0.1, storage=storage, precision=precision, devices=devices
    )
    G = whole.to(precision or torch.float32).double()
    assert inverse.dtype == torch.float32
    assert torch.equal(columns_of(inverse.rows), G)
    assert len(inverse.rows.parts()) == len(devices or [0])
    truth = torch.linalg.inv(fisher(G, 0.1))
    v = random(problem.size).float()
    assert gap(inverse @ v, truth @ v.double()) < 1e-6
    assert gap(inverse.diagonal(), truth.diagonal()) < RELATIVE
    assert inverse.entry(1, 20) == pytest.approx(float(truth[1, 20]), abs=1e-9)
    assert inverse.trace() == pytest.approx(float(truth.trace()), rel=1e-9)
    places = torch.tensor([20, 3, 7])
    assert torch.equal(inverse.rows.columns(places), G[:, places])
    assert torch.equal(inverse.rows.columns(slice(5, 13)), G[:, 5:13])
    assert torch.equal(inverse.rows.row(2), G[2])
    pieces = list(inverse.rows.pieces())
    assert torch.equal(torch.cat([piece for _, piece in pieces], dim=1), G)
    inverse.replace(1, G[2].float())
    changed = G.clone()
    changed[1] = G[2]
    assert gap(inverse @ v, torch.linalg.solve(fisher(changed, 0.1), v.double())) < 1e-6


def test_columns_split_over_devices_add_up_their_gram_matrices():
    G = random(6, 50)
    split = SplitRows([Rows(G[:, :20]), Rows(G[:, 20:21]), Rows(G[:, 21:])])
    inverse = ls.InverseFisher.from_gradients(split, 0.1)
    parts = sum(
        part.columns(slice(None)) @ part.columns(slice(None)).T for _, part in split.parts()
    )
    assert gap(inverse.gram, parts) < 1e-14
    block = random(50, 3)
    assert gap(inverse @ block, torch.linalg.solve(fisher(G, 0.1), block)) < RELATIVE
    small = inverse.with_damping(1e-9)  # the split of a span part passes over the devices too
    assert gap(small @ G[0], small.span(torch.eye(6, dtype=DOUBLE)[0])) < 1e-9


def test_a_temporary_file_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = allocate(3, 1000, dtype=torch.float32, devices=[CPU], storage="file")
    with open("/proc/self/maps") as maps:
        assert "landscape-gradients-" in maps.read()
    rows.put(0, torch.ones(3, 1000))
    assert float(columns_of(rows).sum()) == 3000
    del rows
    gc.collect()
    assert not glob.glob(str(tmp_path / "*"))
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) not in maps.read()


def test_a_full_disk_is_refused_in_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ls.InputError, match=r"12,000 bytes.*no room.*No space left.*TMPDIR"):
        allocate(3, 1000, dtype=torch.float32, devices=[CPU], storage="file")
    assert not glob.glob(str(tmp_path / "*"))


def test_the_budget_decides_where_gradients_are_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(
        row_storage, "_in_file", lambda *shape: asked.append(shape) or Rows(torch.ones(3, 4))
    )
    allocate(10, 100, dtype=torch.float32, devices=[CPU], memory=4000)
    assert not asked
    allocate(10, 100, dtype=torch.float32, devices=[CPU], memory=3999)
    assert asked


def test_the_budget_is_that_of_all_parts_together(monkeypatch):
    asked: list[str] = []

    def part(count, size, dtype, device, storage):
        asked.append(storage)
        return Rows(torch.ones(count, size))

    monkeypatch.setattr(row_storage, "_part", part)
    monkeypatch.setattr(row_storage, "available_bytes", lambda *_: 7999)
    gpus = [torch.device("cuda", 0), torch.device("cuda", 1)]
    for devices, memory in (([CPU, CPU], 4000), ([CPU, CPU], 3999), (gpus, 2000), (gpus, 1999)):
        allocate(10, 100, dtype=torch.float32, devices=devices, memory=memory)
    # Of 4000 bytes each GPU takes half, but the host, of whose 7999 half may go, would take both.
    assert asked == ["device"] * 2 + ["file"] * 2 + ["device"] * 2 + ["file"] * 2
    monkeypatch.setattr(row_storage, "available_bytes", lambda *_: 8000)
    allocate(10, 100, dtype=torch.float32, devices=gpus, memory=1999)
    assert asked[8:] == ["cpu"] * 2


def test_more_devices_than_columns():
    rows = allocate(3, 2, dtype=DOUBLE, devices=[CPU] * 5)
    assert [part.shape for _, part in rows.parts()] == [(3, 1), (3, 1)]


def test_sparse_rows_keep_the_largest_entries_and_carry_the_rest_over():
    G, size, kept = random(7, 500), 500, 5
    rows = SparseRows(7, size, dtype=DOUBLE)
    rows.put(0, G[:3])
    rows.put(3, G[3:])
    expected, error = torch.zeros(7, size, dtype=DOUBLE), torch.zeros(size, dtype=DOUBLE)
    for i, g in enumerate(G):  # acc = e + g; c = TopK(acc); e = acc − c
        total = error + g
        largest = total.abs().argsort(descending=True)[:kept]
        expected[i, largest] = total[largest]
        error = total - expected[i]
    assert torch.equal(columns_of(rows), expected)
    assert gap(rows.error + expected.sum(0), G.sum(0)) < 1e-14  # nothing is lost
    for where in (slice(3, 77), slice(499, 500), slice(0, 0), torch.tensor([499, 0, 17, 17])):
        assert torch.equal(rows.columns(where), expected[:, where])
    for i in range(7):
        assert torch.equal(rows.row(i), expected[i])
    coarse = SparseRows(7, size, dtype=torch.bfloat16)
    coarse.put(0, G)  # what rounding to the stored type leaves out is carried over, too
    assert gap(coarse.error + columns_of(coarse).sum(0), G.sum(0)) < 1e-6
    inverse = ls.InverseFisher.from_gradients(rows, 0.1)
    v = random(size, seed=9)
    assert gap(inverse @ v, torch.linalg.solve(fisher(expected, 0.1), v)) < RELATIVE
    assert gap(inverse.diagonal(), torch.linalg.inv(fisher(expected, 0.1)).diagonal()) < RELATIVE


def test_sparse_gradients_of_a_problem():
    problem = ls.Problem(mlp(), "cross_entropy", data())
    inverse = ls.InverseFisher(problem, storage="sparse", damping=0.1)
    G = columns_of(inverse.rows)
    assert ((G != 0).sum(1) == 1).all()  # 1 % of 26
    v = random(problem.size)
    assert gap(inverse @ v, torch.linalg.solve(fisher(G, 0.1), v)) < RELATIVE


# Refusals.


def refused(sentence: str, call) -> None:
    with pytest.raises(ls.InputError, match=sentence):
        call()


def test_what_cannot_be_is_refused_in_a_sentence():
    problem = ls.Problem(mlp(), "cross_entropy", data())
    G = random(4, 6)
    of, gradients = ls.InverseFisher, ls.InverseFisher.from_gradients
    refused("12 gradients were asked for, but the data hold 11 samples", lambda: of(problem, 12))
    refused("4 gradients .* hold 3 batches", lambda: of(problem, 4, per="batch"))
    refused("gradients is 0", lambda: of(problem, 0))
    refused("per is 'row'", lambda: of(problem, per="row"))
    refused("damping is 0.*no inverse", lambda: of(problem, damping=0.0))
    refused("block_size is 0", lambda: of(problem, block_size=0))
    refused("storage is 'disk'", lambda: of(problem, storage="disk"))
    refused("memory is 'big'", lambda: of(problem, memory="big"))
    refused("memory is -1", lambda: of(problem, memory=-1))
    refused("cannot be kept in 'float32'", lambda: of(problem, precision="float32"))
    refused("cannot be kept in torch.int8", lambda: of(problem, precision=torch.int8))
    refused("a Tensor is no problem.*from_gradients", lambda: of(G))
    refused("damping is 'small'.*a number above 0", lambda: gradients(G, "small"))
    refused("damping is nan", lambda: gradients(G, math.nan))
    refused("gradients are int", lambda: gradients(3, 1.0))
    refused(r"gradients are \(4,\)", lambda: gradients(G[:, 0], 1.0))
    refused("torch.int64: pass floating", lambda: gradients(torch.ones(2, 2).long(), 1.0))
    bad = G.clone()
    bad[2, 5] = math.nan
    refused("gradient 2 holds a number that is not finite", lambda: gradients(bad, 1.0))
    refused("gradient 2 holds a number", lambda: gradients(bad, 1.0, block_size=2))
    refused("gradient 2 holds a number", lambda: gradients(bad, 1.0, block_size=5))
    refused("gradient 0 .* too large to be squared", lambda: gradients(1e200 * G, 1.0))
    inverse = gradients(G, 1.0)
    refused("no gradient 4: they run from 0 to 3", lambda: inverse.replace(4, G[0]))
    refused(r"shape \(5,\): it must be real, of shape \(6,\)", lambda: inverse.replace(0, G[0, :5]))
    refused(
        "holds a number that is not finite in torch.float64", lambda: inverse.replace(1, bad[2])
    )
    refused("one for each of the 4 gradients", lambda: inverse.span(torch.ones(3)))
    refused("run from 0 to 5", lambda: inverse.entry(0, 6))
    refused("of one length", lambda: inverse.entry(torch.tensor([1, 2]), torch.tensor([1])))
    refused(r"share .* 0: choose", lambda: SparseRows(2, 5, share=0))


def test_fast_entries_are_refused_where_they_do_not_fit(monkeypatch):
    monkeypatch.setattr("landscape.operators.inverse_fisher.available_bytes", lambda _: 100)
    inverse = ls.InverseFisher.from_gradients(random(4, 6), 1.0)
    refused("take 192 bytes and 100 are free", inverse.prepare_entries)
    large = ls.InverseFisher.from_gradients(random(4, 6), 1.0, block_size=5)
    refused("take 192 bytes and 100 are free", large.prepare_entries)
    ls.InverseFisher.from_gradients(random(4, 6), 1.0, block_size=2).prepare_entries()  # take none


def test_a_gradient_that_is_not_finite_is_named():
    model = mlp()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] - output[:, 0].detach()).abs().sqrt()  # 0, of infinite slope

    problem = ls.Problem(model, loss, data())
    refused("gradient 0 holds a number that is not finite", lambda: ls.InverseFisher(problem))
