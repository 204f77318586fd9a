"""One tiny float64 network for every kind of module that tools of this sort break on.

`KINDS` maps a name for people to a function that builds a fresh `Kind`. The truth is mean squared error
written out, over all the data in one batch, with `apply` or `twin` where torch's own second derivative
of the model is missing, wrong, or the very thing under test.
"""

import copy
import dataclasses
import functools
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from cases import Call
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

DOUBLE = torch.float64
ROWS = 5


@dataclasses.dataclass
class Kind:
    """A model with data, and how to compute its output in plain operations."""

    model: nn.Module
    inputs: Any  # a tensor, a tuple of tensors, or a mapping of tensors given by keyword
    apply: Callable[[Call, Any], Tensor] | None = None  # default: the model, its prediction picked
    twin: nn.Module | None = None  # plain modules around the same parameters, in the same order
    norm_stats: str = "running"
    exact: float = 1e-10  # of float64; a model that computes in float32 somewhere reaches less
    constant: str = (
        ""  # what the derivative takes for a constant, so that finite differences differ
    )


KINDS: dict[str, Callable[[], Kind]] = {}
REFUSED: dict[str, tuple[Callable[[], Kind], str]] = {}


def kind(name: str, refused: str | None = None) -> Callable[[Callable[[], Kind]], Any]:
    def register(build: Callable[[], Kind]) -> Callable[[], Kind]:
        @functools.wraps(build)
        def seeded() -> Kind:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                return build()

        assert name not in KINDS and name not in REFUSED
        if refused is None:
            KINDS[name] = seeded
        else:
            REFUSED[name] = seeded, refused
        return seeded

    return register


def rows(*shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, dtype=DOUBLE)


def tokens(length: int = 4, words: int = 6) -> Tensor:
    return torch.randint(0, words, (ROWS, length))


class Headed(nn.Module):
    """A body, whatever it returns flattened, and a linear head."""

    def __init__(self, body: nn.Module, width: int, **arguments: Any) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 2)
        self.arguments = arguments

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        h = self.body(x, *more, **self.arguments)
        return self.head(torch.tanh((h[0] if isinstance(h, tuple) else h).flatten(1)))


def headed(body: nn.Module, x: Tensor, **arguments: Any) -> Headed:
    """With a head that fits what the body makes of some rows."""
    with torch.no_grad():
        out = copy.deepcopy(body).double().eval()(x, **arguments)
    out = out[0] if isinstance(out, tuple) else out
    return Headed(body, out.flatten(1).shape[1], **arguments).double()


def layer(name: str, build: Callable[[], nn.Module], *shape: int) -> None:
    """A kind that is one layer on random input, and a head."""

    @kind(name)
    def _() -> Kind:
        body, x = build(), rows(*shape)
        return Kind(headed(body, x), x)


class Of(nn.Module):
    """A model made of a function: `Of(function, name=module, …)` calls `function(self, *inputs)`."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.function = function
        self.double()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def mlp(width: int = 3, outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


# Attention


class SelfAttention(nn.Module):
    """nn.MultiheadAttention on itself, with what it may be given besides."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.call = {
            name: options.pop(name)
            for name in ("need_weights", "attn_mask", "average_attn_weights", "is_causal")
            if name in options
        }
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        h, weights = self.attention(x, x, x, key_padding_mask=padded, **self.call)
        h = self.head(torch.tanh(h))
        return h if weights is None else h + weights.flatten(1).sum(1).square()[:, None, None]


CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)
PADDED = torch.zeros(ROWS, 3, dtype=torch.bool)
PADDED[1, 2] = PADDED[3, 1] = PADDED[3, 2] = True


@kind("nn.MultiheadAttention")
def _() -> Kind:
    return Kind(SelfAttention(need_weights=False).double(), rows(3, 4))


@kind("nn.MultiheadAttention with need_weights")
def _() -> Kind:
    return Kind(SelfAttention(need_weights=True, average_attn_weights=False).double(), rows(3, 4))


@kind("nn.MultiheadAttention with key_padding_mask")
def _() -> Kind:
    return Kind(SelfAttention(need_weights=False).double(), (rows(3, 4), PADDED))


@kind("nn.MultiheadAttention with attn_mask and key_padding_mask")
def _() -> Kind:
    model = SelfAttention(need_weights=False, attn_mask=CAUSAL).double()
    return Kind(model, (rows(3, 4), PADDED))


@kind("nn.MultiheadAttention with is_causal")
def _() -> Kind:
    model = SelfAttention(need_weights=False, attn_mask=CAUSAL, is_causal=True).double()
    return Kind(model, rows(3, 4))


@kind("nn.MultiheadAttention with bias_kv and zero_attn")
def _() -> Kind:
    model = SelfAttention(need_weights=True, add_bias_kv=True, add_zero_attn=True, dropout=0.1)
    return Kind(model.double(), rows(3, 4))


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, **options)


@kind("nn.TransformerEncoderLayer")
def _() -> Kind:
    x = rows(3, 4)
    return Kind(headed(encoder_layer(), x), x)


@kind("nn.TransformerEncoderLayer with norm_first and gelu")
def _() -> Kind:
    x = rows(3, 4)
    return Kind(headed(encoder_layer(norm_first=True, activation="gelu"), x).train(), x)


