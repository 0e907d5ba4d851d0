"""Maps and pictures of every task for photographs and videos."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from taskformer.data.images import write_npy, write_png
from taskformer.data.names import ends_with, examples, files_in, is_hidden
from taskformer.errors import CorruptFileError, DatasetNotFoundError, require
from taskformer.files import replacing, write_json
from taskformer.modules.augmented import TTA
from taskformer.modules.loading import load
from taskformer.modules.picking import Choice, choose
from taskformer.modules.prediction import View
from taskformer.modules.video import frame_rate, is_video, read_frames, video_writer
from taskformer.pictures import IMAGE_SUFFIXES, read_picture
from taskformer.tasks import Task
from taskformer.tasks.colors import Picture
from taskformer.tasks.sheets import contact_sheet

#: Rows, width and largest height of the pictures in the overview, in pixels.
ROWS, WIDTH, MAX_HEIGHT = 20, 240, 480
#: File beside the results that says what they are.
FACTS = "predictions.json"

#: Maps of one photograph by task.
Maps = Mapping[str, NDArray[Any]]


@dataclass
class Predicted:
    """What :func:`predict` has done.

    Attributes:
        out: The folder that it has written to.
        tasks: The tasks.
        files: The photographs and videos by the name of their results.
        frames: How many frames of each video by the same name.
        failed: Why a photograph or video could not be read, one sentence each.
        seconds: How long it took.
        network: The sub-network that was chosen, if there was one to choose.
    """

    out: Path
    tasks: list[str]
    files: dict[str, Path]
    frames: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    network: Choice | None = None

    def summary(self) -> str:
        """Say where what was written."""
        done = len(self.files) - len(self.failed) - len(self.frames)
        what = [f"{done} photographs"] if done or not self.frames else []
        videos = f"{len(self.frames)} video{'s' if len(self.frames) > 1 else ''}"
        what += [f"{sum(self.frames.values())} frames of {videos}"] if self.frames else []
        shown = f"; {self.out / 'overview.png'} shows {'them' if done <= ROWS else f'the first {ROWS}'}" if done else ""
        lost = f", {len(self.failed)} could not be read" if self.failed else ""
        of, by = " and ".join(what), f" by {self.network}" if self.network else ""
        return f"wrote {', '.join(self.tasks)} of {of}{by} to {self.out} in {self.seconds:.1f} s{lost}{shown}"


def predict(
    model: str | Path,
    images: str | Path | Iterable[str | Path],
    out: str | Path = "predictions",
    raw: bool | None = None,
    device: str = "cpu",
    scale: float | None = None,
    tile: int | None = None,
    overlap: float = View.overlap,
    every: int = 1,
    frames: int | None = None,
    tta: TTA = TTA(),  # noqa: B008  # it is immutable
    params: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
) -> Predicted:
    """Predict every task for photographs and videos, one picture at a time, as large as the model was trained on them.

    Of photographs it writes ``out/TASK/NAME.png`` (colours), ``out/raw/TASK/NAME.npy`` (class ids, metres, unit
    vectors, ...) and ``out/overview.png``: the first ones side by side, with what the colours mean. Of videos it writes
    ``out/TASK/NAME.mp4`` and ``out/overview/NAME.mp4``, and if asked to ``out/raw/TASK/NAME/FRAME.npy``. What cannot be
    read is named on standard error. ``out/predictions.json`` says what model, tasks and settings all these are of.

    Args:
        model: Run folder or checkpoint file.
        images: Image files, videos, or folders of images; one or several.
        out: Folder to write to.
        raw: Whether to write the values too. None: of photographs, but not of videos, which have many.
        device: Device to predict on.
        scale: How large the network sees a photograph, over its own size; None: as large as those of the training.
        tile: Side in pixels of the tiles that the network sees one at a time; None: it sees everything at once.
        overlap: Share of a tile that the next one shows too, see :class:`taskformer.modules.prediction.View`.
        every: Of so many frames of a video the first is predicted.
        frames: How many frames of a video are predicted at most.
        tta: Over which flips and scales of what the network sees its outputs are averaged; by default none.
        params: Of a supernet: predict with the best sub-network that has no more parameters, of those that a search of
            the run has found, or else with the nearest of random ones, see :func:`taskformer.modules.picking.choose`.
        macs: The same for its multiply-accumulates for one image of the training's size.
        latency: The same for the seconds that such an image takes, measured now.

    Returns:
        What was done.

    Raises:
        ConfigError: If a setting is outside its range, or a limit is given that no sub-network keeps.
        DatasetNotFoundError: If there are no such images.
        WeightsError: If there is no such model.
    """
    start = time.monotonic()
    out, view = Path(out), View(scale, tile, overlap)
    require("[1, inf)", every=every, frames=frames)
    files = result_names(find_images([images] if isinstance(images, str | Path) else images))
    module = load(model, map_location=device)
    module.tta = tta
    tasks = {name: task for name, task in module.tasks.items() if task.geometry != "image"}
    done = Predicted(out, list(module.tasks), files)
    if any(limit is not None for limit in (params, macs, latency)):
        done.network = choose(module, params=params, macs=macs, latency=latency)
    overview = _Overview(tasks)
    see = partial(module.predict_image, view=view)
    for name, file in track(files.items(), description="predict", console=Console(stderr=True)):
        try:
            if is_video(file):
                done.frames[name] = _predict_video(out, name, tasks, see, file, every, frames, raw=raw is True)
                continue
            pixels = read_picture(file)
        except (CorruptFileError, DatasetNotFoundError) as error:
            done.failed.append(str(error))
            sys.stderr.write(f"taskformer: {error}\n")
            continue
        maps = see(pixels)
        overview.add(name, pixels, _write(out, name, tasks, maps, raw is not False), maps)
    overview.save(out / "overview.png")
    if len(done.failed) < len(files):
        facts = {"model": str(model), "tasks": module.hparams["tasks"], "view": asdict(view), "every": every}
        architecture = None if done.network is None else done.network.architecture.to_dict()
        write_json(out / FACTS, facts | {"tta": tta.facts, "architecture": architecture})
    done.seconds = time.monotonic() - start
    return done


def _predict_video(
    out: Path,
    name: str,
    tasks: Mapping[str, Task],
    see: Callable[[Picture], Maps],
    file: Path,
    every: int,
    frames: int | None,
    raw: bool,
) -> int:
    """Write the videos of one video's tasks, and the one that shows them side by side; returns how many frames."""
    rate, count = frame_rate(file) / every, 0
    legends = {task_name: task.legend() for task_name, task in tasks.items()}
    with ExitStack() as stack:
        folders = [*tasks, "overview"]
        *writers, write_overview = (
            stack.enter_context(video_writer(out / folder / f"{name}.mp4", rate)) for folder in folders
        )
        for number, pixels in read_frames(file, every, frames):
            maps = see(pixels)
            pictures = [task.colorize(maps[task_name]) for task_name, task in tasks.items()]
            for write, picture in zip(writers, pictures, strict=True):
                write(picture)
            row = [_thumbnail(picture) for picture in (pixels, *pictures)]
            write_overview(np.asarray(contact_sheet(["image", *tasks], [row], WIDTH, [[str(number)]], legends)))
            for task_name, values in maps.items() if raw else ():
                write_npy(out / "raw" / task_name / name / f"{number:06d}.npy", values)
            count += 1
    return count


