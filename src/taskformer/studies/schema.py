"""Study files: arms that differ in what a study is about, each trained with the same seeds."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.evaluation.settings import SEED
from taskformer.parsing import Parser, laid_on, read_layers

Made = TypeVar("Made")

#: Settings that are a study's own business.
OWN = ("config", "name", "runs_dir", "resume", "ckpt", "ckpt_path", "json", SEED)
#: Settings of one class of many, and what follows their names.
CLASSES, PARTS = ("model", "data"), ("class_path", "init_args")
#: Where a configuration names its tasks.
TASKS = "data.init_args.tasks"
#: What a task that is trained alone has no use for, as in ``taskformer baselines``.
ALONE = {"model.init_args.loss_weights": None, "model.init_args.balancing": "taskformer.modules.FixedWeights"}


@dataclass(frozen=True)
class ArmFile:
    """What an arm adds to a study's configuration.

    Args:
        config: Configurations, on which those of the study lie: a model, on which the recipe of all arms lies.
        settings: Settings by dotted name, which win over all else.
    """

    config: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """What is trained with each seed: an arm, or one task of the arm of single tasks.

    >>> Variant("single", "depth", (), {}).name, Variant("plain", None, (), {}).name
    ('single-depth', 'plain')

    Attributes:
        arm: Name of the arm.
        task: The task that is trained alone; None: all of the configuration.
        files: The configurations, later ones on earlier ones.
        settings: Settings by dotted name, the shorter names first.
    """

    arm: str
    task: str | None
    files: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What its files are called."""
        return self.arm if self.task is None else f"{self.arm}-{self.task}"

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """All of it as one configuration.

        Raises:
            ConfigError: If a file holds no settings, or a setting is inside of what is no group of settings.
            OSError: If a file cannot be read.
        """
        merged: dict[str, Any] = {}
        for file in self.files:
            layer = read_layers(file)
            if not isinstance(layer, dict):
                msg = f"{file} must hold settings by name, got {layer!r}"
                raise ConfigError(msg)
            merged = laid_on(merged, layer)
        for name, value in self.settings.items():
            merged = _with(merged, name, name.split("."), value)
        return merged


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        variant: What is trained.
        seed: With which seed.
    """

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """What its files are called, e.g. ``plain-seed0``."""
        return f"{self.variant.name}-seed{self.seed}"

    @property
    def configuration(self) -> dict[str, Any]:
        """The configuration with the seed."""
        return self.variant.configuration | {SEED: self.seed}


@dataclass(frozen=True)
class Study:
    """A study: which networks, or ways to train them, are compared.

    Args:
        file: The file.
        title: Heading of the report.
        arms: What is compared, by name.
        base: Configurations of every arm, which lie on its own; paths as on the command line.
        settings: Settings of every arm by dotted name, as on the command line, e.g. ``trainer.max_epochs``.
        seeds: Every arm is trained once with each.
        reference: The arm that the others are compared with; None: the first that is not of single tasks.
        single_tasks: The arm that delta_m is against, which is trained once for each task; None: no delta_m.
        photographs: Whether the runs are also scored on real photographs, as they are: of rooms and of streets.
        split: What the arms are scored on: the test images, or the validation images where a choice is to be made;
            with ``data.init_args.holdout`` those are held-out training images.
    """

    file: Path
    title: str
    arms: dict[str, ArmFile]
    base: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    reference: str | None = None
    single_tasks: str | None = None
    photographs: bool = False
    split: Literal["test", "val"] = "test"

    @property
    def name(self) -> str:
        """Name of its folders."""
        return self.file.stem

    @property
    def compared(self) -> list[str]:
        """The arms that have all tasks."""
        return [arm for arm in self.arms if arm != self.single_tasks]

    @property
    def against(self) -> str:
        """The arm that the others are compared with."""
        return self.reference or self.compared[0]

    @cached_property
    def variants(self) -> list[Variant]:
        """What is trained with each seed, in the order of the arms."""
        found = []
        for name, arm in self.arms.items():
            settings = _ordered(self.settings | arm.settings)
            whole = Variant(name, None, (*arm.config, *self.base), settings)
            found += _each_task(whole) if name == self.single_tasks else [whole]
        return found

    def trials(self, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[Trial]:
        """List the runs, all of the first seed first, so that there is something to see early.

        Args:
            arms: Names of arms; None: all.
            seeds: Seeds; None: all.

        Raises:
            UnknownNameError: If the study has no such arm.
            ConfigError: If it has no such seed.
        """
        for arm in arms or ():
            if arm not in self.arms:
                kind = "arm"
                raise UnknownNameError(kind, arm, self.arms)
        if unknown := [seed for seed in seeds or () if seed not in self.seeds]:
            msg = f"{self.file} has no seed {unknown[0]}; it has {', '.join(map(str, self.seeds))}"
            raise ConfigError(msg)
        chosen = [variant for variant in self.variants if arms is None or variant.arm in arms]
        return [Trial(variant, seed) for seed in self.seeds if seeds is None or seed in seeds for variant in chosen]


def read_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: If something is missing, unknown or wrong.
        OSError: If a file cannot be read.
        yaml.YAMLError: If it is not YAML.
    """
    file = Path(path)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        study = _study(file, content)
        _require_sense(study)
        for variant in study.variants:
            _ = variant.configuration
    except ConfigError as error:
        msg = f"{file}: {error}"
        raise ConfigError(msg) from error
    return study


