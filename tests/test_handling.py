"""Which modules are treated in a special way, as told to people, and what the treatment rests on."""

import copy
from collections import Counter

import pytest
import torch
import torch.distributed
from module_kinds import KINDS, Kind, mlp, rows
from test_module_kinds import hessian_products, problem, products, target
from torch import nn

import landscape as ls
from landscape.handling import rules, special_modules, unwrapped

DOUBLE = torch.float64
PLAIN_ATTENTION = "attention in plain operations: fused kernels have no second derivative"
UNCOMPILED = "run uncompiled: compiled code cannot be differentiated twice"
CHECKPOINT = "checkpoint left out: a reentrant one cannot be differentiated twice"
WEIGHT_NORM = (
    "weight norm written out: its kernel's second derivative is wrong (seen in torch 2.13)"
)
BUFFERS = "its buffers are put back after every batch"


def told(name: str) -> list[tuple[str, str]]:
    kind = KINDS[name]()
    return special_modules(problem(kind, target(kind)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nn.MultiheadAttention", [("attention (MultiheadAttention)", PLAIN_ATTENTION)]),
        ("F.scaled_dot_product_attention", [("the model itself (Of)", PLAIN_ATTENTION)]),
        (
            "flex_attention with block_mask",
            [
                (
                    "the model itself (Of)",
                    "attention written out: flex attention has no second derivative",
                )
            ],
        ),
        ("torch.utils.checkpoint, use_reentrant=True", [("the model itself (Of)", CHECKPOINT)]),
        ("torch.utils.checkpoint, use_reentrant=False", []),
        ("torch.compile(model)", [("the model itself (OptimizedModule)", UNCOMPILED)]),
        ("torch.compile of a submodule", [("0 (OptimizedModule)", UNCOMPILED)]),
        (
            "a model with a compiled forward method, already run",
            [("the model itself (Sequential)", UNCOMPILED)],
        ),
        (
            "nn.DataParallel of a part",
            [("0 (DataParallel)", "its inner module alone: no replicas, no communication")],
        ),
        (
            "weight_norm, parametrisation",
            [
                (
                    "0.parametrizations.weight.0 (_WeightNorm)",
                    WEIGHT_NORM,
                )
            ],
        ),
        (
            "spectral_norm, old hook",
            [("0 (Linear)", "power iteration stopped: the vectors found in training are kept")],
        ),
        (
            "nn.Embedding(sparse=True)",
            [("embed (Embedding)", "dense gradient: a sparse one cannot be differentiated again")],
        ),
        (
            "nn.EmbeddingBag(mode='sum')",
            [
                (
                    "embed (EmbeddingBag)",
                    "bags of rows summed in plain operations: their kernel has no second derivative",
                )
            ],
        ),
        (
            "nn.LSTM, two layers, both directions, dropout",
            [("body (LSTM)", "dropout switched off")],
        ),
        (
            "nn.InstanceNorm1d with track_running_stats, norm_stats='batch'",
            [("body (InstanceNorm1d)", "statistics of each batch; the running ones stay")],
        ),
        ("a counter and a moving average in buffers", [("the model itself (Of)", BUFFERS)]),
        ("nn.Linear and nothing else", []),
    ],
)
def test_special_modules_are_listed_with_what_is_done_and_why(name, expected):
    if name == "nn.Linear and nothing else":
        assert special_modules(problem(Kind(mlp(), rows(3)), rows(2))) == expected
    else:
        assert told(name) == expected


def test_layers_treated_alike_share_a_phrase():
    layers = [
        part
        for _ in range(100)
        for part in (nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.1), nn.Dropout(0.0))
    ]
    model = nn.Sequential(*layers, nn.Linear(3, 2)).double()
    found = special_modules(problem(Kind(model, rows(3)), rows(2)))
    assert Counter(phrase for _, phrase in found) == {
        "running statistics": 100,
        "dropout switched off": 100,
    }
    assert found[:3] == [
        ("1 (BatchNorm1d)", "running statistics"),
        ("2 (Dropout)", "dropout switched off"),
        ("5 (BatchNorm1d)", "running statistics"),
    ]


def test_half_precision_weights_are_listed():
    model = mlp().bfloat16()
    found = special_modules(ls.Problem(model, "mse", (rows(3), rows(2))))
    why = "weights of torch.bfloat16 computed with in torch.float32"
    assert found == [("the model itself (Sequential)", why)]


def test_recurrent_layers_are_listed_where_cudnn_would_run_them():
    done = [
        rule.done for rule in rules("running", torch.device("cuda")) if rule.applies(nn.GRU(2, 2))
    ]
    assert done == ["torch's own kernel: that of cuDNN has no second derivative"]
    assert not any(r.applies(nn.GRU(2, 2)) for r in rules("running", torch.device("cpu")))


def test_listing_leaves_no_hook_behind():
    kind = KINDS["nn.MultiheadAttention"]()
    special_modules(problem(kind, target(kind)))
    for module in kind.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_distributed_data_parallel_is_its_inner_module(tmp_path):
    """Its own forward pass would wait for the other processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        inner = mlp()
        model = nn.parallel.DistributedDataParallel(inner)

        def communicate(*_):
            raise AssertionError("the wrapper was run")

        model._pre_forward = communicate
        kind = Kind(model, rows(3), twin=copy.deepcopy(inner))
        wanted = target(kind)
        exact = hessian_products(kind, wanted)
        assert (products(kind, wanted, DOUBLE) - exact).abs().max() <= 1e-10
        asked = problem(kind, wanted)
        assert special_modules(asked) == [
            (
                "the model itself (DistributedDataParallel)",
                "its inner module alone: no replicas, no communication",
            )
        ]
        assert asked.summary()["model"] == "Sequential"
    finally:
        torch.distributed.destroy_process_group()


def test_the_model_inside_several_wrappers_is_found():
    inner = mlp()
    assert unwrapped(nn.DataParallel(torch.compile(inner))) is inner


def test_functions_are_replaced_only_where_the_survey_had_cause_to():
    assert problem(Kind(mlp(), rows(3)), rows(2)).substituted == set()
    kind = KINDS["nn.Embedding(sparse=True)"]()
    assert problem(kind, target(kind)).substituted


def test_a_dict_of_several_tensors_needs_a_loss_that_picks():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return {"mean": self.body(x), "scale": x}

    sentence = r"the model returned dict with mean, scale .*: pass a loss \(output, target\) that"
    with pytest.raises(ls.InputError, match=sentence):
        ls.Problem(Two().double(), "mse", (rows(3), rows(2)))


def test_labels_that_repeat_the_input_are_refused():
    """A language model shifts them in its own loss; here the loss would reward copying."""
    words = torch.randint(0, 6, (5, 4))
    embed = nn.Embedding(6, 6)

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = embed

        def forward(self, input_ids):
            return self.embed(input_ids)

    kept = words.clone()
    kept[:, -1] = -100
    for labels in (words, kept):
        with pytest.raises(
            ls.InputError, match=r"repeat the input_ids, .*labels\[:, :-1\] = input"
        ):
            ls.Problem(Language(), "token_cross_entropy", {"input_ids": words, "labels": labels})
    shifted = torch.full_like(words, -100)
    shifted[:, :-1] = words[:, 1:]
    data = {"input_ids": words, "labels": shifted}
    assert ls.Problem(Language(), "token_cross_entropy", data).terms == 15
