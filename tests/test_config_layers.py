"""A configuration file says only what differs from the files that it is based on."""

import pytest
import yaml

import taskformer
from taskformer.data.configured import data_module
from taskformer.errors import ConfigError
from taskformer.parsing import read_layers


@pytest.fixture
def files(tmp_path):
    def write(**contents):
        for name, content in contents.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return tmp_path

    return write


def test_later_layers_win_and_the_file_itself_wins_over_all(files):
    folder = files(
        low={"a": 1, "b": {"x": 1, "y": [1, 2]}, "c": 1},
        middle={"base": "low.yaml", "b": {"y": [3]}, "d": 2},
        other={"c": 5, "d": 5},
        top={"base": ["middle.yaml", "other.yaml"], "d": 9},
    )
    assert read_layers(folder / "top.yaml") == {"a": 1, "b": {"x": 1, "y": [3]}, "c": 5, "d": 9}


def test_another_class_takes_nothing_from_the_class_below(files):
    folder = files(
        low={"model": {"class_path": "A", "init_args": {"x": 1, "o": {"class_path": "O", "init_args": {"lr": 1}}}}},
        same={"base": "low.yaml", "model": {"init_args": {"o": {"init_args": {"lr": 2}}}}},
        other={"base": "low.yaml", "model": {"class_path": "B"}},
    )
    same = read_layers(folder / "same.yaml")["model"]
    assert same == {"class_path": "A", "init_args": {"x": 1, "o": {"class_path": "O", "init_args": {"lr": 2}}}}
    assert read_layers(folder / "other.yaml") == {"model": {"class_path": "B"}}


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"top": {"base": "nothing.yaml"}}, "based on nothing.yaml, which does not exist"),
        ({"top": {"base": "top.yaml"}}, "based on top.yaml, which lies on top of itself"),
        (
            {"top": {"base": "low.yaml"}, "low": {"base": ["top.yaml"]}},
            "based on top.yaml, which lies on top of itself",
        ),
    ],
)
def test_a_base_that_cannot_be_is_refused(contents, reason, files):
    with pytest.raises(ConfigError, match=reason):
        read_layers(files(**contents) / "top.yaml")


def test_model_and_data_are_built_from_all_layers(files, small_rooms):
    model = {"class_path": "Baseline", "init_args": {"backbone": "resnet18", "embed_dim": 16, "head_dim": 8}}
    folder = files(
        model={"model": model},
        data={"data": {"class_path": "RoomsDataModule", "init_args": {"root": str(small_rooms), "batch_size": 3}}},
        top={
            "base": ["model.yaml", "data.yaml"],
            "model": {"init_args": {"embed_dim": 24}},
            "data": {"init_args": {"tasks": ["depth"]}},
        },
    )
    built, data = taskformer.from_config(folder / "top.yaml", overrides=["--data.batch_size=2"])
    assert (built.hparams.embed_dim, built.hparams.head_dim, list(built.tasks)) == (24, 8, ["depth"])
    assert (data.root, data.batch_size) == (str(small_rooms), 2)
    alone = data_module(folder / "top.yaml")
    assert (alone.root, alone.batch_size, alone.task_names) == (str(small_rooms), 3, ["depth"])
