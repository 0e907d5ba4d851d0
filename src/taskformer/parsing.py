"""Command lines and YAML blocks to typed settings; whatever is wrong with them is one sentence.

Every parser here is a :class:`Parser`, or has :class:`OneSentence` among its bases.
"""

import inspect
import re
import sys
from argparse import Action
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from taskformer.errors import ConfigError, UnknownNameError, suggest

Class = TypeVar("Class")

#: Lines of jsonargparse's errors that do not help: the members of a union, that null is none of them, and its syntax.
NOISE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Expected a path but|"
    r"Subclass types expect|a class path \(str\)|a dict with|see `"
)
#: Phrases of jsonargparse and what they mean.
PLAIN = {
    r"Problem with given class_path '(\S+)':\s*'(\w+)' object has no attribute 'keys'":
        r"init_args of \1 must be settings by name, got a \2",
    r"Type \S.* expects a function or a callable class: '(\w+)' object has no attribute 'keys'.*":
        r"init_args must be settings by name, got a \1",
    r"Expected a <class '([\w.]+)'>": r"expected \1",
    r"Expected a typing\.Literal\[(.*?)\]": r"expected one of \1",
    r'Parser key "([\w.]+)":': r"\1:",
    r"\. Got value: ": ", got ",
    r"Not a valid subclass of (\w+)": r"expected a \1: class_path and init_args",
}  # fmt: skip
#: Modules whose names in a union are not classes to choose from.
ABSTRACT = ("typing", "collections.abc")
#: Largest number of names in a list.
LISTED = 20


class ShortHelp(DefaultHelpFormatter):
    """Help that only counts the classes of a package that has very many for a setting, as albumentations has."""

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        return re.sub(r"(?<=known subclasses: )[\w., ]+", lambda classes: _shortened(classes[0]), text)


def _shortened(classes: str) -> str:
    """Name the classes of a list, but only count those of a package that has more than :data:`LISTED`."""
    paths = classes.split(", ")
    counts = Counter(path.split(".")[0] for path in paths)
    many = {package: count for package, count in counts.items() if count > LISTED}
    named = [path for path in paths if path.split(".")[0] not in many]
    return ", ".join([*named, *(f"and {count} of {package}" for package, count in many.items())])


class OneSentence(ArgumentParser):
    """A parser whose errors are one sentence: the reason and the nearest right name, not pages of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": ShortHelp, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the reason as a :class:`ConfigError`."""
        raise ConfigError(explain(message, self)) from ex


class Parser(OneSentence):
    """The parser of a command that has no configuration, or of a part of one.

    Example:
        >>> parser = Parser(prog="taskformer shout")
        >>> _ = parser.add_argument("--loudness", type=int, default=1)
        >>> parser.parse_args(["--loudness=3"]).loudness
        3
        >>> parser.parse_args(["--loudness=x"])
        Traceback (most recent call last):
        taskformer.errors.ConfigError: loudness: expected int, got x; see `taskformer shout --help`
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the reason as a :class:`ConfigError`, and say where the arguments are explained."""
        # A part of a configuration has a parser without a program's name.
        where = f"; see `{self.prog} --help`" if self.prog.startswith("taskformer") else ""
        raise ConfigError(f"{explain(message, self)}{where}") from ex


def read_layers(path: str | Path, above: tuple[Path, ...] = ()) -> Any:
    """Read a YAML file on top of the files that it names as its ``base``, so that it says only what differs from them.

    Names are relative to the file; later ones win over earlier ones. Settings are taken one by one, lists and settings
    of another class as a whole.

    Args:
        path: The YAML file.
        above: Files that lie on top of it.

    Returns:
        What the file holds, without ``base``.

    Raises:
        ConfigError: If a base is missing or lies on top of itself.
        OSError: If the file cannot be read.
        yaml.YAMLError: If it is not YAML.
    """
    file = Path(path)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "base" not in content:
        return content
    layers = content.pop("base")
    result: Any = {}
    for name in [layers] if isinstance(layers, str) else layers:
        base = file.parent / name
        if not base.is_file() or base.resolve() in (file.resolve(), *above):
            why = "does not exist" if not base.is_file() else "lies on top of itself"
            msg = f"{file} is based on {name}, which {why}; `base` lists YAML files relative to {file.name}"
            raise ConfigError(msg)
        result = laid_on(result, read_layers(base, (*above, file.resolve())))
    return laid_on(result, content)


