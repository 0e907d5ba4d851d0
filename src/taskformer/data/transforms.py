"""Augmentations that keep every label true to its image. The only file that imports albumentations.

Albumentations moves masks but knows nothing of metres or vectors: mirrored normals keep their sign, a zoomed room keeps
its depth, padding becomes class 0. The transforms here move the pixels *and* correct the values, each by the
``geometry`` of its task; photometric transforms may be albumentations' own. The values are corrected by the functions
of :mod:`taskformer.data.geometry`.

How each one treats a pinhole camera with focal length ``f`` and principal point ``c`` (pixels; x right, y down, z into
the scene; ``depth`` is z). After it, the depth map back-projected with the *new* camera has exactly the new normals:

===================== ========================== ======================== ===================
transform             depth                      normals                  new camera
===================== ========================== ======================== ===================
RandomHorizontalFlip  same                       x negated                c.x -> width-1-c.x
RandomCrop, Pad       same                       same                     c shifts
RandomRotate          same                       turn with the pixels     c turns
Resize                same                       same                     f, c grow per axis
RandomScale(s)        divided by s               same                     f, c grow by s
RandomScaledCrop(s)   divided by s               same                     f, c grow by s, c shifts
===================== ========================== ======================== ===================

Inverse depth is multiplied where depth is divided. The rotation is about the optical axis when ``c`` is the image
centre; only then is the new camera the old one. Zooming shows a scene ``1/s`` the size through a lens ``s`` times as
long, and is exact as that. Read as the *same* lens moved closer, the usual reason for the augmentation, it is
approximate: only surfaces that face the camera agree, any other would need the normal ``(x, y, s*z)`` and would show
new occlusions. The published recipes leave normals alone, as here.

All maps are sampled at the nearest pixel, so no value is made up; pixels from outside are 255 or NaN. OpenCV's
``INTER_NEAREST``, which the published recipes use, looks up the upper left corner of each new pixel, up to half a pixel
from where the image is interpolated; ``sampling: corner`` does the same, for recipes that are to be theirs.
"""

import os
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor

from taskformer.data.geometry import (
    ALL,
    Array,
    Kind,
    Sampling,
    invalid_value,
    map_kind,
    mirror,
    pad,
    pick,
    resize_image,
    resize_map,
    rotate_normals,
    zoom_image,
    zoom_values,
)
from taskformer.data.photometric import distort
from taskformer.errors import ConfigError, InvalidTargetError, UnknownNameError, require
from taskformer.normalisation import normalise_bytes
from taskformer.tasks import IGNORE_INDEX, Task

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the internet for a newer version
import albumentations as A

#: What a pipeline is made of: transforms of this module, photometric ones of albumentations, ``OneOf`` etc. of them.
Transform: TypeAlias = A.BasicTransform | A.BaseCompose

Sample: TypeAlias = dict[str, Any]

#: The mean colour as 8-bit RGB: what padding looks like, close to 0 after normalisation.
MEAN_COLOR = (124, 116, 104)

#: Sides of an image, in pixels: OpenCV counts them in 16 bits.
SIDE = "[1, 32767]"

_TWINS = {
    "HorizontalFlip": "RandomHorizontalFlip",
    "RandomScale": "RandomScale",
    "RandomResizedCrop": "RandomScaledCrop",
    "RandomSizedCrop": "RandomScaledCrop",
    "Affine": "RandomScale or RandomRotate",
    "ShiftScaleRotate": "RandomScale or RandomRotate",
    "Rotate": "RandomRotate",
    "SafeRotate": "RandomRotate",
    "RandomCrop": "RandomCrop",
    "CenterCrop": "RandomCrop",
    "PadIfNeeded": "Pad",
    "Pad": "Pad",
    "Resize": "Resize",
    "LongestMaxSize": "Resize",
    "SmallestMaxSize": "Resize",
}


