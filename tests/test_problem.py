"""`Problem`: the loss of the whole data set, nothing leaked, and one sentence for whatever is wrong."""

import copy
import functools
import random
import warnings

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Attention, ConvNet
from leaks import photograph, surroundings
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

import landscape as ls

DOUBLE = torch.float64


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mlp(*middle: nn.Module, inputs: int = 3, outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), *middle, nn.Linear(4, outputs)).double()


def classes(rows: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 3, generator=generator, dtype=DOUBLE)
    return x, torch.randint(0, 4, (rows,), generator=generator)


def close(found: Tensor, expected: Tensor, relative: float = 1e-10) -> bool:
    return bool((found - expected).norm() <= relative * expected.norm())


def ones(problem: ls.Problem) -> Tensor:
    return torch.ones(problem.size, dtype=problem.dtype)


# The loss of the whole data set


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_all_data_in_one_batch(name):
    case = CASES[name]()
    problem = case.problem()
    # Two float64 programs for one sum: rounding only.
    assert problem.loss() == pytest.approx(oracles.loss(case), rel=1e-12)
    assert close(problem.gradient(), oracles.gradient(case))
    assert problem.size == oracles.flat_weights(case).numel()


@pytest.mark.parametrize("name", ["mlp_cross_entropy_on_ragged_batches", "class_weights", "huber"])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_loss_and_hessian_do_not_depend_on_how_the_data_are_cut(name, size):
    case = CASES[name]()
    whole = tuple(torch.cat(parts) for parts in zip(*case.data, strict=True))
    cut = ls.Problem(case.model, case.loss, whole, batch_size=size)
    assert cut.loss() == pytest.approx(case.problem().loss(), rel=1e-12)
    assert close(ls.Hessian(cut) @ ones(cut), ls.Hessian(case.problem()) @ ones(cut))


def _as_keywords(batch):
    return {"input": batch[0], "labels": batch[1]}


class Rows(Dataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


class Stream(IterableDataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))


LOADERS = {
    "shuffled loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True),
    "workers": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=3, num_workers=2),
    "shuffled workers": lambda x, y: DataLoader(Rows(x, y), 3, shuffle=True, num_workers=2),
    "own generator": lambda x, y: DataLoader(
        TensorDataset(x, y), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "iterable dataset": lambda x, y: DataLoader(Stream(x, y), batch_size=3),
    "tensor dataset": TensorDataset,
    "dataset": Rows,
    "tuple": lambda x, y: (x, y),
    "list pair": lambda x, y: [x, y],
    "list of batches": lambda x, y: list(zip(x.split(3), y.split(3), strict=True)),
    "tuple of batches": lambda x, y: tuple(zip(x.split(3), y.split(3), strict=True)),
    "mapping": lambda x, y: {"input": x, "labels": y},
    "dict batches": lambda x, y: [
        _as_keywords(b) for b in zip(x.split(3), y.split(3), strict=True)
    ],
    "inputs by keyword": lambda x, y: [({"input": x[:3]}, y[:3]), ({"input": x[3:]}, y[3:])],
    "empty batch among others": lambda x, y: [(x[:0], y[:0]), (x, y)],
}


@pytest.mark.parametrize("kind", LOADERS)
def test_every_kind_of_data_gives_the_same_loss_and_gradient(kind):
    x, y = classes()
    model = mlp()
    expected = F.cross_entropy(model(x), y)
    problem = ls.Problem(model, "cross_entropy", LOADERS[kind](x, y))
    assert problem.loss() == pytest.approx(expected.item(), rel=1e-12)
    truth = torch.autograd.grad(expected, list(model.parameters()))
    assert close(problem.gradient(), torch.cat([g.reshape(-1) for g in truth]))
    assert (problem.samples, problem.terms) == (7, 7)


def test_weights_are_live():
    model, (x, y) = mlp(), classes()
    problem = ls.Problem(model, "cross_entropy", (x, y))
    H, optimizer = ls.Hessian(problem), torch.optim.SGD(model.parameters(), lr=0.5)
    before, print_before = H @ ones(problem), problem.weights_fingerprint()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    fresh = ls.Problem(model, "cross_entropy", (x, y))
    assert problem.loss() == fresh.loss() == pytest.approx(F.cross_entropy(model(x), y).item())
    assert torch.equal(H @ ones(problem), ls.Hessian(fresh) @ ones(problem))
    assert not torch.equal(H @ ones(problem), before)
    assert problem.weights_fingerprint() != print_before


def test_two_problems_on_one_model_do_not_disturb_each_other():
    model, data = mlp(), classes()
    first = ls.Problem(model, "cross_entropy", data)
    expected = ls.Hessian(first) @ ones(first)
    second = ls.Problem(model, "cross_entropy", data, params="0.*")
    ls.Hessian(second) @ ones(second)
    assert torch.equal(ls.Hessian(first) @ ones(first), expected)


