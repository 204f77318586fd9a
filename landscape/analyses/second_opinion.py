"""Does another library find the same eigenvalues? PyHessian beside ours, on the same loss."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.estimators.lanczos import Eigenpairs
from landscape.estimators.sums import norms
from landscape.evaluation import Evaluation
from landscape.operators.hessian import Hessian
from landscape.problem import Problem
from landscape.undisturbed import preserved_randomness

TOLERANCE = 1e-3  # of the largest |λ|: what float32 and an unfinished power iteration may differ by
CONVERGED = 1e-2  # residual, as a share of the largest |λ|, from which its value counts


@dataclass(frozen=True)
class SecondOpinion:
    """What PyHessian says about the eigenvalues that were found.

    Attributes:
        values: its eigenvalues, of largest magnitude first, by power iteration.
        residuals: ‖Hv − λv‖ of each, by its own products.
        differences: ‖H′v − Hv‖ / max |λ| for each of *our* eigenvectors v, H′ being its Hessian: how far
            the two matrices differ where it matters.
        batch_weights: how much its mean over batches had to be corrected: smallest and largest factor; it
            weights batches by samples, which is wrong where terms per sample vary.
        unavailable: why there is no opinion, else None.
    """

    values: list[float]
    residuals: list[float]
    differences: list[float]
    batch_weights: tuple[float, float]
    unavailable: str | None = None

    def disagreements(self, pairs: Eigenpairs) -> list[str]:
        """In words, what contradicts the eigenpairs that it was asked about."""
        largest = float(pairs.values.abs().max())
        ours = pairs.values.tolist()
        found = [
            f"PyHessian's product with eigenvector {i + 1} differs from ours by {share:.2g} of the "
            "largest eigenvalue"
            for i, share in enumerate(self.differences)
            if share > TOLERANCE
        ]
        for value, residual in zip(self.values, self.residuals, strict=True):
            room = residual + TOLERANCE * largest
            settled = residual <= CONVERGED * largest
            beyond = abs(value) > min(map(abs, ours)) + room
            if settled and beyond and all(abs(value - own) > room for own in ours):
                found.append(
                    f"PyHessian finds the eigenvalue {value:.6g} ± {residual:.2g}, which is none of ours"
                )
        return found


def second_opinion(
    problem: Problem,
    pairs: Eigenpairs,
    *,
    iterations: int = 12,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SecondOpinion:
    """Eigenvalues of largest magnitude by PyHessian's power iteration (Yao et al. 2020, arXiv:1912.07145).

    It differentiates and iterates by itself; the loss of a batch is the problem's, on copies of the
    weights, because it leaves gradients behind and changes the mode.

    Args:
        problem: the loss.
        pairs: our eigenpairs of largest magnitude, (P, k); as many are asked for.
        iterations: at most, per eigenvalue.
        seed: of its starting vectors.
        progress: called with (products done, products at most).
    """
    k = pairs.vectors.shape[1]
    try:
        import pyhessian
    except ImportError:
        return _no_opinion("PyHessian is not installed")
    H = Hessian(problem)
    unused = set(problem.unused())
    used = [i for i, name in enumerate(problem.names) if name not in unused]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of the reference cycle it makes, among others
        run = stack.enter_context(problem.evaluation())
        stack.enter_context(preserved_randomness(seed))
        stack.enter_context(_default_dtype(problem.dtype))
        limit = (iterations + 1) * k + k
        loss = _Loss(run, [run.leaves[i] for i in used], progress, limit)
        try:
            theirs = pyhessian.hessian(
                loss,
                lambda value, _: value,
                dataloader=_Pass(run, loss),
                cuda=problem.device.type == "cuda",
            )

            def product(parts: list[Tensor]) -> tuple[float, Tensor]:
                value, result = theirs.dataloader_hv_product(parts)
                return value, torch.cat([part.detach().reshape(-1) for part in result])

            # The values it returns are one iteration behind its vectors.
            _, vectors = theirs.eigenvalues(maxIter=iterations, tol=1e-4, top_n=k)
            values, residuals = [], []
            for vector in vectors:
                flat = torch.cat([part.reshape(-1) for part in vector])
                length = float(norms(flat))  # it adds 1e-6 to norms before it divides
                value, image = product([part / length for part in vector])
                values.append(value)
                residuals.append(float(norms(image - value * flat / length)))
            images = []
            for column in pairs.vectors.to(problem.dtype).T:
                parts = problem.layout.split(column)
                images.append(product([parts[i] for i in used])[1])
        except LandscapeError:
            raise
        except Exception as error:  # noqa: BLE001 another library may fail in any way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return _no_opinion(f"PyHessian fails on this problem: {reason}")
    keep = torch.cat(
        [torch.full((size,), i in used) for i, size in enumerate(problem.layout.sizes)]
    )
    ours = (H @ pairs.vectors.to(problem.dtype))[keep.to(problem.device)]
    largest = float(pairs.values.abs().max()) or 1.0
    gaps = norms(torch.stack(images, dim=1) - ours) / largest
    order = sorted(range(k), key=lambda i: -abs(values[i]))
    return SecondOpinion(
        [values[i] for i in order],
        [residuals[i] for i in order],
        gaps.tolist(),
        (min(loss.factors), max(loss.factors)),
    )


def _no_opinion(reason: str) -> SecondOpinion:
    return SecondOpinion([], [], [], (1.0, 1.0), reason)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """PyHessian makes its vectors in torch's default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Loss:
    """The loss of a batch in the shape PyHessian takes for a model: called, asked for parameters."""

    def __init__(
        self,
        run: Evaluation,
        leaves: list[Tensor],
        progress: Callable[[int, int], None] | None,
        limit: int,
    ) -> None:
        self.run, self.leaves, self.progress, self.limit = run, leaves, progress, limit
        self.factors: set[float] = set()
        self.passes = 0

    def eval(self) -> "_Loss":
        return self

    def zero_grad(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def parameters(self) -> list[Tensor]:
        return self.leaves

    def __call__(self, batch: "_Batch") -> Tensor:
        """The mean loss of a batch, times what corrects its weight in a mean over samples."""
        problem = self.run.problem
        total, count = self.run.total(batch.content)
        factor = count * problem.samples / (batch.size(0) * problem.terms)
        self.factors.add(factor)
        return total / count * factor if count else total

    def passed(self) -> None:
        self.passes += 1
        if self.progress is not None:
            self.progress(min(self.passes, self.limit), self.limit)


class _Batch:
    """A batch of any structure, with the two methods of a tensor that PyHessian calls."""

    def __init__(self, content: Any, rows: int) -> None:
        self.content, self.rows = content, rows

    def size(self, dim: int) -> int:
        return self.rows

    def to(self, device: Any) -> "_Batch":
        return self


class _Pass:
    """The batches of a problem as the pairs of a loader."""

    def __init__(self, run: Evaluation, loss: _Loss) -> None:
        self.run, self.loss = run, loss

    def __iter__(self) -> Iterator[tuple[_Batch, Tensor]]:
        from landscape.batches import row_count

        for batch in self.run.batches():
            yield _Batch(batch, row_count(batch)), torch.empty(0)
        self.loss.passed()
