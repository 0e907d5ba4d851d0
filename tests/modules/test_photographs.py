"""Photographs to maps: one result each, whatever their names and kinds, and a sentence where there can be none."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import taskformer
from taskformer.cli import main
from taskformer.errors import InvalidImageError
from taskformer.modules import photographs, prediction
from taskformer.modules.photographs import find_images, predict, result_names
from taskformer.tasks.sheets import HEADER, LINE

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(checkpoint):
    return taskformer.load(checkpoint)


def photo(path, height=24, width=32, **options):
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def run(capsys, *args):
    """Run the command; returns its status, and what it said on both outputs."""
    status = 0
    try:
        main(["predict", *map(str, args)])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


# Names


def test_every_photograph_has_a_result_of_its_own(checkpoint, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = {name: photo(Path(name)) for name in ("a/x.png", "b/x.png", "b/x.bmp", "b/y.png", "x.png.png", "b/z.ppm")}
    names = {"a/x.png": "a/x.png", "b/x.png": "b/x.png", "b/x.bmp": "x.bmp", "b/y.png": "y", "x.png.png": "x.png.png",
             "b/z.ppm": "z"}  # fmt: skip
    status, said, _ = run(capsys, checkpoint, "a", "b", "x.png.png")
    assert status == 0
    assert {str(path.relative_to("predictions/raw/depth")) for path in Path("predictions/raw/depth").rglob("*.*")} >= {
        f"{name}.npy" for name in names.values()
    }
    for file, name in names.items():
        expected = model.predict_image(pixels[file])
        np.testing.assert_array_equal(np.load(f"predictions/raw/semseg/{name}.npy"), expected["semseg"])
        with Image.open(f"predictions/depth/{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), model.tasks["depth"].colorize(expected["depth"]))
    assert said.startswith("wrote depth, semseg of 6 photographs to predictions in ")
    assert said.strip().endswith(" s; predictions/overview.png shows them")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["p/a.jpg", "p/b.jpg"], ["a", "b"]),
        (["p/a.jpg", "p/a.png"], ["a.jpg", "a.png"]),
        (["p/a.jpg", "q/a.jpg"], ["p/a.jpg", "q/a.jpg"]),
        (["p/a.jpg", "q/A.jpg"], ["p/a.jpg", "q/A.jpg"]),
        (["r/p/a.jpg", "s/p/a.jpg", "s/p/b.jpg"], ["r/p/a.jpg", "s/p/a.jpg", "b"]),
        (["p/x.jpg", "p/x.png", "p/x.jpg.png"], ["p/x.jpg", "x.png", "x.jpg.png"]),
    ],
)
def test_names_are_as_short_as_they_can_be(files, names):
    assert list(result_names([Path("/base", file) for file in files])) == names


def test_names_differ_whatever_the_files_are_called():
    parts = ["a", "b", "a.png", "A"]
    files = [Path("/", *folders, f"{stem}.{end}") for folders in [(), ("a",), ("b", "a"), ("b",), ("a.png", "b")]
             for stem in parts for end in ("png", "jpg")]  # fmt: skip
    named = result_names(files)
    assert list(named.values()) == files
    assert named == result_names(files)


def test_a_photograph_that_is_named_twice_is_predicted_once(tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "link").symlink_to(tmp_path)
    assert find_images([str(tmp_path), str(tmp_path / "a.png"), str(tmp_path / "link")]) == [tmp_path / "a.png"]


def test_what_is_no_photograph_is_left_out_and_named(tmp_path, capsys):
    for name in ("a.PNG", "._a.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert find_images([str(tmp_path)]) == [tmp_path / "a.PNG"]
    assert capsys.readouterr().err == (f"taskformer: 2 in {tmp_path} are no image files, left out: more/, notes.txt\n")


# Broken ones


def test_a_broken_photograph_is_a_sentence_and_the_others_go_on(checkpoint, tmp_path, capsys):
    for name in ("a.png", "c.png"):
        photo(tmp_path / "photos" / name)
    (tmp_path / "photos" / "b.png").write_bytes((tmp_path / "photos" / "a.png").read_bytes()[:200])
    (tmp_path / "photos" / "d.jpg").write_bytes(b"\x93NUMPY")
    status, said, errors = run(capsys, checkpoint, tmp_path / "photos", f"--out={tmp_path / 'out'}")
    assert status == 1
    sentences = [line for line in errors.splitlines() if line.startswith("taskformer: ")]
    assert len(sentences) == 2
    assert "b.png (200 bytes) is truncated or not a picture" in sentences[0]
    assert "d.jpg is a numpy array (.npy); expected a picture" in sentences[1]
    assert sorted(path.name for path in (tmp_path / "out/depth").iterdir()) == ["a.png", "c.png"]
    assert f"wrote depth, semseg of 2 photographs to {tmp_path / 'out'} in " in said
    assert ", 2 could not be read; " in said


def test_nothing_but_broken_photographs(checkpoint, tmp_path, capsys):
    (tmp_path / "a.png").touch()
    status, said, errors = run(capsys, checkpoint, tmp_path / "a.png", f"--out={tmp_path / 'out'}")
    assert status == 1
    assert "a.png is empty; expected a picture" in errors
    assert "of 0 photographs" in said
    assert not (tmp_path / "out").exists()


# Kinds


def test_photographs_are_predicted_as_viewers_show_them(checkpoint, model, tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    pixels = photo(tmp_path / "lying.png", 24, 40, exif=tags)
    with Image.open(tmp_path / "lying.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(upright, np.rot90(pixels, -1))
    predict(str(checkpoint), [str(tmp_path / "lying.png")], tmp_path / "out")
    written = np.load(tmp_path / "out/raw/depth/lying.npy")
    np.testing.assert_array_equal(written, model.predict_image(upright)["depth"])
    np.testing.assert_array_equal(written, model.predict_image(tmp_path / "lying.png")["depth"])


def test_all_forms_of_a_photograph_give_the_same_maps(model, tmp_path):
    pixels = photo(tmp_path / "x.png")
    deep = RNG.integers(0, 256, (24, 32), dtype=np.uint8)
    expected = model.predict_image(pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    opaque = np.dstack([pixels, np.full((24, 32), 255, np.uint8)])
    for form in (tmp_path / "x.png", Image.fromarray(pixels), pixels / 255, tensor, tensor / 255, opaque):
        maps = model.predict_image(form)
        assert all(np.array_equal(maps[name], expected[name]) for name in expected), type(form)
    grey = model.predict_image(deep)["depth"]
    np.testing.assert_array_equal(grey, model.predict_image(np.repeat(deep[..., None], 3, 2))["depth"])
    with pytest.raises(InvalidImageError, match=r"got \(3, 24, 32\)"):
        model.predict_image(pixels.transpose(2, 0, 1))


# Memory


def test_the_overview_does_not_grow_with_the_photographs(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "ROWS", 3)
    for number in range(5):
        photo(tmp_path / "photos" / f"{number}.png", 300 if number == 1 else 24, 8 if number == 1 else 32)
    done = predict(str(checkpoint), [str(tmp_path / "photos")], tmp_path / "out", raw=False)
    with Image.open(tmp_path / "out/overview.png") as sheet:
        # A heading, two pictures of 240 x 180, and one that is too high; a line of legend for each of two tasks.
        assert sheet.size == (3 * 242 - 2, HEADER + 2 * 182 + 482 + 2 * LINE)
    assert "overview.png shows the first 3" in done.summary()
    assert len(list((tmp_path / "out/depth").iterdir())) == 5
    assert not (tmp_path / "out/raw").exists()


def test_memory_does_not_grow_with_the_number_of_photographs(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "ROWS", 1)
    for number in range(6):
        photo(tmp_path / "photos" / f"{number}.png", 400, 500)
    peaks = []
    for count in (2, 6):
        tracemalloc.start()
        files = [str(tmp_path / "photos" / f"{number}.png") for number in range(count)]
        predict(str(checkpoint), files, tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 400 * 500 * 3  # less than one photograph more


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_maps_of_large_photographs_are_decoded_in_bands(model, monkeypatch, rows):
    pixels = RNG.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    expected = model.predict_image(pixels)
    monkeypatch.setattr(prediction, "MAX_VALUES", rows * 70 * 3)
    maps = model.predict_image(pixels)
    np.testing.assert_allclose(maps["depth"], expected["depth"], atol=1e-5)
    assert maps["depth"].shape == (1, 90, 70)
    assert (maps["semseg"] == expected["semseg"]).mean() > 0.999


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2000, 2), (5, 3)])
def test_photographs_of_any_size_are_predicted(model, size):
    seen = []
    hook = model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    maps = model.predict_image(np.zeros((*size, 3), np.uint8))
    hook.remove()
    assert maps["semseg"].shape == size
    assert max(seen[0]) <= 16 * 32
    assert min(seen[0]) >= 1
