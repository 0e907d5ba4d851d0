"""How much of a pretrained encoder trains: all of it, its last blocks, low-rank adapters, or nothing."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, types and shapes, in whatever order, layout or place they are.

    >>> fingerprint({"a": torch.zeros(2), "b": torch.ones(1)}) == fingerprint({"b": torch.ones(1), "a": torch.zeros(2)})
    True
    >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(1, 2)})
    False
    """
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
