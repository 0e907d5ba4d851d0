"""The report of a study, made from its JSON files alone."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from taskformer.evaluation.comparison.comparison import COLUMNS
from taskformer.evaluation.settings import text_of
from taskformer.evaluation.significance import Interval
from taskformer.evaluation.tables import markdown
from taskformer.files import replacing, write_text
from taskformer.studies.findings import DELTA_M, Evaluation, Evidence, Finding
from taskformer.studies.pictures import draw_findings
from taskformer.studies.schema import Study

#: What the intervals are, for readers.
INTERVALS = """\
The interval *over images and seeds* is of the mean over images, each scored alone (not the value of the whole split),
from a bootstrap that draws images and seeds again, the same for both arms: would the difference be seen on other images
of the kind and with other seeds? The interval *over seeds* is Welch's t interval of the values of the whole split.
Three seeds are few: the first interval cannot know how far seeds may lie apart and is rather too narrow, the second is
wide because it knows that it does not. Bold differences are those whose interval leaves out 0; where an arm has one
seed, nothing is bold, as other seeds may say something else.
"""
#: Headings of evaluations.
TITLES = {"test": "Test images", "val": "Validation images", "photographs": "Photographs", "streets": "Streets"}
#: What a network costs; where each task has its own, that of all of them.
COSTS = tuple(column for column in COLUMNS if column[0] != "trained_parameters")
#: What a training takes.
TIMES = (("seconds", "minutes"), ("processor_seconds", "processor minutes"))


def write_report(study: Study, results_dir: str | Path = "docs/studies", resamples: int = 10_000) -> Path:
    """Write ``README.md``, ``table.csv`` and pictures of what is finished of a study.

    Args:
        study: The study.
        results_dir: Folder of what is kept of all studies; the study's has one JSON file for each run.
        resamples: Number of draws of the bootstrap.

    Returns:
        The report.
    """
    folder = Path(results_dir) / study.name
    evidence = Evidence.read(study, folder)
    evaluations = [Evaluation(evidence, name, resamples) for name in evidence.evaluations]
    parts = [f"# {study.title}\n", *_facts(evidence)]
    for evaluation in evaluations:
        title, picture = f"{TITLES[evaluation.name]} ({evaluation.images})", folder / f"{evaluation.name}.png"
        draw_findings(picture, evaluation)
        parts += [f"## {title}\n", markdown(_table(evaluation)), f"![{title}]({picture.name})\n"]
        if len(lines := _differences(evaluation)) > 1:
            parts += [f"Differences to `{study.against}`, with 95 % intervals:\n", markdown(lines)]
    parts += [*([INTERVALS] if evaluations else []), "## Arms\n", markdown(_arms(study))]
    with replacing(folder / "table.csv") as temporary, temporary.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(_csv(evaluations))
    write_text(folder / "README.md", "\n".join(parts))
    return folder / "README.md"


def _facts(evidence: Evidence) -> Iterator[str]:
    """Yield what a reader must know before he believes the tables."""
    study, records, missing = evidence.study, evidence.records, evidence.missing
    total = len(study.trials())
    lines = [
        f"Command: `python benchmarks/study.py {study.file}`",
        f"Runs: {total - len(missing)} of {total} are finished",
    ]
    if missing:
        lines[-1] += f"; missing: {', '.join(trial.name for trial in missing)}"
    if records:
        facts = [record["evaluations"][study.split]["facts"] for record in records]
        held_out = study.split == "val" and any(fact["holdout"] for fact in facts)
        seconds = [record["seconds"] for record in records]
        lines += [
            f"Data: {_distinct(fact['data'] for fact in facts)}, {study.split} split"
            f"{', which are held-out training images' if held_out else ''}, protocol "
            f"{_distinct(fact['protocol'] for fact in facts)}",
            f"Trainings: {_distinct(record['steps'] for record in records)} steps, {min(seconds) / 60:.1f} to "
            f"{max(seconds) / 60:.1f} minutes each, {sum(seconds) / 3600:.1f} hours in all",
            f"Git revision: {_distinct(record['git_revision'] for record in records)}",
        ]
    if changed := list(_changed(evidence)):
        lines.append(f"Trained with another configuration than the files say now: {', '.join(changed)}")
    yield "".join(f"* {line}\n" for line in lines)


def _distinct(values: Iterable[object]) -> str:
    """Write each value once."""
    return ", ".join(sorted({str(value) for value in values}))


def _changed(evidence: Evidence) -> Iterator[str]:
    """Yield the names of variants whose runs were of another configuration than that of today's files."""
    for variant in evidence.study.variants:
        now = json.loads(json.dumps(variant.configuration))
        for seed, record in evidence.runs.get(variant.name, {}).items():
            if record["configuration"] != now | {"seed_everything": seed}:
                yield variant.name
                break


