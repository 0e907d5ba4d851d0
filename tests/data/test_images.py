import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskformer.data.images import (
    File,
    read_json,
    read_mat,
    read_npy,
    read_pixels,
    read_plane,
    read_rgb,
    write_jpg,
    write_mat,
    write_npy,
    write_png,
)
from taskformer.errors import CorruptFileError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (7, 9), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (7, 9), dtype=np.uint16)


def file(path):
    return File(str(path), Path(path).read_bytes())


@pytest.mark.parametrize(
    ("pixels", "read"), [(RGB, read_rgb), (RGB, read_pixels), (GRAY, read_plane), (DEEP, read_plane)]
)
def test_png_round_trip(tmp_path, pixels, read):
    write_png(tmp_path / "x.png", pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels)
    back = read(file(tmp_path / "x.png"))
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


def test_palettes_give_indices(tmp_path):
    labels = GRAY % 5
    write_png(tmp_path / "x.png", labels, palette=RGB[0][:5])
    assert (tmp_path / "x.png").read_bytes()[25] == 3  # colour type: palette
    np.testing.assert_array_equal(read_plane(file(tmp_path / "x.png")), labels)
    np.testing.assert_array_equal(read_rgb(file(tmp_path / "x.png")), RGB[0][:5][labels])


def test_transparency_is_dropped(tmp_path):
    Image.fromarray(np.dstack([RGB, GRAY])).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_pixels(file(tmp_path / "x.png")), RGB)


def test_one_channel_may_be_stored_as_three_equal_ones_but_not_as_a_picture(tmp_path):
    write_png(tmp_path / "x.png", np.repeat(GRAY[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_plane(file(tmp_path / "x.png")), GRAY)
    write_png(tmp_path / "x.png", RGB)
    with pytest.raises(CorruptFileError, match=r"x\.png has 3 different channels"):
        read_plane(file(tmp_path / "x.png"))


def test_jpg_is_decoded_as_pillow_does(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 3)).copy()
    write_jpg(tmp_path / "x.jpg", smooth)
    expected = np.asarray(Image.open(tmp_path / "x.jpg").convert("RGB")).astype(int)
    assert np.abs(read_rgb(file(tmp_path / "x.jpg")) - expected).max() <= 1


def test_an_orientation_tag_does_not_turn_the_image_away_from_its_labels(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(RGB).save(tmp_path / "x.jpg", exif=tags)
    assert read_rgb(file(tmp_path / "x.jpg")).shape == RGB.shape


def test_arrays_and_matlab_files_come_back(tmp_path):
    write_npy(tmp_path / "x.npy", DEEP)
    np.testing.assert_array_equal(read_npy(file(tmp_path / "x.npy")), DEEP)
    write_mat(tmp_path / "x.mat", {"LabelMap": DEEP})
    np.testing.assert_array_equal(read_mat(file(tmp_path / "x.mat"))["LabelMap"], DEEP)


def test_pickled_objects_are_refused():
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptFileError, match=r"evil\.npy"):
        read_npy(File("evil.npy", stream.getvalue()))


@pytest.mark.parametrize("read", [read_rgb, read_pixels, read_plane, read_npy, read_mat, read_json])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no image at all"])
def test_what_cannot_be_read_is_named(read, content):
    with pytest.raises(CorruptFileError, match=r"folder/x .*truncated or no"):
        read(File("folder/x", content))


@pytest.mark.parametrize(("suffix", "palette"), [("png", None), ("png", RGB[0]), ("jpg", None)])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_truncated_images_are_found(tmp_path, suffix, palette, share):
    path = tmp_path / f"x.{suffix}"
    big = RNG.integers(0, 9, (64, 64), dtype=np.uint8)
    write_png(path, big, palette) if suffix == "png" else write_jpg(path, np.repeat(big[..., None], 3, axis=2))
    whole = path.read_bytes()
    with pytest.raises(CorruptFileError, match=r"x\.\w+ \(\d+ bytes\) is truncated"):
        read_plane(File(str(path), whole[: int(len(whole) * share)]))
