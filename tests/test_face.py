"""`import taskformer` shows everything that other programs rely on, at once and to type checkers too."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import taskformer
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.modules import AutoTaskFormer, Baseline, MQTransformer
from taskformer.tasks import Depth

SOURCE = Path(taskformer.__file__)
FUNCTIONS = {
    *("benchmark", "compare", "create_model", "evaluate", "explain", "export", "from_config"),
    *("import_mqtransformer", "list_datasets", "list_models", "list_tasks", "load", "plot", "predict", "search"),
    "sweep",
}
ROOMS = {
    *("callbacks", "data", "datatools", "evaluation", "insight", "metrics", "models", "modules", "search", "sweeps"),
    "tasks",
}


def test_everything_that_the_design_names_is_there():
    assert set(taskformer.__all__) == FUNCTIONS | ROOMS | {"__version__"}
    assert set(taskformer.__all__) <= set(dir(taskformer))
    assert all(callable(getattr(taskformer, name)) for name in FUNCTIONS)
    assert all(inspect.ismodule(getattr(taskformer, name)) for name in ROOMS)
    with pytest.raises(AttributeError, match="'taskformer' has no attribute 'lod'"):
        taskformer.lod  # noqa: B018


def test_type_checkers_see_the_same_names_in_the_same_places():
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    seen = {}
    for line in block.body:
        for alias in line.names:
            seen[alias.asname or alias.name] = f"{line.module}:{alias.name}"
    rooms = {name: f"taskformer:{name}" for name in ROOMS}
    assert seen == rooms | taskformer._FUNCTIONS | {"search": "taskformer.search.run:search"}


def test_importing_it_is_quick():
    code = (
        "import sys, taskformer; dir(taskformer); sys.exit(len({'torch', 'numpy', 'jsonargparse'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_names_are_listed():
    assert {"mqtransformer", "autotaskformer", "baseline"} <= set(taskformer.list_models())
    assert not {"densemodule", "multitaskmodule"} & set(taskformer.list_models())
    assert {"rooms", "nyud", "pascal_context", "cityscapes", "taskonomy"} <= set(taskformer.list_datasets())
    assert {"semseg", "depth", "normals", "edges", "saliency"} <= set(taskformer.list_tasks())


@pytest.mark.parametrize(
    ("name", "model_class", "options"),
    [
        ("mqtransformer", MQTransformer, {"backbone": "lcnet_050", "embed_dim": 16, "num_heads": 2, "num_queries": 4}),
        ("Baseline", Baseline, {"backbone": "lcnet_050", "embed_dim": 8, "loss_weights": {"depth": 2.0}}),
        ("autotaskformer", AutoTaskFormer, {}),
    ],
)
def test_a_model_is_created_without_data_or_yaml(name, model_class, options):
    model = taskformer.create_model(name, tasks=["depth", "normals"], **options)
    assert type(model) is model_class
    outputs = model.network(torch.zeros(1, 3, 64, 64))
    assert {task: output.shape for task, output in outputs.items()} == {
        "depth": (1, 1, 64, 64),
        "normals": (1, 3, 64, 64),
    }


def test_a_created_model_predicts_photographs():
    model = taskformer.create_model("baseline", {"semseg": {"classes": ["a", "b"]}}, backbone="lcnet_050")
    assert model.predict_image(np.zeros((40, 50, 3), np.uint8))["semseg"].shape == (40, 50)


def test_tasks_may_be_described_and_one_name_is_enough():
    model = taskformer.create_model("baseline", {"near": {"type": "depth", "max_depth": 3.0}}, backbone="lcnet_050")
    assert isinstance(model.tasks["near"], Depth)
    assert model.tasks["near"].max_depth == 3.0
    assert list(taskformer.create_model("baseline", "depth", backbone="lcnet_050").tasks) == ["depth"]


def test_a_model_of_one_s_own_is_found_by_name():
    class Inherited(Baseline):
        """One that takes all arguments of another."""

        def __init__(self, tasks, extra: int = 3, **kwargs):
            super().__init__(tasks, **kwargs)
            self.extra = extra

    assert "inherited" in taskformer.list_models()
    model = taskformer.create_model("inherited", ["depth"], extra=5, embed_dim=8, backbone="lcnet_050")
    assert (type(model), model.extra) == (Inherited, 5)


@pytest.mark.parametrize(
    ("name", "tasks", "options", "error", "message"),
    [
        (
            "mqtransfomer",
            ["depth"],
            {},
            UnknownNameError,
            r"unknown model .* \(did you mean 'mqtransformer'\?\)",
        ),
        ("baseline", ["dept"], {}, UnknownNameError, r"unknown task type 'dept' \(did you mean 'depth'\?\)"),
        ("baseline", ["semseg"], {}, ConfigError, "task 'semseg' of type 'semseg' needs the option classes"),
        ("baseline", ["depth"], {"embed_dims": 3}, UnknownNameError, r"'embed_dims' \(did you mean 'embed_dim'\?\)"),
        ("baseline", ["depth"], {"build_head": 3}, UnknownNameError, "unknown option of Baseline 'build_head'"),
        ("baseline", ["depth"], {"network": 3}, UnknownNameError, "unknown option of Baseline 'network'"),
        ("baseline", ["depth"], {"backbone": "resnet1"}, UnknownNameError, "resnet1"),
    ],
)
def test_mistakes_are_one_sentence(name, tasks, options, error, message):
    with pytest.raises(error, match=message) as raised:
        taskformer.create_model(name, tasks, **options)
    assert "\n" not in str(raised.value)