class SpatialTransform(A.DualTransform):  # type: ignore[misc]  # albumentations is untyped
    """Base of transforms that move pixels. Subclasses say how the image moves and how a map does.

    Args:
        p: Probability that the transform is applied.

    Raises:
        ConfigError: If a setting is impossible; so do all subclasses.
    """

    # Albumentations' own mask targets stay unsupported: it knows no kinds, so it could only treat them wrongly.
    _targets = (A.core.type_definitions.Targets.IMAGE,)

    #: Whether two calls on one image may differ.
    is_random = True

    def __init__(self, p: float = 1.0) -> None:
        require("[0, 1]", p=p)
        super().__init__(p=p)

    def declare(self, kinds: Mapping[str, Kind]) -> None:
        """Tell the transform the names and kinds of the maps that come with the image."""
        for name, kind in kinds.items():
            self._key2func[name] = partial(self.apply_to_map, kind=kind)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw what is random, once for the image and all its maps (albumentations' hook)."""
        del data
        return self.draw(*params["shape"][:2])

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw what is random for an image of this size from ``self.py_random``; nothing by default."""
        del height, width
        return {}

    @abstractmethod
    def apply(self, img: Array, **params: Any) -> Array:
        """Move the image ``(H, W, 3)``."""

    @abstractmethod
    def apply_to_map(self, pixels: Array, kind: Kind, **params: Any) -> Array:
        """Move a map ``(H, W)`` or ``(H, W, C)`` and correct its values."""


class RandomHorizontalFlip(SpatialTransform):
    """Mirror left and right; normals are mirrored too.

    >>> from taskformer.tasks import build_tasks
    >>> flip = TaskCompose([RandomHorizontalFlip(p=1.0)], build_tasks({"normals": {}}))
    >>> image, normals = np.zeros((1, 2, 3), np.uint8), np.array([[[0.6, 0.0, 0.8], [1.0, 0.0, 0.0]]])
    >>> flip({"image": image, "targets": {"normals": normals}, "meta": {}})["targets"]["normals"][0]  # x
    tensor([[-1.0000, -0.6000]])

    Args:
        p: Probability of a flip.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)

    def apply(self, img: Array, **_: Any) -> Array:
        """Mirror the image."""
        return mirror(img)

    def apply_to_map(self, pixels: Array, kind: Kind, **_: Any) -> Array:
        """Mirror the map."""
        return mirror(pixels, kind)


