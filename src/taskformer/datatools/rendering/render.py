"""The driver: renders the data set ``rooms`` with several processes, resumable, every image checked."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from taskformer.data.datasets.rooms import CLASSES, COLORS
from taskformer.datatools.rendering import image as photo
from taskformer.datatools.rendering import labels as maps
from taskformer.datatools.rendering.builder import Library
from taskformer.datatools.rendering.catalog import SPLITS, Entry, attribution, pool_of, read_catalog, split_keys
from taskformer.datatools.rendering.layout import make_room
from taskformer.datatools.rendering.meshes import Model, convert_all
from taskformer.datatools.rendering.room import Camera, Room
from taskformer.datatools.rendering.scene import View, build, look, make_sensor, mitsuba, render
from taskformer.datatools.rendering.shapes import SHAPE_PREFIX, generated_models
from taskformer.errors import ConfigError, TaskformerError
from taskformer.files import replacing, write_text

DEFAULT_FURNITURE = Path("/usr/share/sweethome3d/furniture")
DEFAULT_CACHE = Path("~/.cache/taskformer/rooms")
VERSION = 1
PENDING = ".pending"
MAPS: tuple[str, ...] = ("semseg", "depth", "normals", "instance", "edges", "saliency", "human_parts", "reshading")
MIN_CLASSES = 5
MIN_CLASS_SHARE = 0.003
MAX_THING_SHARE = 0.4
MAX_WALL_SHARE = 0.66
BRIGHTNESS = (0.28, 0.85)
ATTEMPTS = 40
ROOMS_PER_WORKER = 50  # Dr.Jit keeps every compiled kernel; a fresh process gives the memory back
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Settings:
    """What every worker needs; plain and picklable."""

    output: Path
    cache: Path
    models: tuple[Model, ...]
    split_of: dict[str, str]
    width: int
    height: int
    samples: int
    supersample: int
    seed: int
    threads: int


@dataclass(frozen=True)
class Job:
    """One room to render: its split, its number within the split and how many views to keep."""

    split: str
    index: int
    views: int

    @property
    def room_id(self) -> str:
        """Name of the room; independent of how many rooms there are."""
        return f"r{self.index * len(SPLITS) + SPLITS.index(self.split):04d}"


def flaw(view: View) -> str | None:
    """Why a view is not fit for the data set; None when it is."""
    share = np.bincount(view.cls.ravel(), minlength=256) / view.cls.size
    things = np.bincount(view.instance[view.instance > 0].ravel(), minlength=1) / view.cls.size
    facing = -(view.normals * view.rays).sum(-1)
    checks = (
        (share[maps.INVALID] > 0, "a ray left the room"),
        (not np.isfinite(view.depth).all() or bool((view.depth <= 0).any()), "depth is not positive"),
        (bool(np.abs(np.linalg.norm(view.normals, axis=-1) - 1).max() > 1e-3), "a normal is not a unit vector"),
        (bool((facing <= 0).any()), "a normal faces away"),
        (int((share > MIN_CLASS_SHARE).sum()) < MIN_CLASSES, f"fewer than {MIN_CLASSES} classes"),
        (float(things.max(initial=0.0)) > MAX_THING_SHARE, "one thing fills the view"),
        (float(share[0]) > MAX_WALL_SHARE, "almost only wall"),
        (int(view.instance.max()) > 254, "more than 254 instances"),
    )
    return next((reason for bad, reason in checks if bad), None)


def choose_views(scene: Any, labels: Any, room: Room, settings: Settings, count: int) -> list[tuple[Camera, View]]:
    """The first ``count`` candidate cameras whose view passes `flaw`, with what they see."""
    chosen: list[tuple[Camera, View]] = []
    for camera in room.cameras:
        sensor = make_sensor(camera, settings.width, settings.height)
        view = look(scene, labels, camera, sensor, settings.width, settings.height)
        if flaw(view) is None:
            chosen.append((camera, view))
        if len(chosen) == count:
            break
    return chosen


def photograph(
    scene: Any, labels: Any, camera: Camera, settings: Settings, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Render and develop one view; returns RGB ``(height, width, 3)``.

    It is rendered and denoised at a multiple of the final size: the guides of the denoiser have hard edges, and
    shrinking the result is what gives the photograph soft ones.
    """
    factor = settings.supersample
    width, height = settings.width * factor, settings.height * factor
    sensor = make_sensor(camera, width, height)
    view = look(scene, labels, camera, sensor, width, height)
    radiance = photo.despeckle(render(scene, sensor, settings.samples, int(rng.integers(2**31))))
    smooth = photo.denoise(radiance, view.albedo, view.normals, view.depth, view.cls * 256 + view.instance)
    # Lights are free of noise, and their albedo says nothing about their brightness.
    smooth = np.where(view.emits[..., None], radiance, smooth)
    return photo.develop(photo.shrink(photo.tone_map(smooth), factor), rng)