@pytest.mark.parametrize("where", ["0.weight", "2.weight"])
def test_a_tied_weight_counts_once_and_answers_to_both_its_names(where):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    problem = ls.Problem(model, "mse", (torch.randn(5, 3), torch.randn(5, 3)), params=where)
    assert problem.names == ["0.weight"]
    assert problem.size == 9


def test_terms_override_the_count_of_a_known_loss():
    model, (x, y) = mlp(), classes()
    problem = ls.Problem(model, "cross_entropy", (x, y), terms=lambda o, t: 2 * len(t))
    assert problem.loss() == pytest.approx(F.cross_entropy(model(x), y).item() / 2)


def test_mean_weighted_by_elements_is_the_weighted_mean_of_torch():
    model, x, y = mlp(outputs=1), torch.randn(7, 3, dtype=DOUBLE), torch.randn(7, 1, dtype=DOUBLE)
    for loss in (
        functools.partial(F.mse_loss, weight=torch.rand(7, 1, dtype=DOUBLE) + 0.5),
        functools.partial(F.l1_loss, weight=torch.rand(7, 1, dtype=DOUBLE) + 0.5),
    ):
        assert ls.Problem(model, loss, (x, y)).loss() == pytest.approx(loss(model(x), y).item())


@pytest.mark.parametrize("average", [True, False])
def test_the_old_reduction_switches_do_not_change_the_loss(average):
    model, x, y = mlp(outputs=1), torch.randn(7, 3, dtype=DOUBLE), torch.randn(7, 1, dtype=DOUBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = functools.partial(F.mse_loss, size_average=average)
        found = ls.Problem(model, loss, (x, y)).loss()
    assert found == pytest.approx(F.mse_loss(model(x), y).item())


def test_a_summed_loss_that_is_exactly_zero_keeps_its_curvature():
    """At zero a mean and a sum look alike, but their Hessians differ by the number of rows."""
    model, x = nn.Linear(3, 1, bias=False).double(), torch.randn(7, 3, dtype=DOUBLE)
    nn.init.zeros_(model.weight)
    data = [(x[:4], torch.zeros(4, 1)), (x[4:], torch.zeros(3, 1))]
    problem = ls.Problem(model, lambda o, t: F.mse_loss(o, t, reduction="sum"), data)
    assert close(ls.Hessian(problem).dense(), 2 * x.T @ x / 7)


class PenaltyLoss(nn.Module):
    """A loss module that holds the model whose weights it penalises."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        penalty = sum(p.square().sum() for p in self.model.parameters())
        return F.mse_loss(output, target) + 10 * penalty


def test_a_loss_module_that_holds_the_model_penalises_the_weights_under_study():
    model, x = nn.Linear(3, 1, bias=False).double(), torch.randn(7, 3, dtype=DOUBLE)
    problem = ls.Problem(model, PenaltyLoss(model), (x, torch.zeros(7, 1)))
    expected = 2 * x.T @ x / 7 + 20 * torch.eye(3)
    assert close(ls.Hessian(problem).dense(), expected)


def test_batches_of_different_length_are_not_averaged_as_if_they_had_equal_terms():
    """A mean over tokens is not a mean over rows when batches are padded to different lengths."""
    model = nn.Linear(3, 4).double()
    data = [
        (torch.randn(2, length, 3, dtype=DOUBLE), torch.randint(0, 4, (2, length)))
        for length in (2, 5)
    ]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    expected = ls.Problem(model, "token_cross_entropy", data).loss()
    try:
        found = ls.Problem(model, loss, data).loss()
    except ls.InputError as refusal:
        assert "terms=" in str(refusal)
    else:
        assert found == pytest.approx(expected)


# Nothing leaks


class Recorder(nn.Module):
    """Writes to everything a forward pass could write to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.seen: list[int] = []
        self.notes = {"log": [0]}
        self.counter = torch.zeros(1)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.notes["log"].append(1)
        self.counter += 1
        self.last = x
        return x


class Interrupting(nn.Module):
    """Raises at its `at`-th call."""

    def __init__(self, error: BaseException, at: int = 10**9) -> None:
        super().__init__()
        self.error, self.at = error, at
        Interrupting.count = 0  # of the class, since what a module holds is put back

    def forward(self, x: Tensor) -> Tensor:
        Interrupting.count += 1
        if Interrupting.count == self.at:
            raise self.error
        return x


def rich_model() -> nn.Sequential:
    model = nn.Sequential(
        nn.Embedding(6, 4, max_norm=0.5),
        nn.BatchNorm1d(4),
        nn.Dropout(0.3),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 4),
    ).double()
    model.train()
    model[2].eval()  # a mixture of modes
    model[5].bias.requires_grad_(False)
    model(torch.randint(0, 6, (5,))).sum().backward()
    return model


