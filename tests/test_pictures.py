"""One reader: pictures that Pillow, OpenCV or a hand have written give what they show, or what they store."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from taskformer.errors import CorruptFileError, DatasetNotFoundError, InvalidImageError
from taskformer.pictures import (
    File,
    as_rgb,
    orientation,
    read_ids,
    read_picture,
    read_pixels,
    read_plane,
    read_rgb,
    turned,
    what_it_is,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
IDS = RNG.integers(0, 5, (6, 8), dtype=np.uint8)
#: Far from grey, so that an index taken for a level, or the other way round, shows.
PALETTE = np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200], [90, 90, 10], [255, 255, 255]], np.uint8)


def pillow(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return File(f"x.{kind}", stream.getvalue())


def opencv(pixels, ending):
    bgr = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    return File(f"x{ending}", cv2.imencode(ending, bgr)[1].tobytes())


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, bits, color, row, *extra):
    """One row of a PNG by hand: bits of a value, colour type, and its bytes."""
    header = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
    body = b"".join([chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")])
    return File("x.png", b"\x89PNG\r\n\x1a\n" + body)


def tiff(width, bits, row):
    """One row of a grey TIFF by hand."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, 1), (273, 110), (278, 1), (279, len(row))]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return File("x.tif", b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + b"\0\0\0\0" + row)


def encodings():
    """The same colours in every encoding that loses nothing."""
    picture = Image.fromarray(RGB)
    palette = picture.quantize(RGB.shape[0] * RGB.shape[1])
    assert np.array_equal(palette.convert("RGB"), RGB)
    for kind in ("PNG", "BMP", "TIFF", "PPM", "TGA", "JPEG2000"):
        yield kind, pillow(picture, kind)
    yield "WebP", pillow(picture, "WEBP", lossless=True)
    yield "TIFF compressed", pillow(picture, "TIFF", compression="tiff_lzw")
    yield "CMYK TIFF", pillow(picture.convert("CMYK"), "TIFF")
    yield "opaque PNG", pillow(picture.convert("RGBA"), "PNG")
    yield "BMP of 32 bits", pillow(picture.convert("RGBA"), "BMP")
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        yield f"palette {kind}", pillow(palette, kind)
    deep = RGB.astype(np.uint16) * 257
    for ending in (".png", ".tiff", ".ppm"):
        yield f"16 bits {ending}", opencv(deep, ending)
    yield "float TIFF", opencv(RGB.astype(np.float32) / 255, ".tiff")
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        yield (
            f"animated {kind}",
            pillow(picture, kind, save_all=True, append_images=[ImageOps.invert(picture)], **options),
        )


@pytest.mark.parametrize(("name", "file"), list(encodings()), ids=lambda value: value if type(value) is str else "")
def test_one_picture_in_any_encoding_is_one_array(name, file):
    read = read_rgb(file)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, RGB, err_msg=name)


def test_greys_are_colours_of_three_equal_channels():
    expected = np.repeat(GRAY[..., None], 3, axis=2)
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(read_rgb(pillow(Image.fromarray(GRAY), kind)), expected)
    np.testing.assert_array_equal(read_rgb(opencv(GRAY.astype(np.uint16) * 257, ".png")), expected)
    np.testing.assert_array_equal(read_rgb(opencv(GRAY.astype(np.float32) / 255, ".tiff")), expected)


def test_few_bits_span_black_to_white():
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        read = read_rgb(pillow(Image.fromarray(GRAY > 127), kind))
        np.testing.assert_array_equal(read[..., 0], np.where(GRAY > 127, 255, 0), err_msg=kind)
    assert read_rgb(png(4, 2, 0, b"\x1b"))[0, :, 0].tolist() == [0, 85, 170, 255]
    assert read_rgb(tiff(4, 4, b"\x0f\x1e"))[0, :, 0].tolist() == [0, 255, 17, 238]
    assert read_rgb(File("x.pgm", b"P5\n3 1\n20\n\x00\x0a\x14"))[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_photographs_are_what_pillow_makes_of_them():
    wide = Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8)))
    file = pillow(wide.convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(file.content)).convert("RGB"))
    np.testing.assert_array_equal(read_rgb(file), expected)


