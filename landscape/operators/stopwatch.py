"""Time spent on work that a device may finish later."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds between entering and leaving `running`, by the device's own clock where it runs apart.

    On CUDA nothing waits for the device until `seconds` is read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._total = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                yield
                last.record()
            self._events.append((first, last))
        else:
            start = time.perf_counter()
            yield
            self._total += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        for first, last in self._events:
            last.synchronize()
            self._total += first.elapsed_time(last) / 1e3
        self._events.clear()
        return self._total
