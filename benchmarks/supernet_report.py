"""The report of a study of supernets, made from its results alone: what the numbers claim, and how sure that is.

Used by ``supernet_study.py``, which says what the results are.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from taskformer.errors import ConfigError
from taskformer.evaluation.comparison.comparison import heading
from taskformer.evaluation.significance import ENDS, Interval, seeds_interval
from taskformer.evaluation.tables import markdown
from taskformer.files import write_text
from taskformer.metrics import delta_m, improvement
from taskformer.metrics.units import shown
from taskformer.plots import BLUE, GREY, STYLE, WIDTH, save
from taskformer.studies.evidence import read_json_file
from taskformer.studies.intervals import BySeed, Resampling, interval, relative_gain
from taskformer.tasks.registry import task_class

Record = Mapping[str, Any]
Array = NDArray[np.float64]
#: The networks that are compared: the best of those searched, of those that share everything and nothing, and any.
ARMS = ("searched", "all-shared", "all-specific", "random")
RESAMPLES = 2000
MILLION = 1e6
#: What the table of differences is of.
DIFFERENCES = """\
Differences between arms. *single images*: delta_m of the first over the second, of means over images that are scored
alone (not the values of the whole split), with a 95 % bootstrap interval over images and seeds, the same for both.
*test*: of the column above, with Welch's 95 % t interval over the seeds. Three seeds are few: the first interval is
rather too narrow, the second wide. More than chance is what both show.
"""
#: What takes time, and how the names of its jobs go on after the supernet's.
STAGES = {
    "training": "",
    "choice of the rate": "-rate-.*",
    "random networks": "-network.*",
    "search": "-choice",
    "compared networks": f"-({'|'.join(ARMS)})-.*",
}


def spearman(first: Array, second: Array) -> Array:
    """Compute Spearman's rank correlation along the last axis; NaN where one side is constant.

    >>> float(spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0])))
    1.0
    """
    first, second = (rankdata(each, axis=-1) - (each.shape[-1] + 1) / 2 for each in (first, second))
    with np.errstate(invalid="ignore"):
        return (first * second).sum(-1) / np.sqrt((first**2).sum(-1) * (second**2).sum(-1))


def kendall(first: Array, second: Array) -> Array:
    """Compute Kendall's tau-b along the last axis; NaN where one side is constant.

    >>> float(kendall(np.array([1.0, 2.0, 3.0]), np.array([9.0, 4.0, 2.0])))
    -1.0
    """
    first, second = (np.sign(each[..., :, None] - each[..., None, :]) for each in (first, second))
    with np.errstate(invalid="ignore"):
        return (first * second).sum((-2, -1)) / np.sqrt((first**2).sum((-2, -1)) * (second**2).sum((-2, -1)))


def over_networks(correlation: Callable[[Array, Array], Array], first: Array, second: Array) -> Interval:
    """Return a rank correlation with its 95 % bootstrap interval over the choice of networks.

    Args:
        correlation: Computes it along the last axis.
        first: A score of each network ``(N,)``.
        second: Another one.
    """
    drawn = np.random.default_rng(0).integers(len(first), size=(RESAMPLES, len(first)))
    values = correlation(first[drawn], second[drawn])
    ends = np.percentile(values[np.isfinite(values)], ENDS) if np.isfinite(values).any() else (np.nan, np.nan)
    return Interval(float(correlation(first, second)), float(ends[0]), float(ends[1]))


def paired_gain(
    first: Mapping[str, BySeed], second: Mapping[str, BySeed], higher_is_better: Mapping[str, bool]
) -> Interval:
    """Return delta_m of one arm over another with its 95 % bootstrap interval over images *and* seeds.

    A task's value is the mean over the drawn images and seeds, the same ones for both arms, and without images of which
    one has no value; delta_m is the tasks' mean improvement over the second arm in percent.

    >>> better, worse = ({"edges": {seed: np.full(3, value) for seed in (0, 1)}} for value in (0.6, 0.5))
    >>> interval = paired_gain(better, worse, {"edges": True})
    >>> f"{interval.difference:.1f} ({interval.low:.1f} to {interval.high:.1f})"
    '20.0 (20.0 to 20.0)'

    Args:
        first: Each task's metric of single images by seed.
        second: The other arm's, of the same images and seeds.
        higher_is_better: Of each task.
    """
    images = {len(values) for by_seed in first.values() for values in by_seed.values()}
    draws = Resampling(images.pop(), RESAMPLES)
    gains = []
    for task, sense in higher_is_better.items():
        means = [draws.means(_known(*pair)) for pair in ((first[task], second[task]), (second[task], first[task]))]
        gains.append(relative_gain(*means, sense))
    return interval(np.mean(gains, axis=0))


def _known(values: BySeed, others: BySeed) -> BySeed:
    """Leave out the images of which the other arm has no value."""
    return {seed: np.where(np.isfinite(others[seed]), each, np.nan) for seed, each in values.items()}


class Supernet:
    """The results of one supernet.

    Args:
        name: Its name in the study.
        records: All results of the study by name.
        study: The study's settings.
    """

    def __init__(self, name: str, records: Mapping[str, Any], study: Record) -> None:
        self.name = name
        self.records = records
        self.study = study

    @property
    def networks(self) -> list[Record]:
        """The random sub-networks that were fine-tuned; empty until all are."""
        names = [f"{self.name}-network-{number:02d}" for number in range(self.study["networks"])]
        return [self.records[name] for name in names] if all(name in self.records for name in names) else []

    @property
    def tested(self) -> dict[str, list[Record]]:
        """What the arms' networks achieve on the test images, by arm; empty until all are tested."""
        names = {arm: [f"{self.name}-{arm}-seed-{seed}-test" for seed in self.study["seeds"]] for arm in ARMS}
        if not all(name in self.records for arm in names.values() for name in arm):
            return {}
        return {arm: [self.records[name] for name in each] for arm, each in names.items()}

    @property
    def reference(self) -> Record:
        """Scores of the largest sub-network with inherited weights, and the senses of the metrics."""
        reference: Record = self.records[f"{self.name}-networks"]["reference"]
        return reference

    def tasks(self) -> list[str]:
        """Name the tasks."""
        return list(self.reference["scores"])

    def gains(self, networks: Sequence[Record], task: str | None) -> Array:
        """Return networks' improvements over the largest's inherited scores in percent; None: of all tasks."""
        if task is None:
            return np.array([delta_m(one["scores"], *self.reference.values()) for one in networks])
        reference, sense = (self.reference[key][task] for key in ("scores", "higher_is_better"))
        return np.array([improvement(one["scores"][task], reference, sense) for one in networks])

    def inherited(self) -> list[Record]:
        """Return the random sub-networks with inherited weights."""
        found: list[Record] = self.records[f"{self.name}-networks"]["networks"]
        return found

    def images(self, arm: str) -> dict[str, BySeed]:
        """Return each task's metric of single test images by seed."""
        runs = dict(zip(self.study["seeds"], self.tested[arm], strict=True))
        return {
            task: {seed: np.array(record["images"][task], dtype=np.float64) for seed, record in runs.items()}
            for task in self.tasks()
        }

    def test_gains(self, arm: str, base: Mapping[str, float]) -> list[float]:
        """Return delta_m on the test images relative to ``base``, of each seed."""
        return [delta_m(one["scores"], base, self.reference["higher_is_better"]) for one in self.tested[arm]]

    def minutes(self, jobs: str) -> str:
        """Add up the processor time of the jobs whose names go on like a pattern after the supernet's."""
        found = [one["processor_seconds"] for name, one in self.records.items() if re.fullmatch(self.name + jobs, name)]
        return f"{sum(found) / 60:.0f}"


