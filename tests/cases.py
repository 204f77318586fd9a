"""Tiny float64 problems, every one with its loss written a second time, by hand, for the whole data.

`CASES` maps a name to a function that builds a fresh `Case`. What a case says about the truth (`total`,
`terms`, `masses`) never calls `landscape`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import landscape as ls

DOUBLE = torch.float64


class Call(NamedTuple):
    """A model that is a plain function, and the tensors it runs with."""

    model: Callable[..., Any]
    tensors: dict[str, Tensor]


@dataclass
class Case:
    """A problem as a user would pose it, and the same problem as a formula."""

    model: nn.Module
    data: Any
    loss: Any  # None: `closure` stands in
    terms: float  # N, counted by hand
    whole_total: Callable[[Call], Tensor]  # sum of all loss terms, from one batch of all the data
    closure: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    selected: list[str] | None = None
    samples: int = 0
    output: Callable[[Call], Tensor] | None = None
    output_total: Callable[[Tensor], Tensor] | None = None
    sample_total: Callable[[Call, int], Tensor] | None = None
    likelihood: Literal["softmax", "log-softmax", "gaussian", "bernoulli"] | None = None
    masses: Tensor | None = None  # of every classification term
    logits: Callable[[Tensor], Tensor] | None = None  # output → (terms, classes)
    gauss_newton: bool = True

    def problem(self, **changes: Any) -> ls.Problem:
        options = self.options | changes
        if self.loss is None:
            return ls.Problem.from_closure(self.model, self.closure, self.data, **options)
        return ls.Problem(self.model, self.loss, self.data, **options)

    def operators(self) -> list[str]:
        names = ["Hessian"]
        if self.loss is not None:
            names += ["EmpiricalFisher", "GradientCovariance"]
            names += ["GaussNewton"] if self.gauss_newton and self.output_total else []
            names += ["Fisher"] if self.likelihood else []
        return names


CASES: dict[str, Callable[[], Case]] = {}


def _case(build: Callable[[], Case]) -> Callable[[], Case]:
    @functools.wraps(build)
    def seeded() -> Case:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            case = build()
        case.model = case.model.double()
        return case

    CASES[build.__name__] = seeded
    return seeded


def _cut(parts: Sequence[Tensor], lengths: Sequence[int]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(part.split(list(lengths)) for part in parts), strict=True))


def _supervised(
    model: nn.Module,
    loss: Any,
    inputs: Tensor | dict[str, Tensor],
    target: Tensor,
    lengths: Sequence[int],
    total: Callable[[Tensor, Tensor], Tensor],
    terms: float,
    *,
    apply: Callable[[Call, Any], Tensor] | None = None,
    separable: bool = True,
    penalty: Callable[[dict[str, Tensor]], Tensor] | None = None,
    **more: Any,
) -> Case:
    """A case whose total loss is a sum over rows, `total(output, target)`, plus `penalty` per row."""
    keyed = isinstance(inputs, dict)
    parts = [*(inputs.values() if keyed else [inputs]), target]
    batches: list[Any] = _cut(parts, lengths)
    if keyed:
        batches = [dict(zip([*inputs, "labels"], batch, strict=True)) for batch in batches]

    def rows(i: int | None) -> tuple[Any, Tensor]:
        cut = slice(None) if i is None else slice(i, i + 1)
        kept = {k: v[cut] for k, v in inputs.items()} if keyed else inputs[cut]
        return kept, target[cut]

    def run(call: Call, i: int | None) -> Tensor:
        some, _ = rows(i)
        if apply is not None:
            return apply(call, some)
        return call.model(**some) if keyed else call.model(some)

    def added(call: Call) -> Tensor | float:
        return penalty(call.tensors) if penalty else 0.0

    def sample_total(call: Call, i: int) -> Tensor:
        output = run(call, i) if separable else run(call, None)[i : i + 1]
        return total(output, target[i : i + 1]) + added(call)

    return Case(
        model,
        batches,
        loss,
        terms,
        lambda call: total(run(call, None), target) + len(target) * added(call),
        samples=len(target),
        output=lambda call: run(call, None),
        output_total=lambda output: total(output, target),
        sample_total=sample_total,
        **more,
    )


def _mlp(inputs: int = 3, hidden: int = 4, outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


def _classes_first(logits: Tensor) -> Tensor:
    """(B, C, …) → (terms, C), terms in the order of the flattened targets."""
    return logits.movedim(1, -1).reshape(-1, logits.shape[1])


def _classes_last(logits: Tensor) -> Tensor:
    return logits.reshape(-1, logits.shape[-1])


def _negative_log_softmax(logits: Tensor) -> Tensor:
    return logits.exp().sum(-1, keepdim=True).log() - logits


def _smoothed(
    arrange: Callable[[Tensor], Tensor],
    weight: Tensor | None = None,
    smoothing: float = 0.0,
    ignore: int = -100,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy by its definition: (1 − ε) w_y nll_y + (ε/C) Σ_c w_c nll_c, summed over terms."""

    def total(output: Tensor, target: Tensor) -> Tensor:
        losses = _negative_log_softmax(arrange(output))
        w = torch.ones(losses.shape[-1], dtype=DOUBLE) if weight is None else weight
        result = losses.sum() * 0
        for row, y in zip(losses, target.reshape(-1).tolist(), strict=True):
            if y != ignore:
                result = result + (1 - smoothing) * w[y] * row[y]
                result = result + smoothing * (w * row).mean()
        return result

    return total


