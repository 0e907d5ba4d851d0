"""Study files are read strictly, and say what each run is."""

import shlex

import pytest

from taskformer.errors import ConfigError, TaskformerError
from taskformer.studies.evidence import command


def test_an_arm_lies_below_the_study_s_configurations_and_its_settings_on_them(write):
    study = write(settings={"trainer.max_epochs": 2, "model.init_args.embed_dim": 48})
    plain, wide = (next(v for v in study.variants if v.name == name).configuration for name in ("plain", "wide"))
    assert plain["model"]["init_args"]["embed_dim"] == 48  # 64 of the model, 32 of the recipe, 48 of the settings
    assert plain["trainer"] == {"max_epochs": 2, "accelerator": "cpu"}
    assert wide["model"]["init_args"] == plain["model"]["init_args"] | {"embed_dim": 128}
    assert (wide["data"], wide["trainer"]) == (plain["data"], plain["trainer"])


def test_each_task_is_trained_alone_without_the_weights_of_several(write):
    study = write()
    single = [variant for variant in study.variants if variant.arm == "single"]
    assert [variant.name for variant in single] == ["single-semseg", "single-depth"]
    for variant in single:
        assert variant.configuration["data"]["init_args"]["tasks"] == [variant.task]
        assert variant.configuration["model"]["init_args"]["loss_weights"] is None
        assert variant.configuration["model"]["init_args"]["embed_dim"] == 32


def test_a_setting_replaces_what_was_there_as_a_whole_and_before_its_parts(write):
    parts = {
        "model.init_args.loss_weights.semseg": 9.0,
        "model.init_args.loss_weights": {"depth": 1.0},
        "model.init_args.optimizer": {"class_path": "torch.optim.SGD"},
    }
    study = write(arms={"plain": {"config": ["model.yaml"], "settings": parts}}, single_tasks=None)
    model = study.variants[0].configuration["model"]["init_args"]
    assert model["loss_weights"] == {"depth": 1.0, "semseg": 9.0}
    assert model["optimizer"] == {"class_path": "torch.optim.SGD"}


def test_all_arms_are_trained_with_the_first_seed_first(write):
    study = write()
    names = ["single-semseg", "single-depth", "plain", "wide"]
    assert [trial.name for trial in study.trials()] == [f"{name}-seed{seed}" for seed in (0, 1) for name in names]
    assert [trial.name for trial in study.trials(arms=["wide", "single"], seeds=[1])] == [
        "single-semseg-seed1", "single-depth-seed1", "wide-seed1"]  # fmt: skip
    assert study.trials()[-1].configuration["seed_everything"] == 1


def test_the_command_names_files_and_settings(write):
    trial = write(settings={"trainer.max_epochs": 2}).trials(["wide"])[1]
    assert shlex.join(command(trial)) == (
        "taskformer fit --config=model.yaml --config=data.yaml --config=recipe.yaml --trainer.max_epochs=2 "
        "--model.init_args.embed_dim=128 --seed_everything=1"
    )


def arms(**settings):
    return {"plain": {"config": ["model.yaml"], "settings": settings}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seds": [0]}, r"unknown setting 'seds' \(did you mean 'seeds'\?\)"),
        ({"arms": {"plain": {"confg": []}}}, r"unknown setting 'confg' \(did you mean 'config'\?\)"),
        ({"arms": {"plain": {"setting": {}}}}, r"unknown key 'setting' \(did you mean 'settings'\?\)"),
        ({"arms": {"plain": {"settings": [1]}}}, r"settings: expected dict, got \[1\]"),
        ({"title": None}, "required: title"),
        ({"seeds": ["x"]}, "seeds: expected int, got x"),
        ({"seeds": [0, 0]}, r"seeds must be one or more different numbers, got \[0, 0\]"),
        ({"split": "train"}, "split: expected one of 'test', 'val', got train"),
        ({"reference": "plan"}, r"unknown arm 'plan' \(did you mean 'plain'\?\)"),
        ({"single_tasks": "alone"}, "unknown arm 'alone'"),
        ({"reference": "single"}, "a study needs an arm that has all tasks"),
        ({"arms": {"a-b": {}}}, "the arm 'a-b' must be named by letters, digits and underscores"),
        ({"settings": {"seed_everything": 1}}, "a study chooses seed_everything itself"),
        ({"settings": {"model.embed_dim": 1}}, "write the setting 'model.embed_dim' in full, as model.init_args.embed"),
        ({"settings": {"trainer.max_epochs.x": 1}}, "'trainer.max_epochs.x' is inside of max_epochs, which is 6"),
        ({"settings": {"data.init_args.tasks": "depth"}}, "needs a list of tasks, data.init_args.tasks, got 'depth'"),
        ({"base": ["nothing.yaml"]}, "nothing.yaml"),
    ],
)
def test_mistakes_are_one_sentence(changes, message, write):
    with pytest.raises((TaskformerError, OSError), match=message):
        write(**changes)


def test_only_arms_and_seeds_of_the_study_can_be_chosen(write):
    study = write()
    with pytest.raises(TaskformerError, match=r"unknown arm 'wid' \(did you mean 'wide'\?\)"):
        study.trials(["wid"])
    with pytest.raises(ConfigError, match=r"small\.yaml has no seed 7; it has 0, 1"):
        study.trials(seeds=[7])
