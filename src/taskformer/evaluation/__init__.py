"""What judges predictions: saved maps, the edge benchmark, single-task references and delta_m, significance, tables.

>>> from taskformer import evaluation
>>> [name for name in evaluation.__all__ if name.islower()]
['compare', 'evaluate', 'evaluate_edges', 'evaluate_sequence', 'read_offline_runs']
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskformer.evaluation.comparison import Comparison, compare
    from taskformer.evaluation.edges import EdgeEvaluation, evaluate_edges
    from taskformer.evaluation.offline_wandb import OfflineRun, read_offline_runs
    from taskformer.evaluation.scoring import Evaluation, evaluate
    from taskformer.evaluation.sequences import SequenceEvaluation, evaluate_sequence

__all__ = [
    "Comparison",
    "EdgeEvaluation",
    "Evaluation",
    "OfflineRun",
    "SequenceEvaluation",
    "compare",
    "evaluate",
    "evaluate_edges",
    "evaluate_sequence",
    "read_offline_runs",
]

_HOMES = {
    "Comparison": "comparison",
    "EdgeEvaluation": "edges",
    "Evaluation": "scoring",
    "OfflineRun": "offline_wandb",
    "SequenceEvaluation": "sequences",
    "compare": "comparison",
    "evaluate": "scoring",
    "evaluate_edges": "edges",
    "evaluate_sequence": "sequences",
    "read_offline_runs": "offline_wandb",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"taskformer.evaluation.{_HOMES[name]}"), name)
    message = f"module 'taskformer.evaluation' has no attribute {name!r}"
    raise AttributeError(message)