@kind("nn.TransformerEncoder with padding as nested tensors")
def _() -> Kind:
    encoder = nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=True)

    def forward(self: Any, x: Tensor, padded: Tensor) -> Tensor:
        h = self.encoder(x, src_key_padding_mask=padded)
        return self.head(torch.where(padded[:, :, None], 0.0, h))

    return Kind(Of(forward, encoder=encoder, head=nn.Linear(4, 2)).eval(), (rows(3, 4), PADDED))


@kind("nn.Transformer, encoder and decoder")
def _() -> Kind:
    body = nn.Transformer(4, 2, 1, 1, 5, batch_first=True)
    return Kind(Headed(body, 12).double(), (rows(2, 4), rows(3, 4)))


def heads(self: Any, x: Tensor, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of `self.qkv`: (batch, heads, length, 2)."""
    q, k, v = (part.unflatten(-1, (count, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
    return q, k, v


def mixed(self: Any, h: Tensor) -> Tensor:
    return self.head(torch.tanh(h.transpose(1, 2).flatten(2)))


def written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    scores = (scores - scores.amax(-1, keepdim=True)).exp()
    return scores / scores.sum(-1, keepdim=True) @ v


def attending(name: str, fused: Callable[..., Tensor], plain: Callable[..., Tensor], **parts: Any):
    """A kind with queries, keys and values mixed by `fused`, and its formula `plain`."""

    @kind(name)
    def _() -> Kind:
        def model(function: Callable[..., Tensor]) -> Of:
            torch.manual_seed(7)
            more = {key: make() for key, make in parts.items()}
            layers = {"qkv": nn.Linear(4, 12), "head": nn.Linear(4, 2)}
            return Of(
                lambda self, x: mixed(self, function(self, *heads(self, x))), **layers, **more
            )

        x = rows(3, 4)
        return Kind(model(fused), x, twin=model(plain))


def infinite(allowed: Tensor) -> Tensor:
    return torch.where(allowed, 0.0, -torch.inf)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Four heads of queries and two of keys and values, all of one number."""
    q, k, v = (part.transpose(2, 3).flatten(1, 2).unsqueeze(-1) for part in (q, k, v))
    return q, k[:, ::2], v[:, ::2]


def repeated(*qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = grouped(*qkv)
    return q, k[:, [0, 0, 1, 1]], v[:, [0, 0, 1, 1]]


def joined(h: Tensor) -> Tensor:
    return h.unflatten(1, (2, 2)).flatten(-2).transpose(2, 3)


SDPA = F.scaled_dot_product_attention
attending("F.scaled_dot_product_attention", lambda s, *qkv: SDPA(*qkv), lambda s, *qkv: written_out(*qkv))  # fmt: skip
attending(
    "F.scaled_dot_product_attention with is_causal",
    lambda s, *qkv: SDPA(*qkv, is_causal=True),
    lambda s, *qkv: written_out(*qkv, infinite(~CAUSAL)),
)
attending(
    "F.scaled_dot_product_attention with a boolean mask",
    lambda s, *qkv: SDPA(*qkv, attn_mask=~CAUSAL),
    lambda s, *qkv: written_out(*qkv, infinite(~CAUSAL)),
)
attending(
    "F.scaled_dot_product_attention with a learned bias",
    lambda s, *qkv: SDPA(*qkv, attn_mask=s.bias),
    lambda s, *qkv: written_out(*qkv, s.bias),
    bias=lambda: nn.Parameter(torch.randn(2, 3, 3)),
)
attending(
    "F.scaled_dot_product_attention with enable_gqa",
    lambda s, *qkv: joined(SDPA(*grouped(*qkv), enable_gqa=True)),
    lambda s, *qkv: joined(written_out(*repeated(*qkv))),
)


def flex(*args: Any, **kwargs: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*args, **kwargs)


def block_mask() -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, i, j: i >= j, None, None, 3, 3, device="cpu")


DISTANCE = torch.arange(3)[:, None] - torch.arange(3)


attending(
    "flex_attention with score_mod",
    lambda s, *qkv: flex(*qkv, score_mod=lambda score, b, h, i, j: score + 0.3 * (i - j)),
    lambda s, *qkv: written_out(*qkv, 0.3 * DISTANCE),
)
attending(
    "flex_attention with a learned slope per head in score_mod",
    lambda s, *qkv: flex(*qkv, score_mod=lambda score, b, h, i, j: score + s.slopes[h] * (i - j)),
    lambda s, *qkv: written_out(*qkv, s.slopes[:, None, None] * DISTANCE),
    slopes=lambda: nn.Parameter(torch.randn(2)),
)
attending(
    "flex_attention with a learned bias in score_mod",
    lambda s, *qkv: flex(
        *qkv, score_mod=lambda score, b, h, i, j: torch.tanh(score) + s.bias[h, i - j + 2]
    ),
    lambda s, q, k, v: (
        ((q @ k.transpose(-1, -2) / 2**0.5).tanh() + s.bias[:, DISTANCE + 2]).softmax(-1) @ v
    ),
    bias=lambda: nn.Parameter(torch.randn(2, 5)),
)
attending(
    "flex_attention with block_mask",
    lambda s, *qkv: flex(*qkv, block_mask=s.mask),
    lambda s, *qkv: written_out(*qkv, infinite(~CAUSAL)),
    mask=block_mask,
)
attending(
    "flex_attention with enable_gqa",
    lambda s, *qkv: joined(flex(*grouped(*qkv), enable_gqa=True)),
    lambda s, *qkv: joined(written_out(*repeated(*qkv))),
)
attending(
    "torch.compile of flex_attention",
    lambda s, *qkv: torch.compile(flex)(*qkv, block_mask=s.mask),
    lambda s, *qkv: written_out(*qkv, infinite(~CAUSAL)),
    mask=block_mask,
)


# Recurrent networks


for _name, _type in (("LSTM", nn.LSTM), ("GRU", nn.GRU), ("RNN", nn.RNN)):
    layer(f"nn.{_name}", functools.partial(_type, 3, 2, batch_first=True), 4, 3)
    layer(
        f"nn.{_name}, two layers, both directions, dropout",
        functools.partial(_type, 3, 2, 2, batch_first=True, bidirectional=True, dropout=0.2), 3, 3,
    )  # fmt: skip
layer("nn.LSTM with a projection", lambda: nn.LSTM(3, 3, batch_first=True, proj_size=2), 4, 3)


@kind("nn.LSTM on a PackedSequence made inside the model")
def _() -> Kind:
    def forward(self: Any, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.cell(packed)
        padded, _ = pad_packed_sequence(self.cell(packed)[0], batch_first=True, total_length=4)
        return self.head(torch.cat([last[0], padded.sum(1)], 1))

    model = Of(forward, cell=nn.LSTM(3, 2, batch_first=True), head=nn.Linear(4, 2))
    return Kind(model, (rows(4, 3), torch.tensor([4, 1, 3, 2, 4])))


def unrolled(self: Any, x: Tensor) -> Tensor:
    state: Any = None
    for step in x.unbind(1):
        state = self.cell(step, state)
    return self.head(state[0] if isinstance(state, tuple) else state)


for _name, _type in (("LSTMCell", nn.LSTMCell), ("GRUCell", nn.GRUCell), ("RNNCell", nn.RNNCell)):
    kind(f"nn.{_name}")(
        lambda build=_type: Kind(Of(unrolled, cell=build(3, 2), head=nn.Linear(2, 2)), rows(3, 3))
    )


# Written in place


@kind("nn.ReLU(inplace=True)")
def _() -> Kind:
    return Kind(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double(), rows(3)
    )


@kind("F.relu_ and x += y")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.one(x)
        y = self.two(x)
        y += h
        F.relu_(y)
        h = y * 2
        h.mul_(0.5)
        h[:, 0] = y[:, 0].square()
        return self.head(h)

    def plain(self: Any, x: Tensor) -> Tensor:
        y = (self.two(x) + self.one(x)).relu()
        return self.head(torch.cat([y[:, :1] ** 2, y[:, 1:]], 1))

    parts = {"one": nn.Linear(3, 4), "two": nn.Linear(3, 4), "head": nn.Linear(4, 2)}
    return Kind(Of(forward, **parts), rows(3), twin=Of(plain, **parts))


# Embeddings


def words(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.tanh(self.embed(x).flatten(1)))


@kind("nn.Embedding with padding_idx")
def _() -> Kind:
    def plain(call: Call, x: Tensor) -> Tensor:
        rows = call.tensors["embed.weight"][x]
        rows = torch.where((x == 1)[..., None], rows.detach(), rows)
        h = torch.tanh(rows.flatten(1))
        return h @ call.tensors["head.weight"].T + call.tensors["head.bias"]

    model = Of(words, embed=nn.Embedding(6, 2, padding_idx=1), head=nn.Linear(8, 2))
    return Kind(model, tokens(), apply=plain, constant="the row of the padding")


def by_index(call: Call, x: Tensor) -> Tensor:
    h = torch.tanh(call.tensors["embed.weight"][x].flatten(1))
    return h @ call.tensors["head.weight"].T + call.tensors["head.bias"]


@kind("nn.Embedding(sparse=True)")
def _() -> Kind:
    model = Of(words, embed=nn.Embedding(6, 2, sparse=True), head=nn.Linear(8, 2))
    return Kind(model, tokens(), apply=by_index)


@kind("nn.Embedding(scale_grad_by_freq=True)")
def _() -> Kind:
    model = Of(words, embed=nn.Embedding(6, 2, scale_grad_by_freq=True), head=nn.Linear(8, 2))
    return Kind(model, tokens(), apply=by_index)


for _mode in ("sum", "mean", "max"):
    for _sparse in (False, True):
        if _mode == "max" and _sparse:
            continue

        @kind(f"nn.EmbeddingBag(mode={_mode!r}{', sparse=True' if _sparse else ''})")
        def _(mode: str = _mode, sparse: bool = _sparse) -> Kind:
            def plain(call: Call, x: Tensor) -> Tensor:
                bag = getattr(call.tensors["embed.weight"][x], {"max": "amax"}.get(mode, mode))(1)
                head = call.tensors["head.weight"].T
                return torch.tanh(bag) @ head + call.tensors["head.bias"]

            bag = nn.EmbeddingBag(6, 2, mode=mode, sparse=sparse)
            # rows without a repeated word: the maximum is then reached once
            x = torch.stack([torch.randperm(6)[:4] for _ in range(ROWS)])
            return Kind(Of(words, embed=bag, head=nn.Linear(2, 2)), x, apply=plain)


@kind("F.embedding_bag with offsets, weights and padding")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        starts = torch.arange(0, x.numel(), x.shape[1])
        weights = self.scale[x].flatten()
        bags = F.embedding_bag(
            x.flatten(), self.embed, starts, mode="sum", per_sample_weights=weights, padding_idx=2
        )
        return self.head(torch.tanh(bags))

    def plain(self: Any, x: Tensor) -> Tensor:
        chosen = self.embed[x] * self.scale[x][..., None] * (x != 2)[..., None]
        return self.head(torch.tanh(chosen.sum(1)))

    parts = {
        "embed": nn.Parameter(torch.randn(6, 2)),
        "scale": nn.Parameter(torch.randn(6)),
        "head": nn.Linear(2, 2),
    }
    return Kind(Of(forward, **parts), tokens(), twin=Of(plain, **parts))


@kind("F.embedding(sparse=True) called in forward")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = F.embedding(x, self.embed.weight, sparse=True)
        return self.head(torch.tanh(h.flatten(1)))

    model = Of(forward, embed=nn.Embedding(6, 2), head=nn.Linear(8, 2))
    return Kind(model, tokens(), apply=by_index)


@kind("tied weights")
def _() -> Kind:
    embed, head = nn.Embedding(6, 3), nn.Linear(3, 6, bias=False)
    head.weight = embed.weight
    mix = nn.Linear(3, 3)
    model = Of(lambda s, x: s.head(torch.tanh(s.mix(s.embed(x)))), embed=embed, mix=mix, head=head)
    return Kind(model, tokens())


# Normalisation


def shifted(norm: nn.Module) -> nn.Module:
    """With running statistics that are not those of a fresh layer."""
    for name in ("running_mean", "running_var"):
        if getattr(norm, name, None) is not None:
            getattr(norm, name).uniform_(0.2, 0.8)
    return norm


for _name, _build, _shape in (
    ("nn.BatchNorm1d", lambda: shifted(nn.BatchNorm1d(4)), (4,)),
    ("nn.BatchNorm2d", lambda: shifted(nn.BatchNorm2d(2)), (2, 2, 2)),
    ("nn.GroupNorm", lambda: nn.GroupNorm(2, 4), (4, 2)),
    ("nn.LayerNorm", lambda: nn.LayerNorm(4), (3, 4)),
    ("nn.RMSNorm", lambda: nn.RMSNorm(4), (3, 4)),
    ("nn.InstanceNorm1d, affine", lambda: nn.InstanceNorm1d(3, affine=True), (3, 4)),
    (
        "nn.InstanceNorm2d with track_running_stats",
        lambda: shifted(nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
        (2, 2, 3),
    ),
    ("nn.SyncBatchNorm", lambda: shifted(nn.SyncBatchNorm(4)), (4,)),
    ("nn.LocalResponseNorm", lambda: nn.LocalResponseNorm(2), (3, 2, 2)),
):

    @kind(_name)
    def _(build: Any = _build, shape: Any = _shape) -> Kind:
        x, norm = rows(*shape), build()
        flat = x[0].numel()
        first = nn.Sequential(nn.Linear(flat, flat), nn.Unflatten(1, shape), norm)
        return Kind(headed(first, x.flatten(1)), x.flatten(1))


@kind("nn.InstanceNorm1d with track_running_stats, norm_stats='batch'")
def _() -> Kind:
    norm = shifted(nn.InstanceNorm1d(3, affine=True, track_running_stats=True))
    x = rows(3, 4)

    def plain(call: Call, x: Tensor) -> Tensor:
        t = call.tensors
        h = (x - x.mean(2, keepdim=True)) / (x.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        h = h * t["body.weight"][:, None] + t["body.bias"][:, None]
        return torch.tanh(h.flatten(1)) @ t["head.weight"].T + t["head.bias"]

    return Kind(headed(norm, x), x, apply=plain, norm_stats="batch")


# Convolutions, pooling, resizing

for _name, _build, _shape in (
    ("nn.Conv1d", lambda: nn.Conv1d(2, 3, 3, padding="same"), (2, 5)),
    ("nn.Conv3d", lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    ("nn.Conv2d, depthwise", lambda: nn.Conv2d(3, 3, 2, groups=3), (3, 3, 3)),
    ("nn.Conv2d, grouped", lambda: nn.Conv2d(4, 4, 2, groups=2), (4, 3, 3)),
    ("nn.Conv2d, dilated", lambda: nn.Conv2d(1, 2, 2, dilation=2), (1, 4, 4)),
    ("nn.Conv2d, circular", lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 3, 3)),
    ("nn.ConvTranspose1d", lambda: nn.ConvTranspose1d(2, 2, 3, stride=2), (2, 3)),
    ("nn.ConvTranspose2d, grouped", lambda: nn.ConvTranspose2d(2, 4, 2, stride=2, groups=2, output_padding=1), (2, 2, 2)),
    ("nn.ConvTranspose3d", lambda: nn.ConvTranspose3d(1, 2, 2), (1, 2, 2, 2)),
):  # fmt: skip
    layer(_name, _build, *_shape)

for _name, _build, _shape in (
    ("nn.MaxPool2d", lambda: nn.MaxPool2d(2), (1, 4, 4)),
    ("nn.MaxPool1d", lambda: nn.MaxPool1d(2), (2, 4)),
    ("nn.AvgPool2d", lambda: nn.AvgPool2d(2), (1, 4, 4)),
    ("nn.AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d(2), (1, 3, 3)),
    ("nn.AdaptiveMaxPool2d", lambda: nn.AdaptiveMaxPool2d(2), (1, 3, 3)),
    ("nn.LPPool2d", lambda: nn.LPPool2d(2, 2), (1, 4, 4)),
    ("nn.Upsample, nearest", lambda: nn.Upsample(scale_factor=2), (1, 2, 2)),
    ("nn.Upsample, bilinear", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 2)),
    ("nn.Upsample, bicubic", lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 2, 2)),
    ("nn.PixelShuffle", lambda: nn.PixelShuffle(2), (4, 2, 2)),
    ("nn.ReflectionPad2d", lambda: nn.ReflectionPad2d(1), (1, 3, 3)),
    ("nn.Unfold and nn.Fold", lambda: nn.Sequential(nn.Unfold(2), nn.Fold(3, 2)), (1, 3, 3)),
):  # fmt: skip

    @kind(_name)
    def _(build: Any = _build, shape: Any = _shape) -> Kind:
        x = rows(*shape)
        flat = x[0].numel()
        body = nn.Sequential(nn.Linear(flat, flat, bias=False), nn.Unflatten(1, shape), build())
        return Kind(headed(body, x.flatten(1)), x.flatten(1))


# Wrappers


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.tanh(self.one(x)))


for _reentrant in (False, True):

    @kind(f"torch.utils.checkpoint, use_reentrant={_reentrant}")
    def _(reentrant: bool = _reentrant) -> Kind:
        def forward(self: Any, x: Tensor) -> Tensor:
            h = self.first(x)
            for block in self.blocks:
                h = torch.utils.checkpoint.checkpoint(block, h, use_reentrant=reentrant)
            return self.head(h)

        def plain(self: Any, x: Tensor) -> Tensor:
            return self.head(self.blocks(self.first(x)))

        parts = {"first": nn.Linear(3, 3), "blocks": nn.Sequential(Block(), Block())}
        parts["head"] = nn.Linear(3, 2)
        return Kind(Of(forward, **parts), rows(3), twin=Of(plain, **parts))


@kind("torch.utils.checkpoint.checkpoint_sequential")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint_sequential(self.body, 2, x, use_reentrant=True)

    body = mlp()
    return Kind(Of(forward, body=body), rows(3), twin=body)


@kind("torch.compile(model)")
def _() -> Kind:
    inner = mlp()
    return Kind(torch.compile(inner), rows(3), twin=inner)


@kind("torch.compile of a submodule")
def _() -> Kind:
    block = Block()
    head = nn.Linear(3, 2)
    twin = nn.Sequential(block, head).double()
    return Kind(nn.Sequential(torch.compile(block), head), rows(3), twin=twin)


@kind("module.compile()")
def _() -> Kind:
    inner = mlp()
    twin = copy.deepcopy(inner)
    inner.compile()
    return Kind(inner, rows(3), twin=twin)


@kind("a model with a compiled forward method, already run")
def _() -> Kind:
    inner = mlp()
    twin = copy.deepcopy(inner)
    inner.forward = torch.compile(inner.forward, backend="aot_eager")
    inner(rows(3))
    return Kind(inner, rows(3), twin=twin)


@kind("nn.DataParallel")
def _() -> Kind:
    inner = mlp()
    return Kind(nn.DataParallel(inner), rows(3), twin=inner)


@kind("nn.DataParallel of a part")
def _() -> Kind:
    inner = mlp(3, 3)
    head = nn.Linear(3, 2).double()
    return Kind(
        nn.Sequential(nn.DataParallel(inner), head), rows(3), twin=nn.Sequential(inner, head)
    )


# Parametrisations


def normed(call: Call, x: Tensor, g: str, v: str) -> Tensor:
    t = call.tensors
    weight = t[g] * t[v] / t[v].square().sum(1, keepdim=True).sqrt()
    return torch.tanh(x @ weight.T + t["0.bias"]) @ t["2.weight"].T + t["2.bias"]


@kind("weight_norm, parametrisation")
def _() -> Kind:
    model = mlp()
    parametrizations.weight_norm(model[0])
    name = "0.parametrizations.weight.original"
    return Kind(model, rows(3), apply=lambda c, x: normed(c, x, f"{name}0", f"{name}1"))


@kind("weight_norm, old hook")
def _() -> Kind:
    model = mlp()
    nn.utils.weight_norm(model[0])
    return Kind(model, rows(3), apply=lambda c, x: normed(c, x, "0.weight_g", "0.weight_v"))


@kind("spectral_norm, parametrisation")
def _() -> Kind:
    model = mlp()
    parametrizations.spectral_norm(model[0])
    return Kind(model, rows(3))


@kind("spectral_norm, old hook")
def _() -> Kind:
    model = mlp()
    nn.utils.spectral_norm(model[0])
    model(rows(3))

    def plain(call: Call, x: Tensor) -> Tensor:
        t, u, v = call.tensors, model[0].weight_u, model[0].weight_v
        weight = t["0.weight_orig"] / (u @ t["0.weight_orig"] @ v)
        return torch.tanh(x @ weight.T + t["0.bias"]) @ t["2.weight"].T + t["2.bias"]

    return Kind(model, rows(3), apply=plain)


for _map in ("matrix_exp", "cayley", "householder"):

    @kind(f"orthogonal parametrisation, {_map}")
    def _(form: str = _map) -> Kind:
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        parametrizations.orthogonal(model[0], orthogonal_map=form)
        with torch.no_grad():
            model[0].parametrizations.weight.original.add_(0.1 * rows(3)[:3].tril(-1))
        signs = "the signs on the diagonal" if form == "householder" else ""
        return Kind(model, rows(3), constant=signs)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


@kind("a parametrisation of one's own")
def _() -> Kind:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    return Kind(model, rows(3))


# Buffers as state


@kind("a counter and a moving average in buffers")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.body(x)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
        self.last = h.detach()
        return h * (1 + self.calls - self.calls) + 0.1

    calls, mean = torch.zeros((), dtype=torch.int64), torch.zeros(2)
    twin = mlp()
    model = Of(forward, body=twin, calls=calls, mean=mean)
    return Kind(model, rows(3), twin=Of(lambda s, x: s.body(x) + 0.1, body=twin))


@kind("a key-value cache in buffers")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        outputs = []
        self.used.zero_()
        self.cache = self.cache.new_zeros(len(x), 3, 4)
        for step in x.unbind(1):
            q, k, v = self.qkv(step).chunk(3, -1)
            place = int(self.used)
            self.cache[:, place] = torch.cat([k, v], -1)
            self.used += 1
            k, v = self.cache[:, : place + 1].clone().chunk(2, -1)
            weights = (q[:, None] * k).sum(-1).softmax(-1)
            outputs.append((weights[..., None] * v).sum(1))
        return self.head(torch.stack(outputs, 1))

    def plain(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) + infinite(~CAUSAL)
        return self.head(scores.softmax(-1) @ v)

    parts = {"qkv": nn.Linear(4, 6), "head": nn.Linear(2, 2)}
    used = torch.zeros((), dtype=torch.int64)
    model = Of(forward, **parts, used=used, cache=torch.zeros(1, 3, 4))
    return Kind(model, rows(3, 4), twin=Of(plain, **parts))


@kind("a cached tensor in a plain attribute")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.body(x).mean()  # of the first call, kept with its graph
        return self.body(x)

    body = mlp()
    return Kind(Of(forward, body=body, cache=None), rows(3), twin=body)


@kind("constants in plain attributes, one of them sparse")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.body(torch.sparse.mm(self.graph, (x @ self.scale).T).T)

    scale, graph = rows(3)[:3], torch.eye(3, dtype=DOUBLE).to_sparse()
    body = mlp()
    model = Of(forward, body=body)
    model.__dict__.update(scale=scale, graph=graph)
    return Kind(model, rows(3), twin=Of(lambda s, x: s.body(x @ scale), body=body))


# What a model returns


@dataclasses.dataclass
class Returned:
    logits: Tensor
    hidden: Tensor


Pair = namedtuple("Pair", ["logits", "hidden"])
Scores = namedtuple("Scores", ["prediction", "hidden"])

for _name, _wrap in (
    ("a tuple", lambda y, h: (y, h)),
    ("a list", lambda y, h: [y, h]),
    ("a dict with logits", lambda y, h: {"hidden": h, "logits": y}),
    ("a dict of one tensor", lambda y, h: {"scores": y}),
    ("a namedtuple", lambda y, h: Scores(y, h)),
    ("a namedtuple with logits", lambda y, h: Pair(y, h)),
    ("a dataclass with logits", lambda y, h: Returned(y, h)),
):

    @kind(f"a model that returns {_name}")
    def _(wrap: Any = _wrap) -> Kind:
        body = mlp()
        model = Of(lambda s, x: wrap(s.body(x), x), body=body)
        return Kind(model, rows(3), twin=body)


class OfOneDict(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.body(batch["a"] * batch["b"])


@kind("a model that takes a dict by position")
def _() -> Kind:
    twin = Of(lambda s, a, b: s.body(a * b), body=mlp())
    return Kind(OfOneDict(twin.body), ({"a": rows(3), "b": rows(1)},), twin=twin)


@kind("a model that takes a dict by keyword")
def _() -> Kind:
    body = mlp()
    return Kind(Of(lambda s, *, a, b: s.body(a * b), body=body), {"a": rows(3), "b": rows(1)})


@kind("a model that takes two tensors")
def _() -> Kind:
    return Kind(Of(lambda s, a, b: s.body(a * b), body=mlp()), (rows(3), rows(1)))


# Hugging Face


def hugging_face(
    name: str, inputs: Callable[[], Any], exact: float = 1e-10, **options: Any
) -> None:
    @kind(f"transformers {name}")
    def _() -> Kind:
        transformers = pytest.importorskip("transformers", reason="an optional dependency")
        model = getattr(transformers, name)
        built = model(model.config_class(**options)).double().train()
        # the framework starts biases at 0 and weights near it, which makes every curvature tiny
        with torch.no_grad():
            for p in built.parameters():
                p.add_(0.2 * torch.randn_like(p))

        def apply(call: Call, x: Any) -> Tensor:
            return call.model(**x).logits

        return Kind(built, inputs(), apply=apply, exact=exact)


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
TINY = {"hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 4}
hugging_face(
    "BertForSequenceClassification", lambda: {"input_ids": tokens(4, 5), "attention_mask": MASK},
    vocab_size=6, pad_token_id=5, max_position_embeddings=4, **TINY,
)  # fmt: skip
hugging_face(
    "GPT2LMHeadModel", lambda: {"input_ids": tokens(), "attention_mask": MASK},
    vocab_size=6, n_positions=4, n_embd=4, n_layer=1, n_head=2,
)  # fmt: skip
hugging_face(
    "LlamaForCausalLM", lambda: {"input_ids": tokens()},
    exact=1e-6, vocab_size=6, max_position_embeddings=4, num_key_value_heads=1, **TINY,
)  # fmt: skip
hugging_face(
    "ViTForImageClassification", lambda: {"pixel_values": rows(1, 4, 4)},
    image_size=4, patch_size=2, num_channels=1, **TINY,
)  # fmt: skip
hugging_face(
    "T5ForConditionalGeneration",
    lambda: {"input_ids": tokens(), "attention_mask": MASK, "decoder_input_ids": tokens(3)},
    exact=1e-6, vocab_size=6, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2,
)  # fmt: skip


# Noise


@kind("nn.Dropout and functional dropout that respects self.training")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = F.dropout(self.drop(torch.tanh(self.one(x))), 0.4, training=self.training)
        keep = torch.rand(len(x), 1) < 0.5 if self.training else 1.0
        return self.two(h * keep)

    parts = {"one": nn.Linear(3, 4), "drop": nn.Dropout(0.5), "two": nn.Linear(4, 2)}
    twin = Of(lambda s, x: s.two(torch.tanh(s.one(x))), one=parts["one"], two=parts["two"])
    return Kind(Of(forward, **parts), rows(3), twin=twin)


@kind("F.dropout(training=True)", refused=r"1 \(Of\) is random in evaluation mode")
def _() -> Kind:
    noise = Of(lambda s, x: F.dropout(x, 0.5, training=True))
    return Kind(nn.Sequential(nn.Linear(3, 4), noise, nn.Linear(4, 2)).double(), rows(3))


# Numbers of other kinds


@kind("complex parameters beside real ones")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=-1) * torch.view_as_complex(self.pairs)
        return self.body(torch.fft.irfft(spectrum * self.phase, 4))

    phase = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    pairs = nn.Parameter(torch.randn(3, 2))
    return Kind(Of(forward, phase=phase, pairs=pairs, body=mlp(4)), rows(4))


@kind("Fourier layer with complex weights held as pairs of reals")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=-1) * torch.view_as_complex(self.pairs)
        return self.body(torch.fft.irfft(spectrum, 4))

    return Kind(Of(forward, pairs=nn.Parameter(torch.randn(3, 2)), body=mlp(4)), rows(4))


@kind("complex buffers")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.body(torch.fft.irfft(torch.fft.rfft(x, dim=-1) * self.filter, 4))

    return Kind(Of(forward, filter=torch.randn(3, dtype=torch.complex128), body=mlp(4)), rows(4))


@kind("a lazy module that has never run", refused="run the lazy model once on a batch first")
def _() -> Kind:
    return Kind(nn.Sequential(nn.LazyLinear(2)), rows(3))


@kind("a lazy module that has run")
def _() -> Kind:
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2)).double()
    model(rows(3))
    return Kind(model, rows(3))


