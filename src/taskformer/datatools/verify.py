"""Is a data set on disk what it should be? Counts, splits, and every file opened and looked at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.base import IMAGE, MultiTaskDataset, wrong_classes
from taskformer.data.geometry import map_kind
from taskformer.data.images import File, holds_array, read_array, read_json, read_pixels
from taskformer.data.names import examples
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError
from taskformer.parallel import default_workers, run_jobs
from taskformer.pictures import orientation
from taskformer.tasks import IGNORE_INDEX, Classification, Depth, Edges, InverseDepth, Task, build_tasks

#: What kind of fault it is: a file is missing, cannot be decoded, or has another size than its image; wrong class ids,
#: normals or other values; an image in the wrong split; another number of images than published. Of doubts: a label is
#: missing that others have; a map is almost without labels, or in another unit; viewers show the image turned; files
#: that belong to nothing.
Kind: TypeAlias = Literal[
    "missing", "corrupt", "size", "labels", "normals", "values", "split", "count", "few", "unit", "turned", "unused"
]
Array: TypeAlias = NDArray[Any]

#: A metre value no camera of these data sets can see; larger ones are millimetres, or invalid marks taken for depth.
MAX_DEPTH_M = 1000.0
#: Length below which a stored normal means no direction; what 8 bits make of a unit vector is at least 0.99 long.
MIN_LENGTH = 0.5
#: Largest share of a normal map without a direction; the holes of depth sensors stay below.
MAX_ZERO_NORMALS = 0.5
#: Share of labelled pixels below which a map makes one wonder; sparse depth of laser scanners is above.
FEW_LABELS = 0.02
#: How many faults are written to the screen.
SHOWN = 30


@dataclass(frozen=True)
class Finding:
    """One fault, or doubt.

    Attributes:
        split: The split it is in.
        id: The image, empty if the fault is not one image's.
        task: ``"image"``, a task, or empty.
        file: The file, empty if the fault is not one file's.
        kind: What kind of fault, see :data:`Kind`.
        reason: One sentence.
        is_doubt: Whether it may be meant to be so.
    """

    split: str
    id: str
    task: str
    file: str
    kind: Kind
    reason: str
    is_doubt: bool = False


@dataclass
class MapSummary:
    """What the opened maps of one task hold.

    Attributes:
        maps: Number of maps that were decoded.
        pixels: Number of their pixels.
        valid: Number of those with a label.
        low: Smallest valid value.
        high: Largest valid value.
    """

    maps: int = 0
    pixels: int = 0
    valid: int = 0
    low: float = np.inf
    high: float = -np.inf

    def add(self, other: "MapSummary") -> None:
        """Count another summary's maps too."""
        self.maps += other.maps
        self.pixels += other.pixels
        self.valid += other.valid
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def valid_share(self) -> float:
        """Share of the pixels with a label; NaN without pixels."""
        return self.valid / self.pixels if self.pixels else np.nan


@dataclass
class SplitSummary:
    """One split.

    Attributes:
        images: Number of images.
        published: Number that there should be, None if nobody says.
        opened: Number of images whose files were opened.
        tasks: The image's and each task's maps.
    """

    images: int
    published: int | None
    opened: int = 0
    tasks: dict[str, MapSummary] = field(default_factory=dict)


