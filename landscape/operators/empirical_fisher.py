"""Second moments of the per-sample gradients: the empirical Fisher matrix and their covariance."""

import functools
from typing import Any

import torch
from torch import Tensor

from landscape.evaluation import Evaluation
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.products.double_backward import jacobian_products
from landscape.operators.products.preparation import Form
from landscape.problem import Problem


class EmpiricalFisher(CurvatureOperator):
    """E = (1/n) Σ gᵢgᵢᵀ over the n samples, gᵢ the gradient of sample i's own loss at its own target.

    A sample is a row of the loss's input; its loss is scaled so that the mean of the gᵢ is ∇L, also when
    samples hold different numbers of loss terms (ignored tokens, class weights): gᵢ = (n/N) ∇Σ of the
    terms of sample i, N the number of terms. (Kunstner et al. 2019, arXiv:1905.12558.) The per-sample
    gradients are multiplied, never stored. With batch statistics in batch normalisation the gradient of
    a sample is that of its loss within its batch.

    Args:
        problem: the loss, with model and loss apart.
        settings: those of `CurvatureOperator`.

    Raises:
        InputError: the problem was made from a closure.
    """

    def __init__(self, problem: Problem, **settings: Any) -> None:
        super().__init__(problem, **settings)
        problem.supervised()

    def form(self) -> Form:
        return Form(Evaluation.rows, jacobian_products, lambda place, batch, rows: lambda t: t)

    def divisor(self, terms: float, rows: float) -> float:
        return terms**2 / rows

    def _divisor(self) -> float:
        return self.divisor(self.problem.terms, self._samples)

    def on(self, problem: Problem) -> CurvatureOperator:
        other = super().on(problem)
        vars(other).pop("_samples", None)  # those of the other problem
        return other

    @functools.cached_property
    def _samples(self) -> int:
        """Rows of the loss's input over all batches."""
        with self.problem.evaluation() as run, torch.no_grad():
            return sum(run.rows(batch).numel() for batch in run.batches())


class GradientCovariance(EmpiricalFisher):
    """C = (1/n) Σ (gᵢ − ∇L)(gᵢ − ∇L)ᵀ: the empirical Fisher matrix, centred.

    The noise covariance of a gradient from one sample; that of a batch of b samples drawn with
    replacement is C/b.
    """

    def _multiply(self, block: Tensor) -> Tensor:
        mean = self.problem.gradient()
        return super()._multiply(block) - mean[:, None] * (mean @ block)
