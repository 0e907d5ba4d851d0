"""Files of repositories on the Hugging Face hub: an encoder's tensors, and the images that they were trained on.

Both come from the local cache once they were downloaded; ``HF_HUB_OFFLINE=1`` takes nothing else.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from taskformer.errors import WeightsError

#: How such names begin.
HUB = "hub:"
#: What the tensors are called where no file is named, the best first.
TENSORS = ("model.safetensors", "pytorch_model.bin")
#: Files that may hold mean and deviation, and what they are called in them: timm's, and transformers'.
SETTINGS = {"config.json": ("mean", "std"), "preprocessor_config.json": ("image_mean", "image_std")}


class Place(NamedTuple):
    """What a name means.

    >>> Place.of("hub:timm/vit_small_patch14_dinov2.lvd142m")
    Place(repository='timm/vit_small_patch14_dinov2.lvd142m', revision=None, file=None)
    >>> Place.of("hub:ORG/REPO@v1/weights/s.pth")
    Place(repository='ORG/REPO', revision='v1', file='weights/s.pth')
    """

    repository: str
    revision: str | None
    file: str | None

    @classmethod
    def of(cls, weights: str) -> "Place":
        """Take ``hub:ORG/REPO[@REVISION][/FILE]`` apart.

        Raises:
            WeightsError: If it is something else.
        """
        organisation, _, rest = weights.removeprefix(HUB).partition("/")
        name, _, file = rest.partition("/")
        repository, _, revision = name.partition("@")
        if not organisation or not repository:
            msg = f"weights {weights!r} name no repository; expected hub:ORG/REPO[@REVISION], or that and /FILE"
            raise WeightsError(msg)
        return cls(f"{organisation}/{repository}", revision or None, file or None)


def tensors_file(weights: str) -> Path:
    """Download the tensors of a repository, unless they are in the cache.

    Args:
        weights: ``hub:ORG/REPO[@REVISION][/FILE]``.

    Raises:
        WeightsError: If there is no such repository or file, or no network.
    """
    place = Place.of(weights)
    names = (place.file,) if place.file else TENSORS
    path = _first(place, names, weights)
    if path is None:
        msg = (
            f"weights {weights!r}: the repository has no {' or '.join(names)}; name one of its files, hub:ORG/REPO/FILE"
        )
        raise WeightsError(msg)
    return path


def hub_normalisation(weights: str) -> list[list[float]] | None:
    """Return the mean and deviation that a repository's settings state, or None if they state none.

    Raises:
        WeightsError: If the settings cannot be downloaded or read.
    """
    place = Place.of(weights)
    for file, keys in SETTINGS.items():
        path = _first(place, (file,), weights)
        try:
            settings = json.loads(path.read_text(encoding="utf-8")) if path else {}
            settings = {**settings, **(settings.get("pretrained_cfg") or {})}
            if all(key in settings for key in keys):
                return [[float(value) for value in settings[key]] for key in keys]
        except (AttributeError, TypeError, ValueError) as error:
            msg = f"{file} of {place.repository!r} holds no settings of timm or transformers ({error})"
            raise WeightsError(msg) from error
    return None


def _first(place: Place, names: Sequence[str], weights: str) -> Path | None:
    """Download the first of several files that a repository has; None if it has none of them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    unreachable: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(place.repository, name, revision=place.revision))
        except LocalEntryNotFoundError as error:  # no network, and not in the cache, where the next may be
            unreachable = error
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:  # no such repository, no access, no valid name
            unreachable = error
            break
    if unreachable is None:
        return None
    msg = (
        f"{weights!r}: {' or '.join(names)} cannot be downloaded ({type(unreachable).__name__}: "
        f"{' '.join(str(unreachable).split())[:200]}); check the name, go online, or give the path of a file"
    )
    raise WeightsError(msg) from unreachable