@dataclass
class Report:
    """What :func:`verify` found.

    Attributes:
        dataset: Short name of the data set.
        root: Its folder.
        splits: What each split holds.
        findings: The faults: of the splits first, then in the order of the images.
        doubts: What may be meant, but seldom is: one for all images of a split with the same.
    """

    dataset: str
    root: str
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    doubts: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        splits = {name: asdict(summary) for name, summary in self.splits.items()}
        for split in splits.values():
            for summary in split["tasks"].values():
                if not summary["valid"]:  # JSON knows no infinity
                    summary["low"] = summary["high"] = None
        faults = {name: [asdict(found) for found in getattr(self, name)] for name in ("findings", "doubts")}
        return {"dataset": self.dataset, "root": self.root, "ok": self.ok, "splits": splits, **faults}

    def table(self) -> Table:
        """Build the table for the screen: one row per split and task."""
        table = Table("split", "task", title=f"{self.dataset} in {self.root}")
        for heading in ("images", "opened", "valid %"):
            table.add_column(heading, justify="right")
        table.add_column("values", no_wrap=True)
        for name, split in self.splits.items():
            count = str(split.images) if split.published is None else f"{split.images} of {split.published}"
            for row, (task, summary) in enumerate(split.tasks.items()):
                values = f"{summary.low:.4g} .. {summary.high:.4g}" if summary.valid else ""
                share = f"{summary.valid_share * 100:.1f}" if summary.pixels else ""
                head = (name, task, count) if row == 0 else ("", task, "")
                table.add_row(*head, str(summary.maps), share, values)
            table.add_section()
        return table

    def summary(self) -> str:
        """Say in a few lines whether the data set is right, or what is wrong with which files."""
        images = sum(split.images for split in self.splits.values())
        opened = sum(split.opened for split in self.splits.values())
        where = f"{self.dataset} in {self.root}"
        if self.ok and opened == images:
            return "\n".join([f"all {images} images of {where} are right", *self._doubt_lines()])
        what = (
            f"{opened} of {images} images of {where} were opened" if opened < images else f"{images} images of {where}"
        )
        if self.ok:
            return "\n".join([f"{what}; they are right", *self._doubt_lines()])
        lines = [f"{what}: {len(self.findings)} faults", *_lines(self.findings[:SHOWN])]
        left = len(self.findings) - SHOWN
        lines += [f"  and {left} more, all of them with --json FILE"] if left > 0 else []
        return "\n".join([*lines, *self._doubt_lines()])

    def _doubt_lines(self) -> list[str]:
        return ["have a look, this may be meant or not:", *_lines(self.doubts)] if self.doubts else []


def _lines(findings: Sequence[Finding]) -> list[str]:
    return [f"  {finding.kind:<8} {finding.split:<6} {finding.reason}" for finding in findings]


def verify(
    module: MultiTaskDataModule,
    sample: int | None = None,
    workers: int | None = None,
    tasks: Sequence[str] | None = None,
    partial_copy: bool = False,
) -> Report:
    """Check a data set: number of images, splits, and for every image all files, their sizes and their values.

    The numbers are compared with those published, or with those in ``miniature.json`` where the folder has one.

    Args:
        module: The data set.
        sample: Open only so many images of each split, spread evenly; None opens all.
        workers: Number of processes; None takes one per processor. The report does not depend on it.
        tasks: The tasks to check; None takes all that there are files for.
        partial_copy: Whether the folder may hold fewer images and splits than published.

    Returns:
        What the data set holds and what is wrong with it.

    Raises:
        DatasetNotFoundError: If there is nothing of the data set.
        ConfigError: If ``sample`` is below 1.
    """
    if sample is not None and sample < 1:
        msg = f"sample={sample} is not possible; expected at least 1, or none to open everything"
        raise ConfigError(msg)
    offered = module.task_offers()
    built = build_tasks({name: offered[name] for name in (module.available() if tasks is None else tasks)})
    report = Report(module.name, str(module.root))
    datasets = _open_splits(module, built, report, partial_copy)
    membership = _miniature_splits(Path(module.root))
    published = {split: len(ids) for split, ids in membership.items()} or module.published
    for split, dataset in datasets.items():
        report.splits[split] = SplitSummary(len(dataset), published.get(split))
        report.splits[split].tasks = {key: MapSummary() for key in (IMAGE, *built)}
        report.findings += _split_findings(split, dataset, published, membership, partial_copy)
        known = {doubt.reason for doubt in report.doubts}  # splits may be parts of one folder
        report.doubts += [
            Finding(split, "", "", "", "unused", reason, True) for reason in dataset.doubts() if reason not in known
        ]
    report.findings += _shared_images(datasets)
    for split, dataset in datasets.items():
        _inspect_split(split, dataset, report, sample, default_workers() if workers is None else workers)
    return report


