"""The door of the search: a trained supernet goes in, its best sub-networks for any budget come out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
import yaml

from taskformer.data import MultiTaskDataModule
from taskformer.data.configured import data_module
from taskformer.errors import ConfigError, UnknownNameError, require
from taskformer.files import inside, write_json
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.modules import MultiTaskModule
from taskformer.modules.loading import load, run_folder
from taskformer.modules.picking import spread
from taskformer.modules.quantities import COSTS
from taskformer.search.costs import Costs, LatencyOptions, count_costs, require_possible
from taskformer.search.evaluator import Evaluator
from taskformer.search.evolution import Evolution
from taskformer.search.latency import shared_table
from taskformer.search.loop import LEARNABLE, SearchLoop, evolution_rounds, reference_rounds
from taskformer.search.objectives import Candidate, Constraints, build_objectives
from taskformer.search.predictor import Predictor
from taskformer.search.pruning import DOMINATED, Pruner
from taskformer.search.references import ReferenceArchitectures
from taskformer.search.results import SearchResult, write_results
from taskformer.search.storage import open_storage
from taskformer.search.study import SearchStudy, completed
from taskformer.tasks import Task

#: The defaults of :func:`search`: no limits, and the latency of one image where the search runs.
ANY = Constraints()
ONE_IMAGE = LatencyOptions()


def search(
    run_or_model: str | Path | MultiTaskModule,
    data: MultiTaskDataModule | None = None,
    *,
    run_dir: str | Path | None = None,
    objectives: Sequence[str] = ("delta_m", "params"),
    task_weights: Mapping[str, float] | None = None,
    constraint: Constraints = ANY,
    generations: int = 20,
    population: int = 50,
    seed: int = 0,
    storage: str | None = None,
    study: str = "search",
    worker: bool = False,
    batch: int = 8,
    pruner: Pruner = DOMINATED,
    predictor: bool = False,
    references: bool = True,
    latency: LatencyOptions = ONE_IMAGE,
    final: int = 0,
    on_progress: Callable[[SearchResult], None] = lambda _: None,
) -> SearchResult:
    """Search a trained supernet for its best sub-networks.

    Every sub-network inherits its weights and is scored on the validation images. delta_m is its mean relative
    improvement over the largest sub-network in percent. A search that was stopped goes on where it was.

    >>> found = taskformer.search("runs/autotaskformer_rooms", generations=5)  # doctest: +SKIP
    >>> found.front[0].values["delta_m"], found.pick(params=1.3e6).candidate.architecture  # doctest: +SKIP

    Args:
        run_or_model: The supernet: a run folder (its best checkpoint, or else the last), a checkpoint, or a model,
            which is searched on the device where it is; what is loaded goes to the GPU if there is one.
        data: Its data; None: that of its run.
        run_dir: Folder in which the study's folder lies; None: the run folder, of a model the current folder.
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
        pruner: Decides which sub-networks stop before all images are used: DominatedPruner stops those that earlier
            generations clearly dominate on the images so far, NopPruner none; or a class of your own.
        predictor: Breed ten times as many sub-networks and evaluate those that a regression on the ones evaluated
            before (needs ``taskformer[search]``) thinks best.
        references: Also evaluate reference architectures to compare with: as many random ones, some that share
            everything or nothing at equal parameters, and some as one would draw them by hand.
        latency: How latency is measured.
        final: How many of the best sub-networks, spread over the trade-off, are scored on the test images at the end.
        on_progress: Told what is found so far whenever there may be more.

    Returns:
        What was found. A worker, which leaves the files to the main process, returns the records only.

    Raises:
        ConfigError: If settings contradict each other or a study that was begun with others.
        UnknownNameError: If an objective or a weighted task does not exist.
        WeightsError: If there is no such checkpoint.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    require("[1, inf)", generations=generations, population=population, batch=batch)
    require("[0, inf)", final=final)
    require("[1, inf)", **{"latency.batch_size": latency.batch_size, "latency.size": latency.size})
    model, data, run = _opened(run_or_model, data, run_dir)
    require_clean_selection(data, run)
    supernet = supernet_of(model)
    require_targets(data, model.tasks)
    weights = require_weights(task_weights or {}, model.tasks)
    wanted, limits = build_objectives(objectives, model.tasks), constraint.given()
    if predictor and "delta_m" not in objectives:
        msg = f"the predictor learns delta_m, which is not among the objectives {list(objectives)}; leave it out"
        raise ConfigError(msg)
    images = load_batches(data, "val")
    folder = inside(run, study, "the study")
    memory = SearchStudy(open_storage(storage or str(folder / "study.db")), study, wanted, limits, worker)
    settings = {"seed": seed, "population": population, "pruner": str(pruner), "predictor": predictor}
    for name, value in (settings | {"task_weights": weights} | _facts(supernet, images)).items():
        memory.agree(name, value)
    costs, latency_error = _costs(memory, supernet, latency, images, folder)
    require_possible(limits, supernet, costs)
    evaluator = Evaluator(supernet, model.tasks, images, weights=weights)
    evaluator.reference = memory.shared("reference", lambda: evaluator.reference)

    def admits(architecture: Architecture) -> bool:
        return all(each.admits(costs(architecture)) for each in limits)

    def other_objectives(architecture: Architecture) -> list[float]:
        return [costs(architecture)[each.name] for each in wanted if each.name in COSTS]

    evolution = Evolution(supernet.space, wanted, admits, seed, population)
    guesses = Predictor(supernet.space, other_objectives) if predictor else None
    rounds = list(evolution_rounds(evolution, generations, guesses))
    if references:
        others = ReferenceArchitectures(supernet.space, admits, lambda one: costs(one)["params"], seed)
        rounds += reference_rounds(evolution, generations, others)
    found = SearchResult(folder, wanted, model.tasks, [], latency_error)
    loop = SearchLoop(memory, evaluator.evaluate, costs, batch, pruner)
    loop.run(rounds, lambda records: on_progress(replace(found, records=records)))
    found = replace(found, records=memory.records())
    if worker:
        return found
    write_results(folder, found.records, wanted, model.tasks)
    evolved = completed(found.records, "evolution")
    if guesses and len(evolved) >= LEARNABLE:
        found = replace(found, rank_correlation=guesses.rank_correlation(evolved))
    if final:
        found = replace(found, test=score_final(spread(found.front, final), supernet, model.tasks, data, weights))
        write_json(folder / "test.json", found.test)
    return found


