"""Tasks: what a network predicts per pixel, how that is learned, measured and drawn.

To add one, write a file with a class that has ``@register("name")`` and import it here.
"""

from taskformer.tasks.base import IGNORE_INDEX, PROTOCOLS, ClassCounts, Geometry, Stage, Task
from taskformer.tasks.classification import Classification
from taskformer.tasks.depth import Depth, InverseDepth, RelativeInverseDepth
from taskformer.tasks.edges import Edges
from taskformer.tasks.embedding import Embedding
from taskformer.tasks.image_level import ImageLevelTask
from taskformer.tasks.label_map import LabelMapTask
from taskformer.tasks.normals import Normals
from taskformer.tasks.registry import build_task, build_tasks, register, registered
from taskformer.tasks.regression import Regression
from taskformer.tasks.saliency import Saliency
from taskformer.tasks.segmentation import HUMAN_PARTS, HumanParts, SemanticSegmentation
from taskformer.tasks.value_map import ValueMapTask
from taskformer.tasks.vector import ImageVector

__all__ = [
    "HUMAN_PARTS",
    "IGNORE_INDEX",
    "PROTOCOLS",
    "ClassCounts",
    "Classification",
    "Depth",
    "Edges",
    "Embedding",
    "Geometry",
    "HumanParts",
    "ImageLevelTask",
    "ImageVector",
    "InverseDepth",
    "LabelMapTask",
    "Normals",
    "Regression",
    "RelativeInverseDepth",
    "Saliency",
    "SemanticSegmentation",
    "Stage",
    "Task",
    "ValueMapTask",
    "build_task",
    "build_tasks",
    "register",
    "registered",
]
