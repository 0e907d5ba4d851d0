"""The pipelines of configs/ against a plain re-statement of the published ones, which is given the same draws.

The re-statement is written from the description of the pipelines (zoom, crop, flip, distort, normalise, pad, ignore),
in their coding: labels, edges, depth and normals are 255 where invalid. It takes one liberty: images are zoomed in 8
bits, as here, where the published code zooms floats and truncates them later; a test of its own bounds the difference.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from taskformer.data import transforms
from taskformer.data.configured import data_module
from taskformer.data.transforms import PhotoMetricDistortion, RandomHorizontalFlip, RandomScale, TaskCompose
from taskformer.datatools.miniature.nyud import write_nyud
from taskformer.datatools.miniature.pascal_context import write_pascal_context
from taskformer.tasks import build_tasks

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "nyu10"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Draws:
    """What a pipeline draws for one image, in order, and how often it flipped, distorted and cropped again in all."""

    def __init__(self, monkeypatch):
        self.windows = []
        self.flips = self.distortions = self.retries = 0
        self.start()

        def recorded(owner, name, keep):
            original = getattr(owner, name)

            def call(*args, **kwargs):
                drawn = original(*args, **kwargs)
                keep(drawn)
                return drawn

            monkeypatch.setattr(owner, name, call)

        recorded(RandomScale, "draw", lambda drawn: setattr(self, "scale", drawn["scale"]))
        recorded(transforms, "_draw_window", self.windows.append)
        recorded(RandomHorizontalFlip, "get_params_dependent_on_data", lambda _: setattr(self, "flip", True))
        recorded(PhotoMetricDistortion, "get_params", lambda drawn: setattr(self, "colours", drawn))

    def start(self):
        self.windows.clear()
        self.scale, self.flip, self.colours = 1.0, False, None

    def count(self):
        self.flips += self.flip
        self.retries += len(self.windows) > 1
        self.distortions += self.colours is not None and self.colours["turn"] is not None


def converted(image, alpha=1.0, beta=0.0):
    return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def in_hsv(image, channel, change):
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = change(hsv[..., channel])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def distorted(image, colours):
    if colours["shift"] is not None:
        image = converted(image, beta=colours["shift"])
    if colours["contrast_first"] and colours["contrast"] is not None:
        image = converted(image, colours["contrast"])
    if colours["saturation"] is not None:
        image = in_hsv(image, 1, lambda values: converted(values, colours["saturation"]))
    if colours["turn"] is not None:
        image = in_hsv(image, 0, lambda values: (values.astype(int) + colours["turn"]) % 180)
    if not colours["contrast_first"] and colours["contrast"] is not None:
        image = converted(image, colours["contrast"])
    return image


def varied(labels):
    classes, counts = np.unique(labels, return_counts=True)
    counts = counts[classes != 255]
    return len(counts) > 1 and counts.max() / counts.sum() < 0.75


def padded(pixels, size, fill):
    height, width = (max(pair) for pair in zip(size, pixels.shape[:2], strict=True))
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    whole = np.full((height, width, *pixels.shape[2:]), fill, pixels.dtype)
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return whole


def published(image, maps, draws, size, adashare=False):
    """The published training pipeline; returns the normalised image, the maps, and where the image was padded.

    AdaShare leaves depth as it is when it zooms, and takes any window.
    """
    new = [int(side * draws.scale) for side in image.shape[:2]]
    image = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    maps = {name: cv2.resize(map_, new[::-1], interpolation=cv2.INTER_NEAREST) for name, map_ in maps.items()}
    if "depth" in maps and not adashare:
        maps["depth"] = maps["depth"] / np.float32(draws.scale)

    windows = iter(draws.windows)
    window = next(windows)
    if "semseg" in maps and not adashare:
        for _ in range(10):
            if varied(maps["semseg"][window]):
                break
            window = next(windows)
    assert next(windows, None) is None  # all that were drawn were wanted
    image, maps = image[window], {name: map_[window] for name, map_ in maps.items()}

    if draws.flip:
        image, maps = image[:, ::-1], {name: map_[:, ::-1].copy() for name, map_ in maps.items()}
        if "normals" in maps:
            maps["normals"][..., 0] *= -1
    if draws.colours is not None:
        image = distorted(np.ascontiguousarray(image), draws.colours)
    image = (image.astype(np.float32) / 255 - MEAN) / STD

    border = padded(np.zeros(image.shape[:2], bool), size, True)
    image = padded(image, size, 0)
    maps = {name: padded(map_, size, 0 if name in ("depth", "normals") else 255) for name, map_ in maps.items()}
    if "normals" in maps:
        maps["normals"][np.linalg.norm(maps["normals"], axis=-1) == 0] = 255
    if "depth" in maps:
        maps["depth"][maps["depth"] == 0] = 255
    if "human_parts" in maps and np.isin(maps["human_parts"], (0, 255)).all():
        maps["human_parts"][:] = 255
    return image, maps, border


def coded(target):
    """A target here, ``(H, W)`` or ``(C, H, W)``, in the published coding ``(H, W)`` or ``(H, W, C)``."""
    values = target.nan_to_num(255).numpy()
    return values if values.ndim == 2 else values.transpose(1, 2, 0).squeeze()


def raw_maps(targets):
    """Targets as data sets give them, in the coding before the pipeline: depth and normals are 0 where invalid."""
    found = {}
    for name, map_ in targets.items():
        values = np.nan_to_num(map_, nan=0 if name in ("depth", "normals") else 255)
        found[name] = values.astype(np.uint8 if map_.dtype.kind in "iu" else np.float32)
    return found


def compare(compose, sample, draws, size, count, **options):
    """Compare the pipeline with the re-statement for several seeds; returns the re-stated maps."""
    seen = []
    for seed in range(count):
        draws.start()
        compose.set_random_seed(seed)
        output = compose(sample)
        image, maps, border = published(sample["image"], raw_maps(sample["targets"]), draws, size, **options)
        found = output["image"].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(found[~border], image[~border], rtol=0, atol=1e-6)
        assert (image[border] == 0).all()
        assert np.abs(found[border]).max(initial=0) < 0.009  # the mean colour in 8 bits
        for name in maps.keys() & output["targets"].keys():
            np.testing.assert_array_equal(coded(output["targets"][name]), maps[name], err_msg=f"{name}, seed {seed}")
        seen.append(maps)
        draws.count()
    return seen


@pytest.fixture
def draws(monkeypatch):
    return Draws(monkeypatch)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return write_nyud(tmp_path_factory.mktemp("nyud"), size=(425, 560), counts={"train": 1, "val": 1}, holes=True)


def pipeline(module):
    """The training pipeline of a data module, and its first training image as it is stored."""
    dataset = module.training_dataset("train")
    return dataset.transform, dataset.raw(0)


@pytest.mark.parametrize(("name", "size"), [("nyud", (425, 560)), ("nyud_invpt", (448, 576))])
def test_nyud(rooms, draws, name, size):
    compose, sample = pipeline(data_module(CONFIGS / f"{name}.yaml", root=str(rooms)))
    assert sample["targets"].keys() == {"semseg", "depth", "normals", "edges"}
    sample["targets"]["semseg"][:, :440] = 7  # so that some windows are drawn again
    compare(compose, sample, draws, size, count=8)
    assert min(draws.flips, draws.retries, draws.distortions) > 0  # each was compared


def test_nyud_by_adashare(rooms, draws):
    compose, sample = pipeline(data_module(CONFIGS / "nyud_adashare.yaml", root=str(rooms)))
    compare(compose, sample, draws, (321, 321), count=6, adashare=True)


def test_pascal_context(tmp_path, draws):
    root = write_pascal_context(tmp_path / "PASCALContext", size=(375, 500), counts={"train": 1, "val": 1})
    compose, sample = pipeline(data_module(CONFIGS / "pascal_context.yaml", root=str(root)))
    assert sample["targets"].keys() == {"semseg", "human_parts", "saliency", "normals", "edges"}
    compare(compose, sample, draws, (512, 512), count=8)


def test_a_crop_without_a_person_has_no_human_parts(tmp_path, draws):
    root = write_pascal_context(tmp_path / "PASCALContext", size=(375, 500), counts={"train": 1, "val": 1})
    module = data_module(CONFIGS / "pascal_context.yaml", root=str(root), tasks=["human_parts"])
    for step in module.train_transforms:
        if hasattr(step, "max_share"):
            step.height, step.width, step.low, step.high = 90, 90, 1.0, 1.0
    compose, sample = pipeline(module)
    seen = compare(compose, sample, draws, (512, 512), count=20)
    shown = [np.isin(maps["human_parts"], range(1, 7)).any() for maps in seen]
    assert 3 < sum(shown) < 17  # of both kinds
    assert all((maps["human_parts"] == 255).all() for maps, there in zip(seen, shown, strict=True) if not there)


def test_such_a_crop_does_not_dilute_the_batch():
    task = build_tasks(data_module("pascal_context", tasks=["human_parts"]).task_specs)["human_parts"]
    person = torch.tensor([[0, 0, 3, 255], [0, 5, 3, 255]])
    bare = torch.tensor([[0, 0, 0, 255], [0, 0, 0, 255]])
    output = torch.randn(2, 7, 2, 4, generator=torch.Generator().manual_seed(0))
    both = task.loss(output, torch.stack([task.settle(person), task.settle(bare)]))
    assert torch.equal(task.settle(person), person)
    torch.testing.assert_close(both, F.cross_entropy(output[:1], person[None], ignore_index=255))


def test_rooms_without_people_are_all_background():
    """Their labels are complete: a room without a person shows none."""
    task = build_tasks(data_module("rooms", tasks=["human_parts"]).task_specs)["human_parts"]
    bare = torch.zeros(2, 3, dtype=torch.int64)
    assert torch.equal(task.settle(bare), bare)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no {PHOTOS}")
def test_nyud_on_photographs(draws):
    module = data_module(CONFIGS / "nyud_13.yaml", root="nowhere", tasks=["semseg", "depth"])
    compose = TaskCompose(module.train_transforms, build_tasks(module.task_specs))
    for number in ("0002", "0014", "0021"):
        paths = [PHOTOS / folder / f"{number}.png" for folder in ("rgb", "semseg13", "depth_mm")]
        image, classes, depth = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths)
        metres = np.where(depth > 0, depth, np.nan).astype(np.float32) / 1000
        targets = {"semseg": (classes - 1).astype(np.uint8), "depth": metres}
        sample = {"image": np.ascontiguousarray(image[..., ::-1]), "targets": targets, "meta": {}}
        compare(compose, sample, draws, (425, 560), count=4)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no {PHOTOS}")
@pytest.mark.parametrize("scale", [0.5, 0.73, 1.31, 2.0])
def test_zooming_floats_and_truncating_differs_by_at_most_one_level(scale):
    image = cv2.imread(str(PHOTOS / "rgb" / "0014.png"))
    new = [int(side * scale) for side in image.shape[:2]][::-1]
    floats = cv2.resize(image.astype(np.float32), new, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    bytes_ = cv2.resize(image, new, interpolation=cv2.INTER_LINEAR)
    difference = bytes_.astype(int) - floats
    assert set(np.unique(difference)) <= {-1, 0, 1}
    assert 0 <= difference.mean() < 0.51


# Losses


def weighted_losses(module, outputs, targets):
    """Sum of the losses of a data module's tasks with their weights."""
    tasks = build_tasks(module.task_specs)
    return sum(task.loss_weight * task.loss(outputs[name], targets[name]) for name, task in tasks.items())


