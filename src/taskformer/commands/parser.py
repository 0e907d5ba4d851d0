"""The command line of ``fit``, ``validate`` and ``test``: flags in any order, and one class in place of another.

Configuration files come first, in their order, and flags win over them. A later file whose ``model`` or ``data`` has
another class replaces the whole block. ``--model NAME`` and ``--data NAME`` change the class and keep those settings
that both classes describe alike, such as the optimizer. Either way a line says what is left out.

Sweeps have each setting once. So that several can be files, ``--config.NAME FILE`` is one more ``--config``, with any
NAME; these lie on the others, first those that choose a model or data set, then by name. Values may be written as
Python does, as wandb's agents do: ``None``, ``True``, ``{'lr': 0.1}``, and for ``--config`` a list of files.
"""

import ast
import json
import pydoc
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._actions import ActionConfigFile
from jsonargparse._typehints import ActionTypeHint  # what add_subclass_arguments adds
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from taskformer.modules import MultiTaskModule
from taskformer.parsing import OneSentence, read_layers, subclasses

FLAG = re.compile(r"--\w|-[a-z]\b")
#: Flags without a value.
BARE = ("-h", "--help", "--print_config")
#: The flag of configuration files.
CONFIG = "--config"
CONFIG_HELP = "YAML configuration; several lie on each other in their order. For sweeps, --config.NAME is one more."
#: The settings that are a class of which there are many.
CLASSES = ("model", "data")


def joined(words: Iterable[str]) -> list[str]:
    """Write each flag and its value as one word; what is neither stays as it is.

    Example:
        >>> joined(["--lr", "-1", "runs/demo", "-c", "x.yaml", "--y=2"])
        ['--lr=-1', 'runs/demo', '--config=x.yaml', '--y=2']
    """
    result: list[str] = []
    for word in words:
        last = result[-1] if result else ""
        if FLAG.match(last) and "=" not in last and last not in BARE and not FLAG.match(word):
            result[-1] = f"{last}={word}"
        else:
            result.append(re.sub("^-c(?==|$)", CONFIG, word))
    return [each for word in result for each in _spelled_out(word)]


def _spelled_out(word: str) -> list[str]:
    """Write a flag's value as YAML, and a list of configuration files as one flag for each."""
    flag, equals, value = word.partition("=")
    if not (FLAG.match(flag) and equals):
        return [word]
    value = as_yaml(value)
    if not (_names_files(flag) and re.match(r"null$|\[", value)):
        return [f"{flag}={value}"]
    return [f"{flag}={file}" for file in yaml.safe_load(value) or []]


def as_yaml(text: str) -> str:
    """Write what Python prints of None, a boolean, a list or settings by name as YAML; other text stays as it is.

    Example:
        >>> [as_yaml(text) for text in ("None", "{'lr': 1e-05, 'betas': (0.9, 0.99)}", "[semseg, depth]", "1e-05")]
        ['null', '{"lr": 1e-05, "betas": [0.9, 0.99]}', '[semseg, depth]', '1e-05']
    """
    try:
        value = ast.literal_eval(text)
        return json.dumps(value) if value is None or isinstance(value, (bool, list, tuple, dict)) else text
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # not what Python prints, or not of YAML
        return text


def in_order(words: Sequence[str]) -> list[str]:
    """Sort flags so that the order in which they were given does not matter, but for flags of the same name.

    Files come first, and what is chosen as a whole before its parts; ``--config.NAME`` is another ``--config``. Parts
    of what is appended to a list stay behind it, because they are those of the last item.

    Args:
        words: Flags as :func:`joined` writes them.

    Example:
        >>> in_order(["--model.lr=1", "--model=X", "--config=x.yaml"])
        ['--config=x.yaml', '--model=X', '--model.lr=1']
        >>> in_order(["--list+=A", "--list.x=1", "--list+=B", "--list.x=2"])
        ['--list+=A', '--list.x=1', '--list+=B', '--list.x=2']
        >>> in_order(["--config.b=b.yaml", "--config.a=a.yaml", "--config=x.yaml"])
        ['--config=x.yaml', '--config=a.yaml', '--config=b.yaml']
    """
    lists = [_key(word).removesuffix("+") for word in words if _key(word).endswith("+")]

    def depth(word: str) -> int:
        key = _key(word)
        return min(name.count(".") for name in (key, *lists) if f"{key}.".startswith(f"{name}.") or name == key)

    files = [word for word in words if _key(word) == CONFIG]
    named = [word for word in words if _names_files(_key(word)) and word not in files]
    flags = [word for word in words if not _names_files(_key(word))]
    more = [f"{CONFIG}={word.partition('=')[2]}" for word in sorted(named, key=_place)]
    return [*files, *more, *sorted(flags, key=depth)]


def _names_files(flag: str) -> bool:
    """Tell whether the value of a flag is a configuration file."""
    return flag == CONFIG or flag.startswith(f"{CONFIG}.")


