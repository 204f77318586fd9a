"""The loss as a function of the parameters: model, loss, data, and every rule about them."""

import contextlib
import copy
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape import batches
from landscape.errors import InputError, UntrustedResult
from landscape.evaluation import SEED, Evaluation, evaluation
from landscape.handling import NormStats, keeps_statistics, unwrapped
from landscape.losses import Loss
from landscape.objective import Objective
from landscape.parameters import Layout, select
from landscape.substitutes import Functions, Notice
from landscape.undisturbed import preserved_randomness
from landscape.usable import device_of, is_mask, require_finite, require_usable

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
        self.closure: Closure | None = None
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
        problem.closure = closure
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
        if dtype not in (None, torch.float32, torch.float64):
            raise InputError(f"dtype is {dtype}: choose torch.float32 or torch.float64")
        if norm_stats not in ("running", "batch"):
            raise InputError(f"norm_stats is {norm_stats!r}: choose 'running' or 'batch'")
        self.model = model
        self.norm_stats: NormStats = norm_stats
        # A loss with weights or buffers of its own, or one that holds the model, is a module too.
        own = self.objective.loss if self.objective is not None else self.closure
        extra = list(own.modules()) if isinstance(own, nn.Module) else []
        self.modules = list({id(m): m for m in [*model.modules(), *extra]}.values())
        require_usable(self.modules, model)
        self.names = select(model, params)
        self.device = device_of(model, device)
        wide = any(p.dtype in (torch.float64, torch.complex128) for p in self.selected())
        # Half-precision weights are exact in float32, and their curvature needs its digits.
        self.dtype = dtype or (torch.float64 if wide else torch.float32)
        self.layout = Layout(tuple(self.names), tuple(map(_real_shape, self.selected())))
        self.data = batches.as_batches(data, batch_size, pairs=self.objective is not None)
        self.graphs_checked: Counter[str] = Counter()  # per kind of product
        self.origin: dict[str, Any] = {}  # which files it came from, if it was loaded
        self.surveyed = False
        self.substituted: set[str] = set()  # what the survey had to write out
        self._kept: list[Any] | None = None
        self._used: list[bool] | None = None
        self._gradient_seconds: float | None = None
        self._survey()

    def selected(self) -> list[nn.Parameter]:
        """The model's own selected parameters, in the order of `names`."""
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in self.names]

    def weights(self, dtype: torch.dtype | None = None) -> Tensor:
        """θ, the selected parameters as they are now, (P,), in a dtype (default: the problem's)."""
        own = [torch.view_as_real(p) if p.is_complex() else p for p in self.selected()]
        like = torch.empty(0, device=self.device, dtype=dtype or self.dtype)
        return self.layout.flatten([p.detach().to(like) for p in own], like)

    @property
    def size(self) -> int:
        """Number of selected parameters P."""
        return self.layout.size

    def astype(self, dtype: torch.dtype) -> "Problem":
        """The same problem in another floating-point type, on the same weights and data."""
        other = copy.copy(self)
        other.dtype = dtype
        other._kept = None
        return other

    def part(self, rows: int) -> "Problem":
        """The same problem on its first samples only: whole batches, or the beginning of the first.

        Args:
            rows: number of samples, at most; what the first batch is cut to if it has more.
        """
        kept: list[Any] = []
        for batch in self.batches():
            room = rows - sum(map(batches.row_count, kept))
            if batches.row_count(batch) > room:
                kept += [] if kept else [batches.take_rows(batch, 0, room)]
                break
            kept.append(batch)
        return self.over(kept)

    def over(self, data: Iterable[Any]) -> "Problem":
        """The same loss over other batches, a re-iterable of them, which are looked at as the first were."""
        other = copy.copy(self)
        other.data, other._kept, other._gradient_seconds, other._used = data, None, None, None
        other.graphs_checked = Counter()
        other._survey()
        return other

    def separate(self) -> "Problem":
        """The same problem on a copy of the model, which may be changed; the data are shared.

        Raises:
            InputError: the model cannot be copied.
        """
        shared: dict[int, Any] = {id(thing): thing for thing in (self.data, self._kept)}
        try:
            other = copy.deepcopy(self, shared)
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"the model cannot be copied ({reason}): build it anew") from error
        other.model.to(self.device)
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
            value = sum(float(run.total(batch)[0]) for batch in run.batches()) / self.terms
        if not math.isfinite(value):
            raise UntrustedResult(f"the loss is {value} at the model's current weights")
        return value

    def gradient(self) -> Tensor:
        """∇L(θ) over all the data, shape (P,)."""
        with self.evaluation() as run:
            found = run.gradient()
        self._used = found.used
        if not bool(torch.isfinite(found.gradient).all()):
            raise UntrustedResult("the gradient is not finite at the model's current weights")
        return found.gradient / self.terms

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

    def evaluation(
        self, functions: Functions | None = None, notice: Notice | None = None
    ) -> contextlib.AbstractContextManager[Evaluation]:
        """Everything needed to evaluate the loss; nothing of the user's is changed by it."""
        return evaluation(self, functions, notice)

    def batches(self) -> Iterator[Any]:
        """Batches on the device, floating-point tensors in the problem's dtype."""
        if self._kept is not None:
            yield from self._kept
            return
        for batch in batches.read(self.data):
            yield batches.move(batch, self.device, self.dtype)

    def summary(self) -> dict[str, Any]:
        """What was measured, for provenance: names, counts, modes and fingerprints."""
        return {
            "model": type(unwrapped(self.model)).__name__,
            "parameters": self.size,
            "parameter_tensors": len(self.names),
            "unused_parameters": self.unused(),
            "loss": self.objective.name if self.objective else "closure",
            "loss_terms": self.terms,
            "samples": self.samples,
            "batches": self.batch_count,
            "tensors": self.tensors,
            "classes": self.classes,
            "norm_stats": self._norm_stats_used(),
            "norm_layers": len(self._batch_norms()),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "origin": self.origin,
            "data_fingerprint": self.data_fingerprint,
            "weights_fingerprint": self.weights_fingerprint(),
        }

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules if keeps_statistics(module)]

    def has_statistics(self) -> bool:
        """Whether some layer keeps statistics of its inputs, as batch normalisation does."""
        return bool(self._batch_norms())

    def uses_batch_statistics(self) -> bool:
        """Whether some layer normalises by the batch, so that its samples belong together."""
        return bool(self._batch_norms()) and self._norm_stats_used() != "running"

    def _norm_stats_used(self) -> str:
        """The statistics that batch normalisation really uses; some layers keep no running ones."""
        layers = self._batch_norms()
        without = sum(layer.running_mean is None for layer in layers)
        if self.norm_stats == "batch" or (layers and without == len(layers)):
            return "batch"
        return f"running, batch in {without} of {len(layers)} layers" if without else "running"

    def weights_fingerprint(self) -> str:
        """SHA-256 of the weights and buffers as they are now."""
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        return batches.digest(tensors)

    # What follows reads the data once and refuses what cannot be measured.

    def _survey(self) -> None:
        """One forward pass over the data: count terms, fingerprint, and check everything."""
        self.terms, self.samples, self.batch_count, total, kept_bytes = 0.0, 0, 0, 0.0, 0
        digests, kept = [], []
        self.tensors: dict[str, dict[str, Any]] = {}
        self.reordered = False  # whether another pass may give the samples in another order
        classes: set[int] = set()
        with self.evaluation() as run, torch.no_grad():
            for raw in batches.read(self.data):
                batch = batches.move(raw, self.device, self.dtype)
                for name, tensor in batches.named_tensors(batch):
                    if not is_mask(tensor):
                        require_finite(f"{name!r} of batch {self.batch_count}", tensor)
                value, count = run.check(batch, thoroughly=not self.terms)
                total += value
                self.terms += count
                self.samples += batches.row_count(batch)
                self.batch_count += 1
                self.tensors = self.tensors or batches.describe(raw)
                classes |= batches.classes(raw)
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
        if self.objective is not None:
            self.objective.require_known()
        self.classes = len(classes) or None
        self.data_fingerprint = hashlib.sha256("".join(digests).encode()).hexdigest()
        if not isinstance(self.data, (list, tuple)):
            self._check_second_pass(digests, total / self.terms)
        if kept_bytes <= batches.KEEP_BYTES:
            self._kept = kept
        self.surveyed = True

    def _check_second_pass(self, digests: list[str], expected: float) -> None:
        """A loader may shuffle, but another pass must give the same loss."""

        def another_pass() -> contextlib.AbstractContextManager[None]:
            return preserved_randomness(SEED + 1, batches.generators(self.data))

        with another_pass():
            again = [batches.digest(batch) for batch in batches.read(self.data)]
        self.reordered = again != digests
        if not self.reordered:
            return
        if not again:
            raise InputError(
                f"the data are empty on a second pass, {len(digests)} batches on the first: pass a list "
                "of batches or a DataLoader, which can be read again"
            )
        total, terms = 0.0, 0.0
        with self.evaluation() as run, torch.no_grad(), another_pass():
            for raw in batches.read(self.data):
                value, count = run.total(batches.move(raw, self.device, self.dtype))
                total, terms = total + float(value), terms + count
        found = total / terms if terms else float("nan")
        if terms != self.terms or abs(found - expected) > 1e-4 * max(abs(found), abs(expected)):
            why = (
                "batch statistics depend on which samples share a batch: pass shuffle=False"
                if self._norm_stats_used() != "running"
                else "random augmentation or shuffling with drop_last: switch it off"
            )
            raise InputError(
                f"two passes over the data give different losses ({expected:.6g} over "
                f"{self.terms:g} terms, then {found:.6g} over {terms:g}); {why}"
            )


def _real_shape(tensor: Tensor) -> torch.Size:
    """The shape of a tensor with a complex number as two real ones."""
    return torch.Size((*tensor.shape, 2)) if tensor.is_complex() else tensor.shape
