"""Taskonomy: 4.5 million views of 537 buildings, each with depth, normals and a dozen other maps.

What the files hold (Zamir et al., CVPR 2018, and ``data/README.md`` of StanfordVL/taskonomy), and what becomes of it:

==================== ==================== ======================================================================
task                 folder               values here
==================== ==================== ======================================================================
``depth_zbuffer``    ``depth_zbuffer``    metres along the optical axis: 16 bits in units of 1/512 m; 64500 and
                                          more (126 m) and 0 are invalid
``depth_euclidean``  ``depth_euclidean``  metres to the camera, stored like ``depth_zbuffer``
``normals``          ``normal``           unit vectors ``v / 127.5 - 1``, see below
``curvature``        principal_curvature  the two principal curvatures ``(v - 127) / 128``, so 0 is flat; black is
                                          invalid
``reshading``        ``reshading``        grey 0..1 of 8 bits, the mean of the channels
``edge_texture``     ``edge_texture``     16 bits as 0..1 of [0, 0.08] of full range, the rest clipped
``edge_occlusion``   ``edge_occlusion``   16 bits as 0..1 of [0, 0.00625] of full range, the rest clipped
``keypoints2d``      ``keypoints2d``      16 bits as 0..1 of [0, 0.005] of full range, the rest clipped
``keypoints3d``      ``keypoints3d``      16 bits as 0..1 of full range
``semseg``           segment_semantic     17 classes: 0 (uncertain) is invalid, 1 (background) becomes 0, ...
``segment_unsup2d``  ``segment_unsup2d``  segment ids that mean nothing; the id 255 counts as no label
``segment_unsup25d`` segment_unsup25d     the same
``class_object``     ``class_object``     1000 probabilities (ImageNet's classes); zeros mean no label
``class_scene``      ``class_scene``      365 probabilities (Places' classes); zeros mean no label
``vanishing_point``  ``point_info``       the directions of the building's three axes, as named there, seen from the
                                          camera (x right, y up, z toward the viewer): 9 numbers
``room_layout``      ``point_info``       centre of the room's box in the same frame, the camera's angles, and the
                                          sides of the box: 9 standardised numbers
==================== ==================== ======================================================================

The clipped ranges are those of Taskonomy's own networks. What depends on the scanned surface (normals, curvature,
reshading, occlusion edges, 3D keypoints, 2.5D segments) is invalid where ``mask_valid`` or else the depth has a hole.

Normals: x grows to the right and y downwards, as here. In the owners' texts blue faces the viewer, but their renderer
inverts only red, and what others compute with such maps agrees with blue into the scene. The files decide: a surface
that is seen faces the camera, so z is turned if a map's vectors would point away on average.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taskformer.data.datasets.base import IMAGE, MultiTaskDataset
from taskformer.data.datasets.taskonomy_index import Views, domain_folder, open_index
from taskformer.data.geometry import decode_normals, invalid_value
from taskformer.data.images import File, read_ids, read_json, read_npy, read_pixels, read_plane, read_rgb
from taskformer.data.names import examples
from taskformer.errors import CorruptFileError, DatasetNotFoundError

#: The semantic classes: the background, and COCO's that Taskonomy kept.
CLASSES = (
    *("background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
)
#: Task to folder, where they differ.
FOLDERS = {
    "normals": "normal",
    "curvature": "principal_curvature",
    "semseg": "segment_semantic",
    "vanishing_point": "point_info",
    "room_layout": "point_info",
}
#: Tasks whose target is made from the image itself, see :mod:`taskformer.data.variants`.
IMAGE_TASKS = ("autoencoding", "colorization", "denoising", "inpainting")
#: What is unknown where the scanned surface has a hole.
SURFACE_TASKS = frozenset({"normals", "curvature", "reshading", "edge_occlusion", "keypoints3d", "segment_unsup25d"})
#: Share of the 16-bit range that becomes 0..1.
RANGES = {"edge_texture": 0.08, "edge_occlusion": 0.00625, "keypoints2d": 0.005, "keypoints3d": 1.0}
CLASS_COUNTS = {"class_object": 1000, "class_scene": 365}
#: How much a pixel of each class of ``semseg`` counts in the loss of Taskonomy's own networks, and in AdaShare:
#: ``taskbank/lib/data/semseg_prior_factor.npy``.
PRIOR_FACTORS = (
    *(0.5424, 9.1674, 7.331, 7.162, 8.7229, 7.6133, 8.2369, 9.1486, 8.822),
    *(9.0858, 8.9141, 9.1772, 9.0354, 8.6039, 9.1699, 9.1467, 9.1374),
)
UNITS_PER_METRE = 512
#: Raw depth from which on Taskonomy's own code takes a pixel for a hole (65535 is what is written there).
FARTHEST = 64500
#: Mean and deviation of the room layouts of Taskonomy's training buildings (``taskbank/lib/data/load_ops.py``).
LAYOUT_MEAN = (
    *(-1.64378987e-02, 7.03680296e-02, -2.72496318e00, 1.56155458e00, -2.83141191e-04, -1.57136446e00),
    *(4.81219593e00, 3.69077521e00, 2.61998101e00),
)
LAYOUT_STD = (
    *(0.73644884, 0.53726124, 1.45194796, 0.19338562, 0.01549811, 0.42258508),
    *(2.80763433, 1.92678054, 0.89655357),
)


class Taskonomy(MultiTaskDataset):
    """Views of buildings, in either layout: ``BUILDING/DOMAIN/`` or ``DOMAIN/BUILDING/``, which is recognised.

    Files are ``point_POINT_view_VIEW_domain_DOMAIN.png``. A view lacks the label of a domain that has no file for it.
    The views are found once and kept in an index, see :func:`taskformer.data.datasets.taskonomy_index.open_index`.

    Args:
        *args: What :class:`MultiTaskDataset` takes.
        buildings: Names of the split's buildings.
        only: If given, the points and views of each building to keep.
        mask_blocks: Blocks of this many pixels squared are invalid as a whole if one of their pixels is; 4 in MultiMAE.
        index_dir: Folder of the index, see :func:`open_index`.
        **kwargs: The same, by name.

    Raises:
        DatasetNotFoundError: If there is no view of these buildings.
    """

    def __init__(
        self,
        *args: Any,
        buildings: Sequence[str] = (),
        only: dict[str, set[tuple[int, int]]] | None = None,
        mask_blocks: int = 1,
        index_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self.buildings = list(buildings)
        self.only = only
        self.mask_blocks = mask_blocks
        self.index_dir = Path(index_dir) if index_dir else None
        super().__init__(*args, **kwargs)

    def _ids(self) -> Views:
        self._views = Views(open_index(self.root, self.index_dir), self.buildings, self.only)
        if not len(self._views):
            msg = (
                f"Taskonomy: none of the {len(self.buildings)} buildings of the split {self.split!r} "
                f"({', '.join(self.buildings[:3])}, ...) has a view in {self.root}, which has "
                f"{len(self._views.disk.buildings)} buildings; choose another split_list or download more"
            )
            raise DatasetNotFoundError(msg)
        return self._views

    def files(self, index: int) -> dict[str, Path]:
        """Return the image, the file of each task that the view has one of, and that of the mask as ``mask``."""
        view, layout = self._views.view(index), self._views.disk.layout
        wanted = {IMAGE: "rgb"} | {task: FOLDERS.get(task, task) for task in self.tasks}
        if SURFACE_TASKS & self.tasks.keys():
            wanted["mask"] = "mask_valid" if "mask_valid" in view.tails else "depth_zbuffer"
        return {
            key: domain_folder(self.root, layout, view.building, domain) / f"{view.stem}{view.tails[domain]}"
            for key, domain in wanted.items()
            if domain in view.tails
        }

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any] | None:
        """Turn a file into the image or a task's target; None if the view has no such label."""
        return decode(key, files, self.mask_blocks)

    def problems(self) -> Iterator[str]:
        """Name the split's buildings that are not there, as after a partial download."""
        there = set(self._views.disk.buildings)
        missing = [building for building in self.buildings if building not in there]
        if missing and not (self.root / "miniature.json").exists():
            yield f"{len(missing)} of {len(self.buildings)} buildings are not in {self.root}: {', '.join(missing)}"

    def doubts(self) -> Iterator[str]:
        """Name files in the folders of the split's buildings that belong to no view."""
        strangers = self._views.disk.strangers
        files = [f"{name} of {building}" for building in self.buildings for name in strangers.get(building, [])]
        if files:
            yield f"files of {self.root} belong to no view: {examples(files)}"

    def faults(self, key: str, files: Mapping[str, File], target: NDArray[Any]) -> Iterator[str]:
        """Compare normals with depth: a surface that gets farther to the right looks to the right, and so on down."""
        if key != "normals" or "depth_zbuffer" not in files:
            return
        depth = np.log(_decode_map("depth_zbuffer", files["depth_zbuffer"]))
        for name, axis, values in (("x", 1, target[..., 0]), ("y", 0, target[..., 1])):
            slope = np.gradient(depth, axis=axis)
            # Neither where the surface faces the camera, nor where depth jumps from one object to the next.
            clear = (np.abs(slope) > 1e-3) & (np.abs(slope) < 0.1) & (np.abs(values) > 0.3)
            if clear.sum() >= 100 and (slope[clear] * values[clear] > 0).mean() < 0.25:
                yield f"the {name} of the normals contradicts the depth, as if the axis pointed the other way"


