"""The loss at other points is that of a model with those weights, however it is computed."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import landscape as ls
from landscape.estimators.loss_at import LossAt, NormStats
from landscape.estimators.pace import Pace, Way


def conv_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 4),
        nn.BatchNorm1d(4),
    ).to(dtype)
    for _ in range(3):
        model(2 * torch.randn(16, 1, 4, 4, dtype=dtype) + 1)
    return model.eval()


def images(count: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (count,), generator=generator)


def directions_of(problem: ls.Problem, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(problem.size, count, generator=generator, dtype=torch.float64)


def moved(model: nn.Module, offset: Tensor) -> nn.Module:
    """A copy with other weights, by torch's own functions."""
    other = copy.deepcopy(model)
    own = nn.utils.parameters_to_vector(other.parameters())
    nn.utils.vector_to_parameters(own + offset.to(own), other.parameters())
    return other


COORDINATES = torch.tensor([[0.0, 0.0], [0.1, -0.2], [0.3, 0.0], [-0.2, 0.1], [0.05, 0.4]]).double()


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("norm_stats", ["running", "batch", "reestimated"])
def test_loss_and_accuracy_are_those_of_a_model_with_these_weights(
    norm_stats: NormStats, at_once: int
) -> None:
    model, (x, y) = conv_net(), images()
    problem = ls.Problem(model, "cross_entropy", (x, y), batch_size=8)  # 8 + 8 + 7
    D = directions_of(problem)
    together = 1 if norm_stats == "reestimated" else at_once
    found = LossAt(problem, D, norm_stats=norm_stats, at_once=together)(COORDINATES)
    parts = list(zip(x.split(8), y.split(8), strict=True))
    for k, c in enumerate(COORDINATES):
        other = moved(model, D @ c)
        if norm_stats == "reestimated":
            with torch.no_grad():
                other = with_statistics(other, [part for part, _ in parts])
        outputs = []
        for part, _ in parts:
            run = copy.deepcopy(other)
            run.train(norm_stats == "batch")
            outputs.append(run(part).detach())
        output = torch.cat(outputs)
        torch.testing.assert_close(found.loss[k], F.cross_entropy(output, y), rtol=1e-12, atol=0)
        assert found.accuracy is not None
        assert float(found.accuracy[k]) == pytest.approx(
            float((output.argmax(1) == y).double().mean())
        )


