"""``taskformer explain`` from end to end, on a few rooms."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import taskformer
from taskformer.cli import main
from taskformer.errors import ConfigError, DatasetNotFoundError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Draw plots small, which takes a tenth of the time."""
    monkeypatch.setattr("taskformer.plots.DPI", 40)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    """A folder with ``runs/queries`` and ``runs/plain`` after two steps, the first one tested, and a photograph."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    flags = [*tiny, "--data.tasks=[semseg,depth]", f"--config={ROOT}/configs/data/rooms.yaml"]
    queries = ["--model.num_queries=3", "--model.scales=[8,16]", "--model.num_blocks=2", "--model.num_heads=1"]
    for name, model, options in (("queries", "mqtransformer", queries), ("plain", "baseline", [])):
        main(["fit", f"--config={ROOT}/configs/model/{model}.yaml", *flags, *options, f"--name={name}"])
    main(["test", "runs/queries", "--results.per_image=true", "--trainer.enable_progress_bar=false"])
    pixels = np.random.default_rng(0).integers(0, 256, (150, 201, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    yield folder
    os.chdir(before)


def test_everything_is_drawn_and_said(runs, capsys):
    main(["explain", "runs/queries", "photo.jpg", "--images=3", "--worst=2", "--json=out.json"])
    said = json.loads(Path("out.json").read_text())
    of_scales = [f"photo/{kind}_round{r}_stride{s}.png" for r in (1, 2) for s in (8, 16)
                 for kind in ("gathering", "queries", "reading")]  # fmt: skip
    expected = [
        *of_scales,
        "photo/affinity.png",
        "affinity.png",
        "conflicts.png",
        "worst_semseg.png",
        "worst_depth.png",
    ]
    assert said["files"] == [f"runs/queries/insight/{name}" for name in expected]
    for name in said["files"]:
        with Image.open(name) as picture:
            assert picture.width >= 100
    assert said["notes"] == []
    assert (said["affinity"]["images"], said["photographs"]["photo"]["images"]) == (3, 1)
    np.testing.assert_allclose(np.sum(said["affinity"]["mean"], axis=1), 1, rtol=1e-5)
    assert said["conflicts"]["tasks"] == ["semseg", "depth"]
    assert said["conflicts"]["batches"] == 1  # of 4 images at most, as in the training
    assert capsys.readouterr().out.count("queries of") == 1


def test_the_worst_images_are_those_with_the_worst_scores(runs):
    found = taskformer.explain("runs/queries", out="elsewhere", images=0, worst=2)
    scores = [line.split(",") for line in Path("runs/queries/per_image.csv").read_text().splitlines()]
    for task, metric, worst_first in (("semseg", "mIoU", 1), ("depth", "rmse", -1)):
        own = [(float(value), name) for name, of, which, value in scores if (of, which) == (task, metric)]
        expected = sorted(own, key=lambda pair: worst_first * pair[0])[:2]
        assert [(image.score, image.name) for image in found.worst[task]] == expected
    # Three columns of 200 pixels: the image and two tasks; two rows of targets, two of predictions.
    with Image.open("elsewhere/worst_depth.png") as picture:
        assert picture.width == 3 * 200 + 2 * 2
        assert picture.height > 4 * 160


def test_what_a_model_does_not_have_is_said_and_the_rest_is_drawn(runs, capsys):
    main(["explain", "runs/plain", "photo.jpg", "--images=2", "--worst=0"])
    streams = capsys.readouterr()
    assert streams.err.count("only an MQTransformer, or a supernet with the query head, has queries") == 1
    assert "wrote 1 pictures" in streams.out
    assert Path("runs/plain/insight/conflicts.png").is_file()


def test_a_damaged_photograph_is_left_out(runs, monkeypatch):
    monkeypatch.setattr("taskformer.insight.explain.draw_maps", lambda path, *_: None)
    Path("several").mkdir()
    shutil.copy("photo.jpg", "several/whole.jpg")
    Path("several/broken.jpg").write_bytes(Path("photo.jpg").read_bytes()[:300])
    found = taskformer.explain("runs/queries", "several", out="whole", images=0, worst=0)
    assert list(found.photographs) == ["whole"]
    (note,) = found.notes
    assert "broken.jpg" in note


def test_photographs_alone_need_no_data(runs, monkeypatch):
    monkeypatch.setattr("taskformer.insight.explain.draw_maps", lambda path, *_: path.touch())
    shutil.copytree("runs/queries", "moved", ignore=shutil.ignore_patterns("insight", "per_image.csv"))
    config = Path("moved/config.yaml")
    lines = config.read_text().splitlines()
    config.write_text("\n".join("    root: nowhere" if line.startswith("    root:") else line for line in lines))
    Path("moved/insight/photo").mkdir(parents=True)
    found = taskformer.explain("moved/checkpoints/best.ckpt", "photo.jpg")
    assert {path.parent for path in found.files} == {Path("moved/insight/photo").absolute()}
    assert any("nowhere" in note for note in found.notes)
    with pytest.raises(ConfigError, match="nowhere"):
        taskformer.explain("moved")
    with pytest.raises(DatasetNotFoundError, match=r"no image at 'absent\.jpg'"):
        taskformer.explain("moved", ["absent.jpg"])


def test_a_subnetwork_of_a_supernet_is_explained(runs, tiny):
    space = {"preset": "custom", "embed_dims": [16, 32], "depths": [1, 2], "mlp_ratios": [2.0], "num_heads": [1, 2],
             "head_dim": 16}  # fmt: skip
    flags = [flag for flag in tiny if not flag.startswith("--model")]
    flags += [f"--model.space.{name}={value}" for name, value in space.items()]
    flags += ["--model.head.kind=query", "--model.image_size=[128,160]", "--data.tasks=[semseg,depth]"]
    main(["fit", "--model=AutoTaskFormer", "--data=RoomsDataModule", *flags, "--name=supernet"])
    architecture = {"embed_dim": 16, "depth": 1, "mlp_ratio": [2.0], "num_heads": [1], "sharing": [[0, 0], [0, 1]]}
    Path("half.json").write_text(json.dumps(architecture))
    found = taskformer.explain("runs/supernet", "photo.jpg", images=2, worst=0, architecture="half.json")
    names = ["photo/gathering.png", "photo/queries.png", "photo/reading.png", "photo/affinity.png", "architecture.png",
             "sharing.png", "affinity.png", "conflicts.png"]  # fmt: skip
    assert [str(path) for path in found.files] == [f"runs/supernet/insight/{name}" for name in names]
    assert all(path.is_file() for path in found.files)
    assert found.conflicts is not None
    assert "units.0.0" in found.conflicts.layers
    with pytest.raises(ConfigError, match="only a supernet has sub-networks"):
        taskformer.explain("runs/plain", architecture="half.json")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--images=-1"], "images"),
        (["--split=all"], "split"),
        (["--worst=0", "--images=0"], "has nothing to show"),
    ],
)
def test_mistakes_are_one_sentence(runs, words, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["explain", "runs/plain", *words])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
