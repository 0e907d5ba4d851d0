"""``taskformer.search(...)`` from Python: the same search as the command's, without a Trainer or a parser."""

import json
import subprocess
import sys

import pytest
import torch

import taskformer
from taskformer.data import RoomsDataModule
from taskformer.errors import ConfigError
from taskformer.modules import AutoTaskFormer, Baseline
from taskformer.search import Constraints, NopPruner, Pruner
from taskformer.search.run import search

SPACE = {
    "preset": "custom",
    "embed_dims": [8, 16],
    "depths": [1, 2],
    "mlp_ratios": [1.0, 2.0],
    "num_heads": [1, 2],
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def data(small_rooms):
    return RoomsDataModule(str(small_rooms), tasks=["semseg", "depth"], batch_size=2, holdout=0.5)


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    model = AutoTaskFormer(data.task_specs, SPACE, image_size=(128, 160), patch_size=32)
    # A random network may find no class at all; then nothing is relative to that.
    torch.nn.init.normal_(model.network.heads.dense.decoders["semseg"].predict.weight)
    return model


def test_a_model_is_searched_where_it_is_told(model, data, tmp_path):
    told = []
    found = search(model, data, run_dir=tmp_path, generations=2, population=4, references=False, pruner=NopPruner(),
                   on_progress=told.append)  # fmt: skip
    assert found.folder == tmp_path / "search"
    assert (found.folder / "pareto.json").is_file()
    assert len(found.records) == 8
    values = [one.values for one in found.front]
    assert [one["delta_m"] for one in values] == sorted((one["delta_m"] for one in values), reverse=True)
    assert found.pick(params=1e9).candidate in found.front
    assert found.table().row_count == len(found.front)
    assert [len(each.records) for each in told] == sorted(len(each.records) for each in told)
    assert told[-1].front == found.front
    # The same again evaluates nothing, and a model that was searched is as good as new.
    assert search(model, data, run_dir=tmp_path, generations=2, population=4, references=False,
                  pruner=NopPruner()).records == found.records  # fmt: skip


def test_a_run_folder_says_model_and_data(model, data, tmp_path, small_rooms):
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckpt")
    options = {"root": str(small_rooms), "tasks": ["semseg", "depth"], "batch_size": 2, "holdout": 0.5}
    config = {"data": {"class_path": "taskformer.data.RoomsDataModule", "init_args": options}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    found = taskformer.search(tmp_path, generations=1, population=3, references=False)
    assert found.folder == tmp_path / "search"
    given = search(model, data, run_dir=tmp_path, study="other", generations=1, population=3, references=False)
    assert [one.candidate for one in found.records] == [one.candidate for one in given.records]
    by_file = search(tmp_path / "checkpoints" / "last.ckpt", generations=1, population=3, references=False)
    assert by_file.records == found.records


def test_constraints_and_pruners_are_objects(model, data, tmp_path):
    class Always(Pruner):
        def prune(self, course, costs, history):
            return True

    found = search(model, data, run_dir=tmp_path, generations=2, population=4, references=False, pruner=Always(),
                   constraint=Constraints(params=(0, 58e3)))  # fmt: skip
    assert [record.state.name for record in found.records] == ["COMPLETE"] * 4 + ["PRUNED"] * 4
    assert all(record.candidate.values["params"] <= 58e3 for record in found.records)


def test_what_cannot_be_searched_is_refused(model, data, tmp_path, small_rooms):
    with pytest.raises(ConfigError, match=r"only an AutoTaskFormer .* got Baseline"):
        search(Baseline(data.task_specs, embed_dim=8, head_dim=4), data, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="give data, or its run folder"):
        search(model)
    other = RoomsDataModule(str(small_rooms), tasks=["semseg"], batch_size=2, holdout=0.5)
    with pytest.raises(ConfigError, match=r"the data lack depth; set data\.tasks"):
        search(model, other, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="the predictor learns delta_m"):
        search(model, data, run_dir=tmp_path, objectives=["params"], predictor=True)


#: Ways to get at the package and at the function, and what each must leave behind.
ORDERS = """
import sys

ORDERS = [
    "import taskformer",
    "import taskformer; import taskformer.search.pruning",
    "import taskformer.search.pruning; import taskformer",
    "from taskformer.search.run import search; import taskformer",
    "from taskformer.search import search, Pruner; import taskformer",
    "from taskformer import search; import taskformer",
]
for order in ORDERS:
    for name in [name for name in sys.modules if name.split(".")[0] == "taskformer"]:
        del sys.modules[name]
    names = {}
    exec(order, names)
    try:
        names["taskformer"].search("nowhere")
    except ValueError as error:
        assert "no checkpoint at 'nowhere'" in str(error), order
    else:
        raise AssertionError(order)
    exec("import taskformer.search.pruning", names)
    package = names["taskformer"].search
    assert package.pruning.NopPruner is package.NopPruner, order
    assert package.search is package.run.search, order
    if "search" in names:
        assert names["search"] in (package, package.search), order
"""


@pytest.mark.slow  # imports everything in six orders
def test_package_and_function_have_one_name_in_any_order_of_imports():
    subprocess.run([sys.executable, "-c", ORDERS], check=True)


def test_a_name_that_does_not_exist_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        taskformer.search.serach  # noqa: B018