def token_rows() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 6, (7,)), torch.randint(0, 4, (7,))


@pytest.mark.parametrize("norm_stats", ["running", "batch"])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_nothing_of_the_model_or_the_random_state_changes(norm_stats, dtype):
    model, data = rich_model(), [token_rows(), token_rows()]
    np.random.normal()  # leaves half a pair in NumPy's state
    random.random()
    before, around = photograph(model), surroundings()
    problem = ls.Problem(model, "cross_entropy", data, norm_stats=norm_stats, dtype=dtype)
    problem.loss()
    problem.gradient()
    for operator in (ls.Hessian, ls.GaussNewton, ls.Fisher, ls.EmpiricalFisher):
        operator(problem) @ ones(problem)
    ls.Fisher(problem, samples=2) @ ones(problem)
    ls.GradientCovariance(problem) @ ones(problem)
    assert photograph(model) == before
    assert surroundings() == around


def test_what_modules_write_to_their_attributes_is_put_back():
    recorder = Recorder()
    model = mlp(recorder)
    problem = ls.Problem(model, "cross_entropy", classes())
    ls.Hessian(problem) @ ones(problem)
    assert recorder.calls == 0
    assert recorder.seen == []
    assert recorder.last is None


def test_nested_and_in_place_changes_of_attributes_are_put_back():
    recorder = Recorder()
    model = mlp(recorder)
    ls.Problem(model, "cross_entropy", classes())
    assert recorder.notes == {"log": [0]}
    assert recorder.counter.item() == 0


def test_a_scripted_model_keeps_its_mode():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(mlp()).train()
    try:
        ls.Problem(model, "cross_entropy", classes())
    except ls.InputError:
        pass  # a refusal is as good
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 2, 5, 7])
def test_nothing_leaks_when_the_model_raises(error, at):
    model = rich_model()
    model.append(Interrupting(error))
    data = [token_rows(), token_rows()]
    problem = ls.Problem(model, "cross_entropy", data)
    Interrupting.count, model[6].at = 0, at
    before, around = photograph(model), surroundings()
    with pytest.raises(type(error)):
        for _ in range(4):
            ls.Hessian(problem) @ ones(problem)
    assert photograph(model) == before
    assert surroundings() == around


class Fragile:
    """Batches whose iterator raises at the end of a pass, once it is armed."""

    def __init__(self, batches: list, error: BaseException) -> None:
        self.batches, self.error, self.passes = batches, error, 0
        self.armed_at = 10**9
        self.generator = torch.Generator().manual_seed(9)

    def __iter__(self):
        self.passes += 1
        for batch in self.batches:
            torch.rand(1, generator=self.generator)
            np.random.rand()
            yield batch
        if self.passes >= self.armed_at:
            raise self.error


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("armed_at", [1, 2])
def test_nothing_leaks_when_the_data_raise(error, armed_at, monkeypatch):
    model, data = rich_model(), Fragile([token_rows(), token_rows()], error)
    data.armed_at = armed_at
    state = data.generator.get_state()
    before, around = photograph(model), surroundings()
    with pytest.raises(type(error)):
        ls.Problem(model, "cross_entropy", data)
    assert photograph(model) == before
    assert surroundings() == around
    assert torch.equal(data.generator.get_state(), state)
    # Data too large to keep are read anew by every product.
    monkeypatch.setattr("landscape.batches.KEEP_BYTES", 0)
    data.armed_at = 10**9
    problem = ls.Problem(model, "cross_entropy", data)
    data.armed_at = 0
    with pytest.raises(type(error)):
        ls.Hessian(problem) @ ones(problem)
    assert photograph(model) == before
    assert surroundings() == around
    assert torch.equal(data.generator.get_state(), state)


@pytest.mark.parametrize("keep", [0, 2**30])
def test_the_loader_draws_the_same_batches_afterwards(keep, monkeypatch):
    monkeypatch.setattr("landscape.batches.KEEP_BYTES", keep)
    data = TensorDataset(*classes())
    generator, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)
    loaders = [
        DataLoader(data, batch_size=3, shuffle=True, generator=generator),
        DataLoader(data, batch_size=3, sampler=RandomSampler(data, generator=other)),
    ]
    for loader, own in zip(loaders, (generator, other), strict=True):
        state, attributes = own.get_state(), dict(vars(loader))
        problem = ls.Problem(mlp(), "cross_entropy", loader)
        ls.Hessian(problem) @ ones(problem)
        assert torch.equal(own.get_state(), state)
        assert dict(vars(loader)) == attributes


