"""Downloading, unpacking and converting, with a server that fails in every way we could think of."""

import hashlib
import http.server
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from taskformer import parallel
from taskformer.datatools.prepare import sources
from taskformer.datatools.prepare.sources import DownloadError, Source, convert, extract, fetch
from taskformer.errors import ConfigError, CorruptFileError, TaskformerError
from taskformer.files import replacing
from taskformer.parallel import run_jobs

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the path says how: /range /plain /cut (100 kB per connection) /status/N /redirect/URL ..."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        kind, _, rest = self.path.strip("/").partition("/")
        getattr(self, f"_{kind}")(asked, rest)

    def _send(self, content, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _plain(self, asked, rest):
        self._send(CONTENT, Content_Length=len(CONTENT))

    def _endless(self, asked, rest):
        self._send(CONTENT)  # no length; the end of the connection ends the file

    def _range(self, asked, rest, limit=None):
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(CONTENT):
            self._send(b"", 416, Content_Range=f"bytes */{len(CONTENT)}")
            return
        headers = {"Content_Length": len(CONTENT) - start}
        if asked:
            headers["Content_Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        self._send(CONTENT[start : start + limit] if limit else CONTENT[start:], 206 if asked else 200, **headers)

    def _cut(self, asked, rest):
        self._range(asked, rest, limit=100_000)

    def _nothing(self, asked, rest):
        self._send(b"", Content_Length=len(CONTENT))

    def _wrong_part(self, asked, rest):
        if asked:
            self._send(CONTENT[:10], 206, Content_Length=10, Content_Range=f"bytes 0-9/{len(CONTENT)}")
        else:
            self._plain(asked, rest)

    def _status(self, asked, rest):
        self._send(b"no", int(rest), Content_Length=2)

    def _busy_once(self, asked, rest):
        if sum(path == self.path for path, _ in self.server.requests) == 1:
            self._send(b"", 503, Content_Length=0)
        else:
            self._plain(asked, rest)

    def _login(self, asked, rest):
        self._send(b"<html>log in</html>", Content_Type="text/html; charset=utf-8")

    def _redirect(self, asked, rest):
        self._send(b"", 302, Location=rest, Content_Length=0)

    def _silent(self, asked, rest):
        time.sleep(1.5)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.requests = []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd
        httpd.shutdown()


#: Python 3.12 and later warn of what is tested here on purpose.
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch, server):
    monkeypatch.setattr(sources, "PAUSE_S", 0.0)
    server.requests.clear()


def source(server, path, **facts):
    return Source(f"{server.url}/{path}", "a.bin", **{"sha256": SHA256, **facts})


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ["plain", "range", "endless"])
def test_a_file_is_downloaded_once(server, tmp_path, path):
    wanted = source(server, path, md5=MD5.upper(), bytes=len(CONTENT))
    assert fetch(wanted, tmp_path / "new").read_bytes() == CONTENT
    assert fetch(wanted, tmp_path / "new").read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert left(tmp_path / "new") == ["a.bin"]


def test_a_download_continues_where_it_stopped(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1234])
    assert fetch(source(server, "range"), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/range", "bytes=1234-")]


def test_a_server_without_ranges_is_asked_from_the_start(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1234])
    assert fetch(source(server, "plain"), tmp_path).read_bytes() == CONTENT
    assert left(tmp_path) == ["a.bin"]


