"""The largest memory that was in use, of this process and of GPUs."""

from __future__ import annotations

import ctypes
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


class PeakMemory:
    """The largest memory in use since this was made, bytes, where the system can tell (Linux; GPUs by PyTorch).

    trim : give back what was freed before, so that the peak begins at what is in use now.
    """

    def __init__(self, trim: bool = False) -> None:
        with suppress(OSError, AttributeError):
            if trim:
                ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        for k in _gpus():
            if trim:
                sys.modules["torch"].cuda.empty_cache()
            sys.modules["torch"].cuda.reset_peak_memory_stats(k)
        self._start = self.of_process()

    def of_process(self) -> float | None:
        """Of this process; ``None`` where it is not known."""
        with suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return None

    def of_gpus(self) -> float | None:
        """Of the tensors on the GPU with most of them; ``None`` where none is in use."""
        return max((float(sys.modules["torch"].cuda.max_memory_allocated(k)) for k in _gpus()), default=None)

    def on(self, device: Any) -> float:
        """Of the tensors on a GPU, or of this process beyond what it began with; NaN where it is not known."""
        if device.type == "cuda":
            return float(sys.modules["torch"].cuda.max_memory_allocated(device))
        peak = self.of_process()
        return math.nan if peak is None or self._start is None else peak - self._start


def _gpus() -> Any:
    """Numbers of the GPUs; none where this process uses none, of which PyTorch need not even be imported."""
    torch = sys.modules.get("torch")
    return range(torch.cuda.device_count()) if torch is not None and torch.cuda.is_initialized() else ()
