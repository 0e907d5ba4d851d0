"""How steady predictions are over time: each map against the one before it, moved along with the image.

No labels are needed. A network that sees each frame alone flickers where it is unsure, and this says how much. Steady
is not right: one map for all frames of a camera that stands still scores 0.

References:
    Lai et al. Learning Blind Video Temporal Consistency. ECCV 2018, the warping error.
    Kroeger et al. Fast Optical Flow Using Dense Inverse Search. ECCV 2016, the flow.
    Sundaram, Brox, Keutzer. Dense Point Trajectories by GPU-Accelerated Large Displacement Optical Flow. ECCV 2010,
    Eq. 5, what is occluded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from taskformer.data.images import File, read_json, read_npy
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, UnknownNameError
from taskformer.metrics.units import shown
from taskformer.modules.photographs import FACTS, find_images, result_names
from taskformer.modules.video import is_video, read_frames
from taskformer.pictures import read_picture
from taskformer.tasks import Task, build_tasks
from taskformer.tasks.colors import Picture

#: Flow there and back again may miss its start by so much: a share of its squared length, and square pixels.
MISS_SHARE, MISS = 0.01, 0.5
#: Shortest side in pixels of an image with a flow.
SMALLEST = 16


@dataclass(frozen=True)
class SequenceEvaluation:
    """How steady the predictions of a sequence are.

    >>> found = SequenceEvaluation(
    ...     "clip.mp4", compared=[0.9, 0.7], differences={"depth": [0.1, 0.3]}, tasks=build_tasks({"depth": {}})
    ... )
    >>> found.results
    {'depth': 0.2}

    Attributes:
        sequence: The video or folder.
        compared: Of each pair of neighbouring frames the share of pixels that are in both.
        differences: Of each pair the mean difference of these pixels by task, in the task's unit; None where no pixel
            is valid.
        tasks: The tasks by name.
    """

    sequence: str
    compared: list[float]
    differences: dict[str, list[float | None]]
    tasks: dict[str, Task]

    @property
    def results(self) -> dict[str, float]:
        """The mean over all pairs by task; NaN where no pair has a valid pixel."""
        valid = {name: [x for x in values if x is not None] for name, values in self.differences.items()}
        return {name: float(np.mean(values)) if values else float("nan") for name, values in valid.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON; shares are fractions."""
        return {
            "sequence": self.sequence,
            "pairs": len(self.compared),
            "compared": self.compared,
            "warped_difference": self.results,
            "units": {name: self.tasks[name].difference_unit for name in self.differences},
            "differences": self.differences,
        }

    def table(self) -> Table:
        """Build the table for the terminal."""
        share = shown(float(np.mean(self.compared)))
        title = f"{self.sequence}: {len(self.compared)} pairs of frames, {share} % of their pixels are in both"
        table = Table(title=title)
        for name in ("task", "warped difference", "unit"):
            table.add_column(name, justify="right" if "difference" in name else "left")
        for name, value in self.results.items():
            unit = self.tasks[name].difference_unit
            table.add_row(name, shown(value, unit), unit)
        return table


