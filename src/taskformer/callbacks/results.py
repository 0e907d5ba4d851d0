"""The results table: one row per task and metric, on the screen and as JSON, markdown and LaTeX, with a model card."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import distributed
from torch.utils.data import IterableDataset

from taskformer.callbacks.run_folder import data_module, is_fitting, run_folder
from taskformer.errors import ConfigError, DatasetNotFoundError
from taskformer.evaluation.benchmark.cost import Cost
from taskformer.evaluation.benchmark.subjects import deployed_cost
from taskformer.evaluation.constant import ConstantPredictor
from taskformer.evaluation.per_image import ImageScores, write_rows
from taskformer.evaluation.references import training_references, validation_images
from taskformer.evaluation.report import PER_IMAGE, make_report, write_metrics
from taskformer.files import write_json
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.evaluating import Batch, Results

#: Test sets of so many images are only scored one by one where that is asked for: the table has twenty lines for each.
MANY_IMAGES = 5000


class ResultsTable(Callback):
    """Print and save the metrics at the end of ``test`` and ``validate``.

    >>> trainer = Trainer(callbacks=[ResultsTable(constant=True)], accelerator="cpu", logger=False)

    Args:
        constant: Also score the best constant prediction (majority class, mean depth, mean normal, edge prior), fitted
            to training images and evaluated on the same split: the floor that every model must beat.
        json: Also write the table to this file.
        protocol: How to score: ``standard``, or ``atrc``, ``invpt`` or ``adashare`` to compare with published numbers.
        per_image: Whether ``test`` also scores every image alone and writes ``per_image.csv`` to the run folder, for
            ``taskformer compare``; None: of fewer than 5,000 images.
        edge_benchmark: Whether ``test`` scores edges by odsF, oisF and AP. Matching takes a fifth of a second per image
            of 160x128 and several seconds per image of 560x425; ``taskformer evaluate`` does it later in parallel.
        baselines: Folder of single-task references, or one file of it; ``test`` and ``validate`` print delta_m against
            those that belong to the run, and ``fit`` logs it as ``val/delta_m``.
    """

    def __init__(
        self,
        constant: bool = False,
        json: str | None = None,
        protocol: str = "standard",
        per_image: bool | None = None,
        edge_benchmark: bool = True,
        baselines: str = "configs/baselines",
    ) -> None:
        self.constant = constant
        self.json = json
        self.protocol = protocol
        self.per_image = per_image
        self.edge_benchmark = edge_benchmark
        self.baselines = baselines
        self._constant: ConstantPredictor | None = None
        self._images = 0
        self._unreadable: list[str] = []
        self._image_scores: ImageScores | None = None
        self._size: tuple[int, int] | None = None
        self._cost: Cost | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose how the model is scored."""
        self._size = self._cost = None
        if isinstance(pl_module, MultiTaskModule):
            pl_module.test_stage = "test" if self.edge_benchmark else "val"
            pl_module.protocol = self.protocol

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count images, and look for the single-task results that an epoch is compared with."""
        self._images, self._unreadable = 0, []
        if is_fitting(trainer) and isinstance(pl_module, MultiTaskModule):
            try:
                references = training_references(trainer, pl_module, Path(self.baselines))
            except ConfigError:
                references = {}
            pl_module.single_task = {name: reference.value for name, reference in references.items()}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the constant predictor and start to count images."""
        if not isinstance(pl_module, MultiTaskModule):
            return
        self._images, self._unreadable = 0, []
        if self.constant:
            training_images = data_module(trainer).evaluation_dataset("train")
            self._constant = ConstantPredictor(
                pl_module.tasks, training_images, self.protocol, pl_module.test_stage, pl_module.device
            )
        loader: Any = trainer.test_dataloaders
        pl_module.scores_images = _is_small(loader.dataset) if self.per_image is None else self.per_image
        if pl_module.scores_images:
            self._image_scores = ImageScores(loader, trainer.global_rank, trainer.world_size)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count the images."""
        self._count(batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Score the constant predictor on the batch that the model has just seen, and note each image's scores."""
        if not isinstance(pl_module, MultiTaskModule):
            return
        self._count(batch)
        if self._constant:
            self._constant.update(batch["targets"])
        if self._image_scores:
            self._image_scores.update(batch, pl_module.image_scores)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes what was read; an epoch of other images is not compared with single tasks."""
        if trainer.sanity_checking or not isinstance(pl_module, MultiTaskModule):
            return
        self._gather()
        if pl_module.single_task and self._images != validation_images(trainer):
            pl_module.single_task = {}
            rank_zero_warn(f"no val/delta_m: only {self._images} validation images could be read", category=UserWarning)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes what was read."""
        if isinstance(pl_module, MultiTaskModule):
            self._gather()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the test results."""
        if not isinstance(pl_module, MultiTaskModule):
            return
        # All processes must come here; the first one writes and prints.
        constant = self._constant.results() if self._constant else {}
        rows = self._image_scores.gather() if self._image_scores else []
        self._constant, self._image_scores = None, None
        folder = run_folder(trainer)
        if folder is None:
            return
        record = {}
        if rows:
            write_rows(folder / PER_IMAGE, rows)
            record = {"per_image": PER_IMAGE}
        self._report("test", trainer, pl_module, constant, record)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation results; print them when validation was what the user asked for."""
        if trainer.sanity_checking or not isinstance(pl_module, MultiTaskModule) or run_folder(trainer) is None:
            return
        record = {"epoch": trainer.current_epoch} if is_fitting(trainer) else {}
        self._report("val", trainer, pl_module, {}, record)

    def _count(self, batch: Batch) -> None:
        """Count the images of a batch that could be read, and note the others."""
        self._images += len(batch["image"])
        if self._size is None and len(batch["image"]):
            self._size = tuple(batch["image"].shape[-2:])
        self._unreadable += batch.get("unreadable", {}).values()

    def _gather(self) -> None:
        """Add up what the processes counted.

        Raises:
            DatasetNotFoundError: If not one image could be read.
        """
        if distributed.is_available() and distributed.is_initialized():
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, (self._images, self._unreadable))
            self._images = sum(images for images, _ in parts)
            self._unreadable = sorted(image for _, images in parts for image in images)
        if not self._images:
            msg = f"none of the {len(self._unreadable)} images to evaluate can be read; see the files logged above"
            raise DatasetNotFoundError(msg)

    def _report(
        self, stage: str, trainer: Trainer, module: MultiTaskModule, constant: Results, record: dict[str, Any]
    ) -> None:
        """Print and save the results of a stage; during training they are only saved."""
        folder, data = Path(trainer.default_root_dir), data_module(trainer)
        if self._cost is None and self._size is not None:  # once: validations of a training have one size
            self._cost = deployed_cost(module, self._size)
        report = make_report(
            module, data, stage, self._images, Path(self.baselines), self._unreadable, constant, self._cost
        )
        size = {"image_size": list(self._size)} if self._size else {}
        record = report.as_dict() | size | record
        if not is_fitting(trainer):  # first of all, for saving may fail
            Console().print(report.table())
            Console().print("\n".join(report.notes), soft_wrap=True, markup=False, highlight=False)
        write_metrics(folder, stage, record)
        if self.json:
            write_json(Path(self.json), {stage: record})
        if not is_fitting(trainer):
            report.write(folder, module, data)
            gallery = folder / "gallery" / f"{stage}.png"
            Console().print(f"run folder: {folder}\ngallery:    {gallery}", soft_wrap=True)


def _is_small(dataset: Any) -> bool:
    """Whether a test set has so few images that each one's scores are kept; nobody knows of one that is streamed."""
    return not isinstance(dataset, IterableDataset) and len(dataset) < MANY_IMAGES


def why_no_delta_m(trainer: Trainer, module: MultiTaskModule) -> str | None:
    """Say why a training will not log ``val/delta_m``; None if it will.

    Args:
        trainer: The Trainer, from ``on_fit_start`` on.
        module: The model that it trains.
    """
    tables = [callback for callback in trainer.callbacks if isinstance(callback, ResultsTable)]  # type: ignore[attr-defined]  # set in its constructor
    if not tables:
        return "the training has no results table"
    try:
        training_references(trainer, module, Path(tables[0].baselines))
    except ConfigError as error:
        return str(error)
    return None
