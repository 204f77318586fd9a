"""Independent float64 truth: dense matrices of tiny problems, sharing no code with `landscape`.

The whole data set goes through the model in one batch, the loss is written by hand, and every matrix is
built entry by entry from derivatives of plain functions of one flat vector.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from cases import Call, Case
from torch import Tensor
from torch.autograd.functional import hessian as dense_hessian
from torch.autograd.functional import jacobian
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def selected_names(case: Case) -> list[str]:
    """The parameters a case measures: those it lists, or else all trainable ones."""
    if case.selected is not None:
        return case.selected
    return [name for name, p in case.model.named_parameters() if p.requires_grad]


def flat_weights(case: Case) -> Tensor:
    parameters = dict(case.model.named_parameters())
    return torch.cat([parameters[n].detach().reshape(-1) for n in selected_names(case)]).clone()


def caller(case: Case, vector: Tensor) -> Call:
    """The model, in evaluation mode, with a flat vector in place of its selected weights."""
    model = copy.deepcopy(case.model).eval()
    tensors = {name: value.detach().clone() for name, value in model.named_parameters()}
    position = 0
    for name in selected_names(case):
        count, shape = tensors[name].numel(), tensors[name].shape
        tensors[name] = vector[position : position + count].reshape(shape)
        position += count
    return Call(lambda *args, **kwargs: functional_call(model, tensors, args, kwargs), tensors)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention written out, so that torch can differentiate it twice."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def loss_function(case: Case) -> Callable[[Tensor], Tensor]:
    return lambda vector: case.whole_total(caller(case, vector)) / case.terms


def loss(case: Case) -> float:
    with plain_kernels():
        return loss_function(case)(flat_weights(case)).item()


def gradient(case: Case) -> Tensor:
    with plain_kernels():
        vector = flat_weights(case).requires_grad_()
        return torch.autograd.grad(loss_function(case)(vector), vector)[0]


def hessian(case: Case) -> Tensor:
    with plain_kernels():
        return dense_hessian(loss_function(case), flat_weights(case))


def outputs_and_jacobian(case: Case) -> tuple[Tensor, Tensor]:
    """The whole data's output, and its Jacobian (outputs, P)."""
    with plain_kernels():
        vector = flat_weights(case)
        output = case.output(caller(case, vector)).detach()
        slopes = jacobian(lambda v: case.output(caller(case, v)), vector)
    return output, slopes.reshape(output.numel(), vector.numel())


def gauss_newton(case: Case) -> Tensor:
    """Jᵀ (∇²ℓ) J / N from the dense Hessian of the loss in the output."""
    output, slopes = outputs_and_jacobian(case)
    inner = dense_hessian(case.output_total, output).reshape(output.numel(), output.numel())
    return slopes.T @ inner @ slopes / case.terms


def fisher(case: Case) -> Tensor:
    """(1/N) Σ_terms mass Σ_y p(y) ∇log p(y) ∇log p(y)ᵀ, over every value the target may take."""
    output, slopes = outputs_and_jacobian(case)
    matrix = torch.zeros(slopes.shape[1], slopes.shape[1], dtype=slopes.dtype)
    if case.likelihood == "gaussian":  # variance ½: score 2 (y − f), E score² = 4 · ½
        for row in slopes:
            matrix += 4 * 0.5 * torch.outer(row, row)
    elif case.likelihood == "bernoulli":
        for row, p in zip(slopes, output.reshape(-1).sigmoid(), strict=True):
            for y in (0.0, 1.0):
                score = (y - p) * row
                matrix += (p if y else 1 - p) * torch.outer(score, score)
    else:
        logits = case.logits(output)  # (terms, classes); log-probabilities pass unchanged
        order = case.logits(torch.arange(output.numel()).reshape(output.shape))
        for values, places, mass in zip(logits, order, case.masses, strict=True):
            probabilities = values.softmax(0)
            rows = slopes[places]
            for c, p in enumerate(probabilities):
                mean = probabilities @ rows if case.likelihood == "softmax" else 0.0
                score = rows[c] - mean
                matrix += mass * p * torch.outer(score, score)
    return matrix / case.terms


def sample_gradients(case: Case) -> Tensor:
    """gᵢ = (n/N) ∇Σ of the terms of sample i, one sample at a time, shape (n, P)."""
    rows = []
    with plain_kernels():
        for i in range(case.samples):
            vector = flat_weights(case).requires_grad_()
            total = case.sample_total(caller(case, vector), i)
            rows.append(torch.autograd.grad(total, vector)[0])
    return torch.stack(rows) * (case.samples / case.terms)


def empirical_fisher(case: Case) -> Tensor:
    matrix = sum(torch.outer(g, g) for g in sample_gradients(case))
    assert isinstance(matrix, Tensor)
    return matrix / case.samples


def gradient_covariance(case: Case) -> Tensor:
    gradients = sample_gradients(case)
    mean = gradients.mean(0)
    matrix = sum(torch.outer(g - mean, g - mean) for g in gradients)
    assert isinstance(matrix, Tensor)
    return matrix / case.samples