def _masses(
    target: Tensor, weight: Tensor, smoothing: float = 0.0, ignore: int = -100
) -> tuple[Tensor, float]:
    """Mass of every term, and the number N that torch's mean divides by."""
    masses, number = [], 0.0
    for y in target.reshape(-1).tolist():
        kept = y != ignore
        masses.append((1 - smoothing) * weight[y] + smoothing * weight.mean() if kept else 0.0)
        number += float(weight[y]) if kept else 0.0
    return torch.tensor(masses, dtype=DOUBLE), number


def _plain_softmax(terms: int = 7) -> dict[str, Any]:
    """What the exact Fisher matrix of an unweighted softmax likelihood needs."""
    ones = torch.ones(terms, dtype=DOUBLE)
    return {"likelihood": "softmax", "masses": ones, "logits": _classes_first}


def _classification(loss: Any, **more: Any) -> Case:
    x, y = _x(7, 3), torch.randint(0, 4, (7,))
    total = _smoothed(_classes_first)
    return _supervised(_mlp(), loss, x, y, (3, 3, 1), total, 7, **(_plain_softmax() | more))


@_case
def mlp_cross_entropy_on_ragged_batches() -> Case:
    return _classification("cross_entropy")


for _reduction in ("mean", "sum", "none"):
    for _form, _loss in (
        ("module", nn.CrossEntropyLoss(reduction=_reduction)),
        ("partial", functools.partial(F.cross_entropy, reduction=_reduction)),
    ):

        def _build(loss: Any = _loss) -> Case:
            return _classification(loss)

        _build.__name__ = f"cross_entropy_{_form}_reduction_{_reduction}"
        _case(_build)


@_case
def cross_entropy_functional() -> Case:
    return _classification(F.cross_entropy)


@_case
def cross_entropy_nested_partial() -> Case:
    inner = functools.partial(F.cross_entropy, reduction="sum")
    return _classification(functools.partial(inner, label_smoothing=0.0))