def _inspect_split(split: str, dataset: MultiTaskDataset, report: Report, sample: int | None, workers: int) -> None:
    """Open a split's files and add what they hold and what is wrong to the report."""
    summary = report.splits[split]
    doubts: dict[tuple[str, Kind], list[Finding]] = {}
    label = f"verify {report.dataset} {split}"
    for outcome in run_jobs(spread(len(dataset), sample), partial(inspect_sample, dataset), workers, label):
        summary.opened += 1
        if outcome.value is None:
            report.findings.append(Finding(split, dataset.ids[outcome.item], "", "", "corrupt", str(outcome.error)))
            continue
        summaries, findings = outcome.value
        for finding in findings:
            if finding.is_doubt:
                doubts.setdefault((finding.task, finding.kind), []).append(finding)
            else:
                report.findings.append(finding)
        for key, found in summaries.items():
            summary.tasks[key].add(found)
    report.doubts += [
        replace(found[0], reason=f"{found[0].reason} (and {len(found) - 1} more)" if found[1:] else found[0].reason)
        for (_, kind), found in doubts.items()
        if kind != "missing" or len(found) < summary.opened  # no image of the split has such a label
    ]


def _open_splits(
    module: MultiTaskDataModule, tasks: dict[str, Task], report: Report, partial_copy: bool
) -> dict[str, MultiTaskDataset]:
    """Build every split; one that is not there is a fault, unless none is or a partial copy is expected."""
    datasets: dict[str, MultiTaskDataset] = {}
    problems: list[DatasetNotFoundError | CorruptFileError] = []
    for split in module.splits():
        try:
            datasets[split] = module.dataset(split, tasks, None)
        except (DatasetNotFoundError, CorruptFileError) as error:
            problems.append(error)
            kind: Kind = "missing" if isinstance(error, DatasetNotFoundError) else "corrupt"
            if kind == "corrupt" or not partial_copy:
                report.findings.append(Finding(split, "", "", "", kind, str(error)))
    if not datasets:
        raise problems[0]
    return datasets


def _miniature_splits(root: Path) -> dict[str, list[str]]:
    """Return which images a miniature copy has in which split; empty for other folders."""
    path = root / "miniature.json"
    if not path.is_file():
        return {}
    splits: dict[str, list[str]] = read_json(File(str(path), path.read_bytes()))["splits"]
    return splits


def spread(count: int, sample: int | None) -> Sequence[int]:
    """Choose so many of ``count`` places evenly, the first and the last among them; None chooses all."""
    if sample is None or sample >= count:
        return range(count)
    return [int(place) for place in np.linspace(0, count - 1, sample).round()]


# The splits as a whole ----------------------------------------------------------------------------------------------


def _split_findings(
    split: str,
    dataset: MultiTaskDataset,
    published: Mapping[str, int],
    membership: Mapping[str, Sequence[str]],
    partial_copy: bool,
) -> Iterator[Finding]:
    if split in membership:
        yield from _wrong_members(split, set(dataset.ids), membership, partial_copy)
    elif split in published:
        yield from _wrong_count(split, len(dataset), published, partial_copy)
    for reason in dataset.problems():
        yield Finding(split, "", "", "", "split", reason)


def _wrong_count(split: str, count: int, published: Mapping[str, int], partial_copy: bool) -> Iterator[Finding]:
    expected = published[split]
    if count == expected or (partial_copy and count < expected):
        return
    same = [name for name, number in published.items() if number == count]
    hint = f"; {count} is the number of {same[0]!r}: have the lists been exchanged?" if same else ""
    reason = f"the split {split!r} has {count} images, {expected} were published{hint}"
    yield Finding(split, "", "", "", "split" if same else "count", reason)


