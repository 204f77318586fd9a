"""Norms and inner products of float32 vectors are exact to float32, however long they are."""

import pytest
import torch

import landscape as ls
from landscape.estimators.sums import dots, norms


@pytest.mark.parametrize("columns", [None, 3])
def test_norms_and_inner_products_of_millions_of_entries(columns: int | None) -> None:
    source = torch.Generator().manual_seed(0)
    shape = (4_000_000,) if columns is None else (4_000_000, columns)
    x, y = (torch.randn(*shape, generator=source) for _ in range(2))
    assert (x.norm(dim=0) / x.double().norm(dim=0) - 1).abs().max() > 1e-5  # why this file is here
    torch.testing.assert_close(norms(x), x.double().norm(dim=0), rtol=1e-10, atol=0)
    truth = (x.double() * y.double()).sum(0)
    torch.testing.assert_close(dots(x, y), truth, rtol=0, atol=1e-3)


def test_eigenpairs_of_a_long_float32_diagonal_are_exact_to_float32() -> None:
    size = 3_000_000
    diagonal = torch.linspace(-1, 1, size)
    diagonal[7], diagonal[11] = 5.0, -3.0
    A = ls.as_operator(lambda v: (diagonal * v.T).T, shape=(size, size), dtype=torch.float32)
    pairs = ls.eigenpairs(A, 1, tolerance=1e-5)
    assert pairs.values.item() == pytest.approx(5.0, rel=1e-6)
    assert torch.linalg.vector_norm(pairs.vectors[:, 0], dtype=torch.float64) == pytest.approx(
        1, rel=1e-6
    )
    density = ls.spectral_density(A, probes=1, steps=12)
    assert density.ritz[0].nodes.max() == pytest.approx(5.0, rel=1e-4)
