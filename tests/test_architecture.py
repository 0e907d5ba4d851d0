"""Imports run one way, so that a newcomer can read each room knowing only the rooms below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "taskformer"
#: Room to the rooms of ours it may import, also inside functions.
ALLOWED = {
    "metrics": set(),
    "tasks": {"metrics", "errors"},
    "models": {"errors"},
    "data": {"tasks", "errors", "files", "seeds"},
    "search": {"models", "data", "tasks", "metrics", "files", "errors"},
    "modules": {"models", "tasks", "files", "errors", "seeds"},
    "callbacks": {"modules", "data", "tasks", "files", "errors"},
    "commands": {
        "callbacks",
        "search",
        "modules",
        "models",
        "data",
        "tasks",
        "metrics",
        "checkpoints",
        "files",
        "errors",
    },
}


def imports(path):
    """Dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            yield node.module


def files(room):
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_the_rooms_below_it(room):
    found = {
        name.split(".")[1]
        for path in files(room)
        for name in imports(path)
        if name.startswith("taskformer.") and name.split(".")[1] not in (room, "_version")
    }
    assert found <= ALLOWED[room]


def test_the_networks_do_not_know_lightning():
    assert not [path for path in files("models") for name in imports(path) if name.split(".")[0] == "lightning"]


def test_one_file_knows_albumentations():
    found = {
        path for path in files("") for name in imports(path) if name.split(".")[0] in ("albumentations", "albucore")
    }
    assert found == {PACKAGE / "data" / "transforms.py"}


def test_every_room_is_listed():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)
