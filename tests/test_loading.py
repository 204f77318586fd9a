"""How weights find their model, and what archives, programs and model folders say about themselves."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from files import net, program, samples, static_program
from torch import nn
from torch.nn.utils import parametrizations

import landscape as ls
from landscape.demos.models import gpt, regression
from landscape.loading.data import read_data
from landscape.loading.remarks import remarks
from landscape.loading.weights import find_weights, fit

Record = Callable[..., None]
FACTORY = "landscape.demos.models:regression"


def test_archive_round_trip_gives_the_same_loss_and_needs_no_arguments(tiny_archive: Path) -> None:
    torch.manual_seed(0)
    model = regression()
    inputs, targets = read_data("diabetes:train", limit=64)
    problem = ls.load_problem(tiny_archive)
    assert problem.samples == 64
    with torch.no_grad():
        expected = float(nn.functional.mse_loss(model(inputs), targets))
    assert problem.loss() == pytest.approx(expected, rel=1e-5)


def test_archive_container_is_readable_with_weights_only(tiny_archive: Path) -> None:
    content = torch.load(tiny_archive, weights_only=True)
    assert content["format"] == "landscape/problem/1"
    assert content["factory"]["name"] == FACTORY


def test_archive_with_its_own_tensors_round_trips(tmp_path: Path) -> None:
    x, y = torch.randn(20, 10), torch.randn(20, 1)
    model = regression()
    path = tmp_path / "own.pt"
    ls.save_problem(path, model, factory=FACTORY, data=(x, y), loss="mse", batch_size=7)
    problem = ls.load_problem(path)
    assert (problem.samples, problem.batch_count) == (20, 3)
    assert problem.loss() == pytest.approx(nn.functional.mse_loss(model(x), y).item(), rel=1e-5)


def test_the_users_word_replaces_the_factory_in_a_file(tmp_path: Path) -> None:
    path, model = tmp_path / "evil.pt", regression()
    ls.save_problem(path, model, factory="os:system", data="diabetes", loss="mse")
    with pytest.raises(ls.InputError, match="--model os:system"):
        ls.load_problem(path)
    assert ls.load_problem(path, model=FACTORY).samples == 442


def test_state_dict_needs_a_model_and_data(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(regression().state_dict(), path)
    with pytest.raises(ls.InputError, match="say --model"):
        ls.load_problem(path, data="diabetes")
    with pytest.raises(ls.InputError, match="--data"):
        ls.load_problem(path, model=FACTORY)
    said: list[str] = []
    problem = ls.load_problem(path, model=FACTORY, data="diabetes", say=said.append)
    assert problem.summary()["loss"] == "mse_loss"
    assert said[0].startswith(f"ran {FACTORY} from ") and said[0].endswith("demos/models.py")
    assert said[1:] == ["no loss was given: mse fits the targets"]
    assert problem.summary()["origin"] == {
        "file": str(path),
        "kind": "file of torch.save holding weights",
        "data": "diabetes",
        "seed": 0,
        "limit": None,
        "said": said,
    }


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(regression().state_dict(), path)
    before = torch.get_rng_state()
    ls.load_problem(path, model=FACTORY, data="diabetes", limit=50)
    assert torch.equal(torch.get_rng_state(), before)


def _fit(network: nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    said: list[str] = []
    fit(network, weights, Path("w.pt"), said.append)
    return said


def test_weights_that_do_not_fit_leave_the_users_model_as_it_was() -> None:
    model = regression()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = {name: value + 1 for name, value in before.items()} | {"4.bias": torch.zeros(7)}
    with pytest.raises(ls.InputError, match=r"of wrong shape 1: 4.bias \(7,\) instead of \(1,\)"):
        _fit(model, wrong)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_tied_weight_may_be_missing_under_its_other_name() -> None:
    model = gpt(width=8, heads=2, layers=1)
    weights = model.state_dict()
    del weights["head.weight"]
    _fit(gpt(width=8, heads=2, layers=1), weights)
    del weights["tokens.weight"]
    with pytest.raises(ls.InputError, match="missing 2: tokens.weight, head.weight"):
        _fit(model, weights)


def test_weights_under_two_prefixes_are_taken_from_the_model_and_said() -> None:
    source, target = regression(), regression()
    weights = {f"ema.{name}": value + 1 for name, value in source.state_dict().items()}
    weights |= {f"model.{name}": value for name, value in source.state_dict().items()}
    said = _fit(target, weights)
    assert torch.equal(target[0].weight, source[0].weight)
    assert said[0] == "weights that fit lie under 'model'; also under 'ema' (--weights)"
    assert "6 tensors without it belong to something else" in said[1]
    chosen = find_weights(weights, Path("w.pt"), "ema", said.append)
    _fit(target, chosen)
    assert torch.equal(target[0].weight, source[0].weight + 1)
    with pytest.raises(ls.InputError, match="has nothing under 'emma'"):
        find_weights(weights, Path("w.pt"), "emma", said.append)


def test_weight_norm_of_old_checkpoints_fits_the_new_one() -> None:
    source = parametrizations.weight_norm(nn.Linear(3, 2))
    weights = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in source.state_dict().items()
    }
    assert "weight_g" in weights
    target = parametrizations.weight_norm(nn.Linear(3, 2))
    _fit(target, weights)
    assert torch.equal(target.weight, source.weight)


def test_half_precision_weights_are_computed_with_in_the_models_type() -> None:
    source, target = regression(), regression()
    said = _fit(target, {name: value.bfloat16() for name, value in source.state_dict().items()})
    assert said == ["weights stored as bfloat16 are computed with in the model's type"]
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.bfloat16().float())


def test_a_static_program_takes_whole_batches_only(tmp_path: Path) -> None:
    path, _ = static_program(tmp_path)
    x, y = (torch.cat([part, part[:2]]) for part in samples())  # 14 rows
    with pytest.raises(ls.InputError, match="batches of exactly 4 rows, and there are 14 .*12"):
        ls.load_problem(path, data=(x, y))
    assert ls.load_problem(path, data=(x, y), limit=12).batch_count == 3
    with pytest.raises(ls.InputError, match="--batch-size 4"):
        ls.load_problem(path, data=(x, y), limit=12, batch_size=6)


def test_a_program_keeps_its_batch_statistics(tmp_path: Path) -> None:
    path, _ = program(tmp_path)
    with pytest.raises(ls.InputError, match="with running statistics .* cannot change to batch"):
        ls.load_problem(path, data=samples(), norm_stats="batch")


def test_a_program_with_a_largest_batch_gets_no_larger_one(tmp_path: Path) -> None:
    path = tmp_path / "p.pt2"
    rows = torch.export.Dim("rows", min=3, max=5)
    exported = torch.export.export(net(), (samples()[0][:4],), dynamic_shapes=({0: rows},))
    torch.export.save(exported, path)
    with pytest.raises(ls.InputError, match="takes batches of 3 rows or more, .* end with 2"):
        ls.load_problem(path, data=samples())
    assert ls.load_problem(path, data=samples(), batch_size=4).batch_count == 3


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder as `save_pretrained` writes it: a BERT of random weights that tells two classes apart."""
    transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def _sentences() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    mask = torch.ones(9, 6, dtype=torch.int64)
    mask[3:, 4:] = 0
    return {
        "input_ids": torch.randint(0, 30, (9, 6), generator=source),
        "attention_mask": mask,
        "labels": torch.randint(0, 2, (9,), generator=source),
    }