class OwnBatches:
    """A batch sampler with its own generator."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(2)

    def __iter__(self):
        return iter(torch.randperm(7, generator=self.generator).split(3))

    def __len__(self) -> int:
        return 3


def test_the_generator_of_a_batch_sampler_is_put_back():
    sampler = OwnBatches()
    state = sampler.generator.get_state()
    loader = DataLoader(TensorDataset(*classes()), batch_sampler=sampler)
    ls.Problem(mlp(), "cross_entropy", loader)
    assert torch.equal(sampler.generator.get_state(), state)


def test_a_pass_in_progress_over_persistent_workers_goes_on():
    """Iterating such a loader again resets the iterator that a training loop is holding."""
    x, y = classes(12)
    loader = DataLoader(TensorDataset(x, y), batch_size=3, num_workers=1, persistent_workers=True)
    running = iter(loader)
    first = next(running)[0]
    ls.Problem(mlp(), "cross_entropy", loader)
    rest = [batch[0] for batch in running]
    assert torch.equal(torch.cat([first, *rest]), x)


def test_dropout_of_a_model_in_training_mode_is_off():
    x, y = classes()
    model = mlp(nn.Dropout(0.5)).train()
    problem = ls.Problem(model, "cross_entropy", (x, y))
    assert problem.loss() == pytest.approx(
        F.cross_entropy(copy.deepcopy(model).eval()(x), y).item()
    )
    assert model.training


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("norm_stats", ["running", "batch"])
def test_normalisation_is_as_asked_in_whatever_mode_the_model_was_left(mode, norm_stats):
    torch.manual_seed(1)
    model = ConvNet().double()
    data = (torch.randn(7, 1, 4, 4, dtype=DOUBLE), torch.randint(0, 3, (7,)))
    clone = copy.deepcopy(model).train(norm_stats == "batch")
    expected = F.cross_entropy(clone(data[0]), data[1]).item()
    getattr(model, mode)()
    problem = ls.Problem(model, "cross_entropy", data, norm_stats=norm_stats)
    assert problem.loss() == pytest.approx(expected, rel=1e-12)
    summary = problem.summary()
    assert (summary["norm_stats"], summary["norm_layers"]) == (norm_stats, 1)


def test_normalisation_without_running_statistics_is_not_called_running():
    model = mlp(nn.BatchNorm1d(4, track_running_stats=False)).double()
    problem = ls.Problem(model, "cross_entropy", classes(), norm_stats="running")
    assert problem.summary()["norm_stats"] == "batch"
    model.append(nn.BatchNorm1d(model(classes()[0]).shape[1]).double())
    problem = ls.Problem(model, "cross_entropy", classes(), norm_stats="running")
    assert problem.summary()["norm_stats"] == "running, batch in 1 of 2 layers"


# Whatever the caller's surroundings


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, functools.partial(torch.autocast, "cpu")],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize(
    "operator", ["Hessian", "GaussNewton", "Fisher", "EmpiricalFisher", "GradientCovariance"]
)
def test_products_do_not_depend_on_the_surroundings(around, operator):
    x, y = classes()
    model = mlp().float()
    problem = ls.Problem(model, "cross_entropy", (x, y))
    v = torch.randn(problem.size)
    expected = getattr(ls, operator)(problem) @ v
    gradient, loss = problem.gradient(), problem.loss()
    with around():
        inside = ls.Problem(model, "cross_entropy", (x, y))
        assert inside.loss() == loss
        assert torch.equal(inside.gradient(), gradient)
        found = getattr(ls, operator)(inside) @ v
    assert torch.equal(found, expected)


def test_data_and_weights_made_in_inference_mode_can_be_measured():
    with torch.inference_mode():
        x, y = classes()
        model = mlp()
    problem = ls.Problem(model, "cross_entropy", (x, y))
    assert torch.isfinite(ls.Hessian(problem) @ ones(problem)).all()


def test_attention_differentiates_twice_in_float32():
    data = (torch.randn(4, 5, 4), torch.randint(0, 3, (4, 5)))
    for model in (Attention(), nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)):
        problem = ls.Problem(model, "token_cross_entropy", data)
        assert (ls.Hessian(problem) @ ones(problem)).norm() > 0


class Causal(nn.Module):
    """Keeps its causal mask, with −inf above the diagonal, as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3))
        self.layer = nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, src_mask=self.mask)


def test_a_mask_of_minus_infinity_is_no_error():
    data = (torch.randn(2, 3, 4), torch.randint(0, 4, (2, 3)))
    ls.Problem(Causal(), "token_cross_entropy", data)


def test_summaries_and_fingerprints_work_with_scalar_tensors():
    model = mlp(nn.BatchNorm1d(4))  # num_batches_tracked has no dimension
    assert len(ls.Problem(model, "cross_entropy", classes()).summary()["weights_fingerprint"]) == 64
    x, y = classes()
    problem = ls.Problem.from_closure(
        mlp(), lambda m, b: (b[2] * F.cross_entropy(m(b[0]), b[1]), 7), [(x, y, torch.tensor(2.0))]
    )
    assert len(problem.data_fingerprint) == 64