def decode(key: str, files: Mapping[str, File], mask_blocks: int = 1) -> NDArray[Any] | None:
    """Turn files into the image or a task's target; None if there is no such label.

    Args:
        key: ``"image"`` or a task's name.
        files: The files by key; ``mask`` is ``mask_valid`` or depth.
        mask_blocks: See :class:`Taskonomy`.
    """
    if key in IMAGE_TASKS:
        # Only a stand-in: where it stays finite while the image is cropped and padded, there will be a target.
        width, height = Image.open(io.BytesIO(files[IMAGE].content)).size
        return np.zeros((height, width), dtype=np.float32)
    if key not in files:
        return None
    if key == IMAGE:
        return read_rgb(files[key])
    if key in CLASS_COUNTS:
        return _probabilities(files[key], CLASS_COUNTS[key])
    if key in CAMERA_TASKS:
        return _camera_facts(files[key], CAMERA_TASKS[key])
    target = _decode_map(key, files[key])
    if key in SURFACE_TASKS and "mask" in files:
        target[_holes(files["mask"], target.shape, mask_blocks)] = invalid_value(target)
    return target


def _holes(file: File, shape: tuple[int, ...], blocks: int) -> NDArray[np.bool_]:
    """Read where the scanned surface is unknown ``(H, W)`` from a mask, or from depth."""
    pixels = read_plane(file)
    if pixels.shape != shape[:2]:
        msg = f"{file.path} has the size {pixels.shape} (height, width) and the map it masks {shape[:2]}"
        raise CorruptFileError(msg)
    holes: NDArray[np.bool_] = pixels >= FARTHEST if pixels.dtype == np.uint16 else pixels == 0
    return holes if blocks == 1 else _spread(holes, blocks)


