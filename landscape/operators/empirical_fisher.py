"""Second moments of the per-sample gradients: the empirical Fisher matrix and their covariance."""

import torch
from torch import Tensor

from landscape.operators.base import CurvatureOperator
from landscape.operators.products.double_backward import sandwich_products
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

    Raises:
        InputError: the problem was made from a closure.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        problem.supervised()

    def _multiply(self, block: Tensor) -> Tensor:
        result, samples = torch.zeros_like(block), 0
        with self.problem.evaluation() as run:
            for batch in run.batches():
                rows = run.rows(batch)
                samples += rows.numel()
                result += sandwich_products(run, rows, block, lambda tangent: tangent)
        return result * (samples / self.problem.terms**2)


class GradientCovariance(EmpiricalFisher):
    """C = (1/n) Σ (gᵢ − ∇L)(gᵢ − ∇L)ᵀ: the empirical Fisher matrix, centred.

    The noise covariance of a gradient from one sample; that of a batch of b samples drawn with
    replacement is C/b.
    """

    def _multiply(self, block: Tensor) -> Tensor:
        mean = self.problem.gradient()
        return super()._multiply(block) - mean[:, None] * (mean @ block)