def _place(word: str) -> tuple[bool, str]:
    """Return what ``--config.NAME=FILE`` is sorted by: files that choose a class come first, then the name counts."""
    flag, _, file = word.partition("=")
    try:
        content = read_layers(file)
        chooses = any("class_path" in content.get(key, {}) for key in CLASSES)
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
        chooses = False  # jsonargparse says what is wrong with it
    return not chooses, flag


def _key(word: str) -> str:
    """Name of a flag, the same whether or not it spells out that a setting is one of a class."""
    return word.partition("=")[0].replace(".init_args.", ".").removesuffix(".class_path")


class ConfigFile(ActionConfigFile):
    """``--config``: a file on its ``base``; a model or data set of another class replaces the earlier block."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply a file to what the earlier ones say."""
        values = _upgraded(_on_its_base(values))
        earlier = cfg.clone()
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]  # jsonargparse's own
        if not any(_differ(earlier.get(key), cfg.get(key)) for key in CLASSES):
            return
        alone = Namespace({self.dest: []})
        super().__call__(parser, alone, values, option_string)  # type: ignore[no-untyped-call]  # jsonargparse's own
        for key in CLASSES:
            if _differ(earlier.get(key), cfg.get(key)):
                cfg[key] = alone[key]
                _report(key, earlier[key], cfg[key], _settings(earlier[key]))


class ClassChoice(ActionTypeHint):
    """``--model`` and ``--data``: another class keeps the settings that both describe alike."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Apply a flag to what the files and earlier flags say."""
        _, cfg, _, flag = args
        earlier = cfg.clone().get(self.dest)
        super().__call__(*args, **kwargs)  # type: ignore[no-untyped-call]  # jsonargparse's own
        if flag not in self.option_strings or not _differ(earlier, cfg.get(self.dest)):
            return
        before, after = (_descriptions(spec.class_path) for spec in (earlier, cfg[self.dest]))
        dropped = {name for name in _settings(earlier) if before.get(name) != after.get(name)}
        kept = {name: value for name, value in _settings(earlier).items() if name not in dropped}
        cfg[self.dest] = Namespace(class_path=earlier.class_path, init_args=Namespace(kept))
        super().__call__(*args, **kwargs)  # type: ignore[no-untyped-call]  # jsonargparse's own
        _report(self.dest, earlier, cfg[self.dest], dropped)


class TrainingParser(OneSentence, LightningArgumentParser):
    """LightningCLI's parser, with errors of one sentence and classes that take each other's place."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an argument; ``--config`` is ours."""
        if kwargs.get("action") is ActionConfigFile:
            kwargs |= {"action": ConfigFile, "help": CONFIG_HELP}
        return super().add_argument(*args, **kwargs)

    def add_subclass_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Add a setting that is one class of many."""
        added = super().add_subclass_arguments(*args, **kwargs)
        for action in self._actions:
            if action.dest in CLASSES and type(action) is ActionTypeHint:
                action.__class__ = ClassChoice  # jsonargparse makes its own, whatever it is given
        return added


def _on_its_base(value: str) -> str:
    """Return the text of a file and its base where it has one; what else a configuration may be stays as it is."""
    path = Path(value)
    try:
        based = path.is_file() and re.search("^base:", path.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError):  # no file, or none of text, which jsonargparse reports
        return value
    return str(yaml.safe_dump(read_layers(path))) if based else value


def _upgraded(value: str) -> str:
    """Return the text of a configuration with today's settings of its model where it has those of an older version."""
    try:
        config = yaml.safe_load(value if "\n" in value else Path(value).read_text(encoding="utf-8"))
        name, settings = config["model"]["class_path"].rsplit(".", 1)[-1], config["model"]["init_args"]
        models: list[type[MultiTaskModule]] = subclasses(MultiTaskModule)
        today = next(model for model in models if model.__name__ == name).upgraded(settings)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, StopIteration):
        return value  # has no settings of a model that we know; jsonargparse reports what is wrong with it
    config["model"]["init_args"] = today
    return value if today == settings else str(yaml.safe_dump(config))


def _differ(earlier: Any, later: Any) -> bool:
    """Tell whether a setting had a class and has another now."""
    return bool(earlier and later) and earlier.class_path != later.class_path


def _settings(spec: Namespace) -> dict[str, Any]:
    """Return what has been set of a class, by name."""
    return dict(vars(spec.get("init_args") or Namespace()))


def _descriptions(class_path: str) -> dict[str, tuple[Any, ...]]:
    """Return how a class describes each of its settings: text, type and default."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(pydoc.locate(class_path), fail_untyped=False)
    return {each.dest: (each.help, getattr(each, "_typehint", None), each.default) for each in parser._actions}


def _report(key: str, earlier: Namespace, later: Namespace, dropped: Iterable[str]) -> None:
    """Say which settings of an earlier class are left out."""
    if names := sorted(set(dropped) - set(_settings(later))):
        old, new = (spec.class_path.rsplit(".", 1)[-1] for spec in (earlier, later))
        rank_zero_info(f"{key}: {new} takes the place of {old}, whose settings are left out: {', '.join(names)}")