def test_sparse_embedding_gradients_are_flattened_or_refused():
    model = nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Linear(3, 4)).double()
    try:
        ls.Problem(model, "cross_entropy", token_rows()).gradient()
    except ls.InputError as refusal:
        assert "sparse" in str(refusal)


# Refusals, one sentence each


def refused(sentence: str, model: nn.Module, loss, data, **options) -> None:
    with pytest.raises(ls.InputError, match=sentence) as caught:
        ls.Problem(model, loss, data, **options)
    assert "\n" not in str(caught.value)


def test_data_that_cannot_be_read_twice_are_refused():
    x, y = classes()
    refused(
        "one-shot generator.*list of batches or a DataLoader", mlp(), "mse", (b for b in [x, y])
    )
    refused("one-shot zip", mlp(), "mse", zip([x], [y], strict=True))
    refused("one-shot list_iterator", mlp(), "mse", iter([(x, y)]))


class OncePerLife:
    def __init__(self, batches: list) -> None:
        self.iterator = iter(batches)

    def __iter__(self):
        return self.iterator


def test_an_iterable_that_is_empty_on_its_second_pass_is_called_one_shot():
    refused("one-shot|second pass|used up", mlp(), "cross_entropy", OncePerLife([classes()]))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "data are empty"),
        ((torch.zeros(0, 3), torch.zeros(0)), "data are empty"),
        (DataLoader(TensorDataset(torch.zeros(0, 3), torch.zeros(0))), "data are empty"),
        ([(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))], "data are empty"),
        (None, "data are a NoneType: pass a DataLoader"),
        (torch.ones(3, 3), "data are a Tensor: pass a DataLoader"),
        ("digits", "data are a str"),
        ((torch.ones(3, 3), torch.ones(4)), r"differ in length \(3, 4\)"),
        ([torch.ones(3, 3)], "without a target"),
        ([(torch.ones(3, 3),)], "without a target"),
        ([{"input": torch.ones(3, 3), "truth": torch.ones(3)}], "keys input, truth, none of them"),
        (
            [(torch.ones(3, 3), torch.full((3,), -100))],
            "0 loss terms in 3 samples: every target is",
        ),
    ],
)
def test_data_without_a_usable_batch_are_refused(data, sentence):
    refused(sentence, mlp(), "cross_entropy", data)


def test_a_batch_size_for_batched_data_is_refused():
    refused("batch_size=3 was given, but.*set it there", mlp(), "mse", [classes()], batch_size=3)
    refused("batch size is 0: it must be at least 1", mlp(), "mse", classes(), batch_size=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value):
    x, y = classes()
    wrong = x.clone()
    wrong[5, 1] = value
    data = [(x[:3], y[:3]), (wrong[3:], y[3:])]
    refused(r"'input' of batch 1 holds 1 value.*out of 12", mlp(), "cross_entropy", data)
    refused("'target' of batch 0 holds", mlp(outputs=3), "mse", (x, wrong))
    refused("'mask' of batch 0", mlp(), "mse", {"mask": wrong, "labels": x})
    model = mlp()
    model[2].bias.data[1] = value
    refused(r"parameter '2.bias' holds 1 value\(s\).*out of 4", model, "cross_entropy", (x, y))


def test_a_buffer_that_is_not_a_number_is_named():
    model = mlp(nn.BatchNorm1d(4))
    model[2].running_mean[0] = float("nan")
    refused("buffer '2.running_mean' holds 1", model, "cross_entropy", classes())


class Divide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.zeros_like(x)


@pytest.mark.parametrize(
    "loss", ["mse", lambda o, t: (o - t).square().mean(), lambda o, t: (o - t).square()]
)
def test_a_loss_that_is_not_finite_is_traced_to_its_module(loss):
    x, _ = classes()
    model = nn.Sequential(mlp(outputs=3), nn.Sequential(nn.Tanh(), Divide()))
    refused(r"not finite: it arises first in 1.1 \(Divide\)", model, loss, (x, x))


