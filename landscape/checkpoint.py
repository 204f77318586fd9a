"""Unfinished work in a file, from which a killed run goes on to the same numbers."""

import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.batches import digest
from landscape.errors import InputError
from landscape.operators.base import Operator
from landscape.operators.curvature import CurvatureOperator
from landscape.operators.products.plan import Plan
from landscape.results import Cost, Meter, jsonable

SCHEMA = "landscape/resume/1"
LONGEST = 60.0  # seconds of work that may be lost
SHARE = 0.01  # of the time, for writing
State = dict[str, Any]


class Checkpoint:
    """The state of every stage of some work, written whole or not at all.

    A stage offers its state after every step. It is written as soon as 100 times the duration of the last
    writing have passed, so that writing takes 1 % of the time, and every minute at the latest: only where
    one writing takes more than 0.6 s is the share larger. At the end of a stage it is written too. When the disk is full the work goes on, the last
    state that was written stays, and `say` is told.

    Args:
        path: the file; if it exists its work goes on.
        operator: what is multiplied; with a file its execution plan is taken over.
        work: everything else on which the numbers depend, plain values by name.
        say: called with a sentence when the state cannot be written (default: `warnings.warn`).

    Raises:
        InputError: the file is damaged, or belongs to other work.
    """

    def __init__(
        self,
        path: str | Path,
        operator: Operator,
        work: Mapping[str, Any],
        *,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.operator, self.say = Path(path), operator, say or warnings.warn
        self.identity = _identity(operator) | jsonable(dict(work))
        self.states: dict[str, State] = {}
        self._last, self._duration = time.monotonic(), 0.0
        if self.path.exists():
            saved = _read(self.path)
            _require_same(self.path, saved["identity"], self.identity)
            self.states = saved["states"]
            if saved["plan"] is not None:
                operator.replay(saved["plan"])

    def stage(self, name: str) -> "Stage":
        """A part of the work that keeps a state of its own."""
        return Stage(self, name)

    def offer(self, name: str, state: Callable[[], State], *, at_once: bool) -> None:
        """Take over the state of a stage if it is time to write, or has to be now."""
        waited = time.monotonic() - self._last
        if not at_once and waited < min(LONGEST, self._duration / SHARE):
            return
        start = time.monotonic()
        plan = self.operator.hold()  # a run that goes on from here could not change it either
        self.states[name] = _packed(state())
        content = {
            "schema": SCHEMA,
            "identity": self.identity,
            "plan": None if plan is None else jsonable(plan.to_dict()),
            "states": self.states,
        }
        part = _part(self.path)
        try:
            with open(part, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk in its own words
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
            part.unlink(missing_ok=True)
            self.say(f"the state cannot be written to {str(self.path)!r}: {reason}; going on")
        self._last = time.monotonic()
        self._duration = self._last - start


def remove(path: Path) -> None:
    """Remove the state of finished work, and what a kill may have left of writing it."""
    path.unlink(missing_ok=True)
    _part(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    """Where a state is written first: one name, so that what a kill leaves of it is written over."""
    return path.with_name(path.name + ".part")


class Stage:
    """A part of resumable work; without a checkpoint, of work that is not kept.

    Attributes:
        state: what an earlier run left of this stage; None at the beginning.
        earlier: what that run has cost.
    """

    def __init__(self, checkpoint: Checkpoint | None = None, name: str = "") -> None:
        self._checkpoint, self._name = checkpoint, name
        saved = None if checkpoint is None else checkpoint.states.get(name)
        self.state: State | None = None if saved is None else saved["state"]
        self.earlier = None if saved is None else Cost(**saved["cost"])

    def meter(self, operator: Operator) -> Meter:
        """A meter that counts what an earlier run has cost too."""
        return Meter(operator, self.earlier)

    def forget(self) -> None:
        """Let go of the state, once it has been taken over; the file keeps it until the next offer."""
        self.state = None
        if self._checkpoint is not None:
            del self._checkpoint.states[self._name]

    def offer(self, meter: Meter, state: Callable[[], State], *, done: bool = False) -> None:
        """Say that the state could be written now; when the stage is done, it is."""
        if self._checkpoint is not None:
            self._checkpoint.offer(
                self._name,
                lambda: {"state": state(), "cost": asdict(meter.read())},
                at_once=done,
            )


Resume = str | Path | Stage | None


class Tape(Operator):
    """An operator whose products are kept, in the order they were made, and given again to a later run.

    For methods that decide by what they see: the same numbers lead to the same decisions. Where only
    something small is made of a product, `record` keeps that instead.
    """

    def __init__(self, operator: Operator, stage: Stage, meter: Meter) -> None:
        super().__init__(operator.shape[0], operator.dtype, operator.device)
        self.operator, self._stage, self._meter = operator, stage, meter
        self._kept: list[torch.Tensor] = [] if stage.state is None else stage.state["kept"]
        self._played, self._recording = 0, False

    def record(self, make: Callable[[], torch.Tensor], count: int) -> torch.Tensor:
        """What `make` gives, or gave in an earlier run: (1, count) numbers, from as many products."""
        return self._recorded(make, (1, count), counted=count)

    def _recorded(
        self, make: Callable[[], torch.Tensor], shape: tuple[int, ...], *, counted: int
    ) -> torch.Tensor:
        if self._played < len(self._kept):
            result = self._kept[self._played].to(self.device)
            if result.shape != shape:
                raise InputError(
                    "this work cannot go on as it began, because less memory is free than then: free some, or "
                    "remove the resume file to begin anew"
                )
            self.products += counted
        else:
            self._recording = True
            result = make()
            self._recording = False
            self._kept.append(result.clone())
            self._stage.offer(self._meter, lambda: {"kept": self._kept})
        self._played += 1
        return result

    @property
    def plan(self) -> Plan | None:
        return self.operator.plan

    def expect(self, products: int, *, width: int = 1) -> None:
        self.operator.expect(products, width=width)

    def _multiply(self, block: torch.Tensor) -> torch.Tensor:
        if self._recording:
            return self.operator.product(block)
        return self._recorded(lambda: self.operator.product(block), block.shape, counted=0)

    def _refresh(self) -> None:
        self.operator._refresh()

    def __repr__(self) -> str:
        return repr(self.operator)


def stages(
    path: str | Path | None,
    operator: Operator,
    work: Mapping[str, Any],
    say: Callable[[str], None] | None = None,
) -> Callable[[str], Stage]:
    """The stages of some work by their names, in a file if there is one."""
    if path is None:
        return lambda _: Stage()
    return Checkpoint(path, operator, work, say=say).stage


def stage_of(resume: Resume, operator: Operator, name: str, work: Mapping[str, Any]) -> Stage:
    """The stage that an estimator was given, or one in a file of its own."""
    if isinstance(resume, Stage):
        return resume
    if resume is None:
        return Stage()
    return Checkpoint(resume, operator, {"work": name} | dict(work)).stage(name)


def _identity(operator: Operator) -> dict[str, Any]:
    """On what every number depends: the matrix, the versions and the device."""
    from landscape import __version__

    if isinstance(operator, CurvatureOperator):
        problem = operator.problem
        about = problem.summary()
        del about["origin"]  # files may be moved
        # A loss is more than its name.
        slope = float(problem.gradient().double().norm())
        about |= {"loss value": f"{problem.loss():.6g}", "gradient norm": f"{slope:.6g}"}
        about |= {"products": str(operator.arithmetic or problem.dtype)}
        about |= {name: getattr(operator, name, None) for name in ("samples", "seed")}
        matrix: Any = about
    else:
        matrix = _fingerprint(operator)
    return jsonable(  # type: ignore[no-any-return]
        {
            "landscape": __version__,
            "torch": str(torch.__version__),
            "device": str(operator.device),
            "dtype": str(operator.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "operator": type(operator).__name__,
            "matrix": matrix,
        }
    )


def _fingerprint(operator: Operator) -> str:
    """A digest of one product, for matrices that have no name."""
    vector = torch.linspace(-1, 1, operator.shape[0], dtype=torch.float64)
    return digest({"product": operator @ vector.to(operator.device, operator.dtype)})


def _packed(value: Any) -> Any:
    """Plain values and tensors on the host that hold no more memory than they show, none copied twice."""
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(item) for item in value]
    if isinstance(value, torch.Tensor):
        return torch.from_numpy(
            value.detach().cpu().numpy()
        )  # a view would bring its whole storage
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, (np.generic)):
        return value.item()
    return value


def _read(path: Path) -> dict[str, Any]:
    """The content of a resume file; nothing in it is run."""
    reason = "it is damaged or no resume file"
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        saved = torch.load(path, weights_only=True, map_location="cpu") if whole else None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        RuntimeError,
        pickle.UnpicklingError,
        ValueError,
        EOFError,
    ) as error:
        raise InputError(
            f"cannot resume from {str(path)!r}: {reason}; remove it to begin anew"
        ) from error
    if not isinstance(saved, dict) or saved.get("schema") != SCHEMA:
        raise InputError(f"cannot resume from {str(path)!r}: {reason}; remove it to begin anew")
    return saved


def _require_same(path: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a file of other work, and say in what it differs."""
    differing = list(_differences(saved, here))
    if differing:
        name, then, now = differing[0]
        raise InputError(
            f"{str(path)!r} belongs to other work: {name} was {then!r} and is {now!r}; "
            "name another file, or remove it to begin anew"
        )


def _differences(saved: Any, here: Any, name: str = "") -> Any:
    """(name, then, now) of every value that is not the same."""
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys([*saved, *here]):
            yield from _differences(saved.get(key), here.get(key), key)
    elif saved != here:
        yield name, saved, here