def test_transparency_is_laid_over_white():
    alpha = np.full((6, 8), 51, np.uint8)  # a fifth
    alpha[0], alpha[1] = 0, 255
    expected = np.round(RGB * (alpha[..., None] / 255) + 255 - alpha[..., None].astype(float))
    rgba = np.dstack([RGB, alpha])
    for file in (
        pillow(Image.fromarray(rgba), "PNG"),
        pillow(Image.fromarray(rgba), "TIFF"),
        pillow(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
        opencv(rgba.astype(np.uint16) * 257, ".png"),
    ):
        np.testing.assert_allclose(read_rgb(file), expected, atol=1)
    grey = np.round(GRAY * (alpha / 255) + 255.0 - alpha)
    np.testing.assert_allclose(read_rgb(pillow(Image.fromarray(np.dstack([GRAY, alpha])), "PNG"))[..., 1], grey, atol=1)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_white(kind):
    image = Image.fromarray(IDS)
    image.putpalette(PALETTE.tobytes())
    file = pillow(image, kind, transparency=2)
    expected = PALETTE[IDS]
    expected[IDS == 2] = 255
    np.testing.assert_array_equal(read_rgb(file), expected)
    np.testing.assert_array_equal(read_ids(file), IDS)


def test_floats_that_are_no_levels_are_refused():
    for wrong in (GRAY.astype(np.float32), np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(CorruptFileError, match=r"x\.tiff is not a photograph: floats must be within \[0, 1\]"):
            read_rgb(opencv(wrong, ".tiff"))
    with pytest.raises(CorruptFileError, match=r"not a photograph: .*got int32"):
        read_rgb(pillow(Image.fromarray(GRAY.astype(np.int32)), "TIFF"))


# Maps


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_indices_of_palettes_are_class_ids(kind):
    image = Image.fromarray(IDS)
    image.putpalette(PALETTE.tobytes())
    np.testing.assert_array_equal(read_ids(pillow(image, kind)), IDS)
    np.testing.assert_array_equal(read_pixels(pillow(image, kind)), PALETTE[IDS])


def test_class_ids_of_few_bits_are_what_is_stored():
    assert read_ids(png(8, 1, 0, b"\xa5"))[0].tolist() == [1, 0, 1, 0, 0, 1, 0, 1]
    assert read_ids(png(4, 2, 0, b"\x1b"))[0].tolist() == [0, 1, 2, 3]
    assert read_ids(png(4, 4, 0, b"\x0f\x1e"))[0].tolist() == [0, 15, 1, 14]
    assert read_ids(tiff(4, 2, b"\x1b"))[0].tolist() == [0, 1, 2, 3]
    assert read_ids(tiff(4, 4, b"\x0f\x1e"))[0].tolist() == [0, 15, 1, 14]
    assert read_ids(File("x.pgm", b"P5\n3 1\n20\n\x00\x0a\x14"))[0].tolist() == [0, 10, 20]
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(read_ids(pillow(Image.fromarray(GRAY > 127), kind)), GRAY > 127, err_msg=kind)


def test_class_ids_of_8_and_16_bits_may_have_an_alpha_channel():
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(read_ids(pillow(Image.fromarray(GRAY), kind)), GRAY)
    np.testing.assert_array_equal(read_ids(pillow(Image.fromarray(np.dstack([GRAY, GRAY])), "PNG")), GRAY)
    deep = RNG.integers(0, 65536, (6, 8), dtype=np.uint16)
    for ending in (".png", ".tiff"):
        np.testing.assert_array_equal(read_ids(opencv(deep, ending)), deep)


def test_levels_of_few_bits_and_of_grey_palettes_are_levels():
    assert read_plane(png(8, 1, 0, b"\xa5"))[0].tolist() == [255, 0, 255, 0, 0, 255, 0, 255]
    image = Image.fromarray(IDS % 2)
    image.putpalette([0, 0, 0, 255, 255, 255])
    np.testing.assert_array_equal(read_plane(pillow(image, "PNG")), IDS % 2 * 255)
    image.putpalette([0, 0, 0, 255, 0, 0])
    with pytest.raises(CorruptFileError, match="3 different channels"):
        read_plane(pillow(image, "PNG"))


def test_floats_and_signed_numbers_of_tiffs_are_kept():
    metres = GRAY.astype(np.float32) / 7 - 3
    np.testing.assert_array_equal(read_plane(opencv(metres, ".tiff")), metres)
    np.testing.assert_array_equal(read_plane(pillow(Image.fromarray(metres), "TIFF")), metres)
    numbers = GRAY.astype(np.int32) - 100
    np.testing.assert_array_equal(read_plane(pillow(Image.fromarray(numbers), "TIFF")), numbers)


# Orientation


def tagged(tag, kind="JPEG"):
    tags = Image.Exif()
    tags[0x0112] = tag
    big = Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8)))
    return pillow(big, kind, exif=tags), big


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_photographs_stand_upright_as_pillow_turns_them(tag, kind, tmp_path):
    file, stored = tagged(tag, kind)
    assert orientation(file) == tag
    with Image.open(io.BytesIO(tagged(tag, "PNG")[0].content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    if kind == "JPEG":  # which loses a little
        with Image.open(io.BytesIO(file.content)) as image:
            expected, stored = np.asarray(ImageOps.exif_transpose(image)), np.asarray(image)
    np.testing.assert_allclose(read_rgb(file, upright=True).astype(int), expected, atol=1)
    np.testing.assert_allclose(read_rgb(file).astype(int), stored, atol=1)
    (tmp_path / "x").write_bytes(file.content)
    np.testing.assert_allclose(read_picture(tmp_path / "x").astype(int), expected, atol=1)


def test_pictures_without_a_sensible_tag_are_upright():
    assert orientation(pillow(Image.fromarray(RGB), "PNG")) == 1
    assert orientation(tagged(9)[0]) == 1
    assert orientation(File("x", b"no picture")) == 1


@pytest.mark.parametrize("tag", range(1, 9))
def test_vectors_turn_with_their_image(tag):
    # A vector that points from a pixel to the brighter one still does after turning.
    picture = np.zeros((5, 7), np.uint8)
    picture[1, 2], picture[1, 3] = 1, 2  # the brighter one is to the right
    vectors = np.broadcast_to(np.array([0.6, 0.0, -0.8], np.float32), (5, 7, 3))
    upright = turned(picture, tag)
    (row,), (column,) = np.nonzero(upright == 1)
    (to_row,), (to_column,) = np.nonzero(upright == 2)
    x, y, z = turned(vectors, tag, vectors=True)[row, column]
    assert (x, y, z) == pytest.approx((0.6 * (to_column - column), 0.6 * (to_row - row), -0.8))


# What a user may give


def forms(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path)
    unit = RGB / 255
    channels_first = torch.from_numpy(RGB).permute(2, 0, 1)
    yield from (path, str(path), Image.fromarray(RGB), RGB, RGB.astype(np.uint16) * 257)
    yield from (unit, unit.astype(np.float32), unit.astype(np.float32) + np.float32(1e-7))
    yield from (channels_first, channels_first.float() / 255, (channels_first / 255).double().requires_grad_())
    opaque = np.dstack([RGB, np.full(GRAY.shape, 255, np.uint8)])
    yield from (opaque, opaque / 255, Image.fromarray(opaque), torch.from_numpy(opaque).movedim(-1, 0))
    yield from (RGB[::-1][::-1], np.asfortranarray(RGB), Image.fromarray(RGB).quantize(48))


def test_one_photograph_in_any_form_is_one_array(tmp_path):
    for form in forms(tmp_path):
        np.testing.assert_array_equal(as_rgb(form), RGB, err_msg=str(type(form)))


def test_one_grey_photograph_in_any_form_is_one_array():
    expected = np.repeat(GRAY[..., None], 3, axis=2)
    for form in (GRAY, GRAY[..., None], GRAY / 255, Image.fromarray(GRAY), torch.from_numpy(GRAY)[None] / 255):
        np.testing.assert_array_equal(as_rgb(form), expected)
    for mode in ("I;16", "I;16B"):
        deep = Image.frombytes(mode, (8, 6), (GRAY.astype("<u2" if mode == "I;16" else ">u2") * 257).tobytes())
        np.testing.assert_array_equal(as_rgb(deep), expected)
    np.testing.assert_array_equal(as_rgb(GRAY > 127), np.where(expected > 127, 255, 0))


def test_images_of_pillow_are_turned_upright():
    expected = np.rot90(np.asarray(tagged(6)[1]), -1)
    for kind in ("PNG", "TIFF"):
        with Image.open(io.BytesIO(tagged(6, kind)[0].content)) as image:
            np.testing.assert_array_equal(as_rgb(image), expected)
            np.testing.assert_array_equal(as_rgb(image), expected)  # also when it is loaded


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RGB.transpose(2, 0, 1), r"RGB \(H, W, 3\).*got \(3, 6, 8\)"),
        (torch.from_numpy(RGB), r"a tensor of one photograph is \(3, H, W\).*got \(6, 8, 3\)"),
        (torch.zeros(1, 3, 6, 8), r"got \(1, 3, 6, 8\)"),
        (RGB[None], r"got \(1, 6, 8, 3\)"),
        (RGB.astype(np.float32), r"within \[0, 1\].*got 0 to 2\d\d"),
        ((RGB / 255 - 0.45) / 0.22, r"not normalised; got -"),
        (np.full((2, 2, 3), np.nan), r"got nan"),
        (RGB.astype(np.int64), "got int64"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (b"bytes", "a photograph is a path, .*got bytes"),
        ([[1, 2], [3, 4]], "got list"),
        (None, "got NoneType"),
    ],
)
def test_all_else_is_refused_with_a_sentence(wrong, message):
    with pytest.raises(InvalidImageError, match=message):
        as_rgb(wrong)


