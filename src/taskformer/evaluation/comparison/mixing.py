"""What may stand in one table: facts that must agree, and those that a reader must know to differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskformer.errors import ConfigError
from taskformer.evaluation.comparison.groups import Group
from taskformer.evaluation.comparison.scored import ScoredRun

#: Facts without which numbers are not of the same thing, and how a sentence says them.
NECESSARY = {
    "protocol": "scored by the protocol {}",
    "data": "tested on the data {}",
    "split": "tested on the split {}",
    "images": "tested on {} images",
    "eval_transforms": "tested with the eval_transforms {}",
}
#: Facts that a table may be about, but that its reader must know.
TOLD = ("initialisation", "backbone", "input_size", "holdout", "training", "tta")
#: Longest text of a value that is repeated.
SHORT = 40


def require_alike(runs: Sequence[ScoredRun]) -> None:
    """Refuse runs that were scored in other ways, or on other images; a fact that nobody knows is no reason.

    Raises:
        ConfigError: If there are any; says which fact differs.
    """
    first = runs[0]
    for other in runs[1:]:
        for fact, phrase in NECESSARY.items():
            here, there = first.facts.get(fact), other.facts.get(fact)
            if None not in (here, there) and here != there:
                ways = phrase.format(here), phrase.format(there)
                msg = f"{first.name} was {ways[0]} and {other.name} {ways[1]}; evaluate both alike to compare them"
                raise ConfigError(msg)
        _require_same_tasks(first, other)
        _require_same_images(first, other)


def _require_same_tasks(first: ScoredRun, other: ScoredRun) -> None:
    """Refuse runs without a task in common, or with other classes."""
    mine, theirs = ({task for task, _ in run.scores().keys() | run.images.keys()} for run in (first, other))
    if not mine & theirs:
        msg = f"{first.name} and {other.name} have no task in common: {_list(mine)} and {_list(theirs)}"
        raise ConfigError(msg)
    for task in sorted(mine & theirs):
        here, there = (run.record.get("channels", {}).get(task) for run in (first, other))
        if None not in (here, there) and here != there:
            msg = f"{task} has {here} channels in {first.name} and {there} in {other.name}: not the same task"
            raise ConfigError(msg)


def _require_same_images(first: ScoredRun, other: ScoredRun) -> None:
    """Refuse runs whose images were others."""
    for key in first.images.keys() & other.images.keys():
        ids, others = first.images[key][0], other.images[key][0]
        if len(ids) != len(others):
            msg = (
                f"{first.name} was tested on {len(ids)} images and {other.name} on {len(others)}; test both on the same"
            )
            raise ConfigError(msg)
        for number, (one, another) in enumerate(zip(ids, others, strict=True), start=1):
            if one != another:
                msg = (
                    f"{first.name} and {other.name} were tested on different images: number {number} is {one!r} and "
                    f"{another!r}; test both on the same"
                )
                raise ConfigError(msg)


def remarks(groups: Mapping[str, Group]) -> Iterator[str]:
    """Yield what a reader must know before he believes a table, a line each.

    Args:
        groups: The columns by letter.
    """
    starts = {letter: group.first.initialisation for letter, group in groups.items()}
    if len(set(starts.values())) > 1:
        yield f"The runs began from different weights ({_named(starts)}): they belong in different tables."
    facts = {letter: {fact: group.first.facts.get(fact) for fact in TOLD[1:]} for letter, group in groups.items()}
    if differing := list(_differing({letter: _flat(values) for letter, values in facts.items()})):
        yield f"The runs differ in {', '.join(differing)}."
    compared = {letter: group.first.record for letter, group in groups.items() if group.delta_m}
    sources = {letter: str(record.get("baselines", "unknown")) for letter, record in compared.items()}
    if len(set(sources.values())) > 1:
        yield f"delta_m is against different single-task results ({_named(sources)})."
    unknown = {
        letter: _list(fact for fact in NECESSARY if group.first.facts.get(fact) is None)
        for letter, group in groups.items()
    }
    if any(unknown.values()):
        known = {letter: text for letter, text in unknown.items() if text}
        yield f"Not known, and so not checked to be the same: {_named(known)}."
    yield from _moments(groups)


def _moments(groups: Mapping[str, Group]) -> Iterator[str]:
    """Yield which columns are of no checkpoint that could be evaluated again."""
    epochs = {letter: {run.record.get("epoch") for run in group.runs} for letter, group in groups.items()}
    if best := [letter for letter, found in epochs.items() if "best" in found]:
        yield f"{', '.join(best)}: the best value of each metric, which need not be of one epoch."
    if last := [letter for letter, found in epochs.items() if found - {None, "best"}]:
        yield (
            f"{', '.join(last)}: the last validation of the training, which need not be of the best checkpoint; "
            "`taskformer validate RUN` evaluates that."
        )


def _differing(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the facts that are not the same in all columns, with their values where they are short."""
    for name in dict.fromkeys(name for values in facts.values() for name in values):
        # Facts of a later version are not known of earlier runs, and None or empty: all are said as none.
        known = {letter: values.get(name) for letter, values in facts.items()}
        texts = {letter: "none" if value in (None, []) else str(value) for letter, value in known.items()}
        if len(set(texts.values())) > 1:
            short = all(len(text) <= SHORT for text in texts.values())
            yield f"{name} ({_named(texts)})" if short else name


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every fact with dots.

    >>> _flat({"training": {"steps": 2}, "holdout": 0.0})
    {'training.steps': 2, 'holdout': 0.0}
    """
    found: dict[str, Any] = {}
    for key, value in facts.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _named(texts: Mapping[str, str]) -> str:
    return ", ".join(f"{letter}: {text}" for letter, text in texts.items())


def _list(names: Any) -> str:
    return ", ".join(sorted(names))
