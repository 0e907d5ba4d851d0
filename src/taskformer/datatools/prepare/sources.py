"""Download, unpack and convert files so that an interrupted run continues and never leaves half a file."""

import hashlib
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TypeVar
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from taskformer._version import __version__
from taskformer.errors import CorruptFileError, TaskformerError
from taskformer.files import replacing
from taskformer.parallel import default_workers, progress_bar, run_jobs

Item = TypeVar("Item")

#: Seconds without a byte after which a connection counts as broken.
TIMEOUT_S = 30.0
#: Attempts in a row that may bring nothing; an attempt that brings something starts the count again.
ATTEMPTS = 5
#: Seconds before the second attempt; doubled before each later one.
PAUSE_S = 1.0
BLOCK = 1 << 20
#: Largest size of what an archive holds over its own: label maps that are stored as plain arrays shrink to a hundredth.
LARGEST_RATIO = 300
#: HTTP statuses after which another attempt may succeed (RFC 9110, and 429 of RFC 6585).
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
RANGE_NOT_SATISFIABLE = 416


class DownloadError(TaskformerError, OSError):
    """A file could not be downloaded, or is not what its owner published."""


@dataclass(frozen=True)
class Source:
    """A file that its owner publishes.

    Attributes:
        url: Where; ``http`` or ``https``.
        file: Name of the local copy.
        bytes: Its size, where published.
        sha256: Its checksum in hexadecimal, where published.
        md5: Its MD5 checksum, where the owner publishes only that.
        note: What to do when the link fails, e.g. which page to log in at.
    """

    url: str
    file: str
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    note: str = ""


class _Interrupted(Exception):  # noqa: N818  # a reason to try again, never seen by callers
    """The connection failed in a way that another attempt may not."""


@dataclass(frozen=True)
class _Member:
    """What zips and tars know about a member."""

    name: str
    size: int
    kind: str  # "file", "folder", or what else it is
    open: Callable[[], IO[bytes] | None]


def fetch(source: Source, folder: Path) -> Path:
    """Download a file unless it is there. An interrupted download continues where it stopped.

    Args:
        source: What to download.
        folder: Where to; ``FILE.part`` is the unfinished file.

    Returns:
        The complete file, of the published size and checksum.

    Raises:
        DownloadError: If the address does not answer, or the file is not the published one.
    """
    path, part = folder / source.file, folder / f"{source.file}.part"
    if path.exists():
        if wrong := _difference(source, path):
            msg = f"{path} is not the file that {source.url} publishes: {wrong}; delete it and run this again"
            raise DownloadError(msg)
        return path
    if urlsplit(source.url).scheme not in ("http", "https"):
        raise _failure(source, path, "the address is neither http nor https")
    folder.mkdir(parents=True, exist_ok=True)
    _download(source, path, part)
    if wrong := _difference(source, part):
        part.unlink()
        raise _failure(source, path, f"what came is not the published file and was deleted: {wrong}")
    part.replace(path)
    return path


def _download(source: Source, path: Path, part: Path) -> None:
    """Bring the unfinished file to its full length; attempts go on for as long as they bring something."""
    failures = 0
    with _byte_bar(source.file, source.bytes) as show:
        while True:
            before = _size(part)
            try:
                _attempt(source, path, part, show)
            except _Interrupted as error:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= ATTEMPTS:
                    raise _failure(source, path, str(error)) from error
                time.sleep(PAUSE_S * 2 ** (failures - 1))
            else:
                return


def _attempt(source: Source, path: Path, part: Path, show: Callable[[int, int | None], None]) -> None:
    """Ask for what is missing and append it.

    Raises:
        _Interrupted: If another attempt may bring more.
        DownloadError: If it will not.
    """
    offset = _size(part)
    if source.bytes is not None and offset == source.bytes:
        return
    response = _ask(source, path, part, offset)
    with response:
        resumed = response.status == 206 and _range_start(response) == offset
        if response.status == 206 and not resumed:
            part.unlink(missing_ok=True)
            msg = "the server sent another part of the file than was asked for"
            raise _Interrupted(msg)
        offset = offset if resumed else 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdigit() else None
        with part.open("ab" if resumed else "wb") as stream:
            for block in _blocks(response):
                stream.write(block)
                offset += len(block)
                show(offset, total)
    if total is not None and offset < total:
        msg = f"the connection ended after {offset} of {total} bytes"
        raise _Interrupted(msg)


