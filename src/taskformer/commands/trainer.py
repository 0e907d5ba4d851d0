"""``taskformer fit|validate|test|search``: any model x any data set through LightningCLI, each run in its own folder.

:func:`from_config` builds the same objects for Python.
"""

import logging
import os
import re
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from taskformer.callbacks import Gallery, Predictions, ResultsTable, RunFolder
from taskformer.commands.parser import TaskformerParser
from taskformer.commands.search import SearchTrainer
from taskformer.data import MultiTaskDataModule
from taskformer.errors import ConfigError
from taskformer.modules import MultiTaskModule

# LightningCLI calls functions that jsonargparse has renamed; that is between the two of them, not for our users.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

RUN_NAME_VARIABLE = "TASKFORMER_RUN_NAME"


def main(argv: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``search``."""
    # What Lightning 2.6 says about torch's internals and its own products is nothing our users can act on.
    warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")
    # Our batches take the sampler's place and evaluate every image once, see EvaluationBatches.
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    TaskformerCLI(args=argv)


def from_config(*configs: str | Path, overrides: Sequence[str] = ()) -> tuple[MultiTaskModule, MultiTaskDataModule]:
    """Build model and data exactly as the command line would.

    Args:
        configs: YAML files, e.g. ``configs/model/mqtransformer.yaml`` and ``configs/data/rooms.yaml``; later ones win.
        overrides: Flags as on the command line, e.g. ``["--model.init_args.embed_dim=32"]``.

    Returns:
        The LightningModule and the LightningDataModule.

    Raises:
        ConfigError: If a file, class or key is wrong.
    """
    arguments = [argument for config in configs for argument in ("--config", str(config))]
    cli = TaskformerCLI(args=[*arguments, *overrides], run=False)
    return cli.model, cli.datamodule


class TaskformerCLI(LightningCLI):
    """LightningCLI with linked tasks, run folders, results table and gallery.

    Args:
        args: Command line, e.g. ``["fit", "--config", "configs/experiment/demo.yaml"]``.
        run: False: only build ``model`` and ``datamodule``; ``args`` then has no subcommand.
    """

    def __init__(self, args: list[str], run: bool = True) -> None:
        super().__init__(
            MultiTaskModule,
            MultiTaskDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunFolder if run else None,
            trainer_class=SearchTrainer,
            trainer_defaults={"max_epochs": 20},
            seed_everything_default=0,
            parser_class=TaskformerParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name the Trainer methods that are commands, and their arguments that are no flags."""
        commands = LightningCLI.subcommands()
        del commands["predict"]  # `taskformer predict` takes photographs, see predict.py
        return commands | {"search": {"model", "datamodule"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Leave tables to :class:`ResultsTable`, not to Lightning's own print of every logged number."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults(verbose=False)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse ``args`` (LightningCLI would warn that it did not take them from ``sys.argv``)."""
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add run folder, callbacks, and the link from the data's tasks to the model's."""
        parser.add_argument("--name", type=str | None, help="Name of the run; its folder is RUNS_DIR/NAME.")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument("--json", type=str | None, help="Also write the results table to this JSON file.")
        parser.link_arguments("data", "model.init_args.tasks", compute_fn=_task_specs, apply_on="instantiate")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val/loss",
                "checkpoint.save_last": True,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(Gallery, "gallery")
        parser.add_lightning_class_args(ResultsTable, "results")
        parser.add_lightning_class_args(Predictions, "predictions")

    def before_instantiate_classes(self) -> None:
        """Name the run and give its folder to the loggers."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        config.name = config.name or _run_name(self.subcommand, config)
        folder = Path(config.runs_dir) / config.name
        if self.subcommand == "fit" and not config.trainer.fast_dev_run and not config.ckpt_path:
            _refuse_used_folder(folder)
        config.results.json = config.results.json or config.json
        for logger in _as_list(config.trainer.logger):
            # Loggers that would share the current folder write to the run's own.
            if "init_args" in logger and logger.init_args.get("save_dir", "") in (".", None):
                logger.init_args.save_dir = str(folder)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the Trainer with everything it writes below the run folder; None where nothing runs."""
        if self.subcommand is None:
            return None
        config = self.config[self.subcommand]
        if config.trainer.fast_dev_run:  # leaves nothing behind
            return super().instantiate_trainer(logger=False, **kwargs)
        folder = Path(config.runs_dir) / config.name
        if config.trainer.logger in (None, True):
            kwargs["logger"] = CSVLogger(folder / "logs", name="", version=self.subcommand)
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(folder)
        checkpoint: ModelCheckpoint = self._get(self.config_init, "checkpoint")
        checkpoint.dirpath = checkpoint.dirpath or str((folder / "checkpoints").absolute())
        return super().instantiate_trainer(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint is of the configured model; the configuration itself stays the user's.

        LightningCLI would let the checkpoint's hyper-parameters replace what the command line says, without a word.
        """
        command = self.config.get("subcommand")
        path = self.config[command].get("ckpt_path") if command else None
        if not path or not Path(path).is_file():
            return
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("taskformer_class")
        wanted = self.config[command].model.class_path
        if saved and saved.rsplit(".", 1)[-1] != wanted.rsplit(".", 1)[-1]:
            msg = f"{path} is a checkpoint of {saved}, the configuration asks for {wanted}; change one of them"
            raise ConfigError(msg)


def _task_specs(data: MultiTaskDataModule) -> dict[str, dict[str, Any]]:
    """Describe the data's tasks to the model, in plain types so that checkpoints stay safe to load."""
    return data.task_specs


def _run_name(command: str, config: Any) -> str:
    """Name a run after its checkpoint's folder, or after model, data and time."""
    if command != "fit" and config.ckpt_path and Path(config.ckpt_path).parent.name == "checkpoints":
        return Path(config.ckpt_path).absolute().parent.parent.name
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and RUN_NAME_VARIABLE in os.environ:
        return os.environ[RUN_NAME_VARIABLE]  # processes that the first one started share its folder
    parts = [re.sub("DataModule$", "", config[key].class_path.rsplit(".", 1)[-1]).lower() for key in ("model", "data")]
    name = "-".join([*parts, datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-%f")[:-3]])
    os.environ[RUN_NAME_VARIABLE] = name
    return name


def _refuse_used_folder(folder: Path) -> None:
    """Never mix two runs in one folder."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 and (folder / "config.yaml").exists():
        msg = (
            f"the run folder {str(folder)!r} is in use; choose another --name, delete the folder, "
            f"or continue the run with --ckpt_path {folder / 'checkpoints' / 'last.ckpt'}"
        )
        raise ConfigError(msg)


def _as_list(value: Any) -> list[Any]:
    """Make a list of one logger, many or none."""
    if isinstance(value, list):
        return value
    return [] if value in (None, True, False) else [value]
