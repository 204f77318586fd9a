"""The Fisher information matrix of the model's own distribution."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.batches import unpack
from landscape.errors import InputError
from landscape.objective import Objective
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.gauss_newton import categorical, output_of
from landscape.operators.products.double_backward import jacobian_products
from landscape.operators.products.preparation import Form, Middle
from landscape.problem import Problem


class Fisher(CurvatureOperator):
    """F = (1/N) Σ E_y[∇log p(y|x) ∇log p(y|x)ᵀ], targets y drawn from the model, not from the data.

    Exact for `cross_entropy` and `nll_loss` (softmax), `mse_loss` (a Gaussian of variance ½, whose
    negative log-likelihood is the squared error) and `binary_cross_entropy_with_logits` (Bernoulli). A
    term counts by the mass of its target, Σ w_c q_c over the classes (the class weight, smoothed as the
    target is); ignored targets count as nothing. (Amari 1998, doi:10.1162/089976698300017746; Kunstner
    et al. 2019, arXiv:1905.12558.)

    Args:
        problem: the loss, which must be one of those likelihoods.
        samples: None (default) for the exact expectation, or the number of targets drawn for every
            term: the Monte-Carlo Fisher, unbiased, of lower rank.
        seed: of the drawn targets; the same targets are drawn for every product.
        settings: those of `CurvatureOperator`.

    Raises:
        InputError: the loss is no such likelihood.
    """

    def __init__(
        self, problem: Problem, *, samples: int | None = None, seed: int = 0, **settings: Any
    ) -> None:
        super().__init__(problem, **settings)
        objective = problem.supervised()
        options = objective.options
        known = objective.likelihood is not None
        if objective.likelihood in ("gaussian", "bernoulli"):
            known = options.get("weight") is None and options.get("pos_weight") is None
        if not known:
            raise InputError(
                f"the Fisher matrix needs a loss that is a likelihood of the model's output: "
                "cross_entropy, nll_loss, mse_loss or binary_cross_entropy_with_logits without "
                f"element weights, not {objective.name}; use EmpiricalFisher or GaussNewton"
            )
        if samples is not None and samples < 1:
            raise InputError(
                f"samples is {samples}: it must be at least 1, or None for the exact one"
            )
        self.samples, self.seed = samples, seed

    def form(self) -> Form:
        def middle(place: int, batch: Any, output: Tensor) -> Middle:
            # A stream of its own for every batch, so that each can be drawn again by itself.
            (seed,) = np.random.SeedSequence([self.seed, place]).generate_state(1, np.uint64)
            generator = torch.Generator(self.device).manual_seed(int(seed >> np.uint64(1)))
            objective, target = self.problem.supervised(), unpack(batch)[-1]
            return output_fisher(objective, output, target, self.samples, generator)

        return Form(output_of, jacobian_products, middle)


def output_fisher(
    objective: Objective,
    output: Tensor,
    target: Any,
    samples: int | None,
    generator: torch.Generator,
) -> Middle:
    """Product with the Fisher matrix of the terms in the model's output, exact or sampled."""
    likelihood = objective.likelihood
    if likelihood == "categorical" and samples is None:
        return categorical(objective, output, target)
    if likelihood in ("categorical", "log-categorical"):
        dim = objective.class_dim
        weights = objective.term_masses(output, target).unsqueeze(dim)
        p = output.softmax(dim) if likelihood == "categorical" else output.exp()
        if likelihood == "log-categorical" and bool(((p.sum(dim) - 1).abs() > 1e-2).any()):
            raise InputError(
                "nll_loss needs log-probabilities, but exp(output) does not sum to 1 over the classes: "
                "end the model in log_softmax, or use cross_entropy on logits"
            )
        if samples is None:  # the score in log p is −e_y
            return lambda t: weights * p * t
        # Drawn in float64, so that the matrix is the same one in every precision.
        classes = p.shape[dim]
        flat = p.double().movedim(dim, -1).reshape(-1, classes)
        drawn = torch.multinomial(flat, samples, replacement=True, generator=generator)
        drawn = drawn.T.reshape(samples, *p.movedim(dim, -1).shape[:-1])
        hot = F.one_hot(drawn, classes).to(p).movedim(-1, dim + 1 if dim >= 0 else dim)
        scores = hot - p if likelihood == "categorical" else hot
        along = dim + 1 if dim >= 0 else dim
        return lambda t: weights * (scores * (scores * t).sum(along, keepdim=True)).mean(0)
    if likelihood == "gaussian":
        if samples is None:
            return lambda t: 2 * t
        noise = torch.randn(
            samples, *output.shape, dtype=torch.float64, device=output.device, generator=generator
        ).to(output)
        variance = (
            (math.sqrt(2) * noise).square().mean(0)
        )  # score = 2 (output − y), y ~ N(output, ½)
        return lambda t: variance * t
    p = output.sigmoid()
    if samples is None:
        return lambda t: p * (1 - p) * t
    uniform = torch.rand(
        samples, *output.shape, dtype=torch.float64, device=output.device, generator=generator
    )
    spread = (p - (uniform < output.double().sigmoid()).to(p)).square().mean(0)
    return lambda t: spread * t
