"""Every curvature operator against dense float64 truth, and the algebra of operators."""

import functools
import math
import re

import numpy as np
import oracles
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from cases import CASES, Case
from torch import Tensor, nn

import landscape as ls

DOUBLE = torch.float64
# Two float64 programs for one sum of some hundred terms differ by about 1e-14; 1e-10 leaves room
# for the conditioning of the networks and none for a wrong formula.
RELATIVE = 1e-10


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def case_named(name: str) -> Case:
    return CASES[name]()


@functools.cache
def truth(name: str, operator: str) -> Tensor:
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", operator).lower()
    return getattr(oracles, snake)(case_named(name))


def assert_close(found: Tensor, expected: Tensor, relative: float = RELATIVE) -> None:
    assert found.shape == expected.shape
    gap, size = (found - expected).norm().item(), expected.norm().item()
    assert gap <= relative * size, f"relative error {gap / size:.2e}"


def columns(operator: ls.Operator) -> Tensor:
    """Products with the unit vectors, not symmetrised."""
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


def random_symmetric(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(size, size, generator=generator, dtype=DOUBLE)
    return matrix + matrix.T


PAIRS = [(name, operator) for name, build in CASES.items() for operator in build().operators()]


@pytest.mark.parametrize(("name", "operator"), PAIRS)
def test_products_with_unit_vectors_equal_the_dense_matrix(name, operator):
    problem = case_named(name).problem()
    found = columns(getattr(ls, operator)(problem))
    expected = truth(name, operator)
    assert_close(found, expected)
    assert_close(found, found.T.contiguous())


@pytest.mark.parametrize("operator", ["Hessian", "GaussNewton", "Fisher", "EmpiricalFisher"])
def test_a_block_product_is_the_products_of_its_columns(operator):
    A = getattr(ls, operator)(case_named("lstm").problem())
    block = torch.randn(A.shape[0], 3, dtype=DOUBLE)
    product = A @ block
    for k in range(3):
        assert_close(product[:, k], A @ block[:, k], 1e-13)  # the same sums in the same order
    assert (A @ block[:, 0]).shape == (A.shape[0],)
    assert (A @ block[:, :0]).shape == (A.shape[0], 0)


@pytest.mark.parametrize("operator", ["Hessian", "GaussNewton", "EmpiricalFisher"])
def test_a_product_in_float32_is_the_float64_product_rounded(operator):
    problem = case_named("lstm").problem(dtype=torch.float32)
    found = columns(getattr(ls, operator)(problem))
    assert found.dtype == torch.float32
    assert_close(found.double(), truth("lstm", operator), 1e-4)  # 1e3 roundings of 1e-7


@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0, 1.0], [0.3, 0.7, 1.1, 0.9]])
def test_a_float32_operator_turned_into_float64_is_the_float64_operator(weight):
    case = case_named("mlp_cross_entropy_on_ragged_batches")
    loss = nn.CrossEntropyLoss(weight=torch.tensor(weight, dtype=DOUBLE))
    exact = ls.Problem(case.model, loss, case.data)
    rounded = ls.Problem(case.model, loss, case.data, dtype=torch.float32)
    for name in ("Hessian", "Fisher", "EmpiricalFisher"):
        operator = getattr(ls, name)
        found = columns(operator(rounded).astype(DOUBLE))
        assert_close(found, columns(operator(exact)))
    assert operator(rounded).astype(DOUBLE).products == 0


@pytest.mark.parametrize(
    "name", [n for n, o in PAIRS if o == "Fisher" and CASES[n]().likelihood != "log-softmax"]
)
def test_the_exact_fisher_is_gauss_newton(name):
    problem = case_named(name).problem()
    assert_close(columns(ls.Fisher(problem)), columns(ls.GaussNewton(problem)))


SAMPLED = [
    "ignored_tokens_with_one_batch_entirely_ignored",
    "class_weights",
    "mse_of_one_column",
    "bce_with_logits",
    "nll_with_weights_and_an_ignored_class",
    "tied_language_model_per_token",
]