@kind("a quantised model", refused="quantised")
def _() -> Kind:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).float()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return Kind(nn.Sequential(quantised, nn.Linear(2, 2)), rows(3))


# Parts without a derivative


@kind("a part under torch.no_grad")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = torch.tanh(self.frozen(x))
        return self.head(torch.tanh(self.body(h)))

    parts = {"frozen": nn.Linear(3, 3), "body": nn.Linear(3, 3), "head": nn.Linear(3, 2)}
    return Kind(Of(forward, **parts), rows(3), constant="the part under no_grad")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return g * (1 - y**2)


@kind(
    "autograd.Function without a double backward",
    refused=r"^2 \(Of\) uses an operation without a second derivative",
)
def _() -> Kind:
    middle = Of(lambda s, x: Once.apply(x))
    relu = nn.ReLU(inplace=True)  # not to be blamed
    return Kind(nn.Sequential(nn.Linear(3, 4), relu, middle, nn.Linear(4, 2)).double(), rows(3))


@kind(
    "a change in place of what autograd needs", refused=r"^1 \(Of\) changes in place what a deriv"
)
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        h += 1
        return h

    return Kind(nn.Sequential(nn.Linear(3, 2), Of(forward)).double(), rows(3))


@torch.library.custom_op("landscape_tests::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@kind(
    "a custom operator without a derivative", refused=r"1 \(Of\) uses an operation without a second"
)
def _() -> Kind:
    middle = Of(lambda s, x: cube(x))
    return Kind(nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(4, 2)).double(), rows(3))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


