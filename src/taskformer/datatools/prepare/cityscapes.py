"""Cityscapes from the zips of its owners."""

import re
import zipfile
import zlib
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from taskformer.data.datasets.cityscapes import DOWNLOADS, PACKAGES, ArrayLayout, OfficialLayout, find_layout
from taskformer.data.geometry import resize_image, resize_map
from taskformer.data.images import File, read_plane, read_rgb, write_png
from taskformer.datatools.prepare.sources import DownloadError, convert, extract
from taskformer.errors import ConfigError, CorruptFileError
from taskformer.files import replacing

#: What is taken out of the packages: training and validation, and of gtFine only the label ids.
WANTED = re.compile(
    r"leftImg8bit/(train|val)/\w+/\w+_leftImg8bit\.png"
    r"|gtFine/(train|val)/\w+/\w+_gtFine_labelIds\.png"
    r"|disparity/(train|val)/\w+/\w+_disparity\.png"
    r"|camera/(train|val)/\w+/\w+_camera\.json"
)


class Picture(NamedTuple):
    """A PNG of the data set.

    Attributes:
        container: A zip, or the folder that zips were unpacked to.
        member: Its path in there and in any copy.
    """

    container: Path
    member: str


def prepare_cityscapes(
    source: Path | None, out: Path, size: tuple[int, int] | None = None, workers: int | None = None
) -> None:
    """Unpack Cityscapes, or make a smaller copy of it. An interrupted run continues where it stopped.

    The owners give the packages to registered users only, so they cannot be fetched from here. The preprocessed arrays
    of MTAN and AdaShare need no preparation.

    Args:
        source: Folder with the owners' packages ``leftImg8bit_trainvaltest.zip``, ``gtFine_trainvaltest.zip``,
            ``disparity_trainvaltest.zip`` and ``camera_trainvaltest.zip``; any of the last three may be missing. With
            ``size``, a folder with these packages unpacked will do.
        out: Folder to write to.
        size: Height and width of a smaller copy, e.g. [256, 512]: images are averaged, labels and disparities sampled.
            Disparities keep counting pixels of the original width and cameras their original focal length, so depth
            comes out the same.
        workers: Number of processes; None takes one per processor.

    Raises:
        DownloadError: If the packages are not there; says where to get them.
        CorruptFileError: If a package or a file in it is broken, or would be unpacked outside ``out``.
        ConfigError: If there is nothing to prepare.
    """
    containers = _containers(source)
    if source in containers and (size is None or source.resolve() == out.resolve()):
        msg = f"{source} is unpacked already; take it as data.init_args.root, or give a size and another folder"
        raise ConfigError(msg)
    for container in containers:
        if container.is_dir():
            _copy_cameras(container, out)
        else:
            # Looks at every member's name first, and refuses the whole package for one that would leave the folder.
            extract(container, out, partial(_target, pictures=size is None))
    if size is not None:
        pictures = [picture for container in containers for picture in _pictures(container)]
        failures = convert(pictures, partial(_shrink, out=out, size=size), workers, f"{size[0]}x{size[1]}")
        if failures:
            msg = f"{len(failures)} of {len(pictures)} files could not be converted, the first: {failures[0][1]}"
            raise CorruptFileError(msg)


def _containers(source: Path | None) -> list[Path]:
    """Return the zips in a folder, or the folder itself if it holds them unpacked."""
    zips = {name: source / file for name, file in PACKAGES.items() if source and (source / file).is_file()}
    if "leftImg8bit" in zips and len(zips) > 1:
        return list(zips.values())
    layout = find_layout(source, 19) if source else None
    if source and isinstance(layout, OfficialLayout):
        return [source]
    if isinstance(layout, ArrayLayout):
        msg = f"{source} holds preprocessed arrays, which need no preparation; take it as data.init_args.root"
        raise ConfigError(msg)
    found = f" ({source} has {' and '.join(path.name for path in zips.values()) or 'none'})" if source else ""
    msg = (
        f"Cityscapes is for registered users only: log in at {DOWNLOADS}, get {PACKAGES['leftImg8bit']} and "
        f"{PACKAGES['gtFine']} (for semseg), {PACKAGES['disparity']} and {PACKAGES['camera']} (for depth), and name "
        f"their folder as --source{found}"
    )
    raise DownloadError(msg)


def _target(member: str, *, pictures: bool) -> str | None:
    """Return where a member goes, if it does."""
    return member if WANTED.fullmatch(member) and (pictures or member.endswith(".json")) else None


def _pictures(container: Path) -> list[Picture]:
    if container.is_dir():
        members = [str(path.relative_to(container)) for path in sorted(container.glob("*/*/*/*.png"))]
    else:
        with zipfile.ZipFile(container) as archive:
            members = archive.namelist()
    return [Picture(container, member) for member in members if WANTED.fullmatch(member) and member.endswith(".png")]


def _copy_cameras(container: Path, out: Path) -> None:
    for path in container.glob("camera/*/*/*.json"):
        with replacing(out / path.relative_to(container)) as temporary:
            temporary.write_bytes(path.read_bytes())


@cache
def _open(path: Path) -> zipfile.ZipFile:
    """Open a zip once per process: its table of contents has thousands of lines."""
    return zipfile.ZipFile(path)


def _shrink(picture: Picture, out: Path, size: tuple[int, int]) -> None:
    """Write one PNG smaller, unless it is there in this size."""
    target = out / picture.member
    if target.exists():
        with Image.open(target) as finished:
            if finished.size == size[::-1]:
                return
    is_folder = picture.container.is_dir()
    content = (picture.container / picture.member).read_bytes() if is_folder else _read(picture)
    file = File(f"{picture.container}:{picture.member}", content)
    if picture.member.startswith("leftImg8bit"):
        write_png(target, resize_image(read_rgb(file), *size))
    else:
        write_png(target, resize_map(read_plane(file), "value", *size))


def _read(picture: Picture) -> bytes:
    try:
        return _open(picture.container).read(picture.member)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        msg = f"{picture.container}, member {picture.member!r}: broken ({error}); get the package again"
        raise CorruptFileError(msg) from error
