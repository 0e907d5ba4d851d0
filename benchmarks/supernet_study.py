"""A study of supernets: do inherited weights order sub-networks, and does searched sharing pay at equal parameters?

Usage: python benchmarks/supernet_study.py configs/studies/NAME.yaml [--report]

Each supernet of the study goes through these jobs, whose results are ``docs/studies/NAME/runs/SUPERNET*.json``:

1. ``SUPERNET``: it is trained;
2. ``-networks``: random sub-networks, from sharing everything to sharing little, are scored with inherited weights;
3. ``-rate-R``: a sub-network of middle size is fine-tuned at every rate; the best one is that of all fine-tunings;
4. ``-network-N``: the random sub-networks are fine-tuned and scored again;
5. ``-choice``: the best searched, all-shared and all-specific network within the limits of parameters, of equally many
   that were scored with inherited weights, and a random one for each seed, which is the best of nothing;
6. ``-ARM-seed-S``: each of them is fine-tuned, with every seed.

All this sees training images alone, of which ``data.holdout`` are kept for scores. When all supernets have come as far,
``-ARM-seed-S-test`` scores the fine-tuned networks on the test images, once.

A job that has a result is not run again, so that the same command goes on where a study was stopped; started several
times it shares the jobs among its processes. What is trained lies in ``runs/NAME``. The last process writes
``docs/studies/NAME/README.md`` and its pictures, from the results alone; ``--report`` does only that.
"""

import argparse
import fcntl
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

from supernet_report import ARMS, write_report

import taskformer
from taskformer.data.configured import data_module
from taskformer.errors import ConfigError, mistake
from taskformer.evaluation.comparison.scored import Split, read_run
from taskformer.evaluation.environment import git_revision
from taskformer.evaluation.reference_runs import run_command
from taskformer.files import write_json
from taskformer.metrics import delta_m
from taskformer.models.autotaskformer import Architecture, SearchSpace
from taskformer.modules import AutoTaskFormer
from taskformer.parsing import Parser, read_layers
from taskformer.search import Candidate, Constraints
from taskformer.search.costs import Costs, count_costs
from taskformer.search.evaluator import Evaluator
from taskformer.search.evolution import RANDOM_ATTEMPTS, Distinct, random_architectures
from taskformer.search.objectives import Objective, best
from taskformer.search.run import load_batches, supernet_of
from taskformer.studies.evidence import read_json_file

