"""Cosines of gradients against a backward pass per task, and where they are known."""

import numpy as np
import pytest
import torch
from torch import nn

from taskformer.errors import ConfigError
from taskformer.insight import conflicts
from taskformer.modules import AutoTaskFormer, Baseline, MQTransformer
from taskformer.modules.autotaskformer_args import Head, Space
from taskformer.modules.base import MultiTaskModule

TASKS = {"depth": {}, "edges": {}, "normals": {}}


def batch(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.rand(count, *shape, 64, 64, generator=generator)

    targets = {"depth": 1 + noise(1), "edges": (noise(1) > 0.8).float()}
    return {"image": noise(3), "targets": targets | {"normals": nn.functional.normalize(noise(3) - 0.5)}}


def by_hand(module, network, sample, members):
    """Cosines of the gradients of some parameters after one backward pass for each task."""
    rows = []
    for name, task in module.tasks.items():
        network.zero_grad()
        task.loss(network(sample["image"])[name], sample["targets"][name]).backward()
        parameters = [parameter for path, parameter in network.named_parameters() if path.startswith(members)]
        rows.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]))
    network.zero_grad()
    return np.array([[torch.cosine_similarity(a.double(), b.double(), dim=0) for b in rows] for a in rows])


@pytest.mark.parametrize("kind", [MQTransformer, Baseline])
def test_cosines_are_those_of_one_backward_pass_per_task(kind):
    torch.manual_seed(0)
    module = kind(TASKS, backbone="test_resnet", embed_dim=16, head_dim=8).train()
    batches = [batch(seed=1), batch(3, seed=2)]
    found = conflicts(module, batches)
    assert module.network.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert found.cosines.shape == (2, len(found.layers), 3, 3)
    module.network.eval()
    for layer in (found.layers[0], found.layers[3], found.layers[-1]):
        for index, one in enumerate(batches):
            expected = by_hand(module, module.network, one, f"{layer}.")
            np.testing.assert_allclose(found.cosines[index, found.layers.index(layer)], expected, atol=1e-5)
    assert "conv" in found.layers[0]
    assert [layer.startswith("backbone.") for layer in found.layers] == sorted(
        (layer.startswith("backbone.") for layer in found.layers), reverse=True
    )
    # What is a task's own is no layer of several.
    assert not any("predict" in layer for layer in found.layers)
    assert any("project" in layer for layer in found.layers) == (kind is MQTransformer)


def test_a_subnetwork_is_judged_copy_by_copy():
    space = Space("custom", embed_dims=[16, 32], depths=[1, 2], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=16)
    module = AutoTaskFormer(TASKS, space, Head("linear"), image_size=(64, 64))
    # The largest shares no unit, but all tasks train the stem and the last norm.
    assert conflicts(module, [batch()]).layers == ["stem", "stem.project", "norm"]
    apart = '{"embed_dim": 16, "depth": 1, "mlp_ratio": [2.0], "num_heads": [1], "sharing": [[0, 0, 0], [0, 1, 0]]}'
    found = conflicts(module, [batch()], architecture=apart)
    assert "units.1.0" in found.layers
    assert "units.1.1" not in found.layers  # the copy that one task has for itself
    assert np.isnan(found.mean[found.layers.index("units.1.0")][0, 1])  # edges do not use what the others share


class Agreed(nn.Module):
    """A shared number for each pixel, from one convolution, that every task gives as it is."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(3, 1, kernel_size=1)
        self.gain = nn.ParameterDict({name: nn.Parameter(torch.ones(())) for name in "abcd"})

    def forward(self, image):
        return {name: self.shared(image) * gain for name, gain in self.gain.items()}


def test_same_opposite_and_missing_targets():
    tasks = {name: {"type": "regression", "channels": 1} for name in "abcd"}
    module = MultiTaskModule(tasks, Agreed())
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    far = torch.full((2, 1, 8, 8), 100.0)
    targets = {"a": far, "b": far, "c": -far, "d": far * torch.nan}
    found = conflicts(module, [{"image": image, "targets": targets}, {"image": image, "targets": targets | {"d": far}}])
    assert found.layers == ["shared"]
    np.testing.assert_allclose(found.cosines[0, 0, :3, :3], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-6)
    assert np.isnan(found.cosines[0, 0, 3]).all()
    np.testing.assert_allclose(found.mean[0], [[1, 1, -1, 1], [1, 1, -1, 1], [-1, -1, 1, -1], [1, 1, -1, 1]], atol=1e-6)
    np.testing.assert_allclose(found.conflicting[0, 2], [1, 1, 0, 1])


def test_without_anything_shared_there_is_nothing_to_compare():
    one = Baseline({"depth": {}}, backbone="test_resnet", embed_dim=8)
    with pytest.raises(ConfigError, match="1 tasks, 1 batches"):
        conflicts(one, [batch()])
    with pytest.raises(ConfigError, match="3 tasks, 0 batches"):
        conflicts(Baseline(TASKS, backbone="test_resnet", embed_dim=8), [])