def one_minus_cosine(output, target):
    valid = target.isfinite().all(dim=1)
    return 1 - F.cosine_similarity(output, target, dim=1)[valid].mean()


@pytest.fixture
def random_maps():
    """Outputs and targets of any tasks, a part of which is invalid."""
    generator = torch.Generator().manual_seed(0)

    def make(module):
        outputs, targets = {}, {}
        for name, task in build_tasks(module.task_specs).items():
            outputs[name] = torch.randn(2, task.channels, 6, 8, generator=generator)
            if task.classes:
                targets[name] = torch.randint(0, task.channels, (2, 6, 8), generator=generator)
            else:
                values = torch.rand(2, task.channels, 6, 8, generator=generator) - (0.5 if name == "normals" else -0.1)
                targets[name] = F.normalize(values, dim=1) if name == "normals" else values
            targets[name][..., :2] = 255 if task.classes else torch.nan
        return outputs, targets

    return make


def valid_l1(output, target, scale=1.0):
    return (scale * (output - target))[target.isfinite()].abs().mean()


def test_adashare_trains_these_losses_on_nyud(random_maps):
    module = data_module(CONFIGS / "nyud_adashare.yaml", root="nowhere")
    outputs, targets = random_maps(module)
    expected = (
        F.cross_entropy(outputs["semseg"], targets["semseg"], ignore_index=255)
        + 20 * one_minus_cosine(outputs["normals"], targets["normals"])
        + 3 * valid_l1(outputs["depth"], targets["depth"])
    )
    torch.testing.assert_close(weighted_losses(module, outputs, targets), expected)