def _wrong_members(
    split: str, ids: set[str], membership: Mapping[str, Sequence[str]], partial_copy: bool
) -> Iterator[Finding]:
    own = set(membership[split])
    strangers = ids - own
    for other, names in membership.items():
        if wrong := sorted(strangers.intersection(names)):
            reason = f"the split {split!r} lists {len(wrong)} images of {other!r}: {examples(wrong)}"
            yield Finding(split, "", "", "", "split", reason)
            strangers.difference_update(names)
    if strangers:
        reason = f"the split {split!r} lists {len(strangers)} images of no split: {examples(sorted(strangers))}"
        yield Finding(split, "", "", "", "split", reason)
    if (lost := sorted(own - ids)) and not partial_copy:
        reason = f"the split {split!r} lacks {len(lost)} of its images: {examples(lost)}"
        yield Finding(split, "", IMAGE, "", "missing", reason)


def _shared_images(datasets: Mapping[str, MultiTaskDataset]) -> Iterator[Finding]:
    """Find images that are in two splits, or twice in one; hashes keep this small for millions of images."""
    hashes = {split: np.fromiter(map(hash, dataset.ids), np.int64) for split, dataset in datasets.items()}
    for split, values in hashes.items():
        unique, counts = np.unique(values, return_counts=True)
        if twice := sorted(set(_images(datasets[split], values, unique[counts > 1]).values())):
            reason = f"the split {split!r} lists {len(twice)} images more than once: {examples(twice)}"
            yield Finding(split, "", "", "", "split", reason)
    for first, second in combinations(hashes, 2):
        common = np.intersect1d(hashes[first], hashes[second])
        images, others = (_images(datasets[split], hashes[split], common) for split in (first, second))
        if both := sorted(images[path] for path in images.keys() & others.keys()):
            reason = f"{len(both)} images are in both splits {first!r} and {second!r}: {examples(both)}"
            yield Finding(first, "", "", "", "split", reason)


def _images(dataset: MultiTaskDataset, hashes: Array, wanted: Array) -> dict[Path, str]:
    """Return file and identifier of the images with one of these hashes; splits may have images of the same name."""
    places = [int(place) for place in np.flatnonzero(np.isin(hashes, wanted))]
    return {dataset.files(place)[IMAGE]: dataset.ids[place] for place in places}


# One image ----------------------------------------------------------------------------------------------------------


def inspect_sample(dataset: MultiTaskDataset, index: int) -> tuple[dict[str, MapSummary], list[Finding]]:
    """Open and check all files of one image; returns what each of its maps holds, and what is wrong."""
    inspection = _Inspection(dataset, dataset.ids[index], dataset.paths(index))
    inspection.run()
    return inspection.summaries, inspection.findings