def _ask(source: Source, path: Path, part: Path, offset: int) -> HTTPResponse:
    """Send the request, for the rest of the file where some of it is there."""
    headers = {"User-Agent": f"taskformer/{__version__}"} | ({"Range": f"bytes={offset}-"} if offset else {})
    request = urllib.request.Request(source.url, headers=headers)
    try:
        response: HTTPResponse = _opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == RANGE_NOT_SATISFIABLE and offset:
            part.unlink()
            msg = "the unfinished file was longer than the published one and was deleted"
            raise _Interrupted(msg) from error
        reason = f"the server answered {error.code} {error.reason}"
        if error.code in TRANSIENT:
            raise _Interrupted(reason) from error
        raise _failure(source, path, reason) from error
    except (OSError, HTTPException) as error:
        raise _Interrupted(_network_reason(error)) from error
    if response.headers.get_content_type() == "text/html" and not source.file.endswith((".html", ".htm")):
        response.close()
        raise _failure(source, path, "the server answered with a web page, perhaps one that asks to log in")
    return response


def _opener() -> urllib.request.OpenerDirector:
    """Build an opener without the handlers of ``file:``, ``ftp:`` and ``data:``, so that no redirect leads there."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    """Read a response to its end."""
    while True:
        try:
            block = response.read1(BLOCK)
        except (OSError, HTTPException) as error:
            raise _Interrupted(_network_reason(error)) from error
        if not block:
            return
        yield block


def _range_start(response: HTTPResponse) -> int | None:
    """Read where a partial answer starts from ``Content-Range: bytes 5-9/10``."""
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(start) if start.isdigit() else None


def _network_reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"no answer for {TIMEOUT_S:.0f} s" if isinstance(reason, TimeoutError) else f"network error: {reason}"


def _failure(source: Source, path: Path, reason: str) -> DownloadError:
    note = f"{source.note.rstrip('. ')}; " if source.note else ""
    return DownloadError(
        f"cannot download {source.url}: {reason}; {note}run this again, or get the file by hand and put it at {path}"
    )


def _difference(source: Source, path: Path) -> str | None:
    """Say how a file differs from the published one, or return None."""
    size = path.stat().st_size
    if source.bytes is not None and size != source.bytes:
        return f"it has {size} bytes instead of {source.bytes}"
    for name, wanted in (("sha256", source.sha256), ("md5", source.md5)):
        if wanted is not None:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, name).hexdigest()
            if found != wanted.lower():
                return f"its {name} is {found} instead of {wanted.lower()}"
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _byte_bar(label: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar in bytes; yields the function that sets it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done, length: bar.update(task, completed=done, total=length)


def extract(archive: Path, into: Path, wanted: Callable[[str], str | None] = lambda name: name) -> int:
    """Unpack a zip or tar (also compressed). An interrupted run continues with the files that are missing.

    Args:
        archive: The archive.
        into: Folder to unpack to, made if missing.
        wanted: Maps the name of a member to its place below ``into``, or to None if it is not wanted.

    Returns:
        Number of wanted files, all of them now there.

    Raises:
        CorruptFileError: If the archive is broken, or one of its members is a link, would lie outside ``into``, or
            would fill the disk; in the latter cases nothing is written.
        DownloadError: If there is no archive, or no room for what it holds.
    """
    if not archive.is_file():
        msg = f"there is no archive at {archive}; put the owner's file there"
        raise DownloadError(msg)
    with _open_archive(archive) as members:
        _refuse_bomb(archive, members)
        # The last of several members of one name counts, as for tar itself.
        targets = {}
        for member in members:
            name = _safe(archive, member.name)
            if member.kind not in ("file", "folder"):
                msg = f"{archive}: the member {member.name!r} is a {member.kind}, not a file; nothing was unpacked"
                raise CorruptFileError(msg)
            target = wanted(name) if member.kind == "file" else None
            if target is not None:
                targets[into / _safe(archive, target)] = member
        missing = {
            path: member for path, member in targets.items() if not path.is_file() or path.stat().st_size != member.size
        }
        _require_room(archive, sum(member.size for member in missing.values()), into)
        with progress_bar(archive.name, len(missing)) as advance:
            for path, member in missing.items():
                _unpack(archive, member, path)
                advance()
    return len(targets)


def _refuse_bomb(archive: Path, members: list[_Member]) -> None:
    """Refuse an archive that declares far more than data can be compressed from; no member gives more than declared."""
    total, packed = sum(member.size for member in members), archive.stat().st_size
    if total > LARGEST_RATIO * packed + BLOCK:
        msg = (
            f"{archive} would unpack to {total} bytes, {total // packed} times its size, which no data set does; "
            "nothing was unpacked, get the archive from its owner"
        )
        raise CorruptFileError(msg)


def _require_room(archive: Path, needed: int, into: Path) -> None:
    """Refuse to begin what the disk cannot hold."""
    place = next(folder for folder in into.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        msg = f"{archive} needs {needed} bytes, there are {free} free at {place}; make room or choose another --out"
        raise DownloadError(msg)


def _safe(archive: Path, name: str) -> str:
    """Return a member's relative path in its simplest form; refuse those that could leave the folder on any system."""
    windows = PureWindowsPath(name)
    if not name or name.startswith(("/", "\\")) or windows.drive or ".." in windows.parts or "\0" in name:
        msg = f"{archive}: the member {name!r} would lie outside the folder to unpack to; nothing was unpacked"
        raise CorruptFileError(msg)
    return PurePosixPath(name).as_posix()


