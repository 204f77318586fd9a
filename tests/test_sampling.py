"""The error that comes from the choice of samples: right about populations that are known."""

import math
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spectra import dense_hessian, train
from torch import Tensor, nn

import landscape as ls
from landscape.analyses.growth import _enough, spectrum_on_enough_data
from landscape.analyses.sample_groups import nested, random_groups
from landscape.loading.subset import take

POPULATION = 2000


@cache
def population() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained softmax regression, P = 15 in float64, and 2,000 samples of three overlapping classes."""
    source = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(3, 4, generator=source)
    target = torch.randint(3, (POPULATION,), generator=source)
    inputs = (centres[target] + torch.randn(POPULATION, 4, generator=source)).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
    train(model, F.cross_entropy, inputs, target, 60)
    return model, inputs, target


@cache
def closed_form() -> tuple[Tensor, Tensor, Tensor]:
    """For every sample its gradient (n, 15), and p (n, 3) and x̃ = (x, 1), which make its Hessian.

    The gradient is (p − y) ⊗ x̃, the Hessian (diag p − ppᵀ) ⊗ x̃x̃ᵀ.
    """
    model, inputs, target = population()
    p = model(inputs).softmax(1).detach()
    x = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    gradients = torch.einsum("nc,ni->nci", p - F.one_hot(target, 3), x)
    return ordered(gradients.reshape(-1, 15).T).T, p, x


def ordered(rows: Tensor) -> Tensor:
    """From the order of (class, x̃) to that of the parameters: weight (3, 4), then bias (3)."""
    places = torch.arange(15).reshape(3, 5)
    return rows[torch.cat([places[:, :4].flatten(), places[:, 4]])]


def dense(rows: Tensor | slice = slice(None)) -> Tensor:
    _, p, x = closed_form()
    p, x = p[rows], x[rows]
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    matrix = torch.einsum("ncd,ni,nj->cidj", inner, x, x).reshape(15, 15) / len(p)
    return ordered(ordered(matrix).T)


def leading(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


def problem(rows: Tensor, **options) -> ls.Problem:  # type: ignore[no-untyped-def]
    model, inputs, target = population()
    return ls.Problem(model, "cross_entropy", (inputs[rows], target[rows]), **options)


def test_closed_form_is_the_hessian_of_the_population() -> None:
    model, inputs, target = population()
    assert torch.allclose(dense(), dense_hessian(model, F.cross_entropy, inputs, target))
    assert torch.allclose(closed_form()[0].mean(0), problem(torch.arange(POPULATION)).gradient())


# --- closed forms --------------------------------------------------------------------------------


def test_groups_of_one_sample_give_the_textbook_standard_errors() -> None:
    """Squared error of one weight: H is the mean of 2 x², the loss of (w x − y)²."""
    x = torch.tensor([[1.0], [2.0], [3.0], [5.0], [7.0]]).double()
    y = torch.tensor([[1.0], [0.0], [2.0], [-1.0], [3.0]]).double()
    model = nn.Linear(1, 1, bias=False).double()
    A = ls.Hessian(ls.Problem(model, "mse", (x, y), batch_size=2))
    found = ls.sampling_error(A, torch.ones(1, 1))
    slope = model.weight.item()
    curvature, residual = 2 * x[:, 0] ** 2, slope * x[:, 0] - y[:, 0]
    gradient = 2 * residual * x[:, 0]

    def expected(values: Tensor) -> float:
        return float(values.std() / len(values) ** 0.5)

    assert found.groups == found.samples == 5 and found.at_random
    assert found.eigenvalues[0].value == pytest.approx(float(curvature.mean()))
    assert found.eigenvalues[0].standard_error == pytest.approx(expected(curvature))
    assert found.trace.standard_error == pytest.approx(expected(curvature))
    assert found.loss.value == pytest.approx(float((residual**2).mean()))
    assert found.loss.standard_error == pytest.approx(expected(residual**2))
    assert found.gradient_norm.value == pytest.approx(abs(float(gradient.mean())))
    assert found.gradient_norm.standard_error == pytest.approx(expected(gradient))
    assert found.gradient_noise == pytest.approx(expected(gradient))
    assert found.top_bias == pytest.approx(0, abs=1e-12)  # there is no other direction
    assert found.quantile == pytest.approx(2.776, abs=1e-3)  # Student's t, 4 degrees of freedom


def test_ragged_numbers_of_terms_make_a_ratio_estimator() -> None:
    """Ignored targets: λ = Σ a_i / Σ t_i, its variance that of the linearised a_i − λ t_i."""
    generator = torch.Generator().manual_seed(3)
    n, tokens = 60, 6
    model = nn.Linear(3, 4).double()
    inputs = torch.randn(n, tokens, 3, generator=generator).double()
    target = torch.randint(4, (n, tokens), generator=generator)
    target[torch.rand(n, tokens, generator=generator) < 0.5] = -100
    about = ls.Problem(model, "token_cross_entropy", (inputs, target))
    A = ls.Hessian(about)
    pairs = ls.eigenpairs(A, 1, tolerance=1e-10)
    found = ls.sampling_error(A, pairs.vectors, groups=n)
    v = pairs.vectors[:, 0]
    curvatures, terms = [], []
    for i in range(n):
        terms.append(int((target[i] >= 0).sum()))
        if not terms[-1]:
            curvatures.append(0.0)
            continue
        one = ls.Problem(model, "token_cross_entropy", (inputs[i : i + 1], target[i : i + 1]))
        curvatures.append(float(v @ (ls.Hessian(one) @ v)) * terms[-1])
    a, t = np.array(curvatures), np.array(terms, float)
    linear = (a - a.sum() / t.sum() * t) / t.sum()
    assert t.std() > 0.2 * t.mean()
    assert found.eigenvalues[0].value == pytest.approx(float(pairs.values[0]), rel=1e-9)
    assert found.eigenvalues[0].standard_error == pytest.approx(
        math.sqrt(n / (n - 1) * (linear**2).sum()),
        rel=0.03,  # a jackknife is the linearisation up to 1/n
    )


@pytest.mark.parametrize(
    "operator", ["Hessian", "GaussNewton", "Fisher", "EmpiricalFisher", "GradientCovariance"]
)
def test_every_operator_is_resampled_like_its_dense_matrix(operator: str) -> None:
    """The jackknife by hand: the operator built anew without each group in turn."""
    model, inputs, target = population()
    target = target[:48].clone()
    target[::5] = -100  # ignored, so that groups differ in their number of terms
    A = getattr(ls, operator)(
        ls.Problem(model, "cross_entropy", (inputs[:48], target), batch_size=20)
    )
    values, vectors = leading(A.dense(), 2)
    found = ls.sampling_error(A, vectors, groups=6, seed=5)
    assert [e.value for e in found.eigenvalues] == pytest.approx(values.tolist(), rel=1e-9)
    dealt = random_groups(A.problem, 6, seed=5)
    assert dealt is not None and dealt.batch_count == 6
    parts = list(dealt.batches())
    without = []
    for left_out in range(6):
        kept = [part for i, part in enumerate(parts) if i != left_out]
        other = getattr(ls, operator)(ls.Problem(model, "cross_entropy", kept))
        without.append((vectors * (other @ vectors)).sum(0))
    table = torch.stack(without)
    expected = (5 / 6 * ((table - table.mean(0)) ** 2).sum(0)).sqrt()
    assert [e.standard_error for e in found.eigenvalues] == pytest.approx(
        expected.tolist(), rel=1e-6
    )


def test_bias_of_the_top_is_second_order_perturbation_theory() -> None:
    """With one group per sample: Σ_j E(v_jᵀδH v₁)² / (λ₁ − λ_j), here over all vectors, then over two."""
    rows, n = torch.arange(150), 150
    values, vectors = leading(dense(rows), 15)
    each = torch.stack([vectors.T @ (dense(rows[i : i + 1]) @ vectors[:, 0]) for i in rows])
    moved = ((each - each.mean(0)) ** 2).sum(0) / (n * (n - 1))
    A = ls.Hessian(problem(rows))
    found = ls.sampling_error(A, vectors[:, :14], groups=n).top_bias
    exact = float((moved[1:] / (values[0] - values[1:])).sum())
    assert found == pytest.approx(exact, rel=1e-6)
    # All that is not known as one direction, with the mean of the eigenvalues left (from probes).
    rest = float(values[2:].mean())
    coarse = float(moved[1] / (values[0] - values[1]) + moved[2:].sum() / (values[0] - rest))
    found = ls.sampling_error(A, vectors[:, :2], groups=n, probes=60).top_bias
    assert found == pytest.approx(coarse, rel=0.02)
    assert math.isnan(ls.sampling_error(A, vectors[:, [1, 0]], groups=n).top_bias)


def test_data_error_of_the_trace_leaves_the_error_of_the_probes_out() -> None:
    """x of length r on a sphere: tr 2xxᵀ = 2r² hardly varies, zᵀ(2xxᵀ)z varies much."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(400, 8, generator=generator, dtype=torch.float64))
    squares = 1 + 0.3 * torch.randn(400, generator=generator, dtype=torch.float64).clamp(-3, 3)
    x = directions * squares[:, None].abs().sqrt()
    A = ls.Hessian(
        ls.Problem(nn.Linear(8, 1, bias=False).double(), "mse", (x, torch.zeros(400, 1)))
    )
    vectors = leading(A.dense(), 1)[1]
    found = [ls.sampling_error(A, vectors, probes=20, groups=200, seed=s).trace for s in range(6)]
    truth = float((2 * squares.abs()).std()) / 20
    root = np.sqrt(np.mean([trace.standard_error**2 for trace in found]))
    # With the error of 20 probes in it, it would be 1.26 times as large.
    assert root == pytest.approx(truth, rel=0.1)


