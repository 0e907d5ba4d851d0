"""Videos as streams of pictures, in and out: a frame at a time is in memory."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from taskformer.data.names import ends_with
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, require
from taskformer.files import replacing
from taskformer.tasks.colors import Picture

#: Endings by which videos are known, in small letters.
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
#: Frames per second of videos that do not say it.
USUAL_RATE = 25.0
#: Share of its frames that a video may lack: many kinds of files only estimate their number.
ESTIMATED = 0.02

# What its decoders complain about is raised here, with the name of the file.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Frame(NamedTuple):
    """A frame: its number in the video, counted from 0, and RGB ``(H, W, 3)``."""

    number: int
    pixels: Picture


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return ends_with(path.name, VIDEO_SUFFIXES)


def read_frames(path: str | Path, every: int = 1, most: int | None = None) -> Iterator[Frame]:
    """Decode a video frame by frame, upright as viewers show it.

    One that ends before the number of frames that it promises is named on standard error.

    Args:
        path: The file.
        every: Of so many frames the first is taken.
        most: How many are taken at most.

    Yields:
        The frames, all of one size.

    Raises:
        ConfigError: If a number is not above 0.
        DatasetNotFoundError: If there is no such file.
        CorruptFileError: If not one frame can be read, or they are of several sizes.
    """
    require("[1, inf)", every=every, frames=most)
    if not Path(path).is_file():
        msg = f"{path} cannot be read (no such file); expected a video"
        raise DatasetNotFoundError(msg)
    with _opened(path) as video:
        count, shape = 0, None
        number = -1
        while (most is None or count < most) and video.grab():
            number += 1
            if number % every:
                continue
            pixels = _decoded(video)
            if pixels is None:
                break
            shape = shape or pixels.shape
            if pixels.shape != shape:
                sizes = [f"{height}x{width}" for height, width, _ in (pixels.shape, shape)]
                msg = f"{path}: frame {number} is {sizes[0]} (height x width) and those before it {sizes[1]}"
                raise CorruptFileError(f"{msg}; convert it to one size")
            count += 1
            yield Frame(number, pixels)
        promised = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    if not count:
        msg = f"{path} ({Path(path).stat().st_size} bytes) is truncated or not a video; get the file again"
        raise CorruptFileError(msg)
    if count != most and number + 1 < promised * (1 - ESTIMATED) - 1:
        sys.stderr.write(f"taskformer: {path} ends after {number + 1} of {promised} frames: it is damaged there\n")


def frame_rate(path: str | Path) -> float:
    """Return the frames per second of a video; the usual ones if it does not say."""
    with _opened(path) as video:
        rate = float(video.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate < 1000 else USUAL_RATE


@contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[Picture], None]]:
    """Write pictures ``(H, W, 3)`` of one size to an MPEG-4 video, whole or not at all.

    The format needs even sides: a picture of odd ones gets its last row or column twice.

    Args:
        path: An ``.mp4`` file.
        rate: Frames per second.

    Yields:
        A function that adds a picture.

    Raises:
        ConfigError: If OpenCV cannot write such a video.
    """
    with replacing(path) as temporary:
        writer = cv2.VideoWriter()

        def write(picture: Picture) -> None:
            height, width, _ = picture.shape
            even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if not writer.isOpened():
                size = (even.shape[1], even.shape[0])
                if not writer.open(str(temporary), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), rate, size):
                    msg = f"OpenCV cannot write {path} with {width}x{height} pixels at {rate:g} frames per second"
                    raise ConfigError(msg)
            writer.write(np.ascontiguousarray(even[..., ::-1]))

        try:
            yield write
        finally:
            writer.release()


@contextmanager
def _opened(path: str | Path) -> Iterator[cv2.VideoCapture]:
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        yield video
    finally:
        video.release()


def _decoded(video: cv2.VideoCapture) -> Picture | None:
    """Return the frame that was grabbed as RGB; None if it is damaged."""
    whole, pixels = video.retrieve()
    return np.ascontiguousarray(pixels[..., ::-1]) if whole else None