def test_adashare_trains_these_losses_on_cityscapes(random_maps):
    module = data_module(CONFIGS / "cityscapes_adashare.yaml", root="nowhere")
    outputs, targets = random_maps(module)
    expected = F.cross_entropy(outputs["semseg"], targets["semseg"], ignore_index=255)
    expected = expected + 20 * valid_l1(outputs["inverse_depth"], targets["inverse_depth"])
    torch.testing.assert_close(weighted_losses(module, outputs, targets), expected)


def test_adashare_trains_these_losses_on_taskonomy(random_maps):
    module = data_module(CONFIGS / "taskonomy_adashare.yaml")
    outputs, targets = random_maps(module)
    prior = [0.5424, 9.1674, 7.331, 7.162, 8.7229, 7.6133, 8.2369, 9.1486, 8.822]
    prior += [9.0858, 8.9141, 9.1772, 9.0354, 8.6039, 9.1699, 9.1467, 9.1374]
    expected = (
        F.cross_entropy(outputs["semseg"], targets["semseg"], torch.tensor(prior), ignore_index=255)
        + 3 * one_minus_cosine(outputs["normals"], targets["normals"])
        + 0.07 * valid_l1(outputs["depth_zbuffer"], targets["depth_zbuffer"])  # metres; its own scale is logarithmic
        # Their values, and so their differences, go from -1 to 1.
        + 7 * valid_l1(outputs["keypoints2d"], targets["keypoints2d"], scale=2)
        + 7 * valid_l1(outputs["edge_texture"], targets["edge_texture"], scale=2)
    )
    torch.testing.assert_close(weighted_losses(module, outputs, targets), expected)


def test_a_metre_at_two_and_a_half_is_the_weight_of_adashares_logarithm():
    depth = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    (torch.log(1 + 512 * depth) / np.log(2**16)).backward()
    assert 2 * depth.grad.item() == pytest.approx(0.07, rel=0.05)


@pytest.mark.parametrize(("name", "weight"), [("nyud", 0.8), ("nyud_invpt", 0.95), ("pascal_context", 0.95)])
def test_the_weight_of_edges_is_the_published_one(name, weight, random_maps):
    module = data_module(CONFIGS / f"{name}.yaml", root="nowhere", tasks=["edges"])
    outputs, targets = random_maps(module)
    logits, edges = outputs["edges"], (targets["edges"] > 0.7).float()
    edges[targets["edges"].isnan()] = torch.nan
    costs = F.binary_cross_entropy_with_logits(logits, edges.nan_to_num(), reduction="none")
    weights = weight * edges + (1 - weight) * (1 - edges)
    expected = 50 * (weights * costs)[edges.isfinite()].mean()
    torch.testing.assert_close(weighted_losses(module, outputs, {"edges": edges}), expected)