class RandomScale(SpatialTransform):
    """Zoom by a random factor, the same in x and y; depth is divided by it.

    >>> from taskformer.tasks import build_tasks
    >>> zoom = TaskCompose([RandomScale(choices=[2.0])], build_tasks({"depth": {}}))
    >>> image, depth = np.zeros((1, 2, 3), np.uint8), np.array([[4.0, 6.0]])
    >>> zoom({"image": image, "targets": {"depth": depth}, "meta": {}})["targets"]["depth"]
    tensor([[[2., 2., 3., 3.],
             [2., 2., 3., 3.]]])

    Labels and normals keep their values: exact for a scene ``1/s`` the size seen through a focal length of ``s*f``,
    approximate for the same lens moved closer (see the top of this module). The image is interpolated bilinearly, also
    where it shrinks, as in the published recipes.

    Args:
        low: Smallest factor; factors are drawn evenly up to ``high``.
        high: Largest factor.
        choices: Draw one of these factors instead.
        rescale_depth: Whether depth is divided by the factor (and inverse depth multiplied); a few published recipes
            leave depth as it is.
        sampling: Where in its new pixel a map is looked up: at the ``center``, as the image is, or at the upper left
            ``corner``, as OpenCV does and the published recipes with it.
        keep_lines: Whether edges are thickened before they shrink, so that no line breaks; the published recipes take
            the nearest pixel of edges too, which keeps their share of all pixels, and with it what a loss's weight
            of edges means.
        p: Probability that the transform is applied.

    Raises:
        ConfigError: If a factor is not above 0, or ``low`` is above ``high``.
    """

    def __init__(
        self,
        low: float = 0.5,
        high: float = 2.0,
        choices: list[float] | None = None,
        rescale_depth: bool = True,
        sampling: Sampling = "center",
        keep_lines: bool = False,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        require("(0, inf)", low=low, high=high, choices=choices)
        if low > high:
            msg = f"{type(self).__name__} needs low <= high, got low={low} and high={high}"
            raise ConfigError(msg)
        if choices is not None and not choices:
            msg = f"{type(self).__name__} needs some choices or null, got choices={choices}"
            raise ConfigError(msg)
        self.low = low
        self.high = high
        self.choices = choices
        self.rescale_depth = rescale_depth
        self.sampling: Sampling = sampling
        self.keep_lines = keep_lines

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw the factor; the new size is rounded down."""
        scale = self.py_random.choice(self.choices) if self.choices else self.py_random.uniform(self.low, self.high)
        return {"scale": scale, "size": (max(1, int(height * scale)), max(1, int(width * scale))), "window": (ALL, ALL)}

    def apply(self, img: Array, **params: Any) -> Array:
        """Resize the image."""
        return zoom_image(img, *params["size"], *params["window"])

    def apply_to_map(self, pixels: Array, kind: Kind, **params: Any) -> Array:
        """Resize the map."""
        resized = self.resize(pixels, kind, params)
        return zoom_values(resized, kind, params["scale"]) if self.rescale_depth else resized

    def resize(self, pixels: Array, kind: Kind, params: Mapping[str, Any]) -> Array:
        """Resize a map as it was drawn, without a change of its values."""
        (height, width), (rows, columns) = params["size"], params["window"]
        return resize_map(pixels, kind, height, width, rows, columns, self.sampling, self.keep_lines)


class RandomScaledCrop(RandomScale):
    """:class:`RandomScale` followed by :class:`RandomCrop`, without computing what is cut off.

    >>> from taskformer.tasks import build_tasks
    >>> crop = TaskCompose([RandomScaledCrop(low=2.0, high=2.0, height=1, width=3)], build_tasks({"depth": {}}))
    >>> image, depth = np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 4.0)
    >>> crop({"image": image, "targets": {"depth": depth}, "meta": {}})["targets"]["depth"]
    tensor([[[2., 2., 2.]]])

    With ``max_share`` below 1 windows of little variety are drawn again, as in the published recipes: at least two
    classes of ``semseg`` must be in the window, and the most frequent one must cover less than this share of the
    labelled pixels. An image without ``semseg`` is cropped anywhere.

    Args:
        low: Smallest factor; factors are drawn evenly up to ``high``.
        high: Largest factor.
        height: Height of the window in pixels; a side that is smaller is left as it is (follow with :class:`Pad`).
        width: Width of the window in pixels.
        max_share: Share that the most frequent class must stay below; 1 accepts every window.
        retries: How often a window is drawn again; the last one is taken as it is.
        rescale_depth: Whether depth is divided by the factor (and inverse depth multiplied).
        sampling: Where in its new pixel a map is looked up: ``center``, or ``corner`` as in the published recipes.
        keep_lines: Whether edges are thickened before they shrink, so that no line breaks.

    Raises:
        ConfigError: If a factor is not above 0, or ``low`` is above ``high``.
    """

    def __init__(
        self,
        low: float,
        high: float,
        height: int,
        width: int,
        max_share: float = 1.0,
        retries: int = 10,
        rescale_depth: bool = True,
        sampling: Sampling = "center",
        keep_lines: bool = False,
    ) -> None:
        super().__init__(low, high, rescale_depth=rescale_depth, sampling=sampling, keep_lines=keep_lines)
        require(SIDE, height=height, width=width)
        require("(0, 1]", max_share=max_share)
        require("[0, inf)", retries=retries)
        self.height = height
        self.width = width
        self.max_share = max_share
        self.retries = retries
        #: Name of the target this looks at, see :func:`wanted_guides`.
        self.guide = "semseg" if max_share < 1 else ""

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw the factor and the window."""
        drawn = super().draw(height, width)
        return {**drawn, "window": _draw_window(self.py_random, drawn["size"], (self.height, self.width))}

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window again until it has enough variety."""
        drawn = super().get_params_dependent_on_data(params, data)
        for _ in range(self.retries if self.guide in data else 0):
            if _is_varied(self.resize(data[self.guide], "label", drawn), self.max_share):
                break
            drawn["window"] = _draw_window(self.py_random, drawn["size"], (self.height, self.width))
        return drawn


class RandomRotate(SpatialTransform):
    """Turn the image about its centre; normals turn with it, corners that come from outside are invalid.

    >>> from taskformer.tasks import build_tasks
    >>> rotate = TaskCompose([RandomRotate(degrees=30.0)], build_tasks({"depth": {}}))
    >>> image, depth = np.zeros((3, 3, 3), np.uint8), np.arange(1.0, 10.0).reshape(3, 3)
    >>> turned = rotate({"image": image, "targets": {"depth": depth}, "meta": {}})["targets"]["depth"]
    >>> turned.shape, turned[0, 1, 1].item()  # the centre stays, with its depth
    (torch.Size([1, 3, 3]), 5.0)

    Args:
        degrees: Largest angle, drawn from ``[-degrees, degrees]``.
        p: Probability that the transform is applied.
    """

    def __init__(self, degrees: float = 10.0, p: float = 1.0) -> None:
        super().__init__(p=p)
        require("[0, 180]", degrees=degrees)
        self.degrees = degrees

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw the angle and find the pixel that each new pixel comes from."""
        angle = self.py_random.uniform(-self.degrees, self.degrees)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        # A rotation's inverse is its transpose: source = R^T (target - shift), as row vectors (target - shift) R.
        target = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
        x, y = np.moveaxis(np.rint((target - matrix[:, 2]) @ matrix[:, :2]).astype(int), -1, 0)
        outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        return {"matrix": matrix, "source": (y.clip(0, height - 1), x.clip(0, width - 1)), "outside": outside}

    def apply(self, img: Array, **params: Any) -> Array:
        """Turn the image."""
        size = (img.shape[1], img.shape[0])
        return cv2.warpAffine(img, params["matrix"], size, flags=cv2.INTER_LINEAR, borderValue=MEAN_COLOR)

    def apply_to_map(self, pixels: Array, kind: Kind, **params: Any) -> Array:
        """Turn the map."""
        turned = pick(pixels, *params["source"])
        turned[params["outside"]] = invalid_value(pixels)
        return rotate_normals(turned, params["matrix"][:, :2]) if kind == "vector" else turned


