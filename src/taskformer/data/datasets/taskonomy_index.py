"""Which views of Taskonomy there are: its published splits, and an index of the 4.5 million views on the disk."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

from taskformer.data.names import folders_in, is_hidden, read_text
from taskformer.errors import ConfigError, DatasetNotFoundError
from taskformer.files import inside, replacing, write_json

SplitList: TypeAlias = Literal["tiny", "medium", "full", "fullplus"]
Layout: TypeAlias = Literal["building_first", "domain_first"]
SPLITS = ("train", "val", "test")

#: The folders of a building, in the order of their bits in the index.
DOMAINS = (
    *("rgb", "depth_zbuffer", "depth_euclidean", "mask_valid", "normal", "principal_curvature", "reshading"),
    *("edge_texture", "edge_occlusion", "keypoints2d", "keypoints3d", "segment_semantic", "segment_unsup2d"),
    *("segment_unsup25d", "class_object", "class_scene", "point_info"),
)
#: One view: number of its building in the index, its point and view, and one bit per domain that it has a file of.
VIEW = np.dtype([("building", "<u2"), ("point", "<u4"), ("view", "<u2"), ("domains", "<u4")])
#: Folders are listed by this many threads, which wait for the disk most of the time.
THREADS = 16
#: How many files of a folder that belong to no view are kept in the index.
STRANGERS = 3
VERSION = 2


@cache
def published_splits(split_list: SplitList) -> dict[str, str]:
    """Return the split of each building of one of the published lists, which are nested."""
    table = json.loads(resources.files("taskformer.data").joinpath("tables", "taskonomy.json").read_text("utf-8"))
    names: Sequence[str] = get_args(SplitList)
    lists = [table["lists"][name] for name in names[: names.index(split_list) + 1]]
    return {building: split for added in lists for split in SPLITS for building in added[split].split()}


def read_splits(path: Path) -> dict[str, str]:
    r"""Read a table ``id,train,val,test`` with a 1 for each building's split; line ends may be ``\r``, as published.

    Raises:
        ConfigError: If it is not such a table.
    """
    rows = _rows(path, ("id", *SPLITS))
    splits = {}
    for row in rows:
        chosen = [split for split in SPLITS if row[split].strip() == "1"]
        if len(chosen) != 1:
            msg = f"{path}: the building {row['id']!r} has {len(chosen)} splits, expected a 1 under one of {SPLITS}"
            raise ConfigError(msg)
        building = row["id"].strip()
        inside(path.parent, building, "the building")
        splits[building] = chosen[0]
    return splits


def read_views(path: Path) -> dict[str, set[tuple[int, int]]]:
    """Read a list of views ``building,point,view`` as a set of points and views per building.

    Raises:
        ConfigError: If it is not such a list.
    """
    views: dict[str, set[tuple[int, int]]] = {}
    try:
        for row in _rows(path, ("building", "point", "view")):
            views.setdefault(row["building"].strip(), set()).add((int(row["point"]), int(row["view"])))
    except ValueError as error:
        msg = f"{path}: points and views must be whole numbers ({error})"
        raise ConfigError(msg) from error
    return views


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        msg = f"there is no table {path} (working directory: {Path.cwd()})"
        raise DatasetNotFoundError(msg)
    reader = csv.DictReader(read_text(path).splitlines())  # of any kind of line ends
    if not set(columns) <= set(reader.fieldnames or ()):
        msg = f"{path} has the columns {reader.fieldnames}, expected {', '.join(columns)}"
        raise ConfigError(msg)
    return list(reader)


def find_layout(root: Path) -> Layout:
    """Tell ``root/rgb/BUILDING`` from ``root/BUILDING/rgb``.

    Raises:
        DatasetNotFoundError: If the folder holds neither.
    """
    if (root / "rgb").is_dir():
        return "domain_first"
    if root.is_dir() and any((root / name / "rgb").is_dir() for name in folders_in(root)):
        return "building_first"
    msg = (
        f"Taskonomy: neither {root}/rgb/BUILDING nor {root}/BUILDING/rgb exists (working directory: {Path.cwd()}); "
        "point `data.init_args.root` to the data set's folder"
    )
    raise DatasetNotFoundError(msg)


def domain_folder(root: Path, layout: Layout, building: str, domain: str) -> Path:
    """Return the folder of a building's files of a domain."""
    return root / building / domain if layout == "building_first" else root / domain / building


