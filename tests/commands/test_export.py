"""``taskformer export``: files that other programs can run, and what is refused."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import taskformer
from taskformer.cli import main
from taskformer.models.autotaskformer import Architecture
from taskformer.modules import AutoTaskFormer, MQTransformer
from taskformer.modules.autotaskformer_args import Space

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
TASKS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}}
SPLIT = Architecture(16, 2, (2.0, 2.0), (2, 1), ((0, 0), (1, 2), (0, 0), (0, 0)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A supernet's checkpoint as `fit` writes it, trained on images of 24x40."""
    torch.manual_seed(0)
    model = AutoTaskFormer(
        TASKS, Space("custom", embed_dims=[8, 16], depths=[1, 2], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=8),
        image_size=(24, 40), patch_size=8,
    )  # fmt: skip
    model.train_size.copy_(torch.tensor([24, 40]))
    saved = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(saved)
    path = tmp_path_factory.mktemp("export") / "last.ckpt"
    torch.save(saved, path)
    return path


def test_a_sub_network_gives_its_outputs_for_any_batch_and_size(checkpoint, tmp_path):
    pytest.importorskip("onnxscript", reason="torch's exporter needs the extra 'export'")
    runtime = pytest.importorskip("onnxruntime", reason="running needs the extra 'export'")
    file, out = tmp_path / "arch.json", tmp_path / "out" / "sub.onnx"
    file.write_text(SPLIT.to_json())
    main(["export", str(checkpoint), f"--architecture={file}", f"--out={out}"])
    assert [path.name for path in out.parent.iterdir()] == ["sub.onnx"]
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    network = taskformer.load(checkpoint).network
    for batch, height, width in [(1, 24, 40), (3, 24, 40), (2, 35, 21)]:
        image = torch.randn(batch, 3, height, width)
        found = dict(zip(TASKS, session.run(list(TASKS), {"image": image.numpy()}), strict=True))
        with torch.no_grad():
            expected = network(image, SPLIT)
        for task, values in expected.items():
            np.testing.assert_allclose(found[task], values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--architecture={missing}"], "cannot read the architecture"),
        (["--architecture={large}"], "needs 32 embed_dim, the supernet holds 16"),
        (["--size=[0,40]"], "images' size is 0x40"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(checkpoint, tmp_path, capsys, arguments, message):
    pytest.importorskip("onnxruntime", reason="export needs the extra 'export'")
    large = tmp_path / "large.json"
    large.write_text(json.dumps(SPLIT.to_dict() | {"embed_dim": 32}))
    places = {"missing": tmp_path / "none.json", "large": large}
    out = tmp_path / "out" / "sub.onnx"
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(checkpoint), f"--out={out}", *(argument.format(**places) for argument in arguments)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_file_of_one_size_says_so_and_takes_any_batch(checkpoint, tmp_path, capsys):
    out = tmp_path / "sub.pt2"
    main(["export", str(checkpoint), "--format=torch", "--size=[40,30]", f"--out={out}"])
    assert "semseg, depth, images of 40x30; differs from the network by" in capsys.readouterr().out
    program, network = torch.export.load(out).module(), taskformer.load(checkpoint).network
    for batch in (1, 5):
        image = torch.randn(batch, 3, 40, 30)
        with torch.no_grad():
            torch.testing.assert_close(program(image), network(image), atol=1e-5, rtol=1e-4)
    with pytest.raises(RuntimeError, match=r"Expected input .* to be equal to"):
        program(torch.zeros(1, 3, 40, 31))


def test_the_guide_is_true(tmp_path, monkeypatch):
    """What docs/export.md says: its commands write files, and its code runs them on a photograph."""
    pytest.importorskip("onnxscript", reason="torch's exporter needs the extra 'export'")
    pytest.importorskip("onnxruntime", reason="running needs the extra 'export'")
    guide = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    blocks = dict.fromkeys(("", "python"), "")
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL):
        blocks[language] = blocks.get(language, "") + text
    model = MQTransformer(TASKS, embed_dim=16, num_queries=4, num_heads=2, head_dim=8, backbone="test_resnet").eval()
    model.train_size.copy_(torch.tensor([64, 96]))
    saved = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(saved)
    monkeypatch.chdir(tmp_path)
    Path("runs/demo/checkpoints").mkdir(parents=True)
    torch.save(saved, "runs/demo/checkpoints/best.ckpt")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    for line in blocks[""].splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "taskformer"
        main(arguments)
    names = {}
    exec(compile(blocks["python"], "docs/export.md", "exec"), names)
    image = torch.from_numpy(np.asarray(Image.open("photo.jpg")).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model.network((image - IMAGENET_MEAN) / IMAGENET_STD)
    for task, values in expected.items():
        assert values.shape[2:] == (70, 53)
        np.testing.assert_allclose(names["outputs"][task], values, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(names["outputs_in_torch"][task], values, atol=1e-4, rtol=1e-3)


def test_without_the_extra_the_package_to_install_is_named(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(SystemExit):
        main(["export", str(checkpoint)])
    assert "taskformer[export]" in capsys.readouterr().err
