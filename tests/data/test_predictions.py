"""Predictions as files: what comes back, in which formats, from where in a padded map."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.nn import functional as F

from taskformer.data.predictions import (
    file_name,
    find_prediction,
    find_predictions,
    is_only_padded,
    read_prediction,
    taken_as,
    task_folder,
    without_padding,
    write_prediction,
)
from taskformer.data.transforms import Pad, Resize
from taskformer.errors import CorruptFileError
from taskformer.tasks import build_task

SPECS = {
    "semseg": {"classes": [str(number) for number in range(40)]},
    "human_parts": {},
    "saliency": {},
    "depth": {},
    "normals": {},
    "edges": {},
    "reshading": {},
    "curvature": {},
    "segment_unsup2d": {"channels": 5},
    "class_scene": {"classes": ["kitchen", "bath", "hall"]},
}
MAPS = [name for name in SPECS if name != "class_scene"]


def task_of(name):
    return build_task(name, SPECS[name])


def raw_output(task, size=(6, 8)):
    torch.manual_seed(2)
    return 3 * torch.randn(task.channels, *(() if task.geometry == "image" else size))


@pytest.mark.parametrize("name", SPECS)
def test_what_is_written_comes_back(name, tmp_path):
    task = task_of(name)
    output = raw_output(task)
    write_prediction(tmp_path, task, "a/b c", output)
    path = find_prediction(tmp_path / name, "a/b c")
    restored = read_prediction(path, task)
    assert restored.shape == output.shape
    before, after = task.decode(output[None]), task.decode(restored[None])
    if name in ("semseg", "human_parts"):
        assert torch.equal(after, before)
    elif name == "normals":
        torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    elif name in ("edges", "saliency"):
        share = (before if name == "edges" else output.softmax(0)[1]).flatten()
        found = (after if name == "edges" else restored.softmax(0)[1]).flatten()
        assert torch.equal((found * 255 + 1e-4).int(), (share * 255).int())  # truncated
        assert path.suffix == ".png"
    else:
        assert torch.equal(restored, output)  # depth, too, keeps values below 0
        assert path.suffix == ".npy"


def test_the_formats_are_those_of_the_field(tmp_path):
    outputs = {name: raw_output(task_of(name)) for name in SPECS}
    for name, output in outputs.items():
        write_prediction(tmp_path, task_of(name), "2008_000002", output)
    png = {name: np.array(Image.open(tmp_path / name / "2008_000002.png")) for name in ("semseg", "saliency", "edges")}
    assert np.array_equal(png["semseg"], outputs["semseg"].argmax(0))
    assert np.array_equal(png["saliency"], np.floor(outputs["saliency"].softmax(0)[1].numpy() * 255))
    assert np.array_equal(png["edges"], np.floor(outputs["edges"].sigmoid()[0].numpy() * 255))
    depth, normals = (np.load(tmp_path / name / "2008_000002.npy") for name in ("depth", "normals"))
    assert depth.dtype == normals.dtype == np.float32
    assert np.array_equal(depth, outputs["depth"][0])
    assert normals.shape == (6, 8, 3)
    assert np.allclose(normals, F.normalize(outputs["normals"], dim=0).permute(1, 2, 0), atol=1e-6)


def test_edges_from_files_score_as_in_a_protocol_of_8_bits(tmp_path):
    task = build_task("edges", {"max_dist": 0.03})  # 2 pixels
    target = torch.zeros(1, 1, 40, 60)
    target[..., 20, 5:50] = 1
    target[..., 5:35, 30] = 1
    torch.manual_seed(0)
    output = 12 * F.avg_pool2d(target, 5, stride=1, padding=2) - 3 + 0.3 * torch.randn(1, 1, 40, 60)
    write_prediction(tmp_path, task, "x", output[0])
    restored = read_prediction(find_prediction(tmp_path / "edges", "x"), task)[None]
    results = []
    for raw in (output, restored):
        metrics = task.metrics("atrc", stage="test")
        metrics.update(raw, target)
        results.append({key: float(metrics.compute()[key]) for key in ("odsF", "oisF", "ap", "ods_threshold")})
    assert results[0] == results[1]
    assert 0.5 < results[0]["odsF"] <= 1


def test_identifiers_become_different_safe_names(tmp_path):
    names = ["a/b", "a_b", "a%2Fb", "../up", "a\\b", "ä", "2008_000002"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert not any(sign in file for file in files for sign in "/\\")
    assert files[-1] == "2008_000002"
    write_prediction(tmp_path / "inside", task_of("depth"), "../../up", torch.ones(1, 2, 2))
    assert [path.parent.name for path in tmp_path.rglob("*.npy")] == ["depth"]


def test_bytes_reach_the_thresholds_up_to_them():
    task = task_of("saliency")
    logits = task.restore(np.arange(256, dtype=np.uint8).reshape(16, 16))
    share = (logits[1] - logits[0]).sigmoid().flatten().numpy()
    for step in range(1, 100):  # in hundredths: 51 / 255 is exactly .2
        assert np.array_equal(share >= np.float32(step / 100), 100 * np.arange(256) >= 255 * step)


def test_the_folders_of_other_programs_are_found(tmp_path):
    (tmp_path / "sal").mkdir()
    (tmp_path / "edge").mkdir()
    assert task_folder(tmp_path, task_of("saliency")) == tmp_path / "sal"
    assert task_folder(tmp_path, task_of("edges")) == tmp_path / "edge"
    assert task_folder(tmp_path, task_of("depth")) is None


def test_depth_of_mti_net_and_any_array_of_a_mat(tmp_path):
    depth = np.arange(6, dtype=np.float32).reshape(2, 3)
    savemat(tmp_path / "a.mat", {"depth": depth, "other": 1})
    savemat(tmp_path / "b.mat", {"anything": depth})
    savemat(tmp_path / "c.mat", {"one": depth, "two": depth})
    for name in "ab":
        assert np.array_equal(read_prediction(tmp_path / f"{name}.mat", task_of("depth"))[0], depth)
    with pytest.raises(CorruptFileError, match=r"c\.mat holds the variables one, two; expected one called 'depth'"):
        read_prediction(tmp_path / "c.mat", task_of("depth"))


def test_pictures_of_normals_have_the_axes_of_the_data_set(tmp_path):
    stored = np.zeros((1, 1, 3), dtype=np.uint8) + np.array([255, 0, 51], dtype=np.uint8)
    Image.fromarray(stored).save(tmp_path / "n.png")
    # Channels 1, -1, -.6; x is the second, y the negative third, z the first.
    assert read_prediction(tmp_path / "n.png", task_of("normals"), (2, -3, 1)).flatten().tolist() == pytest.approx(
        [-1, 0.6, 1], abs=1e-6
    )


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("semseg", np.full((2, 2), 40, np.uint8), r"class ids 0\.\.39"),
        ("semseg", np.full((2, 2), 0.5, np.float32), r"class ids 0\.\.39"),
        ("semseg", np.zeros((2, 2, 3), np.uint8), r"\(2, 2, 3\)"),
        ("edges", np.full((2, 2), 3.0, np.float32), r"between 0 and 1, or 8 bits, got 3\.0\.\.3\.0"),
        ("saliency", np.full((2, 2), np.nan, np.float32), "between 0 and 1"),
        ("depth", np.zeros((2, 2, 3), np.float32), r"\(height, width, 1\), got \(2, 2, 3\)"),
        ("normals", np.zeros((3, 4, 4), np.float32), r"\(height, width, 3\), got \(3, 4, 4\)"),
        ("class_scene", np.zeros(4, np.float32), r"\(3,\), got \(4,\)"),
    ],
)
def test_what_does_not_fit_is_named(name, array, message, tmp_path):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(CorruptFileError, match=rf"x\.npy: task '{name}' .*{message}"):
        read_prediction(tmp_path / "x.npy", task_of(name))


def test_padding_is_cut_off_where_it_was_added():
    inner = torch.arange(5 * 7.0).view(1, 5, 7)
    centred = F.pad(inner, (1, 2, 2, 3), value=-1)  # to 10 x 10; odd rests go to the right and the bottom
    assert torch.equal(without_padding(centred, (5, 7), [Pad(10, 10)]), inner)
    # Then a batch with a larger image adds more on the right and at the bottom.
    assert torch.equal(without_padding(F.pad(centred, (0, 4, 0, 3)), (5, 7), [Pad(10, 10)]), inner)
    assert torch.equal(without_padding(F.pad(inner, (0, 4, 0, 3)), (5, 7), []), inner)
    assert torch.equal(without_padding(F.pad(inner, (1, 2, 2, 3)), (5, 7), [Pad(8, 8), Pad(10, 10)]), inner)
    assert without_padding(centred, (5, 7), [Resize(10, 10)]) is centred


@pytest.mark.parametrize("size", [(5, 7), (12, 9), (3, 20)])
def test_the_cut_undoes_the_transform(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    pad = Pad(11, 10)
    padded = pad.apply(image, **pad.draw(*size))
    assert np.array_equal(
        without_padding(torch.from_numpy(padded).permute(2, 0, 1), size, [pad]).permute(1, 2, 0), image
    )


def test_which_transforms_only_pad():
    assert is_only_padded([])
    assert is_only_padded([Pad(4, 4)])
    assert not is_only_padded([Pad(4, 4, position="random")])
    assert not is_only_padded([Pad(4, 4), Resize(2, 2)])


# Other units, depths of bits and formats


def saved(tmp_path, name, array, ending):
    path = tmp_path / f"x{ending}"
    if ending == ".png":
        Image.fromarray(array).save(path)
    elif ending == ".mat":
        savemat(path, {name: array})
    elif ending == ".npz":
        np.savez(path, array)
    elif ending == ".tif":
        Image.fromarray(array).save(path)
    else:
        with path.open("wb") as stream:
            np.save(stream, array)
    return path


METRES = np.linspace(0.7, 9.3, 48, dtype=np.float32).reshape(6, 8)
#: Depth as other programs write it, and where metres are expected.
WRONG_DEPTH = {
    "millimetres of 16 bits": ((METRES * 1000).astype(np.uint16), ".png", r"got uint16 from 700 to \d+; convert them"),
    "8 bits": ((METRES * 25).astype(np.uint8), ".png", r"got uint8 from 17 to \d+"),
    "whole numbers": (METRES.astype(np.int64), ".npy", r"got int64 from 0 to 9"),
    "whole numbers of MATLAB": ((METRES * 1000).astype(np.int32), ".mat", r"got int32"),
    "millimetres as floats": (METRES * 1000, ".npy", r"but their median is 5000"),
    "centimetres as floats": (METRES * 100, ".npz", r"but their median is 500"),
    "16 bits as a tif": ((METRES * 1000).astype(np.uint16), ".tif", r"got uint16"),
}


@pytest.mark.parametrize(("array", "ending", "message"), WRONG_DEPTH.values(), ids=WRONG_DEPTH)
def test_depth_that_is_not_in_metres_is_refused(tmp_path, array, ending, message):
    path = saved(tmp_path, "depth", array, ending)
    with pytest.raises(CorruptFileError, match=rf"x{ending}: task 'depth' needs predictions in its unit.*{message}"):
        read_prediction(path, task_of("depth"))


@pytest.mark.parametrize("ending", [".npy", ".NPY", ".npz", ".mat", ".tif"])
def test_depth_in_metres_is_read_from_any_array(tmp_path, ending):
    path = saved(tmp_path, "depth", METRES, ending)
    assert find_prediction(tmp_path, "x") == path
    assert np.array_equal(read_prediction(path, task_of("depth"))[0], METRES)


def test_bad_predictions_in_the_right_unit_are_still_scored(tmp_path):
    for values in (np.zeros((2, 2)), np.full((2, 2), -3.0), np.full((2, 2), 60.0), np.full((2, 2), np.nan)):
        assert np.array_equal(read_prediction(saved(tmp_path, "depth", values, ".npy"), task_of("depth"))[0], values,
                              equal_nan=True)  # fmt: skip


@pytest.mark.parametrize("name", ["reshading", "curvature", "class_scene", "segment_unsup2d"])
def test_values_of_8_bits_are_refused_where_floats_are_expected(tmp_path, name):
    task = task_of(name)
    shape = (3,) if name == "class_scene" else (6, 8, task.channels)[: 2 if task.channels == 1 else 3]
    path = saved(tmp_path, name, np.full(shape, 9, np.uint8), ".npy")
    with pytest.raises(CorruptFileError, match="as floating-point numbers, got uint8 from 9 to 9"):
        read_prediction(path, task)


def test_normals_are_vectors_or_colours_of_8_or_16_bits(tmp_path):
    vectors = np.array([[[0.6, 0.0, -0.8], [0.0, -0.6, -0.8]]])
    task = task_of("normals")
    for dtype, close in ((np.uint8, 0.01), (np.uint16, 1e-4)):
        top = np.iinfo(dtype).max
        path = saved(tmp_path, "normals", np.round((vectors + 1) / 2 * top).astype(dtype), ".npy")
        assert np.allclose(read_prediction(path, task).permute(1, 2, 0), vectors, atol=close)
    with pytest.raises(CorruptFileError, match=r"these floats are colours: n = 2 \* color - 1"):
        read_prediction(saved(tmp_path, "normals", (vectors + 1) / 2, ".npy"), task)
    with pytest.raises(CorruptFileError, match="got int16 from -26213 to 19660"):
        read_prediction(saved(tmp_path, "normals", (vectors * 32767).astype(np.int16), ".npy"), task)


@pytest.mark.parametrize("name", ["edges", "saliency"])
def test_probabilities_of_any_depth_of_bits_are_one_map(tmp_path, name):
    share = np.linspace(0, 1, 48).reshape(6, 8)
    task = task_of(name)

    def read(array, ending):
        output = read_prediction(saved(tmp_path, name, array, ending), task)
        return (output[0] if name == "edges" else output[1] - output[0]).sigmoid().numpy()

    for array, ending in [
        (share, ".npy"), (share.astype(np.float32), ".mat"), (np.round(share * 255).astype(np.uint8), ".png"),
        (np.round(share * 65535).astype(np.uint16), ".png"), (share.astype(np.float32), ".tif"),
    ]:  # fmt: skip
        assert np.allclose(read(array, ending), share, atol=3e-3), (array.dtype, ending)
    for array, ending in [(share > 0.5, ".png"), (share > 0.5, ".npy")]:  # a mask of 1 bit
        assert np.array_equal(read(array, ending) > 0.5, share > 0.5)
        assert np.isclose(read(array, ending).max(), 1, atol=1e-3)


def test_class_ids_of_any_depth_of_bits_are_one_map(tmp_path):
    ids = np.random.default_rng(0).integers(0, 40, (6, 8), dtype=np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 120, dtype=np.uint8).tobytes())
    palette.save(tmp_path / "palette.png")
    paths = [saved(tmp_path, "semseg", ids.astype(dtype), ending) for dtype, ending in
             [(np.uint8, ".png"), (np.int64, ".npy"), (np.float64, ".mat"), (np.uint16, ".tif")]]  # fmt: skip
    for path in [*paths, tmp_path / "palette.png"]:
        assert np.array_equal(read_prediction(path, task_of("semseg")).argmax(0), ids), path


def test_hidden_files_are_no_predictions_and_two_of_an_image_are_too_many(tmp_path):
    (tmp_path / "._a.png").touch()
    (tmp_path / "a.PNG").touch()
    (tmp_path / "b.txt").touch()
    assert find_predictions(tmp_path, ["a", "._a", "b"]) == [tmp_path / "a.PNG", None, None]
    (tmp_path / "a.npy").touch()
    with pytest.raises(CorruptFileError, match=r"has several predictions of one image: a\.PNG, a\.npy; keep one"):
        find_predictions(tmp_path, ["a"])


@pytest.mark.parametrize(
    ("name", "array", "ending", "said"),
    [
        ("semseg", np.zeros((2, 2), np.uint8), ".png", "uint8 of .png, class ids"),
        ("edges", np.zeros((2, 2), np.uint16), ".png", "uint16 of .png, shares of 65535"),
        ("saliency", np.zeros((2, 2), np.float32), ".NPY", "float32 of .npy, as they are"),
        ("depth", METRES, ".mat", "float32 of .mat, in m"),
        ("normals", np.zeros((2, 2, 3), np.uint8), ".png", "uint8 of .png, colours"),
        ("curvature", np.zeros((2, 2, 2)), ".npy", "float64 of .npy, as they are"),
    ],
)
def test_what_was_read_is_said(tmp_path, name, array, ending, said):
    assert taken_as(saved(tmp_path, name, array, ending), task_of(name)) == said
