"""delta_m against the right single-task results, or a reason why there is none."""

import json

import pytest

from taskformer.data import CombinedDataModule, FolderDataModule, RoomsDataModule
from taskformer.data.datasets.folder import Label
from taskformer.errors import ConfigError
from taskformer.evaluation.references import Reference, compare_with_references, run_facts
from taskformer.modules import AutoTaskFormer, Baseline
from taskformer.tasks import build_tasks

FACTS = {
    "data": "nyud", "split": "test", "images": 654, "holdout": 0.0, "backbone": "resnet18", "initialisation": "timm",
    "input_size": [425, 560], "protocol": "standard", "training": {"steps": 900, "epochs": 6, "optimizer": ["SGD"]},
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
    found = compare_with_references(tmp_path, FACTS, TASKS, RESULTS)
    # 0.44 over 0.40 is +10 %; 0.75 m over 0.60 m is 25 % worse.
    assert found.by_task == pytest.approx({"semseg": 10, "depth": -25})
    assert found.delta_m == pytest.approx(-7.5)
    assert found.source == right


@pytest.mark.parametrize("fact", [fact for fact in FACTS if fact != "training"])
def test_an_entry_that_differs_in_any_fact_is_not_used_and_the_fact_is_named(tmp_path, fact):
    write(tmp_path, facts=FACTS | {fact: "other"})
    with pytest.raises(ConfigError) as error:
        compare_with_references(tmp_path, FACTS, TASKS, RESULTS)
    assert f"entry.json, differ in {fact} (other there, {FACTS[fact]} here)" in str(error.value)


def test_runs_of_another_length_or_recipe_are_not_compared_and_the_difference_is_named(tmp_path):
    write(tmp_path)
    longer = FACTS | {"training": FACTS["training"] | {"steps": 3600, "epochs": 24}}
    with pytest.raises(
        ConfigError, match=r"entry.json, differ in training.steps \(900 there, 3600 here\), training.ep"
    ):
        compare_with_references(tmp_path, longer, TASKS, RESULTS)
    write(tmp_path, facts={key: value for key, value in FACTS.items() if key != "training"})
    with pytest.raises(ConfigError, match=r"entry.json, differ in training \(not said there\)$"):
        compare_with_references(tmp_path, FACTS, TASKS, RESULTS)
    with pytest.raises(ConfigError, match="the weights do not say what they were trained with"):
        compare_with_references(tmp_path, FACTS | {"training": {}}, TASKS, RESULTS)


def test_runs_with_fewer_labels_are_only_compared_with_single_tasks_that_had_the_same(tmp_path):
    def trained(labels):
        return FACTS | {"training": FACTS["training"] | {"labels": labels}}

    earlier = write(tmp_path)  # before there was a choice
    fewer = write(tmp_path, "fewer", trained(["0.25 of the images"]))
    full = compare_with_references(tmp_path, trained([]), TASKS, RESULTS)
    few = compare_with_references(tmp_path, trained(["0.25 of the images"]), TASKS, RESULTS)
    assert (full.source, few.source) == (earlier, fewer)
    with pytest.raises(ConfigError, match=r"differ in training.labels \(\[\] there, \['one of depth, semseg on each"):
        compare_with_references(earlier, trained(["one of depth, semseg on each"]), TASKS, RESULTS)
    with pytest.raises(ConfigError, match=r"differ in training.labels \(\['0.25 of the images'\] there, \[\] here"):
        compare_with_references(fewer, trained([]), TASKS, RESULTS)


def test_an_entry_of_several_seeds_says_so_and_has_values_of_validation(tmp_path):
    seeds = {"spread": 0.02, "seeds": [0, 1, 2]}
    tasks = {
        "semseg": ENTRIES["semseg"] | seeds | {"val": {"value": 0.55, "spread": 0.01}},
        "depth": ENTRIES["depth"] | seeds | {"val": {"value": 0.5, "spread": 0.01}},
    }
    path = write(tmp_path, tasks=tasks)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val_images": 77}))
    assert str(compare_with_references(tmp_path, FACTS, TASKS, RESULTS)) == f"-7.50 % against {path} (3 seeds)"
    # 0.44 over 0.55 is -20 %, 0.75 over 0.5 is 50 % worse.
    val = FACTS | {"split": "val", "images": 77}
    found = compare_with_references(tmp_path, val, TASKS, RESULTS)
    assert found.by_task == pytest.approx({"semseg": -20, "depth": -50})
    assert found.references["depth"] == Reference(0.5, 0.01, 3)
    with pytest.raises(ConfigError, match=r"differ in images \(77 there, 76 here\)"):
        compare_with_references(tmp_path, val | {"images": 76}, TASKS, RESULTS)


def test_a_result_without_value_is_not_compared(tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError, match="the rmse of depth is nan"):
        compare_with_references(tmp_path, FACTS, TASKS, RESULTS | {"depth": {"rmse": float("nan")}})


def test_the_nearest_entry_is_named(tmp_path):
    write(tmp_path, "far", FACTS | {"backbone": "vit", "images": 3, "data": "rooms"})
    write(tmp_path, "near", FACTS | {"protocol": "invpt"})
    with pytest.raises(ConfigError, match=r"near.json, differ in protocol \(invpt there, standard here\)"):
        compare_with_references(tmp_path, FACTS, TASKS, RESULTS)


def test_of_several_fitting_entries_the_user_chooses(tmp_path):
    write(tmp_path, "one")
    better = {name: entry | {"value": RESULTS[name][entry["metric"]]} for name, entry in ENTRIES.items()}
    chosen = write(tmp_path, "two", tasks=better)
    with pytest.raises(ConfigError, match=r"one.json, two.json\); choose one"):
        compare_with_references(tmp_path, FACTS, TASKS, RESULTS)
    assert compare_with_references(chosen, FACTS, TASKS, RESULTS).delta_m == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": None}, "no single-task result for depth, only for semseg"),
        ({"semseg": ENTRIES["semseg"] | {"channels": 13}}, r"semseg has the channels 13 in .*entry.json and 2 here"),
        ({"depth": ENTRIES["depth"] | {"metric": "abs_rel"}}, "depth has the metric abs_rel in .* and rmse here"),
        ({"depth": {"value": 0.6}}, "depth has the metric None in .* and rmse here"),
        *(
            ({"depth": ENTRIES["depth"] | {"value": value}}, f"depth has the test value {value} in .*, expected a numb")
            for value in (0.0, -1, float("nan"), float("inf"), None, "0.6", True)
        ),
        (
            {"depth": ENTRIES["depth"] | {"seeds": 3}},
            "depth has the seeds 3 and the spread None in .*, expected a list",
        ),
        ({"depth": ENTRIES["depth"] | {"spread": "x"}}, "depth has the seeds .0. and the spread x in .*, expected"),
    ],
)
def test_tasks_that_cannot_be_compared_are_named(tmp_path, change, message):
    tasks = {name: entry for name, entry in (ENTRIES | change).items() if entry}
    write(tmp_path, tasks=tasks)
    with pytest.raises(ConfigError, match=message):
        compare_with_references(tmp_path, FACTS, TASKS, RESULTS)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "1", '"tasks facts"', '{"facts": {}}', '{"facts": [], "tasks": {}}', "\xff",
             '{"facts": {}, "tasks": [1]}', '{"facts": {}, "tasks": {"depth": 0.6}}']
)  # fmt: skip
def test_a_file_that_is_no_entry_is_named_unless_another_fits(tmp_path, text):
    (tmp_path / "broken.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"broken.json .* with `taskformer baselines`"):
        compare_with_references(tmp_path, FACTS, TASKS, RESULTS)
    write(tmp_path, facts=FACTS | {"images": 1})
    with pytest.raises(ConfigError, match=r"entry.json, differ in images .*; .*broken.json .* with `taskformer baseli"):
        compare_with_references(tmp_path, FACTS, TASKS, RESULTS)
    write(tmp_path)
    assert compare_with_references(tmp_path, FACTS, TASKS, RESULTS).delta_m == pytest.approx(-7.5)


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(ConfigError, match="holds no single-task results; `taskformer baselines` makes them"):
        compare_with_references(tmp_path / "none", FACTS, TASKS, RESULTS)


def test_facts_are_plain_and_those_of_the_loaded_weights():
    model = Baseline(SPECS, embed_dim=8, head_dim=4)
    facts = run_facts(model, None, "test", 3)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["backbone"], facts["initialisation"]) == ("resnet18", "random")
    model.recipe = {"steps": 3}
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": {**model.hparams}}
    checkpoint["hyper_parameters"]["weights"] = "/some/where/imagenet.pth"
    model.on_save_checkpoint(checkpoint)
    loaded = Baseline(SPECS, embed_dim=8, head_dim=4)
    loaded.on_load_checkpoint(checkpoint)
    facts = run_facts(loaded, None, "test", 3)
    assert (facts["initialisation"], facts["training"]) == ("imagenet.pth", {"steps": 3, "labels": []})
    checkpoint["hyper_parameters"]["initialisation"] = "imagenet1k"
    loaded.on_load_checkpoint(checkpoint)
    assert run_facts(loaded, None, "test", 3)["initialisation"] == "imagenet1k (imagenet.pth)"


