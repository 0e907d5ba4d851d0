"""Users' own data as a data module, without code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.folder import Folder, Label
from taskformer.errors import ConfigError, UnknownNameError, require
from taskformer.tasks import build_tasks

if TYPE_CHECKING:
    from taskformer.pictures import Orientation
    from taskformer.tasks import Task

SPLITS = ("train", "val", "test")


class FolderDataModule(MultiTaskDataModule):
    """Your own images and labels, described by the patterns of their paths; see ``docs/data.md``.

    >>> data = FolderDataModule(
    ...     root="data/mine",
    ...     image="images/{split}/{id}.jpg",
    ...     labels={"depth": Label("depth/{split}/{id}.png", {"max_depth": 5.0}, divide_by=1000)},
    ... )
    >>> data.task_specs
    {'depth': {'max_depth': 5.0}}

    Args:
        root: The data set's folder, relative to the current one.
        image: Pattern of the images' paths below the root, e.g. ``images/{split}/{id}.jpg``; ``{id}`` may span folders.
        labels: Where each task's labels are and what their values mean, by task.
        splits: For each of ``train``, ``val`` and ``test`` the folder that ``{split}`` stands for; where ``image`` has
            no ``{split}``, the share of the images (a number; an image's id alone decides where it falls) or a text
            file below the root with one id per line. None: folders of these names, or shares of 0.8, 0.1 and 0.1.
            Without ``test``, the validation images are tested.
        border: Width in pixels of a frame at the edge of the image where no label counts.
        orientation: What the orientation tags of images turn: nothing (``stored``); the ``image``, whose labels were
            drawn on it as viewers show it; or ``both``, the image and its labels, which fit its stored pixels.
        tasks: Any of the names in ``labels``; None uses all.
        **kwargs: The options that all data modules share, see :class:`MultiTaskDataModule`.

    Raises:
        ConfigError: If labels or splits are contradictory.
    """

    name = "folder"

    def __init__(
        self,
        root: str,
        image: str,
        labels: dict[str, Label],
        splits: dict[str, float | str] | None = None,
        *,
        border: int = 0,
        orientation: Orientation = "stored",
        tasks: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.image = image
        self.labels = labels
        folders: dict[str, float | str] = {split: split for split in SPLITS}
        default = folders if "{split}" in image else {"train": 0.8, "val": 0.1, "test": 0.1}
        self.sources = default if splits is None else splits
        self.border = border
        self.orientation = orientation
        require("[0, inf)", border=border)
        for split in self.sources:
            if split not in SPLITS:
                kind = "split in splits"
                raise UnknownNameError(kind, split, SPLITS)
        super().__init__(root, tasks, **kwargs)
        build_tasks(self.task_specs)  # a wrong option is better found now than when the model is built

    def task_offers(self) -> dict[str, dict[str, Any]]:
        """Return the specification in each label entry."""
        return {name: label.spec for name, label in self.labels.items()}

    def splits(self) -> list[str]:
        """Return the names of the splits that differ."""
        firsts: dict[str, str] = {}
        for split, source in self.sources.items():
            firsts.setdefault(source if isinstance(source, str) else split, split)  # equal shares are different images
        return list(firsts.values())

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> Folder:
        """Build one split.

        Raises:
            ConfigError: If the data set does not have it.
        """
        split = "val" if split == "test" and "test" not in self.sources else split
        if split not in self.sources:
            msg = f"data.init_args.splits has no {split!r}, only {sorted(self.sources)}; add it"
            raise ConfigError(msg)
        return Folder(
            self.root,
            split,
            tasks,
            transform,
            image=self.image,
            labels=self.labels,
            splits=self.sources,
            border=self.border,
            orientation=self.orientation,
            **self.dataset_options,
        )
