"""``taskformer search``: from one trained supernet to the sub-networks for any budget."""

from __future__ import annotations  # the table of latencies is imported only where it is used

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import optuna
import torch
import yaml
from lightning.pytorch import Trainer
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from taskformer.data import MultiTaskDataModule
from taskformer.errors import ConfigError, UnknownNameError, WeightsError, require
from taskformer.files import inside, read_checkpoint, write_json
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.modules import MultiTaskModule
from taskformer.search.evaluator import Evaluator
from taskformer.search.evolution import Evolution
from taskformer.search.objectives import COSTS, Candidate, Objective, Window, build_objectives, front, spread
from taskformer.search.predictor import Predictor
from taskformer.search.pruning import MARGIN
from taskformer.search.quantities import unit_of
from taskformer.search.references import Baselines
from taskformer.search.results import write_results
from taskformer.search.rounds import LEARNABLE, baseline_rounds, evolution_rounds, results
from taskformer.search.study import Costs, Record, Search, SearchStudy, open_storage
from taskformer.tasks import Task

if TYPE_CHECKING:
    from taskformer.search.latency import LatencyTable

#: Rows of the table at the end.
SHOWN = 10
#: Random sub-networks that are run as a whole to check the latency table.
CHECKED = 30


def main(argv: list[str]) -> None:
    """Search, or pick from what was found."""
    if argv[1:2] == ["pick"]:
        importlib.import_module("taskformer.commands.pick").main(argv[1:])
        return
    from taskformer.commands import trainer  # which imports this module

    trainer.main(spell_out(argv))


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


@dataclass(frozen=True)
class Constraints:
    """Lowest and highest value that a network may have; null: any.

    Args:
        params: Parameters.
        macs: Multiply-accumulates for one image.
        latency: Seconds for one batch, see the settings of ``latency``.
    """

    params: tuple[float, float] | None = None
    macs: tuple[float, float] | None = None
    latency: tuple[float, float] | None = None


@dataclass(frozen=True)
class LatencyOptions:
    """What latency is measured of, where an objective or a constraint needs it.

    Args:
        device: ``cpu``, ``cuda``, ...; null: where the search runs.
        batch_size: Images at a time.
        size: Height and width of the images; null: those of the validation images.
    """

    device: str | None = None
    batch_size: int = 1
    size: tuple[int, int] | None = None


ANY = Constraints()
ONE_IMAGE = LatencyOptions()


