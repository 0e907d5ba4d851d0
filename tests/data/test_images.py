import io
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from taskformer.data.images import (
    File,
    holds_array,
    read_array,
    read_ids,
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
from taskformer.errors import CorruptFileError, MissingExtraError

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
    np.testing.assert_array_equal(read_ids(file(tmp_path / "x.png")), labels)
    np.testing.assert_array_equal(read_rgb(file(tmp_path / "x.png")), RGB[0][:5][labels])


def test_maps_have_no_transparency(tmp_path):
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
def test_what_cannot_be_read_is_named(read):
    with pytest.raises(CorruptFileError, match=r"folder/x \(15 bytes\) is truncated or no"):
        read(File("folder/x", b"no image at all"))
    with pytest.raises(CorruptFileError, match=r"folder/x is empty; expected a"):
        read(File("folder/x", b""))


# Arrays


def test_an_npz_is_its_only_array_or_the_one_that_is_asked_for(tmp_path):
    np.savez(tmp_path / "one.npz", anything=DEEP)
    np.savez_compressed(tmp_path / "two.npz", depth=DEEP, other=GRAY)
    np.testing.assert_array_equal(read_npy(file(tmp_path / "one.npz")), DEEP)
    np.testing.assert_array_equal(read_array(file(tmp_path / "one.npz")), DEEP)
    np.testing.assert_array_equal(read_array(file(tmp_path / "two.npz"), ["depth"]), DEEP)
    with pytest.raises(CorruptFileError, match=r"two\.npz holds the variables depth, other; expected only one"):
        read_array(file(tmp_path / "two.npz"))
    with pytest.raises(CorruptFileError, match=r"expected one called 'a' or 'b', or only one"):
        read_array(file(tmp_path / "two.npz"), ["a", "b"])


def test_a_matlab_file_is_its_only_array_or_the_one_that_is_asked_for(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"anything": DEEP})
    scipy.io.savemat(tmp_path / "b.mat", {"depth": DEEP, "other": 1}, format="4")
    np.testing.assert_array_equal(read_array(file(tmp_path / "a.mat")), DEEP)
    np.testing.assert_array_equal(read_array(file(tmp_path / "b.mat"), ["depth"]), DEEP)


def save_7_3(path, **variables):
    """Write what MATLAB does with -v7.3: HDF5 after a header of 512 bytes, columns first."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as stored:
        for name, value in variables.items():
            if isinstance(value, dict):
                stored.create_group(name)
            else:
                stored[name] = np.ascontiguousarray(value.T)
    content = path.read_bytes()
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" ") + content[512:])
    return path


def test_matlab_7_3_is_read_as_it_was_in_matlab(tmp_path):
    path = save_7_3(tmp_path / "x.MAT", depth=DEEP)
    np.testing.assert_array_equal(read_mat(file(path))["depth"], DEEP)
    np.testing.assert_array_equal(read_array(file(path)), DEEP)
    volume = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_array(file(save_7_3(tmp_path / "y.mat", volume=volume))), volume)


def test_what_of_matlab_7_3_cannot_be_read_is_said(tmp_path, monkeypatch):
    path = save_7_3(tmp_path / "x.mat", depth=DEEP, anno={})
    with pytest.raises(CorruptFileError, match=r"x\.mat is a MATLAB 7\.3 file whose 'anno' is not an array of .*-v7"):
        read_mat(file(path))
    content = path.read_bytes()
    with pytest.raises(CorruptFileError, match=r"x\.mat \(\d+ bytes\) is truncated or not a MATLAB 7\.3 file"):
        read_mat(File("x.mat", content[: len(content) // 2]))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r'h5py.*pip install "taskformer\[prepare\]"'):
        read_mat(file(path))


@pytest.mark.parametrize("suffix", [".npy", ".NPY", ".npz", ".mat", ".MAT", ".dat"])
def test_arrays_are_known_by_what_is_in_them(tmp_path, suffix):
    stream = io.BytesIO()
    {"y": np.save, "t": np.save, "z": np.savez}.get(suffix[-1].lower(), np.save)(stream, DEEP)
    found = File(f"x{suffix}", stream.getvalue())
    if suffix.lower() != ".mat":
        assert holds_array(found)
        np.testing.assert_array_equal(read_array(found), DEEP)
    else:
        with pytest.raises(CorruptFileError, match=r"is a numpy array \(\.npy\); expected a MATLAB file"):
            read_array(found)
    write_png(tmp_path / "x.png", GRAY)
    assert not holds_array(File(f"x{suffix}", (tmp_path / "x.png").read_bytes()))
    assert not holds_array(File("x.png", b"broken"))


@pytest.mark.parametrize("dtype", [">f4", ">u2", ">i8", "<f8"])
def test_arrays_of_another_order_of_bytes_reach_torch(tmp_path, dtype):
    np.save(tmp_path / "x.npy", GRAY.astype(dtype))
    torch.from_numpy(read_array(file(tmp_path / "x.npy")))
    np.testing.assert_array_equal(read_npy(file(tmp_path / "x.npy")), GRAY)


@pytest.mark.parametrize("save", [np.save, np.savez, lambda path, array: scipy.io.savemat(path, {"x": array})])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_arrays_are_found(save, share):
    stream = io.BytesIO()
    save(stream, DEEP)
    content = stream.getvalue()
    with pytest.raises(
        CorruptFileError, match=r"x \(\d+ bytes\) is truncated or not a (numpy array|zip archive|MATLAB)"
    ):
        read_array(File("x", content[: int(len(content) * share)]))


@pytest.mark.parametrize(("read", "expected"), [(read_npy, "numpy array"), (read_mat, "MATLAB"), (read_json, "JSON")])
def test_a_picture_in_the_place_of_something_else_is_called_a_picture(tmp_path, read, expected):
    write_png(tmp_path / "x.png", GRAY)
    with pytest.raises(CorruptFileError, match=rf"x\.png is a PNG picture; expected a {expected}"):
        read(file(tmp_path / "x.png"))


def test_json_may_begin_with_a_byte_order_mark():
    assert read_json(File("x", b'\xef\xbb\xbf["a"]')) == ["a"]


@pytest.mark.parametrize(("suffix", "palette"), [("png", None), ("png", RGB[0]), ("jpg", None)])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_truncated_images_are_found(tmp_path, suffix, palette, share):
    path = tmp_path / f"x.{suffix}"
    big = RNG.integers(0, 9, (64, 64), dtype=np.uint8)
    write_png(path, big, palette) if suffix == "png" else write_jpg(path, np.repeat(big[..., None], 3, axis=2))
    whole = path.read_bytes()
    with pytest.raises(CorruptFileError, match=r"x\.\w+ \(\d+ bytes\) is truncated"):
        read_plane(File(str(path), whole[: int(len(whole) * share)]))