Record = dict[str, Any]
#: Seconds between looks at what other processes have finished.
POLL = 5.0
#: What every training of the study leaves out: pictures, and predictions of constants.
QUIET = ["--plots.draw=false", "--results.constant=false", "--trainer.enable_progress_bar=false"]
QUALITY = [Objective("delta_m", "maximize")]


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        supernets: Name of each supernet to the flags of ``taskformer fit`` that train it. Those of the test are
            compared with the first one's all-shared network.
        params: Fewest and most parameters of the networks that are compared.
        tuning: Flags of all fine-tunings: their length, and when they validate.
        rates: Learning rates of fine-tuning, of which the held-out images choose one for each supernet.
        networks: Random sub-networks whose order is compared before and after fine-tuning.
        generations: Generations of the search.
        population: Sub-networks of a generation; as many as it scores in all are drawn of the other kinds.
        seeds: Seeds of the fine-tunings that are compared.
    """

    supernets: dict[str, list[str]]
    params: tuple[float, float]
    tuning: list[str]
    rates: list[float]
    networks: int = 16
    generations: int = 10
    population: int = 20
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@dataclass(frozen=True)
class Job:
    """A part of a study that one process does.

    Args:
        name: Name of its result.
        needs: Names of the jobs whose results it uses.
        run: Does it and returns the result.
    """

    name: str
    needs: Sequence[str]
    run: Callable[[], Record]


@dataclass(frozen=True)
class Results:
    """The results of a study's jobs.

    Args:
        folder: Folder of their files.
    """

    folder: Path

    def __contains__(self, name: str) -> bool:
        return self._file(name).is_file()

    def __getitem__(self, name: str) -> Any:
        return read_json_file(self._file(name))

    def __setitem__(self, name: str, record: Record) -> None:
        write_json(self._file(name), record)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


class SupernetJobs:
    """The jobs of one supernet.

    Args:
        name: Its name in the study.
        study: What is compared.
        results: The results so far.
        runs_dir: Folder of all run folders.
    """

    def __init__(self, name: str, study: Study, results: Results, runs_dir: Path) -> None:
        self.name = name
        self.study = study
        self.results = results
        self.runs_dir = runs_dir

    def jobs(self) -> list[Job]:
        """List the jobs, each after those that it needs."""
        name, networks, choice = self.name, f"{self.name}-networks", f"{self.name}-choice"
        rates = {f"{name}-rate-{rate:g}": rate for rate in self.study.rates}
        tuned = {f"{name}-network-{number:02d}": number for number in range(self.study.networks)}
        return [
            Job(name, [], self.train),
            Job(networks, [name], self.inherit),
            *(Job(each, [networks], partial(self.try_rate, each, rate)) for each, rate in rates.items()),
            *(Job(each, rates, partial(self.tune_random, each, number)) for each, number in tuned.items()),
            Job(choice, [name], self.choose),
            *(
                Job(each, [choice, *rates], partial(self.tune_chosen, each, arm, seed))
                for each, (arm, seed) in self.compared().items()
            ),
        ]

    def tests(self) -> list[Job]:
        """List the jobs that look at the test images."""
        return [Job(f"{each}-test", [each], partial(self.test, each)) for each in self.compared()]

    def compared(self) -> dict[str, tuple[str, int]]:
        """Name the fine-tunings that are compared, with their arms and seeds."""
        return {f"{self.name}-{arm}-seed-{seed}": (arm, seed) for arm in ARMS for seed in self.study.seeds}

    def train(self) -> Record:
        """Train the supernet."""
        return self._fit(self.name, self.study.supernets[self.name])

    def inherit(self) -> Record:
        """Score random sub-networks, and one of middle size, with the weights that they inherit."""
        architectures = spread_networks(self.space, self.study.networks)
        median, *networks = self._scored([self.space.median(), *architectures])
        reference = {"scores": self.evaluator.reference, "higher_is_better": self._senses}
        return {"reference": reference, "median": median, "networks": networks}

    def try_rate(self, job: str, rate: float) -> Record:
        """Fine-tune the sub-network of middle size at one rate."""
        return self._fine_tune(job, self.results[f"{self.name}-networks"]["median"], rate)

    def tune_random(self, job: str, number: int) -> Record:
        """Fine-tune one of the random sub-networks."""
        return self._fine_tune(job, self.results[f"{self.name}-networks"]["networks"][number], self.rate())

    def tune_chosen(self, job: str, arm: str, seed: int) -> Record:
        """Fine-tune an arm's network with a seed; the random arm has another network for every seed."""
        networks = self.results[f"{self.name}-choice"][arm]
        network = networks[self.study.seeds.index(seed) % len(networks)]
        return self._fine_tune(job, network, self.rate(), seed)

    def rate(self) -> float:
        """Return the rate after which the held-out images are predicted best."""
        gains = {rate: self.results[f"{self.name}-rate-{rate:g}"]["delta_m"] for rate in self.study.rates}
        return max(gains, key=gains.__getitem__)

    def choose(self) -> Record:
        """Choose every arm's networks within the limits of parameters."""
        found = taskformer.search(
            self._weights,
            data_module(self._folder(self.name)),
            objectives=("delta_m",),
            constraint=Constraints(params=self.study.params),
            generations=self.study.generations,
            population=self.study.population,
            references=False,
        )
        count = self.study.generations * self.study.population
        shared = self._draw(count, lambda one: replace(one, sharing=()))
        specific = self._draw(count, partial(unshared, self.space))
        drawn = self._draw(len(self.study.seeds), lambda one: one)
        return {
            "searched": [self._described(found.front[0])],
            "all-shared": [self._best(shared)],
            "all-specific": [self._best(specific)],
            "random": self._scored(drawn),
            "evaluated": dict(zip(ARMS, map(len, (found.records, shared, specific, drawn)), strict=True)),
        }

    def test(self, tuned: str) -> Record:
        """Score a fine-tuned network on the test images, each of them also alone."""
        folder = self._folder(tuned)
        words = ["test", str(folder), "--results.per_image=true", "--results.edge_benchmark=false"]
        run_command(words)
        run = read_run(folder, "test")
        columns = {task: run.images[task, metric] for task, metric in run.record["headline"].items()}
        images = {task: [float(f"{value:.6g}") for value in values] for task, (_, values) in columns.items()}
        ids = next(iter(columns.values()))[0]
        return {"command": spelled(words), **_headlines(folder, "test"), "ids": ids, "images": images}

    def _fit(self, job: str, flags: Sequence[str]) -> Record:
        """Train, or go on with a training that was stopped, and return its scores on the held-out images."""
        folder = self._folder(job)
        words = ["fit", *flags, f"--name={job}", f"--runs_dir={self.runs_dir}", *QUIET]
        begun = (folder / "config.yaml").is_file()
        run_command(["fit", f"--resume={folder}"] if begun else words)
        return {"command": spelled(words), **_headlines(folder, "val")}

    def _fine_tune(self, job: str, network: Record, rate: float, seed: int = 0) -> Record:
        """Train a sub-network on from the weights that it inherits."""
        file = self.runs_dir / "architectures" / f"{job}.json"
        write_json(file, network["architecture"])
        flags = [f"--config={self._folder(self.name) / 'config.yaml'}", f"--seed_everything={seed}"]
        flags += [f"--model.architecture={file}", f"--model.weights={self._weights}"]
        record = self._fit(job, [*flags, f"--model.optimizer.init_args.lr={rate:g}", *self.study.tuning])
        reference = self.results[f"{self.name}-networks"]["reference"]
        gain = delta_m(record["scores"], reference["scores"], reference["higher_is_better"])
        return {**network, "inherited": network["delta_m"], **record, "delta_m": gain, "rate": rate}

    def _draw(self, count: int, changed: Callable[[Architecture], Architecture]) -> list[Architecture]:
        """Draw different networks of one kind within the limits of parameters."""
        low, high = self.study.params
        drawn = map(changed, random_architectures(self.space, Random(0)))
        new = Distinct(lambda one: low <= self.params(one) <= high, ())
        if not (found := new.collect(drawn, count, RANDOM_ATTEMPTS)):
            msg = f"{self.name}: of {count * RANDOM_ATTEMPTS} random networks of a kind none has {low:g} to {high:g}"
            msg += " parameters; widen params or the space"
            raise ConfigError(msg)
        return found

    def _candidates(self, architectures: Sequence[Architecture]) -> list[Candidate]:
        """Score networks with inherited weights."""
        results = self.evaluator.evaluate(architectures)
        return [
            Candidate(one, self.costs(one) | result.tasks | {"delta_m": result.delta_m})
            for one, result in zip(architectures, results, strict=True)
        ]

    def _best(self, architectures: Sequence[Architecture]) -> Record:
        """Describe the best of some networks with inherited weights, of equal ones the smallest."""
        return self._described(best(self._candidates(architectures), QUALITY, 1)[0])

    def _scored(self, architectures: Sequence[Architecture]) -> list[Record]:
        return [self._described(one) for one in self._candidates(architectures)]

    def _described(self, candidate: Candidate) -> Record:
        """Return a network as plain types."""
        values = candidate.values
        return {
            "architecture": candidate.architecture.to_dict(),
            **{name: values[name] for name in ("params", "macs", "delta_m")},
            "scores": {task: values[task] for task in self._senses},
        }

    def _folder(self, job: str) -> Path:
        return self.runs_dir / job

    @property
    def _weights(self) -> Path:
        """The weights at the end of the supernet's training."""
        return self._folder(self.name) / "checkpoints" / "last.ckpt"

    @property
    def _senses(self) -> dict[str, bool]:
        return {name: task.higher_is_better for name, task in self.model.tasks.items()}

    @cached_property
    def model(self) -> AutoTaskFormer:
        """The trained supernet with its tasks."""
        return taskformer.load(self._weights)

    @property
    def space(self) -> SearchSpace:
        """What can be chosen."""
        return self.model.space

    @cached_property
    def evaluator(self) -> Evaluator:
        """What scores its sub-networks on the held-out images."""
        images = load_batches(data_module(self._folder(self.name)), "val")
        return Evaluator(supernet_of(self.model), dict(self.model.tasks), images)

    def params(self, architecture: Architecture) -> int:
        """Count the parameters of one of its networks; operations, which take longer, are left out."""
        return supernet_of(self.model).count_parameters(architecture)

    @cached_property
    def costs(self) -> Costs:
        """What counts parameters and operations, these for the training's images."""
        return count_costs(supernet_of(self.model), self.model.image_size)


