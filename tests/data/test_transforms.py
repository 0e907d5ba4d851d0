import functools
import random
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning import seed_everything
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from miniature_rooms import facing, plane, rays
from scipy.linalg import polar
from scipy.stats import chisquare, kstest
from torch.utils.data import DataLoader, Dataset

from taskformer.data.loading import worker_init
from taskformer.data.transforms import (
    MEAN_COLOR,
    Pad,
    PhotoMetricDistortion,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotate,
    RandomScale,
    RandomScaledCrop,
    Resize,
    SpatialTransform,
    TaskCompose,
    Transform,
    require_fixed,
    wanted_guides,
)
from taskformer.errors import ConfigError, InvalidTargetError, UnknownNameError
from taskformer.tasks import build_tasks

#: Every configuration with a pipeline of its own.
CONFIGS = sorted(
    p
    for p in (Path(__file__).parents[2] / "configs").rglob("*.yaml")
    if "train_transforms" in p.read_text() and p.parent.name != "studies"  # whose arms move nothing in other ways
)
HEIGHT, WIDTH = 96, 128
TILTED = facing(30, 40)
NAMES = [str(label) for label in range(13)]
TASKS = build_tasks(
    {
        "semseg": {"classes": NAMES},
        "depth": {},
        "inverse_depth": {},
        "normals": {},
        "edges": {},
        "position": {"type": "regression", "channels": 2},
        "class_scene": {"classes": NAMES},
    }
)
SINGLE = {
    "flip": [RandomHorizontalFlip(p=1.0)],
    "zoom in": [RandomScale(1.3, 2.0)],
    "zoom out": [RandomScale(0.5, 0.8)],
    "rotate": [RandomRotate(45.0)],
    "crop": [RandomCrop(64, 72)],
    "scaled crop": [RandomScaledCrop(0.5, 2.0, 64, 72)],
    "varied crop": [RandomScaledCrop(1.5, 3.0, 40, 50, max_share=0.4)],
    "pad": [Pad(120, 160)],
    "pad at random": [Pad(120, 160, position="random")],
    "resize": [Resize(80, 150)],
    "photometric": [PhotoMetricDistortion(p=1.0)],
    "one of": [A.OneOf([RandomScale(1.5, 1.6), RandomRotate(20.0), A.Sequential([RandomHorizontalFlip()])])],
    "chain": [RandomRotate(30.0), RandomScale(0.8, 1.5), RandomHorizontalFlip(), RandomCrop(80, 90), Pad(96, 100)],
}


@functools.cache
def pipeline(name):
    """A pipeline of SINGLE or the train_transforms of a config file."""
    if name in SINGLE:
        return SINGLE[name]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--transforms", type=list[Transform])
    data = yaml.safe_load(next(path for path in CONFIGS if path.name == name).read_text())["data"]
    config = parser.parse_object({"transforms": data["init_args"].get("train_transforms", [])})
    return parser.instantiate(config).transforms