def test_a_path_without_a_photograph_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"nowhere\.jpg cannot be read"):
        as_rgb(tmp_path / "nowhere.jpg")
    with pytest.raises(DatasetNotFoundError, match="cannot be read"):
        as_rgb(tmp_path)
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(CorruptFileError, match=r"x\.jpg \(10 bytes\) is truncated or not a picture"):
        as_rgb(tmp_path / "x.jpg")


# Broken files and other kinds


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "TGA", "JPEG2000"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_truncated_pictures_of_any_kind_are_found(kind, share):
    noisy = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = pillow(Image.fromarray(noisy), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CorruptFileError, match=r"truncated or not a picture"):
            read_rgb(File(file.path, file.content[: int(len(file.content) * share)]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "x is empty; expected a picture"),
        (b"\x93NUMPY\x01\x00", r"x is a numpy array \(\.npy\); expected a picture"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n <html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0", r"HEIF \(\.heic\), which cannot be read \(convert it to JPEG\)"),
        (b"v/1\x01\x02\0\0\0", "OpenEXR"),
        (b"\x80\x04\x95", "a Python pickle"),
        (b"%PDF-1.7", "a PDF document"),
        (b"MATLAB 5.0 MAT-file", "a MATLAB file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n", r"a MATLAB 7\.3 file"),
    ],
)
def test_files_of_other_kinds_are_called_by_their_names(content, reason):
    for read in (read_rgb, read_pixels, read_plane, read_ids):
        with pytest.raises(CorruptFileError, match=reason) as error:
            read(File("x", content))
        assert "truncated" not in str(error.value)


def test_pictures_are_recognised():
    for kind in ("PNG", "JPEG", "GIF", "TIFF"):
        assert kind in what_it_is(pillow(Image.fromarray(GRAY), kind).content)
    assert what_it_is(b"anything") is None


def test_a_picture_larger_than_any_photograph_is_refused_before_it_fills_the_memory():
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(CorruptFileError, match=r"x\.png has more pixels than can be read"):
        read_rgb(File("x.png", bomb))