class _Inspection:
    """One image's files and what was found in them."""

    def __init__(self, dataset: MultiTaskDataset, name: str, paths: Mapping[str, Path]) -> None:
        self.dataset = dataset
        self.name = name
        self.paths = paths
        self.files: dict[str, File] = {}
        self.summaries: dict[str, MapSummary] = {}
        self.findings: list[Finding] = []

    def run(self) -> None:
        for key, path in self.paths.items():
            self._read(key, path)
        image = self._decode(IMAGE)
        if image is not None:
            self.summaries[IMAGE] = _summary(image, np.ones(image.shape[:2], dtype=bool))
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                self._report(IMAGE, "values", f"the image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
            self._inspect_tag()
        for name, task in self.dataset.tasks.items():
            if name not in self.paths:
                self._report(name, "missing", f"has no label for {name!r}", is_doubt=True)
            target = self._decode(name)
            if target is not None and name in self.paths:  # others are made from the image
                self._inspect(task, target, image)

    def _read(self, key: str, path: Path) -> None:
        try:
            self.files[key] = File(str(path), path.read_bytes())
        except OSError as error:
            kind: Kind = "missing" if isinstance(error, FileNotFoundError) else "corrupt"
            self._report(key, kind, f"cannot be read ({error.strerror})")

    def _decode(self, key: str) -> Array | None:
        """Return the image or a target, None if it has none or it cannot be decoded."""
        try:
            return self.dataset.decode(key, self.files)
        except (CorruptFileError, InvalidTargetError) as error:
            kind = _kind_of_values(self.dataset.tasks.get(key)) if isinstance(error, InvalidTargetError) else "corrupt"
            self._report(key, kind, str(error))
        except Exception as error:  # whatever a file of an unforeseen kind makes a reader stumble over
            is_missing = isinstance(error, KeyError) and error.args[0] in self.paths.keys() - self.files.keys()
            if not is_missing:  # which is reported already
                self._report(key, "corrupt", f"cannot be decoded ({type(error).__name__}: {error})")
        return None

    def _inspect_tag(self) -> None:
        """Doubt an orientation tag, which viewers and annotation programs obey."""
        tag = orientation(self.files[IMAGE])
        if tag > 1 and self.dataset.orientation == "stored":
            reason = (
                f"the orientation tag {tag} turns the image in viewers, but its labels are taken to fit the pixels as "
                "they are stored (FolderDataModule has the option `orientation` if they do not)"
            )
            self._report(IMAGE, "turned", reason, is_doubt=True)

    def _inspect(self, task: Task, target: Array, image: Array | None) -> None:
        """Check one target."""
        kind = _kind_of_values(task)
        has_pixels = map_kind(task) is not None
        if wrong := wrong_shape(task, target):
            self._report(task.name, "values", wrong)
            return
        if has_pixels and image is not None and target.shape[:2] != image.shape[:2]:
            size, expected = ("x".join(map(str, array.shape[:2])) for array in (target, image))
            self._report(task.name, "size", f"the map is {size} and its image {expected} (height x width)")
        valid = valid_pixels(task, target)
        self.summaries[task.name] = _summary(target, valid)
        for reason in _wrong_values(task, target, valid):
            self._report(task.name, kind, reason)
        zeros = self._zero_normals(task, valid)
        if zeros > MAX_ZERO_NORMALS:
            self._report(task.name, kind, f"{zeros:.0%} of the pixels have a zero vector instead of a normal")
        elif not valid.any() and task.name not in self.dataset.may_be_empty:
            self._report(task.name, kind, "not a single pixel has a label")
        elif has_pixels and 0 < valid.mean() < FEW_LABELS and task.name not in self.dataset.may_be_empty:
            self._report(task.name, "few", f"only {valid.mean():.2%} of the pixels have a label", is_doubt=True)
        if odd := _odd_median(task, target):
            self._report(task.name, "unit", odd, is_doubt=True)
        try:
            for reason in self.dataset.faults(task.name, self.files, target):
                self._report(task.name, kind, reason)
        except CorruptFileError as error:
            self._report(task.name, "corrupt", str(error))

    def _zero_normals(self, task: Task, valid: NDArray[np.bool_]) -> float:
        """Return the share of the pixels whose normal has no direction in the file, whatever is masked besides."""
        if task.geometry != "vector" or task.name not in self.files or valid.mean() >= 1 - MAX_ZERO_NORMALS:
            return 0.0
        file = self.files[task.name]
        stored = read_array(file) if holds_array(file) else read_pixels(file)
        if stored.ndim != 3 or stored.shape[2] != 3:
            return 0.0
        vectors = stored / (np.iinfo(stored.dtype).max / 2) - 1 if stored.dtype.kind == "u" else stored
        return float((np.linalg.norm(vectors, axis=-1) < MIN_LENGTH).mean())

    def _report(self, key: str, kind: Kind, reason: str, is_doubt: bool = False) -> None:
        """Add a finding whose sentence names the file; two tasks may share one, and its fault."""
        named = [str(path) for path in self.paths.values() if str(path) in reason]
        file = max(named, key=len) if named else str(self.paths.get(key, self.paths[IMAGE]))
        text = reason if named else f"{file}: {reason}"
        task = key if key in (IMAGE, *self.dataset.tasks) else ""
        if not any((found.file, found.kind, found.reason) == (file, kind, text) for found in self.findings):
            self.findings.append(Finding(self.dataset.split, self.name, task, file, kind, text, is_doubt))


def _kind_of_values(task: Task | None) -> Kind:
    if task is None:
        return "values"
    kinds: dict[str, Kind] = {"label": "labels", "vector": "normals"}
    return kinds.get(task.geometry, "values")


def wrong_shape(task: Task, target: Array) -> str | None:
    """Say what is wrong with a target's type or number of axes and channels, None if they are right."""
    if task.geometry == "label":
        fits, expected = target.dtype.kind in "iu" and target.ndim == 2, "integers (H, W)"
    elif task.geometry == "image":
        fits, expected = target.dtype.kind == "f" and target.shape == (task.channels,), f"floats ({task.channels},)"
    else:
        channels = target.shape[2] if target.ndim == 3 else 1
        fits = target.dtype.kind == "f" and target.ndim in (2, 3) and channels == task.channels
        expected = f"floats (H, W) with {task.channels} channels"
    return None if fits else f"the {task.name} map is {target.dtype} {target.shape}, expected {expected}"


def valid_pixels(task: Task, target: Array) -> NDArray[np.bool_]:
    """Return which pixels ``(H, W)`` have a label; for whole-image targets one value ``()``."""
    if task.geometry == "label":
        return np.asarray(target != IGNORE_INDEX)
    labelled = ~np.isnan(target)
    return np.asarray(labelled.all(axis=-1) if target.ndim in (1, 3) else labelled)


def _summary(pixels: Array, valid: NDArray[np.bool_]) -> MapSummary:
    values = pixels[valid]
    low, high = (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
    return MapSummary(1, valid.size, int(valid.sum()), low, high)


def _wrong_values(task: Task, target: Array, valid: NDArray[np.bool_]) -> Iterator[str]:
    """Say which valid values cannot be."""
    values = target[valid]
    if reason := wrong_classes(task, target):
        yield reason
    if (infinite := np.isinf(values)).any():
        yield f"{infinite.sum()} values are infinite"
        values = values[~infinite]
    low, high = _limits(task)
    if (wrong := values[(values < low) | (values > high)]).size:
        yield f"{wrong.size} values lie outside [{low:g}, {high:g}], e.g. {wrong[0]:g}"
    if isinstance(task, Depth) and (values == 0).any():
        yield f"{(values == 0).sum()} depths are 0; no depth is NaN"
    if task.geometry == "vector":
        lengths = np.linalg.norm(values, axis=-1)
        if (wrong := lengths[np.abs(lengths - 1) > 0.01]).size:
            yield f"{wrong.size} normals are not of length 1, e.g. {wrong[0]:g}"


def _odd_median(task: Task, target: Array) -> str | None:
    """Say if values are hardly in the task's unit: they are all far too large or too small."""
    values = target[np.isfinite(target)] if target.dtype.kind == "f" else target[:0]
    low, high = task.plausible
    if not values.size or low <= (median := float(np.median(values))) <= high:
        return None
    return f"the median is {median:g}, from {low:g} to {high:g} was expected: is it in the unit of {task.name!r}?"


def _limits(task: Task) -> tuple[float, float]:
    """Return the smallest and the largest value that a task's maps may have."""
    if isinstance(task, Depth):
        return 0.0, MAX_DEPTH_M
    if isinstance(task, InverseDepth):
        return 0.0, np.inf
    if isinstance(task, Edges | Classification):
        return 0.0, 1.0
    return -np.inf, np.inf