def laid_on(below: Any, above: Any) -> Any:
    """Lay settings on others.

    Example:
        >>> laid_on({"class_path": "A", "init_args": {"x": 1, "y": 2}}, {"init_args": {"y": 3}})
        {'class_path': 'A', 'init_args': {'x': 1, 'y': 3}}
        >>> laid_on({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B"})
        {'class_path': 'B'}
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        return above
    return below | {key: laid_on(below.get(key), value) for key, value in above.items()}


def explain(message: str, parser: ArgumentParser) -> str:
    """Shorten a parser error to its reason and add the nearest right name."""
    if wrong := re.search(r"(?:Option|Key) '([\w.]+)' is not|not accept option '([\w.]+)'", message):
        name = wrong[1] or wrong[2]
        return f"{_key(message)}unknown setting {name!r}{_nearest_setting(name, parser)}"
    if wrong := re.search(r"dot import path string: (\S*)", message):
        return f"{_key(message)}{_unknown_class(wrong[1], message)}"
    if wrong := re.match(r"[Uu]nrecogni[sz]ed arguments: --([\w.]+)", message):
        return message + suggest(wrong[1], _flags(parser))
    if wrong := re.match(r'Parser key "(\w+)":\s*Unable to load config (.*)', message):
        members = sorted(flag for flag in _flags(parser) if flag.startswith(f"{wrong[1]}."))
        return f"{wrong[1]} is a group of settings, got {wrong[2]}; it has {', '.join(members)}"
    return f"{_key(message)}{'; '.join(_reasons(message))}"


def _reasons(message: str) -> list[str]:
    """List what each member of a union says against a value, without the lines that do not help."""
    lines = [line.strip(" -") for line in re.sub(r'^\s*Parser key "[^"]+":', "", message).splitlines()]
    lines = [line for line in lines if line and not NOISE.match(line)]
    text = "\n".join(lines)
    for pattern, words in PLAIN.items():
        text = re.sub(pattern, words, text)
    reasons = list(dict.fromkeys(text.splitlines()))
    # One class given for another is the reason only if no member of the union has a better one.
    better = [reason for reason in reasons if not re.search("does not correspond to a subclass", reason)]
    given = re.findall(r"Given value: (?!NestedArg)(.{1,80})$", message, re.MULTILINE)
    if better and given and ", got " not in better[-1]:
        better[-1] += f", got {given[-1]}"
    return better or reasons or [message]


def _unknown_class(name: str, message: str) -> str:
    """Say that a class does not exist, and which ones do where it is wanted, unless they are very many."""
    wanted = re.findall(r"Subtypes: \[(.*)\]", message)[-1:]
    names = re.findall(r"([\w.]+)\.(\w+)", " ".join(wanted))
    places = [getattr(sys.modules.get(module), base, None) for module, base in names if module not in ABSTRACT]
    bases: list[type[object]] = [base for base in places if isinstance(base, type)]
    found = [cls for base in bases for cls in subclasses(base)]
    known = {cls.__name__ for cls in found if not (cls.__name__.startswith("_") or inspect.isabstract(cls))}
    if 0 < len(known) <= LISTED:
        return str(UnknownNameError("class", name, known))
    return f"unknown class {name!r}{suggest(name, known)}; give its full path, as in torch.optim.AdamW"


def _key(message: str) -> str:
    """Where in the configuration the error is."""
    found = re.match(r'\s*Parser key "([^"]+)"', message)
    return f"{found[1]}: " if found else ""


def _nearest_setting(name: str, parser: ArgumentParser) -> str:
    """Suggest the right name for a setting, whose mistake may be in its first part or its last."""
    flags = _flags(parser)
    if inside := sorted(flag for flag in flags if flag.endswith(f".{name}")):
        return f" (did you mean {inside[0]!r}?)"
    groups = {flag.split(".")[0] for flag in flags}
    first, *rest = name.split(".")
    if rest and first not in groups:
        return suggest(first, groups)
    return suggest(name, flags) or suggest(name.rsplit(".", 1)[-1], _class_settings(parser))


def _flags(parser: ArgumentParser) -> set[str]:
    """Dotted names of the settings of a parser and its subcommands, e.g. ``trainer.max_epochs``."""
    return {action.dest for one in _parsers(parser) for action in one._actions}


def _class_settings(parser: ArgumentParser) -> set[str]:
    """Names of the settings of every class that a setting of a parser or its subcommands may be, e.g. a model's."""
    types = [getattr(action, "_typehint", None) for one in _parsers(parser) for action in one._actions]
    bases: list[type[object]] = [base for base in types if isinstance(base, type) and base.__module__ != "builtins"]
    classes = [cls for base in bases for cls in (base, *subclasses(base))]
    return {name for cls in classes for name in inspect.signature(cls).parameters}


def _parsers(parser: ArgumentParser) -> list[ArgumentParser]:
    """List a parser and those of its subcommands."""
    choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return [parser, *(each for names in choices for below in names.values() for each in _parsers(below))]


def subclasses(base: type[Class]) -> list[type[Class]]:
    """List all classes below a class that have been imported.

    Example:
        >>> subclasses(bool)
        []
    """
    children: list[type[Class]] = base.__subclasses__()
    return children + [cls for child in children for cls in subclasses(child)]
