"""PASCAL-Context from archives of the owners' structure, which the miniature fills."""

import io
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from taskformer.data.datamodules.pascal_context import PASCALContextDataModule
from taskformer.data.datasets.pascal_context import PASCALContext
from taskformer.data.images import write_mat
from taskformer.datatools.miniature.pascal_context import write_pascal_context
from taskformer.datatools.prepare import pascal_context
from taskformer.datatools.prepare.pascal_context import prepare_pascal_context
from taskformer.datatools.prepare.sources import DownloadError
from taskformer.errors import CorruptFileError, DatasetNotFoundError
from taskformer.tasks import build_tasks

TASKS = build_tasks(PASCALContextDataModule.offers)
OWNERS = ["semseg", "human_parts", "edges"]


@pytest.fixture(autouse=True)
def _no_checksums_and_no_network(monkeypatch):
    for name in ("VOC2010", "VOC2012", "CONTEXT_LABELS", "PARTS"):
        published = getattr(pascal_context, name)
        source = replace(published.source, md5=None, url=f"ftp://nowhere/{name}")
        monkeypatch.setattr(pascal_context, name, replace(published, source=source))


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return write_pascal_context(tmp_path_factory.mktemp("pascal") / "PASCAL_MT")


def pack(archive, files):
    """Write an archive of ``{member: bytes or path}``."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


def owners_files(miniature):
    """What each archive of the owners holds, with things that are not wanted."""
    lists = {split: (miniature / "ImageSets" / "Context" / f"{split}.txt").read_bytes() for split in ("train", "val")}
    voc = {f"VOCdevkit/VOC2010/JPEGImages/{path.name}": path for path in (miniature / "JPEGImages").iterdir()}
    voc |= {f"VOCdevkit/VOC2010/ImageSets/Main/{split}.txt": ids + b"2010_999999\n" for split, ids in lists.items()}
    voc |= {
        "VOCdevkit/VOC2010/JPEGImages/2010_999999.jpg": b"has no Context labels",
        "VOCdevkit/VOC2010/ImageSets/Main/cat_train.txt": b"2008_000001 -1\n",
        "VOCdevkit/VOC2010/ImageSets/Segmentation/train.txt": b"2010_999999\n",
        "VOCdevkit/VOC2010/Annotations/2008_000001.xml": b"<annotation/>",
    }
    labels = {f"trainval/{path.name}": path for path in (miniature / "pascal-context" / "trainval").iterdir()}
    parts = {f"Annotations_Part/{path.name}": path for path in (miniature / "human_parts").iterdir()}
    return {
        "VOCtrainval_03-May-2010.tar": voc,
        "pascal-context/trainval.tar.gz": labels | {"labels.txt": b"1: accordion\n"},
        "pascal-parts/trainval.tar.gz": parts | {"part2ind.m": b"function", "examples/2008_000001.jpg": b"picture"},
    }


@pytest.fixture
def archives(miniature, tmp_path):
    for name, files in owners_files(miniature).items():
        pack(tmp_path / "archives" / name, files)
    return tmp_path / "archives"


def all_files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_same(first, second, tasks):
    for split in ("train", "val"):
        expected, found = (
            PASCALContext(root, split, {name: TASKS[name] for name in tasks}) for root in (first, second)
        )
        assert found.ids == expected.ids
        for index in range(len(expected)):
            for name in expected[index]["targets"].keys() | found[index]["targets"].keys():
                np.testing.assert_array_equal(found[index]["targets"][name], expected[index]["targets"][name])
            np.testing.assert_array_equal(found[index]["image"], expected[index]["image"])


def test_the_owners_archives_give_three_tasks(miniature, archives, tmp_path, caplog):
    prepare_pascal_context(archives, tmp_path / "out", workers=0)
    names = [f"2008_00000{number}" for number in range(1, 8)]
    places = (
        "JPEGImages/{}.jpg",
        "pascal-context/trainval/{}.mat",
        "human_parts/{}.mat",
        "semseg/pascal-context/{}.png",
    )
    lists = {f"ImageSets/{folder}/{split}.txt" for folder in ("Context", "Main", "Parts") for split in ("train", "val")}
    assert all_files(tmp_path / "out") == lists | {place.format(name) for name in names for place in places}
    assert PASCALContextDataModule(str(tmp_path / "out")).available() == OWNERS
    assert_same(miniature, tmp_path / "out", ["human_parts", "edges"])
    computed = PASCALContext(tmp_path / "out", "train", {"semseg": TASKS["semseg"]})[0]["targets"]["semseg"]
    expected = PASCALContext(miniature, "train", {"semseg": TASKS["semseg"]})[0]["targets"]["semseg"]
    assert (computed == expected)[expected != 255].all()
    assert "has 4 images with Context labels, the owners publish 4998" in caplog.text


def test_the_list_of_objects_is_what_loaders_look_for(archives, tmp_path):
    prepare_pascal_context(archives, tmp_path / "out", workers=0)
    classes = json.loads((tmp_path / "out" / "ImageSets" / "Parts" / "train.txt").read_text())
    dataset = PASCALContext(tmp_path / "out", "train", {"semseg": TASKS["semseg"]})
    assert list(classes) == dataset.ids
    for sample in dataset:
        assert set(classes[sample["meta"]["id"]]) == set(np.unique(sample["targets"]["semseg"])) - {0}
    assert classes["2008_000004"] == []


def test_an_existing_copy_gives_the_other_tasks(miniature, archives, tmp_path):
    members = {f"PASCAL_MT/{name}": miniature / name for name in all_files(miniature)}
    copy = pack(tmp_path / "PASCAL_MT.tgz", members)
    prepare_pascal_context(archives, tmp_path / "from_archive", distilled=copy, workers=0)
    prepare_pascal_context(archives, tmp_path / "from_folder", distilled=miniature, workers=0)
    assert all_files(tmp_path / "from_archive") == all_files(tmp_path / "from_folder")
    assert_same(miniature, tmp_path / "from_archive", list(TASKS))


def test_unpacked_archives_are_taken_as_they_are(miniature, archives, tmp_path):
    unpacked = tmp_path / "unpacked"
    for name in owners_files(miniature):
        with tarfile.open(archives / name) as tar:
            tar.extractall(unpacked / name.rpartition("/")[0], filter="data")
    prepare_pascal_context(unpacked, tmp_path / "out", workers=0)
    prepare_pascal_context(archives, tmp_path / "reference", workers=0)
    assert all_files(tmp_path / "out") == all_files(tmp_path / "reference")
    assert_same(tmp_path / "reference", tmp_path / "out", OWNERS)


def test_masks_of_voc_2012_can_be_added(miniature, archives, tmp_path):
    masks = {
        f"VOCdevkit/VOC2012/SegmentationClass/{path.name}": path for path in (miniature / "semseg" / "VOC12").iterdir()
    }
    pack(archives / "VOCtrainval_11-May-2012.tar", masks | {"VOCdevkit/VOC2012/SegmentationClass/2011_1.png": b"-"})
    prepare_pascal_context(archives, tmp_path / "out", voc12=True, workers=0)
    assert all_files(tmp_path / "out" / "semseg" / "VOC12") == {"2008_000001.png", "2008_000005.png"}
    assert_same(miniature, tmp_path / "out", OWNERS)


def test_a_second_run_only_adds_what_is_missing(archives, tmp_path):
    out = tmp_path / "out"
    prepare_pascal_context(archives, out, workers=0)
    lost = [out / "semseg" / "pascal-context" / "2008_000003.png", out / "JPEGImages" / "2008_000002.jpg"]
    contents = [path.read_bytes() for path in lost]
    lost[0].unlink()
    lost[1].write_bytes(contents[1][:100])
    rewritten = {"ImageSets/Context/train.txt", "ImageSets/Context/val.txt"}
    before = {name: (out / name).stat().st_mtime_ns for name in all_files(out) - rewritten}
    prepare_pascal_context(archives, out, workers=0)
    assert [path.read_bytes() for path in lost] == contents
    after = {name: (out / name).stat().st_mtime_ns for name in before}
    assert {name for name in before if before[name] != after[name]} == {"JPEGImages/2008_000002.jpg"}


@pytest.mark.parametrize("name", ["VOCtrainval_03-May-2010.tar", "pascal-context/trainval.tar.gz"])
def test_an_archive_that_leaves_its_folder_is_refused(miniature, archives, tmp_path, name):
    pack(archives / name, owners_files(miniature)[name] | {"trainval/../../../../JPEGImages/2008_000001.jpg": b"evil"})
    with pytest.raises(CorruptFileError, match="outside the folder"):
        prepare_pascal_context(archives, tmp_path / "out", workers=0)
    assert not (tmp_path / "JPEGImages").exists()
    assert not (tmp_path / "out" / "ImageSets" / "Context").exists()


def test_an_archive_that_is_nowhere_is_explained(archives, tmp_path):
    shutil.rmtree(archives / "pascal-parts")
    with pytest.raises(DownloadError, match=r"cannot download .*PARTS.*put it at .*pascal-parts/trainval\.tar\.gz"):
        prepare_pascal_context(archives, tmp_path / "out", workers=0)


def test_without_a_source_archives_are_looked_for_beside_the_data_set(archives, tmp_path):
    shutil.copytree(archives, tmp_path / "out" / "downloads")
    prepare_pascal_context(None, tmp_path / "out", workers=0)
    assert len(PASCALContext(tmp_path / "out", "train", {"edges": TASKS["edges"]})) == 4


def test_missing_images_are_named(miniature, archives, tmp_path):
    files = owners_files(miniature)["VOCtrainval_03-May-2010.tar"]
    del files["VOCdevkit/VOC2010/JPEGImages/2008_000006.jpg"]
    pack(archives / "VOCtrainval_03-May-2010.tar", files)
    with pytest.raises(DatasetNotFoundError, match=r"1 of 14 images .*JPEGImages/2008_000006\.jpg"):
        prepare_pascal_context(archives, tmp_path / "out", workers=0)


def test_broken_annotations_are_named_and_the_rest_is_converted(miniature, archives, tmp_path):
    wrong = tmp_path / "wrong.mat"
    write_mat(wrong, {"LabelMap": np.full((3, 3), 9999)})
    files = owners_files(miniature)["pascal-context/trainval.tar.gz"] | {"trainval/2008_000003.mat": wrong}
    pack(archives / "pascal-context" / "trainval.tar.gz", files)
    with pytest.raises(CorruptFileError, match=r"1 of 7 files could not be converted, the first: .*2008_000003\.mat"):
        prepare_pascal_context(archives, tmp_path / "out", workers=0)
    assert len(all_files(tmp_path / "out" / "semseg" / "pascal-context")) == 6
