"""The loss as a function of the parameters: model, loss, data, and every rule about them."""

import contextlib
import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape import batches, evaluation
from landscape.errors import InputError, LandscapeError
from landscape.evaluation import NormStats
from landscape.objective import Loss, Objective
from landscape.parameters import Layout, select

_SEED = 0  # of every pass over the data: shuffling loaders then give the same batches every time


Closure = Callable[[nn.Module, Any], tuple[Tensor, float]]


class Problem:
    """A weighted empirical risk L(θ): the sum of all loss terms over the data, divided by their number.

    Every batch counts by its number of loss terms, so ragged batches, ignored targets, class weights
    and token-level losses give exactly the loss of the whole data set. The model is always evaluated in
    evaluation mode, with batch normalisation as `norm_stats` says; nothing of the model, its gradients,
    the random state or the loader is changed. The loss is taken at the model's current weights.

    Args:
        model: any `torch.nn.Module`.
        loss: a loss of torch (function, module, `functools.partial`; any `reduction`), a name such as
            "cross_entropy", or a callable `(output, target) -> Tensor`; see `Objective`.
        data: a DataLoader or another re-iterable of batches; a Dataset; a tuple `(inputs, targets)` or a
            mapping of tensors. A mapping batch is passed to the model by keyword, except its target.
        params: glob(s) on parameter names (default all). Frozen parameters are left out, tied weights
            count once.
        terms: `(output, target) -> number of loss terms`, overrides the count.
        norm_stats: "running" (default) or "batch" statistics in batch normalisation.
        device: where to compute (default: where the parameters are).
        dtype: floating-point type of parameters, inputs and products (default: the parameters').
        batch_size: rows per batch for data that come unbatched (default 256).

    Raises:
        InputError: one sentence on what is wrong with the model, the data or the loss.

    Example:
        >>> import torch, landscape as ls
        >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> problem = ls.Problem(model, "mse", (x, y), batch_size=2)  # batches of 2 + 1
        >>> (ls.Hessian(problem) @ torch.ones(1)).item()  # 2 · mean(x²) = 28 / 3
        9.33333...
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss,
        data: Any,
        *,
        params: str | Sequence[str] = "*",
        terms: Callable[..., float] | None = None,
        norm_stats: NormStats = "running",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.objective: Objective | None = Objective(loss, terms)
        self._closure: Closure | None = None
        self._set_up(model, data, params, norm_stats, device, dtype, batch_size)

    @classmethod
    def from_closure(
        cls,
        model: nn.Module,
        closure: Closure,
        data: Any,
        *,
        params: str | Sequence[str] = "*",
        norm_stats: NormStats = "running",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> "Problem":
        """A problem with any objective: `closure(model, batch) -> (mean loss, number of terms)`.

        For physics-informed networks, contrastive losses, and data that are not (input, target). The
        other arguments are those of `Problem`. There is no model output to speak of, so Gauss–Newton
        and the Fisher matrices are not defined; the Hessian is.
        """
        problem = cls.__new__(cls)
        problem.objective = None
        problem._closure = closure
        problem._set_up(model, data, params, norm_stats, device, dtype, batch_size)
        return problem

    def _set_up(
        self,
        model: nn.Module,
        data: Any,
        params: str | Sequence[str],
        norm_stats: NormStats,
        device: str | torch.device | None,
        dtype: torch.dtype | None,
        batch_size: int | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
        if norm_stats not in ("running", "batch"):
            raise InputError(f"norm_stats is {norm_stats!r}: choose 'running' or 'batch'")
        self.model = model
        self.norm_stats: NormStats = norm_stats
        self.names = select(model, params)
        parameters = dict(model.named_parameters())
        self.device = _device(model, device)
        self.dtype = dtype or parameters[self.names[0]].dtype
        self.layout = Layout(tuple(self.names), tuple(parameters[n].shape for n in self.names))
        _require_finite(
            (f"{kind} {name!r}", value)
            for kind, values in (
                ("parameter", model.named_parameters()),
                ("buffer", model.named_buffers()),
            )
            for name, value in values
        )
        if self.objective is not None:
            self.objective = self.objective.to(self.device, self.dtype)
        self._host = _Host(model)
        self._rnn = evaluation.has_rnn(model)
        self._data = batches.as_batches(data, batch_size, pairs=self.objective is not None)
        self._kept: list[Any] | None = None
        self._used: list[bool] | None = None
        self._gradient_seconds: float | None = None
        self._survey()

    @property
    def size(self) -> int:
        """Number of selected parameters P."""
        return self.layout.size

    def astype(self, dtype: torch.dtype) -> "Problem":
        """The same problem in another floating-point type, on the same weights and data."""
        other = copy.copy(self)
        other.dtype = dtype
        other._kept = None
        if self.objective is not None:
            other.objective = self.objective.to(self.device, dtype)
        return other

    def supervised(self) -> Objective:
        """The loss apart from the model.

        Raises:
            InputError: the problem was made from a closure.
        """
        if self.objective is None:
            raise InputError(
                "this problem was made from a closure, which hides the model's output and the samples: "
                "Gauss–Newton and Fisher matrices need Problem(model, loss, data)"
            )
        return self.objective

    def loss(self) -> float:
        """L(θ) over all the data."""
        with self.evaluation() as run, torch.no_grad():
            return sum(float(run.total(batch)[0]) for batch in run.batches()) / self.terms

    def gradient(self) -> Tensor:
        """∇L(θ) over all the data, shape (P,)."""
        with self.evaluation() as run:
            result = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            used = [False] * len(self.names)
            for batch in run.batches():
                total, _ = run.total(batch)
                if not total.requires_grad:
                    continue
                parts = torch.autograd.grad(total, run.leaves, allow_unused=True)
                used = [u or p is not None for u, p in zip(used, parts, strict=True)]
                result += self.layout.flatten(parts, result)
        self._used = used
        return result / self.terms

    def gradient_seconds(self) -> float:
        """Time of one gradient over all the data here: the median of three after a warm-up."""
        if self._gradient_seconds is None:
            times = []
            for _ in range(4):
                start = time.perf_counter()
                float(self.gradient()[0])  # waits for the device
                times.append(time.perf_counter() - start)
            self._gradient_seconds = sorted(times[1:])[1]
        return self._gradient_seconds

    def unused(self) -> list[str]:
        """Selected parameters that the loss never touches: their curvature is zero."""
        if self._used is None:
            self.gradient()
        assert self._used is not None
        return [name for name, used in zip(self.names, self._used, strict=True) if not used]

    @contextlib.contextmanager
    def evaluation(self) -> Iterator["Evaluation"]:
        """Everything needed to evaluate the loss; nothing of the user's is changed by it."""
        with (
            evaluation.undisturbed(self.model, self.norm_stats),
            evaluation.preserved_randomness(_SEED, batches.generators(self._data)),
            evaluation.differentiable(self.device, has_rnn=self._rnn),
        ):
            run = Evaluation(self)
            try:
                yield run
            except (RuntimeError, NotImplementedError) as error:
                if isinstance(error, LandscapeError) or not _is_missing_derivative(error):
                    raise
                raise run.explain(error) from error

    def batches(self) -> Iterator[Any]:
        """Batches on the device, floating-point tensors in the problem's dtype."""
        if self._kept is not None:
            yield from self._kept
            return
        for batch in self._data:
            yield batches.move(batch, self.device, self.dtype)

    def summary(self) -> dict[str, Any]:
        """What was measured, for provenance: names, counts, modes and fingerprints."""
        return {
            "model": type(self.model).__name__,
            "parameters": self.size,
            "parameter_tensors": len(self.names),
            "unused_parameters": self.unused(),
            "loss": self.objective.name if self.objective else "closure",
            "loss_terms": self.terms,
            "samples": self.samples,
            "batches": self.batch_count,
            "norm_stats": self.norm_stats,
            "norm_layers": len(evaluation.batch_norms(self.model)),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "data_fingerprint": self.data_fingerprint,
            "weights_fingerprint": self.weights_fingerprint(),
        }

    def weights_fingerprint(self) -> str:
        """SHA-256 of the weights and buffers as they are now."""
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        return batches.digest(tensors)

    # What follows reads the data once and refuses what cannot be measured.

    def _survey(self) -> None:
        """One forward pass over the data: count terms, fingerprint, and check everything."""
        self.terms, self.samples, self.batch_count, total, kept_bytes = 0.0, 0, 0, 0.0, 0
        digests, kept = [], []
        with self.evaluation() as run, torch.no_grad():
            for raw in self._data:
                batch = batches.move(raw, self.device, self.dtype)
                _require_finite(
                    (f"{name!r} of batch {self.batch_count}", tensor)
                    for name, tensor in batches.named_tensors(batch)
                )
                value, count = run.check(batch, first=self.batch_count == 0)
                total += value
                self.terms += count
                self.samples += _rows(batch)
                self.batch_count += 1
                digests.append(batches.digest(raw))
                kept_bytes += batches.size_in_bytes(batch)
                if kept_bytes <= batches.KEEP_BYTES:
                    kept.append(batch)
        if not self.batch_count or not self.samples:
            raise InputError("the data are empty: there is no batch to measure the loss on")
        if not self.terms > 0:
            raise InputError(
                f"the data hold {self.terms:g} loss terms in {self.samples} samples: every target is "
                "ignored or has weight 0"
            )
        self.data_fingerprint = hashlib.sha256("".join(digests).encode()).hexdigest()
        if not isinstance(self._data, (list, tuple)):
            self._check_second_pass(digests, total / self.terms)
        if kept_bytes <= batches.KEEP_BYTES:
            self._kept = kept

    def _check_second_pass(self, digests: list[str], expected: float) -> None:
        """A loader may shuffle, but another pass must give the same loss."""

        def another_pass() -> contextlib.AbstractContextManager[None]:
            return evaluation.preserved_randomness(_SEED + 1, batches.generators(self._data))

        with another_pass():
            if [batches.digest(batch) for batch in self._data] == digests:
                return
        total, terms = 0.0, 0.0
        with self.evaluation() as run, torch.no_grad(), another_pass():
            for raw in self._data:
                value, count = run.total(batches.move(raw, self.device, self.dtype))
                total, terms = total + float(value), terms + count
        found = total / terms if terms else float("nan")
        if terms != self.terms or abs(found - expected) > 1e-4 * max(abs(found), abs(expected)):
            why = (
                "batch statistics depend on which samples share a batch: pass shuffle=False"
                if self.norm_stats == "batch" and evaluation.batch_norms(self.model)
                else "random augmentation or shuffling with drop_last: switch it off"
            )
            raise InputError(
                f"two passes over the data give different losses ({expected:.6g} over "
                f"{self.terms:g} terms, then {found:.6g} over {terms:g}); {why}"
            )


