"""``taskformer import mqtransformer``: a whole checkpoint of the released program gives its outputs here."""

import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import taskformer
from taskformer.cli import main
from taskformer.models import Backbone

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "models")]
import released_head as plain  # noqa: E402  # found by the line above
from plain_encoders import PlainSwin  # noqa: E402  # as well

#: Another order than the data set's.
TASKS = {"depth": 1, "edge": 1, "semseg": 40, "normals": 3}


def checkpoint(path, encoder, head, **others):
    """Write what the original program writes, under its names."""
    state = {f"backbone.{name}": x for name, x in encoder.state_dict().items()}
    state |= {f"head.{name}": x for name, x in head.state_dict().items()}
    torch.save({"epoch": 403, "global_step": 40_000, "state_dict": state} | others, path)
    return path


def head_of(tasks, encoder):
    head = plain.ReleasedHead(tasks, plain.CHANNELS[encoder]).eval()
    plain.randomise(head)
    return head


def assert_equal(outputs, expected):
    for task, values in expected.items():
        assert (outputs[task] - values).abs().max() < 1e-4 * values.abs().max(), task


@pytest.fixture(scope="module")
def hrnet():
    """An HRNet18 as the original has it: timm's, but for the upsampling, which has a test of its own."""
    torch.manual_seed(0)
    encoder = Backbone("hrnet_w18_small_v2", form="segmentation").eval()
    with torch.no_grad():
        for name, values in encoder.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(std=0.1)
    return encoder.encoder, head_of(TASKS, "hrnet_w18"), encoder


@pytest.fixture(scope="module")
def imported(hrnet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    theirs = checkpoint(folder / "theirs.ckpt", *hrnet[:2])
    main(["import", "mqtransformer", str(theirs), f"--out={folder / 'ours.ckpt'}"])
    return folder / "ours.ckpt"


def test_hrnet_on_nyud_gives_the_same_maps(hrnet, imported):
    model = taskformer.load(imported)
    assert list(model.tasks) == ["semseg", "depth", "normals", "edges"]
    assert model.tasks["semseg"].classes[0] == "wall"
    assert model.train_size.tolist() == [425, 560]
    assert model.hparams["weights"] == "imagenet1k"
    _, head, backbone = hrnet
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        outputs = model.network(image)
        for i in range(2):
            maps = head(backbone(image[i : i + 1]), size=(64, 96))
            maps["edges"] = maps.pop("edge")
            assert_equal({task: x[i : i + 1] for task, x in outputs.items()}, maps)


def test_swin_on_pascal_gives_the_same_maps_with_normals_in_our_axes(tmp_path, capsys):
    torch.manual_seed(0)
    encoder = PlainSwin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7).eval()
    head = head_of(plain.TASKS["pascal"], "swin_t")
    theirs = checkpoint(tmp_path / "theirs.ckpt", encoder, head)
    main(["import", "mqtransformer", str(theirs), f"--out={tmp_path / 'ours.ckpt'}"])
    assert "swin_tiny_patch4_window7_224, semseg, human_parts, saliency, normals, edges" in capsys.readouterr().out
    model = taskformer.load(tmp_path / "ours.ckpt")
    assert model.train_size.tolist() == [512, 512]
    assert model.hparams["weights"] == "ade20k"
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs = model.network(image)
        maps = head(encoder(image), size=(64, 96))
    probability = maps["sal"].softmax(1)[:, 1] * 255
    assert np.abs(model.tasks["saliency"].store(outputs["saliency"][0]) - probability[0].numpy()).max() <= 1
    # The files that the original has learnt from have all three axes the other way round.
    assert_equal(
        outputs, {"edges": maps.pop("edge"), "saliency": maps.pop("sal"), "normals": -maps.pop("normals"), **maps}
    )


@pytest.fixture
def small(imported, tmp_path):
    """The same as if it had been trained on small images, to be quick."""
    saved = torch.load(imported, weights_only=True)
    saved["state_dict"]["train_size"] = torch.tensor([32, 64])
    torch.save(saved, tmp_path / "small.ckpt")
    return tmp_path / "small.ckpt"


def test_photographs_are_predicted(small, tmp_path):
    Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    main(["predict", str(small), str(tmp_path / "photo.png"), f"--out={tmp_path / 'out'}"])
    assert np.load(tmp_path / "out" / "raw" / "depth" / "photo.npy").shape[-2:] == (24, 32)