def test_random_weights_have_no_label_of_others():
    model = Baseline(SPECS, embed_dim=8, head_dim=4, initialisation="imagenet1k")
    assert run_facts(model, None, "test", 3)["initialisation"] == "random"


def test_mixtures_and_folders_of_ones_own_are_told_apart(tmp_path, small_rooms):
    own = [FolderDataModule(str(tmp_path / name), "{id}.jpg", {"depth": Label("{id}.png")}) for name in ("a", "b")]
    mixture = CombinedDataModule([RoomsDataModule(str(small_rooms), ["depth"]), own[1]])
    model = Baseline(SPECS, embed_dim=8, head_dim=4)
    names = [run_facts(model, data, "test", 3)["data"] for data in (*own, mixture)]
    assert names == ["folder a", "folder b", "rooms + folder b"]


def test_a_sub_network_and_its_single_tasks_have_the_same_backbone():
    size = {"embed_dims": [64], "depths": [2], "mlp_ratios": [2.0], "num_heads": [2]}
    options = {"space": {"preset": "custom", **size, "head_dim": 32}, "image_size": (32, 32)}
    architecture = AutoTaskFormer(SPECS, **options).space.smallest().to_json()
    both = AutoTaskFormer(SPECS, **options, architecture=architecture)
    single = AutoTaskFormer({"depth": {}}, **options, architecture=architecture)
    backbones = {run_facts(model, None, "test", 1)["backbone"] for model in (both, single)}
    assert len(backbones) == 1
    assert "depth 2" in backbones.pop()