def with_statistics(model: nn.Module, parts: list[Tensor]) -> nn.Module:
    """Running statistics: the mean of the batches', weighted by rows, of a pass in training mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    sums = {m: [0.0, 0.0] for m in norms}
    rows = sum(map(len, parts))
    for part in parts:
        run = copy.deepcopy(model).train()
        for own, copied in zip(
            norms, [m for m in run.modules() if type(m) in map(type, norms)], strict=True
        ):
            copied.momentum = 1.0
            sums[own].append(copied)  # type: ignore[arg-type]
        run(part)
        for own in norms:
            copied: Any = sums[own].pop()
            sums[own][0] += len(part) / rows * copied.running_mean
            sums[own][1] += len(part) / rows * copied.running_var
    for own in norms:
        own.running_mean, own.running_var = sums[own]  # type: ignore[assignment]
    return model


def test_reestimated_statistics_are_those_of_torch_on_equal_batches() -> None:
    model, (x, y) = conv_net(), images(24)
    problem = ls.Problem(model, "cross_entropy", (x, y), batch_size=8)
    D = directions_of(problem, 1)
    found = LossAt(problem, D, norm_stats="reestimated")(torch.tensor([[0.2]], dtype=torch.float64))
    other = moved(model, 0.2 * D[:, 0])
    update_bn(list(x.split(8)), other)
    expected = F.cross_entropy(other.eval()(x), y)
    torch.testing.assert_close(found.loss[0], expected.detach(), rtol=1e-12, atol=0)


def test_standard_errors_are_those_of_means_of_samples() -> None:
    model, (x, y) = conv_net(), images()
    problem = ls.Problem(model, "cross_entropy", (x, y), batch_size=8)
    D = directions_of(problem, 1)
    found = LossAt(problem, D)(torch.tensor([[0.0], [0.3]]))
    with torch.no_grad():
        here = F.cross_entropy(model(x), y, reduction="none")
        there = F.cross_entropy(moved(model, 0.3 * D[:, 0])(x), y, reduction="none")
    n = len(y)
    for k, losses, rises in ((0, here, here - here), (1, there, there - here)):
        assert float(found.standard_error[k]) == pytest.approx(float(losses.std()) / n**0.5)
        assert float(found.rise[k]) == pytest.approx(float(rises.mean()))
        assert float(found.rise_standard_error[k]) == pytest.approx(float(rises.std()) / n**0.5)
    assert float(found.rise_standard_error[1]) < float(found.standard_error[1]) * 5


def test_error_of_a_ratio_counts_the_terms_of_every_sample() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    x = torch.randn(40, 6, 3, dtype=torch.float64)
    y = torch.randint(4, (40, 6))
    y[torch.arange(6)[None] > torch.randint(1, 6, (40, 1))] = -100  # ragged sentences
    problem = ls.Problem(model, "token_cross_entropy", (x, y), batch_size=16)
    found = LossAt(problem, torch.ones(problem.size, 1))(torch.zeros(1, 1))
    rows = F.cross_entropy(model(x).movedim(-1, 1), y, reduction="none").sum(1).detach()
    terms = (y != -100).sum(1)
    mean = rows.sum() / terms.sum()
    jackknife = (rows.sum() - rows) / (terms.sum() - terms)  # leave one sentence out
    error = ((jackknife - jackknife.mean()).square().sum() * 39 / 40).sqrt()
    assert float(found.loss[0]) == pytest.approx(float(mean))
    assert float(found.standard_error[0]) == pytest.approx(float(error), rel=0.05)  # first order


def test_points_together_are_the_points_one_by_one_and_what_is_faster_is_chosen() -> None:
    model, data = conv_net(), images()
    problem = ls.Problem(model, "cross_entropy", data, batch_size=8)
    D = directions_of(problem)
    c = torch.randn(20, 2, generator=torch.Generator().manual_seed(3)).double() / 5
    alone, chosen = LossAt(problem, D, at_once=1), LossAt(problem, D)
    torch.testing.assert_close(alone(c), chosen(c), rtol=1e-10, atol=1e-12)
    assert chosen.pace.best.points in (1, 4, 16) and chosen.evaluations == 20


@pytest.mark.parametrize("way", [Way(1, 2), Way(1, 4), Way(3, 4), Way(7, 64)])
def test_batches_joined_give_the_losses_of_the_batches(way: Way) -> None:
    problem = ls.Problem(conv_net(), "cross_entropy", images(), batch_size=5)  # the last is smaller
    D = directions_of(problem)
    c = torch.randn(7, 2, generator=torch.Generator().manual_seed(3)).double() / 5
    joined = LossAt(problem, D)
    joined.pace = Pace(way)
    seen: list[int] = []
    hook = problem.model[0].register_forward_hook(lambda _, x, y: seen.append(len(x[0])))  # type: ignore[index]
    found = joined(c)
    hook.remove()
    torch.testing.assert_close(found, LossAt(problem, D, at_once=1)(c), rtol=1e-10, atol=1e-12)
    assert max(seen) == min(5 * way.batches, problem.samples)


def test_a_model_that_vmap_refuses_is_evaluated_one_by_one() -> None:
    class Awkward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight.clamp(max=float(self.weight.detach()) + 1)  # reads a value

    x = torch.ones(4, 1, dtype=torch.float64)
    problem = ls.Problem(Awkward(), "mse", (x, torch.zeros_like(x)))
    loss_at = LossAt(problem, torch.ones(1, 1))
    found = loss_at(torch.arange(9.0)[:, None])
    assert (
        found.loss.tolist() == [(2.0 + k) ** 2 for k in range(9)] and loss_at.pace.best.points == 1
    )
    assert found.accuracy is None


def test_closures_have_errors_over_batches() -> None:
    model = nn.Linear(2, 1).double()
    data = [torch.randn(5, 2, dtype=torch.float64) for _ in range(4)]
    problem = ls.Problem.from_closure(model, lambda m, x: (m(x).square().mean(), len(x)), data)
    found = LossAt(problem, torch.ones(3, 1))(torch.tensor([[0.5]]))
    other = moved(model, 0.5 * torch.ones(3))
    means = torch.stack([other(x).square().mean() for x in data]).detach()
    assert float(found.loss[0]) == pytest.approx(float(means.mean()))
    assert float(found.standard_error[0]) == pytest.approx(float(means.std()) / 2)


def test_nothing_of_the_model_is_changed() -> None:
    model, data = conv_net(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    problem = ls.Problem(model, "cross_entropy", data, batch_size=8)
    for norm_stats in ("running", "batch", "reestimated"):
        LossAt(problem, directions_of(problem), norm_stats=norm_stats)(COORDINATES)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_non_finite_points_are_given_as_they_are() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    problem = ls.Problem(model, "mse", (torch.ones(3, 1).double(), torch.zeros(3, 1).double()))
    found = LossAt(problem, torch.ones(1, 1))(torch.tensor([[1e200], [torch.nan]]))
    assert torch.isinf(found.loss[0]) and torch.isnan(found.loss[1])


def test_wrong_input_is_refused_in_a_sentence() -> None:
    model, data = conv_net(), images()
    problem = ls.Problem(model, "cross_entropy", data, batch_size=8)
    with pytest.raises(ls.InputError, match=r"directions have shape \(3, 1\): expected \(240, d\)"):
        LossAt(problem, torch.ones(3, 1))
    with pytest.raises(ls.InputError, match=r"coordinates have shape \(2,\): expected \(K, 2\)"):
        LossAt(problem, directions_of(problem))(torch.zeros(2))
    lonely = ls.Problem(model, "cross_entropy", images(9), batch_size=8)
    with pytest.raises(ls.InputError, match="cannot be estimated on these batches"):
        LossAt(lonely, directions_of(lonely), norm_stats="reestimated")(torch.zeros(1, 2))


def test_a_contrast_is_a_mixture_of_losses_with_its_error_sample_by_sample() -> None:
    model, (x, y) = conv_net(), images()
    problem = ls.Problem(model, "cross_entropy", (x, y), batch_size=8)
    D = directions_of(problem)
    weights = torch.tensor([1.0, -0.25, -0.75])
    found = LossAt(problem, D).contrast(COORDINATES[:3], weights)
    with torch.no_grad():
        losses = [
            F.cross_entropy(moved(model, D @ c)(x), y, reduction="none") for c in COORDINATES[:3]
        ]
    mixed = sum(w * part for w, part in zip(weights.double(), losses, strict=True))
    assert isinstance(mixed, Tensor)
    assert found.value == pytest.approx(float(mixed.mean()))
    assert found.standard_error == pytest.approx(float(mixed.std()) / len(y) ** 0.5)


def test_error_of_the_accuracy_is_that_of_a_mean_of_zeros_and_ones() -> None:
    model, (x, y) = conv_net(), images()
    problem = ls.Problem(model, "cross_entropy", (x, y), batch_size=8)
    found = LossAt(problem, directions_of(problem))(COORDINATES)
    assert found.accuracy_standard_error is not None
    for k, c in enumerate(COORDINATES):
        right = (moved(model, directions_of(problem) @ c)(x).argmax(1) == y).double()
        expected = float(right.std()) / len(y) ** 0.5
        assert float(found.accuracy_standard_error[k]) == pytest.approx(expected)


def test_buffers_move_with_the_coordinates() -> None:
    model, (x, y) = conv_net(), images()
    problem = ls.Problem(model, "cross_entropy", (x, y), batch_size=8)
    step = torch.rand(3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    D = directions_of(problem)
    # Asked for several at once, they are evaluated one by one: vmap moves parameters alone.
    loss_at = LossAt(problem, D, buffers={"1.running_var": step}, at_once=4)
    found = loss_at(COORDINATES)
    for k, c in enumerate(COORDINATES):
        other = moved(model, D @ c)
        other[1].running_var += step @ c  # type: ignore[index]
        torch.testing.assert_close(found.loss[k], F.cross_entropy(other(x), y), rtol=1e-12, atol=0)


def test_statistics_are_estimated_on_the_data_that_are_named() -> None:
    model, (x, y) = conv_net(), images(48)
    problem = ls.Problem(model, "cross_entropy", (x[:24], y[:24]), batch_size=8)
    unseen = problem.over([(x[24:], y[24:])])
    D = directions_of(problem, 1)
    loss_at = LossAt(unseen, D, norm_stats="reestimated", statistics_of=problem)
    found = loss_at(torch.tensor([[0.2]], dtype=torch.float64))
    other = moved(model, 0.2 * D[:, 0])
    update_bn(list(x[:24].split(8)), other)
    expected = F.cross_entropy(other.eval()(x[24:]), y[24:])
    torch.testing.assert_close(found.loss[0], expected.detach(), rtol=1e-12, atol=0)


def test_where_memory_runs_out_less_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = ls.Problem(conv_net(), "cross_entropy", images(), batch_size=5)
    D = directions_of(problem)
    c = torch.randn(9, 2, generator=torch.Generator().manual_seed(3)).double() / 5
    loss_at, asked = LossAt(problem, D, at_once=8), []
    whole = LossAt._together

    def short(self: LossAt, run: Any, c: Tensor, joined: int) -> Any:
        asked.append(len(c))
        if len(c) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, run, c, joined)

    monkeypatch.setattr(LossAt, "_together", short)
    found = loss_at(c)
    assert asked[:3] == [8, 4, 2] and loss_at.pace.best.points == 2 and len(found.loss) == 9
    monkeypatch.setattr(LossAt, "_one", lambda *_: short(loss_at, None, torch.zeros(3), 1))
    with pytest.raises(torch.OutOfMemoryError):
        LossAt(problem, D, at_once=1)(c)
