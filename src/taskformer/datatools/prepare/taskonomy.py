"""Taskonomy from the archives that its owners publish, one for each building and domain."""

import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from taskformer.data.datasets.taskonomy_index import (
    DOMAINS,
    Layout,
    SplitList,
    domain_folder,
    published_splits,
    read_splits,
)
from taskformer.datatools.prepare.sources import DownloadError, Source, convert, extract, fetch
from taskformer.errors import UnknownNameError
from taskformer.files import write_text

#: Where the owners publish ``links.txt`` (one address per line), ``md5sum.txt`` (checksum and file per line) and the
#: archives ``BUILDING_DOMAIN.tar``. The licence is ``data/LICENSE`` of https://github.com/StanfordVL/taskonomy.
SERVER = "https://datasets.epfl.ch/taskonomy"
NOTE = (
    "Taskonomy's licence and downloads are described at https://github.com/StanfordVL/taskonomy/tree/master/data, "
    "archives from there can be given as --source"
)
#: Names of archives: the owners', and those that their download tool saves.
ARCHIVE = re.compile(r"(?P<building>[a-z]+)_(?P<domain>\w+)\.tar(\.gz)?")
TOOL_ARCHIVE = re.compile(r"(?P<domain>\w+?)__taskonomy__(?P<building>[a-z]+)\.tar(\.gz)?")
MEMBER = re.compile(r"point_\d+_view_\d+_domain_\w+\.(png|npy|json)")


class Archive(NamedTuple):
    """The files of one building in one domain.

    Attributes:
        building: The building.
        domain: The domain.
        origin: The local archive, or where to download it from.
    """

    building: str
    domain: str
    origin: Path | Source


def prepare_taskonomy(
    source: Path | None,
    out: Path,
    split_list: SplitList = "tiny",
    splits_file: Path | None = None,
    buildings: list[str] | None = None,
    domains: list[str] | None = None,
    layout: Layout = "building_first",
    keep_archives: bool = False,
    workers: int | None = None,
    server: str = SERVER,
) -> None:
    """Download and unpack Taskonomy, whole (11 TB) or in part. An interrupted run continues where it stopped.

    An archive is removed once it is unpacked; those in ``source`` are left alone.

    Args:
        source: Folder with archives ``BUILDING_DOMAIN.tar``, at any depth; None downloads them.
        out: Folder to unpack to.
        split_list: Which of the owners' lists of buildings: tiny (35), medium (138), full (482) or fullplus (537).
        splits_file: Your own list instead, a table ``id,train,val,test``.
        buildings: Only these buildings of the list; None takes all.
        domains: Only these domains, e.g. [rgb, normal]; None takes all that the data set reads.
        layout: How to nest the folders: ``building_first`` or ``domain_first``.
        keep_archives: Keep downloaded archives, in ``OUT/.prepare``.
        workers: Number of archives at a time; None takes one per processor.
        server: Address of the folder that has ``links.txt``, ``md5sum.txt`` and the archives.

    Raises:
        UnknownNameError: If a building or domain does not exist.
        DownloadError: If archives are missing or cannot be downloaded; says which and why.
    """
    splits = published_splits(split_list) if splits_file is None else read_splits(splits_file)
    names = _chosen(buildings, list(splits), f"building of {splits_file or split_list}")
    wanted = [(name, domain) for name in names for domain in _chosen(domains, list(DOMAINS), "domain of Taskonomy")]
    state = out / ".prepare"
    origins = _local(source) if source else _published(server, state)
    missing = [f"{name}_{domain}" for name, domain in wanted if (name, domain) not in origins]
    archives = [Archive(*place, origins[place]) for place in wanted if place in origins]
    job = partial(_unpack, out=out, layout=layout, state=state, keep=keep_archives)
    failures = convert(archives, job, workers, "archives")
    # Not every domain is published for every building; the image must be, and so must what was asked for by name.
    missing = [name for name in missing if domains is not None or name.endswith("_rgb")]
    if failures or missing:
        reasons = [reason for _, reason in failures[:3]] + (
            [f"not found: {', '.join(missing[:10])}"] if missing else []
        )
        msg = (
            f"{len(failures) + len(missing)} of {len(wanted)} archives of Taskonomy are not in {out}: "
            f"{'; '.join(reasons)}; run this again for the rest. {NOTE}"
        )
        raise DownloadError(msg)


def _chosen(names: list[str] | None, known: list[str], kind: str) -> list[str]:
    for name in names or ():
        if name not in known:
            raise UnknownNameError(kind, name, known)
    return known if names is None else names


def _local(source: Path) -> dict[tuple[str, str], Path | Source]:
    """Find the archives in a folder."""
    found: dict[tuple[str, str], Path | Source] = {}
    for path in sorted(source.rglob("*.tar*")):
        if place := _place(path.name):
            found[place] = path
    return found


def _published(server: str, state: Path) -> dict[tuple[str, str], Path | Source]:
    """Read the owners' lists of addresses and checksums."""
    links, sums = (
        fetch(Source(f"{server}/{name}", name, note=NOTE), state).read_text("utf-8").split()
        for name in ("links.txt", "md5sum.txt")
    )
    checksums = {PurePosixPath(name).name: md5 for md5, name in zip(sums[::2], sums[1::2], strict=True)}
    found: dict[tuple[str, str], Path | Source] = {}
    for url in links:
        file = PurePosixPath(url).name
        if place := _place(file):
            found[place] = Source(url, file, md5=checksums.get(file), note=NOTE)
    return found


def _place(file: str) -> tuple[str, str] | None:
    match = TOOL_ARCHIVE.fullmatch(file) or ARCHIVE.fullmatch(file)
    return (match["building"], match["domain"]) if match else None


def _unpack(archive: Archive, out: Path, layout: Layout, state: Path, keep: bool) -> None:
    """Get and unpack one archive, unless that was done."""
    done = state / f"{archive.building}_{archive.domain}.done"
    if done.exists():
        return
    path = archive.origin if isinstance(archive.origin, Path) else fetch(archive.origin, state)
    folder = domain_folder(out, layout, archive.building, archive.domain)
    count = extract(path, folder, _member)
    if not count:
        msg = f"{path} holds no file like point_0_view_0_domain_{archive.domain}.png"
        raise DownloadError(msg)
    write_text(done, f"{count} files\n")
    if path != archive.origin and not keep:
        path.unlink()


def _member(name: str) -> str | None:
    """Return the name of a wanted file without the folders of the archive, which differ between servers."""
    file = PurePosixPath(name).name
    return file if MEMBER.fullmatch(file) else None
