"""PASCAL-Context: what the miniature writes comes back exactly, and every structure of the real files is understood."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.io import loadmat

import taskformer
from taskformer.cli import main
from taskformer.data.configured import data_module
from taskformer.data.datamodules.pascal_context import PASCALContextDataModule
from taskformer.data.datasets.pascal_context import (
    CLASSES,
    COLORS,
    CONTEXT,
    FOLDERS,
    HAS_NORMALS,
    PERSON_PARTS,
    VOC_CLASS,
    PASCALContext,
    object_classes,
    read_labels,
    read_parts,
)
from taskformer.data.geometry import label_edges
from taskformer.data.images import File, write_mat, write_png
from taskformer.data.transforms import Pad, TaskCompose
from taskformer.datatools.miniature.pascal_context import KINDS, swap_splits, write_pascal_context
from taskformer.datatools.miniature.scene import scene
from taskformer.datatools.verify import verify
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError
from taskformer.tasks import build_tasks

ROOT = Path(__file__).parents[2]
TASKS = build_tasks(PASCALContextDataModule.offers)
TABLES = ROOT.parent / "shared" / "data" / "tables"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pascal_context(tmp_path_factory.mktemp("pascal") / "PASCALContext")


@pytest.fixture
def copy(root, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(root, tmp_path / "PASCAL_MT"))


def samples(root):
    """Every sample of the miniature with the scene it was made from and what it shows."""
    number = 0
    for split in ("train", "val"):
        dataset = PASCALContext(root, split, TASKS)
        for index in range(len(dataset)):
            number += 1
            kind = KINDS[index % 4]
            sample = dataset[index]
            height, width = sample["meta"]["size"]
            yield sample, scene(height, width, seed=number, person=kind in ("parts", "person")), kind


def labels_of(root, sample):
    return loadmat(root / "pascal-context" / "trainval" / f"{sample['meta']['id']}.mat")["LabelMap"]


# The table ----------------------------------------------------------------------------------------------------------


def test_the_table_is_the_published_one():
    assert len(CONTEXT) == 459
    assert sorted(CONTEXT.values()) == list(range(1, 460))
    assert HAS_NORMALS.sum() == 170
    assert np.flatnonzero(HAS_NORMALS)[:11].tolist() == [3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22]
    assert len(CLASSES) == len(COLORS) == 21
    assert (CLASSES[0], CLASSES[15], CLASSES[20]) == ("background", "person", "tvmonitor")
    assert COLORS[15] == (192, 128, 128)
    assert set(VOC_CLASS.tolist()) == set(range(21))
    names = {number: name for name, number in CONTEXT.items()}
    for number in np.flatnonzero(VOC_CLASS):
        assert names[number] == CLASSES[VOC_CLASS[number]].replace("diningtable", "table")


@pytest.mark.skipif(not TABLES.exists(), reason="the label tables of ../shared/data are not there")
def test_the_table_agrees_with_its_sources():
    context = json.loads((TABLES / "pascal_context_459.json").read_text())
    nyu = json.loads((TABLES / "nyu_894.json").read_text())
    parts = json.loads((TABLES / "pascal_part.json").read_text())
    assert context == CONTEXT
    shared = {context[name] for name in context.keys() & nyu.keys() - {"unknown"}} | {context["tvmonitor"]}
    assert set(np.flatnonzero(HAS_NORMALS)) == shared
    assert PERSON_PARTS.keys() == parts["15"].keys()


def test_the_parts_are_six():
    groups = {}
    for name, part in PERSON_PARTS.items():
        groups.setdefault(part, set()).add(name)
    assert groups == {
        1: {"head", "hair", "mouth", "nose", "lear", "rear", "lebrow", "rebrow", "leye", "reye"},
        2: {"torso", "neck"},
        3: {"luarm", "ruarm"},
        4: {"llarm", "rlarm", "lhand", "rhand"},
        5: {"luleg", "ruleg"},
        6: {"llleg", "rlleg", "lfoot", "rfoot"},
    }


# Round trips --------------------------------------------------------------------------------------------------------


def test_the_miniature_has_every_kind_of_image_in_different_sizes(root):
    assert len(PASCALContext(root, "train", TASKS)) == 4
    assert len(PASCALContext(root, "val", TASKS)) == 3
    assert len({sample["meta"]["size"] for sample, _, _ in samples(root)}) == 3
    assert {kind for _, _, kind in samples(root)} == {"parts", "person", "things", "nothing"}
    record = json.loads((root / "miniature.json").read_text())
    assert record["splits"]["val"] == ["2008_000005", "2008_000006", "2008_000007"]


def test_images_come_back(root):
    for sample, view, _ in samples(root):
        assert sample["image"].shape == view.image.shape
        assert np.abs(sample["image"].astype(int) - view.image).mean() < 6  # JPEG


def test_classes_come_back_as_palette_indices(root):
    for sample, view, kind in samples(root):
        context = labels_of(root, sample)
        assert context.dtype == np.uint16
        expected = np.zeros(context.shape, int)
        for index, name in enumerate(CLASSES):
            expected[context == CONTEXT.get(name, -1)] = index
        if kind == "parts":  # the mask of VOC 2012 wins, which has unlabelled pixels
            expected[view.edges] = 255
        assert (sample["targets"]["semseg"] == expected).all()
        assert (sample["targets"]["semseg"] == 15).any() == (kind in ("parts", "person"))
    with Image.open(root / "semseg" / "VOC12" / "2008_000001.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[45:48] == [192, 128, 128]


def test_parts_come_back_and_images_without_have_none(root):
    for sample, view, kind in samples(root):
        if kind == "parts":
            assert (sample["targets"]["human_parts"] == view.parts).all()
            assert set(np.unique(view.parts)) >= {0, 1, 2, 3, 4, 5}
        else:
            assert "human_parts" not in sample["targets"]


def test_saliency_comes_back(root):
    for sample, _, _ in samples(root):
        expected = VOC_CLASS[labels_of(root, sample)] > 0
        assert (sample["targets"]["saliency"] == expected).all()


def test_normals_come_back_where_they_count(root):
    for sample, view, _ in samples(root):
        normals = sample["targets"]["normals"]
        counting = [CONTEXT[name] for name in ("wall", "floor", "person", "sofa", "box")]  # not sky nor aeroplane
        valid = np.isin(labels_of(root, sample), counting)
        assert (np.isfinite(normals).all(-1) == valid).all()
        assert np.isnan(normals[~valid]).all()
        cosines = (normals[valid] * view.normals[valid]).sum(-1)
        assert np.degrees(np.arccos(cosines.clip(-1, 1))).max() < 1
        assert normals.dtype == np.float32


def test_edges_are_thin_boundaries_of_the_labels(root):
    for sample, _, _ in samples(root):
        labels, edges = labels_of(root, sample).astype(int), sample["targets"]["edges"]
        padded = np.pad(labels, 1, mode="edge")
        around = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
        boundary = np.any([labels != neighbour for neighbour in around], axis=0)
        assert set(np.unique(edges)) == {0, 1}
        assert boundary[edges == 1].all()
        assert 0 < edges.sum() < 0.8 * boundary.sum()


# The real files' structures -----------------------------------------------------------------------------------------


def test_edges_are_one_pixel_wide():
    labels = np.ones((20, 30), np.uint16)
    labels[:, 12:] = 459
    edges = label_edges(labels)
    assert (edges.sum(axis=1)[1:-1] == 1).all()
    assert (edges[:, 11:13].sum() == edges.sum()).all()


def structs(rows, *fields):
    array = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for index, row in enumerate(rows):
        array[0, index] = row
    return array


def annotation(tmp_path, *things):
    """Write an annotation of ``(class index, mask, parts)``."""
    rows = [(CLASSES[number], number, mask, parts) for number, mask, parts in things]
    objects = structs(rows, "class", "class_ind", "mask", "parts") if rows else np.zeros((0, 0))
    path = tmp_path / "2008_000001.mat"
    write_mat(path, {"anno": structs([("2008_000001", objects)], "imname", "objects")})
    return File(str(path), path.read_bytes())


def box(rows, columns):
    mask = np.zeros((6, 8), np.uint8)
    mask[rows, columns] = 1
    return mask


def test_later_people_and_parts_lie_on_top(tmp_path):
    first = structs([("torso", box(slice(0, 4), slice(0, 4))), ("head", box(0, slice(0, 4)))], "part_name", "mask")
    second = structs([("lfoot", box(slice(2, 6), slice(2, 6)))], "part_name", "mask")
    horse = structs([("head", box(slice(None), slice(None)))], "part_name", "mask")
    file = annotation(
        tmp_path,
        (15, box(slice(0, 4), slice(0, 4)), first),
        (13, box(slice(None), slice(None)), horse),
        (15, box(slice(2, 6), slice(2, 6)), second),
        (15, box(5, 7), np.zeros((0, 0))),
    )
    parts = read_parts(file)
    expected = np.zeros((6, 8), int)
    expected[:4, :4] = 2
    expected[0, :4] = 1
    expected[2:6, 2:6] = 6
    assert (parts == expected).all()
    assert object_classes(file) == [15, 13, 15, 15]


@pytest.mark.parametrize(
    "things",
    [
        (),
        ((15, box(0, 0), np.zeros((0, 0))),),
        ((15, box(0, 0), structs([], "part_name", "mask")),),
        ((15, box(0, 0), structs([("head", box(slice(0), 0))], "part_name", "mask")),),
        ((13, box(0, 0), structs([("head", box(0, 0))], "part_name", "mask")),),
    ],
    ids=["no object", "parts 0x0", "parts 1x0", "part without pixels", "a horse's head"],
)
def test_annotations_without_a_part_of_a_person_have_no_parts(tmp_path, things):
    assert read_parts(annotation(tmp_path, *things)) is None


def test_objects_without_pixels_have_no_class(tmp_path):
    assert object_classes(annotation(tmp_path, (15, box(slice(0), 0), np.zeros((0, 0))))) == [-1]


@pytest.mark.parametrize("reader", [read_parts, object_classes])
def test_another_matlab_file_is_no_annotation(tmp_path, reader):
    write_mat(tmp_path / "x.mat", {"LabelMap": np.ones((2, 2))})
    with pytest.raises(CorruptFileError, match=r"x\.mat is not an annotation of PASCAL-Part"):
        reader(File(str(tmp_path / "x.mat"), (tmp_path / "x.mat").read_bytes()))


def test_an_unknown_part_is_refused(tmp_path):
    file = annotation(tmp_path, (15, box(0, 0), structs([("wing", box(0, 0))], "part_name", "mask")))
    with pytest.raises(CorruptFileError, match="wing"):
        read_parts(file)


@pytest.mark.parametrize("labels", [np.full((4, 5), 460), np.ones((4, 5, 2)), np.zeros((0, 0)), np.full((4, 5), -1)])
def test_other_labels_are_refused(tmp_path, labels):
    write_mat(tmp_path / "x.mat", {"LabelMap": labels})
    with pytest.raises(CorruptFileError, match=r"x\.mat holds no matrix 'LabelMap' of labels 0\.\.459"):
        read_labels(File(str(tmp_path / "x.mat"), (tmp_path / "x.mat").read_bytes()))


def test_stored_normals_point_left_up_and_to_the_camera(copy):
    height, width = PASCALContext(copy, "train", {})[0]["meta"]["size"]
    write_png(copy / "normals_distill" / "2008_000001.png", np.full((height, width, 3), (230, 128, 204), np.uint8))
    write_mat(copy / "pascal-context" / "trainval" / "2008_000001.mat", {"LabelMap": np.full((height, width), 440)})
    normals = PASCALContext(copy, "train", {"normals": TASKS["normals"]})[0]["targets"]["normals"]
    np.testing.assert_allclose(normals, np.broadcast_to([-0.8, 0, -0.6], normals.shape), atol=0.01)
    module = PASCALContextDataModule(str(copy), ["normals"], normal_axes=(1, -3, 2))
    turned = module.dataset("train", {"normals": TASKS["normals"]}, None)[0]["targets"]["normals"]
    np.testing.assert_allclose(turned, np.broadcast_to([0.8, -0.6, 0], normals.shape), atol=0.01)
    with pytest.raises(ConfigError, match=r"channels 1, 2 and 3 once each.*\(1, 1, 3\)"):
        PASCALContext(copy, "train", {}, normal_axes=(1, 1, 3))


def test_saliency_starts_above_one_half(copy):
    shape = PASCALContext(copy, "train", {})[0]["meta"]["size"]
    pixels = np.full(shape, 127, np.uint8)
    pixels[0] = 128
    write_png(copy / "sal_distill" / "2008_000001.png", pixels)
    saliency = PASCALContext(copy, "train", {"saliency": TASKS["saliency"]})[0]["targets"]["saliency"]
    assert saliency[0].all()
    assert not saliency[1:].any()


# Faults -------------------------------------------------------------------------------------------------------------


def test_a_broken_annotation_stops_with_its_name(copy):
    for folder in ("human_parts", "pascal-context/trainval"):
        path = copy / folder / "2008_000001.mat"
        path.write_bytes(path.read_bytes()[:-30])
        task = {name for name, where in FOLDERS.items() if where == folder}.pop()
        with pytest.raises(CorruptFileError, match=rf"{folder}/2008_000001\.mat .*truncated"):
            PASCALContext(copy, "train", {task: TASKS[task]})[0]


def test_labels_of_another_size_than_the_normals_are_refused(copy):
    write_mat(copy / "pascal-context" / "trainval" / "2008_000001.mat", {"LabelMap": np.ones((4, 5), np.uint16)})
    with pytest.raises(CorruptFileError, match=r"normals_distill/2008_000001\.png is 60x80 and .*\.mat 4x5"):
        PASCALContext(copy, "train", {"normals": TASKS["normals"]})[0]


def test_a_missing_mask_is_explained(copy):
    (copy / "semseg" / "pascal-context" / "2008_000002.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"semseg/pascal-context/2008_000002\.png .*cannot be read"):
        PASCALContext(copy, "train", {"semseg": TASKS["semseg"]})[1]


def test_tasks_without_a_folder_are_not_available(copy):
    shutil.rmtree(copy / "sal_distill")
    module = PASCALContextDataModule(str(copy))
    assert module.available() == ["semseg", "human_parts", "normals", "edges"]
    with pytest.raises(DatasetNotFoundError, match=r"no folder 'sal_distill'.*'saliency'.*\['semseg', .*--distilled"):
        module.dataset("train", TASKS, None)


def test_verify_finds_the_miniature_right_and_names_what_is_not(copy):
    module = PASCALContextDataModule(str(copy))
    report = verify(module, workers=0)
    assert report.ok, report.findings
    assert report.splits["train"].tasks["human_parts"].maps == 1
    path = copy / "normals_distill" / "2008_000006.png"
    with Image.open(path) as picture:
        write_png(path, 255 - np.array(picture))
    reasons = [finding.reason for finding in verify(module, workers=0).findings]
    assert len(reasons) == 1
    assert "2008_000006.png: 100% of the normals point away from the camera" in reasons[0]


def test_verify_finds_swapped_splits(copy):
    swap_splits(copy)
    assert PASCALContext(copy, "train", {}).ids == ["2008_000005", "2008_000006", "2008_000007"]
    report = verify(PASCALContextDataModule(str(copy)), workers=0)
    kinds = {finding.kind for finding in report.findings}
    assert {"split"} <= kinds <= {"split", "missing"}


# People only --------------------------------------------------------------------------------------------------------


def people(root, split="train", tasks=("human_parts",), **options):
    module = PASCALContextDataModule(str(root), tasks=list(tasks), **options)
    return module.dataset(split, {name: TASKS[name] for name in tasks}, None).ids


def test_training_on_parts_alone_leaves_out_images_without_people(root):
    everything = ["2008_000001", "2008_000002", "2008_000003", "2008_000004"]
    assert people(root) == everything[:2]
    assert people(root, people_only=False) == everything
    assert people(root, tasks=("human_parts", "edges")) == everything
    assert people(root, "val") == ["2008_000005", "2008_000006", "2008_000007"]


def test_the_index_of_people_is_read_if_it_lists_all_images(copy, caplog):
    path = copy / "ImageSets" / "Parts" / "train.txt"
    path.parent.mkdir()
    with caplog.at_level(logging.INFO, "taskformer"):
        path.write_text(json.dumps({f"2008_00000{number}": [15] if number == 4 else [3] for number in (1, 2, 3, 4)}))
        assert people(copy) == ["2008_000004"]
        assert not caplog.records
        path.write_text(json.dumps({"2008_000001": [15]}))
        assert people(copy) == ["2008_000001", "2008_000002"]
        assert "4 annotations" in caplog.text


# Batches ------------------------------------------------------------------------------------------------------------


def test_images_of_different_sizes_make_batches_that_do_not_depend_on_company(root):
    pad = [Pad(96, 96)]
    module = PASCALContextDataModule(str(root), batch_size=3, eval_transforms=pad)
    module.setup("test")
    (batch,) = module.test_dataloader()
    assert batch["image"].shape == (3, 3, 96, 96)
    alone = PASCALContext(root, "val", TASKS, TaskCompose(pad, TASKS))
    for index in range(3):
        assert torch.equal(batch["image"][index], alone[index]["image"])
        for name in TASKS:
            assert torch.equal(
                batch["targets"][name][index].nan_to_num(-1), alone[index]["targets"][name].nan_to_num(-1)
            )
    assert (batch["targets"]["human_parts"][1:] == 255).all()
    assert (batch["targets"]["human_parts"][0] == 255).any()


def test_nothing_is_written_to_the_data_set(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    module = PASCALContextDataModule(str(root), tasks=["human_parts"], batch_size=1)
    module.setup("fit")
    list(module.train_dataloader())
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("name", ["pascal_context", "pascal_context_mtinet"])
def test_the_recipes_give_one_size_and_valid_targets(root, name):
    assert data_module(ROOT / "configs" / "data" / f"{name}.yaml").task_names == list(TASKS)
    module = configured(root, name)
    module.setup("fit")
    for batch in (next(iter(module.train_dataloader())), next(iter(module.val_dataloader()))):
        assert batch["image"].shape[2:] == (512, 512)
        for task in TASKS.values():
            output = torch.zeros(len(batch["image"]), task.channels, 512, 512)
            assert torch.isfinite(task.loss(output, batch["targets"][task.name]))


def configured(root, name):
    flags = [f"--data.init_args.root={root}", "--data.init_args.num_workers=0", "--data.init_args.batch_size=2"]
    model = str(ROOT / "configs" / "model" / "baseline.yaml")
    return taskformer.from_config(model, str(ROOT / "configs" / "data" / f"{name}.yaml"), overrides=flags)[1]


@pytest.mark.parametrize("model", ["mqtransformer", pytest.param("baseline", marks=pytest.mark.slow)])
def test_fit_and_test_run_from_the_command_line(root, tiny, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"class_path": "taskformer.data.transforms.Pad", "init_args": {"height": 96, "width": 96}}
    settings = {"data": {"init_args": {"train_transforms": [small], "eval_transforms": [small]}}}
    Path("small.yaml").write_text(yaml.safe_dump(settings))
    configs = [ROOT / "configs" / "model" / f"{model}.yaml", ROOT / "configs" / "data" / "pascal_context.yaml"]
    flags = [f"--config={path}" for path in (*configs, "small.yaml")]
    main(["fit", *flags, *tiny, f"--data.root={root}", "--data.batch_size=2", "--name=first"])
    main(["test", "--config=runs/first/config.yaml", "--ckpt_path=runs/first/checkpoints/best.ckpt"])
    scores = json.loads(Path("runs/first/metrics.json").read_text())["test"]["tasks"]
    assert scores.keys() == TASKS.keys()
    assert np.isfinite([scores[name][task.headline] for name, task in TASKS.items()]).all()