@dataclass(frozen=True)
class Index:
    """The views on the disk, ordered by building, point and view.

    Attributes:
        layout: How the folders are nested.
        buildings: Names of the buildings in order.
        tails: How the file names of each building's domains go on after point and view, e.g.
            ``{"rgb": "_domain_rgb.png"}``.
        starts: Where each building starts in ``views``, and the end: one more than there are buildings.
        table: The file of the views.
        strangers: For each building a few files of each of its folders that belong to no view, as ``DOMAIN/NAME``.
    """

    layout: Layout
    buildings: list[str]
    tails: list[dict[str, str]]
    starts: NDArray[np.int64]
    table: Path
    strangers: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def views(self) -> NDArray[Any]:
        """The views, an array of type :data:`VIEW` that stays on the disk until it is looked at."""
        views: NDArray[Any] = np.load(self.table, mmap_mode="r", allow_pickle=False)
        return views

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views, which another process opens by itself."""
        return {name: value for name, value in self.__dict__.items() if name != "views"}


def open_index(root: Path, index_dir: Path | None = None) -> Index:
    """Open the index of a folder, or build it where it is missing or older than a folder of a building.

    Args:
        root: The data set's folder.
        index_dir: Where the index is kept; by default ``ROOT/.taskformer``, or ``~/.cache/taskformer`` if the root
            cannot be written to.

    Raises:
        DatasetNotFoundError: If there is no building.
    """
    layout = find_layout(root)
    stamps = _stamps(root, layout)
    folder = index_dir or _default_folder(root)
    about, table = folder / "taskonomy.json", folder / "taskonomy.npy"
    saved = _saved(about, stamps)
    if saved is None or not table.is_file():
        saved = _build(root, layout, stamps, table)
        write_json(about, saved)  # after the table: it says that the table is complete
    names = list(saved["buildings"])
    starts = np.concatenate([[0], np.cumsum([saved["buildings"][name]["views"] for name in names])]).astype(np.int64)
    tails, strangers = ([saved["buildings"][name][fact] for name in names] for fact in ("tails", "strangers"))
    return Index(layout, names, tails, starts, table, dict(zip(names, strangers, strict=True)))


def _default_folder(root: Path) -> Path:
    if os.access(root, os.W_OK):
        return root / ".taskformer"
    return Path.home() / ".cache" / "taskformer" / str(root.resolve()).strip("/").replace("/", "-")


def _saved(about: Path, stamps: dict[str, dict[str, int]]) -> dict[str, Any] | None:
    """Return what an earlier call found, if the folders are as they were then."""
    try:
        saved: dict[str, Any] = json.loads(about.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    current = saved.get("version") == VERSION and saved.get("stamps") == stamps
    return saved if current else None


def _stamps(root: Path, layout: Layout) -> dict[str, dict[str, int]]:
    """Return when each building's folder of each domain changed last, in nanoseconds."""
    buildings = folders_in(root if layout == "building_first" else root / "rgb")
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda building: _building_stamps(root, layout, building), buildings)
        return {building: times for building, times in zip(buildings, found, strict=True) if "rgb" in times}


def _building_stamps(root: Path, layout: Layout, building: str) -> dict[str, int]:
    times = {}
    for domain in DOMAINS:
        try:
            times[domain] = domain_folder(root, layout, building, domain).stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return times


def _build(root: Path, layout: Layout, stamps: dict[str, dict[str, int]], table: Path) -> dict[str, Any]:
    """List every folder and write the table; returns the facts about it."""
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = {name: pool.submit(_list_building, root, layout, name, list(times)) for name, times in stamps.items()}
    buildings, parts = {}, [np.empty(0, VIEW)]
    for number, (name, job) in enumerate(jobs.items()):
        views, tails, strangers = job.result()
        views["building"] = number
        parts.append(views)
        buildings[name] = {"views": len(views), "tails": tails, "strangers": strangers}
    with replacing(table) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.concatenate(parts), allow_pickle=False)
    return {"version": VERSION, "stamps": stamps, "buildings": buildings}


def _list_building(
    root: Path, layout: Layout, building: str, domains: Iterable[str]
) -> tuple[NDArray[Any], dict[str, str], list[str]]:
    """List the views of one building that have an image, the ends of each domain's file names, and other files."""
    keys, tails, strangers = {}, {}, []
    for domain in domains:
        keys[domain], tail, others = _list_domain(domain_folder(root, layout, building, domain))
        strangers += [f"{domain}/{name}" for name in others[:STRANGERS]]
        if tail:
            tails[domain] = tail
    images = np.sort(keys["rgb"])
    views = np.zeros(len(images), VIEW)
    views["point"], views["view"] = images >> 16, images & 0xFFFF
    for domain, found in keys.items():
        views["domains"] |= np.isin(images, found).astype(np.uint32) << DOMAINS.index(domain)
    return views, tails, strangers


