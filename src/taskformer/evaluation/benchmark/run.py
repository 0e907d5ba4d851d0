"""The door of the benchmark: networks go in, their time, memory and cost come out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from taskformer.errors import ConfigError, require
from taskformer.evaluation.benchmark.cost import Cost, count
from taskformer.evaluation.benchmark.figures import Benchmark, Figures, Growth, Methods, Timed
from taskformer.evaluation.benchmark.memory import peak_memory
from taskformer.evaluation.benchmark.subjects import Subject, alike
from taskformer.evaluation.benchmark.timing import Clock, clock_of, take_turns
from taskformer.evaluation.environment import environment
from taskformer.modules import MultiTaskModule
from taskformer.modules.balancing import METHODS

#: Numbers of tasks, factors of the image's sides, and the kind of task of :func:`benchmark`'s growth.
TASKS, ZOOMS, TASK = (1, 2, 4, 8, 16), (1.0, 2.0), {"type": "regression", "channels": 1}


def benchmark(
    model: str | Path | MultiTaskModule,
    against: str | Path | MultiTaskModule | None = None,
    *,
    architecture: str | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 4,
    rounds: int = 10,
    train: bool = True,
    growth: bool = False,
    growth_tasks: Sequence[int] = TASKS,
    growth_task: Mapping[str, Any] = TASK,
    balancing: bool = False,
    device: str = "cpu",
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    threads: int | None = None,
    names: Sequence[str] = (),
    out: str | Path | None = None,
) -> Benchmark:
    """Measure how long a network predicts and trains, how much memory it needs for that, and what it costs.

    Two networks are measured in one process and take turns, so that their ratios, round by round, hold although the
    machine is faster at one time than at another. The models stay as they are; this process keeps freed memory from
    then on, as one that trains does.

    >>> import taskformer
    >>> model = taskformer.create_model("baseline", ["depth"], backbone="lcnet_050", embed_dim=8)
    >>> found = taskformer.benchmark(model, size=(32, 48), rounds=2, batch=2)
    >>> found.subjects[0].cost["total"].params == sum(p.numel() for p in model.network.parameters())
    True

    Args:
        model: What is measured: a run folder, a checkpoint or a model, e.g. of :func:`taskformer.from_config`.
        against: Another one to compare it with.
        architecture: Of a supernet: JSON file of the sub-network; None: the largest.
        size: Height and width of the images; None: those of the first model's training.
        batch: Images of a batch, beside single ones.
        rounds: How often each call is timed.
        train: Whether training steps are measured too.
        growth: Whether the same networks are also measured with other numbers of tasks and for larger images, one
            image at a time.
        growth_tasks: The numbers of tasks.
        growth_task: What each of these tasks is, see :func:`taskformer.tasks.build_tasks`.
        balancing: Whether training steps are also measured with every method of balancing, which take turns.
        device: Where everything runs, e.g. cuda.
        precision: As the Trainer's.
        threads: Threads on the processor; None: torch's number.
        names: What to call the one or two models.
        out: Folder to write ``benchmark.json``, ``benchmark.md`` and the picture ``benchmark.png`` to.

    Returns:
        What was measured, with ``table()``, ``further_tables()`` and ``as_dict()``.

    Raises:
        ConfigError: If there is no such device, no size is known, or a setting is impossible.
        MissingExtraError: If a method of balancing lacks its package.
        WeightsError: If there is no such run or checkpoint.
    """
    require("[1, inf)", batch=batch, rounds=rounds, threads=threads, size=size, growth_tasks=growth_tasks)
    place = find_device(device)
    sources = [model] if against is None else [model, against]
    with _threads(threads):
        subjects: list[Subject] = []
        for source, name in zip(sources, names or map(_name, sources), strict=True):
            subjects.append(Subject.open(source, name, size, place, architecture, precision == "bf16-mixed"))
            size = subjects[0].size
        clock = clock_of(place)
        batches = sorted({1, batch})
        figures = measure(subjects, batches, rounds, train, clock)
        for each, measured in zip(subjects, figures, strict=True):
            measured.tasks.update(_cost_of_tasks(each, measured.cost))
        grown = [_growth(each, growth_tasks, growth_task, rounds, train, clock) for each in subjects] if growth else []
        methods = [_methods(each, batch, rounds, clock) for each in subjects] if balancing else []
        found = Benchmark(figures, grown, _conditions(subjects[0], rounds, precision, growth_task), methods)
    if out is not None:
        from taskformer.evaluation.benchmark.report import write  # matplotlib, which takes a second to import

        write(Path(out), found)
    return found


def measure(
    subjects: Sequence[Subject], batches: Sequence[int], rounds: int, train: bool, clock: Clock
) -> list[Figures]:
    """Measure networks, which take turns.

    Args:
        subjects: The networks.
        batches: Sizes of the batches that they predict; they train on the last.
        rounds: How often each call is timed.
        train: Whether they train.
        clock: Reads the clocks.
    """
    figures = [Figures(each.name, each.size, count(each.network, each.images(1))) for each in subjects]
    plans: list[tuple[str, Callable[[Subject, int], Callable[[], object]], int]]
    plans = [(f"inference, batch {batch}", Subject.inference, batch) for batch in batches]
    plans += [(f"training, batch {batches[-1]}", Subject.training, batches[-1])] if train else []
    for name, prepare, batch in plans:
        calls = [prepare(each, batch) for each in subjects]
        readings = take_turns(calls, rounds, clock)
        for each, call, passed, found in zip(subjects, calls, readings, figures, strict=True):
            found.timed[name] = Timed(batch, passed, peak_memory(call, each.device))
    return figures


def _growth(
    subject: Subject, numbers: Sequence[int], task: Mapping[str, Any], rounds: int, train: bool, clock: Clock
) -> Growth:
    """Measure a network for other numbers of tasks, and for larger images, one image at a time."""
    with_tasks = [subject.with_tasks(alike(number, task)) for number in numbers]
    by_tasks = measure(with_tasks, [1], rounds, train, clock)
    by_side = measure([subject.resized(zoom) for zoom in ZOOMS], [1], rounds, train, clock)
    return Growth(
        subject.name,
        {"tasks": dict(zip(numbers, by_tasks, strict=True)), "side": dict(zip(ZOOMS, by_side, strict=True))},
    )


def _methods(subject: Subject, batch: int, rounds: int, clock: Clock) -> Methods:
    """Measure a training step with every method of balancing; they take turns.

    Raises:
        ConfigError: If the network is compiled.
    """
    if subject.module.compiles:
        msg = (
            f"methods of balancing are compared as they are, and {subject.name} is compiled; leave out --model.compile"
        )
        raise ConfigError(msg)
    calls = {method.__name__: subject.training(batch, method) for method in METHODS}
    readings = take_turns(list(calls.values()), rounds, clock)
    return Methods(subject.name, {
        name: Timed(batch, passed, peak_memory(call, subject.device))
        for (name, call), passed in zip(calls.items(), readings, strict=True)
    })  # fmt: skip


def _cost_of_tasks(subject: Subject, cost: Mapping[str, Cost]) -> dict[str, Cost]:
    """Count what each task adds: what the network would cost less without it; an only task has the whole head."""
    names = list(subject.module.tasks)
    if len(names) == 1:
        return {names[0]: cost["head"]} if "head" in cost else {}
    image = subject.images(1)
    return {name: cost["total"].without(count(subject.without(name).network, image)["total"]) for name in names}


def _conditions(subject: Subject, rounds: int, precision: str, growth_task: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what the figures depend on beside the networks."""
    cuda = subject.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(subject.device) if cuda else subject.device.type,
        "threads": torch.get_num_threads(),
        "size": list(subject.size),
        "rounds": rounds,
        "precision": precision,
        "growth_task": dict(growth_task),
        **environment(),
    }


def _name(source: str | Path | MultiTaskModule) -> str:
    return type(source).__name__ if isinstance(source, MultiTaskModule) else str(source)


def find_device(name: str) -> torch.device:
    """Return a device of this machine.

    Raises:
        ConfigError: If there is none of that name.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        msg = f"device {name!r} cannot be used: {str(error).splitlines()[0]}; use cpu"
        if name.startswith("cuda") and not torch.cuda.is_available():
            msg = f"device is {name!r}, but torch sees no GPU on this machine; use cpu"
        raise ConfigError(msg) from error
    return device


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch use as many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