@kind("autograd.Function with a double backward")
def _() -> Kind:
    middle = Of(lambda s, x: Square.apply(x))
    parts = nn.Linear(3, 4), nn.Linear(4, 2)
    twin = nn.Sequential(parts[0], Of(lambda s, x: x * x), parts[1]).double()
    return Kind(nn.Sequential(parts[0], middle, parts[1]).double(), rows(3), twin=twin)


# Routing and other operations


@kind("mixture of experts with top-k routing")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).topk(2, -1)
        weights = weights.softmax(-1)
        result = x.new_zeros(len(x), 2)
        for i, expert in enumerate(self.experts):
            row, place = (chosen == i).nonzero(as_tuple=True)
            result.index_add_(0, row, expert(x[row]) * weights[row, place, None])
        return result

    experts = nn.ModuleList([mlp() for _ in range(3)])
    return Kind(Of(forward, router=nn.Linear(3, 3), experts=experts), rows(3))


@kind("an unused submodule")
def _() -> Kind:
    return Kind(Of(lambda s, x: s.body(x), spare=nn.Linear(2, 2), body=mlp()), rows(3))


@kind("einsum, bmm, cumsum, sort, gather, logsumexp")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = torch.einsum("bti,ij->btj", x, self.mix)
        h = torch.bmm(h, h.transpose(1, 2)).cumsum(-1)
        h, order = h.sort(-1)
        h = torch.cat([h.gather(-1, order), h.logsumexp(-1, keepdim=True), h.cumprod(-1)], -1)
        return self.head(torch.tanh(h).flatten(1))

    return Kind(Of(forward, mix=nn.Parameter(torch.randn(2, 2)), head=nn.Linear(21, 2)), rows(3, 2))


