"""Is a data set on disk what it should be? Counts, splits, and every file opened and looked at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.base import IMAGE, MultiTaskDataset
from taskformer.data.geometry import map_kind
from taskformer.data.images import File, holds_array, read_array, read_json, read_pixels
from taskformer.data.names import examples
from taskformer.datatools.report import Finding, Kind, MapSummary, Report, SplitSummary
from taskformer.datatools.selection import chosen_tasks, spread
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError
from taskformer.parallel import default_workers, run_jobs
from taskformer.pictures import orientation
from taskformer.tasks import Task

Array: TypeAlias = NDArray[Any]

#: Length below which a stored normal means no direction; a unit vector in 8 bits keeps a length of at least 0.99.
MIN_LENGTH = 0.5
#: Largest share of a normal map without a direction; the holes of depth sensors stay below.
MAX_ZERO_NORMALS = 0.5
#: Share of labelled pixels below which a map is doubtful; sparse depth of laser scanners is above.
FEW_LABELS = 0.02


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
        sample: Number of images to open of each split, spread evenly; None opens all.
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
    built = chosen_tasks(module, tasks)
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
        reason = (
            f"the split {split!r} lists {len(strangers)} images that belong to no split: {examples(sorted(strangers))}"
        )
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
    """Open and check all files of one image; returns a summary of each of its maps, and what is wrong with them."""
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
        if wrong := task.misfit(target):
            self._report(task.name, "values", wrong)
            return
        if has_pixels and image is not None and target.shape[:2] != image.shape[:2]:
            size, expected = ("x".join(map(str, array.shape[:2])) for array in (target, image))
            self._report(task.name, "size", f"the map is {size} and its image {expected} (height x width)")
        valid = task.valid(target)
        self.summaries[task.name] = _summary(target, valid)
        for reason in task.wrong_values(target):
            self._report(task.name, kind, reason)
        zeros = self._zero_normals(task, valid)
        if zeros > MAX_ZERO_NORMALS:
            self._report(task.name, kind, f"{zeros:.0%} of the pixels have a zero vector instead of a normal")
        elif not valid.any() and task.name not in self.dataset.may_be_empty:
            self._report(task.name, kind, "not a single pixel has a label")
        elif has_pixels and 0 < valid.mean() < FEW_LABELS and task.name not in self.dataset.may_be_empty:
            self._report(task.name, "few", f"only {valid.mean():.2%} of the pixels have a label", is_doubt=True)
        if odd := task.doubtful_median(target):
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


def _summary(pixels: Array, valid: NDArray[np.bool_]) -> MapSummary:
    values = pixels[valid]
    low, high = (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
    return MapSummary(1, valid.size, int(valid.sum()), low, high)