@pytest.mark.parametrize("name", SAMPLED)
def test_the_sampled_fisher_is_unbiased_and_converges_as_one_over_the_square_root(name):
    problem, exact = case_named(name).problem(), truth(name, "Fisher")

    def mean_error(samples: int, seeds: int) -> float:
        vectors = torch.eye(exact.shape[0], dtype=DOUBLE)
        total = sum(ls.Fisher(problem, samples=samples, seed=s) @ vectors for s in range(seeds))
        return float((total / seeds - exact).norm() / exact.norm())

    few, many = mean_error(4, 1), mean_error(4096, 1)
    # The error of n draws is c/√n; from 4 to 4,096 it falls 32 times, and a factor 4 is left for luck.
    assert many < few / 8
    assert many < 0.1
    assert mean_error(4, 64) < few / 2  # 64 independent seeds: 8 times smaller


@pytest.mark.parametrize("name", SAMPLED)
def test_the_sampled_fisher_draws_the_same_targets_for_every_product(name):
    problem = case_named(name).problem()
    A = ls.Fisher(problem, samples=2, seed=3)
    first = columns(A)
    assert torch.equal(first, columns(A))
    assert torch.equal(first, columns(ls.Fisher(problem, samples=2, seed=3)))
    assert not torch.equal(first, columns(ls.Fisher(problem, samples=2, seed=4)))
    assert_close(A @ torch.ones(A.shape[0], dtype=DOUBLE), first.sum(1))


@pytest.mark.parametrize("name", [n for n, o in PAIRS if o == "EmpiricalFisher"])
def test_fisher_and_covariance_differ_by_the_outer_product_of_the_gradient(name):
    problem = case_named(name).problem()
    gap = columns(ls.EmpiricalFisher(problem)) - columns(ls.GradientCovariance(problem))
    gradient = oracles.sample_gradients(case_named(name)).mean(0)
    assert_close(problem.gradient(), gradient)
    expected = torch.outer(gradient, gradient)
    assert float((gap - expected).norm()) <= RELATIVE * float(truth(name, "EmpiricalFisher").norm())


def test_gauss_newton_works_when_a_batch_has_no_terms():
    problem = case_named("custom_loss_with_terms").problem()
    assert_close(columns(ls.GaussNewton(problem)), truth("custom_loss_with_terms", "GaussNewton"))


# Algebra


@pytest.fixture
def curvature():
    problem = case_named("mlp_cross_entropy_on_ragged_batches").problem()
    return ls.Hessian(problem), ls.GaussNewton(problem)


def test_sums_scales_differences_and_shifts_are_those_of_matrices(curvature):
    H, G = curvature
    name = "mlp_cross_entropy_on_ragged_batches"
    h, g = truth(name, "Hessian"), truth(name, "GaussNewton")
    identity = torch.eye(len(h), dtype=DOUBLE)
    for found, expected in [
        (H + G, h + g),
        (H - G, h - g),
        (2 * H, 2 * h),
        (H * 0.5, h / 2),
        (-H, -h),
        (H + 0.1 * ls.Identity(H), h + 0.1 * identity),
        (2 * (H - 3 * G) - ls.Identity(G), 2 * h - 6 * g - identity),
    ]:
        assert_close(columns(found), expected)
        assert (found.shape, found.dtype, found.device) == (H.shape, H.dtype, H.device)


def test_restriction_and_named_blocks_are_principal_submatrices(curvature):
    H, _ = curvature
    h = truth("mlp_cross_entropy_on_ragged_batches", "Hessian")
    positions = torch.tensor([5, 0, 30])
    assert_close(columns(H.restrict(positions)), h[positions][:, positions])
    # 0.weight (12), 0.bias (4), 2.weight (16), 2.bias (4)
    assert_close(columns(H.block("2.*")), h[16:, 16:])
    kept = [*range(12, 16), *range(32, 36)]
    assert_close(columns(H.block("*.bias")), h[kept][:, kept])
    assert_close(columns(H.block(["2.weight", "0.weight"])), columns(H.block("*.weight")))
    assert_close(columns((H + H).restrict(positions)), 2 * h[positions][:, positions])