@kind("linalg: solve, inverse, cholesky, eigh, svd")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        a = self.a @ self.a.T + torch.eye(3, dtype=x.dtype)
        h = torch.linalg.solve(a, x.T).T @ torch.linalg.cholesky(a) @ torch.linalg.inv(a)
        return self.head(h + torch.linalg.eigvalsh(a) + torch.linalg.svdvals(a))

    return Kind(Of(forward, a=nn.Parameter(torch.randn(3, 3)), head=nn.Linear(3, 2)), rows(3))


for _layout in ("coo", "csr"):

    @kind(f"a sparse {_layout} buffer (graph convolution)")
    def _(layout: str = _layout) -> Kind:
        dense = (torch.rand(3, 3) < 0.6).to(DOUBLE)
        sparse = dense.to_sparse_coo() if layout == "coo" else dense.to_sparse_csr()

        def forward(self: Any, x: Tensor) -> Tensor:
            return self.two(torch.tanh(torch.sparse.mm(self.graph, self.one(x).T).T))

        parts = {"one": nn.Linear(3, 3), "two": nn.Linear(3, 2)}
        twin = Of(lambda s, x: s.two(torch.tanh(s.one(x) @ dense.T)), **parts)
        return Kind(Of(forward, **parts, graph=sparse), rows(3), twin=twin)