def _list_domain(folder: Path) -> tuple[NDArray[np.int64], str, list[str]]:
    """List the files ``point_POINT_view_VIEW_domain_DOMAIN.EXT`` of a folder, by the end that most of them have.

    Returns:
        ``point << 16 | view`` of each, that end, and the names of all other visible files, sorted.
    """
    found: dict[str, list[int]] = {}
    strangers = []
    for name in os.listdir(folder):  # noqa: PTH208  # a Path for each of millions of files takes too long
        key, end = _parse(name)
        if key is not None:
            found.setdefault(end, []).append(key)
        elif not is_hidden(name):
            strangers.append(name)
    tail = max(sorted(found), key=lambda end: len(found[end]), default="")
    keys = found.pop(tail, [])
    strangers += [f"point_{key >> 16}_view_{key & 0xFFFF}{end}" for end, others in found.items() for key in others]
    return np.array(keys, dtype=np.int64), tail, sorted(strangers)


def _parse(name: str) -> tuple[int | None, str]:
    parts = name.split("_", 4)  # point, P, view, V, domain_D.EXT
    if len(parts) != 5 or parts[0] != "point" or not (parts[1].isdecimal() and parts[3].isdecimal()):
        return None, ""
    return int(parts[1]) << 16 | int(parts[3]), f"_{parts[4]}"


class View(NamedTuple):
    """One view.

    Attributes:
        building: Name of its building.
        point: Number of the point it looks at.
        view: Number of the view of that point.
        tails: How the name of its file goes on after point and view, for each domain that it has a file of.
    """

    building: str
    point: int
    view: int
    tails: dict[str, str]

    @property
    def id(self) -> str:
        """A name that no other view has."""
        return f"{self.building}/{self.stem}"

    @property
    def stem(self) -> str:
        """Start of the names of its files."""
        return f"point_{self.point}_view_{self.view}"


class Views(Sequence[str]):
    """The ids of a split's views, made when they are asked for: millions of strings would fill every loader process.

    Args:
        disk: All views on the disk.
        buildings: Names of the buildings of the split; those that are not on the disk are left out.
        only: If given, the points and views of each building to keep.
    """

    def __init__(
        self, disk: Index, buildings: Iterable[str], only: dict[str, set[tuple[int, int]]] | None = None
    ) -> None:
        self.disk = disk
        numbers = {name: number for number, name in enumerate(disk.buildings)}
        names = sorted(set(buildings) & numbers.keys())
        chosen = np.array([numbers[name] for name in names], dtype=np.int64)
        # Either the rows of each building one after another, of which only the starts are kept, or single rows.
        self._first = disk.starts[chosen]
        self._ends = np.cumsum(disk.starts[chosen + 1] - self._first)
        self._rows = None if only is None else np.fromiter(self._chosen(chosen.tolist(), only), dtype=np.int64)

    def _chosen(self, buildings: list[int], only: dict[str, set[tuple[int, int]]]) -> Iterator[int]:
        for building in buildings:
            wanted = only.get(self.disk.buildings[building], set())
            start, end = self.disk.starts[building : building + 2]
            for row, record in enumerate(self.disk.views[start:end], int(start)):
                if (int(record["point"]), int(record["view"])) in wanted:
                    yield row

    def __len__(self) -> int:
        """Return the number of views."""
        if self._rows is not None:
            return len(self._rows)
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        """Return one id, or a list of some."""
        if isinstance(position, slice):
            return [self.view(place).id for place in range(*position.indices(len(self)))]
        return self.view(position).id

    def view(self, position: int) -> View:
        """Return one view."""
        count = len(self)
        position = int(position) + (count if position < 0 else 0)
        if not 0 <= position < count:
            msg = f"view {position} of {count}"
            raise IndexError(msg)
        record = self.disk.views[self._row(position)]
        building, bits = int(record["building"]), int(record["domains"])
        tails = {name: end for name, end in self.disk.tails[building].items() if bits >> DOMAINS.index(name) & 1}
        return View(self.disk.buildings[building], int(record["point"]), int(record["view"]), tails)

    def _row(self, position: int) -> int:
        if self._rows is not None:
            return int(self._rows[position])
        part = int(np.searchsorted(self._ends, position, side="right"))
        return int(self._first[part] + position - (self._ends[part - 1] if part else 0))