def _headlines(folder: Path, split: Split) -> Record:
    """Return the headline metrics of an evaluation."""
    run = read_run(folder, split)
    scores = {task: run.scores()[task, metric] for task, metric in run.record["headline"].items()}
    return {"split": split, "scores": scores, "headline": run.record["headline"]}


def spread_networks(space: SearchSpace, count: int) -> list[Architecture]:
    """Draw sub-networks of any size, the first of which share everything, and the later ones less and less."""
    rng = Random(0)
    return [space.random(rng, split=number / max(count - 1, 1)) for number in range(count)]


def unshared(space: SearchSpace, architecture: Architecture) -> Architecture:
    """Return a network of the same sizes in which every task has its own copy of everything."""
    row = space.largest().sharing[0]
    if len(set(row)) < space.num_tasks:
        msg = f"nothing is shared only with a copy for each of {space.num_tasks} tasks; set space.copies"
        raise ConfigError(msg)
    return replace(architecture, sharing=(row,) * 2 * architecture.depth)


def spelled(words: Sequence[str]) -> str:
    """Write a command of ours as one would type it."""
    return shlex.join(["taskformer", *words])


def all_jobs(study: Study, results: Results, runs_dir: Path) -> list[Job]:
    """List the jobs of all supernets; test images come after all that is chosen."""
    supernets = [SupernetJobs(name, study, results, runs_dir) for name in study.supernets]
    jobs = [job for each in supernets for job in each.jobs()]
    before = [job.name for job in jobs]
    return jobs + [replace(job, needs=before) for each in supernets for job in each.tests()]