def _decode_map(key: str, file: File) -> NDArray[Any]:
    """Turn the file of a dense task into its target, without the mask."""
    if key == "normals":
        return _facing(decode_normals(_pixels(file, 3)))
    if key == "curvature":
        pixels = _pixels(file, 3)
        curvature = (pixels[..., :2].astype(np.float32) - 127) / 128
        curvature[(pixels == 0).all(axis=-1)] = np.nan
        return curvature
    if key == "reshading":
        grey = np.atleast_3d(read_pixels(file)).mean(axis=-1) / 255
        return np.asarray(grey, dtype=np.float32)
    if key in ("semseg", "segment_unsup2d", "segment_unsup25d"):
        pixels = read_ids(file)
        if pixels.dtype != np.uint8:
            msg = f"{file.path} has the type {pixels.dtype}, class and segment ids are of 8 bits"
            raise CorruptFileError(msg)
        return pixels - np.uint8(1) if key == "semseg" else pixels  # 0, uncertain, becomes 255
    pixels = read_plane(file)
    if pixels.dtype != np.uint16:
        msg = f"{file.path} has the type {pixels.dtype}, Taskonomy's {key} maps have 16 bits"
        raise CorruptFileError(msg)
    if key in RANGES:
        return np.asarray(np.clip(pixels / np.float32(65535 * RANGES[key]), 0, 1), dtype=np.float32)
    depth = pixels / np.float32(UNITS_PER_METRE)
    depth[(pixels >= FARTHEST) | (pixels == 0)] = np.nan
    return depth


