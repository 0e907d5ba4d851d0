"""How much memory a call needs at its peak, above what lies there before and after it.

On a GPU torch's allocator knows. On Linux the kernel keeps the largest resident size of a process and can be told to
start anew; the C library is told to give back at once what is freed, so that this is the memory in use and does not
depend on what ran earlier. A process that keeps freed memory, as trainings do, holds somewhat more. Elsewhere there is
no such figure.
"""

import ctypes
import gc
import platform
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from taskformer.memory import keep_freed_memory

#: Files of Linux about this process: its sizes, and where its largest size is forgotten.
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: What the second takes for that.
FORGET_PEAK = "5"
#: Names of glibc's malloc.h, and what they are set to for a while: arrays of so many bytes and more have pages of their
#: own, as long as these are not too many, and free memory at the heap's end is given back.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
LARGE, MANY = 64 << 10, 1 << 15


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Measure the largest memory of a call, which must have run before, in bytes above the memory between calls.

    Args:
        call: What is measured; what it needs only once, such as an optimizer's state, is there already.
        device: Where it runs.

    Returns:
        The bytes; None where neither torch nor the system can tell.
    """
    collects = gc.isenabled()
    gc.disable()  # what lies there before must not be freed meanwhile
    try:
        if device.type == "cuda":
            return _peak_on_gpu(call, device)
        return _peak_of_process(call) if device.type == "cpu" and CLEAR.exists() else None
    finally:
        if collects:
            gc.enable()


def _peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_process(call: Callable[[], object]) -> int:
    """Measure the resident memory of this process, that of numerical libraries too.

    A thread of its own has a heap of its own, without the holes that earlier calls have left in the main one: an array
    in such a hole would stay resident after it is freed. Large arrays have pages of their own, and give them back.
    """
    found: list[int] = []

    def measure() -> None:
        CLEAR.write_text(FORGET_PEAK)
        before = _resident("VmRSS")
        call()
        found.append(_resident("VmHWM") - before)

    with _giving_back(), ThreadPoolExecutor(1) as alone:
        alone.submit(measure).result()
    return found[0]


@contextmanager
def _giving_back() -> Iterator[None]:
    """Let the C library give freed memory back at once, for a while."""
    library = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if library is not None:
        library.malloc_trim(0)
        library.mallopt(_M_MMAP_MAX, MANY)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE)
        library.mallopt(_M_TRIM_THRESHOLD, LARGE)
    try:
        yield
    finally:
        if library is not None:
            keep_freed_memory()


def _resident(name: str) -> int:
    """Read a size of this process in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])