def work(jobs: Iterable[Job], results: Results, runs_dir: Path) -> None:
    """Do what is left to do, beside other processes, until everything has a result."""
    while left := [job for job in jobs if job.name not in results]:
        if not any(_done(job, results, runs_dir) for job in left):
            time.sleep(POLL)


def _done(job: Job, results: Results, runs_dir: Path) -> bool:
    """Do a job if it can be done and nobody else does it; tell whether it was."""
    if not all(name in results for name in job.needs):
        return False
    with claimed(runs_dir / f"{job.name}.lock") as mine:
        if not mine or job.name in results:
            return False
        started = sum(os.times()[:4])
        record = job.run()
        seconds = round(sum(os.times()[:4]) - started, 1)
        results[job.name] = {**record, "processor_seconds": seconds, "git_revision": git_revision()}
        return True


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Lock a file for this process, until it ends in whatever way; False where another process has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def read_study(file: Path) -> Study:
    """Read a study's file.

    Raises:
        ConfigError: If a setting is missing, wrong or unknown.
    """
    parser = Parser()
    parser.add_class_arguments(Study)
    return Study(**vars(parser.parse_object(read_layers(file))))


def main() -> None:
    """Parse the command line, work, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="file of a study")
    parser.add_argument("--report", action="store_true", help="only write the report, from the JSON files alone")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--results_dir", type=Path, default=Path("docs/studies"), help="folder of all studies' results")
    options = parser.parse_args()
    folder, runs_dir = options.results_dir / options.study.stem, options.runs_dir / options.study.stem
    try:
        study, results = read_study(options.study), Results(folder / "runs")
        if not options.report:
            write_json(folder / "study.json", asdict(study))
            work(all_jobs(study, results, runs_dir), results, runs_dir)
        write_report(folder, f"python benchmarks/supernet_study.py {options.study}")
    except Exception as error:
        if (sentence := mistake(error)) is None:
            raise
        sys.exit(f"supernet_study: {sentence}")


if __name__ == "__main__":
    main()
