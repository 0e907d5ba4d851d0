"""What all data sets share: they only know a folder's layout; tasks and transforms are given to them."""

import logging
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from taskformer.data.geometry import map_kind, resize_image, resize_map
from taskformer.data.images import File, read_json
from taskformer.data.labels import LabelTurns
from taskformer.data.names import existing, read_lines
from taskformer.errors import CorruptFileError, DatasetNotFoundError, InvalidTargetError, TaskformerError
from taskformer.files import inside
from taskformer.pictures import Orientation, orientation
from taskformer.tasks import Task

Sample: TypeAlias = dict[str, Any]
OnError: TypeAlias = Literal["raise", "skip"]
#: Name of the entry of a sample's files that holds the image.
IMAGE = "image"

logger = logging.getLogger(__name__)


class RawSamples(Protocol):
    """Decoded samples kept somewhere quicker than their files, see :mod:`taskformer.data.cache`."""

    def get(self, index: int) -> Sample | None:
        """Return ``{"image", "targets"}`` of a raw sample, or None if it is not there."""


class SavedTargets(Protocol):
    """Predictions of images that lie in files, see :mod:`taskformer.data.predictions`."""

    def targets(self, name: str, size: tuple[int, int]) -> dict[str, NDArray[Any]]:
        """Return the targets of an image of this size, those that there are."""


