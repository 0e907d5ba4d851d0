"""Exported files give the network's outputs for every kind of model, any batch and any size of image."""

import numpy as np
import pytest
import torch
from torch import nn

from taskformer.errors import ConfigError
from taskformer.models import Backbone
from taskformer.models.decoders import DECODERS, TaskDecoder
from taskformer.models.traceable import traceable
from taskformer.modules import AutoTaskFormer, Baseline, MQTransformer, exporting
from taskformer.modules.autotaskformer_args import Head, Space
from taskformer.modules.exporting import export

TASKS = {
    "semseg": {"classes": ["a", "b", "c"]},
    "depth": {},
    "scene": {"type": "classification", "classes": ["x", "y"]},
}
MAPS = {name: TASKS[name] for name in ("semseg", "depth")}
TRAINED = (64, 96)
#: Batches and sizes: the trained one, odd ones, and one smaller than a step of the encoder.
SWIN = "swin_tiny_patch4_window7_224"
SHAPES = [(2, *TRAINED), (1, *TRAINED), (3, 75, 131), (1, 20, 30), (1, 128, 64)]
ENCODERS = ["tf_efficientnet_lite0", "resnet18", "hrnet_w18_small", "convnext_atto", SWIN]
ENCODERS += ["vit_tiny_patch16_224"]


def mqtransformer(**options):
    small = {"embed_dim": 16, "num_queries": 4, "num_heads": 2, "head_dim": 8, "backbone": "test_resnet"}
    return MQTransformer(TASKS, **(small | options))


def baseline(decoder="plain", backbone="test_resnet"):
    width = {} if decoder == "linear" else {"embed_dim": 16}
    return Baseline(TASKS, decoder=decoder, backbone=backbone, **width)


def supernet(head):
    space = Space("custom", embed_dims=[8, 16], depths=[3, 4], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=8)
    width = None if head == "linear" else 16
    return AutoTaskFormer(TASKS, space, Head(head, width=width), image_size=TRAINED, patch_size=8)


MODELS = {
    "fused": mqtransformer,
    "coarse": lambda: mqtransformer(token_stride=8),
    "scales": lambda: mqtransformer(scales=[8, 32]),
    "released": lambda: mqtransformer(wiring="released", scales=[8, 32]),
    "joint": lambda: mqtransformer(scales=[8, 32], cross_attention="joint", num_blocks=2, merge="concat"),
    "apart": lambda: mqtransformer(scales=[8, 32], cross_attention="none", share_encoder=False, share_decoder=False),
    **{decoder: lambda decoder=decoder: baseline(decoder) for decoder in ("plain", "linear", "aspp", "pup", "dpt")},
    **{f"supernet {head}": lambda head=head: supernet(head) for head in ("linear", "pup", "dpt", "query")},
    **{encoder: lambda encoder=encoder: baseline(backbone=encoder) for encoder in ENCODERS},
}
#: Those that every run of the tests traces.
FAST = ["supernet query"]


def saved(model, path, size=TRAINED):
    """Write a checkpoint as `fit` writes it, with weights of a size that shows differences."""
    model.train_size.copy_(torch.tensor(size))
    # Not of an encoder: EfficientNet's would make float32 itself inexact, 5e-4 of the largest value away from float64.
    for parameter in getattr(model.network, "head", model.network).parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(1.5)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def check(kind, format, folder):
    torch.manual_seed(0)
    model = MODELS[kind]()
    out = folder / "file"
    done = export(saved(model, folder / "last.ckpt"), out, format=format)
    assert done.tasks == list(TASKS)
    assert done.size is None
    weights = sum(tensor.nbytes for tensor in model.network.state_dict().values())
    assert out.stat().st_size < weights + 5e6  # the graph, and not what it was traced with
    run = exporting.FORMATS[format].read(out)
    network = model.network.eval()
    for batch, height, width in SHAPES:
        if kind in ("convnext_atto", SWIN) and min(height, width) <= 32 and format == "torch":
            continue  # torch's program refuses a map of one pixel, see docs/export.md
        image = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            expected = network(image)
            found = run(image)
        for task in TASKS:
            assert found[task].shape == expected[task].shape
            largest = float(expected[task].abs().max())
            torch.testing.assert_close(found[task], expected[task], atol=1e-4 * largest, rtol=1e-4)


