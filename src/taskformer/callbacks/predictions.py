"""What a network predicts for the test images, as files that any evaluator of the field can score."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from taskformer.callbacks.run_folder import data_module
from taskformer.data.predictions import without_padding, write_prediction
from taskformer.errors import ConfigError
from taskformer.modules.base import MultiTaskModule


class Predictions(Callback):
    """Write the predictions of ``test`` to ``predictions/TASK/ID.png`` or ``.npy`` in the run folder.

    >>> trainer = Trainer(callbacks=[Predictions(save=True)], accelerator="cpu", logger=False)

    Class ids are PNGs, as are probabilities (times 255, truncated) of edges and saliency; everything else is float32:
    depth ``(H, W)`` in metres, normals ``(H, W, 3)``. Maps have the size that their image was loaded with: what
    ``eval_transforms`` padded is cut off. ``taskformer evaluate`` scores the files.

    Args:
        save: Whether to write them.
    """

    def __init__(self, save: bool = False) -> None:
        self.save = save

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse mixtures of data sets, whose identifiers may be the same.

        Raises:
            ConfigError: If predictions of a mixture are to be saved.
        """
        if self.save and hasattr(data_module(trainer), "parts"):
            msg = "--predictions.save works with one data set at a time; test the parts of the mixture one by one"
            raise ConfigError(msg)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Write the predictions of a batch; every process writes its own."""
        if not self.save or getattr(trainer, "fast_dev_run", False) or not isinstance(pl_module, MultiTaskModule):
            return
        folder = Path(trainer.default_root_dir) / "predictions"
        meta, transforms = batch["meta"], data_module(trainer).eval_transforms
        for name, maps in outputs.items():  # none where no image of the batch could be read
            for output, image, size in zip(maps, meta["id"], meta["size"], strict=True):
                write_prediction(folder, pl_module.tasks[name], image, without_padding(output, size, transforms))