def plane_sample(normal=TILTED, focal=110.0, height=HEIGHT, width=WIDTH):
    """A plane whose red and green channels show the position that the target `position` gives in pixels."""
    depth, normals = plane(height, width, normal, focal)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = np.stack([x, y, np.full_like(x, 100)], axis=-1).astype(np.uint8)
    targets = {
        "semseg": ((x // 10 + y // 10) % 13).astype(np.uint8),
        "depth": depth,
        "inverse_depth": 1 / depth,
        "normals": normals,
        "edges": ((x % 16 == 3) | (y % 16 == 5)).astype(np.float32),
        "position": np.stack([x, y], axis=-1).astype(np.float32),
    }
    return {"image": image, "targets": targets, "meta": {"id": "plane"}}


def motion(position):
    """Least-squares affine motion ``(2, 3)`` of the pixels from the positions ``(2, H, W)`` they came from."""
    valid = np.isfinite(position).all(axis=0)
    y, x = np.nonzero(valid)
    old = np.column_stack([position[:, valid].T, np.ones(len(x))])
    return np.linalg.lstsq(old, np.column_stack([x, y]), rcond=None)[0].T


def fitted_normal(depth, focal, center):
    """Normal of the plane through the back-projected depth ``(H, W)``, towards the camera."""
    points = (rays(*depth.shape, focal, center) * depth[..., None])[np.isfinite(depth)]
    normal = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][2]
    return -normal * np.sign(points[0] @ normal)


def moved(name, sample, seed):
    compose = TaskCompose(pipeline(name), TASKS)
    compose.set_random_seed(seed)
    output = compose(sample)
    return {key: value.numpy() for key, value in output["targets"].items()}, output["image"].numpy()


@pytest.mark.parametrize("name", [*SINGLE, *(path.name for path in CONFIGS)])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(tilt=st.floats(0, 55), azimuth=st.floats(0, 360), focal=st.floats(80, 180), seed=st.integers(0, 999))
def test_depth_and_normals_still_describe_one_plane(name, tilt, azimuth, focal, seed):
    sample = plane_sample(facing(tilt, azimuth), focal)
    targets, _ = moved(name, sample, seed)
    # Pixels moved by M = stretch * turn: the camera's axes turned, its focal lengths were stretched.
    matrix = motion(targets["position"])
    turn, stretch = polar(matrix[:, :2], side="left")
    center = matrix @ [(WIDTH - 1) / 2, (HEIGHT - 1) / 2, 1]
    expected = fitted_normal(targets["depth"][0], focal * np.diag(stretch), center)

    normals = targets["normals"].transpose(1, 2, 0)
    normals = normals[np.isfinite(normals).all(axis=-1)]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    assert np.degrees(np.arccos((normals @ expected).clip(-1, 1))).max() < 2
    assert (np.isnan(targets["depth"][0]) == np.isnan(targets["normals"]).any(axis=0)).all()

    x, y = np.nan_to_num(targets["position"]).astype(int)
    as_published = any(not getattr(transform, "rescale_depth", True) for transform in pipeline(name))
    zoom = 1 if name == "resize" or as_published else np.sqrt(abs(np.linalg.det(turn @ stretch)))
    ratio = sample["targets"]["depth"][y, x] / targets["depth"][0]
    np.testing.assert_allclose(ratio[np.isfinite(ratio)], zoom, rtol=0.02)
    product = targets["depth"][0] * targets["inverse_depth"][0]
    np.testing.assert_allclose(product[np.isfinite(ratio)], 1, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "photometric"])
def test_labels_stay_on_their_pixels(name):
    targets, image = moved(name, plane_sample(), seed=3)
    colors = image * np.reshape([0.229, 0.224, 0.225], (3, 1, 1)) + np.reshape([0.485, 0.456, 0.406], (3, 1, 1))
    error = np.abs(colors[:2] * 255 - targets["position"]).max(axis=0)
    error = np.sort(error[np.isfinite(error)])
    assert error[int(0.95 * len(error))] < 1.5  # rotated borders blend with the padding


@pytest.mark.parametrize("name", SINGLE)
def test_values_are_never_made_up(name):
    sample = plane_sample()
    targets, _ = moved(name, sample, seed=5)
    assert set(np.unique(targets["semseg"])) <= {*np.unique(sample["targets"]["semseg"]), 255}
    assert set(np.unique(targets["edges"][np.isfinite(targets["edges"])])) <= {0, 1}
    assert (targets["semseg"] == 255).sum() == np.isnan(targets["edges"]).sum()


def test_tensors_have_the_types_and_shapes_of_the_contract():
    sample = plane_sample()
    sample["targets"]["class_scene"] = np.full(13, 1 / 13)
    output = TaskCompose([Resize(40, 50)], TASKS)(sample)
    assert output["image"].shape == (3, 40, 50)
    shapes = {name: (tuple(target.shape), target.dtype) for name, target in output["targets"].items()}
    assert shapes == {
        "semseg": ((40, 50), torch.int64),
        "depth": ((1, 40, 50), torch.float32),
        "inverse_depth": ((1, 40, 50), torch.float32),
        "normals": ((3, 40, 50), torch.float32),
        "edges": ((1, 40, 50), torch.float32),
        "position": ((2, 40, 50), torch.float32),
        "class_scene": ((13,), torch.float32),
    }
    for name, task in TASKS.items():
        assert task.invalid(40, 50).shape == output["targets"][name].shape
    assert output["meta"] == {"id": "plane"}