@pytest.mark.parametrize("kind", FAST)
def test_a_saved_program_gives_the_outputs_for_any_batch_and_size(kind, tmp_path):
    check(kind, "torch", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in FAST])
def test_the_program_of_every_other_model_too(kind, tmp_path):
    check(kind, "torch", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_onnx_of_every_model_gives_the_outputs_for_any_batch_and_size(kind, tmp_path):
    pytest.importorskip("onnxscript", reason="torch's exporter needs the extra 'export'")
    pytest.importorskip("onnxruntime", reason="running needs the extra 'export'")
    check(kind, "onnx", tmp_path)


@pytest.mark.parametrize("name", [SWIN, "tf_efficientnet_lite0"])
def test_encoders_are_traced_in_a_form_with_equal_outputs(name):
    torch.manual_seed(0)
    encoder = Backbone(name).eval()
    for height, width in [(64, 96), (288, 352)]:  # smaller and larger than a window at every stride
        image = torch.randn(2, 3, height, width)
        with torch.no_grad():
            for ours, theirs in zip(traceable(encoder)(image), encoder(image), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class Stiff(TaskDecoder):
    """A decoder for maps of one width only, as the tracer sees it."""

    def __init__(self, channels, strides, outputs):
        super().__init__()
        self.predict = nn.Conv2d(channels[-1], outputs, kernel_size=1)

    def forward(self, maps):
        ramp = torch.tensor([float(column) for column in range(maps[-1].shape[-1])])
        return self.predict(maps[-1]) + ramp


def test_a_network_of_one_size_is_refused_with_advice_that_works(tmp_path, monkeypatch):
    monkeypatch.setitem(DECODERS, "stiff", Stiff)
    checkpoint = saved(Baseline(MAPS, decoder="stiff", backbone="test_resnet"), tmp_path / "last.ckpt")
    out = tmp_path / "out" / "model.pt2"
    with pytest.raises(ConfigError, match=r"cannot be exported for images of any size .*--size \[480,640\]"):
        export(checkpoint, out, format="torch")
    assert not list(out.parent.iterdir())
    assert export(checkpoint, out, format="torch", size=(50, 70)).size == (50, 70)
    run = exporting.FORMATS["torch"].read(out)
    assert run(torch.zeros(5, 3, 50, 70))["depth"].shape == (5, 1, 50, 70)
    with pytest.raises(RuntimeError, match=r"Expected input .* to be equal to"):
        run(torch.zeros(5, 3, 50, 71))


def test_checks_are_at_the_trained_size_or_a_usual_one_and_at_an_odd_one():
    model = Baseline(MAPS, backbone="test_resnet")  # whose weights may have been imported
    assert exporting._shapes(model, None) == [(1, 96, 128), (3, 73, 161)]
    model.train_size.copy_(torch.tensor([448, 576]))
    assert exporting._shapes(model, None) == [(1, 448, 576), (3, 337, 721)]
    assert exporting._shapes(model, (50, 70)) == [(1, 50, 70), (3, 50, 70)]


@pytest.mark.parametrize("wrong", [lambda image: image.shape[-1] % 2, lambda image: len(image) == 1])
def test_a_file_that_gives_other_outputs_once_is_not_kept(wrong, tmp_path, monkeypatch):
    model = Baseline(MAPS, backbone="test_resnet")
    checkpoint = saved(model, tmp_path / "last.ckpt")
    network = model.network.eval()

    def altered(image):
        return {task: output * (1.01 if wrong(image) else 1) for task, output in network(image).items()}

    kind = exporting.Kind("model", (), lambda _, __, path: path.write_text("a graph"), lambda _: altered)
    monkeypatch.setitem(exporting.FORMATS, "torch", kind)
    monkeypatch.setattr(exporting, "_traced", lambda network, size: None)
    out = tmp_path / "out" / "model.pt2"
    with pytest.raises(ConfigError, match=r"differs from the network by 1\.0e-02"):
        export(checkpoint, out, format="torch")
    assert not list(out.parent.iterdir())


def test_the_difference_is_relative_to_each_output():
    def network(image):
        return {"large": torch.full((1, 1), -200.0), "small": torch.full((1, 1), 0.5)}

    def run(image):
        return {"large": torch.full((1, 1), -201.0), "small": torch.full((1, 1), 0.51)}

    found = exporting._difference(network, run, (1, 4, 4))
    np.testing.assert_allclose(found, 0.02, rtol=1e-4)
