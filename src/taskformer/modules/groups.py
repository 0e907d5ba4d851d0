"""Groups of settings: dataclasses on the command line and in YAML, plain dictionaries in checkpoints."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from taskformer.errors import ConfigError, UnknownNameError

Group = TypeVar("Group")


def as_group(name: str, kind: type[Group], given: Group | Mapping[str, Any], moved: str | None = None) -> Group:
    """Return a group of settings that may be given by name, as checkpoints hold them.

    Args:
        name: What the group is called.
        kind: Its class.
        given: The group, or its settings.
        moved: Where the setting went that had this name in older versions, if there was one.

    Raises:
        ConfigError: If it is neither; says where that setting went.
        UnknownNameError: If there is no such setting.
    """
    if isinstance(given, kind):
        return given
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # groups are dataclasses
    if not isinstance(given, Mapping):
        place = f"it is {moved} now; " if moved else ""
        msg = f"{name} is a group of settings, got {given!r}: {place}{name} has {', '.join(known)}"
        raise ConfigError(msg)
    for key in given:
        if key not in known:
            setting = f"setting of {name}"
            raise UnknownNameError(setting, key, known)
    return kind(**given)