class ClassesFirst(nn.Module):
    """Logits of every token, classes in dimension 1 as torch's cross-entropy wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).movedim(-1, 1)


@_case
def ignored_tokens_with_one_batch_entirely_ignored() -> Case:
    y = torch.randint(0, 4, (7, 3))
    y[0, 1:] = -100
    y[3:5] = -100
    masses, number = _masses(y, torch.ones(4, dtype=DOUBLE))
    return _supervised(
        ClassesFirst(), "cross_entropy", _x(7, 3, 3), y, (3, 2, 2), _smoothed(_classes_first), number,
        likelihood="softmax", masses=masses, logits=_classes_first,
    )  # fmt: skip


def _weighted(weight: Tensor | None, smoothing: float, ignore: int, tokens: bool = False) -> Case:
    y = torch.randint(0, 4, (7, 3) if tokens else (7,))
    y.view(-1)[0], y.view(-1)[1] = ignore if ignore >= 0 else 1, 3
    used = torch.ones(4, dtype=DOUBLE) if weight is None else weight
    masses, number = _masses(y, used, smoothing, ignore)
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, ignore_index=ignore)
    return _supervised(
        ClassesFirst() if tokens else _mlp(), loss, _x(7, 3, 3) if tokens else _x(7, 3), y, (3, 3, 1),
        _smoothed(_classes_first, weight, smoothing, ignore), number,
        likelihood="softmax", masses=masses, logits=_classes_first,
    )  # fmt: skip


WEIGHT = torch.tensor([0.5, 2.0, 1.5, 0.25], dtype=DOUBLE)


@_case
def class_weights() -> Case:
    return _weighted(WEIGHT, 0.0, -100)


@_case
def label_smoothing() -> Case:
    return _weighted(None, 0.2, -100)


@_case
def class_weights_label_smoothing_and_ignored_tokens() -> Case:
    return _weighted(WEIGHT, 0.2, 2, tokens=True)


def _probabilities(weight: Tensor | None, smoothing: float) -> Case:
    q = _x(7, 4).softmax(1)
    w = torch.ones(4, dtype=DOUBLE) if weight is None else weight

    def total(output: Tensor, target: Tensor) -> Tensor:
        soft = (1 - smoothing) * target + smoothing / 4
        return (soft * w * _negative_log_softmax(output)).sum()

    masses = (((1 - smoothing) * q + smoothing / 4) * w).sum(1)
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
    return _supervised(
        _mlp(), loss, _x(7, 3), q, (3, 3, 1), total, 7,
        likelihood="softmax", masses=masses, logits=_classes_first,
    )  # fmt: skip


@_case
def class_probabilities() -> Case:
    return _probabilities(None, 0.0)


@_case
def class_probabilities_with_weights_and_smoothing() -> Case:
    return _probabilities(WEIGHT, 0.1)


def _regression(
    loss: Any, total: Callable[[Tensor, Tensor], Tensor], outputs: int = 1, **more: Any
) -> Case:
    x, y = _x(7, 3), _x(7, outputs)
    terms = more.pop("terms", 7 * outputs)
    model = more.pop("model", None) or _mlp(outputs=outputs)
    return _supervised(model, loss, x, y, (4, 2, 1), total, terms, **more)


def _squares(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum()


@_case
def mse_of_one_column() -> Case:
    return _regression("mse", _squares, likelihood="gaussian")


@_case
def mse_of_three_columns_summed() -> Case:
    return _regression(nn.MSELoss(reduction="sum"), _squares, 3, likelihood="gaussian")


@_case
def huber() -> Case:
    def total(output: Tensor, target: Tensor) -> Tensor:
        gap = (output - target).abs()
        return torch.where(gap < 0.7, gap**2 / 2, 0.7 * (gap - 0.35)).sum()

    return _regression(nn.HuberLoss(delta=0.7), total, 2)


@_case
def poisson() -> Case:
    return _regression(F.poisson_nll_loss, lambda o, t: (o.exp() - t * o).sum(), 2)


def _bernoulli_total(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    return -(target * p.log() + (1 - target) * (1 - p).log()).sum()


@_case
def bce_with_logits() -> Case:
    case = _regression("bce_with_logits", _bernoulli_total, 2, likelihood="bernoulli")
    return case


@_case
def bce_with_positive_weights() -> Case:
    weight = torch.tensor([3.0, 0.5], dtype=DOUBLE)

    def total(output: Tensor, target: Tensor) -> Tensor:
        p = output.sigmoid()
        return -(weight * target * p.log() + (1 - target) * (1 - p).log()).sum()

    return _regression(nn.BCEWithLogitsLoss(pos_weight=weight), total, 2)


@_case
def kl_divergence_batchmean() -> Case:
    x, q = _x(7, 3), _x(7, 4).softmax(1)
    model = nn.Sequential(*_mlp(), nn.LogSoftmax(1))

    def total(output: Tensor, target: Tensor) -> Tensor:
        return (target * (target.log() - output)).sum()

    loss = nn.KLDivLoss(reduction="batchmean")
    return _supervised(model, loss, x, q, (4, 2, 1), total, 7)


@_case
def multilabel_soft_margin() -> Case:
    x, y = _x(7, 3), torch.randint(0, 2, (7, 4)).to(DOUBLE)

    def total(output: Tensor, target: Tensor) -> Tensor:
        return _bernoulli_total(output, target) / 4  # a row is one term: the mean over its labels

    loss = nn.MultiLabelSoftMarginLoss()
    return _supervised(_mlp(), loss, x, y, (4, 2, 1), total, 7)


@_case
def nll_with_weights_and_an_ignored_class() -> Case:
    y = torch.tensor([0, 3, 1, 2, 2, 1, 0])
    masses, number = _masses(y, WEIGHT, ignore=3)

    def total(output: Tensor, target: Tensor) -> Tensor:
        pairs = zip(output, target.tolist(), strict=True)
        kept = [-WEIGHT[c] * row[c] for row, c in pairs if c != 3]
        return torch.stack(kept).sum() if kept else output.sum() * 0

    model = nn.Sequential(*_mlp(), nn.LogSoftmax(1))
    loss = nn.NLLLoss(weight=WEIGHT, ignore_index=3)
    return _supervised(
        model, loss, _x(7, 3), y, (3, 3, 1), total, number, gauss_newton=False,
        likelihood="log-softmax", masses=masses, logits=_classes_first,
    )  # fmt: skip


class TiedLanguageModel(nn.Module):
    """Embedding, one mixing layer, and a head that is the embedding again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        causal = h.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        return self.head(torch.tanh(self.mix(causal)))