def test_a_loss_that_is_not_finite_by_itself_says_so():
    x, _ = classes()
    loss = lambda o, t: (o - t).square().mean() / 0
    refused("not finite: it arises in the loss itself", mlp(outputs=3), loss, (x, x))


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda o, t: (o - t).square().sum().sqrt(), "neither the mean nor the sum.*give terms="),
        (lambda o, t: (o - t).std(), "neither the mean nor the sum over the rows"),
        (lambda o, t: (o - t).square().mean().item(), "returned a float, not a tensor.*item"),
        (
            lambda o, t: (o.detach() - t).square().mean(),
            "does not depend on the selected parameters",
        ),
        (lambda o, t: (o - t).square().mean().detach(), "does not depend.*detached"),
        (lambda o: o.mean(), "the model or the loss fails on the first batch .*input \\(7, 3\\)"),
        ("mes", "unknown loss 'mes': choose one of cross_entropy, "),
        (3, "the loss is a int, not a name or a callable"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused(loss, sentence):
    x, _ = classes()
    refused(sentence, mlp(outputs=3), loss, (x, x))


def test_a_mean_over_kept_targets_is_refused_without_terms():
    x, y = classes()
    y = y.clone()
    y[1:4] = -100
    refused("give terms=", mlp(), lambda o, t: F.cross_entropy(o, t), (x, y))


def test_a_detached_loss_is_refused_though_the_first_batch_has_no_terms():
    x, y = classes()
    data = [(x, torch.full((7,), -100)), (x, y)]
    loss = lambda o, t: F.cross_entropy(o.detach(), t)
    refused("does not depend", mlp(), loss, data, terms=lambda o, t: int((t >= 0).sum()))


@pytest.mark.parametrize(
    ("loss", "outputs", "target", "sentence"),
    [
        ("mse", 1, torch.zeros(64), r"output has shape \(64, 1\) and the target \(64,\): reshape"),
        ("huber", 1, torch.zeros(64), r"element by element"),
        ("bce_with_logits", 1, torch.zeros(64), r"element by element"),
        ("mse", 1, torch.zeros(64, 1, dtype=torch.int64), r"floating-point targets, not torch.int64"),
        ("cross_entropy", 4, torch.zeros(64), r"class indices of shape \(64,\), not torch.float.*lo"),
        ("cross_entropy", 4, torch.zeros(64, dtype=torch.int32), r"int64 class indices, not .*int32"),
        ("cross_entropy", 4, torch.zeros(64, 1, dtype=torch.int64), r"shape \(64,\), not \(64, 1\)"),
        ("cross_entropy", 4, torch.full((64,), 4), r"holds class 4, but the model gives 4 classes"),
        ("cross_entropy", 4, torch.full((64,), -1), r"holds class -1, but the model gives 4"),
        ("nll", 4, torch.zeros(64, 4), r"integer class indices"),
        ("nll", 4, torch.full((64,), 9), r"holds class 9"),
        ("mse", 1, [object()] * 64, r"needs a tensor output and a tensor target"),
    ],
)  # fmt: skip
def test_targets_of_a_wrong_shape_kind_or_range_are_refused(loss, outputs, target, sentence):
    refused(sentence, mlp(outputs=outputs), loss, [(torch.randn(64, 3), target)])


def test_class_probabilities_per_token_are_never_transposed():
    """With as many tokens as classes, torch would take one for the other without a word."""
    q = torch.randn(2, 4, 4, dtype=DOUBLE).softmax(-1)
    model, x = nn.Linear(3, 4).double(), torch.randn(2, 4, 3, dtype=DOUBLE)
    try:
        found = ls.Problem(model, "token_cross_entropy", (x, q)).loss()
    except ls.InputError as refusal:
        assert "indices" in str(refusal)
    else:
        assert found == pytest.approx(-(q * model(x).log_softmax(-1)).sum().item() / 8)


def test_classes_last_are_recognised():
    data = (torch.randn(2, 5, 3), torch.randint(0, 4, (2, 5)))
    refused("classes stand last.*use the loss 'token_cross_entropy'", mlp(), "cross_entropy", data)


def test_shapes_that_do_not_fit_the_model_are_told():
    sentence = (
        r"the data do not fit the model: 0 \(Linear\) takes inputs \(…, 3\) and received \(7, 2\) "
        r"from a batch of input \(7, 2\) float64, target \(7,\) int64"
    )
    refused(sentence, mlp(), "cross_entropy", (torch.ones(7, 2), torch.zeros(7).long()))


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ("0.wieght", r"no trainable parameter matches '0.wieght': the closest names are 0.weight"),
        (["0.*", "bias"], r"matches 'bias': the closest names are .*bias"),
        ("zzz", "the closest names are 0.weight, 0.bias"),
        ([], "no trainable parameter"),
        ("2.weight", "no trainable parameter matches '2.weight'"),  # frozen
    ],
)
def test_a_selection_of_nothing_is_refused_with_close_names(params, sentence):
    model = mlp()
    model[2].weight.requires_grad_(False)
    refused(sentence, model, "cross_entropy", classes(), params=params)


def test_a_model_without_trainable_parameters_is_refused():
    sentence = r"no trainable parameter \(4 in all, every one frozen\).*requires_grad_\(True\)"
    refused(sentence, mlp().requires_grad_(False), "cross_entropy", classes())
    refused("no trainable parameter \\(0 in all", nn.Tanh(), "cross_entropy", classes())


