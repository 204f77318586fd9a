"""Data that do not fit the model: the innermost module that fails is named, with both shapes."""

import pytest
import torch
from torch import nn

import landscape as ls


def first_on(layer: nn.Module, inputs: torch.Tensor) -> str:
    """The sentence for a model that starts with a layer."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(layer)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x)

    with pytest.raises(ls.InputError) as caught:
        ls.Problem(Model(), "mse", (inputs, torch.zeros(len(inputs), 2)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


@pytest.mark.parametrize(
    ("layer", "inputs", "sentence"),
    [
        (nn.Linear(10, 2), x(4, 8), "takes inputs (…, 10) and received (4, 8) from"),
        (nn.Conv2d(3, 2, 1), x(4, 1, 8, 8), "takes inputs (batch, 3, height, width) and received (4, 1, 8, 8)"),
        (nn.Conv2d(3, 2, 1), x(4, 8), "takes inputs (batch, 3, height, width) and received (4, 8)"),
        (nn.Conv1d(3, 2, 1), x(4, 4, 8), "takes inputs (batch, 3, length) and received (4, 4, 8)"),
        (nn.Conv3d(3, 2, 1), x(4, 4, 2, 2, 2), "takes inputs (batch, 3, depth, height, width) and"),
        (nn.ConvTranspose2d(3, 2, 1), x(4, 2, 4, 4), "takes inputs (batch, 3, height, width) and"),
        (nn.Embedding(10, 2), torch.full((4, 3), 12), "takes whole numbers from 0 to 9 (it has 10 rows) and received numbers from 12 to 12"),
        (nn.Embedding(10, 2), x(4, 3), "takes whole numbers from 0 to 9 (it has 10 rows) and received (4, 3)"),
        (nn.EmbeddingBag(10, 2), torch.full((4, 3), -1), "received numbers from -1 to -1"),
        (nn.LSTM(3, 2, batch_first=True), x(4, 5, 2), "takes inputs (batch, length, 3) and received (4, 5, 2)"),
        (nn.GRU(3, 2), x(4, 5, 2), "takes inputs (length, batch, 3) and received (4, 5, 2)"),
        (nn.RNNCell(3, 2), x(4, 2), "takes inputs (…, 3) and received (4, 2)"),
        (nn.BatchNorm1d(3), x(4, 2), "takes inputs (batch, 3) or (batch, 3, length) and received (4, 2)"),
        (nn.BatchNorm2d(3), x(4, 3), "takes inputs (batch, 3, height, width) and received (4, 3)"),
        (nn.InstanceNorm1d(3, affine=True), x(4, 2, 3), "takes inputs (batch, 3, length) and received"),
        (nn.LayerNorm((3, 2)), x(4, 2), "takes inputs (…, 3, 2) and received (4, 2)"),
        (nn.GroupNorm(2, 4), x(4, 3), "takes inputs (batch, 4, …) and received (4, 3)"),
    ],
)  # fmt: skip
def test_a_layer_says_what_it_takes_and_what_it_received(layer, inputs, sentence):
    found = first_on(layer, inputs)
    name = f"block.0 ({type(layer).__name__})"
    assert found.startswith(f"the data do not fit the model: {name} takes ")
    assert sentence in found
    assert f"from a batch of input {tuple(inputs.shape)} " in found
    assert found.endswith("; check the data")


def test_attention_says_what_it_takes():
    layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
    assert "takes inputs (…, 4) and received (4, 3, 6) from" in first_on(layer, x(4, 3, 6))


def test_whole_numbers_for_a_layer_of_real_ones_are_told():
    found = first_on(nn.Linear(3, 2), torch.ones(4, 3, dtype=torch.int64))
    assert "takes floating-point inputs (…, 3) and received (4, 3) int64 from" in found


def test_where_the_shapes_fit_torch_has_the_last_word():
    found = first_on(nn.Conv2d(1, 2, 5), x(4, 1, 3, 3))
    assert "block.0 (Conv2d) received (4, 1, 3, 3) float32 and stopped with RuntimeError: " in found
    assert "Kernel size" in found


def test_other_modules_are_named_with_what_they_received():
    class Picky(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            raise KeyError("colour")

    found = first_on(Picky(3, 2), x(4, 3))
    assert "block.0 (Picky) received (4, 3) float32 and stopped with KeyError: 'colour'" in found


def test_a_module_that_recovers_from_its_own_error_is_not_blamed():
    class Recovers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tried, self.used = nn.Linear(7, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.tried(x)
            except RuntimeError:
                return self.used(x)

    with pytest.raises(ls.InputError, match="the model or the loss fails .* outside every module"):
        ls.Problem(Recovers(), lambda o, t: o @ t, (x(4, 3), x(4, 2)))
    model = nn.Sequential(Recovers(), nn.Linear(5, 2))
    with pytest.raises(ls.InputError, match=r"model: 1 \(Linear\) takes inputs \(…, 5\) and rec"):
        ls.Problem(model, "mse", (x(4, 3), x(4, 2)))


def test_a_loss_that_fails_is_told_from_the_model():
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output @ target).mean()

    with pytest.raises(ls.InputError, match="the model or the loss fails .* outside every module"):
        ls.Problem(nn.Linear(3, 2), loss, (x(4, 3), x(4, 2)))