def write_report(folder: Path, command: str) -> None:
    """Write ``README.md`` and its pictures from ``study.json`` and ``runs/*.json``.

    Args:
        folder: The study's folder.
        command: What has made the results.

    Raises:
        ConfigError: If there are none.
    """
    if not (folder / "study.json").is_file():
        msg = f"{folder} has no results of a study; make them with `{command}`"
        raise ConfigError(msg)
    study = read_json_file(folder / "study.json")
    records = {path.stem: read_json_file(path) for path in (folder / "runs").glob("*.json")}
    supernets = [Supernet(name, records, study) for name in study["supernets"]]
    ordered = [each for each in supernets if each.networks]
    tested = [each for each in supernets if each.tested]
    parts = [f"# {folder.name}\n", _about(study, supernets, command)]
    if ordered:
        draw_order(folder / "order.png", ordered)
        parts += [_order_text(study), *map(_order_table, ordered)]
    if tested:
        base = _means(tested[0].tested["all-shared"])
        parts += [_arms_text(study), _arms_table(tested, base), DIFFERENCES, _differences_table(tested, base)]
    write_text(folder / "README.md", "\n".join(parts))


def _about(study: Record, supernets: Sequence[Supernet], command: str) -> str:
    """Say what was done, by which command, on which revision and in which time."""
    lines = [["supernet", "flags of `taskformer fit`", "rate", *(f"{stage}, minutes" for stage in STAGES)]]
    for each in supernets:
        rates = {rate: each.records.get(f"{each.name}-rate-{rate:g}") for rate in study["rates"]}
        rate = f"{max(rates, key=lambda one: rates[one]['delta_m']):g}" if all(rates.values()) else "-"
        flags = f"`{' '.join(study['supernets'][each.name])}`"
        lines.append([each.name, flags, rate, *map(each.minutes, STAGES.values())])
    revisions = sorted({str(one["git_revision"]) for one in supernets[0].records.values()})
    low, high = (f"{value / MILLION:.4g}" for value in study["params"])
    return (
        f"```\n{command}\n```\n\n{markdown(lines)}\n"
        "Minutes are of one processor. *rate*: that of all fine-tunings, chosen with a sub-network of middle size on "
        f"the held-out images. Every fine-tuning: `{' '.join(study['tuning'])}`. Compared are networks of {low} to "
        f"{high} M parameters. Revision: {', '.join(revisions)}.\n"
    )


