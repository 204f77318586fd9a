"""The engines of products: equal to the truth and to each other, within their memory, replayable."""

import subprocess
import sys

import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from leaks import HostReads
from module_kinds import KINDS
from test_module_kinds import products as kind_products
from test_module_kinds import target
from torch import Tensor, nn

import landscape as ls
from landscape.objective import Objective
from landscape.operators.gauss_newton import output_hessian
from landscape.operators.products.recipes import Recipe

DOUBLE = torch.float64
# Cases whose product cannot be traced, and what of them depends on values.
UNTRACED = {
    "custom_loss_with_terms": ("Hessian", "EmpiricalFisher", "GradientCovariance"),
    "embedding_with_max_norm": (  # it writes to its own weight
        *("Hessian", "GaussNewton", "Fisher", "EmpiricalFisher", "GradientCovariance"),
    ),
}
PAIRS = [(name, operator) for name, build in CASES.items() for operator in build().operators()]


def mlp_problem(dtype: torch.dtype = DOUBLE, rows: int = 40) -> ls.Problem:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    x = torch.randn(rows, 4, generator=generator)
    y = torch.randint(0, 3, (rows,), generator=generator)
    return ls.Problem(model, "cross_entropy", (x, y), batch_size=16, dtype=dtype)


def vectors(problem: ls.Problem, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(problem.size, count, generator=generator, dtype=DOUBLE)
    return draws.to(problem.dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def dense_truth(name: str, operator: str) -> Tensor:
    snake = {"GaussNewton": "gauss_newton", "EmpiricalFisher": "empirical_fisher"}
    snake["GradientCovariance"] = "gradient_covariance"
    return getattr(oracles, snake.get(operator, operator.lower()))(CASES[name]())


def check_split(name: str, operator: str) -> None:
    problem = CASES[name]().problem()
    unit = torch.eye(problem.size, dtype=DOUBLE)
    if operator in UNTRACED.get(name, ()):
        with pytest.raises(ls.InputError, match="cannot be multiplied by the split product"):
            getattr(ls, operator)(problem, engine="split") @ unit
        return
    A = getattr(ls, operator)(problem, engine="split")
    found = A @ unit
    assert A.plan.engine == "split"
    expected = dense_truth(name, operator)  # zero for one of them
    assert (found - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("name", CASES)
def test_the_split_hessian_is_the_dense_one_of_every_case(name):
    check_split(name, "Hessian")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_layer_norm_has_the_hessian_of_autograd(shape, affine):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Linear(3, 6), nn.Linear(6, 2)
            self.norm = nn.LayerNorm(shape, eps=1e-3, elementwise_affine=affine)

        def forward(self, x):
            return self.after(torch.tanh(self.norm(self.before(x))))

    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(5, 4, 3), torch.randn(5, 4, 2)
    problem = ls.Problem(model, "mse", (x, y), dtype=DOUBLE)
    V = vectors(problem)
    exact = ls.Hessian(problem, engine="double backward") @ V
    A = ls.Hessian(problem, engine="split")
    assert relative(A @ V, exact) <= 1e-12
    graphs = [r._split.primal for r in A._products._preparation.recipes.values()]
    names = {str(n.target) for g in graphs for n in g.graph.nodes}
    assert not any("layer_norm" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "operator"), [p for p in PAIRS if p[1] != "Hessian"])
def test_every_split_operator_is_the_dense_one_of_every_case(name, operator):
    check_split(name, operator)


@pytest.mark.parametrize("operator", ["GaussNewton", "Fisher", "EmpiricalFisher"])
def test_split_sandwiches_equal_the_dense_ones(operator):
    check_split("class_weights_label_smoothing_and_ignored_tokens", operator)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_module_gives_the_same_product_in_both_engines(name):
    kind = KINDS[name]()
    wanted = target(kind)
    expected = kind_products(kind, wanted, DOUBLE)
    found = kind_products(kind, wanted, DOUBLE, announced=10**12)
    assert (found - expected).norm() <= 1e-7 * expected.norm()


@pytest.mark.parametrize(("dtype", "bar"), [(DOUBLE, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_convolutional_network_is_the_same_in_every_plan(dtype, bar, chunk, layout):
    if chunk > 1 and layout == "channels last":
        pytest.skip("torch cannot batch a change of memory layout")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, 8, 8, generator=generator)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.ConvTranspose2d(4, 3, 2),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(48, 3),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    problem = ls.Problem(model, "cross_entropy", (x, torch.arange(6) % 3), dtype=dtype)
    plan = ls.Hessian(problem, engine="split").plan.to_dict()
    plan |= {"engine": "split", "layout": layout, "chunk": chunk, "dtype": str(dtype)[6:]}
    A = ls.Hessian(problem, plan=plan)
    V = vectors(problem)
    found = A @ V
    assert (A.plan.layout, A.plan.chunk) == (layout, chunk)
    assert relative(found, ls.Hessian(problem, engine="double backward") @ V) < bar


def test_kept_and_recomputed_residuals_give_the_same_bits():
    problem = mlp_problem(torch.float32)
    V = vectors(problem)
    kept = ls.Hessian(problem, engine="split")
    kept @ V
    for column in V.T:
        kept @ column
    assert kept.plan.kept == problem.batch_count
    spare = ls.Hessian(problem, plan=kept.plan)
    assert torch.equal(kept @ V, spare @ V)
    spare._products._forget()
    spare._products._budget = 0  # nothing may be kept
    assert torch.equal(kept @ V, spare @ V)
    assert torch.equal(kept @ V[:, 0], spare @ V[:, 0])
    assert spare.plan.kept == 0


def test_a_wider_block_measures_the_ways_that_it_allows():
    problem = mlp_problem()  # the last batch has another shape
    A = ls.Hessian(problem, engine="split")
    V = vectors(problem, 8)
    first = A @ V[:, 0]
    assert list(A.plan.measured) == ["contiguous, one by one"]
    together = A @ V
    assert list(A.plan.measured) == ["contiguous, one by one", "contiguous, 4 at once"]
    assert torch.equal(A @ V, together)
    assert torch.equal(A @ V[:, 0], first)
    assert relative(together[:, 0], first) < 1e-13
    assert len(A.plan.measured) == 2


def test_a_plan_saved_with_a_result_is_replayed_to_the_last_bit():
    problem = mlp_problem(torch.float32)
    A = ls.Hessian(problem, engine="split")
    V = vectors(problem)
    first = A @ V
    again = ls.Hessian(problem, plan=A.plan.to_dict())
    assert torch.equal(again @ V, first)
    assert again.plan.chunk == A.plan.chunk
    with pytest.raises(ls.InputError, match="the plan was made with 99 threads"):
        ls.Hessian(problem, plan={**A.plan.to_dict(), "threads": 99})
    with pytest.raises(ls.InputError, match="the plan has the entries chunk"):
        ls.Hessian(problem, plan={"chunk": 1})


@pytest.mark.parametrize("operator", ["Hessian", "GaussNewton", "Fisher", "EmpiricalFisher"])
def test_no_number_leaves_the_device_inside_a_product(operator):
    problem = mlp_problem()
    A = getattr(ls, operator)(problem, engine="split")
    V = vectors(problem)
    expected = A @ V
    with HostReads() as reads:
        found = A.product(V)
    assert A.plan.kept == problem.batch_count
    assert reads.count == 0
    assert torch.equal(found, expected)


def test_what_changes_between_products_is_seen():
    problem = mlp_problem()
    A, V = ls.Hessian(problem, engine="split"), vectors(problem, 1)
    A @ V
    A @ V
    assert A.plan.kept == problem.batch_count
    with torch.no_grad():
        problem.model[0].weight.data += 0.3
    assert relative(A @ V, ls.Hessian(problem, engine="double backward") @ V) < 1e-12

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(2, 2), 1.0

        def forward(self, x):
            return self.scale * self.inner(x).tanh()

    model = Scaled()
    x = torch.randn(5, 2)
    problem = ls.Problem(model, "mse", (x, x), dtype=DOUBLE)
    A = ls.Hessian(problem, engine="split", memory=10**6)
    V = vectors(problem, 1)
    A._products._budget = 0
    A @ V
    A._products._forget()
    model.scale = 2.0  # frozen into the trace
    assert relative(A @ V, ls.Hessian(problem, engine="double backward") @ V) < 1e-12


def test_control_flow_on_values_falls_back_and_says_why():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            y = self.inner(x)
            return y.tanh() if y.sum() > 0 else y.sigmoid()

    x = torch.randn(6, 2)
    problem = ls.Problem(Branching(), "mse", (x, x), batch_size=2, dtype=DOUBLE)
    A, V = ls.Hessian(problem), vectors(problem, 2)
    A.expect(10**12)
    assert relative(A @ V, ls.Hessian(problem, engine="double backward") @ V) == 0
    assert A.plan.engine == "double backward"
    assert "data-dependent" in A.plan.reason
    assert ls.trace(A, probes=2).cost.engine == "double backward"


@pytest.mark.parametrize("sooner", [True, False], ids=["at the first product", "later"])
@pytest.mark.parametrize("asked", [4, None], ids=["chunk of a plan", "chunk measured"])
def test_running_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch, asked, sooner):
    problem = mlp_problem()
    V = vectors(problem, 8)
    expected = ls.Hessian(problem, engine="double backward") @ V
    if asked:
        ready = {"engine": "split", "chunk": asked, "dtype": "float64"}
        A = ls.Hessian(problem, plan=ls.Hessian(problem).plan.to_dict() | ready)
    else:
        A = ls.Hessian(problem, engine="split")
    images = Recipe.images

    def limited(self, i, residuals, vectors):
        if len(vectors) > 1:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"
            )
        return images(self, i, residuals, vectors)

    if not sooner:
        assert relative(A @ V, expected) < 1e-12
        assert A.plan.chunk == (asked or A.plan.chunk)
    monkeypatch.setattr(Recipe, "images", limited)
    assert relative(A @ V, expected) < 1e-12
    assert A.plan.chunk == 1
    if asked:
        assert A.plan.degraded[-2:] == ("chunks of 4", "chunks of 2")

    def never(*_):
        raise torch.OutOfMemoryError("out of memory (simulated)")

    monkeypatch.setattr(Recipe, "images", never)
    with pytest.raises(torch.OutOfMemoryError):
        A @ V


LIMITED = """
import resource, torch, landscape as ls
from pathlib import Path
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

def problem(rows):
    model = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 2))
    return ls.Problem(model, "mse", (torch.randn(rows, 64), torch.randn(rows, 2)), batch_size=rows)

plan = ls.Hessian(problem(2)).plan.to_dict() | {"engine": "split", "chunk": 8}
small, large = problem(2), problem(20_000)  # 41 MB for one activation of one vector
ls.Hessian(small, plan=plan) @ torch.ones(small.size, 8)  # everything is loaded
V = torch.randn(large.size, 8, generator=torch.Generator().manual_seed(0))
expected = ls.Hessian(large, engine="double backward") @ V
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 600 * 2**20,) * 2)
A = ls.Hessian(large, plan=plan)
found = A @ V
print(A.plan.degraded, A.plan.chunk, float((found - expected).norm() / expected.norm()))
assert (found - expected).norm() <= 1e-5 * expected.norm()
assert "chunks of 8" in A.plan.degraded
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_a_real_allocator_that_refuses_is_answered_with_smaller_chunks():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_budget_too_small_for_one_product_is_refused_before_it_starts():
    problem = mlp_problem()
    with pytest.raises(ls.InputError, match=r"memory=100 bytes do not hold one product"):
        ls.Hessian(problem, engine="split", memory=100) @ vectors(problem)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"engine": "fast"}, "the engine is 'fast': choose one of auto, split, double backward"),
        ({"memory": -1}, "memory is -1: give a positive number of bytes, or 'auto'"),
        ({"products": torch.int64}, "products is torch.int64: choose a floating-point type"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ls.InputError, match=sentence):
        ls.Hessian(mlp_problem(), **settings)


def test_products_in_another_type_are_accumulated_in_the_problems():
    problem = mlp_problem(DOUBLE)
    V = vectors(problem)
    exact = ls.Hessian(problem) @ V
    narrow = ls.Hessian(problem, products=torch.float32, engine="split")
    found = narrow @ V
    assert found.dtype == DOUBLE
    assert 1e-9 < relative(found, exact) < 1e-5
    assert (narrow.plan.dtype, narrow.plan.accumulation) == ("float32", "float64")
    assert narrow.plan.error == pytest.approx(relative(found[:, 0], exact[:, 0]), rel=1e-3)
    rough = ls.Hessian(mlp_problem(torch.float32), products=torch.bfloat16)
    rough @ V.float()
    assert 1e-4 < rough.plan.error < 0.1


def test_what_the_process_lets_float32_be_does_not_count():
    kernels = [torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    seen = []

    class Net(nn.Linear):
        def forward(self, x):
            seen.append([k.fp32_precision for k in kernels])
            return super().forward(x)

    torch.manual_seed(0)
    problem = ls.Problem(Net(4, 3), "mse", (torch.randn(9, 4), torch.randn(9, 3)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        outside = [k.fp32_precision for k in kernels]
        ls.Hessian(problem, engine="split") @ vectors(problem)
        problem.gradient()
        assert all(kinds == ["ieee"] * 3 for kinds in seen)
        seen.clear()
        A = ls.Hessian(problem, engine="double backward", products="tf32")
        A @ vectors(problem)
        assert ["tf32"] * 3 in seen
        assert A.plan.dtype == "tf32"
        assert A.plan.error is not None
        again = ls.Hessian(problem, plan=A.plan)
        again @ vectors(problem)
        assert again.plan.dtype == "tf32"
        assert [k.fp32_precision for k in kernels] == outside
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_compiled_products_are_the_same():
    problem = mlp_problem()
    A = ls.Hessian(problem, engine="split", compile=True)
    V = vectors(problem)
    expected = ls.Hessian(problem, engine="double backward") @ V
    assert relative(A @ V, expected) < 1e-12
    assert relative(A @ V[:, :1], expected[:, :1]) < 1e-12
    assert A.plan.compiled


def test_nothing_is_left_behind_by_tracing():
    problem = mlp_problem()
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    state = torch.get_rng_state()
    A = ls.Hessian(problem, engine="split")
    A @ vectors(problem)
    assert all(torch.equal(before[n], v) for n, v in problem.model.state_dict().items())
    assert all(isinstance(p, nn.Parameter) and p.grad is None for p in problem.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("loss", "function", "wanted"),
    [
        ("cross_entropy", F.cross_entropy, torch.arange(4) % 3),
        ("mse", F.mse_loss, torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(4, 3)),
    ],
)
def test_output_hessians_in_closed_form_use_no_autograd(monkeypatch, loss, function, wanted):
    output, tangent = (torch.randn(4, 3, dtype=DOUBLE) for _ in range(2))
    whole = torch.func.hessian(lambda o: function(o, wanted, reduction="sum"))(output)
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: pytest.fail("autograd was used"))
    found = output_hessian(Objective(loss), output, wanted)(tangent)
    assert relative(found, torch.einsum("abcd,cd->ab", whole, tangent)) < 1e-12