def test_a_hugging_face_folder_opens_without_flags(bert: Path, record: Record) -> None:
    import transformers

    data = _sentences()
    problem = ls.load_problem(bert, data=data)
    model = transformers.BertForSequenceClassification.from_pretrained(bert).eval()
    with torch.no_grad():
        expected = model(**data).loss.item()
    assert problem.loss() == pytest.approx(expected, rel=1e-5)
    ls.Hessian(problem) @ torch.randn(problem.size)
    record("files", kind="Hugging Face folder", outcome="opens", said=[])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": 10**7}, "asks for num_hidden_layers = 10000000"),
        ({"hidden_size": 2 * 10**6}, "more than half of the free memory"),
        ({"num_labels": 9 * 10**8}, "asks for num_labels = 900000000"),
        ({"depths": [10**8]}, "asks for depths = 100000000"),
        ({"model_type": ["bert"]}, "can build from a description"),
        (
            {"attribute_map": {"a": "_attn_implementation_internal"}, "a": "evil/kernel"},
            "code, pack",
        ),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "code, packages or downloads"),
        ({"model_type": "os"}, "can build from a description: name the class with --model"),
        (
            {"architectures": ["system"]},
            "can build from a description: name the class with --model",
        ),
        ({"hidden_act": "nothing"}, "describes no model that can be built"),
    ],
)
def test_a_folder_whose_description_is_wrong_is_refused(
    bert: Path, change: dict[str, object], sentence: str, record: Record
) -> None:
    file = bert / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ls.InputError, match=re.escape(sentence)) as error:
        ls.load_problem(bert, data=_sentences())
    said = [str(error.value).replace(f"{bert}/", "")]
    record("files", kind=f"Hugging Face folder with {change}", outcome="refused", said=said)


