"""Which runs are meant: run folders, patterns of them, folders of sweeps, runs of wandb."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from taskformer.errors import ConfigError
from taskformer.evaluation.comparison.online import WANDB, OnlineRun, fetch_run
from taskformer.evaluation.comparison.scored import ScoredRun, Split, read_records, read_run
from taskformer.evaluation.settings import short_names, text_of, without_seed

#: What a local sweep writes into its folder, and what it says of a run that has ended as it should.
TRIALS, FINISHED = "trials.json", "finished"
#: Settings that are told by the names of their files.
CONFIG = "config"


@dataclass(frozen=True)
class RunFolder:
    """A run folder that is to be read.

    Attributes:
        folder: The run folder.
        name: What tables call it.
    """

    folder: Path
    name: str

    @property
    def splits(self) -> set[str]:
        """The splits that it was evaluated on."""
        return set(read_records(self.folder))

    def scored(self, split: Split) -> ScoredRun:
        """Read the evaluation of a split."""
        return read_run(self.folder, split, self.name)


#: Where evaluations are read from.
Source = RunFolder | OnlineRun


def find_sources(words: Sequence[str | Path]) -> tuple[list[Source], list[str]]:
    """Find the runs that are meant.

    Args:
        words: Run folders, patterns such as ``runs/mqt-*``, folders of sweeps, or ``wandb:ENTITY/PROJECT/ID``.

    Returns:
        The runs, and what is to be said of those that are left out.

    Raises:
        ConfigError: If there are none.
    """
    sources: list[Source] = []
    left_out: list[str] = []
    for word in map(str, words):
        if word.startswith(WANDB):
            sources.append(fetch_run(word))
            continue
        for folder in _expanded(word):
            if (folder / TRIALS).is_file():
                found, missing = _of_sweep(folder)
                sources += found
                left_out += missing
            else:
                sources.append(RunFolder(folder, str(folder)))
    if not sources:
        msg = (
            "there are no runs to compare; give run folders, such as runs/demo runs/baseline, or the folder of a sweep"
        )
        raise ConfigError(msg)
    return sources, left_out


def read_sources(sources: Sequence[Source], split: Split | None) -> list[ScoredRun]:
    """Read the evaluations of one split.

    Args:
        sources: The runs.
        split: The split; None: ``test`` if all were tested, or else ``val``.

    Raises:
        ConfigError: If a run was not evaluated on it.
    """
    if split is None:
        tested = [source for source in sources if "test" in source.splits]
        untested = [source for source in sources if source not in tested]
        if untested and all("val" in source.splits for source in sources):
            split = "val"
        elif tested and untested:
            msg = (
                f"{tested[0].name} was tested and {untested[0].name} was not, and different splits are not compared; "
                f"test it, `taskformer test {untested[0].name}`, or compare validations, --split val"
            )
            raise ConfigError(msg)
    return [source.scored(split or "test") for source in sources]


def _expanded(word: str) -> list[Path]:
    """Return the folders that a pattern means; any other word is one.

    Raises:
        ConfigError: If there are none.
    """
    if not has_magic(word) or Path(word).exists():
        return [Path(word)]
    found = sorted(Path(name) for name in glob(word) if Path(name).is_dir())  # noqa: PTH207  # also absolute ones
    if not found:
        msg = f"there is no folder {word}; give run folders, such as runs/demo"
        raise ConfigError(msg)
    return found


def _of_sweep(folder: Path) -> tuple[list[RunFolder], list[str]]:
    """Find the finished runs of a sweep, named after the settings in which they differ.

    Raises:
        ConfigError: If its list of runs cannot be read.
    """
    path = folder / TRIALS
    try:
        trials: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        finished = [trial for trial in trials if trial["state"] == FINISHED]
        settings = [without_seed(trial["settings"]) for trial in finished]
        # The folder may have moved since.
        places = [folder / Path(trial["run"]).name for trial in finished]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is no list of a sweep's runs ({error!r}); start the sweep again, it goes on where it was"
        raise ConfigError(msg) from error
    varied = [key for key in dict.fromkeys(k for each in settings for k in each) if _differ(settings, key)]
    names = [", ".join(_parts(each, varied)) or str(folder) for each in settings]
    lacking = len(trials) - len(finished)
    left_out = [f"{lacking} of {len(trials)} runs of {folder} are not finished and left out."] if lacking else []
    return [RunFolder(place, name) for place, name in zip(places, names, strict=True)], left_out


def _differ(settings: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether a setting has several values."""
    return len({json.dumps(each.get(key), sort_keys=True) for each in settings}) > 1


def _parts(settings: Mapping[str, Any], varied: Sequence[str]) -> Iterator[str]:
    """Name values: configurations by their files alone, others after the setting's name.

    >>> list(_parts({"config": "configs/model/baseline.yaml", "model.lr": 0.1}, ["config", "model.lr"]))
    ['baseline', 'lr=0.1']
    """
    for key, name in short_names(varied).items():
        value = text_of(settings.get(key))
        yield value if key.split(".")[0] == CONFIG else f"{name}={value}"