def _unpack(archive: Path, member: _Member, path: Path) -> None:
    """Write one member, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        with _reporting(archive, member.name), member.open() or BytesIO() as content:
            shutil.copyfileobj(content, stream, BLOCK)
        if stream.tell() != member.size:
            msg = f"{archive} is truncated: {member.name!r} has {stream.tell()} of {member.size} bytes"
            raise CorruptFileError(msg)


@contextmanager
def _reporting(archive: Path, member: str = "") -> Iterator[None]:
    """Turn whatever the archive libraries raise for broken content into one error."""
    broken = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError)
    try:
        yield
    except broken as error:
        where = f"{archive}, member {member!r}" if member else str(archive)
        msg = f"{where}: broken, incomplete or encrypted ({error}); get the archive again"
        raise CorruptFileError(msg) from error


@contextmanager
def _open_archive(path: Path) -> Iterator[list[_Member]]:
    """List an archive's members; its first bytes tell what it is (a tar may end with a zip)."""
    with path.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    with _reporting(path):
        archive = zipfile.ZipFile(path) if is_zip else tarfile.open(path)  # noqa: SIM115  # closed two lines below
    with archive:
        with _reporting(path):
            if isinstance(archive, zipfile.ZipFile):
                members = [_zip_member(archive, info) for info in archive.infolist()]
            else:
                members = [_tar_member(archive, info) for info in archive.getmembers()]
        yield members


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    kind = "link" if is_link else "folder" if info.is_dir() else "file"
    # Not `filename`, which ends at the first null byte.
    return _Member(info.orig_filename, info.file_size, kind, partial(archive.open, info))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    is_link = info.issym() or info.islnk()
    kind = "link" if is_link else "folder" if info.isdir() else "file" if info.isreg() else "device"
    return _Member(info.name, info.size, kind, partial(archive.extractfile, info))


def convert(
    items: Iterable[Item], job: Callable[[Item], None], workers: int | None = None, label: str = ""
) -> list[tuple[Item, str]]:
    """Convert items in several processes. What fails is reported at the end and does not stop the rest.

    The job continues an interrupted run by skipping outputs that are there, and writes through
    :func:`taskformer.files.replacing`; an interrupt lets running jobs finish and starts no other.

    Args:
        items: What to convert; picklable.
        job: A function of a module's top level, or a ``partial`` of one.
        workers: Number of processes; None takes one per processor.
        label: The label of the progress bar.

    Returns:
        The items that failed, each with its reason, in the order of the items.

    Raises:
        TaskformerError: If a process dies.
    """
    outcomes = run_jobs(list(items), job, default_workers() if workers is None else workers, label)
    return [(outcome.item, outcome.error) for outcome in outcomes if outcome.error is not None]