def distances(x: Tensor, y: Tensor, p: float) -> Tensor:
    gaps = (x[:, None] - y).abs()
    return gaps.amax(-1) if p == torch.inf else (gaps**p).sum(-1) ** (1 / p)


for _p in (1.0, 2.0, 3.0, torch.inf):

    @kind(f"torch.cdist, p={_p:g}")
    def _(p: float = _p) -> Kind:
        def model(pairs: Callable[..., Tensor], **parts: Any) -> Of:
            return Of(lambda s, x: torch.tanh(pairs(s.one(x), s.points, p)), **parts)

        parts = {"one": nn.Linear(3, 3), "points": nn.Parameter(torch.randn(2, 3))}
        return Kind(model(torch.cdist, **parts), rows(3), twin=model(distances, **parts))


@kind("F.pdist")
def _() -> Kind:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.stack([F.pdist(points) for points in self.one(x).unflatten(1, (3, 2))])

    def plain(self: Any, x: Tensor) -> Tensor:
        a, b, c = self.one(x).unflatten(1, (3, 2)).unbind(1)
        pairs = torch.stack([a - b, a - c, b - c], 1)
        return pairs.square().sum(-1).sqrt()

    one = nn.Linear(3, 6)
    return Kind(Of(forward, one=one), rows(3), twin=Of(plain, one=one))


