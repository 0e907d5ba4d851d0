"""Maps of a frozen encoder on disk: encoded once, then read by every later epoch and study.

An entry is one image's maps in a file of its own. Its name is a hash of everything that they depend on: the encoder's
weights and settings, and the image as the encoder gets it, so that whatever the transforms did is in it. Nothing has to
be deleted for another encoder or other transforms, and any number of processes share a folder.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taskformer.errors import require
from taskformer.files import UNFINISHED, replacing

#: Ending of the files.
SUFFIX = ".safetensors"
#: Share of the bound that a process adds before it looks again how much the others have added.
RECOUNT = 1 / 64


@dataclass(frozen=True)
class CacheSettings:
    """Where the maps of a frozen encoder are kept, and how many.

    Args:
        folder: Folder of the files, which any number of runs may share; None: nothing is kept.
        gigabytes: Size (in 10^9 bytes) of all files at which nothing is added any more.
    """

    folder: str | None = None
    gigabytes: float = 20.0

    def open(self) -> "FeatureCache | None":
        """Return the cache, if there is one."""
        return None if self.folder is None else FeatureCache(self.folder, self.gigabytes)


class FeatureCache:
    """Keeps what a frozen encoder says of an image.

    >>> import tempfile
    >>> def encode(image):
    ...     print(f"encodes {len(image)}")
    ...     return [image.mean(dim=1, keepdim=True)]
    >>> images = torch.rand(3, 3, 4, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = FeatureCache(folder, gigabytes=0.001)
    ...     first = cache(images[:2], "the encoder's fingerprint", encode)
    ...     again = cache(images, "the encoder's fingerprint", encode)
    encodes 2
    encodes 1
    >>> torch.equal(again[0][:2], first[0])
    True

    When it is full it keeps what it has, adds nothing, and says so once on standard error. Of several processes each
    looks how full the folder is after every :data:`RECOUNT` of the bound that it adds; n of them can thus go beyond it
    by n such shares. A file that cannot be read is written again.

    Args:
        folder: Where the files lie.
        gigabytes: Size (in 10^9 bytes) of all files at which nothing is added any more.

    Raises:
        ConfigError: If the size is not above 0.
    """

    def __init__(self, folder: str | Path, gigabytes: float) -> None:
        require("(0, inf)", gigabytes=gigabytes)
        self.folder = Path(folder)
        self.limit = gigabytes * 1e9
        self._full = False
        self._size: float | None = None  # of the folder when it was last counted, with what was added since
        self._added = 0

    def __call__(self, image: Tensor, encoder: str, encode: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """Return the maps of images, of which only those that are not there are encoded.

        Args:
            image: ``(B, 3, H, W)``.
            encoder: What tells this encoder from every other one: its weights, its settings, its precision.
            encode: Maps ``(N, 3, H, W)`` to maps ``(N, C, h, w)``; the maps of an image must not depend on the others.

        Returns:
            The maps ``(B, C, h, w)`` on the image's device.
        """
        paths = [self._path(one, encoder) for one in image]
        found = [_read(path) for path in paths]
        missing = [index for index, maps in enumerate(found) if maps is None]
        if missing:
            encoded = encode(image[missing])
            for place, index in enumerate(missing):
                found[index] = maps = [levels[place] for levels in encoded]
                self._add(paths[index], maps)
        batches = zip(*(maps for maps in found if maps is not None), strict=True)
        return [torch.stack([one.to(image.device) for one in level]) for level in batches]

    def _path(self, image: Tensor, encoder: str) -> Path:
        pixels = image.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{encoder} {pixels.dtype} {tuple(pixels.shape)} ".encode())
        digest.update(pixels.view(torch.uint8).numpy().data)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def _add(self, path: Path, maps: list[Tensor]) -> None:
        """Write an image's maps, if there is room."""
        from safetensors.torch import save

        if self._full:
            return
        content = save({str(level): x.detach().cpu().contiguous() for level, x in enumerate(maps)})
        if self._size is None or self._added > RECOUNT * self.limit:
            self._size, self._added = _size(self.folder), 0
        if self._size + len(content) > self.limit:
            self._stop(f"holds its {self.limit / 1e9:g} gigabytes")
            return
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            self._stop(f"cannot be written to ({error.strerror})")
            return
        self._size += len(content)
        self._added += len(content)

    def _stop(self, why: str) -> None:
        """Add nothing any more."""
        self._full = True
        sys.stderr.write(f"taskformer: the feature cache {self.folder} {why}; further images are encoded every time\n")


def _read(path: Path) -> list[Tensor] | None:
    """Return the maps in a file; None if there is none, or not a whole one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        maps = load(path.read_bytes())
    except (FileNotFoundError, SafetensorError):
        return None
    return [maps[str(level)] for level in range(len(maps))]


def _size(folder: Path) -> int:
    """Return the bytes of all files of a cache; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.glob(f"*/*{SUFFIX}"):
        try:
            total += 0 if path.name.startswith(UNFINISHED) else path.stat().st_size
        except FileNotFoundError:
            continue
    return total