class Moved(NamedTuple):
    """Where each pixel of a frame was in the one before ``(H, W)``, and whether it was seen there."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    seen: NDArray[np.bool_]


def evaluate_sequence(
    predictions: str | Path, sequence: str | Path, tasks: Sequence[str] | None = None
) -> SequenceEvaluation:
    """Measure how steady predictions are over time: each map against the one before it, warped by optical flow.

    What is occluded, or was outside of the frame before, does not count. Maps are compared in their task's unit: shares
    of pixels whose class changes, metres, degrees. Depth and normals also change as the camera moves towards things and
    turns: compare networks on one sequence, not sequences.

    Args:
        predictions: The folder that ``taskformer predict`` wrote, with the values (``raw``).
        sequence: The video that was predicted, or the folder of its frames, which follow each other by their names.
        tasks: The tasks; by default all that have a map.

    Raises:
        ConfigError: If frames are too small or of several sizes.
        DatasetNotFoundError: If there are no such predictions, or fewer than two frames.
        CorruptFileError: If a file cannot be read.
        UnknownNameError: If a task was not predicted.
    """
    folder, source = Path(predictions), Path(sequence)
    facts = _facts(folder)
    there = {name: task for name, task in build_tasks(facts["tasks"]).items() if (folder / "raw" / name).is_dir()}
    there = {name: task for name, task in there.items() if task.geometry != "image"}
    for name in tasks or ():
        if name not in there:
            kind = f"task of {folder}"
            raise UnknownNameError(kind, name, there)
    chosen = {name: there[name] for name in tasks or there}
    compared: list[float] = []
    differences: dict[str, list[float | None]] = {name: [] for name in chosen}
    previous: tuple[Picture, dict[str, NDArray[Any]]] | None = None
    for name, pixels in _frames(source, facts["every"]):
        files = {task: folder / "raw" / task / f"{name}.npy" for task in chosen}
        if not all(path.is_file() for path in files.values()):
            break
        maps = {task: _read(path, pixels) for task, path in files.items()}
        if previous is not None:
            moved = motion(previous[0], pixels)
            compared.append(float(moved.seen.mean()))
            for task, values in maps.items():
                differences[task].append(_mean(chosen[task], warped(previous[1][task], moved), values, moved.seen))
        previous = pixels, maps
    if not compared:
        msg = f"{folder} has no values of two frames of {source}; predict it with --raw true"
        raise DatasetNotFoundError(msg)
    return SequenceEvaluation(str(source), compared, differences, chosen)


def motion(before: Picture, now: Picture) -> Moved:
    """Find where each pixel of an image was in the one before, by optical flow there and back.

    Raises:
        ConfigError: If the images are too small or differ in size.
    """
    if before.shape != now.shape or min(now.shape[:2]) < SMALLEST:
        sizes = " and ".join(f"{height}x{width}" for height, width, _ in (before.shape, now.shape))
        msg = f"frames that follow each other have one size of at least {SMALLEST} pixels, got {sizes}"
        raise ConfigError(msg)
    first, second = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (before, now))
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    back = np.asarray(finder.calc(second, first, None))  # type: ignore[call-overload]  # no first guess
    forth = np.asarray(finder.calc(first, second, None))  # type: ignore[call-overload]  # nor here
    height, width = second.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    x, y = columns + back[..., 0], rows + back[..., 1]
    returned = np.stack([_sampled(plane, x, y, cv2.INTER_LINEAR) for plane in np.moveaxis(forth, -1, 0)], axis=-1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    miss = ((back + returned) ** 2).sum(-1)
    seen = inside & (miss < MISS_SHARE * ((back**2).sum(-1) + (returned**2).sum(-1)) + MISS)
    return Moved(x, y, seen)


def warped(values: NDArray[Any], moved: Moved) -> NDArray[Any]:
    """Move a map ``(H, W)`` or ``(C, H, W)`` along: class ids of the nearest pixel, values bilinearly."""
    way = cv2.INTER_NEAREST if values.dtype.kind in "iub" else cv2.INTER_LINEAR
    planes = values[None] if values.ndim == 2 else values
    result = np.stack([_sampled(plane.astype(np.float32), moved.x, moved.y, way) for plane in planes])
    return result.astype(values.dtype).reshape(values.shape)


def _sampled(plane: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32], way: int) -> NDArray[Any]:
    return np.asarray(cv2.remap(plane, x, y, way, borderMode=cv2.BORDER_REPLICATE))


def _mean(task: Task, first: NDArray[Any], second: NDArray[Any], seen: NDArray[np.bool_]) -> float | None:
    """Average the difference of two maps over the pixels that count and are valid; None if there is none."""
    apart = task.difference(first, second)[seen]
    valid = apart[np.isfinite(apart)]
    return float(valid.mean()) if valid.size else None


def _frames(source: Path, every: int) -> Iterator[tuple[str, Picture]]:
    """Yield the frames of a video or folder, and what `predict` called their values."""
    names = result_names(find_images([source]))
    if is_video(source):
        (name,) = names
        for number, pixels in read_frames(source, every):
            yield f"{name}/{number:06d}", pixels
    else:
        for name, file in names.items():
            yield name, read_picture(file)


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    if not path.is_file():
        msg = f"{folder} has no {FACTS}; give the folder that `taskformer predict` wrote"
        raise DatasetNotFoundError(msg)
    facts: dict[str, Any] = read_json(File(str(path), path.read_bytes()))
    return facts


def _read(path: Path, pixels: Picture) -> NDArray[Any]:
    values = read_npy(File(str(path), path.read_bytes()))
    if values.shape[-2:] != pixels.shape[:2]:
        sizes = [f"{height}x{width}" for height, width in (values.shape[-2:], pixels.shape[:2])]
        msg = f"{path} is {sizes[0]} and its frame {sizes[1]} (height x width); predict the sequence again"
        raise CorruptFileError(msg)
    return values