def _order_text(study: Record) -> str:
    return (
        "## Do inherited weights order sub-networks?\n\n"
        f"{study['networks']} random sub-networks of each supernet, from sharing everything to sharing little, scored "
        "on the held-out training images with the weights that they inherit and after fine-tuning, in percent of the "
        "largest sub-network's inherited scores. Rank correlations with 95 % bootstrap intervals over the networks; "
        "*parameters*: of the number of parameters with the fine-tuned scores, which needs no supernet.\n\n"
        "![Inherited against fine-tuned](order.png)\n"
    )


def _order_table(supernet: Supernet) -> str:
    """Compare the orders of one supernet's networks, by all tasks and by each."""
    header = [supernet.name, "inherited: mean", "fine-tuned: mean", "Spearman", "Kendall", "parameters: Spearman"]
    lines = [header]
    params = np.array([one["params"] for one in supernet.networks], dtype=np.float64)
    for task in (None, *supernet.tasks()):
        before, after = (supernet.gains(each, task) for each in (supernet.inherited(), supernet.networks))
        found = [over_networks(spearman, before, after), over_networks(kendall, before, after)]
        cells = [_interval(each) for each in (*found, over_networks(spearman, params, after))]
        lines.append([task or "delta_m", f"{before.mean():+.2f}", f"{after.mean():+.2f}", *cells])
    return markdown(lines)


def _arms_text(study: Record) -> str:
    return (
        "## Searched, all-shared, all-specific and random networks at equal parameters\n\n"
        "Chosen by delta_m with inherited weights on the held-out training images, of equally many networks within the "
        f"limits (random: none is chosen, each seed has its own), fine-tuned alike with the seeds {study['seeds']}, "
        "scored once on the test images. *inherited*: delta_m on the held-out images in percent of the largest "
        "sub-network. *test*: delta_m in percent of the first supernet's all-shared network (mean over its seeds), "
        "mean ± standard deviation over the seeds.\n"
    )


