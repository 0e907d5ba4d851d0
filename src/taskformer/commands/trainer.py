"""``taskformer fit|validate|test``: any model x any data set through LightningCLI, each run in its own folder.

:func:`from_config` builds the same objects for Python.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar as AnyBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

from taskformer.callbacks import (
    Checkpoints,
    Curves,
    Gallery,
    MovingAverage,
    Plots,
    Predictions,
    ProgressBar,
    ResultsTable,
    RunFolder,
    Stopping,
    Stopwatch,
    Tracking,
)
from taskformer.callbacks.averaging import averages
from taskformer.callbacks.checkpoints import BEST, LAST, WholeCheckpoints
from taskformer.callbacks.trackers import Names, settle
from taskformer.commands.devices import require_possible
from taskformer.commands.loops import EpochLoop
from taskformer.commands.parser import TrainingParser, in_order, joined
from taskformer.commands.runs import INITIAL, Claim, find_checkpoint, go_on_after_requeue, name_run, spell_out, subject
from taskformer.data import MultiTaskDataModule
from taskformer.errors import ConfigError
from taskformer.modules import MultiTaskModule
from taskformer.modules.augmented import TTA
from taskformer.modules.checkpoints import open_checkpoint

# LightningCLI calls functions that jsonargparse has renamed; that is between the two of them, not for our users.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def main(argv: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test``."""
    silence_lightning()
    TaskformerCLI(args=argv)


