"""What others want to know about a task they ask the task: nobody else tells tasks apart by class or name."""

import ast
from pathlib import Path

import pytest

import taskformer.tasks
from taskformer.tasks import Task, registered

PACKAGE = Path(taskformer.tasks.__file__).parent.parent
CLASSES = {
    name for name, value in vars(taskformer.tasks).items() if isinstance(value, type) and issubclass(value, Task)
} - {"Task"}
#: How one would ask for a task's name, or its class's.
NAMES = {"task.name", "task.__class__.__name__", "type(task).__name__"}


def words(node):
    """The texts that an expression is made of: also those within lists, sets and dictionaries."""
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}


def questions(text):
    """Lines that tell tasks apart by their class, or compare a task's name with that of a kind of task."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            asks = "tasks" in str(node.module).split(".") and CLASSES & {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            asks = node.attr in CLASSES
        elif isinstance(node, ast.Compare):
            names = {"task.name", "task.__class__.__name__", "type(task).__name__"}
            sides = [node.left, *node.comparators]
            asks = any(ast.unparse(side) in names for side in sides) and set().union(*map(words, sides)) & {
                *registered()
            }
        else:
            asks = False
        found += [node.lineno] if asks else []
    return found


def test_only_tasks_know_what_kinds_of_tasks_there_are():
    others = [path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "tasks" not in path.parents]
    assert len(others) > 100
    assert {"Depth", "LabelMapTask", "Classification", "ImageLevelTask"} <= CLASSES
    assert {str(path): lines for path in others if (lines := questions(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from taskformer.tasks import Task, Depth",
        "def f():\n    from taskformer.tasks.label_map import LabelMapTask",
        "isinstance(task, taskformer.tasks.Edges)",
        "if task.name == 'depth': pass",
        "if task.name in ('edges', 'x'): pass",
        "if type(task).__name__ != 'depth': pass",
    ],
)
def test_a_planted_question_is_found(line):
    assert questions(f"x = 1\n{line}") == [2 if "def" not in line else 3]


@pytest.mark.parametrize(
    "line", ["from taskformer.tasks import Task, build_tasks", "key == 'depth'", "task.name == other.name"]
)
def test_what_is_no_question_is_left_in_peace(line):
    assert questions(line) == []