def label_maps(view: View, room: Room, models: dict[str, Model]) -> dict[str, NDArray[Any]]:
    """All label maps of a view as they go to disk, by folder name."""
    sizes = {placement.model: models[placement.model].size[2] for placement in room.placements}
    return {
        "semseg": view.cls.astype(np.uint8),
        "depth": maps.encode_depth(view.depth),
        "normals": maps.encode_normals(view.normals),
        "instance": view.instance.astype(np.uint8),
        "edges": maps.edges(view.cls, view.instance, view.normals, view.depth, view.rays),
        "saliency": maps.saliency(view.cls, view.instance),
        "human_parts": maps.human_parts(view.cls, view.placement, view.points, room.placements, sizes),
        "reshading": maps.reshading(view.normals, view.rays),
    }


def _save(pixels: NDArray[Any], path: Path) -> None:
    """Write an image, whole or not at all."""
    with replacing(path) as work:
        if path.suffix == ".jpg":
            Image.fromarray(pixels).save(work, format="JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
        else:
            Image.fromarray(pixels).save(work, format="PNG", optimize=True)


def _record(view_id: str, job: Job, room: Room, camera: Camera, view: View, width: int) -> dict[str, Any]:
    seen = {int(index) for index in np.unique(view.placement) if index >= 0}
    keys = {room.placements[index].model for index in seen}
    rise = camera.target[2] - camera.origin[2]
    run = math.hypot(camera.target[0] - camera.origin[0], camera.target[1] - camera.origin[1])
    return {
        "id": view_id,
        "room": job.room_id,
        "kind": room.kind,
        "fov_x_deg": round(camera.fov_x_deg, 4),
        "focal_px": round(0.5 * width / math.tan(math.radians(camera.fov_x_deg) / 2), 4),
        "camera_height_m": round(camera.origin[2], 4),
        "camera_pitch_deg": round(math.degrees(math.atan2(rise, run)), 4),
        "models": sorted(key for key in keys if not key.startswith(SHAPE_PREFIX)),
    }


class Worker:
    """Renders rooms; one per process.

    Args:
        settings: What to render with.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = {model.key: model for model in settings.models}
        shared = [model for model in settings.models if model.key.startswith(SHAPE_PREFIX)]
        self.libraries = {
            split: Library([m for m in settings.models if settings.split_of.get(m.key) == split] + shared)
            for split in SPLITS
        }

    def run(self, job: Job) -> list[dict[str, Any]]:
        """Render one room, with further seeds until enough views are good.

        Raises:
            RuntimeError: If no attempt gives enough good views.
        """
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([self.settings.seed, SPLITS.index(job.split), job.index, attempt])
            records = self._attempt(job, rng)
            if records is not None:
                return records
        msg = f"room {job.room_id} ({job.split}) has too few good views after {ATTEMPTS} attempts; expected {job.views}"
        raise RuntimeError(msg)

    def _attempt(self, job: Job, rng: np.random.Generator) -> list[dict[str, Any]] | None:
        settings = self.settings
        room = make_room(rng, self.libraries[job.split])
        scene, labels = build(room, self.models, settings.cache)
        views = choose_views(scene, labels, room, settings, job.views)
        if len(views) < job.views:
            return None
        photos = [photograph(scene, labels, camera, settings, rng) for camera, _ in views]
        if not all(BRIGHTNESS[0] < picture.mean() / 255 < BRIGHTNESS[1] for picture in photos):
            return None
        records = []
        for number, ((camera, view), picture) in enumerate(zip(views, photos, strict=True)):
            view_id = f"{job.room_id}_c{number}"
            _save(picture, settings.output / "image" / f"{view_id}.jpg")
            for name, pixels in label_maps(view, room, self.models).items():
                _save(pixels, settings.output / name / f"{view_id}.png")
            records.append(_record(view_id, job, room, camera, view, settings.width))
        return records


_worker: Worker | None = None


def _start(settings: Settings) -> None:
    global _worker  # one worker per process, made by the pool's initializer
    import drjit as dr

    mi = mitsuba()
    mi.set_log_level(mi.LogLevel.Error)
    dr.set_thread_count(settings.threads)
    _worker = Worker(settings)


def _work(job: Job) -> tuple[Job, list[dict[str, Any]]]:
    if _worker is None:
        msg = "the worker process was not initialised; start rooms through render_rooms"
        raise RuntimeError(msg)
    return job, _worker.run(job)


def plan(counts: dict[str, int], views_per_room: int) -> list[Job]:
    """Jobs for a number of images per split, val and test ahead so that stopping early leaves them whole."""
    queues = {}
    for split in SPLITS:
        rooms = math.ceil(counts[split] / views_per_room)
        queues[split] = [
            Job(split, index, min(views_per_room, counts[split] - index * views_per_room)) for index in range(rooms)
        ]
    jobs: list[Job] = []
    for index in range(max(len(queue) for queue in queues.values())):
        jobs += [queues[split][index] for split in ("val", "test", "train") if index < len(queues[split])]
    return jobs


def prepare_models(furniture: Path, cache: Path) -> tuple[list[Entry], list[Model], dict[str, str]]:
    """Read the catalogues, convert the usable models (cached) and split them.

    Args:
        furniture: Folder with the ``*.sh3f`` files.
        cache: Folder for converted models.

    Returns:
        Catalogue entries, models including generated shapes, split name by model key.
    """
    entries = read_catalog(furniture)
    wanted = [(entry, pool) for entry in entries if (pool := pool_of(entry)) is not None]
    models = convert_all(wanted, furniture, cache)
    pools: dict[str, list[str]] = {}
    for model in models:
        pools.setdefault(model.pool, []).append(model.key)
    return entries, models + generated_models(cache), split_keys(pools)


def _done(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Records by room id of everything rendered so far whose picture is still there."""
    rooms: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        path = output / f"{split}.json"
        for record in json.loads(path.read_text()) if path.exists() else []:
            if (output / "image" / f"{record['id']}.jpg").exists():
                rooms.setdefault(record["room"], []).append(record)
    for path in sorted((output / PENDING).glob("*.json")):
        rooms[path.stem] = json.loads(path.read_text())
    return rooms


def _finish(output: Path, entries: Iterable[Entry], settings: Settings) -> dict[str, int]:
    """Write the index files and the attribution from all records; returns the number of images per split."""
    rooms = _done(output)
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for room_id in sorted(rooms):
        records[SPLITS[int(room_id[1:]) % len(SPLITS)]] += rooms[room_id]
    for split in SPLITS:
        lines = ",\n".join(json.dumps(record) for record in records[split])
        write_text(output / f"{split}.json", f"[\n{lines}\n]\n" if lines else "[]\n")
    counts = {split: len(records[split]) for split in SPLITS}
    index = {
        "version": VERSION,
        "classes": list(CLASSES),
        "palette": [list(color) for color in COLORS],
        "part_names": list(maps.PART_NAMES),
        "size": [settings.height, settings.width],
        "splits": counts,
        "maps": ["image", *MAPS],
        "depth_units_per_m": maps.DEPTH_UNITS_PER_M,
        "samples_per_pixel": settings.samples * settings.supersample**2,
        "seed": settings.seed,
    }
    write_text(output / "rooms.json", json.dumps(index, indent=2) + "\n")
    used = {key for split in SPLITS for record in records[split] for key in record["models"]}
    write_text(output / "ATTRIBUTION.md", attribution(entry for entry in entries if entry.key in used))
    pending = output / PENDING
    for path in pending.glob("*.json"):
        path.unlink()
    if pending.exists():
        pending.rmdir()
    return counts


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            msg = f"{name}={value} is not possible; expected at least 1"
            raise ConfigError(msg)


def _same_settings(output: Path, wanted: dict[str, Any]) -> None:
    """Refuse to continue a data set that was rendered differently."""
    path = output / "rooms.json"
    index = json.loads(path.read_text()) if path.exists() else wanted
    found = {name: index[name] for name in wanted}
    if found != wanted:
        msg = f"{str(output)!r} was rendered with {found}, not {wanted}; use the same values, or another output folder"
        raise ConfigError(msg)


def render_rooms(
    output: Path,
    furniture: Path = DEFAULT_FURNITURE,
    cache: Path = DEFAULT_CACHE,
    train: int = 440,
    val: int = 100,
    test: int = 100,
    width: int = 160,
    height: int = 128,
    samples: int = 8,
    supersample: int = 2,
    views_per_room: int = 2,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> dict[str, int]:
    """Render the data set ``rooms``: images, label maps, index and attribution.

    The same arguments give the same rooms. Rooms that are already in ``output`` are kept, so an interrupted run
    continues where it stopped, and a larger ``train`` adds rooms. The splits share no room and no furniture model.

    Args:
        output: Folder to write, made if missing.
        furniture: Folder with the ``*.sh3f`` catalogues of Debian's sweethome3d-furniture.
        cache: Folder for converted models; about 200 MB, may be deleted at any time.
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        width: Image width in pixels.
        height: Image height in pixels.
        samples: Light paths per rendered pixel before denoising.
        supersample: Images are rendered this many times wider and higher, then shrunk; labels never are.
        views_per_room: Images per room.
        seed: Seed of rooms and cameras.
        workers: Number of processes.
        progress: Whether to show a progress bar.

    Returns:
        Number of images per split now in ``output``.

    Raises:
        ConfigError: If a size or number is not positive, or ``output`` holds rooms of another size or seed.
        DatasetNotFoundError: If the furniture catalogues are missing.
        RendererMissingError: If Mitsuba or LLVM is missing.
    """
    _positive(width=width, height=height, samples=samples, supersample=supersample)
    _positive(views_per_room=views_per_room, workers=workers)
    output, furniture, cache = Path(output), Path(furniture).expanduser(), Path(cache).expanduser()
    wanted = {"size": [height, width], "seed": seed, "samples_per_pixel": samples * supersample**2}
    _same_settings(output, wanted)
    mitsuba()
    entries, models, split_of = prepare_models(furniture, cache)
    threads = max(1, (os.cpu_count() or 1) // workers)
    settings = Settings(output, cache, tuple(models), split_of, width, height, samples, supersample, seed, threads)
    done = _done(output)
    jobs = plan({"train": train, "val": val, "test": test}, views_per_room)
    left = [job for job in jobs if len(done.get(job.room_id, [])) < job.views]
    try:
        _render_all(left, settings, workers, progress)
    finally:
        counts = _finish(output, entries, settings)
    return counts


def _render_all(jobs: Sequence[Job], settings: Settings, workers: int, progress: bool) -> None:
    columns = (TextColumn("rooms"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress or not jobs) as bar:
        task = bar.add_task("rooms", total=len(jobs))
        # A pool per batch instead of max_tasks_per_child, which can hang in Python 3.11 (python/cpython#115634).
        batch = workers * ROOMS_PER_WORKER
        for start in range(0, len(jobs), batch):
            _render_batch(jobs[start : start + batch], settings, workers, lambda: bar.advance(task))


def _render_batch(jobs: Sequence[Job], settings: Settings, workers: int, advance: Callable[[], None]) -> None:
    # A fork would copy Mitsuba's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (settings,)) as pool:
        futures = [pool.submit(_work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                job, records = future.result()
                write_text(settings.output / PENDING / f"{job.room_id}.json", json.dumps(records))
                advance()
        except BrokenProcessPool as error:
            msg = "a rendering process died (often: too little memory); run the same command again to continue"
            raise TaskformerError(msg) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
