"""How much memory this machine can still give, and how much this process has taken."""

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch

_highest: dict[str, int] = {}  # peaks before they were set back, by kind of device


def available_bytes(device: "torch.device | None" = None) -> int:
    """Memory that can be had without swapping, in bytes; within a container, what its limit leaves.

    Of a CUDA device, what its driver says is free.
    """
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    found = [_physical()]
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found += [int(limit) - used] if limit.isdigit() else []
    except (OSError, ValueError):
        pass
    return max(0, min(found))


def _physical() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30  # nothing is known: a small machine


def peak_bytes(device: str = "cpu") -> int:
    """The most memory this process has held, in bytes; 0 where the system does not tell.

    On "cuda", the most that torch's allocator has given out.
    """
    return max(_highest.get(device, 0), _peak_since_reset(device))


def _peak_since_reset(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: Python's, a GPU's, or torch's on the CPU, by operating system."""
    if isinstance(error, MemoryError):
        return True
    refusals = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in refusals)


class Peak:
    """The most memory taken within a `with` block above what was held before it.

    `bytes` is None where the system does not tell: on the CPU only Linux does.

    Args:
        device: where the computation runs.
    """

    def __init__(self, device: "torch.device") -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        gc.collect()
        _return_freed()
        kind = self.device.type
        _highest[kind] = peak_bytes(kind)
        self._held = self._reset()
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is None:
            return
        if self.device.type == "cuda":
            import torch

            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _status("VmHWM")
        self.bytes = None if peak is None else max(0, peak - self._held)

    def _reset(self) -> int | None:
        """Set the peak back to what is held now, which is returned; None where that is refused."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            return int(torch.cuda.memory_allocated(self.device))
        try:
            Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
        except OSError:
            return None
        return _status("VmRSS")


def _return_freed() -> None:
    """Give memory that was freed back to the system, which glibc puts off."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int | None:
    """A size in /proc/self/status, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