class RandomCrop(SpatialTransform):
    """Cut out a window at random; a side that is already smaller is left as it is (follow with :class:`Pad`).

    >>> from taskformer.tasks import build_tasks
    >>> crop = TaskCompose([RandomCrop(height=1, width=2)], build_tasks({"depth": {}}))
    >>> image, depth = np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 3.0)
    >>> crop({"image": image, "targets": {"depth": depth}, "meta": {}})["targets"]["depth"]
    tensor([[[3., 3.]]])

    Args:
        height: Height of the window in pixels.
        width: Width of the window in pixels.
        p: Probability that the transform is applied.
    """

    def __init__(self, height: int, width: int, p: float = 1.0) -> None:
        super().__init__(p=p)
        require(SIDE, height=height, width=width)
        self.height = height
        self.width = width

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw the window."""
        return {"window": _draw_window(self.py_random, (height, width), (self.height, self.width))}

    def apply(self, img: Array, **params: Any) -> Array:
        """Cut the image."""
        return pick(img, *params["window"])

    def apply_to_map(self, pixels: Array, kind: Kind, **params: Any) -> Array:
        """Cut the map."""
        del kind
        return pick(pixels, *params["window"])


class Pad(SpatialTransform):
    """Pad to at least this size: the image with ImageNet's mean colour, every map with invalid pixels.

    The mean colour has 8 bits, which is within 0.009 of the 0 that the published recipes pad normalised images with.

    >>> from taskformer.tasks import build_tasks
    >>> pad_to = TaskCompose([Pad(height=1, width=4)], build_tasks({"depth": {}}))
    >>> image, depth = np.zeros((1, 2, 3), np.uint8), np.array([[1.0, 2.0]])
    >>> pad_to({"image": image, "targets": {"depth": depth}, "meta": {}})["targets"]["depth"]
    tensor([[[nan, 1., 2., nan]]])

    Args:
        height: Smallest height in pixels.
        width: Smallest width in pixels.
        position: Where the image lies in the padded one.
    """

    def __init__(self, height: int, width: int, position: Literal["center", "random"] = "center") -> None:
        super().__init__(p=1.0)
        require(SIDE, height=height, width=width)
        self.height = height
        self.width = width
        self.position = position
        self.is_random = position == "random"

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw the borders."""
        return {"borders": (self._split(self.height - height), self._split(self.width - width))}

    def _split(self, missing: int) -> tuple[int, int]:
        missing = max(0, missing)
        before = missing // 2 if self.position == "center" else self.py_random.randint(0, missing)
        return before, missing - before

    def apply(self, img: Array, **params: Any) -> Array:
        """Pad the image."""
        return pad(img, params["borders"], MEAN_COLOR)

    def apply_to_map(self, pixels: Array, kind: Kind, **params: Any) -> Array:
        """Pad the map."""
        del kind
        return pad(pixels, params["borders"], invalid_value(pixels))


