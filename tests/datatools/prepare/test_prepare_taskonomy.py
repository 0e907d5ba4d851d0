"""Taskonomy's archives, from a server on this machine and from a folder."""

import hashlib
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from taskformer.data.datamodules.taskonomy import TaskonomyDataModule
from taskformer.data.datasets.taskonomy_index import published_splits
from taskformer.datatools.miniature.taskonomy import write_taskonomy
from taskformer.datatools.prepare import sources
from taskformer.datatools.prepare.sources import DownloadError
from taskformer.datatools.prepare.taskonomy import prepare_taskonomy
from taskformer.errors import UnknownNameError

DOMAINS = ["rgb", "normal", "segment_semantic", "class_object"]


class QuietHandler(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012  # shared by the handlers of all requests on purpose

    def log_message(self, *args):
        self.asked.append(self.path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_taskonomy(tmp_path_factory.mktemp("files"), size=(16, 16), views_per_building=2)


@pytest.fixture
def names():
    return [[name for name, place in sorted(published_splits("tiny").items()) if place == split][:count]
            for split, count in (("train", 2), ("val", 1), ("test", 1))]  # fmt: skip


@pytest.fixture
def buildings(names):
    return [name for part in names for name in part]


@pytest.fixture
def archives(files, buildings, tmp_path):
    """A folder as the owners' server has it."""
    folder = tmp_path / "server"
    folder.mkdir()
    for building in buildings:
        for domain in DOMAINS:
            with tarfile.open(folder / f"{building}_{domain}.tar", "w") as archive:
                archive.add(files / building / domain, arcname=f"./{domain}")
    return folder


@pytest.fixture
def server(archives, monkeypatch):
    monkeypatch.setattr(sources, "PAUSE_S", 0.0)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    QuietHandler.asked = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(archives)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{httpd.server_port}"
    tars = sorted(archives.glob("*.tar"))
    (archives / "links.txt").write_text("".join(f"{address}/{path.name}\n" for path in tars))
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  ./{path.name}\n" for path in tars]
    (archives / "md5sum.txt").write_text("".join(sums))
    yield address
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def ids(root, split="train"):
    return list(TaskonomyDataModule(str(root), tasks=["normals"]).evaluation_dataset(split).ids)


@pytest.mark.parametrize("layout", ["building_first", "domain_first"])
def test_archives_of_a_folder_are_unpacked(files, archives, buildings, tmp_path, layout):
    out = tmp_path / "out"
    prepare_taskonomy(archives, out, buildings=buildings, domains=DOMAINS, layout=layout, workers=0)
    for split in ("train", "val", "test"):
        assert ids(out, split) == ids(files, split)
    assert TaskonomyDataModule(str(out)).available() == ["semseg", "normals", "class_object"]
    assert len(list(archives.glob("*.tar"))) == 16
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    prepare_taskonomy(archives, out, buildings=buildings, domains=DOMAINS, layout=layout, workers=0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before


def test_archives_are_downloaded_once_and_removed(files, server, buildings, tmp_path):
    out = tmp_path / "out"
    prepare_taskonomy(None, out, buildings=buildings[:1], domains=DOMAINS, server=server, workers=0)
    assert ids(out) == [name for name in ids(files) if name.startswith(buildings[0])]
    assert not list(out.rglob("*.tar"))
    asked = len(QuietHandler.asked)
    assert asked == 2 + len(DOMAINS)
    prepare_taskonomy(None, out, buildings=buildings, domains=["rgb", "normal"], server=server, workers=0)
    assert len(QuietHandler.asked) == asked + 2 * (len(buildings) - 1)
    assert ids(out) == ids(files)


def test_all_published_domains_by_default(server, buildings, tmp_path):
    prepare_taskonomy(None, tmp_path / "out", buildings=buildings[:1], server=server, workers=0, keep_archives=True)
    assert sorted(path.name for path in (tmp_path / "out" / buildings[0]).iterdir()) == sorted(DOMAINS)
    assert len(list((tmp_path / "out").rglob("*.tar"))) == len(DOMAINS)


def test_what_is_missing_is_named(archives, buildings, tmp_path):
    (archives / f"{buildings[1]}_rgb.tar").unlink()
    with pytest.raises(DownloadError, match=f"not found: {buildings[1]}_rgb.*github.com/StanfordVL"):
        prepare_taskonomy(archives, tmp_path / "out", buildings=buildings, workers=0)
    assert (tmp_path / "out" / buildings[0] / "rgb").is_dir()  # the rest is there
    with pytest.raises(DownloadError, match=f"not found: {buildings[0]}_reshading"):
        prepare_taskonomy(archives, tmp_path / "out", buildings=buildings[:1], domains=["reshading"], workers=0)


def test_wrong_checksums_and_dead_links_are_explained(server, archives, buildings, tmp_path):
    path = archives / f"{buildings[0]}_normal.tar"
    path.write_bytes(path.read_bytes() + b"\0")
    (archives / f"{buildings[0]}_rgb.tar").unlink()
    with pytest.raises(DownloadError, match=r"2 of 2 archives.*answered 404.*md5 is \w+ instead of"):
        prepare_taskonomy(
            None, tmp_path / "out", buildings=buildings[:1], domains=["rgb", "normal"], server=server, workers=0
        )


def test_a_dead_server_is_explained(server, tmp_path):
    with pytest.raises(DownloadError, match=r"links.txt: the server answered 404.*github.com/StanfordVL/taskonomy"):
        prepare_taskonomy(None, tmp_path / "out", server=f"{server}/nowhere", workers=0)


def test_names_of_the_download_tool_are_understood(archives, buildings, tmp_path):
    for domain in ("rgb", "segment_semantic"):
        path = archives / f"{buildings[0]}_{domain}.tar"
        path.rename(archives / f"{domain}__taskonomy__{buildings[0]}.tar")
    domains = ["rgb", "segment_semantic"]
    prepare_taskonomy(archives, tmp_path / "out", buildings=buildings[:1], domains=domains, workers=0)
    assert len(list((tmp_path / "out" / buildings[0] / "segment_semantic").iterdir())) == 2


def test_members_outside_the_folder_are_refused(archives, buildings, tmp_path):
    (tmp_path / "point_0_view_0_domain_rgb.png").write_bytes(b"evil")
    with tarfile.open(archives / f"{buildings[0]}_rgb.tar", "w") as archive:
        archive.add(tmp_path / "point_0_view_0_domain_rgb.png", arcname="../../point_0_view_0_domain_rgb.png")
    with pytest.raises(DownloadError, match="would lie outside"):
        prepare_taskonomy(archives, tmp_path / "out", buildings=buildings[:1], domains=["rgb"], workers=0)
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("wrong", [{"buildings": ["hansom"]}, {"domains": ["normals"]}])
def test_unknown_names_get_a_suggestion(tmp_path, wrong):
    with pytest.raises(UnknownNameError, match=r"did you mean '(hanson|normal)'"):
        prepare_taskonomy(tmp_path, tmp_path / "out", **wrong)