class MultiTaskDataset(Dataset[Sample], ABC):
    """Images with one label map per task. Subclasses name the files (:meth:`files`) and read them (:meth:`decode`).

    Args:
        root: The data set's folder.
        split: Part of the data set, e.g. ``"train"``.
        tasks: The tasks to load, by name.
        transform: Turns a raw sample into tensors, usually a :class:`taskformer.data.transforms.TaskCompose`, which
            makes tasks without a label all invalid; ``None`` gives the raw numpy arrays and only the labels there are.
        size: Height and width that images and maps are resized to when they are loaded; None keeps the stored size.
        on_error: What a missing or broken file does: ``"raise"`` stops at once; ``"skip"`` logs the file once and gives
            one of ``substitutes`` instead, or a sample with nothing but ``meta``, which batches leave out.

    Attributes:
        ids: Identifier of each image, in order.
        cache: Where :meth:`raw` looks before it reads files.
        predictions: What a teacher has said of the images: further targets of a sample, moved with the image.
        substitutes: Images, in order, that may stand in for a broken one in training: the next that can be read does,
            the same one in every epoch and process. None in evaluation, where no image is to count twice.
        turns: Which one of several tasks' labels each image keeps in training; the others' are all invalid. None: all.
        may_be_empty: Tasks whose maps may lack a single valid pixel; in others that is a fault.
        orientation: What the orientation tags of images turn; nothing, unless a data set has it as an option.

    Raises:
        DatasetNotFoundError: If the files are not there.
    """

    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    orientation: Orientation = "stored"

    def __init__(
        self,
        root: str | Path,
        split: str,
        tasks: Mapping[str, Task],
        transform: Callable[[Sample], Sample] | None = None,
        size: tuple[int, int] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.tasks = dict(tasks)
        self.transform = transform
        self.size = size
        self.on_error = on_error
        self.cache: RawSamples | None = None
        self.substitutes: Sequence[int] = range(0)
        self.turns: LabelTurns | None = None
        self.predictions: SavedTargets | None = None
        self.ids = self._ids()
        if isinstance(self.ids, list):  # other sequences have found theirs in the folder
            for name in self.ids:
                inside(self.root, name, f"the image of the split {split!r}")
        # Shared between loader processes, so that a broken file is logged by the first one only.
        self._logged = torch.zeros(len(self.ids), dtype=torch.bool).share_memory_() if on_error == "skip" else None

    @abstractmethod
    def _ids(self) -> Sequence[str]:
        """Return the identifiers of the split's images."""

    @abstractmethod
    def files(self, index: int) -> dict[str, Path]:
        """Return the files of a sample: ``"image"``, the tasks' names, and whatever else :meth:`decode` needs.

        A label that the image does not have is left out; a file that ought to exist is named even if it does not.
        """

    @abstractmethod
    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any] | None:
        """Turn files into the image or a task's target.

        Args:
            key: ``"image"`` or a task's name.
            files: What :meth:`files` named, read.

        Returns:
            The image ``(H, W, 3)`` uint8 RGB, or a target of the same ``(H, W)``: labels are integers, 255 where
            invalid; others float32, NaN where invalid: depth ``(H, W)`` in metres, normals ``(H, W, 3)`` unit vectors
            (x right, y down, z into the scene), whole-image targets ``(K,)``. None if there is no label.

        Raises:
            CorruptFileError: If a file does not hold what it should.
            InvalidTargetError: If it holds class ids that do not exist.
        """

    def paths(self, index: int) -> dict[str, Path]:
        """Return the files of a sample as they are on the disk, where endings may be in capitals, see :meth:`files`."""
        return {key: existing(path) for key, path in self.files(index).items()}

    def meta(self, index: int) -> dict[str, Any]:
        """Return plain facts about a sample; ``"size"``, the loaded height and width, is added."""
        return {"id": self.ids[index]}

    def problems(self) -> Iterator[str]:
        """Find faults of the split as a whole, one sentence each; for ``taskformer data verify``."""
        yield from ()

    def doubts(self) -> Iterator[str]:
        """Find oddities of the split as a whole that may be intended; for ``taskformer data verify``."""
        yield from ()

    def faults(self, key: str, files: Mapping[str, File], target: NDArray[Any]) -> Iterator[str]:
        """Find faults of one decoded map that only this data set knows of; for ``taskformer data verify``."""
        del key, files, target
        yield from ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample, transformed; an image that cannot be read is left to :attr:`on_error`."""
        if self.on_error == "raise":
            return self._labelled(index)
        for place in chain((index,), self._stand_ins(index)):
            try:
                return self._labelled(place)
            except (CorruptFileError, InvalidTargetError, DatasetNotFoundError) as error:
                self._log_once(place, error)
        if not self.substitutes:
            return {"meta": {"id": self.ids[index]}}
        msg = f"no image of the split {self.split!r} in {self.root} can be read; see the files logged above"
        raise DatasetNotFoundError(msg)

    def _stand_ins(self, index: int) -> Iterator[int]:
        """Yield the substitutes after an image and then those before it."""
        start, count = bisect_right(self.substitutes, index), len(self.substitutes)
        places = (self.substitutes[(start + step) % count] for step in range(count))
        return (place for place in places if place != index)

    def _labelled(self, index: int) -> Sample:
        """Return one sample, transformed, with the labels that it keeps.

        The others are taken away last: a transform that looks at one of them draws what it would draw with all.
        """
        sample = self._finish(self.raw(index))
        if self.turns is None:
            return sample
        size, targets = sample[IMAGE].shape[-2:], sample["targets"]
        absent = {name: self.tasks[name].invalid(*size) for name in self.turns.withheld(index) if name in targets}
        return {**sample, "targets": targets | absent}

    def raw(self, index: int) -> Sample:
        """Return ``{"image", "targets", "meta"}`` as numpy arrays, before the transform."""
        cached = self.cache.get(index) if self.cache else None
        if cached is None:
            return self._decode_all(self.read_files(index), self.meta(index))
        return {**cached, "meta": {**self.meta(index), "size": cached[IMAGE].shape[:2]}}

    def sample(self, files: Mapping[str, File], meta: Mapping[str, Any]) -> Sample:
        """Return a sample like ``self[index]`` from files that were read elsewhere, e.g. from a stream."""
        return self._finish(self._decode_all(files, meta))

    def read_files(self, index: int) -> dict[str, File]:
        """Read the files of a sample."""
        contents = {}
        for key, path in self.paths(index).items():
            try:
                contents[key] = File(str(path), path.read_bytes())
            except OSError as error:
                msg = (
                    f"{type(self).__name__}: {path} of the split {self.split!r} cannot be read ({error.strerror}); "
                    "get the file again, or set data.init_args.on_error to skip"
                )
                raise DatasetNotFoundError(msg) from error
        return contents

    def _decode_all(self, files: Mapping[str, File], meta: Mapping[str, Any]) -> Sample:
        image = self.decode(IMAGE, files)
        if image is None:
            msg = f"{type(self).__name__} decoded no image from {files[IMAGE].path}"
            raise TaskformerError(msg)
        targets = {}
        for name in self.tasks:
            target = self.decode(name, files)
            if target is not None:
                self._check_alignment(name, target, image, files)
                self._check_classes(name, target, files)
                targets[name] = self._resized(name, target)
        image = resize_image(image, *self.size) if self.size else image
        return {IMAGE: image, "targets": targets, "meta": {**meta, "size": image.shape[:2]}}

    def _resized(self, name: str, target: NDArray[Any]) -> NDArray[Any]:
        kind = map_kind(self.tasks[name])
        return resize_map(target, kind, *self.size) if self.size and kind else target

    def _check_alignment(self, name: str, target: NDArray[Any], image: NDArray[Any], files: Mapping[str, File]) -> None:
        """Refuse a map of another size than its image."""
        if map_kind(self.tasks[name]) and target.shape[:2] != image.shape[:2]:
            file = files.get(name, files[IMAGE])
            msg = (
                f"{file.path}: the {name} map is {target.shape[0]}x{target.shape[1]} and its image "
                f"{files[IMAGE].path} {image.shape[0]}x{image.shape[1]} (height x width); they must agree"
            )
            if (tag := orientation(files[IMAGE])) > 1:
                msg += f"; the image has the orientation tag {tag}: the map may fit it as viewers show it"
            raise CorruptFileError(msg)

    def _check_classes(self, name: str, target: NDArray[Any], files: Mapping[str, File]) -> None:
        """Refuse classes that the task does not have; the file is only known here."""
        if reason := self.tasks[name].wrong_classes(target):
            msg = f"{files.get(name, files[IMAGE]).path} {reason}"
            raise InvalidTargetError(msg)

    def _finish(self, sample: Sample) -> Sample:
        if self.predictions is not None:
            size = sample[IMAGE].shape[:2]
            sample = {**sample, "targets": sample["targets"] | self.predictions.targets(sample["meta"]["id"], size)}
        return sample if self.transform is None else self.transform(sample)

    def _log_once(self, index: int, error: Exception) -> None:
        if self._logged is not None and not self._logged[index]:
            self._logged[index] = True
            logger.warning("skipped image %s: %s", self.ids[index], error)

    def _require(self, path: Path) -> Path:
        """Return the path of a file of this data set, or say that the data set is not there."""
        if not path.exists():
            msg = (
                f"{type(self).__name__}: {path} does not exist (working directory: {Path.cwd()}); "
                f"point `data.init_args.root` (now {str(self.root)!r}) to the data set's folder"
            )
            raise DatasetNotFoundError(msg)
        return path

    def _read_list(self, path: Path) -> list[str]:
        """Read a list of this data set, one entry per line, or say that it is missing or not text."""
        return read_lines(self._require(path))

    def _read_json(self, path: Path) -> Any:
        """Read a JSON file of this data set, or say that it is missing or broken."""
        return read_json(File(str(path), self._require(path).read_bytes()))


def is_list_of_paths(row: Any, count: int) -> bool:
    """Whether a row of a JSON file is a list of ``count`` paths."""
    return isinstance(row, list) and len(row) == count and all(isinstance(path, str) for path in row)
