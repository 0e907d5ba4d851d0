"""How much memory a call needs at its peak, above what lies there before and after it.

On a GPU torch's allocator knows. On Linux the kernel keeps the largest resident size of a process and can be told to
start anew; freed memory that the C library keeps is handed back before, so that a figure does not depend on what ran
earlier. Elsewhere there is no such figure.
"""

import ctypes
import gc
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch

#: Files of Linux about this process: its sizes, and where its largest size is forgotten.
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: What the second takes for that.
FORGET_PEAK = "5"


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Measure the largest memory of a call, which must have run before, in bytes above the memory between calls.

    Args:
        call: What is measured; what it needs only once, such as an optimizer's state, is there already.
        device: Where it runs.

    Returns:
        The bytes; None where neither torch nor the system can tell.
    """
    gc.collect()
    if device.type == "cuda":
        return _peak_on_gpu(call, device)
    return _peak_of_process(call) if device.type == "cpu" and CLEAR.exists() else None


def _peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_process(call: Callable[[], object]) -> int:
    """Measure the resident memory of this process, the C library's own and that of numerical libraries too."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text(FORGET_PEAK)
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Read a size of this process in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])