def test_flipping_twice_is_the_identity():
    once, _ = moved("flip", plane_sample(), seed=0)
    flip = RandomHorizontalFlip(p=1.0)
    targets = TaskCompose([flip, flip], TASKS)(plane_sample())["targets"]
    plain = TaskCompose([], TASKS)(plane_sample())["targets"]
    for name, target in targets.items():
        torch.testing.assert_close(target, plain[name], equal_nan=True)
    assert not np.allclose(once["normals"][0], plain["normals"][0], equal_nan=True)


def test_padding_is_the_mean_colour_and_never_valid():
    output = TaskCompose([Pad(HEIGHT + 20, WIDTH + 10)], TASKS)(plane_sample())
    image, targets = output["image"], output["targets"]
    assert image[:, :10].abs().max() < 0.02
    assert (targets["semseg"][:10] == 255).all()
    for name in ("depth", "inverse_depth", "normals", "edges", "position"):
        assert targets[name][:, :10].isnan().all()
        assert targets[name][:, :, -5:].isnan().all()
    assert MEAN_COLOR == (124, 116, 104)


def test_padding_leaves_larger_images_alone():
    assert TaskCompose([Pad(10, 20)], TASKS)(plane_sample())["image"].shape == (3, HEIGHT, WIDTH)


def test_cropping_more_than_there_is_leaves_the_side():
    assert TaskCompose([RandomCrop(500, 40)], TASKS)(plane_sample())["image"].shape == (3, HEIGHT, 40)


def test_thin_edges_survive_shrinking():
    edges = TaskCompose([Resize(HEIGHT // 4, WIDTH // 4)], TASKS)(plane_sample())["targets"]["edges"][0]
    assert edges[0].sum() == WIDTH / 16  # each vertical line is there once
    assert edges[:, 1].sum() == HEIGHT / 16


@pytest.mark.parametrize("build", [RandomScale, lambda *args, **options: RandomScaledCrop(*args, 64, 72, **options)])
def test_zooming_out_takes_the_nearest_edges_or_keeps_all_lines(build):
    lines = {keep: build(0.5, 0.5, keep_lines=keep) for keep in (False, True)}
    nearest, kept = (TaskCompose([lines[keep]], TASKS)(plane_sample())["targets"]["edges"][0] for keep in (False, True))
    edges = plane_sample()["targets"]["edges"]
    np.testing.assert_array_equal(nearest, edges[1::2, 1::2])  # of two pixels the one at the new one's centre, below
    np.testing.assert_array_equal(kept, edges.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).max(axis=(1, 3)))


def test_missing_labels_survive_every_transform():
    sample = plane_sample()
    sample["targets"] = {"depth": np.full((HEIGHT, WIDTH), np.nan)}  # float64 is accepted
    for name in SINGLE:
        output = TaskCompose(pipeline(name), TASKS)(sample)
        size = output["image"].shape[-2:]
        assert output["targets"].keys() == TASKS.keys()
        for task, target in output["targets"].items():
            torch.testing.assert_close(target, TASKS[task].invalid(*size), equal_nan=True)


def test_nothing_shares_memory_with_the_input():
    sample = plane_sample()
    before = {name: target.copy() for name, target in sample["targets"].items()}
    for transforms in ([], [PhotoMetricDistortion(p=1.0)]):
        output = TaskCompose(transforms, TASKS)(sample)
        output["image"].zero_()
        for target in output["targets"].values():
            target.zero_()
    np.testing.assert_array_equal(sample["image"], plane_sample()["image"])
    for name, target in before.items():
        np.testing.assert_array_equal(sample["targets"][name], target)


@pytest.mark.parametrize("labels", [np.uint8, np.int16, np.int32, np.int64])
def test_every_integer_type_of_labels_works(labels):
    sample = plane_sample()
    sample["targets"]["semseg"] = sample["targets"]["semseg"].astype(labels)
    targets = TaskCompose([RandomScale(0.7, 0.7), RandomRotate(20), Pad(100, 100)], TASKS)(sample)["targets"]
    assert targets["semseg"].dtype == torch.int64
    assert targets["semseg"].max() == 255


def test_undeclared_targets_are_refused():
    sample = plane_sample()
    sample["targets"]["depht"] = sample["targets"]["depth"]
    with pytest.raises(UnknownNameError, match=r"unknown target 'depht' .did you mean 'depth'"):
        TaskCompose([], TASKS)(sample)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("depth", np.zeros((HEIGHT, WIDTH), np.uint16), "type uint16.*NaN"),
        ("semseg", np.zeros((HEIGHT, WIDTH), np.float32), "type float32.*255"),
        ("normals", np.zeros((3, HEIGHT, WIDTH), np.float32), "the size"),
    ],
)
def test_wrong_targets_are_refused(name, target, message):
    sample = plane_sample()
    sample["targets"] = {name: target}
    with pytest.raises(InvalidTargetError, match=message):
        TaskCompose([], TASKS)(sample)