def _arms_table(supernets: Sequence[Supernet], base: Mapping[str, float]) -> str:
    """Show costs and results of every arm; delta_m is relative to ``base``."""
    first = supernets[0]
    tasks, headline = first.tasks(), first.tested["all-shared"][0]["headline"]
    units = {task: getattr(task_class(task), "units", {}).get(headline[task], "") for task in tasks}
    names = [heading(f"{task} {headline[task]}", units[task]) for task in tasks]
    lines = [["supernet", "network", "scored", "parameters, M", "MACs, M", "inherited", "test", *names]]
    for each in supernets:
        choice = each.records[f"{each.name}-choice"]
        for arm, runs in each.tested.items():
            chosen = {key: fmean(one[key] for one in choice[arm]) for key in ("params", "macs", "delta_m")}
            costs = [f"{chosen['params'] / MILLION:.3f}", f"{chosen['macs'] / MILLION:.0f}"]
            gains, means = each.test_gains(arm, base), _means(runs)
            test = f"{fmean(gains):+.2f}" + (f" ± {stdev(gains):.2f}" if len(gains) > 1 else "")
            scores = [shown(means[task], units[task]) for task in tasks]
            scored = str(choice["evaluated"][arm])
            lines.append([each.name, arm, scored, *costs, f"{chosen['delta_m']:+.2f}", test, *scores])
    return markdown(lines)


def _means(runs: Sequence[Record]) -> dict[str, float]:
    """Return each task's headline metric, the mean over runs."""
    return {task: fmean(one["scores"][task] for one in runs) for task in runs[0]["scores"]}


def _differences_table(supernets: Sequence[Supernet], base: Mapping[str, float]) -> str:
    """Compare the searched network with the other arms, and every supernet with the first one arm by arm."""
    lines = [["first", "second", "single images: delta_m, %", "test: first - second", "more than chance"]]
    first, *others = supernets
    pairs = [(each, "searched", each, arm) for each in supernets for arm in ARMS[1:]]
    pairs += [(other, arm, first, arm) for other in others for arm in ARMS]
    for one, arm, two, against in pairs:
        found = [paired_gain(one.images(arm), two.images(against), one.reference["higher_is_better"])]
        over_seeds = seeds_interval(two.test_gains(against, base), one.test_gains(arm, base))
        found += [over_seeds] if over_seeds else []
        signs = {each.sign for each in found}
        verdict = {1: "better", 0: "no", -1: "worse"}[signs.pop() if len(signs) == 1 else 0]
        seeds = _interval(over_seeds, "+") if over_seeds else "-"
        lines.append([f"{one.name} {arm}", f"{two.name} {against}", _interval(found[0], "+"), seeds, verdict])
    return markdown(lines)


@rc_context(STYLE)
def draw_order(path: Path, supernets: Sequence[Supernet]) -> None:
    """Draw every random network's delta_m before and after fine-tuning, one panel for each supernet."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    panels = figure.subplots(1, len(supernets), squeeze=False)[0]
    for axes, each in zip(panels, supernets, strict=True):
        before, after = (each.gains(networks, None) for networks in (each.inherited(), each.networks))
        params = np.array([one["params"] for one in each.networks]) / MILLION
        ends = [min(*before, *after), max(*before, *after)]
        axes.plot(ends, ends, color=GREY, linewidth=1, label="no change")
        points = axes.scatter(before, after, c=params, cmap="viridis", edgecolors=BLUE, s=50)
        axes.set_title(f"{each.name}: Spearman {over_networks(spearman, before, after).difference:.2f}")
        axes.set_xlabel("delta_m with inherited weights, %")
        axes.set_ylabel("delta_m after fine-tuning, %")
        axes.legend()
        figure.colorbar(points, ax=axes, label="parameters, M")
    save(figure, path)


def _interval(found: Interval, sign: str = "") -> str:
    return f"{found.difference:{sign}.2f} ({found.low:{sign}.2f} to {found.high:{sign}.2f})"