def _table(evaluation: Evaluation) -> list[list[str]]:
    """Return what each arm achieves and costs, the headings first."""
    columns = evaluation.columns.values()
    costs, times = [label for _, label, _ in COSTS], [label for _, label in TIMES]
    lines = [["arm", "seeds", *(column[0].heading for column in columns), *costs, *times]]
    for arm in evaluation.arms:
        found = [next((each for each in column if each.arm == arm), None) for column in columns]
        seeds = sorted({len(each.values) for each in found if each})
        cells = ["" if each is None else _mean(each) for each in found]
        lines.append([arm, " to ".join(map(str, seeds)), *cells, *_costs(evaluation.evidence.of(arm))])
    return lines


def _costs(networks: list[Mapping[int, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield what an arm's networks cost together."""
    for name, _, unit in COSTS:
        yield f"{sum(next(iter(seeds.values()))[name] for seeds in networks) / unit:.2f}"
    for name, _ in TIMES:
        yield f"{sum(fmean(record[name] for record in seeds.values()) for seeds in networks) / 60:.1f}"


def _differences(evaluation: Evaluation) -> list[list[str]]:
    """Return how far each arm is from the reference, the headings first."""
    lines = [["arm", "quantity", "over images and seeds", "over seeds"]]
    for finding in evaluation.findings:
        if finding.difference or finding.over_seeds:
            several = finding.over_seeds is not None
            cells = [_interval(each, finding.scale, several) for each in (finding.difference, finding.over_seeds)]
            lines.append([finding.arm, finding.heading, *cells])
    return lines


def _interval(found: Interval | None, scale: float, several: bool) -> str:
    """Write a difference with its interval, bold where that leaves out 0 and several seeds say so."""
    if found is None:
        return ""
    mean, low, high = (f"{scale * value:+.3g}" for value in found)
    mark = "**" if found.sign and several else ""
    return f"{mark}{mean} ({low} to {high}){mark}"


def _mean(finding: Finding) -> str:
    """Write a mean with its spread."""
    if finding.mean is None:
        return ""
    if finding.key != DELTA_M:
        return finding.mean.text(finding.unit)
    return f"{finding.mean.mean:+.2f}" + ("" if finding.mean.spread is None else f" ± {finding.mean.spread:.2f}")


def _arms(study: Study) -> list[list[str]]:
    """Return what each arm is, the headings first."""
    lines = [["arm", "configurations", "settings"]]
    for name, arm in study.arms.items():
        settings = ", ".join(f"`{key}={text_of(value)}`" for key, value in (study.settings | arm.settings).items())
        lines.append([name, ", ".join(f"`{file}`" for file in (*arm.config, *study.base)), settings])
    return lines


def _csv(evaluations: list[Evaluation]) -> Iterator[list[object]]:
    """Yield the table for programs: numbers as they were measured, shares as fractions, delta_m in percent."""
    ends = ("difference", "low", "high")
    yield ["evaluation", "arm", "task", "metric", "unit", "better", "seeds", "mean", "spread",
           *ends, *(f"seeds_{end}" for end in ends)]  # fmt: skip
    for evaluation in evaluations:
        for finding in evaluation.findings:
            mean = finding.mean
            numbers = [None, None] if mean is None else [mean.mean, mean.spread]
            intervals = [end for each in (finding.difference, finding.over_seeds) for end in each or [None] * 3]
            seeds = " ".join(map(str, finding.values))
            yield [
                evaluation.name,
                finding.arm,
                *finding.key,
                finding.unit,
                finding.better,
                seeds,
                *numbers,
                *intervals,
            ]
