"""delta_m against the right single-task results, or a reason why there is none."""

import json

import pytest

from taskformer.callbacks.baselines import compare_with_baselines, run_facts
from taskformer.errors import ConfigError
from taskformer.modules import AutoTaskFormer, Baseline
from taskformer.tasks import build_tasks

FACTS = {
    "data": "nyud", "split": "test", "images": 654, "holdout": 0.0, "backbone": "resnet18", "initialisation": "timm",
    "input_size": [425, 560], "protocol": "standard",
}  # fmt: skip
SPECS = {"semseg": {"classes": ["a", "b"]}, "depth": {}}
TASKS = build_tasks(SPECS)
RESULTS = {"semseg": {"mIoU": 0.44, "pixel_accuracy": 0.9}, "depth": {"rmse": 0.75}}
ENTRIES = {
    "semseg": {"metric": "mIoU", "higher_is_better": True, "channels": 2, "value": 0.4},
    "depth": {"metric": "rmse", "higher_is_better": False, "channels": 1, "value": 0.6},
}


def write(folder, name="entry", facts=FACTS, tasks=ENTRIES):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"facts": facts, "tasks": tasks}))
    return path


def test_delta_m_is_the_mean_improvement_over_the_entry_with_the_runs_facts(tmp_path):
    right = write(tmp_path)
    write(tmp_path, "another", FACTS | {"backbone": "resnet50"}, {})
    found = compare_with_baselines(tmp_path, FACTS, TASKS, RESULTS)
    # 0.44 over 0.40 is +10 %; 0.75 m over 0.60 m is 25 % worse.
    assert found.improvement == pytest.approx({"semseg": 10, "depth": -25})
    assert found.delta_m == pytest.approx(-7.5)
    assert found.source == right


@pytest.mark.parametrize("fact", FACTS)
def test_an_entry_that_differs_in_any_fact_is_not_used_and_the_fact_is_named(tmp_path, fact):
    write(tmp_path, facts=FACTS | {fact: "other"})
    with pytest.raises(ConfigError) as error:
        compare_with_baselines(tmp_path, FACTS, TASKS, RESULTS)
    assert f"entry.json, differ in {fact} (other there, {FACTS[fact]} here)" in str(error.value)


def test_the_nearest_entry_is_named(tmp_path):
    write(tmp_path, "far", FACTS | {"backbone": "vit", "images": 3, "data": "rooms"})
    write(tmp_path, "near", FACTS | {"protocol": "invpt"})
    with pytest.raises(ConfigError, match=r"near.json, differ in protocol \(invpt there, standard here\)"):
        compare_with_baselines(tmp_path, FACTS, TASKS, RESULTS)


def test_of_several_fitting_entries_the_user_chooses(tmp_path):
    write(tmp_path, "one")
    better = {name: entry | {"value": RESULTS[name][entry["metric"]]} for name, entry in ENTRIES.items()}
    chosen = write(tmp_path, "two", tasks=better)
    with pytest.raises(ConfigError, match=r"one.json, two.json\); choose one"):
        compare_with_baselines(tmp_path, FACTS, TASKS, RESULTS)
    assert compare_with_baselines(chosen, FACTS, TASKS, RESULTS).delta_m == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": None}, "no single-task result for depth, only for semseg"),
        ({"semseg": ENTRIES["semseg"] | {"channels": 13}}, r"semseg has the channels 13 in .*entry.json and 2 here"),
        ({"depth": ENTRIES["depth"] | {"metric": "abs_rel"}}, "depth has the metric abs_rel in .* and rmse here"),
        ({"depth": ENTRIES["depth"] | {"value": 0.0}}, "task 'depth': a relative improvement needs a baseline above 0"),
    ],
)
def test_tasks_that_cannot_be_compared_are_named(tmp_path, change, message):
    tasks = {name: entry for name, entry in (ENTRIES | change).items() if entry}
    write(tmp_path, tasks=tasks)
    with pytest.raises(ConfigError, match=message):
        compare_with_baselines(tmp_path, FACTS, TASKS, RESULTS)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"facts": {}}'])
def test_a_file_that_is_no_entry_is_named(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ConfigError, match=r"broken.json .* with `taskformer baselines`"):
        compare_with_baselines(tmp_path, FACTS, TASKS, RESULTS)


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(ConfigError, match="holds no single-task results; `taskformer baselines` makes them"):
        compare_with_baselines(tmp_path / "none", FACTS, TASKS, RESULTS)


def test_facts_are_plain_and_those_of_the_loaded_weights():
    model = Baseline(SPECS, embed_dim=8, head_dim=4)
    facts = run_facts(model, None, "test", 3)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["backbone"], facts["initialisation"]) == ("resnet18", "random")
    model.on_load_checkpoint({"hyper_parameters": {"weights": "/some/where/imagenet.pth"}})
    assert run_facts(model, None, "test", 3)["initialisation"] == "imagenet.pth"


def test_a_sub_network_and_its_single_tasks_have_the_same_backbone():
    size = {"embed_dims": [64], "depths": [2], "mlp_ratios": [2.0], "num_heads": [2]}
    options = {"space": "custom", **size, "head_dim": 32, "image_size": (32, 32)}
    architecture = AutoTaskFormer(SPECS, **options).space.smallest().to_json()
    both = AutoTaskFormer(SPECS, **options, architecture=architecture)
    single = AutoTaskFormer({"depth": {}}, **options, architecture=architecture)
    backbones = {run_facts(model, None, "test", 1)["backbone"] for model in (both, single)}
    assert len(backbones) == 1
    assert "depth 2" in backbones.pop()
