"""Depth and inverse depth."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from taskformer.errors import ConfigError
from taskformer.metrics.depth import DepthErrors
from taskformer.metrics.protocols import Protocol
from taskformer.tasks.base import Geometry, Stage
from taskformer.tasks.colors import Swatch, color_scale, scale_colors
from taskformer.tasks.losses import l1
from taskformer.tasks.registry import register
from taskformer.tasks.value_map import ValueMapTask, medians

#: Metres beyond what any camera of these data sets sees; larger values are millimetres, or marks of invalid pixels.
MAX_DEPTH_M = 1000.0
#: Ranges of the true value up to the end of the colours, in which the test counts errors; one more has what is beyond.
RANGES = 20
#: Units of the metrics that compare by ratio.
RATIO_UNITS = {"rmse_log": "", "abs_rel": "", "delta1": "%", "delta2": "%", "delta3": "%"}


@register("depth")
class Depth(ValueMapTask):
    """Distance along the optical axis; targets ``(B, 1, H, W)`` float32 in metres, NaN (or not above 0) where invalid.

    >>> depth = Depth("depth", max_depth=10.0)
    >>> output, target = torch.tensor([3.0, 9.0]).view(1, 1, 1, 2), torch.tensor([1.0, torch.nan]).view(1, 1, 1, 2)
    >>> depth.loss(output, target).item()
    2.0

    Args:
        name: The task's name.
        max_depth: Depth in metres at the far end of the colours; losses and metrics have no cap.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "depth"
    limits: ClassVar[tuple[float, float]] = (0.0, MAX_DEPTH_M)
    headline: ClassVar[str] = "rmse"
    units: ClassVar[dict[str, str]] = {"rmse": "m", "rmse_per_image": "m", "mae": "m", **RATIO_UNITS}
    higher_is_better: ClassVar[bool] = False
    difference_unit: ClassVar[str] = "m"

    def __init__(self, name: str, max_depth: float = 10.0, loss_weight: float = 1.0) -> None:
        if not max_depth > 0:
            message = f"task {name!r} needs max_depth above 0 metres, got {max_depth}"
            raise ConfigError(message)
        super().__init__(name, 1, loss_weight)
        self.max_depth = max_depth

    @property
    def plausible(self) -> tuple[float, float]:
        """Within a wide range of ``max_depth``; centimetres, millimetres and kilometres taken for metres are not."""
        return self.max_depth / 1000, self.max_depth * 10

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the depth as ``(B, 1, H, W)`` float32 with NaN where it is not above 0."""
        target = super().check(target, output)
        return torch.where(target > 0, target, torch.nan)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return l1(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"errors": _errors(protocol, stage, self.max_depth)}

    def decode(self, output: Tensor) -> Tensor:
        """Return depth in metres ``(B, 1, H, W)`` float32, at least 0."""
        return output.float().clamp(min=0)

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw depth in metres from yellow (near) to purple (``max_depth`` and beyond), the same range for all maps."""
        return color_scale(self._plane(values), self.max_depth, 0.0)

    def _swatches(self, maps: Sequence[NDArray[Any]]) -> list[Swatch]:
        return [Swatch(scale_colors()[:, ::-1], f"{self.max_depth:g} m or more", start="0 m")]

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the mean depth ``(1,)``, which minimises the RMSE."""
        values = self.values(targets)
        values = values[torch.isfinite(values) & (values > 0)]
        return values.double().mean().nan_to_num(0.0).float().view(1)

    def wrong_values(self, target: NDArray[Any]) -> Iterator[str]:
        """Say also where a stored target ``(H, W)`` is 0, which is not a depth."""
        yield from super().wrong_values(target)
        if zeros := (target == 0).sum():
            yield f"{zeros} depths are 0; where depth is missing, it must be NaN"


@register("inverse_depth")
class InverseDepth(ValueMapTask):
    """1 / depth; targets ``(B, 1, H, W)`` float32 in 1/m: 0 infinitely far, NaN (or below 0) where invalid.

    >>> InverseDepth("inverse_depth").decode(torch.tensor([-0.5, 0.25]).view(1, 1, 1, 2)).flatten().tolist()
    [0.0, 0.25]

    Street scenes are learned this way because far values, the sky's among them, stay small. The default weight is the
    one AdaShare uses on Cityscapes (Sun et al., NeurIPS 2020), for values below 1.

    Args:
        name: The task's name.
        max_inverse_depth: Inverse depth at the near end of the colours; losses and metrics have no cap.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "inverse_depth"
    limits: ClassVar[tuple[float, float]] = (0.0, np.inf)
    headline: ClassVar[str] = "mae"
    units: ClassVar[dict[str, str]] = {"rmse": "1/m", "rmse_per_image": "1/m", "mae": "1/m", **RATIO_UNITS}
    higher_is_better: ClassVar[bool] = False
    difference_unit: ClassVar[str] = "1/m"

    def __init__(self, name: str, max_inverse_depth: float = 0.2, loss_weight: float = 20.0) -> None:
        if not max_inverse_depth > 0:
            message = f"task {name!r} needs max_inverse_depth above 0, got {max_inverse_depth}"
            raise ConfigError(message)
        super().__init__(name, 1, loss_weight)
        self.max_inverse_depth = max_inverse_depth

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the inverse depth as ``(B, 1, H, W)`` float32 with NaN where it is below 0."""
        target = super().check(target, output)
        return torch.where(target >= 0, target, torch.nan)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return l1(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"errors": _errors(protocol, stage, self.max_inverse_depth, inverse=True)}

    def decode(self, output: Tensor) -> Tensor:
        """Return inverse depth ``(B, 1, H, W)`` float32, at least 0."""
        return output.float().clamp(min=0)

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw inverse depth from yellow (``max_inverse_depth`` and nearer) to purple (infinitely far)."""
        return color_scale(self._plane(values), 0.0, self.max_inverse_depth)

    def _swatches(self, maps: Sequence[NDArray[Any]]) -> list[Swatch]:
        unit = f" {self.units[self.headline]}".rstrip()
        return [Swatch(scale_colors(), f"{self.max_inverse_depth:g}{unit} or more", start=f"0{unit}")]

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the median ``(1,)``, which minimises the mean absolute error."""
        values = self.values(targets)
        return medians(torch.where(values >= 0, values, torch.nan))


@register("relative_inverse_depth")
class RelativeInverseDepth(InverseDepth):
    """Inverse depth up to a factor, as in data sets whose disparities come without their camera: no metric unit.

    >>> RelativeInverseDepth("inverse_depth").units["mae"], InverseDepth("inverse_depth").units["mae"]
    ('', '1/m')
    """

    difference_unit: ClassVar[str] = ""
    units: ClassVar[dict[str, str]] = {"rmse": "", "rmse_per_image": "", "mae": "", **RATIO_UNITS}


def _errors(protocol: Protocol, stage: Stage, highest: float, inverse: bool = False) -> DepthErrors:
    """Build the metric with the protocol's choices; the test also counts errors in ranges from 0 to ``highest``."""
    ranges = [highest * step / RANGES for step in range(RANGES + 1)] if stage == "test" else []
    return DepthErrors(
        inverse,
        floor=protocol.depth_floor,
        log_floor=protocol.log_floor,
        above=protocol.depth_above,
        inclusive=protocol.inclusive,
        image_means=protocol.image_means,
        ranges=ranges,
    )