class Evaluation:
    """One undisturbed stay inside the model: leaves to differentiate, and the loss of a batch."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        # Copies, because a forward pass may write to weights (max_norm) or buffers in place.
        tensors = {
            f"model.{name}": value.detach()
            .to(problem.device, problem.dtype if value.is_floating_point() else None)
            .clone()
            for name, value in problem.model.named_parameters()
        }
        self.leaves = [tensors[f"model.{name}"].requires_grad_() for name in problem.names]
        self._tensors = tensors
        self._batch: Any = None  # the one at work, for messages

    def batches(self) -> Iterator[Any]:
        for batch in self.problem.batches():
            self._batch = batch
            yield batch

    def output(self, batch: Any) -> tuple[Any, Any]:
        """The model's prediction for a batch, and the target."""
        return self._call(self._output, batch)  # type: ignore[no-any-return]

    def total(self, batch: Any) -> tuple[Tensor, float]:
        """Sum of the loss terms of a batch (scalar) and their number."""
        return self._call(self._total, batch)  # type: ignore[no-any-return]

    def rows(self, batch: Any) -> Tensor:
        """Sum of the loss terms of every sample of a batch, shape (samples,)."""
        objective = self.problem.supervised()
        return self._call(lambda model, b: objective.rows(*self._output(model, b)), batch)  # type: ignore[no-any-return]

    def check(self, batch: Any, *, first: bool) -> tuple[float, float]:
        """Total loss and number of terms of a batch, refused in one sentence where it is unusable."""
        self._batch = batch
        total, count = self._guarded(lambda: self._call(self._checked_total, batch))
        if not torch.isfinite(total):
            at = self._culprits(batch, evaluation.makes_non_finite)
            origin = f"first in {at[0]}" if at else "in the loss itself, from finite outputs"
            raise InputError(f"the loss is {float(total)}, not finite: it arises {origin}")
        if first:
            with torch.enable_grad():
                graph, _ = self.total(batch)
            if not graph.requires_grad and count:
                raise InputError(
                    "the loss does not depend on the selected parameters through differentiable "
                    "operations: is something detached, or under torch.no_grad()?"
                )
            with evaluation.preserved_randomness(_SEED + 1):
                again, _ = self.total(batch)
            slack = 100 * torch.finfo(total.dtype).eps * max(abs(float(total)), abs(float(again)))
            if abs(float(again) - float(total)) > slack:
                at = self._culprits(batch, evaluation.is_random)
                raise InputError(
                    f"the loss of one batch differs between two evaluations ({float(total):.6g}, "
                    f"{float(again):.6g}): {', '.join(at) or 'the model or the loss'} is random in "
                    "evaluation mode; make it respect model.eval() or fix its noise"
                )
        return float(total), count

    def explain(self, error: Exception) -> Exception:
        """The sentence for an operation without a second derivative."""
        detail = str(error).strip().split("\n")[0]
        try:
            at = self._culprits(self._batch, evaluation.lacks_second_derivative)
        except (RuntimeError, NotImplementedError):
            at = []
        where = ", ".join(at) or "the loss"
        return InputError(
            f"{where} uses an operation without a second derivative ({detail}): replace it, or leave "
            "the Hessian for an operator that needs none, such as EmpiricalFisher"
        )

    def _culprits(self, batch: Any, test: Callable[..., bool]) -> list[str]:
        return evaluation.culprits(self.problem.model, lambda: self.total(batch), test)

    def _call(self, function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        # The loss runs inside too: a penalty on model.parameters() must see the leaves.
        buffers = {
            f"model.{name}": value.detach()
            .to(self.problem.device, self.problem.dtype if value.is_floating_point() else None)
            .clone()
            for name, value in self.problem.model.named_buffers()
        }
        return functional_call(self.problem._host, self._tensors | buffers, (function, batch))

    def _output(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        args, kwargs, target = batches.unpack(batch)
        output = model(*args, **kwargs)
        recognised = self.problem.supervised().recognised
        return (_prediction(output) if recognised else output), target

    def _checked_total(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        objective = self.problem.objective
        if objective is None:
            return self._total(model, batch)
        output, target = self._output(model, batch)
        objective.check(output, target)
        objective.verify_rows(output, target)
        return objective.total(output, target)

    def _total(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        if self.problem.objective is not None:
            return self.problem.objective.total(*self._output(model, batch))
        assert self.problem._closure is not None
        value: Any = self.problem._closure(model, batch)
        if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor)):
            raise InputError(
                "the closure must return (mean loss, number of terms), a scalar tensor and a number"
            )
        mean, count = value[0], float(value[1])
        if mean.numel() != 1:
            raise InputError(
                f"the closure's loss has shape {tuple(mean.shape)}: return the mean, a scalar"
            )
        return (mean.reshape(()) * count if count else mean.new_zeros(())), count

    def _guarded(self, run: Callable[[], Any]) -> Any:
        """Turn what torch says about shapes and devices into a sentence that names the stage."""
        try:
            return run()
        except LandscapeError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            shapes = ", ".join(
                f"{name} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"
                for name, t in batches.named_tensors(self._batch)
            )
            raise InputError(
                f"the model or the loss fails on the first batch that shows it ({shapes}): "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            ) from error


class _Host(nn.Module):
    """Holds the user's model so that any function of it can run with other tensors in its place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        return function(self.model, batch)


def _prediction(output: Any) -> Any:
    """The tensor to which a loss of torch is applied: the output, its logits, or its first entry."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    if isinstance(output, (tuple, list)) and output:
        return _prediction(output[0])
    return output


def _device(model: nn.Module, wanted: str | torch.device | None) -> torch.device:
    if wanted is not None:
        try:
            device = torch.device(wanted)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(f"the device {str(wanted)!r} cannot be used: {error}") from error
        return device
    found: dict[str, str] = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        found.setdefault(str(value.device), name)
    if len(found) > 1:
        listed = ", ".join(f"{name!r} on {device}" for device, name in found.items())
        raise InputError(f"the model lies on several devices ({listed}): pass device=")
    device = torch.device(next(iter(found)))
    if device.type == "meta":
        raise InputError("the model has no weights (device 'meta'): load them first")
    return device


def _require_finite(tensors: Any) -> None:
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"{name} holds {bad} value(s) that are not finite out of {tensor.numel()}: "
                "clean it before measuring curvature"
            )


def _rows(batch: Any) -> int:
    first = next((tensor for _, tensor in batches.named_tensors(batch)), None)
    return first.shape[0] if first is not None and first.ndim else 1


def _is_missing_derivative(error: Exception) -> bool:
    text = str(error).lower()
    return any(
        sign in text
        for sign in ("derivative for", "differentiate twice", "double backward", "forward ad")
    )
