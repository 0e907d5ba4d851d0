"""The run folder: everything needed to know what a run was and to get its numbers again."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from taskformer.evaluation.environment import environment
from taskformer.files import write_json, write_text

#: Arguments of the Trainer's methods: without them any command and :func:`taskformer.from_config` take the file.
OF_CALLS = ("ckpt_path", "weights_only", "verbose", "resume", "ckpt")


class RunFolder(SaveConfigCallback):
    """Write ``config.yaml`` and ``environment.json`` into the run folder when training or evaluation starts.

    >>> parser = LightningArgumentParser()
    >>> callback = RunFolder(parser, parser.parse_args([]))  # as LightningCLI does with its ``save_config_callback``
    >>> trainer = Trainer(callbacks=[callback], accelerator="cpu", logger=False)

    Lightning's own callback writes to the logger's folder, which different wandb runs share.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the files; the evaluation of a run leaves its training configuration alone."""
        folder = Path(trainer.default_root_dir)
        config = self.config.clone()
        config.json = config.results.json = None  # of this call, not of the run
        for key in OF_CALLS:
            config.pop(key, None)
        if stage == "fit" or not (folder / "config.yaml").exists():
            write_text(folder / "config.yaml", self.parser.dump(config, skip_none=False))
            write_json(folder / "environment.json", environment())


def run_folder(trainer: Trainer) -> Path | None:
    """Folder that this process may write to; None in ``fast_dev_run`` and on all processes but the first."""
    if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
        return None
    return Path(trainer.default_root_dir)


def data_module(trainer: Trainer) -> Any:
    """Return the run's data module."""
    return trainer.datamodule  # type: ignore[attr-defined]  # the Trainer gets it when it starts


def is_fitting(trainer: Trainer) -> bool:
    """Whether this is ``fit`` (also during its validation epochs) and not an evaluation on its own."""
    return trainer.state.fn == TrainerFn.FITTING