class SearchTrainer(Trainer):
    """Lightning's Trainer that can also search the sub-networks of a trained supernet."""

    def search(
        self,
        model: MultiTaskModule,
        datamodule: MultiTaskDataModule,
        ckpt_path: str,
        objectives: tuple[str, ...] = ("delta_m", "params"),
        task_weights: dict[str, float] | None = None,
        constraint: Constraints = ANY,
        generations: int = 20,
        population: int = 50,
        seed: int = 0,
        storage: str | None = None,
        study: str = "search",
        worker: bool = False,
        batch: int = 8,
        early_stop: bool = True,
        predictor: bool = False,
        baselines: bool = True,
        latency: LatencyOptions = ONE_IMAGE,
        final: int = 0,
    ) -> None:
        """Search a trained supernet for its best sub-networks.

        Every sub-network inherits its weights and is scored on the validation images. delta_m is its mean relative
        improvement over the largest sub-network in percent. A search that was stopped goes on where it was.

        Args:
            model: The supernet.
            datamodule: Its data.
            ckpt_path: Checkpoint of the supernet.
            objectives: What to improve: any of delta_m, params, macs, latency, and tasks by name. One: AutoFormer's
                evolution; several: NSGA-II, which finds the best trade-offs.
            task_weights: Weights of tasks in delta_m, e.g. ``{semseg: 2.0}``; 1 where none is given.
            constraint: Hard limits on params, macs and latency, e.g. ``--constraint.params [5e6,7e6]``.
            generations: How often a population is bred and evaluated; the first is random.
            population: Sub-networks of a generation.
            seed: Seed of all draws; the same seed finds the same sub-networks.
            storage: Where the study is kept: a file, by default study.db in the study's folder; a file ending in
                .journal, for workers on a shared disk; or the URL of a database that Optuna can use.
            study: Name of the study, and of its folder in the run folder.
            worker: Help a search that another process began, with the same settings, until it ends.
            batch: Sub-networks evaluated together, which share what they have in common.
            early_stop: Stop sub-networks that earlier generations clearly dominate on the images so far.
            predictor: Breed ten times as many sub-networks and evaluate those that a regression on the ones evaluated
                before (needs ``taskformer[search]``) thinks best.
            baselines: Also evaluate what to compare with: as many random sub-networks, some that share everything or
                nothing at equal parameters, and some as one would draw them by hand.
            latency: What latency is measured of.
            final: How many of the best sub-networks, spread over the trade-off, are scored on the test images at last.

        Raises:
            ConfigError: If settings contradict each other or a study that was begun with others.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        require("[1, inf)", generations=generations, population=population, batch=batch)
        require("[0, inf)", final=final)
        require("[1, inf)", **{"latency.batch_size": latency.batch_size, "latency.size": latency.size})
        run = run_folder_of(ckpt_path) or Path(self.default_root_dir)
        require_clean_selection(datamodule, run)
        supernet = load_supernet(model, ckpt_path).to(self.strategy.root_device)
        images = load_batches(datamodule, "val")
        size = (images[0]["image"].shape[-2], images[0]["image"].shape[-1])
        wanted = build_objectives(objectives, model.tasks)
        windows = [Window(name, *window) for name, window in vars(constraint).items() if window]
        folder = inside(run, study, "the study")
        if predictor and "delta_m" not in objectives:
            msg = f"the predictor learns delta_m, which is not among the objectives {list(objectives)}; leave it out"
            raise ConfigError(msg)
        memory = SearchStudy(open_storage(storage or str(folder / "study.db")), study, wanted, windows, worker)
        settings: dict[str, Any] = {
            "seed": seed,
            "population": population,
            "early_stop": MARGIN if early_stop else False,
            "predictor": predictor,
        }
        settings["task_weights"] = require_weights(task_weights or {}, model.tasks)
        count = sum(len(batch["image"]) for batch in images)
        facts = {"weights": digest(supernet), "images": count, "batches": len(images)}
        for name, value in (settings | facts).items():
            memory.agree(name, value)

        table = None
        if "latency" in {each.name for each in wanted} | {each.name for each in windows}:
            table = shared_table(memory, supernet, latency, size, folder)
        costs = cache(partial(count_costs, supernet, size, table))
        for window in windows:
            _require_possible(window, costs(supernet.space.smallest()), costs(supernet.space.largest()))
        compared = partial(_compared, costs, wanted)
        evaluator = Evaluator(supernet, model.tasks, images, costs=compared, weights=task_weights)
        evaluator.reference = memory.shared("reference", lambda: evaluator.reference)

        def admits(architecture: Architecture) -> bool:
            return all(window.admits(costs(architecture)) for window in windows)

        evolution = Evolution(supernet.space, wanted, admits, seed, population)
        guesses = Predictor(supernet.space, compared) if predictor else None
        rounds = list(evolution_rounds(evolution, generations, guesses))
        if baselines:
            others = Baselines(supernet.space, admits, lambda one: costs(one)["params"], seed)
            rounds += baseline_rounds(evolution, generations, others)
        evaluations = generations * population * (2 if baselines else 1)
        with SearchProgress(wanted, evaluations, self.progress_bar_callback is not None) as progress:
            Search(memory, evaluator.evaluate, costs, batch, early_stop).run(rounds, progress.update)
        if worker:
            return
        write_results(folder, memory.records(), wanted, model.tasks)
        evolved = results(memory.records(), "evolution")
        if guesses and len(evolved) >= LEARNABLE:
            Console().print(f"rank correlation of the predictor: {guesses.rank_correlation(evolved):.2f}")
        best = front(evolved, wanted)
        Console().print(candidates_table(spread(best, SHOWN), model.tasks))
        Console().print(f"wrote {folder}", soft_wrap=True)
        if final:
            scores = score_final(spread(best, final), supernet, model.tasks, datamodule, task_weights)
            write_json(folder / "test.json", scores)
            Console().print(f"wrote {folder / 'test.json'}", soft_wrap=True)


class SearchProgress:
    """A progress bar with the best so far.

    Args:
        objectives: What is improved.
        evaluations: How many candidates there will be, about.
        visible: Whether there is a bar.
    """

    def __init__(self, objectives: Sequence[Objective], evaluations: int, visible: bool) -> None:
        self.objectives = objectives
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

    def update(self, records: Sequence[Record]) -> None:
        """Show what is finished."""
        done = sum(record.state != TrialState.RUNNING for record in records)
        if not self.bar.tasks:  # what an earlier call did must not count as speed
            self.bar.add_task("", completed=done, total=self.evaluations)
        if found := front(results(records, "evolution"), self.objectives):
            name = self.objectives[0].name
            best = f"best {name} {found[0].values[name]:.4g}, {len(found)} on the front"
            total = max(self.evaluations, len(records))
            self.bar.update(self.bar.task_ids[0], completed=done, total=total, description=best)


def run_folder_of(checkpoint: str) -> Path | None:
    """Return the run folder that a checkpoint lies in, if it does."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def require_clean_selection(data: MultiTaskDataModule, run: Path) -> None:
    """Refuse to choose networks on images that papers test on, or that the supernet has trained on.

    Args:
        data: The data.
        run: Run folder of the supernet.

    Raises:
        ConfigError: If the validation images are of either kind.
    """
    if "test" not in data.splits() and not data.holdout:
        msg = (
            f"the validation images of {data.name} are those that papers test on, networks must not be chosen on them: "
            "train the supernet with --data.holdout=0.1 and search with the same"
        )
        raise ConfigError(msg)
    if data.holdout and (run / "config.yaml").is_file():
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        trained = (config["data"].get("init_args") or {}).get("holdout", 0.0)
        if data.holdout > trained:
            msg = f"the supernet was trained with holdout {trained}, a search with {data.holdout} sees training images"
            raise ConfigError(msg)


