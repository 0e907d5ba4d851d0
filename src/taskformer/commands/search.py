"""``taskformer search``: from one trained supernet to the sub-networks for any budget."""

import importlib
import inspect
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from taskformer.callbacks.checkpoints import BEST
from taskformer.callbacks.search_tracking import SearchTracking
from taskformer.callbacks.trackers import settle
from taskformer.callbacks.tracking import flat
from taskformer.commands import runs
from taskformer.commands.devices import require_possible
from taskformer.commands.trainer import TaskformerCLI, as_list, names_of, silence_lightning
from taskformer.errors import ConfigError
from taskformer.modules.checkpoints import open_checkpoint, restore
from taskformer.modules.loading import run_folder
from taskformer.search.pruning import DOMINATED, DominatedPruner, NopPruner
from taskformer.search.results import SearchResult
from taskformer.search.run import search, supernet_of

#: Arguments of :func:`search` that are no flags.
NO_FLAGS = {"run_or_model", "data", "run_dir", "on_progress"}
#: Settings of the trainer that matter where nothing trains.
OF_TRAINER = ("accelerator", "devices", "deterministic", "benchmark")


def main(argv: list[str]) -> None:
    """Search, or pick from what was found."""
    if argv[1:2] == ["pick"]:
        importlib.import_module("taskformer.commands.pick").main(argv[1:])
        return
    silence_lightning()
    _, *words = runs.spell_out(["search", *spell_out(argv[1:])])
    cli = SearchCLI(words)
    settings = cli.settings()
    evaluations = settings["generations"] * settings["population"] * (2 if settings["references"] else 1)
    bar = SearchProgress(evaluations, visible=cli.config.trainer.enable_progress_bar is not False)
    with bar, cli.tracking() as tracking:

        def update(found: SearchResult) -> None:
            bar.update(found)
            tracking.update(found)

        found = search(cli.model, cli.datamodule, run_dir=cli.run_dir, on_progress=update, **settings)
        if not settings["worker"]:
            tracking.finish(found)
    if not settings["worker"]:
        report(found)