def test_normalising_twice_is_refused():
    with pytest.raises(InvalidTargetError, match="uint8"):
        TaskCompose([A.Normalize()], TASKS)(plane_sample())


COLORS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def distorted(**changes):
    return PhotoMetricDistortion().apply(COLORS, **changes).astype(float)


def changed_hsv(saturation, degrees):
    """Straightforward change of saturation and hue in floats."""
    hsv = rgb_to_hsv(COLORS / 255)
    hsv[..., 0] = (hsv[..., 0] + degrees / 360) % 1
    hsv[..., 1] = (hsv[..., 1] * saturation).clip(0, 1)
    return hsv_to_rgb(hsv) * 255


def test_no_distortion_changes_nothing():
    np.testing.assert_array_equal(distorted(), COLORS)


@pytest.mark.parametrize("shift", [-32.0, -7.3, 31.9])
@pytest.mark.parametrize("contrast", [0.5, 0.9, 1.5])
def test_brightness_and_contrast_are_linear_and_clipped(shift, contrast):
    shifted = (COLORS + shift).clip(0, 255)
    np.testing.assert_array_equal(distorted(shift=shift), shifted.astype(np.uint8))  # truncated, not rounded
    expected = (shifted.astype(np.uint8) * contrast).clip(0, 255).astype(np.uint8)
    for first in (True, False):
        np.testing.assert_array_equal(distorted(shift=shift, contrast=contrast, contrast_first=first), expected)


@pytest.mark.parametrize(("saturation", "turn"), [(0.5, 0), (1.5, 0), (1.0, -18), (1.0, 17), (0.7, 9)])
def test_saturation_and_hue_follow_floats(saturation, turn):
    error = np.abs(distorted(saturation=saturation, turn=turn) - changed_hsv(saturation, 2 * turn))
    assert error.mean() < 1.5  # 180 steps of hue and 256 of saturation are coarse, twice
    assert error.max() < 9


def test_no_hue_is_never_turned():
    transform = PhotoMetricDistortion(hue=0.0, p=1.0)
    assert transform(image=COLORS)["image"].shape == COLORS.shape
    assert transform.get_params()["turn"] is None


def test_contrast_comes_before_or_after_the_colours():
    before, after = (distorted(contrast=1.5, contrast_first=first, saturation=0.5) for first in (True, False))
    assert np.abs(before - after).mean() > 1
    floats = (changed_hsv(0.5, 0) * 1.5).clip(0, 255)
    assert np.abs(after - floats).mean() < np.abs(before - floats).mean() / 3


def test_distortions_are_drawn_as_published():
    transform = PhotoMetricDistortion()
    transform.py_random = random.Random(0)
    drawn = [transform.get_params() for _ in range(4000)]
    values = {name: np.array([params[name] for params in drawn], dtype=float) for name in drawn[0]}  # None becomes NaN
    ranges = {"shift": (-32, 64), "contrast": (0.5, 1), "saturation": (0.5, 1)}
    applied = {name: np.isfinite(values[name]) for name in (*ranges, "turn")}
    for name, uniform in ranges.items():
        assert kstest(values[name][applied[name]], "uniform", uniform).pvalue > 0.01
    turns, counts = np.unique(values["turn"][applied["turn"]], return_counts=True)
    np.testing.assert_array_equal(turns, np.arange(-18, 18))
    assert chisquare(counts).pvalue > 0.01
    tosses = np.stack([*applied.values(), values["contrast_first"]])
    assert np.abs(tosses.mean(axis=1) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(tosses) - np.eye(5)).max() < 0.06  # independent