def test_what_is_no_module_or_no_mode_is_refused():
    refused("the model is a function, not a torch.nn.Module", lambda x: x, "mse", classes())
    sentence = "norm_stats is 'train': choose 'running' or 'batch'"
    refused(sentence, mlp(), "cross_entropy", classes(), norm_stats="train")


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)  # active in every mode


def test_functional_dropout_is_named():
    model = nn.Sequential(mlp(nn.Sequential(nn.Identity(), FunctionalDropout())), nn.Identity())
    sentence = r"differs between two evaluations.*: 0.2.1 \(FunctionalDropout\) is random in eval"
    refused(sentence, model, "cross_entropy", classes())


def test_functional_dropout_is_found_though_the_first_batch_has_no_terms():
    x, y = classes()
    data = [(x, torch.full((7,), -100)), (x, y)]
    sentence = r"2 \(FunctionalDropout\) is random"
    refused(sentence, mlp(FunctionalDropout()), "cross_entropy", data)


def test_a_random_loss_is_refused():
    loss = lambda o, t: F.cross_entropy(o, t) * torch.rand(())
    x, y = classes()
    refused("the loss|random", mlp(), loss, (x, y))


class Noisy(Rows):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i] + 0.1 * torch.randn(3, dtype=DOUBLE), int(self.y[i])


@pytest.mark.parametrize("workers", [0, 2])
def test_random_augmentation_in_the_dataset_is_refused(workers):
    data = Noisy(*classes())
    loader = DataLoader(data, batch_size=3, num_workers=workers)
    refused("two passes over the data give.*random augmentation", mlp(), "cross_entropy", loader)
    refused("two passes over the data", mlp(), "cross_entropy", data)


def test_shuffling_with_drop_last_is_refused():
    data = TensorDataset(*classes())
    loader = DataLoader(data, batch_size=3, shuffle=True, drop_last=True)
    refused("two passes.*shuffling with drop_last: switch it off", mlp(), "cross_entropy", loader)


def test_batch_statistics_of_shuffled_batches_are_refused():
    loader = DataLoader(TensorDataset(*classes(8)), batch_size=4, shuffle=True)
    model = mlp(nn.BatchNorm1d(4))
    ls.Problem(model, "cross_entropy", loader)
    sentence = "depend on which samples share a batch: pass shuffle=False"
    refused(sentence, model, "cross_entropy", loader, norm_stats="batch")


def test_a_model_on_several_devices_is_refused():
    model = mlp()
    model[2] = nn.Linear(4, 4, device="meta", dtype=DOUBLE)
    refused(
        "several devices.*'0.weight' on cpu.*'2.weight' on meta.*pass device=", model, "mse", []
    )


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_model_without_weights_is_refused(device):
    with torch.device("meta"):
        model = mlp()
    refused("no weights|meta", model, "cross_entropy", classes(), device=device)


@pytest.mark.parametrize("device", ["nowhere", "xpu:3", "meta"])
def test_a_device_that_cannot_be_used_is_refused(device):
    refused(f"the device '{device}' cannot be used", mlp(), "mse", classes(), device=device)


def test_a_device_number_makes_no_difference():
    problem = ls.Problem(mlp(), "cross_entropy", classes(), device="cpu:0")
    assert ls.Hessian(problem).dense().shape == (36, 36)


class OnceTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y**2)