class _Overview:
    """The first photographs, their pictures below each other, and what their colours mean."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks = tasks
        self.rows: list[list[Picture]] = []
        self.captions: list[list[str]] = []
        self.maps: dict[str, list[NDArray[Any]]] = {name: [] for name in tasks}

    def add(self, name: str, photograph: Picture, pictures: Sequence[Picture], maps: Maps) -> None:
        """Take a photograph up, while there is room."""
        if len(self.rows) == ROWS:
            return
        self.rows.append([_thumbnail(picture) for picture in (photograph, *pictures)])
        self.captions.append([name])
        for task, kept in self.maps.items():
            kept.append(_thinned(maps[task]))

    def save(self, path: Path) -> None:
        """Write the picture, if there is any photograph."""
        if not self.rows:
            return
        legends = {name: task.legend(*self.maps[name]) for name, task in self.tasks.items()}
        with replacing(path) as temporary:
            contact_sheet(["image", *self.tasks], self.rows, WIDTH, self.captions, legends).save(temporary)


def _write(out: Path, name: str, tasks: Mapping[str, Task], maps: Maps, raw: bool) -> list[Picture]:
    """Write the results of one photograph; returns the pictures of the tasks."""
    pictures = {task_name: task.colorize(maps[task_name]) for task_name, task in tasks.items()}
    for task_name, picture in pictures.items():
        write_png(out / task_name / f"{name}.png", picture)
    for task_name, values in maps.items() if raw else ():
        write_npy(out / "raw" / task_name / f"{name}.npy", values)
    return list(pictures.values())


def _thumbnail(picture: Picture) -> Picture:
    """Shrink a picture to the overview's size; very high ones get borders."""
    height = min(max(1, round(WIDTH * picture.shape[0] / picture.shape[1])), MAX_HEIGHT)
    return np.asarray(ImageOps.pad(Image.fromarray(picture), (WIDTH, height), Image.Resampling.BILINEAR, "white"))


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    """Keep about as many pixels of a map as the overview shows."""
    step = max(1, values.shape[-1] // WIDTH)
    return values[..., ::step, ::step].copy()


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List image files and videos, each once, and the images in folders; says what it leaves out there.

    Raises:
        DatasetNotFoundError: If a path does not exist or a folder holds no image.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = sorted(files_in(path, IMAGE_SUFFIXES)) if path.is_dir() else [path]
        if not inside or not path.exists():
            msg = f"no image at {str(path)!r}; expected image files, videos, or folders of {', '.join(IMAGE_SUFFIXES)}"
            raise DatasetNotFoundError(msg)
        if path.is_dir():
            _report_others(path)
        for file in inside:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _report_others(folder: Path) -> None:
    """Say what of a folder is not predicted."""
    others = sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in folder.iterdir()
        if not is_hidden(path.name) and (path.is_dir() or not ends_with(path.name, IMAGE_SUFFIXES))
    )
    if others:
        sys.stderr.write(f"taskformer: {len(others)} in {folder} are no image files, left out: {examples(others)}\n")


def result_names(files: Sequence[Path]) -> dict[str, Path]:
    """Name the results of photographs so that none overwrites another's.

    The name is the file's without its ending where no other file has that, else with its ending, else with as many of
    its folders as it takes: ``x``, ``x.png``, ``b/x.png``. Names that differ in case alone count as equal.
    """
    paths = [file.absolute() for file in files]
    depths = [0] * len(files)  # how many parts of its path name a file; 0 is the last one without its ending
    while True:
        names = [
            "/".join(path.parts[1:][-depth:]) if depth else path.stem for path, depth in zip(paths, depths, strict=True)
        ]
        counts = Counter(name.lower() for name in names)
        raised = [
            min(depth + (counts[name.lower()] > 1), len(path.parts) - 1)
            for name, depth, path in zip(names, depths, paths, strict=True)
        ]
        if raised == depths:
            return dict(zip(names, files, strict=True))
        depths = raised
