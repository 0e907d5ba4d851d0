"""Predicting delta_m from an architecture's genes, so that few of many offspring have to be evaluated."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from taskformer.errors import ConfigError, MissingExtraError
from taskformer.models.autotaskformer import Architecture, SearchSpace
from taskformer.search.objectives import Candidate, front_ranks

#: Parts of the cross-validation.
FOLDS = 5


def encode(architecture: Architecture, space: SearchSpace) -> NDArray[np.float64]:
    """Write an architecture as zeros and ones.

    Every gene is one-hot: width, depth, each layer's ratio and heads, the copy that each task uses of each unit,
    and the sizes of the query decoder. Genes of layers that a shallower architecture does not have are all 0.

    Args:
        architecture: One of the space.
        space: The space.
    """
    missing = max(space.depths) - architecture.depth
    copies = [copy for row in architecture.rows(space.num_tasks) for copy in row]
    return np.concatenate(
        [
            _one_hot([architecture.embed_dim], space.embed_dims),
            _one_hot([architecture.depth], space.depths),
            _one_hot([*architecture.mlp_ratio, *[None] * missing], space.mlp_ratios),
            _one_hot([*architecture.num_heads, *[None] * missing], space.num_heads),
            _one_hot([*copies, *[None] * (2 * missing * space.num_tasks)], range(space.num_copies)),
            _one_hot([architecture.num_queries], space.num_queries),
            _one_hot([architecture.num_scales], space.num_scales),
            _one_hot([architecture.decoder_width], space.decoder_widths),
        ]
    )


class Predictor:
    """A linear regression of delta_m on the genes, regularised as much as the data ask for.

    Args:
        space: The search space.
        costs: Returns the search's other objectives of an architecture, less is better.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """

    def __init__(self, space: SearchSpace, costs: Callable[[Architecture], Sequence[float]] = lambda _: ()) -> None:
        self.space = space
        self.costs = costs
        self._model = _regression()

    def fit(self, candidates: Sequence[Candidate]) -> None:
        """Learn from evaluated architectures.

        Raises:
            ConfigError: If there are fewer than two.
        """
        self._model.fit(*self._data(candidates, at_least=2))

    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Predict delta_m of each architecture, in percent."""
        guesses: NDArray[np.float64] = self._model.predict(self._encode(architectures))
        return guesses

    def rank_correlation(self, candidates: Sequence[Candidate]) -> float:
        """Return Spearman's correlation of delta_m with predictions, each by a fit to the four fifths without it.

        Raises:
            ConfigError: If there are too few to divide.
        """
        from sklearn.model_selection import cross_val_predict  # type: ignore[import-untyped]

        genes, scores = self._data(candidates, at_least=2 * FOLDS)
        return float(spearmanr(cross_val_predict(_regression(), genes, scores, cv=FOLDS), scores).statistic)

    def screen(self, offspring: Sequence[Architecture], keep: int) -> list[Architecture]:
        """Choose the offspring that seem best: of the first fronts of predictions and costs, by prediction, best first.

        Args:
            offspring: Architectures.
            keep: How many to choose.
        """
        losses = -self.predict(offspring)
        points = np.column_stack([losses, [list(self.costs(architecture)) for architecture in offspring]])
        return [offspring[index] for index in np.lexsort((losses, front_ranks(points)))[:keep]]

    def _data(self, candidates: Sequence[Candidate], at_least: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what a regression learns from: genes and delta_m."""
        if len(candidates) < at_least:
            msg = f"the predictor learns from at least {at_least} evaluated architectures, got {len(candidates)}"
            raise ConfigError(msg)
        scores = np.array([candidate.values["delta_m"] for candidate in candidates])
        return self._encode([candidate.architecture for candidate in candidates]), scores

    def _encode(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        return np.stack([encode(architecture, self.space) for architecture in architectures])


def _regression() -> Any:
    try:
        from sklearn.linear_model import BayesianRidge  # type: ignore[import-untyped]
    except ImportError as error:
        package, extra = "scikit-learn", "search"
        raise MissingExtraError(package, extra) from error
    return BayesianRidge()


def _one_hot(genes: Sequence[float | None], choices: Sequence[float]) -> NDArray[np.float64]:
    """Write each gene as one 1 among as many numbers as there are choices; None as zeros."""
    return np.array([[gene == choice for choice in choices] for gene in genes], dtype=np.float64).ravel()
