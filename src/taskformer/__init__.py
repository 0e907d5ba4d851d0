"""Multi-task dense prediction transformers on PyTorch Lightning.

>>> import taskformer
>>> model = taskformer.create_model("mqtransformer", tasks=["depth", "normals"], backbone="lcnet_050", embed_dim=16)
>>> list(model.tasks)
['depth', 'normals']

``import taskformer`` is quick; torch and Lightning are imported when something that needs them is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from taskformer._version import __version__

if TYPE_CHECKING:
    from taskformer import callbacks, data, datatools, evaluation, insight, metrics, models, modules, sweeps, tasks
    from taskformer.commands.trainer import from_config
    from taskformer.data.configured import list_datasets
    from taskformer.evaluation import compare, evaluate
    from taskformer.evaluation.benchmark import benchmark
    from taskformer.evaluation.plots import plot
    from taskformer.insight.explain import explain
    from taskformer.modules.exporting import export
    from taskformer.modules.factory import create_model, list_models
    from taskformer.modules.importing import import_mqtransformer
    from taskformer.modules.loading import load
    from taskformer.modules.photographs import predict
    from taskformer.search.run import search  # what the package is when it is called
    from taskformer.sweeps.run import sweep
    from taskformer.tasks import registered as list_tasks

__all__ = [
    "__version__",
    "benchmark",
    "callbacks",
    "compare",
    "create_model",
    "data",
    "datatools",
    "evaluate",
    "evaluation",
    "explain",
    "export",
    "from_config",
    "import_mqtransformer",
    "insight",
    "list_datasets",
    "list_models",
    "list_tasks",
    "load",
    "metrics",
    "models",
    "modules",
    "plot",
    "predict",
    "search",
    "sweep",
    "sweeps",
    "tasks",
]

#: Where each function lives.
_FUNCTIONS = {
    "benchmark": "taskformer.evaluation.benchmark:benchmark",
    "compare": "taskformer.evaluation:compare",
    "create_model": "taskformer.modules.factory:create_model",
    "evaluate": "taskformer.evaluation:evaluate",
    "explain": "taskformer.insight.explain:explain",
    "export": "taskformer.modules.exporting:export",
    "from_config": "taskformer.commands.trainer:from_config",
    "import_mqtransformer": "taskformer.modules.importing:import_mqtransformer",
    "list_datasets": "taskformer.data.configured:list_datasets",
    "list_models": "taskformer.modules.factory:list_models",
    "list_tasks": "taskformer.tasks:registered",
    "load": "taskformer.modules.loading:load",
    "plot": "taskformer.evaluation.plots:plot",
    "predict": "taskformer.modules.photographs:predict",
    "sweep": "taskformer.sweeps.run:sweep",
}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        module, _, function = _FUNCTIONS[name].partition(":")
        return getattr(importlib.import_module(module), function)
    if name in __all__:
        return importlib.import_module(f"taskformer.{name}")
    message = f"module 'taskformer' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
