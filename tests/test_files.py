"""Files are whole or absent, and a damaged checkpoint is noticed."""

import pickle
import random
import zipfile

import pytest
import torch
from torch import nn

from taskformer.errors import WeightsError
from taskformer.files import read_tensors

CONTENT = {"weights": torch.arange(1000.0), "facts": {"steps": [1, 2], "name": "x"}}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(CONTENT, path)
    return path


def test_a_whole_checkpoint_is_read(checkpoint):
    read = read_tensors(checkpoint)

    assert torch.equal(read["weights"], CONTENT["weights"])
    assert read["facts"] == CONTENT["facts"]


def test_a_flipped_bit_is_never_loaded_as_another_value(checkpoint):
    whole = checkpoint.read_bytes()
    refused = 0
    for seed in range(200):
        draw = random.Random(seed)
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        checkpoint.write_bytes(damaged)
        try:
            read = read_tensors(checkpoint)
        except WeightsError as error:
            assert "damaged" in str(error) or "never loaded" in str(error)  # noqa: PT017  # either, or whole
            refused += 1
        else:  # a bit of the padding, or of a name that nobody reads
            assert torch.equal(read["weights"], CONTENT["weights"])
            assert read["facts"] == CONTENT["facts"]
    assert refused > 100


def test_a_cut_checkpoint_is_refused(checkpoint):
    whole = checkpoint.read_bytes()
    for length in (1, 63, len(whole) // 2, len(whole) - 1):
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="damaged"):
            read_tensors(checkpoint)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "it is a web page"),
        (b"hello world, this is nothing", "torch cannot read it"),
        (pickle.dumps({"a": nn.Linear}, protocol=2), "never loaded because they can run code"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, reason):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match=reason):
        read_tensors(path)


def test_a_module_a_foreign_archive_and_no_file_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("a.txt", "x")

    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_tensors(tmp_path / "module.pth")
    with pytest.raises(WeightsError, match="torch cannot read it"):
        read_tensors(tmp_path / "foreign.zip")
    with pytest.raises(WeightsError, match="does not exist"):
        read_tensors(tmp_path / "none.ckpt")
    with pytest.raises(WeightsError, match="is a folder"):
        read_tensors(tmp_path)