def test_dense_is_the_matrix_whatever_its_block_width(curvature):
    H, _ = curvature
    h = truth("mlp_cross_entropy_on_ragged_batches", "Hessian")
    for width in (1, 7, 64):
        assert_close(H.dense(block=width), h)


def test_dense_refuses_matrices_that_do_not_fit():
    big = ls.as_operator(lambda v: 2 * v, shape=(20_001, 20_001))
    with pytest.raises(
        ls.InputError, match=r"dense matrix of order 20,001 .*limit 20,000.*restrict"
    ):
        big.dense()


def test_scipy_finds_the_eigenvalues_of_the_dense_matrix(curvature):
    H, _ = curvature
    exact = torch.linalg.eigvalsh(truth("mlp_cross_entropy_on_ragged_batches", "Hessian"))
    linear = H.to_scipy()
    assert (linear.shape, linear.dtype) == (H.shape, np.float64)
    top = scipy.sparse.linalg.eigsh(linear, k=3, which="LA", return_eigenvectors=False)
    assert_close(torch.as_tensor(np.sort(top)), exact[-3:])
    v = np.arange(2.0 * H.shape[0])[::2]  # a strided view
    expected = truth("mlp_cross_entropy_on_ragged_batches", "Hessian").numpy() @ v
    for product in (linear @ v, linear.rmatvec(v), (linear @ np.stack([v, v], 1))[:, 1]):
        np.testing.assert_allclose(product, expected, rtol=1e-10, atol=1e-12)


def test_products_and_seconds_are_counted_by_column(curvature):
    H, _ = curvature
    H @ torch.ones(H.shape[0], dtype=DOUBLE)
    H @ torch.ones(H.shape[0], 3, dtype=DOUBLE)
    assert H.products == 4
    assert H.seconds > 0


def test_a_product_changes_neither_the_vector_nor_shares_its_memory():
    for function in (lambda v: v, lambda v: v.mul_(2)):
        A, v = ls.as_operator(function, shape=(5, 5)), torch.ones(5, dtype=DOUBLE)
        product = A @ v
        assert torch.equal(v, torch.ones(5, dtype=DOUBLE))
        product += 1
        assert torch.equal(v, torch.ones(5, dtype=DOUBLE))


# Any symmetric matrix as an operator

