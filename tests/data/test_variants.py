"""Images that are spoilt for one task and labelled for it alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from taskformer.data.datamodules.taskonomy import TaskonomyDataModule
from taskformer.data.transforms import Pad
from taskformer.data.variants import SPECS, ImageVariants
from taskformer.datatools.miniature.taskonomy import write_taskonomy
from taskformer.tasks import build_tasks

TASKS = build_tasks({**SPECS, "depth": {}})
MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)


@pytest.fixture
def sample():
    pixels = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    stand_in = torch.zeros(1, 8, 12)
    stand_in[:, :, 10:] = torch.nan  # padding
    targets = {**dict.fromkeys(SPECS, stand_in), "depth": torch.ones(1, 8, 12)}
    return {"image": (pixels - MEAN) / STD, "targets": targets, "meta": {"id": "a"}}


def only(task, sample, **options):
    """The sample spoilt for a task, its pixels in 0..1, and what it was."""
    tasks = {name: TASKS[name] for name in (task, "depth")}
    out = ImageVariants(lambda s: s, tasks, share=1.0, repeatable=True)(sample)
    return out, out["image"] * STD + MEAN, sample["image"] * STD + MEAN


def labelled(out):
    return {name for name, target in out["targets"].items() if torch.isfinite(target.float()).any()}


def test_clean_images_have_all_labels_and_themselves(sample):
    out = ImageVariants(lambda s: s, TASKS, share=0.0, repeatable=True)(sample)
    assert labelled(out) == {"autoencoding", "depth"}
    torch.testing.assert_close(out["image"], sample["image"])
    clean = (sample["image"] * STD + MEAN)[:, :, :10]
    torch.testing.assert_close(out["targets"]["autoencoding"][:, :, :10], clean)
    assert out["targets"]["autoencoding"][:, :, 10:].isnan().all()
    assert {name: t.shape for name, t in out["targets"].items()} == {
        name: task.invalid(8, 12).shape for name, task in TASKS.items()
    }


def test_noise_is_to_be_removed(sample):
    out, spoilt, clean = only("denoising", sample)
    assert labelled(out) == {"denoising"}
    torch.testing.assert_close(out["targets"]["denoising"][:, :, :10], clean[:, :, :10])
    noise = (spoilt - clean)[(clean > 0.35) & (clean < 0.65)]
    assert 0.06 < noise.std() < 0.14
    assert spoilt.min() >= -1e-6
    assert spoilt.max() <= 1 + 1e-6


def test_the_middle_is_to_be_filled(sample):
    out, spoilt, clean = only("inpainting", sample)
    torch.testing.assert_close(spoilt[:, 2:6, 3:9], torch.full((3, 4, 6), 0.5))
    torch.testing.assert_close(spoilt[:, :2], clean[:, :2])
    torch.testing.assert_close(out["targets"]["inpainting"][:, :, :10], clean[:, :, :10])


def test_colours_follow_from_grey_and_the_target(sample):
    out, spoilt, clean = only("colorization", sample)
    luma, (blue, red) = spoilt[0], out["targets"]["colorization"]
    assert (spoilt[1] - luma).abs().max() < 1e-6
    # The inverse of BT.601.
    rgb = torch.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue])
    torch.testing.assert_close(rgb[:, :, :10], clean[:, :, :10], atol=1e-4, rtol=0)


def test_evaluation_chooses_by_name_and_training_anew(sample):
    def choices(repeatable):
        make = ImageVariants(lambda s: s, TASKS, share=0.6, repeatable=repeatable)
        torch.manual_seed(0)
        return [tuple(sorted(labelled(make({**sample, "meta": {"id": str(k % 200)}})))) for k in range(400)]

    fixed, drawn = choices(True), choices(False)
    assert fixed[:200] == fixed[200:]
    assert drawn[:200] != drawn[200:]
    for made in (fixed, drawn):
        counts = Counter(made)
        assert len(counts) == 4
        assert 0.3 < counts["autoencoding", "depth"] / 400 < 0.5
        assert all(count > 40 for count in counts.values())


def test_the_data_module_makes_them_last(tmp_path):
    root = write_taskonomy(tmp_path, counts={"train": 1, "val": 1}, size=(16, 16))
    options = {"tasks": [*SPECS, "depth_zbuffer"], "spoilt_share": 0.5, "train_transforms": [Pad(16, 20)]}
    module = TaskonomyDataModule(str(root), **options)
    raw = module.dataset("train", build_tasks(module.task_specs), None).raw(0)
    assert raw["targets"]["inpainting"].shape == (16, 16)
    module.setup("fit")
    seen = [labelled(module.datasets["train"][0]) for _ in range(60)]
    assert {frozenset(names) for names in seen} == {
        *(frozenset({name}) for name in SPECS if name != "autoencoding"), frozenset({"autoencoding", "depth_zbuffer"})
    }  # fmt: skip
    clean = next(out for out in (module.datasets["train"][0] for _ in range(60)) if "autoencoding" in labelled(out))
    image = torch.from_numpy(raw["image"].transpose(2, 0, 1).copy()) / 255
    torch.testing.assert_close(clean["targets"]["autoencoding"][:, :, 2:18], image, atol=1e-5, rtol=0)
    assert clean["targets"]["autoencoding"][:, :, :2].isnan().all()
    validation = [module.datasets["val"][0] for _ in range(2)]
    torch.testing.assert_close(validation[0]["image"], validation[1]["image"])
    assert np.isfinite(validation[0]["image"].numpy()).all()
