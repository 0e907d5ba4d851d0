"""Learning from a teacher: a frozen network, or its predictions on disk, beside the labels or in their place.

A run teaches tasks, a timm encoder or the run's own encoder teaches features. Teachers see the very images that the
model sees, augmented, without gradients and in evaluation mode; they are in no checkpoint.

Reference:
    Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. arXiv 1503.02531 (outputs); Ranzinger et al.
    AM-RADIO. CVPR 2024 (features of foundation models, by their cosine).
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from taskformer.data.predictions import saved
from taskformer.errors import ConfigError, UnknownNameError, require
from taskformer.models import Backbone
from taskformer.modules.checkpoints import Checkpointed
from taskformer.modules.features import FeatureDistance, FeatureTeacher, Guide, backbone_of
from taskformer.modules.restoring import restored
from taskformer.tasks import Task

#: The ``teacher`` whose predictions the data module reads from the disk.
SAVED = "saved"
#: Name of the loss of the features among the losses of the tasks.
FEATURES = "features"

Precision = Literal["float32", "bfloat16", "float16"]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Distillation:
    """A teacher, and what the model learns from it.

    >>> Distillation("runs/large", weight=2.0, tasks=["depth"]).teaches_tasks
    True

    Args:
        teacher: A run folder or checkpoint of any model, or ``"saved"``: the predictions that the data module's
            ``predictions`` names. None: no task has a teacher.
        tasks: The tasks that it teaches; None: all that both have.
        weight: Weight of a task's distance from the teacher over that of its labels. It counts for all images, labelled
            or not.
        labels: Whether these tasks learn from labels too.
        confidence: Let the teacher's prediction take the place of a task's label in images that have none, where its
            class is at least this probable; tasks without probabilities take all. None: not.
        encoder: Name of a timm encoder whose features teach; None: those of the teacher.
        encoder_weights: Its weights: ``"timm"`` or a file, as for ``weights`` of a model.
        feature_weight: Weight of the distance of features.
        feature_level: Which of the model's own feature maps learns, from 0, the finest, on; -1 is the coarsest.
        encoder_level: From which map of the encoder; None: the last one of the nearest stride.
        feature_distance: One minus the cosine (``"cosine"``) or the mean squared difference (``"l2"``).
        precision: What teachers compute in; both halves are quicker on a GPU.

    Raises:
        ConfigError: If a number is impossible, or no teacher is named for what is to be learnt.
    """

    teacher: str | None = None
    tasks: list[str] | None = None
    weight: float = 1.0
    labels: bool = True
    confidence: float | None = None
    encoder: str | None = None
    encoder_weights: str = "timm"
    feature_weight: float = 0.0
    feature_level: int = -1
    encoder_level: int | None = None
    feature_distance: FeatureDistance = "cosine"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require("[0, inf)", **{f"distillation.{key}": getattr(self, key) for key in ("weight", "feature_weight")})
        require("[0, 1]", **{"distillation.confidence": self.confidence})
        if self.feature_weight and not self.encoder and self.teacher in (None, SAVED):
            msg = f"distillation.feature_weight {self.feature_weight} needs distillation.encoder, or a run as teacher"
            raise ConfigError(msg)
        if self.teacher == SAVED and self.confidence:
            msg = f"saved predictions have no confidence; set distillation.confidence to 0, not {self.confidence}"
            raise ConfigError(msg)

    @property
    def teaches_tasks(self) -> bool:
        """Whether any task learns from the teacher."""
        return self.teacher is not None and (self.weight > 0 or self.confidence is not None)

    @property
    def is_on(self) -> bool:
        """Whether anything is learnt from a teacher."""
        return self.teaches_tasks or self.feature_weight > 0

    def loss_weights(self, tasks: Collection[str]) -> dict[str, float]:
        """Return the weight of the loss that it adds to those of the tasks, if any.

        Raises:
            ConfigError: If a task has its name.
        """
        if not self.feature_weight:
            return {}
        if FEATURES in tasks:
            msg = f"a task is called {FEATURES!r}, as is the loss of distillation.feature_weight; rename the task"
            raise ConfigError(msg)
        return {FEATURES: self.feature_weight}

    def described(self) -> dict[str, Any]:
        """Describe it for the recipe of a training, in plain types; empty if it is off."""
        return {"distillation": asdict(self)} if self.is_on else {}


class Distiller:
    """Teachers at work: they say something of each batch, and the model's distance from it is a loss.

    Not a module, so that teachers are no part of the model: of its checkpoints, its parameters and its copies.

    Args:
        settings: What is learnt from whom.
        network: The network that learns.
        tasks: Its tasks by name.

    Attributes:
        tasks: Those of them that have a teacher.
        features: Compares features; None: nobody teaches them.

    Raises:
        ConfigError: If the network or a teacher has no features, or a task is another one for the teacher.
        UnknownNameError: If a task to learn is not one of both.
        WeightsError: If there is no such teacher.
    """

    def __init__(self, settings: Distillation, network: nn.Module, tasks: Mapping[str, Task]) -> None:
        self.settings = settings
        self.teacher = None if settings.teacher is None or settings.teacher == SAVED else _load(settings.teacher)
        self.tasks = self._taught(tasks) if settings.teaches_tasks else {}
        self.features = self._features(network) if settings.feature_weight else None

    def __deepcopy__(self, memo: Any) -> Self:
        """Share the teachers with the copy of a model."""
        return self

    def to(self, device: torch.device) -> None:
        """Bring the teachers to the model's device."""
        if self.teacher is not None:
            self.teacher.to(device)
        if self.features is not None:
            self.features.guide.backbone.to(device)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Batch:
        """Return a batch with what the teachers say of its images, and with the labels that this makes or takes away.

        Args:
            batch: A batch, augmented as the model sees it.

        Returns:
            A new batch: ``"targets"`` as they are to be learnt, ``"teacher"``, the teacher's raw outputs (or saved
            targets) by task, and ``"features"``, the map that the model's is compared with.
        """
        image = batch["image"].float()
        dtype = getattr(torch, self.settings.precision)
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            said = self._said(image, batch["targets"])
            seen = None if self.features is None else self.features.look(image)
        targets = {name: self._target(task, batch["targets"][name], said[name]) for name, task in self.tasks.items()}
        return {**batch, "targets": {**batch["targets"], **targets}, "teacher": said, FEATURES: seen}

    def watching(self) -> AbstractContextManager[None]:
        """Keep of the network's next pass what :meth:`distances` needs."""
        return nullcontext() if self.features is None else self.features.watching()

    def distances(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Compute how far the model is from its teachers.

        Args:
            outputs: Its raw outputs, made while it was watched.
            batch: What :meth:`teach` returned.

        Returns:
            The distance of each task that has a teacher, times its weight, and that of the features.
        """
        said, weight = batch["teacher"], self.settings.weight
        # Saved predictions are as labels are: what their network was unsure of is not known any more.
        is_saved = self.settings.teacher == SAVED
        distances = {
            name: weight * (task.loss if is_saved else task.distance)(outputs[name], said[name])
            for name, task in (self.tasks if weight else {}).items()
        }
        if self.features is not None:
            distances[FEATURES] = self.features.distance_from(batch[FEATURES])
        return distances

    def _said(self, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the teacher says of each task: raw outputs, or what was saved in the form of targets."""
        if not self.tasks:
            return {}
        if self.teacher is not None:
            outputs = self.teacher(image)
            return {name: outputs[name].float() for name in self.tasks}
        if missing := [name for name in self.tasks if saved(name) not in targets]:
            msg = (
                f"distillation.teacher is {SAVED!r}, but no predictions of {', '.join(missing)} are loaded; give their "
                "folder as data.init_args.predictions"
            )
            raise ConfigError(msg)
        return {name: targets[saved(name)] for name in self.tasks}

    def _target(self, task: Task, target: Tensor, said: Tensor) -> Tensor:
        """Return what a task is to learn in place of its labels."""
        confidence = self.settings.confidence
        nothing = task.invalid(*target.shape[-2:]).to(target).expand_as(target)
        labels = target if self.settings.labels else nothing
        if confidence is None:
            return labels
        made = said if self.teacher is None else task.pseudo_label(said, confidence)
        blank = labels.isnan() if labels.is_floating_point() else labels == nothing
        unlabelled = blank.flatten(1).all(dim=1).view(-1, *[1] * (labels.ndim - 1))
        return torch.where(unlabelled, made.to(labels.dtype), labels)

    def _taught(self, own: Mapping[str, Task]) -> dict[str, Task]:
        """Find the tasks that have a teacher."""
        source, wanted = self.settings.teacher, self.settings.tasks
        theirs: Mapping[str, Task] = own if self.teacher is None else self.teacher.tasks
        shared = [name for name in own if name in theirs]
        for name in wanted or ():
            if name not in shared:
                kind = f"task of both the model and its teacher {source}"
                raise UnknownNameError(kind, name, shared)
        if not shared:
            msg = f"the teacher {source} knows {', '.join(theirs)} and nothing of {', '.join(own)}; choose another"
            raise ConfigError(msg)
        tasks = {name: own[name] for name in wanted or shared}
        for name, task in tasks.items():
            if _meaning(task) != _meaning(theirs[name]):
                msg = (
                    f"{name} has other classes or channels for the teacher {source}; name others in distillation.tasks"
                )
                raise ConfigError(msg)
            if self.settings.confidence is not None and not task.has_pseudo_labels:
                msg = f"predictions of {name} cannot stand for its labels; name other tasks in distillation.tasks"
                raise ConfigError(msg)
        return tasks

    def _features(self, network: nn.Module) -> FeatureTeacher:
        settings = self.settings
        if settings.encoder is not None:
            backbone = Backbone(settings.encoder, settings.encoder_weights).float()
            guide = Guide(backbone, backbone.encode)
        else:
            backbone = backbone_of(self.teacher and self.teacher.network, f"the teacher {settings.teacher}")
            guide = Guide(backbone, backbone)
        levels = (settings.feature_level, settings.encoder_level)
        return FeatureTeacher(network, guide, *levels, settings.feature_distance)


def _load(source: str) -> Any:
    """Load a run as a teacher."""
    teacher: Any = restored(Checkpointed, source)  # a model that predicts, which Checkpointed does not say
    teacher.requires_grad_(False)
    return teacher.float()


def _meaning(task: Task) -> tuple[type[Task], int, list[str]]:
    """Return what must agree where one network's outputs teach another's."""
    return type(task), task.channels, list(task.classes)