@pytest.mark.slow  # an HRNet has a thousand layers to trace
def test_it_is_exported(small, tmp_path):
    pytest.importorskip("onnxscript", reason="torch's exporter needs the extra 'export'")
    pytest.importorskip("onnxruntime", reason="running needs the extra 'export'")
    main(["export", str(small), f"--out={tmp_path / 'model.onnx'}"])  # compares the outputs
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.slow  # a run of the Trainer
def test_the_printed_command_tests_it(hrnet, tmp_path, capsys, monkeypatch):
    theirs = checkpoint(tmp_path / "theirs.ckpt", *hrnet[:2])
    main(["import", "mqtransformer", str(theirs), f"--out={tmp_path / 'ours.ckpt'}"])
    words = shlex.split(re.search(r"taskformer (test .*)", capsys.readouterr().out)[1])
    main(["data", "miniature", "nyud", f"--out={tmp_path / 'nyud'}"])
    monkeypatch.chdir(ROOT)
    here = [f"--data.root={tmp_path / 'nyud'}", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    main([*words, *here, f"--runs_dir={tmp_path}", "--name=run"])
    assert (tmp_path / "run" / "metrics.json").is_file()


def foreign(name):
    """Make an object of a class that is not there when the file is read."""
    module = types.ModuleType("other_program")
    made = type(name, (dict,), {"__module__": "other_program"})
    setattr(module, name, made)
    return module, made


def test_objects_of_the_other_program_are_not_needed(hrnet, tmp_path, monkeypatch):
    module, callback = foreign("ModelCheckpoint")
    monkeypatch.setitem(sys.modules, "other_program", module)
    others = {"callbacks": {callback: {"best": torch.ones(())}}, "hyper_parameters": callback(lr=0.01)}
    theirs = checkpoint(tmp_path / "theirs.ckpt", *hrnet[:2], **others)
    monkeypatch.delitem(sys.modules, "other_program")
    main(["import", "mqtransformer", str(theirs), f"--out={tmp_path / 'ours.ckpt'}"])
    assert (tmp_path / "ours.ckpt").is_file()


class Runs:
    """Code that a file would run when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def sorted_names(path, encoder, head):
    state = {f"backbone.{name}": x for name, x in encoder.state_dict().items()}
    state |= {f"head.{name}": x for name, x in head.state_dict().items()}
    torch.save(dict(sorted(state.items())), path)


def of_another_encoder(path, encoder, head):
    checkpoint(path, torch.nn.Conv2d(3, 4, 1), head)


def without_encoder(path, encoder, head):
    torch.save(head.state_dict(), path)


def without_tensors(path, encoder, head):
    torch.save({"epoch": 3}, path)


def with_code(path, encoder, head):
    checkpoint(path, encoder, head, extra=Runs(path.parent / "ran"))


@pytest.mark.parametrize(
    ("write", "flags", "message"),
    [
        (sorted_names, [], "give it as tasks, in the order in which the head was built"),
        (of_another_encoder, [], "is none of hrnet_w18_small_v2, hrnet_w48, swin_tiny_patch4_window7_224"),
        (checkpoint, ["--backbone=hrnet_w48"], "is none of hrnet_w48;"),
        (checkpoint, ["--backbone=hrnet_w4"], "unknown backbone 'hrnet_w4' (did you mean 'hrnet_w"),
        (checkpoint, ["--data=pascal_context"], "one must have these tasks and channels: depth (1), edges (1)"),
        (checkpoint, ["--data=nyu"], "unknown data set 'nyu' (did you mean 'nyud'?)"),
        (without_encoder, [], "holds a head, but no encoder"),
        (without_tensors, [], "holds no tensors by name"),
        (with_code, [], "never loaded because they can run code"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(hrnet, tmp_path, capsys, write, flags, message):
    write(tmp_path / "theirs.ckpt", *hrnet[:2])
    out = tmp_path / "ours.ckpt"
    with pytest.raises(SystemExit) as stopped:
        main(["import", "mqtransformer", str(tmp_path / "theirs.ckpt"), f"--out={out}", *flags])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_a_task_that_two_data_sets_have_needs_the_data_set(hrnet, tmp_path, capsys):
    theirs = checkpoint(tmp_path / "theirs.ckpt", hrnet[0], head_of({"normals": 3, "edge": 1}, "hrnet_w18"))
    with pytest.raises(SystemExit):
        main(["import", "mqtransformer", str(theirs), f"--out={tmp_path / 'ours.ckpt'}"])
    assert "got nyud and pascal_context; give as data the one" in capsys.readouterr().err
    main(["import", "mqtransformer", str(theirs), f"--out={tmp_path / 'ours.ckpt'}", "--data=pascal_context"])
    assert taskformer.load(tmp_path / "ours.ckpt").tasks["edges"].positive_weight == 0.95


def test_the_order_of_the_tasks_can_be_given(hrnet, imported, tmp_path):
    sorted_names(tmp_path / "theirs.ckpt", *hrnet[:2])
    tasks = f"--tasks=[{','.join(TASKS)}]"
    main(["import", "mqtransformer", str(tmp_path / "theirs.ckpt"), f"--out={tmp_path / 'ours.ckpt'}", tasks])
    expected, found = (taskformer.load(path).state_dict() for path in (imported, tmp_path / "ours.ckpt"))
    assert all(torch.equal(found[name], values) for name, values in expected.items())
