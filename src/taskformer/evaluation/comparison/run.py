"""The door of comparisons: runs go in, a table comes out."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, product
from pathlib import Path
from string import ascii_uppercase

from taskformer.errors import require
from taskformer.evaluation.benchmark.run import find_device
from taskformer.evaluation.benchmark.timing import Spread
from taskformer.evaluation.comparison.comparison import Comparison, Shown, heading
from taskformer.evaluation.comparison.differences import Difference, find_differences
from taskformer.evaluation.comparison.files import write
from taskformer.evaluation.comparison.groups import Group, apart, grouped
from taskformer.evaluation.comparison.latency import measure_latency
from taskformer.evaluation.comparison.mixing import remarks, require_alike
from taskformer.evaluation.comparison.scored import Split
from taskformer.evaluation.comparison.sources import find_sources, read_sources


def compare(
    runs: Sequence[str | Path],
    resamples: int = 10_000,
    seed: int = 0,
    *,
    split: Split | None = None,
    metrics: Shown = "headline",
    latency: bool = False,
    device: str = "cpu",
    out: str | Path | None = None,
) -> Comparison:
    """Compare what evaluated runs achieve and cost, and say which differences to the first are more than chance.

    Runs that differ in their seed alone are one row, with mean and spread. Differences have 95 % intervals: over the
    choice of images, by a paired bootstrap, where the scores of single images were kept (``test`` keeps them for fewer
    than 5,000 images); over the seeds, where both sides have several. One is called better where all of its intervals
    leave out 0. The intervals are of one difference each: among many differences some exclude 0 by chance.

    >>> import taskformer
    >>> taskformer.compare(["runs/demo", "runs/baseline-*"], latency=True).tables()  # doctest: +SKIP

    Args:
        runs: Run folders, patterns of them, folders of local sweeps, or runs of wandb, ``wandb:ENTITY/PROJECT/ID``.
        resamples: Number of bootstrap samples of the images.
        seed: Seed of the bootstrap.
        split: Which evaluations are compared, ``test`` or ``val``; None: ``test``, or ``val`` if no run was tested.
        metrics: Which metrics the files in ``out`` show: those that stand for their tasks, or all.
        latency: Whether to measure here how long each network takes for one image; all take turns in one process.
        device: Where that is measured.
        out: Folder to write ``compare.md``, ``compare.csv`` and ``compare.tex`` to.

    Raises:
        ConfigError: If a run has no results, or protocols, data or images differ: such numbers are not of one table.
    """
    require("[1, inf)", resamples=resamples)
    require("[0, inf)", seed=seed)
    sources, notes = find_sources(runs)
    scored = read_sources(sources, split)
    require_alike(scored)
    together = grouped(scored)
    if len(together) == 1:  # seeds of one model are compared with each other
        together, notes = apart(scored), [*notes, *_spread(together[0])]
    groups = dict(zip(_letters(), together, strict=False))
    differences = find_differences(groups, resamples, seed)
    notes += [*remarks(groups), *_without_intervals(groups, differences)]
    found = Comparison(groups, differences, resamples, _latency(groups, device) if latency else {}, notes)
    if out is not None:
        write(Path(out), found, metrics)
    return found


def _letters() -> Iterator[str]:
    """Yield A, B, ..., Z, AA, AB, ..."""
    return ("".join(letters) for length in count(1) for letters in product(ascii_uppercase, repeat=length))


def _latency(groups: Mapping[str, Group], device: str) -> dict[str, Spread]:
    """Measure the groups that have a run folder here, each by its first run."""
    folders = {letter: group.first.folder for letter, group in groups.items() if group.first.folder is not None}
    size = groups["A"].first.record.get("image_size")
    return measure_latency(folders, size and tuple(size), find_device(device))


def _spread(group: Group) -> Iterator[str]:
    """Yield the mean over seeds where the runs are all that there is."""
    keys = [key for key in group.first.scores() if group.first.is_headline(key)]
    means = {key: mean for key in keys if (mean := group.score(key)) is not None and mean.seeds > 1}
    units = {key: group.first.unit(key) for key in means}
    if texts := [f"{heading(' '.join(key), units[key])}: {mean.text(units[key])}" for key, mean in means.items()]:
        yield f"The runs differ in their seed alone; over the seeds, {'; '.join(texts)}."


def _without_intervals(groups: Mapping[str, Group], found: Sequence[Difference]) -> Iterator[str]:
    """Yield why there are no intervals over images."""
    if len(groups) == 1 or groups["A"].first.split != "test":
        return
    if lacking := [letter for letter, group in groups.items() if not all(run.images for run in group.runs)]:
        yield (
            f"No intervals over images: {', '.join(lacking)} kept no scores of single images; "
            "`taskformer test RUN --results.per_image true` does."
        )
    elif not any(row.images for row in found):
        yield "No intervals over images: a bootstrap needs at least 2 images with a value in both runs."