@pytest.mark.parametrize(
    ("stock", "advice"),
    [
        (A.HorizontalFlip(), "use RandomHorizontalFlip"),
        (A.RandomScale(), "use RandomScale"),
        (A.Rotate(), "use RandomRotate"),
        (A.PadIfNeeded(64, 64), "use Pad"),
        (A.OneOf([A.GaussianBlur(), A.Affine()]), "use RandomScale or RandomRotate"),
        (A.ElasticTransform(), "SpatialTransform"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stock_transforms_that_move_pixels_are_refused(stock, advice):
    with pytest.raises(ConfigError, match=advice):
        TaskCompose([stock], TASKS)


def test_stock_photometric_transforms_are_welcome():
    compose = TaskCompose([A.GaussianBlur(p=1.0), A.OneOf([A.RandomGamma(), A.ToGray()], p=1.0)], TASKS)
    targets = compose(plane_sample())["targets"]
    plain = TaskCompose([], TASKS)(plane_sample())["targets"]
    assert all(torch.equal(targets[name].nan_to_num(), plain[name].nan_to_num()) for name in plain)


def test_every_spatial_transform_is_in_the_plane_test():
    tested = {type(transform) for chain in SINGLE.values() for transform in chain}
    classes = SpatialTransform.__subclasses__()
    assert {*classes, *(child for parent in classes for child in parent.__subclasses__())} <= tested


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomScale(2.0, 1.0), "RandomScale needs low <= high"),
        (lambda: RandomScaledCrop(0.0, 1.0, 8, 8), r"low must be in \(0, inf\), got 0.0"),
        (lambda: RandomScale(high=float("inf")), r"high must be in \(0, inf\), got inf"),
        (lambda: RandomScale(choices=[]), "needs some choices or null"),
        (lambda: RandomScale(choices=[1.0, 0.0]), r"choices must be in \(0, inf\), got \[1.0, 0.0\]"),
        (lambda: RandomScale(p=float("nan")), r"p must be in \[0, 1\], got nan"),
        (lambda: RandomHorizontalFlip(1.5), r"p must be in \[0, 1\], got 1.5"),
        (lambda: RandomRotate(-1.0), r"degrees must be in \[0, 180\], got -1.0"),
        (lambda: RandomCrop(0, 8), r"height must be in \[1, 32767\], got 0"),
        (lambda: RandomScaledCrop(1.0, 2.0, 8, 8, max_share=0.0), r"max_share must be in \(0, 1\], got 0.0"),
        (lambda: RandomScaledCrop(1.0, 2.0, 8, 8, retries=-1), "retries must be in"),
        (lambda: Pad(8, -8), r"width must be in \[1, 32767\], got -8"),
        (lambda: Resize(8, 10**9), "width must be in"),
        (lambda: PhotoMetricDistortion(contrast=1.5), r"contrast must be in \[0, 1\], got 1.5"),
        (lambda: PhotoMetricDistortion(hue=-1.0), "hue must be in"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    "transform",
    [RandomHorizontalFlip(), Pad(8, 8, "random"), PhotoMetricDistortion(), A.GaussNoise(p=1), A.ToGray(p=0.5)],
)
def test_what_is_random_is_refused_outside_training(transform):
    require_fixed([Pad(8, 8), Resize(8, 8), A.ToGray(p=1)])
    with pytest.raises(ConfigError, match=f"eval_transforms has {type(transform).__name__}, which is random"):
        require_fixed([Pad(8, 8), A.Sequential([transform])])


def test_a_scaled_crop_is_a_crop_of_the_scaled():
    sample = plane_sample()
    both = TaskCompose([RandomScale(0.5, 2.0), RandomCrop(64, 72)], TASKS)
    once = TaskCompose([RandomScaledCrop(0.5, 2.0, 64, 72)], TASKS)
    shapes = set()
    for seed in range(20):
        both.set_random_seed(seed)
        once.set_random_seed(seed)
        expected, output = both(sample), once(sample)
        shapes.add(tuple(output["image"].shape))
        grey = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255
        assert ((output["image"] - expected["image"]) * grey).abs().max() < 1.001  # at most one grey level
        for name, target in expected["targets"].items():
            torch.testing.assert_close(output["targets"][name], target, rtol=0, atol=0, equal_nan=True)
    assert len(shapes) > 1  # also images that end up smaller than the window


def zooms(transform, count=200):
    """Zoom of a few samples, from depth and from the image's size."""
    compose = TaskCompose([transform], {"depth": TASKS["depth"]})
    compose.set_random_seed(0)
    targets = {"depth": np.ones((1000, 40), np.float32)}
    sample = {"image": np.zeros((1000, 40, 3), np.uint8), "targets": targets, "meta": {}}
    outputs = [compose(sample)["targets"]["depth"] for _ in range(count)]
    return np.array([(1 / output[0, 0, 0], output.shape[1] / 1000) for output in outputs]).T


def test_zoom_factors_are_even_or_chosen():
    by_depth, by_size = zooms(RandomScale(0.5, 2.0))
    np.testing.assert_allclose(by_depth, by_size, atol=1.1e-3)
    assert kstest(by_depth, "uniform", (0.5, 1.5)).pvalue > 0.01
    by_depth, _ = zooms(RandomScale(choices=[1.0, 1.2, 1.5]), count=90)
    values, counts = np.unique(by_depth.round(4), return_counts=True)
    np.testing.assert_allclose(values, [1, 1.2, 1.5])
    assert counts.min() > 15


def test_depth_can_be_left_alone():
    for transform in (
        RandomScale(1.5, 1.5, rescale_depth=False),
        RandomScaledCrop(1.5, 1.5, 9, 9, rescale_depth=False),
    ):
        by_depth, _ = zooms(transform, count=2)
        assert (by_depth == 1).all()


def striped(left_share):
    """A sample with class 1 on the left and 2 on the right, a quarter of the rows unlabelled."""
    semseg = np.full((80, 400), 2, np.uint8)
    semseg[:, : int(400 * left_share)] = 1
    semseg[:20] = 255
    position = plane_sample(height=80, width=400)["targets"]["position"]
    return {"image": np.zeros((80, 400, 3), np.uint8), "targets": {"semseg": semseg, "position": position}, "meta": {}}


def left_borders(compose, sample, count=150):
    compose.set_random_seed(0)
    return np.array([compose(sample)["targets"]["position"][0, 0, 0] for _ in range(count)])


def test_crops_of_one_class_are_drawn_again():
    tasks = {name: TASKS[name] for name in ("semseg", "position")}
    compose = TaskCompose([RandomScaledCrop(1.0, 1.0, 80, 100, max_share=0.75, retries=100)], tasks)
    left = left_borders(compose, striped(0.5))
    assert left.min() >= 126  # the window's share of class 1 is (200 - left) / 100, wherever labels are
    assert left.max() <= 174
    assert kstest(left, "uniform", (125.5, 49)).pvalue > 0.01
    compose = TaskCompose([RandomScaledCrop(1.0, 1.0, 80, 100, max_share=0.75, retries=2)], tasks)
    few = left_borders(compose, striped(0.5))
    # Of windows drawn once, 49 of 301 pass; two more chances make it 1 - (252/301)^3 = 41 %, but never all.
    inside = ((few >= 126) & (few <= 174)).mean()
    assert 0.28 < inside < 0.54


def test_one_class_alone_never_has_variety_but_is_cropped():
    tasks = {name: TASKS[name] for name in ("semseg", "position")}
    compose = TaskCompose([RandomScaledCrop(1.0, 1.0, 80, 100, max_share=0.99)], tasks)
    for share in (0.0, 1.0):
        assert kstest(left_borders(compose, striped(share)), "uniform", (-0.5, 301)).pvalue > 0.01
    unlabelled = striped(0.5)
    del unlabelled["targets"]["semseg"]
    assert kstest(left_borders(compose, unlabelled), "uniform", (-0.5, 301)).pvalue > 0.01


def test_a_guide_moves_with_the_image_and_is_left_out():
    chain = [A.OneOf([RandomScaledCrop(1.0, 1.0, 80, 100, max_share=0.75, retries=100)], p=1.0), RandomHorizontalFlip()]
    assert wanted_guides(chain) == ["semseg"]
    assert wanted_guides([RandomScaledCrop(1.0, 1.0, 80, 100), A.GaussianBlur()]) == []
    position, semseg = {"position": TASKS["position"]}, {"semseg": TASKS["semseg"]}
    output = TaskCompose(chain, position, semseg)(striped(0.5))
    assert output["targets"].keys() == {"position"}
    left = left_borders(TaskCompose(chain[:1], position, semseg), striped(0.5))
    assert left.min() >= 126
    np.testing.assert_array_equal(left, left_borders(TaskCompose(chain[:1], position | semseg), striped(0.5)))


def test_padding_first_and_cropping_first_are_the_same():
    # AdaShare pads in the centre and crops; a window that is cut before it is padded looks the same.
    published = [RandomScale(0.5, 1.5, rescale_depth=False), Pad(80, 100), RandomCrop(80, 100)]
    ours = [RandomScaledCrop(0.5, 1.5, 80, 100, rescale_depth=False), Pad(80, 100)]
    for seed in range(12):
        outputs = []
        for chain in (published, ours):
            compose = TaskCompose(chain, TASKS)
            compose.set_random_seed(seed)
            outputs.append(compose(plane_sample())["targets"])
        for name, target in outputs[0].items():
            torch.testing.assert_close(outputs[1][name], target, equal_nan=True)


def test_transforms_can_be_used_by_two_pipelines():
    shared = [RandomHorizontalFlip(p=1.0)]
    TaskCompose(shared, {"normals": TASKS["normals"]})
    tasks = {"depth": TASKS["depth"]}
    sample = plane_sample()
    sample["targets"] = {"depth": sample["targets"]["depth"]}
    flipped, plain = (TaskCompose(chain, tasks)(sample)["targets"]["depth"] for chain in (shared, []))
    torch.testing.assert_close(flipped, plain.flip(-1), equal_nan=True)


def draws(compose, count=40):
    """The zoom and the flip of a few samples, read off the position target."""
    target = {"position": plane_sample()["targets"]["position"]}
    outputs = [compose({**plane_sample(), "targets": target})["targets"]["position"] for _ in range(count)]
    return [(output.shape[-1], bool(output[0, 0, 0] > output[0, 0, -1])) for output in outputs]


def test_seeds_repeat_and_differ():
    compose = TaskCompose([RandomScale(0.5, 2.0), RandomHorizontalFlip()], TASKS)
    compose.set_random_seed(1)
    first, more = draws(compose, 8), draws(compose, 8)
    compose.set_random_seed(1)
    assert draws(compose, 8) == first
    assert more != first
    compose.set_random_seed(2)
    assert draws(compose, 8) != first


def test_transforms_draw_independently():
    compose = TaskCompose([RandomScale(0.5, 2.0), RandomHorizontalFlip()], TASKS)
    compose.set_random_seed(0)
    kinds = {(width > 1.25 * WIDTH, flipped) for width, flipped in draws(compose)}
    assert len(kinds) == 4


def test_lightnings_seed_repeats_a_run_without_workers():
    def run(seed):
        seed_everything(seed, verbose=False)
        return draws(TaskCompose([RandomScale(0.5, 2.0)], TASKS), 4)

    assert run(1) == run(1)
    assert run(1) != run(2)


class Widths(Dataset):
    """One plane again and again; an item is the width after a random zoom, and the worker's id."""

    def __init__(self):
        self.transform = TaskCompose([RandomScale(0.5, 2.0)], TASKS)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        width = self.transform({**plane_sample(height=8, width=1000), "targets": {}})["image"].shape[-1]
        return torch.utils.data.get_worker_info().id, width


def epoch_widths(loader):
    seen = {0: [], 1: []}
    for workers, widths in loader:
        for worker, width in zip(workers.tolist(), widths.tolist(), strict=True):
            seen[worker].append(width)
    return seen


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_and_epochs_differ_and_seeds_repeat(persistent):
    def run(seed):
        seed_everything(seed, workers=True, verbose=False)
        loader = DataLoader(
            Widths(), batch_size=2, num_workers=2, worker_init_fn=worker_init, persistent_workers=persistent
        )
        return [epoch_widths(loader), epoch_widths(loader)]

    first, second = run(7)
    assert first[0] != first[1]
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert run(7) == [first, second]
    assert run(8) != [first, second]