def silence_lightning() -> None:
    """Leave out what Lightning tells its own developers and customers."""
    # What Lightning 2.6 says about torch's internals and its own products is nothing our users can act on.
    warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")
    # Our batches take the sampler's place and evaluate every image once, see EvaluationBatches.
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)


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
        self._claims: list[Claim] = []
        #: Optimizer steps, and the epoch, of the checkpoint that the command starts from.
        self.steps_done, self.epoch_done = 0, 0
        self._command, words = (args[:1], spell_out(args)[1:]) if run else ([], joined(args))
        try:
            self._run([*self._command, *in_order(words)], run)
        finally:
            for claim in self._claims:
                claim.release()

    def _run(self, args: list[str], run: bool) -> None:
        super().__init__(
            MultiTaskModule,
            MultiTaskDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunFolder if run else None,
            trainer_defaults={"max_epochs": 20},
            seed_everything_default=0,
            parser_class=TrainingParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is the same for all
        """Name the Trainer's method that is the command, and its arguments that are no flags.

        The others need no parser: to build one takes a while.
        """
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in self._command}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Build the parser, which calls the program by its name, however it was started."""
        return super().init_parser(**{"prog": "taskformer"} | kwargs)

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
        parser.add_argument("--resume", type=str | None, help="fit: go on with this run, e.g. runs/demo, exactly "
                            "from its last checkpoint; other flags change its configuration.")  # fmt: skip
        parser.add_argument("--ckpt", type=str | None, help="test, validate: best, last, a file, or `initial` for the "
                            "weights that the model starts from.")  # fmt: skip
        parser.add_class_arguments(MovingAverage, "ema")
        parser.add_class_arguments(TTA, "test.tta")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(Gallery, "gallery")
        parser.add_lightning_class_args(ResultsTable, "results")
        parser.add_lightning_class_args(Plots, "plots")
        parser.add_lightning_class_args(Predictions, "predictions")
        parser.add_lightning_class_args(Stopping, "stopping")
        parser.add_lightning_class_args(Tracking, "tracking")  # the last: it keeps what the others have written

    def before_instantiate_classes(self) -> None:
        """Claim the run's folder and give it to the loggers."""
        if self.subcommand is None:
            self.config.trainer.logger = None  # nothing runs: what loggers would begin, nobody would end
            return
        config = self.config[self.subcommand]
        trainer = config.trainer
        require_possible(trainer)
        if self.subcommand == "fit" and not trainer.fast_dev_run:
            ours = config.ckpt_path and Path(config.ckpt_path).resolve().is_relative_to(self._folder.resolve())
            self._claims.append(Claim(self._folder, resumes=bool(config.resume or ours)))
        if trainer.check_val_every_n_epoch and trainer.max_epochs and trainer.max_epochs > 0:
            # However short a training is, it validates at its end.
            trainer.check_val_every_n_epoch = min(trainer.check_val_every_n_epoch, trainer.max_epochs)
        config.results.json = config.results.json or config.json
        self._loggers = trainer.clone().logger
        settle(as_list(trainer.logger), self._folder, names_of(self.subcommand, config))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the Trainer with everything it writes below the run folder; None where nothing runs."""
        if self.subcommand is None:
            return None
        config = self.config[self.subcommand]
        config.trainer.logger = self._loggers  # `config.yaml` says what the user says: another run may begin with it
        callbacks = as_list(self._get(self.config_init, "trainer").callbacks)
        if config.trainer.enable_progress_bar is not False and not any(isinstance(c, AnyBar) for c in callbacks):
            callbacks = [*callbacks, ProgressBar()]
        callbacks = [*callbacks, Stopwatch()]
        if self.subcommand == "test":
            self.model.tta = self._get(self.config_init, "test.tta")
        average = self._get(self.config_init, "ema")
        if self.subcommand == "fit" and average.decay is not None:
            callbacks = [*callbacks, average]
        kwargs["callbacks"] = callbacks
        if config.trainer.fast_dev_run:  # leaves nothing behind
            return super().instantiate_trainer(logger=False, **kwargs)
        if config.trainer.logger is not False:  # whatever else keeps the numbers, the run's folder does
            curves = Curves(self._folder / "logs", self.subcommand, self.steps_done)
            kwargs["logger"] = [curves, *as_list(self._get(self.config_init, "trainer").logger)]
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(self._folder)
        trainer = super().instantiate_trainer(**kwargs)
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        loop = trainer.fit_loop
        trainer.fit_loop = EpochLoop(trainer, loop.min_epochs, loop.max_epochs)
        trainer.fit_loop.epoch_loop = loop.epoch_loop
        # Loggers learn from here where in the training the evaluated state is; a training restores both itself.
        trainer.fit_loop.epoch_loop._batches_that_stepped = self.steps_done
        trainer.fit_loop.epoch_progress.current.completed = self.epoch_done
        return trainer

    def after_fit(self) -> None:
        """Say what there is now, and what to do with it."""
        if not self.trainer.is_global_zero or self.config.fit.trainer.fast_dev_run:
            return
        folder, checkpoint = self._folder, self._get(self.config_init, "checkpoint")
        best, last = (folder / "checkpoints" / name for name in (BEST, LAST))
        lines = [f"run folder: {folder}"]
        if best.is_file():
            score = "" if checkpoint.best_score is None else f", {checkpoint.monitor} {checkpoint.best_score:.4g}"
            lines += [f"best:       {best}{score}", f"test it:    taskformer test {folder}"]
        if last.is_file():
            lines.append(f"go on:      taskformer fit --resume {folder} --trainer.max_epochs N")
        Console().print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)

    @property
    def _folder(self) -> Path:
        """Folder of the run."""
        config = self.config[self.subcommand]
        return Path(config.runs_dir, config.name)

    def _parse_ckpt_path(self) -> None:
        """Name the run, and check that its checkpoint is of the configured model; the configuration stays the user's.

        LightningCLI would let the checkpoint's hyper-parameters replace what the command line says, without a word.
        """
        command = self.config.get("subcommand")
        if not command:
            return
        config = self.config[command]
        config.name = name_run(command, config)
        if command == "fit":
            go_on_after_requeue(config, Path(config.runs_dir, config.name))
        if command in ("test", "validate") and not config.ckpt_path and not config.trainer.fast_dev_run:
            config.ckpt_path = self._chosen_checkpoint(Path(config.runs_dir) / config.name, config.ckpt)
        if not config.ckpt_path:
            return
        checkpoint = open_checkpoint(config.ckpt_path)
        if command == "fit" and averages(checkpoint.content) and config.ema.decay is None:
            msg = f"{config.ckpt_path} holds a moving average of weights; go on with one, e.g. --ema.decay 0.999"
            raise ConfigError(msg)
        self.steps_done, self.epoch_done = checkpoint.global_step, int(checkpoint.content.get("epoch", 0))
        saved = checkpoint.class_name
        if saved.rsplit(".", 1)[-1] != config.model.class_path.rsplit(".", 1)[-1]:
            msg = (
                f"{config.ckpt_path} is a checkpoint of {saved}, the configuration asks for {config.model.class_path}; "
                "change one of them"
            )
            raise ConfigError(msg)

    @staticmethod
    def _chosen_checkpoint(folder: Path, which: str | None) -> str | None:
        """Return the checkpoint to evaluate; weights that nobody trained are only taken when they are asked for."""
        if which is None and not (folder / "config.yaml").is_file():
            msg = (
                "which weights are to be evaluated? Give a run (`taskformer test runs/NAME`), a file (--ckpt FILE), or "
                f"--ckpt {INITIAL} for those that the model starts from"
            )
            raise ConfigError(msg)
        file = find_checkpoint(folder, which or "best")
        return str(file) if file else None


def names_of(command: str, config: Namespace) -> Names:
    """Name a run for its loggers.

    Args:
        command: The command that begins it.
        config: The configuration, with the run's name.
    """
    parts = subject(config)
    backbone = (config.model.get("init_args") or Namespace()).get("backbone")
    return Names(config.name, "-".join(parts), command, [*parts, *([backbone] if backbone else [])])


def _task_specs(data: MultiTaskDataModule) -> dict[str, dict[str, Any]]:
    """Describe the data's tasks to the model, in plain types so that checkpoints stay safe to load.

    Raises:
        ConfigError: If there are none.
    """
    if not data.task_specs:
        msg = f"{data.root} has no labels and so no tasks; make it a part of a CombinedDataModule, see docs/data.md"
        raise ConfigError(msg)
    return data.task_specs


def as_list(value: Any) -> list[Any]:
    """Make a list of one logger, many or none."""
    if isinstance(value, list):
        return value
    return [] if value in (None, True, False) else [value]
