"""How much each setting of a sweep decides."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from taskformer.sweeps.parameters import Distribution, Parameter
from taskformer.sweeps.schema import Metric

#: Which runs count as good, as a share of all.
GOOD = 0.25
#: With fewer runs nothing can be said.
FEWEST = 5


def importances(
    parameters: Mapping[str, Parameter], settings: Sequence[Mapping[str, Any]], values: Sequence[float], metric: Metric
) -> dict[str, float]:
    """Return how much each setting decides whether a run is among the best quarter; the sum is 1.

    This is Optuna's PED-ANOVA: how far the distribution of the setting in good runs is from that in all runs. Where
    runs differ in their seed, the seed's share is that of chance.

    Args:
        parameters: The sweep's settings.
        settings: Those of each finished run, by name.
        values: Each run's value.
        metric: The metric.

    Returns:
        The shares by name, the largest first. Settings that are the same in all runs have none; without two settings
        that differ, or with fewer than five runs, there is nothing to compare and the result is empty.
    """
    columns = {name: [run[name] for run in settings] for name in parameters}
    varied = {name: column for name, column in columns.items() if len(set(map(str, column))) > 1}
    if len(varied) < 2 or len(values) < FEWEST:
        return {}
    distributions = {name: _distribution(parameters[name], column) for name, column in varied.items()}
    study = optuna.create_study(direction=metric.goal)
    for run, value in zip(settings, values, strict=True):
        params = {
            name: float(run[name]) if isinstance(distribution, FloatDistribution) else str(run[name])
            for name, distribution in distributions.items()
        }
        study.add_trial(create_trial(params=params, distributions=distributions, value=value))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD, evaluate_on_local=False)
    return get_param_importances(study, evaluator=evaluator)


def _distribution(parameter: Parameter, values: Sequence[Any]) -> BaseDistribution:
    """Return where a setting's values lie."""
    if not isinstance(parameter, Distribution):
        return CategoricalDistribution(list(dict.fromkeys(map(str, values))))
    return FloatDistribution(min(values), max(values), log="log" in parameter.kind and min(values) > 0)
