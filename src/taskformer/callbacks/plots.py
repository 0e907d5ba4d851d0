"""Plots of a run: its learning curves after the training, and what it gets wrong after the test."""

from lightning.pytorch import Callback, LightningModule, Trainer

from taskformer.callbacks.run_folder import run_folder
from taskformer.evaluation.details import DETAILS
from taskformer.files import write_json
from taskformer.modules.base import MultiTaskModule


class Plots(Callback):
    """Draw ``curves.png`` at the end of ``fit`` and ``plots/*.png`` at the end of ``test`` in the run folder.

    >>> trainer = Trainer(callbacks=[Plots(draw=False)], accelerator="cpu", logger=False)

    ``test`` also writes ``details.json``, from which ``taskformer plot`` draws one run or several.

    Args:
        draw: Whether to draw; ``details.json`` is always written.
    """

    def __init__(self, draw: bool = True) -> None:
        self.draw = draw

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the learning curves, where there are any."""
        from taskformer.evaluation.plots import draw_training  # matplotlib takes a while to import

        folder = run_folder(trainer)
        if self.draw and folder is not None:
            draw_training(folder)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the test found beyond its scores, and draw it."""
        from taskformer.evaluation.plots import draw_test

        folder = run_folder(trainer)
        if folder is None or not isinstance(pl_module, MultiTaskModule):
            return
        write_json(folder / DETAILS, pl_module.details["test"])
        if self.draw:
            draw_test(folder)
