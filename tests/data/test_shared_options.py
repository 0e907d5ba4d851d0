"""What all data modules and data sets share is stated once, in their bases, and still reaches everyone."""

import inspect
from pathlib import Path

import pytest
from miniature_rooms import write_rooms

import taskformer
from taskformer.cli import main
from taskformer.commands.trainer import TrainingParser
from taskformer.data import CombinedDataModule, MultiTaskDataModule, MultiTaskDataset, RoomsDataModule
from taskformer.data.datamodules import data_modules
from taskformer.data.transforms import Resize
from taskformer.errors import ConfigError

ROOM = Path(taskformer.__file__).parent / "data"
MODULES = list(data_modules().values())
#: The options of every data module, but for those that a class may give a default or a text of its own.
SHARED = set(inspect.signature(MultiTaskDataModule.__init__).parameters) - {"self", "root", "tasks"}


def parser(module):
    built = TrainingParser()
    built.add_class_arguments(module, "data")
    return built


def own_parameters(cls):
    return set(inspect.signature(vars(cls)["__init__"]).parameters) if "__init__" in vars(cls) else set()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_the_command_line_lists_every_option_with_its_text_type_and_default(module):
    base = {action.dest: action for action in parser(MultiTaskDataModule.__subclasses__()[0])._actions}
    found = {action.dest: action for action in parser(module)._actions}
    for name in SHARED:
        option, expected = found[f"data.{name}"], inspect.signature(MultiTaskDataModule).parameters[name]
        assert option.help == base[f"data.{name}"].help
        assert " ".join(option.help.split()) in " ".join(inspect.getdoc(MultiTaskDataModule).split())
        assert option.default == expected.default
        assert option._typehint == base[f"data.{name}"]._typehint != inspect.Parameter.empty
    assert all(option.help for name, option in found.items() if name.startswith("data."))
    assert {f"data.{name}" for name in own_parameters(module) - {"self", "kwargs"}} <= found.keys()


def test_folders_and_tasks_have_defaults_of_their_own():
    defaults = {module.name: parser(module).get_defaults().data.get("root") for module in MODULES}
    own = {"folder": None, "combined": None}
    assert defaults == {name: own.get(name, f"data/{name}") for name in defaults}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_a_wrong_name_is_refused_with_the_right_one(module):
    with pytest.raises(ConfigError, match=r"cache_dri.*did you mean 'data.cache_dir'"):
        parser(module).parse_object({"data": {"cache_dri": "x"}})


@pytest.mark.parametrize("base", [MultiTaskDataModule, MultiTaskDataset])
def test_no_subclass_states_an_option_of_the_base(base):
    every = {"self", *inspect.signature(base.__init__).parameters}
    allowed = {"self", "root", "tasks", "split", "args", "kwargs"}
    classes = base.__subclasses__()
    assert len(classes) >= 7
    assert {cls.__name__: own_parameters(cls) & every - allowed for cls in classes} == {
        cls.__name__: set() for cls in classes
    }


def blocks(path, count=6):
    """Every run of so many lines that are not empty."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return {tuple(lines[start : start + count]) for start in range(len(lines) - count + 1)}


def test_no_two_files_share_a_block_of_six_lines():
    files = [*(ROOM / "datasets").glob("*.py"), *(ROOM / "datamodules").glob("*.py"), ROOM / "shards.py"]
    found = {path: blocks(path) for path in files if path.name != "__init__.py"}
    for first in found:
        for second in found:
            assert first == second or not found[first] & found[second], (first.name, second.name)


def test_help_counts_other_peoples_classes_and_names_ours(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--data.help", "RoomsDataModule"])
    text = capsys.readouterr().out
    assert text.count("taskformer.data.transforms.PhotoMetricDistortion, and") == 2
    assert "albumentations.ColorJitter" in text
    assert text.count("albumentations.") == 1
    assert len(text.splitlines()) < 120


@pytest.mark.parametrize("name", ["albumentations.ColorJitter", "ColorJitter", "RandomHorizontalFlip"])
def test_a_transform_is_given_by_its_path_or_by_its_name_alone(name):
    block = {"train_transforms": [{"class_path": name, "init_args": {"p": 0.25}}]}
    built = parser(RoomsDataModule)
    (step,) = built.instantiate(built.parse_object({"data": block})).data.train_transforms
    assert (type(step).__name__, step.p) == (name.rsplit(".", 1)[-1], 0.25)


def test_a_transform_that_does_not_exist_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"unknown class 'ColourJitter'.*did you mean 'ColorJitter'.*full path"):
        parser(RoomsDataModule).parse_object({"data": {"train_transforms": [{"class_path": "ColourJitter"}]}})


def test_options_of_a_mixture_hold_for_all_its_parts(tmp_path):
    roots = [str(write_rooms(tmp_path / name)) for name in "ab"]
    parts = [
        RoomsDataModule(root, [task], eval_transforms=[Resize(4, 5)])
        for root, task in zip(roots, ("depth", "semseg"), strict=True)
    ]
    cache, resize = str(tmp_path / "cache"), [Resize(6, 7)]
    data = CombinedDataModule(parts, cache_dir=cache, holdout=0.4, train_transforms=resize, on_error="skip")
    assert [(part.cache_dir, part.holdout, part.on_error) for part in data.parts] == [(cache, 0.4, "skip")] * 2
    data.build_caches()
    data.setup("fit")
    assert [len(data.datasets[split]) for split in ("train", "val")] == [6, 4]  # of 5 training images each
    assert data.datasets["train"][0]["image"].shape == (3, 6, 7)
    assert data.datasets["val"][0]["image"].shape == (3, 4, 5)  # the parts keep what is not given
    assert len(list(Path(cache).glob("*.samples"))) == 2