def _pixels(file: File, channels: int) -> NDArray[np.uint8]:
    pixels = read_pixels(file)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
        msg = f"{file.path} is {pixels.dtype} {pixels.shape}, expected 8 bits and {channels} channels"
        raise CorruptFileError(msg)
    return pixels


def _facing(normals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn z if the vectors point away from the camera on average: what is seen faces it."""
    if np.nansum(normals[..., 2]) > 0:
        normals[..., 2] *= -1
    return normals


def _spread(holes: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Make each block of ``size`` pixels squared a hole if one of its pixels is."""
    height, width = holes.shape
    padded = np.pad(holes, ((0, -height % size), (0, -width % size)))
    blocks = padded.reshape(padded.shape[0] // size, size, padded.shape[1] // size, size).any(axis=(1, 3))
    return np.asarray(blocks.repeat(size, axis=0).repeat(size, axis=1)[:height, :width])


def _probabilities(file: File, count: int) -> NDArray[np.float32] | None:
    """Read probabilities ``(count,)`` that sum to 1; None if they are all zero."""
    values = read_npy(file)
    if values.dtype.kind != "f" or values.size != count or not np.isfinite(values).all() or (values < 0).any():
        msg = f"{file.path} holds {values.dtype} {values.shape}, expected {count} probabilities"
        raise CorruptFileError(msg)
    total = values.sum(dtype=np.float64)
    return (values.reshape(count) / total).astype(np.float32) if total > 0 else None


def _camera_facts(
    file: File, read: Callable[[Mapping[str, Any]], NDArray[np.float64] | None]
) -> NDArray[np.float32] | None:
    try:
        values = read(read_json(file))
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{file.path} lacks what Taskonomy notes about a camera, or has it in another form ({error!r})"
        raise CorruptFileError(msg) from error
    return None if values is None else values.astype(np.float32)


def vanishing_point(point_info: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the unit vectors toward the vanishing points of the building's x, y and z axes ``(9,)``."""
    points = point_info.get("vanishing_points_gaussian_sphere")
    return None if points is None else np.array([points[axis] for axis in "xyz"], dtype=np.float64).reshape(9)


def room_layout(point_info: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the room's box as the camera sees it ``(9,)``, standardised as in Taskonomy's own training.

    Centre in the camera's frame (x right, y up, z toward the viewer), Euler angles of the camera about the world's x, y
    and z axes, and sides of the box; the world is first turned by a multiple of 90 degrees about its upright axis so
    that the camera looks along its x. The file names the box's horizontal axes the wrong way round: only so does it
    contain the point that the camera looks at.
    """
    from scipy.spatial.transform import Rotation  # for this one task

    if "bounding_box_ranges" not in point_info:
        return None
    ranges = point_info["bounding_box_ranges"]
    box = np.array([ranges["y"], ranges["x"], ranges["z"]], dtype=np.float64)  # (3, 2)
    camera = Rotation.from_euler("xyz", point_info["camera_rotation_final"])
    turns = [Rotation.from_euler("z", 90 * k, degrees=True) for k in range(4)]
    turn = max(turns, key=lambda turn: (turn * camera).apply([0, 0, -1])[0])
    centre = camera.inv().apply(box.mean(axis=1) - np.asarray(point_info["camera_location"]))
    sides = np.abs(turn.apply(box[:, 1] - box[:, 0]))
    layout = np.concatenate([centre, (turn * camera).as_euler("xyz"), sides])
    return np.asarray((layout - LAYOUT_MEAN) / LAYOUT_STD)


#: Tasks about the camera that took the image: how each is read from ``point_info``.
CAMERA_TASKS = {"vanishing_point": vanishing_point, "room_layout": room_layout}