for _inplace in (False, True):

    @kind(f"nn.Hardsigmoid(inplace={_inplace})")
    def _(inplace: bool = _inplace) -> Kind:
        one, two = nn.Linear(3, 4), nn.Linear(4, 2)
        gate = Of(lambda s, h: ((h + 3) / 6).clamp(0, 1))
        twin = nn.Sequential(one, gate, two).double()
        return Kind(nn.Sequential(one, nn.Hardsigmoid(inplace), two), rows(3), twin=twin)


for _name, _part in (
    ("nn.Bilinear", lambda: Of(lambda s, x: s.part(x, x), part=nn.Bilinear(3, 3, 2))),
    ("nn.PReLU", lambda: nn.Sequential(nn.Linear(3, 2), nn.PReLU())),
    ("nn.GLU", lambda: nn.Sequential(nn.Linear(3, 4), nn.GLU())),
    ("GELU, SiLU, Mish, ELU, Softplus", lambda: nn.Sequential(
        nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3), nn.Mish(),
        nn.Linear(3, 3), nn.ELU(), nn.Linear(3, 2), nn.Softplus())),
    ("Hardswish, Hardtanh, LeakyReLU, SELU, CELU", lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Hardswish(), nn.Linear(4, 4), nn.Hardtanh(), nn.Linear(4, 3),
        nn.LeakyReLU(), nn.Linear(3, 3), nn.SELU(), nn.Linear(3, 2), nn.CELU())),
    ("nn.Softmax, nn.LogSoftmax, nn.Softmin", lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 3), nn.LogSoftmax(1), nn.Linear(3, 2), nn.Softmin(1))),
    ("nn.RReLU in evaluation mode", lambda: nn.Sequential(nn.Linear(3, 2), nn.RReLU())),
    ("nn.CosineSimilarity", lambda: Of(
        lambda s, x: s.cos(s.one(x), s.two(x))[:, None], one=nn.Linear(3, 3), two=nn.Linear(3, 3),
        cos=nn.CosineSimilarity())),
    ("F.grid_sample", lambda: Of(
        lambda s, x: F.grid_sample(s.image.expand(len(x), -1, -1, -1),
                                   torch.tanh(s.one(x))[:, None, None, :], align_corners=False).flatten(1),
        image=nn.Parameter(torch.randn(1, 2, 4, 4)), one=nn.Linear(3, 2))),
):  # fmt: skip
    kind(_name)(lambda part=_part: Kind(part().double(), rows(3)))