class Resize(SpatialTransform):
    """Resize the whole image; depth keeps its values, because this changes the sensor's pixels, not the view.

    >>> from taskformer.tasks import build_tasks
    >>> resize = TaskCompose([Resize(height=1, width=4)], build_tasks({"depth": {}}))
    >>> image, depth = np.zeros((1, 2, 3), np.uint8), np.array([[1.0, 2.0]])
    >>> resize({"image": image, "targets": {"depth": depth}, "meta": {}})["targets"]["depth"]
    tensor([[[1., 1., 2., 2.]]])

    Args:
        height: New height in pixels.
        width: New width in pixels.
    """

    is_random = False

    def __init__(self, height: int, width: int) -> None:
        super().__init__(p=1.0)
        require(SIDE, height=height, width=width)
        self.height = height
        self.width = width

    def apply(self, img: Array, **_: Any) -> Array:
        """Resize the image."""
        return resize_image(img, self.height, self.width)

    def apply_to_map(self, pixels: Array, kind: Kind, **_: Any) -> Array:
        """Resize the map."""
        return resize_map(pixels, kind, self.height, self.width)


class PhotoMetricDistortion(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped
    """Change brightness, contrast, saturation and hue, each with probability ``p``.

    >>> image = np.full((2, 2, 3), 100, np.uint8)
    >>> distort = PhotoMetricDistortion(brightness=20.0, contrast=0.0, p=1.0)
    >>> changed = distort(image=image)["image"].astype(int)
    >>> bool((abs(changed - 100) <= 20).all())  # grey has no colour to change
    True

    The defaults are the recipe of the multi-task dense-prediction literature (SSD's distortion, [1]): a shift from
    [-32, 32]; a contrast factor from [0.5, 1.5], at random before or after the colours; a saturation factor from
    [0.5, 1.5] and a turn of the hue by -18 to 17 of OpenCV's 180 steps. Every step ends in 8 bits, truncated.

    [1] Liu et al., SSD: Single Shot MultiBox Detector, https://arxiv.org/abs/1512.02325

    Args:
        brightness: Largest shift of 8-bit values.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        hue: Largest shift of the hue in degrees.
        p: Probability of each of the four.
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 36.0,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=1.0)
        require("[0, 255]", brightness=brightness)
        require("[0, 1]", contrast=contrast, saturation=saturation, p=p)
        require("[0, 360]", hue=hue)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.chance = p

    def get_params(self) -> dict[str, Any]:
        """Draw the four changes (albumentations' hook), each with probability ``p``; None for those left out."""
        draw, steps = self.py_random, round(self.hue / 2)  # OpenCV's hue counts double degrees
        shifts, contrasts, saturates, turns = (draw.random() < self.chance for _ in range(4))
        return {
            "shift": draw.uniform(-self.brightness, self.brightness) if shifts else None,
            "contrast": draw.uniform(1 - self.contrast, 1 + self.contrast) if contrasts else None,
            "contrast_first": draw.random() < 0.5,
            "saturation": draw.uniform(1 - self.saturation, 1 + self.saturation) if saturates else None,
            "turn": draw.randint(-steps, steps - 1) if turns and steps else None,
        }

    def apply(
        self,
        img: Array,
        shift: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        turn: int | None = None,
        contrast_first: bool = True,
        **_: Any,
    ) -> Array:
        """Change the colours, see :func:`taskformer.data.photometric.distort`."""
        return distort(img, shift, contrast, saturation, turn, contrast_first)


class TaskCompose:
    """Apply transforms to an image and all its targets, then normalise and turn everything into tensors.

    The random stream starts anew whenever torch's is seeded, which training does for every sample (see
    :mod:`taskformer.data.loading`): same seed, same run, and workers and epochs differ. (Albumentations by itself
    repeats one stream in every worker and epoch, and when it is seeded gives all transforms *equal* streams, so that,
    say, large zooms always come with a flip.)

    Example:
        >>> from taskformer.tasks import build_tasks
        >>> pipeline = TaskCompose([RandomHorizontalFlip(p=1.0)], build_tasks({"depth": {}}))
        >>> image, depth = np.zeros((1, 3, 3), np.uint8), np.array([[1.0, 2.0, 3.0]])
        >>> pipeline({"image": image, "targets": {"depth": depth}, "meta": {}})["targets"]["depth"]
        tensor([[[3., 2., 1.]]])

    Args:
        transforms: What to do, in order, to the uint8 image and the raw targets. They are copied.
        tasks: The tasks by name; targets of other names are refused.
        guides: Further tasks whose targets the transforms look at (see :func:`wanted_guides`): they move with the image
            and are left out of the result.

    Raises:
        ConfigError: If a transform of albumentations would move pixels without correcting depth, vectors and invalid
            pixels.
    """

    def __init__(
        self, transforms: Sequence[Transform], tasks: Mapping[str, Task], guides: Mapping[str, Task] | None = None
    ) -> None:
        self.tasks = dict(tasks)
        self._known = {**(guides or {}), **self.tasks}
        chain = deepcopy(list(transforms))
        self._kinds = {name: kind for name, task in self._known.items() if (kind := map_kind(task))}
        for transform in _leaves(chain):
            _refuse_uncorrected(transform)
        self._compose = A.Compose(chain, additional_targets=dict.fromkeys(self._kinds, "mask"), strict=True)
        for transform in _leaves(chain):
            if isinstance(transform, SpatialTransform):
                transform.declare(self._kinds)
        self._torch_seed: int | None = None

    def set_random_seed(self, seed: int) -> None:
        """Start the random stream afresh; one stream is shared by all transforms, so their draws are independent."""
        self._torch_seed = torch.initial_seed()
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))

    def __call__(self, sample: Sample) -> Sample:
        """Transform one sample.

        Args:
            sample: ``{"image": (H, W, 3) uint8 RGB, "targets": {task: array of the same H, W}, "meta": {...}}``.
                Normals must have unit length, as data sets give them.

        Returns:
            The same keys with ``image`` ``(3, H', W')`` float32, ImageNet-normalised, and a target of every task:
            integers ``(H', W')`` int64, others ``(C, H', W')`` float32, all invalid where the sample has no label.
            Nothing shares memory with the input.

        Raises:
            UnknownNameError: If there is a target for which there is no task.
            InvalidTargetError: If a target's size or type is wrong.
        """
        if self._torch_seed != torch.initial_seed():  # another sample, or the first of this process
            self.set_random_seed(torch.initial_seed())
        image, targets = sample["image"], sample["targets"]
        maps = {name: self._checked(name, target, image) for name, target in targets.items() if self._has_pixels(name)}
        moved = {**targets, **self._compose(image=image.copy(), **maps)}
        size = moved["image"].shape[:2]
        tensors = {
            name: task.settle(self._to_tensor(name, moved[name])) if name in moved else task.invalid(*size)
            for name, task in self.tasks.items()
        }
        return {"image": normalise_bytes(moved["image"]), "targets": tensors, "meta": dict(sample["meta"])}

    def _has_pixels(self, name: str) -> bool:
        """Whether the target is a map that moves with the image, and not one label for all of it."""
        if name not in self._known:
            kind = "target"
            raise UnknownNameError(kind, name, self._known)
        return name in self._kinds

    def _checked(self, name: str, target: Array, image: Array) -> Array:
        """Return the map, float64 as float32, or say what is wrong with it."""
        label = self._kinds[name] == "label"
        if target.shape[:2] != image.shape[:2]:
            msg = f"the target {name!r} has the size {target.shape[:2]}, its image {image.shape[:2]} (height, width)"
            raise InvalidTargetError(msg)
        if target.dtype.kind not in ("iu" if label else "f"):
            wanted = "integers, 255 where invalid" if label else "floats, NaN where invalid"
            msg = f"the target {name!r} has the type {target.dtype}; data sets must give {wanted}"
            raise InvalidTargetError(msg)
        squeezed = target[..., 0] if target.ndim == 3 and target.shape[2] == 1 else target
        return squeezed if label else squeezed.astype(np.float32, copy=False)

    def _to_tensor(self, name: str, target: Array) -> Tensor:
        kind = self._kinds.get(name)
        if kind == "label":
            return torch.from_numpy(target.astype(np.int64))
        if kind is not None:
            target = np.atleast_3d(target).transpose(2, 0, 1)
        return torch.from_numpy(np.array(target, dtype=np.float32, order="C"))


