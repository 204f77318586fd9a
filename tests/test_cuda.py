"""What only a CUDA device can show."""

import pytest
import torch
from leaks import HostReads
from torch import Tensor, nn

import landscape as ls
from landscape.demos.models import gpt, mlp, resnet20

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no CUDA device"
)
OPERATORS = ["Hessian", "GaussNewton", "Fisher", "EmpiricalFisher"]


def problem(name: str, dtype: torch.dtype = torch.float32, device: str = "cuda") -> ls.Problem:
    torch.manual_seed(0)
    model: nn.Module
    if name == "gpt":
        model, loss = gpt(), "token_cross_entropy"
        data = torch.randint(96, (16, 64)), torch.randint(96, (16, 64))
    elif name == "mlp":
        model, loss = mlp(hidden=(128, 128)), "cross_entropy"
        data = torch.randn(64, 64), torch.randint(10, (64,))
    else:
        model, loss = resnet20().eval(), "cross_entropy"
        data = torch.randn(16, 1, 28, 28), torch.randint(10, (16,))
    return ls.Problem(model, loss, data, batch_size=8, dtype=dtype, device=device)


def vectors(about: ls.Problem, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(about.size, count, generator=generator).to(about.device, about.dtype)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["mlp", "gpt", "resnet"])
def test_products_are_those_of_the_cpu(name, operator):
    here, there = problem(name, torch.float64), problem(name, torch.float64, "cpu")
    A = getattr(ls, operator)(here, engine="split")
    expected = getattr(ls, operator)(there, engine="double backward") @ vectors(there, 2)
    for _ in range(3):  # traced, kept, captured
        found = (A @ vectors(here, 2)).cpu()
        assert float((found - expected).norm() / expected.norm()) <= 1e-10
    assert A.plan.engine == "split"


@pytest.mark.parametrize("name", ["mlp", "gpt", "resnet"])
def test_captured_products_are_the_same_and_ask_the_host_nothing(name):
    about = problem(name)
    A = ls.Hessian(about, engine="split")
    V = vectors(about, 32)
    first = A @ V
    A @ V
    if A.plan.kept == about.batch_count:
        assert A.plan.captured
        with HostReads() as reads:
            found = A.product(V)
        assert reads.count == 0
        assert float((found - first).norm() / first.norm()) <= 1e-5


def test_weights_that_change_reach_a_captured_graph():
    about = problem("mlp")
    A = ls.Hessian(about, engine="split")
    V = vectors(about, 8)
    for _ in range(3):
        A @ V
    with torch.no_grad():
        about.model[0].weight.add_(0.1)  # type: ignore[operator, index, union-attr]
    expected = ls.Hessian(about, engine="double backward") @ V
    assert float((A @ V - expected).norm() / expected.norm()) <= 1e-4


def test_time_is_the_devices():
    about = problem("mlp")
    A = ls.Hessian(about)
    density = ls.spectral_density(A, probes=8, steps=20)
    assert 0 < A.seconds <= density.cost.seconds * 1.05


@pytest.mark.parametrize("method", ["auto", "hutchinson", "hutch++", "leave one out", "deflated"])
def test_trace_and_diagonal_are_those_of_the_cpu(method):
    values = torch.cat([torch.linspace(1, 20, 9), torch.linspace(-0.1, 0.2, 191)]).double()
    basis = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(0))).Q
    matrix = (basis.double() * values) @ basis.double().T
    matrix = (matrix + matrix.T) / 2
    operators = [ls.as_operator(matrix, device=device) for device in ("cpu", "cuda")]
    deflate = basis[:, :9].double() if method == "deflated" else None
    options = {"tolerance": 0.02, "deflate": deflate}
    for estimator, name in ((ls.trace, "xtrace"), (ls.diagonal, "xdiag")):
        options["method"] = name if method == "leave one out" else method
        cpu, cuda = (estimator(A, **options) for A in operators)
        assert cpu.method == cuda.method
        assert cpu.cost.products == cuda.cost.products
        value = torch.as_tensor(cuda.value).cpu()
        assert torch.allclose(value, torch.as_tensor(cpu.value), rtol=1e-6, atol=1e-6)


def test_sharpness_is_that_of_the_cpu():
    options = {"m": 16, "steps": 4, "draws": 3, "probes": 4}
    here = ls.sharpness(problem("mlp", torch.float64), **options)
    there = ls.sharpness(problem("mlp", torch.float64, "cpu"), **options)
    assert [row.name for row in here.measures] == [row.name for row in there.measures]
    for row, other in zip(here.measures, there.measures, strict=True):
        assert row.value == pytest.approx(other.value, rel=1e-6), row.name
