"""Problem archives, state dicts, data by name: what opens, what is refused, and with which sentence."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.demos.models import regression
from landscape.loading.data import infer_loss, read_data, take

FACTORY = "landscape.demos.models:regression"


class Touch:
    """A pickle that would write a file when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


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


def test_factories_named_in_a_file_are_not_called(tmp_path: Path) -> None:
    path, model = tmp_path / "evil.pt", regression()
    for name in ("os:system", "landscape.demos.train:train", "landscape.demos.data:load_data"):
        ls.save_problem(path, model, factory=name, arguments={}, data="diabetes", loss="mse")
        with pytest.raises(ls.InputError, match=f"--model {name}"):
            ls.load_problem(path)
    ls.save_problem(path, model, factory="os:system", data="diabetes", loss="mse")
    assert (
        ls.load_problem(path, model=FACTORY).samples == 442
    )  # the user's word replaces the file's


def test_data_callables_named_in_a_file_are_not_called(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    ls.save_problem(path, regression(), factory=FACTORY, data="os:getcwd", loss="mse")
    with pytest.raises(ls.InputError, match="--data os:getcwd"):
        ls.load_problem(path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_in_the_file_never_runs(tmp_path: Path, nested: bool) -> None:
    path, witness = tmp_path / "evil.pt", tmp_path / "witness"
    torch.save({"weights": {"a": Touch(witness)}} if nested else Touch(witness), path)
    with pytest.raises(ls.InputError, match="would run code"):
        ls.load_problem(path, model=FACTORY, data="diabetes")
    path.write_bytes(pickle.dumps(Touch(witness)))
    with pytest.raises(ls.InputError):
        ls.load_problem(path, model=FACTORY, data="diabetes")
    assert not witness.exists()


def test_object_arrays_in_npz_never_run(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.npz", tmp_path / "witness"
    evil = np.array([Touch(witness)], dtype=object)
    np.savez(path, inputs=evil, targets=evil)
    with pytest.raises(ls.InputError, match="without pickle"):
        read_data(str(path))
    assert not witness.exists()


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
    assert said == ["no loss was given: mse fits the targets"]


def test_weights_that_do_not_fit_are_listed_with_the_nearest_names(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    weights = dict(regression().state_dict())
    first = next(iter(weights))
    weights[f"module.{first}"] = weights.pop(first)
    weights["extra"] = torch.zeros(1)
    torch.save(weights, path)
    with pytest.raises(ls.InputError) as error:
        ls.load_problem(path, model=FACTORY, data="diabetes")
    sentence = str(error.value)
    assert f"missing 1: {first}" in sentence
    assert "unexpected 2" in sentence
    assert f"module.{first} → {first}" in sentence
    torch.save(regression(hidden=(4, 4)).state_dict(), path)
    with pytest.raises(ls.InputError, match=r"of wrong shape \d.*\(4, 10\) instead of \(32, 10\)"):
        ls.load_problem(path, model=FACTORY, data="diabetes")


def test_exported_program_round_trips_only_when_trusted(tmp_path: Path) -> None:
    x, y = torch.randn(30, 10), torch.randn(30, 1)
    model, path = regression(), tmp_path / "program.pt"
    ls.save_problem(path, model, data=(x, y), loss="mse")
    with pytest.raises(ls.InputError, match="--trust-program"):
        ls.load_problem(path)
    problem = ls.load_problem(path, trust_program=True, batch_size=8)
    direct = ls.Problem(model, "mse", (x, y))
    assert problem.size == direct.size
    v = torch.randn(direct.size)
    torch.testing.assert_close(
        ls.Hessian(problem) @ v, ls.Hessian(direct) @ v, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot read"),
        (b"not a model at all", "cannot read|would run code"),
        (b"PK\x03\x04 half a zip", "cannot read"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ls.InputError, match=sentence) as error:
        ls.load_problem(path)
    assert "\n" not in str(error.value)


def test_a_tensor_or_a_folder_is_no_model(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ls.InputError, match="holds a Tensor"):
        ls.load_problem(tmp_path / "tensor.pt")
    with pytest.raises(ls.InputError, match="is a folder"):
        ls.load_problem(tmp_path)


def test_a_subset_keeps_class_proportions_and_is_reproducible() -> None:
    inputs, targets = read_data("digits")
    x, y = take((inputs, targets), 200, seed=3)
    assert x.shape == (200, 1, 8, 8)
    whole = torch.bincount(targets) / len(targets)
    assert (torch.bincount(y) / 200 - whole).abs().max() < 0.01
    again = take((inputs, targets), 200, seed=3)
    assert torch.equal(x, again[0]) and not torch.equal(x, take((inputs, targets), 200, 4)[0])
    assert len(take((inputs, targets), 10**6, 0)[0]) == len(inputs)


def test_npz_and_callables_give_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((9, 10)), y=rng.integers(0, 3, 9))
    x, y = read_data(str(tmp_path / "d.npz"))
    assert (x.dtype, y.dtype) == (torch.float64, torch.int64)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data.py").write_text(
        "import torch\ndef make():\n    return torch.ones(4, 2), torch.ones(4, 1)\n"
    )
    assert read_data("my_data:make", limit=2)[0].shape == (2, 2)
    with pytest.raises(ls.InputError, match="did you mean make"):
        read_data("my_data:mak")
    with pytest.raises(ls.InputError, match="cannot import 'no_such_module'"):
        read_data("no_such_module:make")
    with pytest.raises(ls.InputError, match="choose one of digits"):
        read_data("digitz")


def test_the_loss_is_inferred_from_the_targets() -> None:
    x = torch.zeros(4, 3)
    assert infer_loss((x, torch.zeros(4, 1))) == "mse"
    assert infer_loss((x, torch.zeros(4, dtype=torch.int64))) == "cross_entropy"
    assert infer_loss((x, torch.zeros(4, 5, dtype=torch.int64))) == "token_cross_entropy"
    with pytest.raises(ls.InputError, match="--loss"):
        infer_loss([x])
