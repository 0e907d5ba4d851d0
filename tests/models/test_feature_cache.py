"""Maps on disk: those of exactly this image and encoder, whole files or none, never more than fit."""

import errno

import pytest
import torch

from taskformer.errors import ConfigError
from taskformer.files import UNFINISHED
from taskformer.models import feature_cache
from taskformer.models.feature_cache import FeatureCache


class Encoder:
    """Two maps of an image, and how many images were encoded."""

    def __init__(self, dtype=torch.float32):
        self.encoded = 0
        self.dtype = dtype

    def __call__(self, image):
        self.encoded += len(image)
        return [(image * 2).to(self.dtype), image[:, :1, ::2, ::2].to(self.dtype)]


def same(found, expected):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_there_is_not_encoded_again(tmp_path, dtype):
    images, encode = torch.rand(5, 3, 8, 10), Encoder(dtype)
    expected = encode(images)
    encode.encoded = 0
    assert same(FeatureCache(tmp_path, 1)(images[[3, 1]], "a", encode), [x[[3, 1]] for x in expected])
    assert same(FeatureCache(tmp_path, 1)(images, "a", encode), expected)
    assert encode.encoded == 5
    assert same(FeatureCache(tmp_path, 1)(images.flip(0), "a", encode), [x.flip(0) for x in expected])
    assert encode.encoded == 5
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5


def test_another_encoder_or_pixel_or_shape_is_another_entry(tmp_path):
    images, cache = torch.zeros(1, 3, 4, 6), FeatureCache(tmp_path, 1)
    changed = images.clone()
    changed[0, 2, 3, 5] = 1e-7
    calls = [(images, "a"), (images, "b"), (changed, "a"), (images.reshape(1, 3, 6, 4), "a"), (images.double(), "a")]
    for image, encoder in calls:
        encode = Encoder()
        cache(image, encoder, encode)
        assert encode.encoded == 1
    same_bytes = Encoder()
    cache(images.contiguous(memory_format=torch.channels_last), "a", same_bytes)
    assert same_bytes.encoded == 0


def test_it_never_grows_beyond_its_size(tmp_path, capsys):
    images, encode = torch.rand(40, 3, 16, 16), Encoder()
    one = 4 * (3 * 16 * 16 + 8 * 8)  # bytes of an image's maps
    cache = FeatureCache(tmp_path, 10.9 * one / 1e9)
    for image in images.split(4):
        assert same(cache(image, "a", encode), Encoder()(image))
    files = list(tmp_path.rglob("*.safetensors"))
    assert 9 <= len(files) <= 10
    assert sum(path.stat().st_size for path in files) <= cache.limit
    said = capsys.readouterr().err
    assert said.count("holds its") == said.count("\n") == 1
    encode.encoded = 0
    cache(images, "a", encode)  # what it has it keeps
    assert encode.encoded == 40 - len(files)


def test_others_fill_it_too(tmp_path, monkeypatch):
    """Two processes write by turns; each sees what the other has added."""
    monkeypatch.setattr(feature_cache, "RECOUNT", 0.1)
    images, encode = torch.rand(40, 3, 16, 16), Encoder()
    one = 4 * (3 * 16 * 16 + 8 * 8)
    caches = [FeatureCache(tmp_path, 20 * one / 1e9) for _ in range(2)]
    for number, image in enumerate(images.split(1)):
        caches[number % 2](image, "a", encode)
    assert 16 <= len(list(tmp_path.rglob("*.safetensors"))) <= 20 * (1 + 2 * 0.1)


def test_a_damaged_file_is_written_again_and_an_unfinished_one_ignored(tmp_path):
    image, encode, cache = torch.rand(1, 3, 8, 8), Encoder(), FeatureCache(tmp_path, 1)
    expected = cache(image, "a", encode)
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    path.with_name(f"{UNFINISHED}x{path.name}").write_bytes(content[:9])
    for broken in (b"", content[:5], content[:-1], b"x" * len(content)):
        path.write_bytes(broken)
        assert same(cache(image, "a", encode), expected)
        assert path.read_bytes() == content
    assert encode.encoded == 5


def test_a_full_disk_ends_the_adding_and_not_the_training(tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_cache, "replacing", full)
    cache, images = FeatureCache(tmp_path, 1), torch.rand(3, 3, 8, 8)
    assert same(cache(images, "a", Encoder()), Encoder()(images))
    said = capsys.readouterr().err
    assert "cannot be written to (No space left on device); further images are encoded every time" in said
    assert said.count("\n") == 1


def test_a_size_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="gigabytes must be in"):
        FeatureCache(tmp_path, 0)