def wanted_guides(transforms: Sequence[Transform]) -> list[str]:
    """Return the names of the targets that the transforms look at, whether or not they are tasks."""
    crops = (transform for transform in _leaves(transforms) if isinstance(transform, RandomScaledCrop))
    return list(dict.fromkeys(crop.guide for crop in crops if crop.guide))


def require_fixed(transforms: Sequence[Transform]) -> None:
    """Refuse random transforms: an evaluation gives the same numbers every time.

    Raises:
        ConfigError: If a transform is random; names it.
    """
    for transform in _leaves(transforms):
        spatial = isinstance(transform, SpatialTransform)
        if transform.p < 1 or (transform.is_random if spatial else _draws(transform)):
            msg = (
                f"eval_transforms has {type(transform).__name__}, which is random; outside training images are only "
                "brought to one size, by Pad or Resize"
            )
            raise ConfigError(msg)


def _draws(transform: A.BasicTransform) -> bool:
    """Tell whether a transform of albumentations draws parameters."""
    hooks = ("get_params", "get_params_dependent_on_data")
    return any(getattr(type(transform), hook) is not getattr(A.BasicTransform, hook) for hook in hooks)


def _leaves(transforms: Sequence[Transform]) -> Iterator[A.BasicTransform]:
    """Walk through ``OneOf``, ``Sequential``, ... down to the single transforms."""
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _leaves(transform.transforms)
        else:
            yield transform