def test_products_by_batch_add_up_to_the_product() -> None:
    A = ls.Hessian(problem(torch.arange(50), batch_size=16))
    V = torch.randn(A.shape[0], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = A.products
    parts = A.by_batch(V, lambda place, images: (place, images))
    assert [place for place, _ in parts] == [0, 1, 2, 3]
    assert A.products == before + 3
    assert torch.allclose(sum(images for _, images in parts) / 50, A @ V)


# --- groups --------------------------------------------------------------------------------------


def test_samples_are_dealt_once_each_at_random_and_evenly() -> None:
    about = problem(torch.arange(150), batch_size=40)
    dealt, again, other = (random_groups(about, 8, seed=seed) for seed in (1, 1, 2))
    assert dealt is not None and again is not None and other is not None
    sizes = [len(target) for _, target in dealt.batches()]
    assert sorted(set(sizes)) == [18, 19]
    together = torch.cat([inputs for inputs, _ in dealt.batches()])
    mine = population()[1][:150]
    assert torch.equal(together[together[:, 0].argsort()], mine[mine[:, 0].argsort()])
    assert dealt.data_fingerprint == again.data_fingerprint != other.data_fingerprint
    assert dealt.loss() == pytest.approx(about.loss(), rel=1e-12)


def test_proportional_groups_share_every_class() -> None:
    _, _, target = population()
    rows = target[:300].argsort()  # sorted by class
    about = problem(rows, batch_size=50)
    dealt = random_groups(about, 10, proportional=True)
    assert dealt is not None
    shares = np.array([np.bincount(t, minlength=3) for _, t in dealt.batches()])
    assert (shares.max(0) - shares.min(0) <= 1).all()


def test_order_of_the_data_does_not_matter_but_batches_as_they_come_would() -> None:
    """Sorted by class the batches differ far more than samples do; dealt at random they do not."""
    _, _, target = population()
    shuffled = problem(torch.arange(320), batch_size=20)
    by_class = problem(target[:320].argsort(), batch_size=20)
    errors = []
    for about in (shuffled, by_class):
        A = ls.Hessian(about)
        vectors = leading(A.dense(), 1)[1]
        errors.append(ls.sampling_error(A, vectors).eigenvalues[0].standard_error)
    assert errors[1] == pytest.approx(errors[0], rel=0.35)  # each known to 1/√62 = 13 %
    model, *_ = population()
    closure = ls.Problem.from_closure(  # of which nothing is known but its batches
        model, lambda net, b: (F.cross_entropy(net(b[0]), b[1]), len(b[1])), by_class.data
    )
    A = ls.Hessian(closure)
    found = ls.sampling_error(A, leading(A.dense(), 1)[1])
    assert not found.at_random and found.groups == 16
    assert found.eigenvalues[0].standard_error > 2 * errors[0]


def test_samples_that_belong_together_are_not_dealt() -> None:
    x, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    normalised = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    by_batch = ls.Problem(normalised, "cross_entropy", (x, y), batch_size=16, norm_stats="batch")
    assert random_groups(by_batch, 8) is None
    running = ls.Problem(normalised, "cross_entropy", (x, y), batch_size=16)
    assert random_groups(running, 8) is not None

    def contrast(output: Tensor, target: Tensor) -> Tensor:  # a loss of pairs, not of samples
        return (output @ output.T).logsumexp(1).mean()

    paired = ls.Problem(nn.Linear(4, 3), contrast, (x, y), batch_size=16, terms=lambda o, t: len(t))
    assert random_groups(paired, 8) is None
    ragged = [(torch.randn(4, n, 4), torch.zeros(4, n, 3)) for n in (2, 3, 5)]  # padded alike
    assert random_groups(ls.Problem(nn.Linear(4, 3), "mse", ragged), 4) is None


def test_one_batch_that_cannot_be_cut_has_no_data_error() -> None:
    model, inputs, target = population()
    about = ls.Problem.from_closure(
        model, lambda net, b: (F.cross_entropy(net(b[0]), b[1]), len(b[1])), [(inputs, target)]
    )
    A = ls.Hessian(about)
    found = ls.sampling_error(A, leading(A.dense(), 1)[1])
    assert found.groups == 1 and math.isnan(found.eigenvalues[0].standard_error)
    assert math.isnan(found.trace.standard_error) and math.isnan(found.top_bias)
    assert found.eigenvalues[0].value > 0


# --- a known population --------------------------------------------------------------------------


def test_largest_eigenvalues_of_parts_lie_above_the_whole_as_the_bias_says() -> None:
    """λ₁ is convex in the matrix: 300 parts of 25 samples, and the estimate from each part."""
    truth = float(leading(dense(), 1)[0][0])
    generator = np.random.default_rng(0)
    tops, biases = [], []
    for seed in range(300):
        rows = torch.from_numpy(generator.choice(POPULATION, 25, replace=False))
        values, vectors = leading(dense(rows), 3)
        tops.append(float(values[0]))
        if seed < 15:
            found = ls.sampling_error(ls.Hessian(problem(rows)), vectors, groups=25, probes=2)
            biases.append(found.top_bias)
    above = np.mean(tops) - truth
    error = np.std(tops) / 300**0.5
    assert above > 4 * error
    # Estimated on tops that stand out by chance: of the right size, not exact.
    assert 0.5 < np.nanmean(biases) / above < 2


@pytest.mark.parametrize("proportional", [False, True])
def test_gradient_noise_and_standard_errors_are_those_of_repetition(proportional: bool) -> None:
    """With the vector of the population: the spread over 400 subsets against 12 estimates."""
    target = population()[2]
    v, n = leading(dense(), 1)[1], 100
    each, p, x = closed_form()
    tangents = x @ torch.cat([v[:12, 0].reshape(3, 4), v[12:]], dim=1).T
    curvature = (p * tangents**2).sum(1) - (p * tangents).sum(1) ** 2
    curvatures, gradients, errors, noises = [], [], [], []
    for seed in range(400):
        rows = torch.from_numpy(np.random.default_rng(seed).choice(POPULATION, n, replace=False))
        if proportional:
            rows, _ = take((torch.arange(POPULATION), target), n, seed)
        gradients.append(each[rows].mean(0))
        curvatures.append(float(curvature[rows].mean()))
        if seed < 12:
            A = ls.Hessian(problem(rows))
            found = ls.sampling_error(
                A, v, population=POPULATION, proportional=proportional, probes=2
            )
            errors.append(found.correction * found.eigenvalues[0].standard_error)
            noises.append(found.correction * found.gradient_noise)
    # 12 estimates from 31 degrees of freedom: 1/√(2·31·12) = 4 %, the spread of 400: 3.5 %; and that of
    # the subsets themselves.
    assert np.mean(errors) == pytest.approx(np.std(curvatures), rel=0.2)
    squared = np.mean([float(g @ g) for g in gradients]) - float(each.mean(0) @ each.mean(0))
    assert np.mean(np.square(noises)) == pytest.approx(squared, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("proportional", [False, True])
def test_intervals_cover_the_population(proportional: bool) -> None:
    """±2 standard errors around λ₁, trace and loss of 200 subsets of 200 of 2,000 samples."""
    model, inputs, target = population()
    matrix = dense()
    truth = np.array([float(leading(matrix, 1)[0][0]), float(matrix.trace())])
    truth = np.append(truth, F.cross_entropy(model(inputs), target).item())
    inside = []
    for seed in range(200):
        rows = torch.from_numpy(np.random.default_rng(seed).choice(POPULATION, 200, replace=False))
        if proportional:
            rows, _ = take((torch.arange(POPULATION), target), 200, seed)
        part, sample = problem(rows), dense(rows)
        values, vectors = leading(sample, 3)
        found = ls.sampling_error(
            ls.Hessian(part),
            vectors,
            groups=20,
            probes=4,
            population=POPULATION,
            proportional=proportional,
            seed=seed,
        )
        mine = [float(values[0]), float(sample.trace()), found.loss.value]
        numbers = (found.eigenvalues[0], found.trace, found.loss)
        errors = [found.correction * number.standard_error for number in numbers]
        inside.append(abs(np.array(mine) - truth) <= 2 * np.array(errors))
    coverage = np.mean(inside, axis=0)
    # 95 % with a standard error of 1.5 %; subsets share samples, 200 of 2,000.
    assert (coverage >= 0.90).all() and (coverage <= 0.99).all(), coverage


def test_population_correction_is_that_of_draws_without_replacement() -> None:
    A = ls.Hessian(problem(torch.arange(100)))
    vectors = leading(A.dense(), 1)[1]
    assert ls.sampling_error(A, vectors).correction == 1
    assert ls.sampling_error(A, vectors, population=400).correction == pytest.approx(0.75**0.5)
    assert ls.sampling_error(A, vectors, population=100).correction == 0


# --- enough data ---------------------------------------------------------------------------------


def test_nested_subsets_hold_each_other_and_keep_proportions() -> None:
    about = problem(torch.arange(POPULATION))
    subsets = nested(about, 100, seed=3)
    assert list(subsets) == [100, 200, 400, 800, 1600, POPULATION]
    shares = np.bincount(population()[2], minlength=3) / POPULATION
    before: set[float] = set()
    for size, data in subsets.items():
        part = about.over(data)
        assert part.samples == size
        rows = {float(x) for inputs, _ in part.batches() for x in inputs[:, 0]}
        assert len(rows) == size and before <= rows
        before = rows
        counts = np.bincount(torch.cat([t for _, t in part.batches()]), minlength=3)
        assert (abs(counts - shares * size) <= 2).all()


def test_data_grow_until_the_errors_are_small_enough() -> None:
    about = problem(torch.arange(POPULATION))
    matrix = dense()
    measured = partial(spectrum_on_enough_data, about, first=50, steps=8, top=2)
    loose, tight = measured(data_tolerance=0.3), measured(data_tolerance=0.1)
    sizes = [found.sampling.samples for found in (loose, tight)]  # type: ignore[union-attr]
    assert sizes[0] < sizes[1] < POPULATION
    for found, tolerance in ((loose, 0.3), (tight, 0.1)):
        sampling = found.sampling
        assert sampling is not None and sampling.reached and sampling.tolerance == tolerance
        assert sampling.population == POPULATION
        top = sampling.eigenvalues[0]
        assert sampling.correction * top.standard_error <= tolerance * top.value
        assert sampling.correction * sampling.trace.standard_error <= tolerance * found.trace.value
        assert found.trace.standard_error <= tolerance * found.trace.value
        off = abs(found.eigenvalues[0].value / float(leading(matrix, 1)[0][0]) - 1)
        assert off <= 3 * tolerance
        assert not found.failures
    assert tight.cost.products > loose.cost.products
    again = measured(data_tolerance=0.3)
    assert again.eigenvalues == loose.eigenvalues


def test_enough_follows_from_the_error_of_draws_without_replacement() -> None:
    """Standard errors are as √(1/n − 1/N): from 100 to 400 of 1,000 they fall by √6."""
    sizes = [100, 200, 400, 800, 1000]
    assert _enough(100, sizes, 0.9) == 100
    assert _enough(100, sizes, 6**0.5 - 1e-6) == 400
    assert _enough(100, sizes, 6**0.5 + 1e-6) == 800
    assert _enough(200, sizes, 1.01) == 400
    assert _enough(200, sizes, math.inf) == 1000


def test_all_data_are_enough_and_have_no_error_about_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("landscape.analyses.growth.MOST_PROBES", 20)
    asked: list[bool] = []

    def spy(part: ls.Problem, **options) -> ls.Spectrum:  # type: ignore[no-untyped-def]
        asked.append(options["proportional"])
        assert options["proportional"] == (part.samples < 120)
        return ls.spectrum(part, **options)

    monkeypatch.setattr("landscape.analyses.growth.spectrum", spy)
    about = problem(torch.arange(120))
    found = spectrum_on_enough_data(about, data_tolerance=1e-3, first=50, steps=8, top=1)
    assert found.sampling is not None
    assert found.sampling.samples == 120 and found.sampling.correction == 0
    assert not found.sampling.reached  # the probes do not come that far
    assert asked[0] and not asked[-1]
    assert "over 20 probes" in found.failures[-1]
    with pytest.raises(ls.InputError, match="data_tolerance is 0: it must be positive"):
        spectrum_on_enough_data(about, data_tolerance=0)


# --- results and refusals ------------------------------------------------------------------------


def test_spectrum_holds_the_sampling_error_and_files_keep_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    about = problem(torch.arange(100))
    found = ls.spectrum(about, steps=10, top=2, probes=3)
    assert found.sampling is not None
    assert [e.value for e in found.sampling.eigenvalues] == pytest.approx(
        [*(pair.value for pair in found.eigenvalues), found.smallest_eigenvalue.value], abs=1e-9
    )
    found.save(tmp_path / "s.json")
    assert ls.Spectrum.load(tmp_path / "s.json").sampling == found.sampling
    saved = found.to_dict()
    del saved["sampling"]  # as in a file from before
    assert ls.Spectrum.from_dict(saved).sampling is None
    assert ls.spectrum(about, steps=10, top=2, probes=3, groups=0).sampling is None
    assert ls.spectrum(ls.as_operator(torch.eye(5))).sampling is None


def test_one_seed_means_one_answer_and_nothing_leaks() -> None:
    A = ls.Hessian(problem(torch.arange(90)))
    vectors, before = leading(A.dense(), 1)[1], torch.get_rng_state()
    first, again, other = (ls.sampling_error(A, vectors, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(before, torch.get_rng_state())
    assert first.eigenvalues == again.eigenvalues != other.eigenvalues
    assert first.trace == again.trace
    assert first.cost.products == 1 + 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"groups": 1}, "probes=10 and groups=1 must both be at least 2"),
        ({"probes": 1}, "probes=1 and groups=32 must both be at least 2"),
        ({"population": 10}, "population is 10: it must be at least the 40 samples measured"),
        (
            {"vectors": torch.ones(15)},
            r"the vectors have shape \(15,\): pass eigenvectors \(15, k\)",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(
    options: dict[str, object], sentence: str
) -> None:
    given = {"vectors": torch.ones(15, 1), **options}
    with pytest.raises(ls.InputError, match=sentence):
        ls.sampling_error(ls.Hessian(problem(torch.arange(40))), **given)  # type: ignore[arg-type]
    with pytest.raises(ls.InputError, match="has no samples"):
        ls.sampling_error(ls.as_operator(torch.eye(3)), torch.ones(3, 1))  # type: ignore[arg-type]