def _study(file: Path, content: Any) -> Study:
    """Build a study of what its file holds."""
    if not isinstance(content, dict):
        msg = f"a study must be settings by name, got {content!r}"
        raise ConfigError(msg)
    parser = Parser(prog="study")
    parser.add_class_arguments(Study, skip={"file"})
    parser.parse_object(_outline(content))  # raises what is wrong
    arms = {name: _made(ArmFile, arm) for name, arm in content["arms"].items()}
    return _made(Study, content | {"file": file, "arms": arms})


def _outline(content: Any) -> Any:
    """Return what a file holds without the values of settings, of which a parser would make the classes they name."""
    if not isinstance(content, dict):
        return content
    outline = dict(content)
    if isinstance(settings := content.get("settings"), dict):
        outline["settings"] = dict.fromkeys(settings)
    if isinstance(arms := content.get("arms"), dict):
        outline["arms"] = {name: _outline(arm) for name, arm in arms.items()}
    return outline


def _made(kind: type[Made], content: Mapping[str, Any]) -> Made:
    """Build a part of a study; the parser overlooks unknown names of empty settings."""
    known = inspect.signature(kind).parameters
    for name in content:
        if name not in known:
            raise ConfigError(str(UnknownNameError("key", str(name), known)))
    return kind(**content)


def _require_sense(study: Study) -> None:
    """Refuse names of arms that nothing has, seeds twice, and settings that are a study's own business."""
    for arm in study.arms:
        if not re.fullmatch(r"\w+", str(arm)):
            msg = f"the arm {arm!r} must be named by letters, digits and underscores, as its files are called after it"
            raise ConfigError(msg)
    for role in (study.reference, study.single_tasks):
        if role is not None and role not in study.arms:
            raise ConfigError(str(UnknownNameError("arm", role, study.arms)))
    if not study.compared or study.against == study.single_tasks:
        msg = "a study needs an arm that has all tasks, as its reference; single tasks are compared by delta_m"
        raise ConfigError(msg)
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        msg = f"seeds must be one or more different numbers, got {study.seeds}"
        raise ConfigError(msg)
    for settings in (study.settings, *(arm.settings for arm in study.arms.values())):
        for name in settings:
            _require_setting(name)


def _require_setting(name: str) -> None:
    """Refuse settings that a study makes itself, and shorter names of a class's settings."""
    first, *rest = name.split(".")
    if first in OWN:
        msg = f"a study chooses {first} itself; leave the setting {name!r} out"
        raise ConfigError(msg)
    if first in CLASSES and (not rest or rest[0] not in PARTS):
        msg = f"write the setting {name!r} in full, as {first}.init_args.{'.'.join(rest) or 'NAME'}"
        raise ConfigError(msg)


def _each_task(arm: Variant) -> list[Variant]:
    """List the tasks of an arm, each alone."""
    place: Any = arm.configuration
    for key in TASKS.split("."):
        place = place.get(key) if isinstance(place, dict) else None
    if not isinstance(place, list) or not place:
        msg = f"the arm {arm.arm} of single tasks needs a list of tasks, {TASKS}, got {place!r}"
        raise ConfigError(msg)
    alone = {task: _ordered({**arm.settings, **ALONE, TASKS: [task]}) for task in place}
    return [Variant(arm.arm, task, arm.files, settings) for task, settings in alone.items()]


def _ordered(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Put what is chosen as a whole before its parts, as the command line does."""
    return dict(sorted(settings.items(), key=lambda item: item[0].count(".")))


def _with(group: Mapping[str, Any], full: str, parts: Sequence[str], value: Any) -> dict[str, Any]:
    """Return settings in which one is another.

    >>> _with({"trainer": {"max_epochs": 1}}, "trainer.max_epochs", ["trainer", "max_epochs"], 2)
    {'trainer': {'max_epochs': 2}}
    """
    first, *rest = parts
    if not rest:
        return {**group, first: value}
    below = group.get(first) or {}
    if not isinstance(below, Mapping):
        msg = f"the setting {full!r} is inside of {first}, which is {below!r} and no group of settings"
        raise ConfigError(msg)
    return {**group, first: _with(below, full, rest, value)}
