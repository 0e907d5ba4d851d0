"""What docs/data.md says is true: its configurations load, its code runs, its commands work."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import taskformer
from taskformer.cli import main
from taskformer.data.images import write_jpg, write_npy, write_png
from taskformer.datatools.miniature import writer
from taskformer.datatools.prepare import PREPARED
from taskformer.datatools.verify import verify

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "data.md").read_text()
H, W = 32, 40
TINY = ["--model.embed_dim=16", "--model.head_dim=8", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=2"]


def blocks(language=""):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with the data that the guide speaks of, in miniature."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "data").mkdir()
    (folder / "data" / "rooms").symlink_to(ROOT / "data" / "rooms")
    for name in ("nyud", "cityscapes"):
        writer(name)(folder / "data" / name, counts={"train": 8, "val": 2})
    rng = np.random.default_rng(0)
    for index in range(40):
        yard = folder / "data" / "yard"
        write_jpg(yard / "photos" / f"berlin/{index}.jpg", rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
        write_png(yard / "classes" / f"berlin/{index}.png", rng.integers(0, 5, (H, W), dtype=np.uint8))
        write_png(yard / "depth" / f"berlin/{index}.png", np.full((H, W), 2000, np.uint16))
        write_npy(yard / "normals" / f"berlin/{index}.npy", np.broadcast_to([0.0, 0.6, 0.8], (H, W, 3)))
        write_png(yard / "thermal" / f"berlin/{index}.png", np.full((H, W), 6500, np.uint16))
    (folder / "yard.yaml").write_text(next(text for text in blocks("yaml") if "yard" in text))
    (folder / "both.yaml").write_text(next(text for text in blocks("yaml") if "CombinedDataModule" in text))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def test_the_yard_loads(here):
    _, data = taskformer.from_config("configs/model/baseline.yaml", "yard.yaml")
    data.setup("fit")
    sample = data.datasets["val"][0]
    assert sample["meta"]["id"].startswith("berlin/")
    targets = {name: target.numpy() for name, target in sample["targets"].items()}
    assert set(np.unique(targets["semseg"])) == {0, 1, 2, 255}
    np.testing.assert_allclose(targets["depth"], 2.0)
    np.testing.assert_allclose(targets["normals"][:, 0, 0], [0.0, -0.6, -0.8], atol=1e-6)
    np.testing.assert_allclose(targets["heat"], 25.0)
    assert verify(data, workers=1).ok


def test_the_mixture_loads(here):
    model, data = taskformer.from_config("configs/model/baseline.yaml", "both.yaml")
    assert list(model.tasks) == list(data.task_specs)
    assert list(data.task_specs) == ["semseg", "depth", "street_semseg"]
    data.setup("fit")
    assert len(data.datasets["train"]) == 4 * 440 + 8


def test_the_data_set_in_code_works(here):
    names = {}
    exec(compile("\n".join(blocks("python")), "docs/data.md", "exec"), names)
    for split, stem in [("train", "a"), ("train", "b"), ("val", "c"), ("test", "d")]:
        write_jpg(here / "data" / "garden" / split / f"{stem}.jpg", np.zeros((H, W, 3), np.uint8))
        if stem != "b":
            write_npy(here / "data" / "garden" / split / f"{stem}.npy", np.full((H, W), 250))
    data = names["GardenDataModule"]("data/garden", batch_size=2)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    depths = dict(zip(batch["meta"]["id"], batch["targets"]["depth"], strict=True))
    assert (depths["a"] == 2.5).all()
    assert depths["b"].isnan().all()
    assert verify(data, workers=1).ok
    forest = names["ForestDataModule"]("data/garden", size=(8, 10), farthest=30.0)
    assert forest.task_specs == {"depth": {"max_depth": 30.0}}
    assert forest.evaluation_dataset("train")[0]["image"].shape == (3, 8, 10)


@pytest.mark.parametrize("line", [line for block in blocks() for line in block.splitlines()])
def test_its_commands_run(here, line, capsys):
    program, *arguments = shlex.split(line)
    assert program == "taskformer"
    if arguments[0] == "fit":
        main([*arguments, *TINY, "--data.num_workers=0", "--data.batch_size=2"])
    elif arguments[:2] == ["data", "prepare"]:
        assert arguments[2] in PREPARED
        with pytest.raises(SystemExit) as end:
            main([*arguments[:3], "--help"])
        assert end.value.code == 0
        assert all(flag in capsys.readouterr().out for flag in arguments if flag.startswith("--"))
    else:
        main(arguments)
        assert capsys.readouterr().out
    for flag, file in pairwise(arguments):
        assert flag != "--out" or "prepare" in arguments or Path(file).exists()
