"""Measures of first and second derivatives at the weights equal dense float64 matrices and closed forms."""

import pytest
import torch
from sharpness_cases import DOUBLE, classifier, data, tanh_net, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import landscape as ls
from landscape.estimators.blocks import block_spectra


def test_spectral_rows_equal_the_dense_matrix() -> None:
    problem = classifier()
    H = ls.Hessian(problem).dense()
    exact = ls.sharpness(problem, measures=["spectral", "gradient"], probes=problem.size)
    assert exact["λ_max"].value == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-6)
    assert exact["trace"].value == pytest.approx(float(H.trace()), rel=1e-9)
    assert exact["Frobenius norm"].value == pytest.approx(float(H.norm()), rel=1e-9)
    assert exact["trace"].standard_error == exact["Frobenius norm"].standard_error == 0
    assert exact["gradient norm"].value == pytest.approx(float(problem.gradient().norm()))
    rough = ls.sharpness(problem, measures="spectral", probes=20, seed=4)
    for name in ("trace", "Frobenius norm"):
        row = rough[name]
        assert 0 < abs(row.value - exact[name].value) < 4 * row.standard_error
    # Of a root the relative error is half that of the square.
    squares = block_spectra(
        ls.Hessian(problem),
        [torch.arange(problem.size)],
        probes=20,
        steps=1,
        shared_probes=0,
        seed=4,
    )
    relative = float(squares.squares_error[0, 0] / squares.squares[0, 0])
    assert row.standard_error / row.value == pytest.approx(relative / 2)


def test_fisher_rao_norm_of_a_homogeneous_network() -> None:
    """wᵀ∇ℓ = D ⟨∂ℓ/∂f, f⟩ for D layers without biases (Liang 2019), for any targets."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)
    ).double()  # fmt: skip
    x, y = data()
    found = ls.sharpness(ls.Problem(model, "cross_entropy", (x, y)), measures="fisher-rao")
    f = model(x).detach()
    p = f.softmax(1)
    of_data = (((p - torch.eye(3, dtype=DOUBLE)[y]) * f).sum(1)).square()
    every = torch.stack(
        [((p - torch.eye(3, dtype=DOUBLE)[k]) * f).sum(1).square() for k in range(3)], 1
    )
    own = found["Fisher–Rao norm, data's targets"]
    assert own.value == pytest.approx(9 * float(of_data.mean()), rel=1e-10)
    assert own.standard_error == pytest.approx(9 * float(of_data.std() / len(x) ** 0.5), rel=1e-9)
    expected, each = found["Fisher–Rao norm, model's targets"], 9 * (p * every).sum(1)
    assert expected.value == pytest.approx(float(each.mean()), rel=1e-10)
    # There are as many groups as samples.
    assert expected.standard_error == pytest.approx(float(each.std() / len(x) ** 0.5), rel=1e-9)


def test_fisher_rao_counts_samples_of_several_terms_as_the_empirical_fisher_matrix_does() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(7, 3, dtype=DOUBLE), torch.randn(7, 2, dtype=DOUBLE)
    problem = ls.Problem(model, "mse", (x, y))
    w = weights(problem)
    found = ls.sharpness(problem, measures="fisher-rao")["Fisher–Rao norm, data's targets"]
    assert found.value == pytest.approx(float(w @ (ls.EmpiricalFisher(problem) @ w)), rel=1e-10)


def flat_gradient(value: Tensor, model: nn.Module) -> Tensor:
    parts = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


def test_the_error_of_the_gradient_norm_is_that_of_its_component_along_itself() -> None:
    problem, (x, y) = classifier(), data()
    losses = cross_entropy(problem.model(x), y, reduction="none")
    each = torch.stack([flat_gradient(loss, problem.model) for loss in losses])
    along = each @ (each.mean(0) / each.mean(0).norm())
    row = ls.sharpness(problem, measures="gradient")["gradient norm"]
    assert row.value == pytest.approx(float(along.mean()), rel=1e-10)
    assert row.standard_error == pytest.approx(float(along.std() / len(x) ** 0.5), rel=1e-9)


def test_surrogate_gradient_norm_is_that_of_the_mean_prediction() -> None:
    model = tanh_net(outputs=1)
    x, _ = data()
    problem = ls.Problem(model, "mse", (x, torch.zeros(24, 1, dtype=DOUBLE)), batch_size=7)
    each = torch.stack([flat_gradient(h, model) for h in model(x)[:, 0]])
    row = ls.sharpness(problem, measures="surrogate", rho=0.2)["surrogate gradient norm"]
    assert row.value == pytest.approx(0.2 * float(each.mean(0).norm()), rel=1e-12)
    along = each @ (each.mean(0) / each.mean(0).norm())
    assert row.standard_error == pytest.approx(0.2 * float(along.std() / 24**0.5), rel=1e-9)


@pytest.mark.parametrize("log", [False, True])
def test_surrogate_of_a_classifier_is_its_mean_confidence(log: bool) -> None:
    """Over the targets that count; the same whether the model ends in logits or in their logarithms."""
    model, (x, y) = tanh_net(), data()
    y[3:6] = -100
    kept = model(x)[y != -100].softmax(1).max(1).values
    truth = 0.2 * float(flat_gradient(kept.mean(), model).norm())
    if log:
        model = nn.Sequential(*model, nn.LogSoftmax(1))  # type: ignore[misc]
    problem = ls.Problem(model, "nll" if log else "cross_entropy", (x, y), batch_size=7)
    found = ls.sharpness(problem, measures="surrogate", rho=0.2)
    assert found["surrogate gradient norm of the confidence"].value == pytest.approx(truth)


def test_surrogate_gradient_norm_needs_one_prediction() -> None:
    x, _ = data()
    problem = ls.Problem(tanh_net(), "mse", (x, torch.zeros(24, 3, dtype=DOUBLE)))
    left_out = ls.sharpness(problem, measures="surrogate").left_out
    assert "one number as output" in left_out["surrogate"]


def test_relative_flatness_is_the_double_sum_over_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 2, 3, dtype=DOUBLE), torch.randint(3, (12,))
    problem = ls.Problem(model, "cross_entropy", (x, y))
    H = ls.Hessian(problem).dense()
    truth, begin = {}, 0
    for name, parameter in model.named_parameters():
        W = parameter.detach()
        rows = W.flatten(1) if W.ndim > 1 else W[:, None]
        if name.endswith("weight"):
            width = rows.shape[1]
            truth[name] = sum(
                float(rows[s] @ rows[t])
                * float(H[begin + s * width :, begin + t * width :][:width, :width].trace())
                for s in range(len(rows))
                for t in range(len(rows))
            )
        begin += W.numel()
    found = ls.sharpness(problem, measures="relative-flatness", probes=400)
    assert [layer.name for layer in found.layers] == list(truth)
    for layer in found.layers:
        assert 0 < layer.standard_error < 0.3 * abs(truth[layer.name])
        assert abs(layer.value - truth[layer.name]) < 4 * layer.standard_error
    total = found["relative flatness"]
    assert total.value == pytest.approx(sum(layer.value for layer in found.layers))


def test_rows_of_grouped_convolutions_have_no_relative_flatness() -> None:
    """They do not share their inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 2, 2, groups=2), nn.Flatten(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 2, 3, dtype=DOUBLE), torch.randint(3, (6,))
    found = ls.sharpness(ls.Problem(model, "cross_entropy", (x, y)), measures="relative-flatness")
    assert [layer.name for layer in found.layers] == ["2.weight"]
