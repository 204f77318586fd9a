"""The losses of torch by name, and by what their mean divides."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[..., Any]
Likelihood = Literal["categorical", "log-categorical", "gaussian", "bernoulli"]


def token_cross_entropy(output: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Cross-entropy of logits (batch, …, classes), classes last, against class indices (batch, …).

    Takes the options of `torch.nn.functional.cross_entropy`.
    """
    if target.is_floating_point():
        target = target.movedim(-1, 1)
    return F.cross_entropy(output.movedim(-1, 1), target, **options)


LOSS_NAMES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "token_cross_entropy": token_cross_entropy,
    "nll": F.nll_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "bce": F.binary_cross_entropy,
}

# What the mean of each loss of torch.nn divides by.
CLASSES = (F.cross_entropy, F.nll_loss, token_cross_entropy)
ELEMENTS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.soft_margin_loss,
    F.kl_div,
)
PLAIN = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
ROWS = (F.multi_margin_loss, F.multilabel_margin_loss, F.multilabel_soft_margin_loss)
_MODULES: dict[type[nn.Module], Loss] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.SoftMarginLoss: F.soft_margin_loss,
    nn.KLDivLoss: F.kl_div,
    nn.MultiMarginLoss: F.multi_margin_loss,
    nn.MultiLabelMarginLoss: F.multilabel_margin_loss,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
}
LIKELIHOODS: dict[Loss, Likelihood] = {
    F.cross_entropy: "categorical",
    token_cross_entropy: "categorical",
    F.nll_loss: "log-categorical",
    F.mse_loss: "gaussian",
    F.binary_cross_entropy_with_logits: "bernoulli",
}


def recognise(loss: Loss) -> tuple[Loss | None, dict[str, Any]]:
    """The functional form of a loss of torch and its options; (None, {}) for any other callable."""
    if isinstance(loss, functools.partial) and not loss.args:
        function, options = recognise(loss.func)
        options = {**options, **loss.keywords}
        # Torch's old arguments override `reduction`.
        if function is None or {"size_average", "reduce"} & set(options):
            return None, {}
        return function, options
    if isinstance(loss, nn.Module):
        function = _MODULES.get(type(loss))
        return (function, _module_options(loss)) if function else (None, {})
    known = {*CLASSES, *ELEMENTS, *ROWS}
    return (loss, {}) if loss in known else (None, {})


def _module_options(module: nn.Module) -> dict[str, Any]:
    """The keyword arguments with which a loss module calls its functional form."""
    names = [
        "weight",
        "pos_weight",
        "ignore_index",
        "reduction",
        "label_smoothing",
        "beta",
        "delta",
        "log_input",
        "full",
        "eps",
        "log_target",
        "p",
        "margin",
    ]
    found = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return {name: value for name, value in found.items() if value is not None}


def describe(loss: Loss) -> str:
    """The loss as a call: its name and the options that differ from the defaults."""
    function, options = recognise(loss)
    if function is None:
        return getattr(loss, "__name__", type(loss).__name__)
    defaults = inspect.signature(function).parameters
    listed = [
        f"{key}={'tensor' if isinstance(value, Tensor) else value}"
        for key, value in options.items()
        if key not in defaults or value is not defaults[key].default
    ]
    return f"{function.__name__}({', '.join(listed)})" if listed else function.__name__