class Once(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OnceTanh.apply(x)


class Unfolded(nn.Module):
    """Uses a loss whose backward torch cannot differentiate again."""

    def forward(self, x: Tensor) -> Tensor:
        margin = F.multi_margin_loss(x, torch.zeros(len(x), dtype=torch.int64), reduction="none")
        return x * margin[:, None]


@pytest.mark.parametrize("kind", [Once, Unfolded])
def test_an_operation_without_a_second_derivative_is_named(kind):
    """torch drops a once-differentiable function from `autograd.grad(…, inputs)` without a word."""
    model = nn.Sequential(mlp(nn.Sequential(nn.Identity(), kind())), nn.Identity())
    sentence = rf"0\.2\.1 \({kind.__name__}\) uses an operation without a second derivative"
    with pytest.raises(ls.InputError, match=sentence):
        problem = ls.Problem(model, "cross_entropy", classes())
        ls.Hessian(problem) @ ones(problem)


@pytest.mark.parametrize("kind", [Once, Unfolded])
@pytest.mark.parametrize("operator", ["EmpiricalFisher", "GaussNewton", "Fisher"])
def test_operators_that_need_one_derivative_are_right_or_refuse(operator, kind):
    """Their products differentiate twice too, so they must not be wrong in silence."""
    model = mlp(kind())
    twin = mlp(nn.Tanh())
    twin.load_state_dict(model.state_dict())
    problem = ls.Problem(model, "cross_entropy", classes())
    v = torch.randn(problem.size, dtype=DOUBLE)
    try:
        found = getattr(ls, operator)(problem) @ v
    except ls.InputError as refusal:
        assert "without a second derivative" in str(refusal)
        return
    if kind is Once:
        expected = getattr(ls, operator)(ls.Problem(twin, "cross_entropy", classes())) @ v
        assert close(found, expected)


def test_a_loss_without_a_second_derivative_is_told_from_the_model():
    problem = ls.Problem(mlp(), nn.MultiMarginLoss(), classes())
    with pytest.raises(ls.InputError, match="the loss uses an operation without a second deriv"):
        ls.Hessian(problem) @ ones(problem)


@pytest.mark.parametrize(
    ("closure", "sentence"),
    [
        (lambda m, b: m(b[0]).mean(), r"closure must return \(mean loss, number of terms\)"),
        (lambda m, b: (m(b[0]).mean().item(), 7), r"closure must return \(mean loss, number"),
        (lambda m, b: (m(b[0]), 7), r"closure's loss has shape \(7, 4\): return the mean"),
        (lambda m, b: (m(b[0]).mean(), 0), "0 loss terms"),
        (lambda m, b: (m(b[0]).detach().mean(), 7), "does not depend on the selected parameters"),
        (lambda m, b: (m(b[0]).mean() / 0, 7), "not finite"),
    ],
)
def test_closures_that_return_something_else_are_refused(closure, sentence):
    with pytest.raises(ls.InputError, match=sentence):
        ls.Problem.from_closure(mlp(), closure, classes())


# Mistakes made once


def test_parameters_kept_outside_their_module_are_refused_not_taken_for_constants():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.kept = [self.layer.weight]

        def forward(self, x):
            return x @ self.kept[0].T

    model = Listed().double()
    x, y = torch.randn(6, 5, dtype=DOUBLE), torch.randint(0, 3, (6,))
    with pytest.raises(ls.InputError, match=r"'layer.weight' is used through a reference"):
        ls.Problem(model, "cross_entropy", (x, y))
    linear = nn.Linear(5, 3).double()
    captured = list(linear.parameters())
    with pytest.raises(ls.InputError, match="captured by a function"):
        ls.Problem.from_closure(
            linear,
            lambda m, b: (m(b).square().mean() + sum(p.square().sum() for p in captured), 6),
            [x],
        )


def test_models_and_losses_that_write_to_their_inputs_leave_the_users_data_alone():
    x, y = torch.randn(6, 5, dtype=DOUBLE), torch.randn(6, 3, dtype=DOUBLE)
    saved = x.clone(), y.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)).double()

    def loss(output, target):
        return F.mse_loss(output, target.mul_(2))

    problem = ls.Problem(model, loss, (x, y))
    assert torch.equal(x, saved[0]) and torch.equal(y, saved[1])
    assert problem.loss() == pytest.approx(F.mse_loss(model(saved[0].clone()), 2 * y).item())
    assert problem.loss() == problem.loss()


def test_weights_that_turn_nan_later_are_refused():
    model = mlp().double()
    problem = ls.Problem(model, "cross_entropy", classes())
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ls.UntrustedResult):
        problem.loss()
    with pytest.raises(ls.UntrustedResult):
        problem.gradient()


def test_sampled_fisher_is_the_same_matrix_in_both_precisions():
    x, y = torch.randn(20, 4), torch.randn(20, 3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    fisher = ls.Fisher(ls.Problem(model, "mse", (x, y)), samples=2)
    assert close(fisher.astype(DOUBLE).dense(), fisher.dense().double(), 1e-5)


def test_a_model_that_insists_on_float32_keeps_float32_residuals():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x.float()).float()

    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    result = ls.spectrum(ls.Problem(Fixed(), "cross_entropy", (x, y)), top=2, probes=2, steps=5)
    assert result.provenance["residual_dtype"] == "float32"
    assert not result.failures


class Counting(nn.Module):
    """Keeps a state from one call to the next, outside of its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(3, 1), [0.0]

    def forward(self, x: Tensor) -> Tensor:
        self.state[0] += 1
        return self.layer(x) * self.state[0]


def test_a_model_that_keeps_a_state_is_refused_as_such() -> None:
    with pytest.raises(ls.InputError, match="keeps a state from one call to the next"):
        ls.Problem(Counting(), "mse", (torch.randn(5, 3), torch.randn(5, 1)))


class OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x) * scale


def test_a_tuple_of_inputs_is_unpacked_for_a_model_that_takes_several() -> None:
    x, scale, y = torch.randn(5, 3), torch.rand(5, 1), torch.randn(5, 1)
    model = OfTwo()
    nested = ls.Problem(model, "mse", [((x, scale), y)])
    flat = ls.Problem(model, "mse", (x, scale, y))
    assert nested.loss() == pytest.approx(flat.loss())
