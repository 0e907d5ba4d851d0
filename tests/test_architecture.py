"""Imports run one way, so that a newcomer can read each room knowing only the rooms below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "taskformer"
#: From the top to the bottom: a room imports from the floors below it, never from its own floor's other rooms.
FLOORS = [
    {"commands"},
    {"callbacks", "studies"},
    {"insight", "sweeps"},
    {"evaluation", "search"},
    {"modules", "datatools"},
    {"models", "data"},
    {"tasks"},
    {"metrics"},
]
#: Single files that every room may import; they import nothing but each other.
COMMON = {"errors", "files", "memory", "parallel", "pictures", "plots", "seeds", "normalisation", "parsing", "_version"}
#: What is narrower than the floors: these rooms import nothing of ours but this.
NARROW = {"metrics": set(), "tasks": {"metrics", "errors"}, "models": {"errors", "files", "normalisation"}}


def imports(path):
    """Dotted names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package, room=""):
    return sorted((package / room).rglob("*.py"))


def rooms_imported(package, path):
    names = {name.split(".")[1] for name in imports(path) if name.startswith("taskformer.")}
    return {name for name in names if (package / name).is_dir() or (package / f"{name}.py").is_file()}


def allowed(room):
    below = FLOORS[1 + next(i for i, floor in enumerate(FLOORS) if room in floor) :]
    return NARROW.get(room, set().union(COMMON, *below))


def wrong_arrows(package):
    """List each import that runs against the arrows: ``file -> room``."""
    found = []
    for room in set().union(*FLOORS):
        for path in files(package, room):
            wrong = rooms_imported(package, path) - allowed(room) - {room}
            found += [f"{path.relative_to(package)} -> {name}" for name in sorted(wrong)]
    for name in sorted(COMMON):
        path = package / f"{name}.py"
        wrong = rooms_imported(package, path) - COMMON if path.is_file() else set()
        found += [f"{path.name} -> {other}" for other in sorted(wrong)]
    return found


def module_graph(package):
    """Every module of ours with those that it imports, also inside functions or only for type checkers."""
    modules = {}
    for path in files(package):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {
        name: {other for other in imports(path) if other in modules and not name.startswith(f"{other}.")} - {name}
        for name, path in modules.items()
    }


def circles(graph):
    """List the modules that can be reached from themselves."""
    reached = {name: set(others) for name, others in graph.items()}
    for middle in graph:
        for name in graph:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return [name for name in graph if name in reached[name]]


def test_arrows_point_one_way():
    assert wrong_arrows(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/planted.py", "from taskformer.datatools.verify import verify"),
        ("models/planted.py", "import taskformer.tasks"),
        ("search/planted.py", "from taskformer import evaluation"),
        ("tasks/planted.py", "def f():\n    from taskformer.data import collate"),
        ("metrics/planted.py", "from taskformer.errors import ConfigError"),
        ("errors.py", "from taskformer.tasks import Task"),
        ("modules/planted.py", "from taskformer.callbacks import Gallery"),
    ],
)
def test_a_planted_wrong_arrow_is_found(file, line, tmp_path):
    package = tmp_path / "taskformer"
    for room in set().union(*FLOORS):
        (package / room).mkdir(parents=True)
    for name in COMMON:
        (package / f"{name}.py").touch()
    assert wrong_arrows(package) == []
    (package / file).write_text(line)
    assert [arrow.split(" -> ")[0] for arrow in wrong_arrows(package)] == [file]


def test_there_are_no_circles():
    assert circles(module_graph(PACKAGE)) == []


def test_a_planted_circle_is_found(tmp_path):
    package = tmp_path / "taskformer"
    package.mkdir()
    (package / "a.py").write_text("from taskformer.b import x")
    (package / "b.py").write_text("from taskformer import c")
    (package / "c.py").write_text("class C:\n    from taskformer.a import y")
    assert sorted(circles(module_graph(package))) == ["taskformer.a", "taskformer.b", "taskformer.c"]


def test_every_room_is_on_a_floor():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set().union(*FLOORS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == COMMON | {"__init__", "__main__", "cli"}


def test_no_room_is_a_quarter_of_the_house():
    lines = {
        room: sum(len(path.read_text().splitlines()) for path in files(PACKAGE, room)) for room in set().union(*FLOORS)
    }
    assert max(lines.values()) < sum(lines.values()) / 4, lines


def test_the_networks_do_not_know_lightning():
    assert not [
        path for path in files(PACKAGE, "models") for name in imports(path) if name.split(".")[0] == "lightning"
    ]


def test_one_file_knows_albumentations():
    found = {
        path
        for path in files(PACKAGE)
        for name in imports(path)
        if name.split(".")[0] in ("albumentations", "albucore")
    }
    assert found == {PACKAGE / "data" / "transforms.py"}