def _refuse_uncorrected(transform: A.BasicTransform) -> None:
    if isinstance(transform, SpatialTransform | A.ImageOnlyTransform | A.NoOp):
        return
    name = type(transform).__name__
    twin = _TWINS.get(name)
    advice = f"use {twin}" if twin else "write it as a SpatialTransform"
    msg = (
        f"albumentations' {name} moves pixels but corrects neither depth nor normals nor invalid pixels; "
        f"{advice} from taskformer.data.transforms"
    )
    raise ConfigError(msg)


def _draw_window(generator: random.Random, size: tuple[int, int], window: tuple[int, int]) -> tuple[slice, slice]:
    """Draw where a window lies in an image; a side of the image that is smaller is kept whole."""
    starts = [generator.randint(0, max(0, whole - part)) for whole, part in zip(size, window, strict=True)]
    return slice(starts[0], starts[0] + window[0]), slice(starts[1], starts[1] + window[1])


def _is_varied(labels: Array, max_share: float) -> bool:
    """Whether there are at least two classes, and none covers ``max_share`` of the labelled pixels."""
    # All classes are below 255.
    counts = cv2.calcHist([labels.astype(np.uint8, copy=False)], [0], None, [256], [0, 256])
    counts[IGNORE_INDEX] = 0
    return bool(np.count_nonzero(counts) > 1 and counts.max() < max_share * counts.sum())