def test_a_part_that_is_complete_is_only_checked(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    fetch(source(server, "range", bytes=len(CONTENT)), tmp_path)
    assert server.requests == []


def test_a_part_of_another_file_is_thrown_away(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(source(server, "range"), tmp_path).read_bytes() == CONTENT
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin.part").write_bytes(b"x" * 99)
    assert fetch(source(server, "wrong_part"), tmp_path).read_bytes() == CONTENT


def test_broken_connections_are_taken_up_again(server, tmp_path):
    assert fetch(source(server, "cut"), tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_busy_server_is_asked_again(server, tmp_path):
    assert fetch(source(server, "busy_once"), tmp_path).read_bytes() == CONTENT


def test_a_connection_that_never_brings_anything_is_given_up(server, tmp_path):
    with pytest.raises(DownloadError, match=r"nothing: the connection ended after 0 of 300000 bytes; run this again"):
        fetch(source(server, "nothing"), tmp_path)
    assert len(server.requests) == sources.ATTEMPTS


def test_silence_ends_the_wait(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(sources, "ATTEMPTS", 2)
    with pytest.raises(DownloadError, match="no answer for 0 s"):
        fetch(source(server, "silent"), tmp_path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("status/404", "the server answered 404 Not Found; ask the owner; run this again, or get the file by hand"),
        ("status/403", "403 Forbidden"),
        ("status/503", "503 Service Unavailable"),
        ("login", "a web page, perhaps one that asks to log in"),
        ("redirect/ftp://127.0.0.1/a.bin", "ftp"),
        ("redirect/file:///etc/hostname", "file"),
    ],
)
def test_failures_say_why_and_what_to_do(server, tmp_path, path, reason):
    with pytest.raises(DownloadError) as caught:
        fetch(source(server, path, note="ask the owner."), tmp_path)
    message = str(caught.value)
    assert reason in message
    assert message.startswith(f"cannot download {server.url}/{path}: ")
    assert message.endswith(f"put it at {tmp_path / 'a.bin'}")
    assert left(tmp_path) == []


def test_an_unreachable_server_is_explained(tmp_path):
    with pytest.raises(DownloadError, match=r"network error: .*refused"):
        fetch(Source("http://127.0.0.1:9/a.bin", "a.bin"), tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a.bin", "/etc/hostname"])
def test_only_http_is_spoken(tmp_path, url):
    with pytest.raises(DownloadError, match="neither http nor https"):
        fetch(Source(url, "a.bin"), tmp_path)


@pytest.mark.parametrize(
    ("facts", "difference"),
    [
        ({"sha256": "0" * 64}, f"its sha256 is {SHA256} instead of {'0' * 64}"),
        ({"sha256": None, "md5": "0" * 32}, f"its md5 is {MD5} instead of"),
        ({"sha256": None, "bytes": 7}, "it has 300000 bytes instead of 7"),
    ],
)
def test_a_file_that_is_not_the_published_one_is_deleted(server, tmp_path, facts, difference):
    with pytest.raises(DownloadError, match="was deleted: " + difference):
        fetch(source(server, "plain", **facts), tmp_path)
    assert left(tmp_path) == []


def test_a_wrong_file_of_the_user_is_not_touched(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"is not the file that .* publishes: its sha256 is"):
        fetch(source(server, "plain"), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


# Archives --------------------------------------------------------------------------------------------------------


FILES = {"set/train/a.txt": b"first", "./set/val/b.txt": CONTENT, "set/readme": b""}


def pack(path, files, links=()):
    """Write a zip or tar, by the name's ending."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("set")
            for name, content in files.items():
                info = zipfile.ZipInfo()
                info.compress_type = zipfile.ZIP_DEFLATED
                info.filename = info.orig_filename = name
                archive.writestr(info, content)
            for name, target in links:
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o120777 << 16
                archive.writestr(info, target)
        return path
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        folder = tarfile.TarInfo("set")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_archives_are_unpacked(tmp_path, name):
    archive = pack(tmp_path / name, FILES)
    assert extract(archive, tmp_path / "out") == 3
    found = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
             for path in (tmp_path / "out").rglob("*") if path.is_file()}  # fmt: skip
    assert found == {key.removeprefix("./"): value for key, value in FILES.items()}


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_only_wanted_members_are_unpacked_where_they_are_wanted(tmp_path, name):
    archive = pack(tmp_path / name, FILES)
    places = {"set/train/a.txt": "deep/er/a.txt"}
    assert extract(archive, tmp_path / "out", places.get) == 1
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [tmp_path / "out/deep/er/a.txt"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path, name):
    archive = pack(tmp_path / name, {"a.txt": b"a", "zeros.txt": bytes(30 << 20)})
    assert archive.stat().st_size < 1 << 20
    with pytest.raises(CorruptFileError, match="times its size, which no data set does; nothing was unpacked"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_room_is_looked_for_before_unpacking(tmp_path, monkeypatch):
    archive = pack(tmp_path / "x.zip", FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(DownloadError, match=r"there are 10 free at .*; make room or choose another --out"):
        extract(archive, tmp_path / "out" / "deeper")
    assert not (tmp_path / "out").exists()


def test_unpacking_continues_with_what_is_missing(tmp_path):
    archive = pack(tmp_path / "x.tar.gz", FILES)
    extract(archive, tmp_path / "out")
    kept, short = tmp_path / "out/set/train/a.txt", tmp_path / "out/set/val/b.txt"
    os.utime(kept, (1, 1))
    short.write_bytes(CONTENT[:10])
    extract(archive, tmp_path / "out")
    assert kept.stat().st_mtime == 1
    assert short.read_bytes() == CONTENT


EVIL = ["../x", "set/../../x", "/tmp/x", "C:\\x", "C:x", "..\\x", "a\\..\\..\\x", "\\\\host\\x", "set/../x"]
EVIL_IN = [(ending, name) for ending in (".zip", ".tar") for name in EVIL] + [(".zip", "a\0b")]


@pytest.mark.parametrize(("ending", "name"), EVIL_IN)
def test_members_that_leave_the_folder_are_refused_before_anything_is_written(tmp_path, ending, name):
    archive = pack(tmp_path / f"x{ending}", {**FILES, name: b"evil"})
    with pytest.raises(
        CorruptFileError, match="would lie outside the folder to unpack to; nothing was unpacked"
    ) as error:
        extract(archive, tmp_path / "in" / "out", lambda member: member if member.startswith("set") else None)
    assert str(archive) in str(error.value)
    assert repr(name) in str(error.value)
    assert left(tmp_path) == [archive.name]


def test_a_place_outside_the_folder_is_refused_too(tmp_path):
    with pytest.raises(CorruptFileError, match=r"\.\./x"):
        extract(pack(tmp_path / "x.zip", FILES), tmp_path / "out", lambda name: "../x")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    archive = pack(tmp_path / "x.tar", FILES, [("set/link", "/etc", kind)])
    with pytest.raises(CorruptFileError, match=r"member 'set/link' is a (link|device), not a file; nothing was"):
        extract(archive, tmp_path / "out")
    assert left(tmp_path) == ["x.tar"]


def test_links_in_a_zip_are_refused(tmp_path):
    with pytest.raises(CorruptFileError, match="member 'set/link' is a link"):
        extract(pack(tmp_path / "x.zip", FILES, [("set/link", "/etc")]), tmp_path / "out")
    assert left(tmp_path) == ["x.zip"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_truncated_archives_are_named_and_leave_only_whole_files(tmp_path, name, share):
    archive = pack(tmp_path / name, FILES)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(CorruptFileError, match=name):
        extract(archive, tmp_path / "out")
    whole = set(FILES.values())
    assert all(path.read_bytes() in whole for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_a_broken_member_is_named(tmp_path):
    archive = pack(tmp_path / "x.zip", FILES)
    content = bytearray(archive.read_bytes())
    content[content.index(b"b.txt") + 1000] ^= 255
    archive.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"x\.zip, member './set/val/b.txt': broken"):
        extract(archive, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*"))


def test_an_archive_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(DownloadError, match="there is no archive at"):
        extract(tmp_path / "x.zip", tmp_path)


# Converting ------------------------------------------------------------------------------------------------------


def double(folder: Path, number: int) -> None:
    """Write a number's double; 13 brings bad luck, 66 ends the process."""
    if number == 13:
        msg = "thirteen"
        raise CorruptFileError(msg)
    if number == 66:
        os._exit(1)
    with replacing(folder / f"{number}.txt") as temporary:
        temporary.write_text(str(2 * number))


def process_of(number: int) -> int:
    return os.getpid()


@forks
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_items_are_converted_in_processes_and_failures_collected(tmp_path, monkeypatch, method):
    monkeypatch.setattr(parallel, "START_METHOD", method)
    monkeypatch.setattr(parallel, "PATIENCE_S", 0.0)
    numbers = list(range(40))
    assert convert(iter(numbers), partial(double, tmp_path), workers=2, label="doubles") == [(13, "thirteen")]
    assert {int(path.stem): int(path.read_text()) for path in tmp_path.iterdir()} == {
        number: 2 * number for number in numbers if number != 13
    }
    processes = [outcome.value for outcome in run_jobs(numbers, process_of, 2)]
    assert processes[0] == os.getpid()  # the first item is done before it is known to take long
    assert os.getpid() not in processes[1:]
    assert len(set(processes[1:])) <= 2


@pytest.mark.parametrize("workers", [0, 1, 8])
def test_quick_work_needs_no_process(tmp_path, workers):
    assert convert([1, 13], partial(double, tmp_path), workers=workers) == [(13, "thirteen")]
    assert [outcome.value for outcome in run_jobs([1, 2], process_of, workers)] == [os.getpid()] * 2


@forks
def test_results_come_in_the_order_of_the_items(monkeypatch):
    monkeypatch.setattr(parallel, "START_METHOD", "fork")
    monkeypatch.setattr(parallel, "PATIENCE_S", 0.0)
    outcomes = list(run_jobs(list(range(30)), uneven, 3))
    assert [(outcome.item, outcome.value) for outcome in outcomes] == [(k, k * k) for k in range(30)]


def uneven(number: int) -> int:
    time.sleep(0.005 * (number % 3))
    return number * number


@forks
def test_a_process_that_dies_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "START_METHOD", "fork")
    monkeypatch.setattr(parallel, "PATIENCE_S", 0.0)
    with pytest.raises(TaskformerError, match=r"a process died .* run the same command again"):
        convert([1, 66, 2, 3], partial(double, tmp_path), workers=2)


def test_a_negative_number_of_processes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="workers=-1"):
        convert([1], partial(double, tmp_path), workers=-1)


def test_an_interrupt_leaves_nothing_half_written(tmp_path):
    """Ctrl-C reaches all processes of the terminal; jobs that run are finished, the rest is not started."""
    script = tmp_path / "slow.py"
    script.write_text(
        textwrap.dedent("""
        import signal, sys, time
        from functools import partial
        from pathlib import Path
        from taskformer import parallel
        from taskformer.datatools.prepare.sources import convert
        from taskformer.files import replacing

        def slow(folder, number):
            with replacing(folder / f"{number}.txt") as temporary:
                with temporary.open("w") as stream:
                    for line in range(10):
                        print(line, file=stream, flush=True)
                        time.sleep(0.02)

        if __name__ == "__main__":
            # What a shell runs in the background starts with interrupts ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            parallel.START_METHOD, parallel.PATIENCE_S = "fork", 0.0
            convert(range(200), partial(slow, Path(sys.argv[1])), workers=2)
        """)
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, script, out], start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(out.glob("[0-9]*.txt"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count(b"Traceback") == 1, errors.decode()
    finished = sorted(out.iterdir())
    assert 0 < len(finished) < 200
    assert all(path.read_text().split() == [str(line) for line in range(10)] for path in finished)