def test_kernels_named_by_a_folder_are_not_fetched(bert: Path) -> None:
    file = bert / "config.json"
    choice = {"attn_implementation": "somebody/kernel", "_attn_implementation": "somebody/kernel"}
    file.write_text(json.dumps(json.loads(file.read_text()) | choice))
    problem = ls.load_problem(bert, data=_sentences())
    assert problem.model.config._attn_implementation == "eager"


def test_a_real_lightning_checkpoint_finds_its_model(tmp_path: Path, record: Record) -> None:
    """Written by the Trainer: its layout, its callbacks' states, and hyperparameters of other classes."""
    L = pytest.importorskip("lightning", reason="the extra [lightning] is not installed")

    class Module(L.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, options: argparse.Namespace) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = regression(hidden=(4,))
            self.loss = nn.MSELoss()

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            return self.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    data = torch.utils.data.TensorDataset(*read_data("diabetes:train", limit=20))
    module = Module(argparse.Namespace(name="an object of no torch class"))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=10))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    problem = ls.load_problem(
        tmp_path / "last.ckpt",
        model=FACTORY,
        model_args={"hidden": [4]},
        data="diabetes:train",
        limit=20,
    )
    expected = nn.functional.mse_loss(module.net(data.tensors[0]), data.tensors[1]).item()
    assert problem.loss() == pytest.approx(expected, rel=1e-5)
    record("files", kind="Lightning checkpoint of the Trainer", outcome="opens", said=[])


def _remarks(model: nn.Module, loss: str) -> list[str]:
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    return list(remarks(ls.Problem(model, loss, (x, y))))


class Pair(nn.Linear):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(x), x


def test_what_looks_wrong_is_remarked() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 3)
    assert _remarks(linear, "cross_entropy") == []
    assert "expects logits" in _remarks(nn.Sequential(linear, nn.Softmax(1)), "cross_entropy")[0]
    loud = nn.Linear(4, 3)
    with torch.no_grad():
        loud.weight *= 100
    assert "more than twice that of guessing (1.099)" in _remarks(loud, "cross_entropy")[0]
    assert _remarks(Pair(4, 3), "cross_entropy")[0].startswith(
        "the model returns a tuple of 2; its first"
    )


def test_a_callable_may_be_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    code = "import torch\nSIZE = 3\ndef build():\n    return torch.nn.Linear(10, 1)\n"
    (tmp_path / "sub" / "net_in_a_file.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(10, 1).state_dict(), "w.pt")
    said: list[str] = []
    ls.load_problem(
        "w.pt", model="sub/net_in_a_file.py:build", data="diabetes", limit=20, say=said.append
    )
    assert said[0] == "ran sub/net_in_a_file.py:build from sub/net_in_a_file.py"
    with pytest.raises(ls.InputError, match="is a int, which cannot be called"):
        ls.load_problem("w.pt", model="sub/net_in_a_file.py:SIZE", data="diabetes")