def require_weights(weights: dict[str, float], tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return weights of tasks if they make sense.

    Raises:
        ConfigError: If a task does not exist, or weights are not above 0.
    """
    for name, weight in weights.items():
        if name not in tasks:
            kind = "task in task_weights"
            raise UnknownNameError(kind, name, tasks)
        require("(0, inf)", **{f"task_weights.{name}": weight})  # a task that is not trained is left out here too
    return weights


def load_supernet(model: MultiTaskModule, checkpoint: str) -> Supernet:
    """Load a checkpoint into a model and return its supernet, ready to evaluate.

    Raises:
        ConfigError: If the model is no supernet.
        WeightsError: If there is no such checkpoint, or it does not fit.
    """
    if not isinstance(model.network, Supernet):
        msg = f"only an AutoTaskFormer without an architecture of its own can be searched, got {type(model).__name__}"
        raise ConfigError(msg)
    saved = read_checkpoint(Path(checkpoint))
    try:
        model.load_state_dict(saved["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        msg = f"{checkpoint} does not fit the configuration: {' '.join(str(error).split())[:300]}"
        raise WeightsError(msg) from error
    return model.network.eval()


def load_batches(data: MultiTaskDataModule, split: Literal["val", "test"]) -> list[dict[str, Any]]:
    """Decode all images of a split that can be read, once."""
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    return [batch for batch in loader if len(batch["image"])]


def digest(supernet: Supernet) -> str:
    """Name the weights, so that no study mixes those of two trainings."""
    hashed = sha256()
    for values in supernet.state_dict().values():
        hashed.update(values.cpu().numpy().tobytes())
    return hashed.hexdigest()[:16]


def shared_table(
    memory: SearchStudy, supernet: Supernet, options: LatencyOptions, size: tuple[int, int], folder: Path
) -> LatencyTable:
    """Return the one table of latencies that all processes of a search use."""
    from taskformer.search.latency import LatencyTable  # torch's benchmarks look for compilers when imported

    device = torch.device(options.device or next(supernet.parameters()).device)
    of = (supernet, supernet.space, options.batch_size, options.size or size, device)
    memory.agree("latency_of", [options.batch_size, list(options.size or size), device.type])

    def measure() -> dict[str, float]:
        table = LatencyTable.cached(folder, *of)
        error = table.check(CHECKED)
        Console().print(f"latency table: mean error {error:.1f} % on {CHECKED} random sub-networks")
        return dict(table.seconds)

    return LatencyTable(*of, memory.shared("latency", measure))


def count_costs(
    supernet: Supernet, size: tuple[int, int], table: LatencyTable | None, architecture: Architecture
) -> dict[str, float]:
    """Return what a sub-network costs, by name."""
    costs: dict[str, float] = {
        "params": supernet.count_parameters(architecture),
        "macs": supernet.count_macs(architecture, size),
    }
    return costs if table is None else costs | {"latency": table.predict(architecture)}


def score_final(
    chosen: Sequence[Candidate],
    supernet: Supernet,
    tasks: Mapping[str, Task],
    data: MultiTaskDataModule,
    weights: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Score chosen networks on the test images, delta_m against the largest sub-network's results there."""
    evaluator = Evaluator(supernet, tasks, load_batches(data, "test"), weights=weights)
    scores = evaluator.evaluate([one.architecture for one in chosen])
    return [
        {
            "architecture": one.architecture.to_dict(),
            "val": dict(one.values),
            "test": score.tasks | {"delta_m": score.delta_m},
        }
        for one, score in zip(chosen, scores, strict=True)
    ]


def candidates_table(candidates: Sequence[Candidate], tasks: Mapping[str, Task]) -> Table:
    """Show candidates, one a row, and all that was measured."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    units = {name: unit_of(name, tasks) for name in candidates[0].values}
    for unit in units.values():
        table.add_column(unit.short.strip(), justify="right")
    for candidate in candidates:
        table.add_row(*(f"{candidate.values[name] / unit.scale:.4g}" for name, unit in units.items()))
    return table


def _compared(costs: Costs, objectives: Sequence[Objective], architecture: Architecture) -> tuple[float, ...]:
    """Return the objectives beside delta_m, as candidates are compared before all images are done."""
    values = costs(architecture)
    return tuple(values[each.name] for each in objectives if each.name in COSTS)


def _require_possible(window: Window, smallest: Mapping[str, float], largest: Mapping[str, float]) -> None:
    low, high = smallest[window.name], largest[window.name]
    if window.high < low or window.low > high:
        msg = (
            f"no sub-network has {window.name} in [{window.low:.4g}, {window.high:.4g}]: "
            f"the smallest has {low:.4g}, the largest {high:.4g}"
        )
        raise ConfigError(msg)
