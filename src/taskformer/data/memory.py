"""Memory of the loader's processes: two calls of the C library that save a third of the time of a cached sample.

Fetching memory from the system page by page, for arrays of megabytes that live for a few milliseconds, takes as long
as all transforms of an image.
"""

import ctypes
import math
import platform
from collections.abc import Sequence

import torch
from torch import Tensor

#: Names of glibc's malloc.h and of Linux' mman.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MADV_POPULATE_WRITE = 23


def keep_freed_memory() -> None:
    """Let this process reuse the memory of freed arrays instead of giving it back to the system each time."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)  # the one that is loaded already
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # arrays up to 32 MiB come from the heap,
        library.mallopt(_M_TRIM_THRESHOLD, 128 << 20)  # which keeps up to 128 MiB


def shared_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return memory that another process sees too once it is sent the tensor; its values are arbitrary."""
    size = math.prod(shape) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)  # what torch's own collation takes
    if platform.system() == "Linux":  # refused before version 5.14, which is as well
        ctypes.CDLL(None).madvise(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(size), _MADV_POPULATE_WRITE)
    return torch.empty(0, dtype=dtype).set_(storage).view(*shape)
