"""Memory that a loader's processes share with the one that trains."""

import ctypes
import math
import platform
from collections.abc import Sequence

import torch
from torch import Tensor

#: Name of Linux' mman.h.
_MADV_POPULATE_WRITE = 23


def shared_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return memory that another process sees too once it is sent the tensor; its values are arbitrary."""
    size = math.prod(shape) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)  # what torch's own collation takes
    if platform.system() == "Linux":  # refused before version 5.14, which is as well
        ctypes.CDLL(None).madvise(ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(size), _MADV_POPULATE_WRITE)
    return torch.empty(0, dtype=dtype).set_(storage).view(*shape)
