"""Pictures of what the network sees, should see and predicts, for every task and whatever the logger."""

from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from taskformer.callbacks.run_folder import is_fitting, run_folder
from taskformer.callbacks.trackers import trackers
from taskformer.errors import require
from taskformer.evaluation.gallery import draw_sample, gallery_sheet
from taskformer.files import replacing
from taskformer.modules.base import MultiTaskModule


class Gallery(Callback):
    """Draw a few fixed images with target, prediction and score of every task to ``gallery/*.png`` in the run folder.

    >>> trainer = Trainer(callbacks=[Gallery(images=4)], accelerator="cpu", logger=False)

    Args:
        images: How many images, spread evenly over the split.
        every_n_epochs: Draw the validation images once in this many epochs, 0: never; the test images are always drawn.
        width: Width in pixels at which each picture is drawn.
    """

    def __init__(self, images: int = 6, every_n_epochs: int = 5, width: int = 200) -> None:
        require("[1, inf)", images=images, width=width)
        require("[0, inf)", every_n_epochs=every_n_epochs)
        self.images = images
        self.every_n_epochs = every_n_epochs
        self.width = width

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation images now and then."""
        if not is_fitting(trainer):
            self._draw(trainer, pl_module, trainer.val_dataloaders, "val")
        elif trainer.sanity_checking or not self.every_n_epochs:
            return
        elif (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, trainer.val_dataloaders, f"epoch_{trainer.current_epoch + 1:03d}")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the test images."""
        self._draw(trainer, pl_module, trainer.test_dataloaders, "test")

    def _draw(self, trainer: Trainer, module: LightningModule, loader: Any, name: str) -> None:
        """Draw and save one gallery, and pass that of a training on to loggers that take pictures."""
        folder = run_folder(trainer)
        if folder is None or not isinstance(module, MultiTaskModule):
            return
        count = min(self.images, len(loader.dataset))
        indices = np.linspace(0, len(loader.dataset) - 1, count).round().astype(int)
        samples = [loader.dataset[int(index)] for index in indices]
        drawn = [draw_sample(module, sample) for sample in samples if "image" in sample]
        if not drawn:  # none of them could be read
            return
        path = folder / "gallery" / f"{name}.png"
        with replacing(path) as temporary:
            gallery_sheet(drawn, self.width).save(temporary)
        if is_fitting(trainer):  # a test's table of images has its pictures
            for tracker in trackers(trainer.loggers):
                tracker.gallery("gallery", drawn, trainer.current_epoch)