def supernet_of(model: MultiTaskModule) -> Supernet:
    """Return a model's supernet, ready to evaluate.

    Raises:
        ConfigError: If the model is not a supernet.
    """
    if not isinstance(model.network, Supernet):
        msg = f"only an AutoTaskFormer without an architecture of its own can be searched, got {type(model).__name__}"
        raise ConfigError(msg)
    return model.network.eval()


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


def require_targets(data: MultiTaskDataModule, tasks: Mapping[str, Task]) -> None:
    """Refuse data that have no labels for some of the supernet's tasks.

    Raises:
        ConfigError: Names the tasks.
    """
    missing = [name for name in tasks if name not in data.task_specs]
    if missing:
        msg = f"the supernet has the tasks {', '.join(tasks)}, the data lack {', '.join(missing)}; set data.tasks"
        raise ConfigError(msg)


def require_weights(weights: Mapping[str, float], tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return weights of tasks if they make sense.

    Raises:
        ConfigError: If weights are not above 0.
        UnknownNameError: If a task does not exist.
    """
    for name, weight in weights.items():
        if name not in tasks:
            kind = "task in task_weights"
            raise UnknownNameError(kind, name, tasks)
        require("(0, inf)", **{f"task_weights.{name}": weight})  # a task that is not trained is left out here too
    return dict(weights)


def load_batches(data: MultiTaskDataModule, split: Literal["val", "test"]) -> list[dict[str, Any]]:
    """Decode all images of a split that can be read, once.

    Raises:
        ConfigError: If there is none.
    """
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    batches = [batch for batch in loader if len(batch["image"])]
    if not batches:
        msg = f"{data.name} has no images in its split {split!r}, there is nothing to score sub-networks on"
        raise ConfigError(msg)
    return batches


def score_final(
    chosen: Sequence[Candidate],
    supernet: Supernet,
    tasks: Mapping[str, Task],
    data: MultiTaskDataModule,
    weights: Mapping[str, float],
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


def _opened(
    run_or_model: str | Path | MultiTaskModule, data: MultiTaskDataModule | None, run_dir: str | Path | None
) -> tuple[MultiTaskModule, MultiTaskDataModule, Path]:
    """Return the model, its data, and the folder in which the study's folder lies."""
    run: Path | None = None
    if isinstance(run_or_model, MultiTaskModule):
        model = run_or_model
    else:
        model = load(run_or_model, "cuda" if torch.cuda.is_available() else "cpu")
        run = run_folder(run_or_model)
    if run_dir is not None:
        run = Path(run_dir)
    if data is None and run is None:
        msg = "a model alone does not say what data it is searched on: give data, or its run folder as run_dir"
        raise ConfigError(msg)
    run = run or Path()
    return model, data or data_module(run), run


def _costs(
    memory: SearchStudy,
    supernet: Supernet,
    latency: LatencyOptions,
    images: Sequence[Mapping[str, Any]],
    folder: Path,
) -> tuple[Costs, float | None]:
    """Return what counts costs, and the error of the table of latencies if they are needed and were measured."""
    size = (images[0]["image"].shape[-2], images[0]["image"].shape[-1])
    if "latency" not in {each.name for each in memory.objectives} | {each.name for each in memory.constraints}:
        return count_costs(supernet, size), None
    table, error = shared_table(memory, supernet, latency, size, folder)
    return count_costs(supernet, size, table.predict), error


def _facts(supernet: Supernet, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Name the weights, so that no study mixes those of two trainings, and count the images."""
    hashed = sha256()
    for values in supernet.state_dict().values():
        hashed.update(values.cpu().numpy().tobytes())
    count = sum(len(batch["image"]) for batch in images)
    return {"weights": hashed.hexdigest()[:16], "images": count, "batches": len(images)}