@_case
def tied_language_model_per_token() -> Case:
    tokens, y = torch.randint(0, 5, (5, 4)), torch.randint(0, 5, (5, 4))
    y[0, :2], y[4, :3] = -100, -100
    masses, number = _masses(y, torch.ones(5, dtype=DOUBLE))
    return _supervised(
        TiedLanguageModel(), "token_cross_entropy", tokens, y, (2, 2, 1), _smoothed(_classes_last),
        number, likelihood="softmax", masses=masses, logits=_classes_last,
    )  # fmt: skip


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.1, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


@_case
def conv_with_running_statistics() -> Case:
    x, y = _x(7, 1, 4, 4), torch.randint(0, 3, (7,))
    total = _smoothed(_classes_first)
    return _supervised(ConvNet(), "cross_entropy", x, y, (3, 2, 2), total, 7, **_plain_softmax())


@_case
def conv_with_batch_statistics() -> Case:
    case = conv_with_running_statistics()
    x, lengths = torch.cat([batch[0] for batch in case.data]), (3, 2, 2)

    def by_hand(call: Call) -> Tensor:
        """Every batch normalised with its own mean and (biased) variance."""
        t, outputs = call.tensors, []
        for rows in x.split(lengths):
            h = F.conv2d(rows, t["conv.weight"], t["conv.bias"])
            mean = h.mean((0, 2, 3), keepdim=True)
            h = (h - mean) / ((h - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
            h = h * t["norm.weight"].view(1, 2, 1, 1) + t["norm.bias"].view(1, 2, 1, 1)
            outputs.append(torch.tanh(h).mean((2, 3)) @ t["head.weight"].T + t["head.bias"])
        return torch.cat(outputs)

    total, y = _smoothed(_classes_first), torch.cat([batch[1] for batch in case.data])
    case.options = {"norm_stats": "batch"}
    case.output = by_hand
    case.whole_total = lambda call: total(by_hand(call), y)
    case.sample_total = lambda call, i: total(by_hand(call)[i : i + 1], y[i : i + 1])
    return case


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(mixed.squeeze(1))


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(3, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


def _tokens(model: nn.Module, width: int) -> Case:
    x, y = _x(5, 3, width), torch.randint(0, 3, (5, 3))
    y[0, 0] = -100
    masses, number = _masses(y, torch.ones(3, dtype=DOUBLE))
    return _supervised(
        model, "token_cross_entropy", x, y, (2, 2, 1), _smoothed(_classes_last), number,
        likelihood="softmax", masses=masses, logits=_classes_last,
    )  # fmt: skip


@_case
def fused_attention() -> Case:
    return _tokens(Attention(), 4)


@_case
def transformer_encoder_layer() -> Case:
    return _tokens(EncoderLayer(), 4)


@_case
def lstm() -> Case:
    return _tokens(Recurrent(nn.LSTM), 3)


@_case
def gru() -> Case:
    return _tokens(Recurrent(nn.GRU), 3)


class Twice(nn.Module):
    """One square layer used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.third = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


@_case
def tied_weights_and_a_shared_module() -> Case:
    return _regression("mse", _squares, 3, model=Twice(), likelihood="gaussian")


@_case
def frozen_parameters() -> Case:
    case = _classification("cross_entropy", selected=["2.weight"])
    case.model[0].requires_grad_(False)
    case.model[2].bias.requires_grad_(False)
    return case


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.randn(3))
        self.body = _mlp(outputs=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@_case
def unused_parameter() -> Case:
    return _regression("mse", _squares, model=WithUnused(), likelihood="gaussian")


@_case
def parameters_chosen_by_glob() -> Case:
    return _classification(
        "cross_entropy", selected=["0.bias", "2.weight"], options={"params": ["2.w*", "0.bias"]}
    )


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = _mlp()

    def forward(self, *, first: Tensor, scale: Tensor) -> Tensor:
        return self.body(first * scale)


@_case
def dict_batches_for_a_keyword_model() -> Case:
    inputs, y = {"scale": _x(7, 1), "first": _x(7, 3)}, torch.randint(0, 4, (7,))
    total = _smoothed(_classes_first)
    return _supervised(
        ByKeyword(), "cross_entropy", inputs, y, (3, 3, 1), total, 7, **_plain_softmax()
    )


def _quartic(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 4).sum()


@_case
def custom_mean_loss() -> Case:
    return _regression(lambda o, t: ((o - t) ** 4).mean(), _quartic, 2, terms=14)


@_case
def custom_sum_loss() -> Case:
    # Terms of a loss that the user sums are its rows.
    return _regression(lambda o, t: ((o - t) ** 4).sum(), _quartic, 2, terms=7)


@_case
def custom_loss_per_element() -> Case:
    return _regression(lambda o, t: (o - t) ** 4, _quartic, 2, terms=14)


@_case
def custom_loss_per_row() -> Case:
    return _regression(lambda o, t: ((o - t) ** 4).sum(1), _quartic, 2, terms=7)


def _kept(output: Tensor, target: Tensor) -> int:
    return int((target != -1).sum())


@_case
def custom_loss_with_terms() -> Case:
    y = torch.randint(0, 4, (7, 3))
    y[0], y[3:5], y[6, 0] = -1, -1, -1
    number = float((y != -1).sum())

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, ignore_index=-1)

    total = _smoothed(_classes_first, ignore=-1)
    return _supervised(
        ClassesFirst(), loss, _x(7, 3, 3), y, (3, 2, 2), total, number, options={"terms": _kept}
    )


@_case
def custom_loss_on_a_tuple_output() -> Case:
    case = _regression(
        lambda o, t: ((o[0] - t) ** 4).mean(), _quartic, 2, model=TupleOutput(2),
        apply=lambda call, x: call.model(x)[0], gauss_newton=False,
    )  # fmt: skip
    return case


@_case
def loss_with_a_penalty_on_the_parameters() -> Case:
    model = _mlp(outputs=2)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        penalty = sum((p**4).sum() for p in model.parameters())
        return ((output - target) ** 2).mean() + 0.3 * penalty

    def penalty(tensors: dict[str, Tensor]) -> Tensor:
        # A row's mean over its two columns stands for two terms.
        return 2 * 0.3 * sum((p**4).sum() for p in tensors.values())

    return _regression(loss, _squares, 2, model=model, penalty=penalty)


class TupleOutput(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.body = _mlp(outputs=outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), x


class DictOutput(TupleOutput):
    def forward(self, x: Tensor) -> Any:
        return {"hidden": x, "logits": self.body(x)}


def _wrapped(model: nn.Module, pick: Any) -> Case:
    x, y = _x(7, 3), torch.randint(0, 4, (7,))
    total = _smoothed(_classes_first)
    return _supervised(
        model, "cross_entropy", x, y, (3, 3, 1), total, 7, apply=lambda call, x: call.model(x)[pick],
        likelihood="softmax", masses=torch.ones(7, dtype=DOUBLE), logits=_classes_first,
    )  # fmt: skip


@_case
def tuple_output() -> Case:
    return _wrapped(TupleOutput(), 0)


@_case
def dict_output_with_logits() -> Case:
    return _wrapped(DictOutput(), "logits")


@_case
def weight_norm_parametrisation() -> Case:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2))

    def by_hand(call: Call, x: Tensor) -> Tensor:
        t, name = call.tensors, "0.parametrizations.weight.original"
        direction = t[f"{name}1"]
        weight = t[f"{name}0"] * direction / direction.square().sum(1, keepdim=True).sqrt()
        return torch.tanh(x @ weight.T + t["0.bias"]) @ t["2.weight"].T + t["2.bias"]

    return _regression("mse", _squares, 2, model=model, likelihood="gaussian", apply=by_hand)


@_case
def spectral_norm_parametrisation() -> Case:
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)
    )
    return _regression("mse", _squares, 2, model=model, likelihood="gaussian")


class Bounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3, max_norm=1.0)
        self.head = nn.Linear(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


@_case
def embedding_with_max_norm() -> Case:
    """torch rescales long rows in place, outside the graph: the derivative is taken at the short row."""

    def by_hand(call: Call, tokens: Tensor) -> Tensor:
        rows = call.tensors["embed.weight"][tokens]
        length = rows.detach().norm(dim=-1, keepdim=True)
        # Value short, slope one.
        rows = rows + (rows.detach() / (length + 1e-7) - rows.detach()) * (length > 1)
        return torch.tanh(rows) @ call.tensors["head.weight"].T + call.tensors["head.bias"]

    tokens, y = torch.randint(0, 5, (7,)), torch.randint(0, 4, (7,))
    return _supervised(
        Bounded(), "cross_entropy", tokens, y, (3, 3, 1), _smoothed(_classes_first), 7, apply=by_hand,
        likelihood="softmax", masses=torch.ones(7, dtype=DOUBLE), logits=_classes_first,
    )  # fmt: skip


def _second_slope(model: Callable[..., Tensor], points: Tensor) -> Tensor:
    x = points.clone().requires_grad_()
    with torch.enable_grad():
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return bend + u


@_case
def physics_informed_closure() -> Case:
    """The residual of u'' + u = 0: two derivatives of the network inside the loss."""
    points = _x(7, 1)

    def closure(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return _second_slope(model, batch).square().mean(), len(batch)

    return Case(
        _mlp(1, 4, 1), list(points.split((3, 3, 1))), None, 7,
        lambda call: (_second_slope(call.model, points) ** 2).sum(), closure=closure,
    )  # fmt: skip


@_case
def contrastive_closure() -> Case:
    """Pairs within a batch: each batch is its own term structure, so the truth goes batch by batch."""
    batches = [_x(3, 2, 3), _x(2, 2, 3)]

    def closure(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        a, b = model(batch[:, 0]), model(batch[:, 1])
        return F.cross_entropy(a @ b.T, torch.arange(len(batch))), len(batch)

    def total(call: Call) -> Tensor:
        result = torch.zeros((), dtype=DOUBLE)
        for batch in batches:
            logits = call.model(batch[:, 0]) @ call.model(batch[:, 1]).T
            result = result + _negative_log_softmax(logits).diagonal().sum()
        return result

    return Case(_mlp(3, 4, 3), batches, None, 5, total, closure=closure)
