"""`--import MODULE`, of any command and in any place."""

import pytest

from taskformer import tasks
from taskformer.cli import main, take_imports
from taskformer.errors import ConfigError


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module that registers a task, in a folder that Python searches."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_warmth.py").write_text(
        "from taskformer.tasks import Regression, register\n"
        "@register('imported_warmth')\n"
        "class Warmth(Regression):\n    'How warm it is.'\n"
    )
    return tmp_path


def failing(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("taskformer: ")


def test_words_are_taken_wherever_they_are():
    words = ["--import", "a", "fit", "--import=b.c", "--config", "x", "--import", "d"]
    assert take_imports(words) == (["a", "b.c", "d"], ["fit", "--config", "x"])
    assert take_imports(["fit"]) == ([], ["fit"])
    with pytest.raises(ConfigError, match="--import needs the name of a module"):
        take_imports(["fit", "--import"])


@pytest.mark.parametrize(
    "words", [["data", "stats", "nowhere", "--import={}"], ["--import", "{}", "predict", "x", "y"]]
)
def test_every_command_imports_first(words, mine, monkeypatch, capsys):
    monkeypatch.setattr(tasks.registry, "_registry", dict(tasks.registry._registry))
    monkeypatch.delitem(__import__("sys").modules, "imported_warmth", raising=False)
    with pytest.raises(SystemExit):
        main([word.format("imported_warmth") for word in words])
    assert "imported_warmth" in tasks.registered()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import nothing_of_that_name",
            "ModuleNotFoundError: No module named 'nothing_of_that_name', ",
        ),
        ("\n\n1 / 0", "broken_module': ZeroDivisionError: division by zero, "),
        ("def", "SyntaxError: invalid syntax"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_sentence(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_module.py").write_text(text)
    assert said in failing(["fit", "--import", "broken_module"], capsys)


def test_a_module_that_is_nowhere_is_one_sentence(capsys):
    said = failing(["fit", "--import=nowhere.tasks"], capsys)
    assert said.startswith("cannot import the module 'nowhere.tasks': ModuleNotFoundError: No module named 'nowhere'; ")
    assert failing(["fit", "--import"], capsys).startswith("--import needs the name of a module")


def test_unknown_commands_are_told_before_anything_is_imported(capsys):
    assert failing(["ft", "--import=nowhere"], capsys).startswith("unknown command 'ft' (did you mean 'fit'?)")