def spell_out(argv: Sequence[str]) -> list[str]:
    """Write ``--constraint.NAME LOW HIGH``, a bare ``--worker`` and ``--device`` as the parser takes them."""
    words: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        if word.startswith("--constraint.") and len(left) > 1 and all(map(_is_number, left[:2])):
            word += f"=[{left.pop(0)},{left.pop(0)}]"
        elif word == "--device" or word.startswith("--device="):
            word = word.replace("--device", "--latency.device", 1)
        elif word == "--worker" and left[:1] not in (["true"], ["false"]):
            word += "=true"
        words.append(word)
    return words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class SearchCLI(TaskformerCLI):
    """The configuration of a supernet's training, and beside it the settings of the search.

    Args:
        args: Command line without ``search``, see :func:`spell_out`.

    Attributes:
        checkpoint: The supernet's checkpoint.
        run_dir: Folder in which the study's folder lies.
    """

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, run=False)
        device = Trainer(
            **{name: self.config.trainer[name] for name in OF_TRAINER},
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        ).strategy.root_device
        supernet_of(self.model)  # refuses others before their weights do not fit
        restore(self.model, open_checkpoint(self.checkpoint))
        self.model.to(device)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Name the command in its help."""
        description = "Search a trained supernet for its best sub-networks; `taskformer search pick` takes one."
        return super().init_parser(prog="taskformer search", description=description, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of :func:`search`, and the names that some of them once had."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--ckpt_path", type=str | None, help="Checkpoint of the supernet; by default the best "
                            "one of the run that is given (`taskformer search runs/NAME`).")  # fmt: skip
        parser.add_function_arguments(search, skip=set(NO_FLAGS))
        parser.set_defaults({"pruner": {"class_path": type(DOMINATED).__name__, "init_args": vars(DOMINATED)}})
        parser.add_argument("--early_stop", type=bool | None, help=SUPPRESS)
        parser.add_argument("--baselines", type=bool | None, help=SUPPRESS)

    def before_instantiate_classes(self) -> None:
        """Refuse devices that this machine does not have, and let loggers go on with the supernet's run."""
        require_possible(self.config.trainer)
        self.checkpoint = self._checkpoint()
        self.run_dir = run_folder(self.checkpoint) or self._folder_outside_runs()
        self.config.name = self.run_dir.name
        settle(as_list(self.config.trainer.logger), self.run_dir, names_of("search", self.config))

    def tracking(self) -> SearchTracking:
        """Return what loggers keep of the search; a worker leaves that to the main process."""
        config, file = yaml.safe_load(self.parser.dump(self.config, skip_none=False)), self.run_dir / "config.yaml"
        run = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        names = inspect.signature(search).parameters.keys() - NO_FLAGS
        described = dict(flat(run)) | dict(flat({"search": {name: config[name] for name in sorted(names)}}))
        loggers = [] if self.config.worker else as_list(self.config_init.trainer.logger)
        return SearchTracking(loggers, self.run_dir, described, self.config_init.tracking.checkpoint)

    def settings(self) -> dict[str, Any]:
        """Return the arguments of :func:`search`."""
        names = inspect.signature(search).parameters.keys() - NO_FLAGS
        settings = {name: self.config_init[name] for name in names}
        if self.config.early_stop is not None:
            settings["pruner"] = DominatedPruner() if self.config.early_stop else NopPruner()
        if self.config.baselines is not None:
            settings["references"] = self.config.baselines
        return settings

    def _checkpoint(self) -> Path:
        """Return the checkpoint that is given, or the run's best, or else its last."""
        config: Namespace = self.config
        if config.ckpt_path:
            return Path(config.ckpt_path)
        file = None
        if config.name:
            folder = Path(config.runs_dir, config.name)
            best = (folder / "checkpoints" / BEST).is_file()
            file = runs.find_checkpoint(folder, config.ckpt or ("best" if best else "last"))
        if file is None:
            msg = "which supernet is to be searched? Give its run (`taskformer search runs/NAME`) or --ckpt_path FILE"
            raise ConfigError(msg)
        return file

    def _folder_outside_runs(self) -> Path:
        """Return where the study goes if the checkpoint lies in no run folder."""
        given = self.config.trainer.default_root_dir
        return Path(given) if given else Path(self.config.runs_dir, runs.name_run("search", self.config))


class SearchProgress:
    """A progress bar with the best so far.

    Args:
        evaluations: How many candidates there will be, about.
        visible: Whether there is a bar.
    """

    def __init__(self, evaluations: int, visible: bool) -> None:
        self.evaluations = evaluations
        self.bar = Progress(
            TextColumn("search"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            disable=not visible,
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, found: SearchResult) -> None:
        """Show what is finished."""
        done = sum(record.state != TrialState.RUNNING for record in found.records)
        if not self.bar.tasks:  # what an earlier call did must not count as speed
            self.bar.add_task("", completed=done, total=self.evaluations)
        if front := found.front:
            name = found.objectives[0].name
            best = f"best {name} {front[0].values[name]:.4g}, {len(front)} on the front"
            total = max(self.evaluations, len(found.records))
            self.bar.update(self.bar.task_ids[0], completed=done, total=total, description=best)


def report(found: SearchResult) -> None:
    """Print what was found."""
    console = Console()
    if found.latency_error is not None:
        console.print(f"latency table: mean error {found.latency_error:.1f} % on random sub-networks")
    if found.rank_correlation is not None:
        console.print(f"rank correlation of the predictor: {found.rank_correlation:.2f}")
    console.print(found.table())
    console.print(f"wrote {found.folder}", soft_wrap=True)
    if found.test:
        console.print(f"wrote {found.folder / 'test.json'}", soft_wrap=True)
