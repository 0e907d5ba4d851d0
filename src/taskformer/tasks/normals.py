"""Surface normals."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from taskformer.errors import InvalidTargetError, UnknownNameError
from taskformer.metrics.normals import AngularError, unit_vectors
from taskformer.metrics.protocols import Protocol
from taskformer.tasks.base import Geometry, Stage
from taskformer.tasks.colors import Swatch, normal_colors, swatch
from taskformer.tasks.losses import cosine_distance, normals_cosine, normals_l1
from taskformer.tasks.registry import register
from taskformer.tasks.value_map import ValueMapTask

#: How normals are compared in training: the distance of their components, or one minus the cosine of their angle.
NormalsLoss: TypeAlias = Literal["l1", "cosine"]
#: Where surfaces face whose colours a legend shows.
DIRECTIONS = {"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0), "down": (0, 1, 0), "the camera": (0, 0, -1)}


@register("normals")
class Normals(ValueMapTask):
    """Surface normals; targets ``(B, 3, H, W)`` float32 unit vectors, NaN where invalid.

    >>> Normals("normals").decode(torch.tensor([0.0, 0.0, -5.0]).view(1, 3, 1, 1)).flatten().tolist()
    [0.0, 0.0, -1.0]

    In the camera's frame x points right, y down and z into the scene.

    Args:
        name: The task's name.
        loss_weight: Weight of the task's loss in the sum; 10 is that of the literature for ``l1``.
        loss: ``l1``, the distance of the three components, as on NYUD-v2 and PASCAL-Context, or ``cosine``, one minus
            the cosine of the angle, as in AdaShare.

    Raises:
        UnknownNameError: If there is no such loss.
    """

    geometry: ClassVar[Geometry] = "vector"
    headline: ClassVar[str] = "mean_angle"
    units: ClassVar[dict[str, str]] = {
        "mean_angle": "deg",
        "median_angle": "deg",
        "rmse_angle": "deg",
        "within_11.25": "%",
        "within_22.5": "%",
        "within_30": "%",
    }
    higher_is_better: ClassVar[bool] = False
    difference_unit: ClassVar[str] = "deg"

    def __init__(self, name: str, loss_weight: float = 10.0, loss: NormalsLoss = "l1") -> None:
        if loss not in get_args(NormalsLoss):
            kind = f"loss of task {name!r}"
            raise UnknownNameError(kind, loss, get_args(NormalsLoss))
        super().__init__(name, 3, loss_weight)
        self._compare = normals_cosine if loss == "cosine" else normals_l1

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self._compare(output, target)

    def _distance(self, output: Tensor, teacher: Tensor) -> Tensor:
        """Compute one minus the mean cosine similarity."""
        return cosine_distance(output, teacher)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"angular_error": AngularError(protocol.inclusive, protocol.uncentred)}

    def averaged(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the mean of the unit vectors."""
        return super().averaged([self.decode(output) for output in outputs])

    def decode(self, output: Tensor) -> Tensor:
        """Return unit vectors ``(B, 3, H, W)`` float32."""
        return unit_vectors(output.float())

    def store(self, output: Tensor) -> NDArray[Any]:
        """Return unit vectors ``(H, W, 3)`` float32."""
        return super().store(self.decode(output.unsqueeze(0)).squeeze(0))

    def restore(self, stored: NDArray[Any]) -> Tensor:
        """Return vectors ``(3, H, W)`` of stored ones ``(H, W, 3)``: float, or colours ``(n + 1) / 2`` of 8 or 16 bits.

        Raises:
            InvalidTargetError: If they are something else, for instance colours as floats.
        """
        if stored.dtype in (np.uint8, np.uint16):
            return super().restore(stored / (np.iinfo(stored.dtype).max / 2) - 1)
        vectors = super().restore(stored)
        if vectors.numel() and vectors.min() >= 0 and (vectors > 0).all(dim=0).any():
            message = (
                f"task {self.name!r} needs vectors, whose signs differ; these floats are colours: n = 2 * color - 1"
            )
            raise InvalidTargetError(message)
        return vectors

    def difference(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        """Return the angle between vectors of any lengths ``(3, H, W)`` in degrees."""
        a, b = (vectors.astype(np.float64) for vectors in (first, second))
        # Half angles of the parallelogram's diagonals: also exact where vectors are nearly equal (Kahan).
        a, b = (vectors / np.linalg.norm(vectors, axis=0).clip(1e-12) for vectors in (a, b))
        half = np.arctan2(np.linalg.norm(a - b, axis=0), np.linalg.norm(a + b, axis=0))
        return np.asarray(np.degrees(2 * half))

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw unit vectors ``(3, H, W)`` as RGB ``(n + 1) / 2``."""
        if values.ndim != 3 or values.shape[0] != 3:
            message = f"task {self.name!r} draws vectors (3, H, W), got {values.shape}"
            raise InvalidTargetError(message)
        return normal_colors(values)

    def _swatches(self, maps: Sequence[NDArray[Any]]) -> list[Swatch]:
        return [swatch(normal_colors(np.array(v).reshape(3, 1, 1)), f"faces {name}") for name, v in DIRECTIONS.items()]

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the normalised mean normal ``(3,)``."""
        vectors = self.values(targets)
        total = vectors[torch.isfinite(vectors).all(dim=1)].double().sum(dim=0)
        return F.normalize(total, dim=0).float()

    def wrong_values(self, target: NDArray[Any]) -> Iterator[str]:
        """Say also where vectors of a stored target ``(H, W, 3)`` are not of length 1."""
        yield from super().wrong_values(target)
        lengths = np.linalg.norm(target[np.isfinite(target).all(axis=-1)], axis=-1)
        if (wrong := lengths[np.abs(lengths - 1) > 0.01]).size:
            yield f"{wrong.size} normals are not of length 1, e.g. {wrong[0]:g}"
