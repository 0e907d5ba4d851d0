import functools
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
from miniature_rooms import facing, plane, rays
from scipy.linalg import polar
from torch.utils.data import DataLoader, Dataset

from taskformer.data.transforms import (
    MEAN_COLOR,
    Pad,
    PhotoMetricDistortion,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotate,
    RandomScale,
    Resize,
    SpatialTransform,
    TaskCompose,
    Transform,
    flip_normals,
    rotate_normals,
    unit_vectors,
    worker_init,
    zoom_depth,
)
from taskformer.errors import ConfigError, InvalidTargetError, UnknownNameError
from taskformer.tasks import build_tasks

#: Every configuration with a pipeline of its own.
CONFIGS = sorted(
    p for p in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if "train_transforms" in p.read_text()
)
HEIGHT, WIDTH = 96, 128
TILTED = facing(30, 40)
NAMES = [str(label) for label in range(13)]
TASKS = build_tasks(
    {
        "semseg": {"classes": NAMES},
        "depth": {},
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
    zoom = 1 if name == "resize" else np.sqrt(abs(np.linalg.det(turn @ stretch)))
    ratio = sample["targets"]["depth"][y, x] / targets["depth"][0]
    np.testing.assert_allclose(ratio[np.isfinite(ratio)], zoom, rtol=0.02)


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


@given(scale=st.floats(0.3, 3.0))
@settings(max_examples=10, deadline=None)
def test_zooming_in_and_out_restores_depth(scale):
    depth = plane_sample()["targets"]["depth"]
    np.testing.assert_allclose(zoom_depth(zoom_depth(depth, scale), 1 / scale), depth, rtol=1e-5)


def test_pure_functions_correct_values_only():
    normal = np.array([[0.6, 0.0, -0.8], [np.nan] * 3], dtype=np.float32)
    np.testing.assert_allclose(flip_normals(normal)[0], [-0.6, 0, -0.8])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])  # what is right of the centre goes up
    np.testing.assert_allclose(rotate_normals(normal, quarter)[0], [0, -0.6, -0.8], atol=1e-7)
    assert np.isnan(flip_normals(normal)[1]).all()
    assert np.isnan(rotate_normals(normal, quarter)[1]).all()
    np.testing.assert_allclose(unit_vectors(3 * normal), normal, rtol=1e-6)
    assert np.isnan(unit_vectors(np.zeros((2, 3)))).all()


def test_padding_is_the_mean_colour_and_never_valid():
    output = TaskCompose([Pad(HEIGHT + 20, WIDTH + 10)], TASKS)(plane_sample())
    image, targets = output["image"], output["targets"]
    assert image[:, :10].abs().max() < 0.02
    assert (targets["semseg"][:10] == 255).all()
    for name in ("depth", "normals", "edges", "position"):
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


def test_missing_labels_survive_every_transform():
    sample = plane_sample()
    sample["targets"] = {"depth": np.full((HEIGHT, WIDTH), np.nan)}  # float64 is accepted
    for name in SINGLE:
        output = TaskCompose(pipeline(name), TASKS)(sample)
        assert output["targets"].keys() == {"depth"}
        assert output["targets"]["depth"].isnan().all()
        assert output["targets"]["depth"].dtype == torch.float32


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
    assert set(SpatialTransform.__subclasses__()) <= tested


def test_bad_zoom_range_is_refused():
    with pytest.raises(ConfigError, match="0 < low <= high"):
        RandomScale(2.0, 1.0)


def test_transforms_can_be_used_by_two_pipelines():
    shared = [RandomHorizontalFlip(p=1.0)]
    TaskCompose(shared, {"normals": TASKS["normals"]})
    targets = TaskCompose(shared, {"depth": TASKS["depth"]})({**plane_sample(), "targets": {}})["targets"]
    assert targets == {}


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