MATRIX = random_symmetric(5)
FORMS = {
    "tensor": lambda: ls.as_operator(MATRIX),
    "float32 tensor": lambda: ls.as_operator(MATRIX.float().double()),
    "numpy": lambda: ls.as_operator(MATRIX.numpy()),
    "numpy view": lambda: ls.as_operator(np.flip(np.flip(MATRIX.numpy()).copy())),
    "csr matrix": lambda: ls.as_operator(scipy.sparse.csr_matrix(MATRIX.numpy())),
    "coo array": lambda: ls.as_operator(scipy.sparse.coo_array(MATRIX.numpy())),
    "linear operator": lambda: ls.as_operator(scipy.sparse.linalg.aslinearoperator(MATRIX.numpy())),
    "to_scipy": lambda: ls.as_operator(ls.as_operator(MATRIX).to_scipy()),
    "operator": lambda: ls.as_operator(ls.as_operator(MATRIX)),
    "block function": lambda: ls.as_operator(lambda v: MATRIX @ v, shape=(5, 5)),
    "function of blocks only": lambda: ls.as_operator(
        lambda v: torch.einsum("ij,jk->ik", MATRIX, v), shape=(5, 5)
    ),
    "function of vectors only": lambda: ls.as_operator(
        lambda v: torch.einsum("ij,j->i", MATRIX, v), shape=(5, 5)
    ),
    "numpy function": lambda: ls.as_operator(lambda v: MATRIX.numpy() @ v.numpy(), shape=(5, 5)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_matrix_gives_its_products(form):
    tolerance = 1e-6 if form == "float32 tensor" else 1e-14
    assert_close(columns(FORMS[form]()), MATRIX, tolerance)
    assert_close(FORMS[form]() @ MATRIX[0], MATRIX @ MATRIX[0], tolerance)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["diagonal", "dot product", "mean removed"])
def test_functions_of_vectors_are_never_fed_blocks(size, width, kind):
    """`d * v` broadcasts over a square block and `v - v.mean()` over any: no error, a wrong answer."""
    d = torch.arange(1.0, size + 1, dtype=DOUBLE)
    function = {
        "diagonal": lambda v: d * v,
        "dot product": lambda v: d * (d * v).sum(),
        "mean removed": lambda v: v - v.mean(),
    }[kind]
    matrix = {
        "diagonal": torch.diag(d),
        "dot product": torch.outer(d, d),
        "mean removed": torch.eye(size, dtype=DOUBLE) - 1 / size,
    }[kind]
    block = torch.randn(size, width, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    found = ls.as_operator(function, shape=(size, size)) @ block
    assert float((found - matrix @ block).norm()) < 1e-13


@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize("coupling", [1.0, 1e-4, 1e-8])
def test_functions_of_vectors_are_recognised_at_every_scale(scale, coupling):
    def function(v):
        return scale * (v + coupling * v.mean())

    V = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    expected = torch.stack([function(v) for v in V.T], dim=1)
    assert_close(ls.as_operator(function, shape=(5, 5)) @ V, expected, 1e-13)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_device_with_and_without_its_number_is_the_same_device(device):
    assert_close(columns(ls.as_operator(MATRIX, device=device)), MATRIX)


def test_the_operator_of_a_tensor_keeps_its_precision_inside_autocast():
    matrix = MATRIX.float()
    A, v = ls.as_operator(matrix, dtype=torch.float32), matrix[0]
    with torch.autocast("cpu"):
        found = A @ v
    assert found.dtype == torch.float32
    assert_close(found, matrix @ v, 1e-6)


# Refusals


def test_wrong_vectors_are_refused_with_what_was_expected(curvature):
    H, _ = curvature
    for vectors, sentence in [
        (torch.ones(35, dtype=DOUBLE), r"vectors \(36,\) or blocks \(36, K\), not shape \(35,\)"),
        (torch.ones(2, 36, dtype=DOUBLE), r"not shape \(2, 36\)"),
        (torch.ones(36, 1, 1, dtype=DOUBLE), r"not shape \(36, 1, 1\)"),
        (torch.ones(36), r"works in torch.float64 on cpu; the vectors are torch.float32"),
        (torch.ones(36, dtype=DOUBLE, device="meta"), r"on cpu; the vectors .* on meta"),
        (np.ones(36), r"multiply torch tensors, not ndarray"),
    ]:
        with pytest.raises(ls.InputError, match=sentence):
            H @ vectors


def test_operators_that_do_not_fit_are_not_added(curvature):
    H, _ = curvature
    with pytest.raises(ls.InputError, match=r"cannot add .*5 × 5.* to .*36 × 36.*size, dtype or"):
        H + ls.as_operator(MATRIX)
    with pytest.raises(ls.InputError, match="only operators can be added, not Tensor"):
        H + torch.eye(36, dtype=DOUBLE)


def test_wrong_blocks_are_refused(curvature):
    H, _ = curvature
    for positions, sentence in [
        (torch.tensor([0, 36]), "reaches from position 0 to 36: positions run from 0 to 35"),
        (torch.tensor([-1]), "positions run from 0 to 35"),
        (torch.tensor([1, 1]), "must differ from each other"),
        (torch.tensor([], dtype=torch.int64), "non-empty int64"),
        (torch.ones(36, dtype=torch.bool), "int64"),
    ]:
        with pytest.raises(ls.InputError, match=sentence):
            H.restrict(positions)
    with pytest.raises(ls.InputError, match=r"'2.wieght': the closest names are 2.weight"):
        H.block("2.wieght")


@pytest.mark.parametrize(
    ("matrix", "shape", "sentence"),
    [
        (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), None, r"not symmetric: .* \(A \+ A.T\) / 2"),
        (torch.eye(3) + 1e-6 * torch.ones(3, 3).triu(1), None, "not symmetric"),
        (1e-9 * torch.tensor([[0.0, 1.0], [0.0, 0.0]]), None, "not symmetric"),
        (torch.ones(2, 3), None, r"shape \(2, 3\): it must be square"),
        (torch.ones(3), None, r"shape \(3,\): it must be square"),
        (torch.ones(0, 0), None, "must be square"),
        (torch.tensor([[1, 1j], [-1j, 1]]), None, "real"),
        (lambda v: v, None, r"needs shape=\(P, P\)"),
        (lambda v: v[:-1], (4, 4), "must keep the shape"),
        (lambda v: v.cumsum(0), (4, 4), "not symmetric"),
        (3, (4, 4), "int is no matrix"),
    ],
)
def test_what_is_no_symmetric_matrix_is_refused(matrix, shape, sentence):
    with pytest.raises(ls.InputError, match=sentence):
        ls.as_operator(matrix, shape=shape)


def test_a_product_that_is_not_finite_is_not_given():
    A = ls.as_operator(lambda v: v * 1e300, shape=(3, 3))
    with pytest.raises(ls.UntrustedResult, match="not finite"):
        A @ torch.full((3,), 1e300, dtype=DOUBLE)


def test_fisher_refuses_losses_that_are_no_likelihood():
    problem = case_named("huber").problem()
    with pytest.raises(ls.InputError, match=r"likelihood .* not huber_loss\(.*EmpiricalFisher"):
        ls.Fisher(problem)
    weighted = case_named("bce_with_positive_weights").problem()
    with pytest.raises(ls.InputError, match="without element weights"):
        ls.Fisher(weighted)
    with pytest.raises(ls.InputError, match="samples is 0: it must be at least 1"):
        ls.Fisher(case_named("label_smoothing").problem(), samples=0)


def test_gauss_newton_refuses_what_it_is_not_defined_for():
    with pytest.raises(ls.InputError, match="nll_loss is linear.*use cross_entropy, or use Fisher"):
        ls.GaussNewton(case_named("nll_with_weights_and_an_ignored_class").problem())
    problem = case_named("custom_loss_on_a_tuple_output").problem()
    with pytest.raises(ls.InputError, match="returns a tuple.*wrap the model"):
        ls.GaussNewton(problem) @ torch.ones(problem.size, dtype=DOUBLE)


@pytest.mark.parametrize("operator", ["GaussNewton", "Fisher", "EmpiricalFisher"])
def test_operators_that_need_samples_refuse_closures(operator):
    problem = case_named("physics_informed_closure").problem()
    with pytest.raises(ls.InputError, match="made from a closure"):
        getattr(ls, operator)(problem)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rescaling_the_loss_rescales_the_hessian_by_exactly_that(scale):
    case = case_named("mlp_cross_entropy_on_ragged_batches")
    scaled = ls.Problem(case.model, lambda o, t: scale * F.cross_entropy(o, t), case.data)
    name = "mlp_cross_entropy_on_ragged_batches"
    assert_close(columns(ls.Hessian(scaled)), scale * truth(name, "Hessian"))


def test_a_parameter_that_is_never_used_has_rows_of_zeros():
    problem = case_named("unused_parameter").problem()
    H = columns(ls.Hessian(problem))
    assert problem.unused() == ["spare"]
    assert not H[:3].any()
    assert not H[:, :3].any()
    assert H[3:, 3:].any()


def test_the_hessian_of_a_linear_model_is_its_closed_form():
    x = torch.randn(490 + 10, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    model = nn.Linear(3, 1, bias=False).double()
    data = [(x[:490], torch.zeros(490, 1)), (x[490:], torch.zeros(10, 1))]
    H = ls.Hessian(ls.Problem(model, "mse", data))
    assert_close(columns(H), 2 * x.T @ x / 500)
    assert math.isclose(H.dense().trace().item(), 2 * x.square().sum().item() / 500, rel_tol=1e-12)
