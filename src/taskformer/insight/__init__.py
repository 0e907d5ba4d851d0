"""What happens inside a trained network, as arrays and as pictures; :func:`taskformer.explain` draws all of it."""

from taskformer.insight.ablation import Influence, influence
from taskformer.insight.attention import Attention, Round, recorded
from taskformer.insight.errors import ClassError, RangeError, class_errors, errors_by_range
from taskformer.insight.exchange import Affinity, affinity, affinity_of
from taskformer.insight.gradients import Conflicts, conflicts
from taskformer.insight.sharing import shared_units
from taskformer.insight.worst import WorstImage, worst_images

__all__ = [
    "Affinity",
    "Attention",
    "ClassError",
    "Conflicts",
    "Influence",
    "RangeError",
    "Round",
    "WorstImage",
    "affinity",
    "affinity_of",
    "class_errors",
    "conflicts",
    "errors_by_range",
    "influence",
    "recorded",
    "shared_units",
    "worst_images",
]
