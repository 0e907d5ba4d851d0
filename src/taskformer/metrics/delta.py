"""How much a multi-task model gains or loses against single-task models."""

from collections.abc import Mapping


def improvement(value: float, reference: float, higher_is_better: bool) -> float:
    """Compute the relative improvement over a reference in percent; positive is always better.

    Args:
        value: The metric of the model.
        reference: The same metric of the model that it is compared with, in the same unit.
        higher_is_better: Whether larger values are better.

    Raises:
        ValueError: If the reference is not above 0, where a relative change has no meaning.
    """
    if not reference > 0:
        message = f"a relative improvement needs a reference above 0, got {reference}"
        raise ValueError(message)
    change = 100 * (value - reference) / reference
    return change if higher_is_better else -change


def delta_m(
    results: Mapping[str, float],
    references: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    weights: Mapping[str, float] | None = None,
) -> float:
    """Compute delta_m, the mean relative improvement over single-task models, in percent.

    Maninis et al., Attentive Single-Tasking of Multiple Tasks (CVPR 2019), equation 3. Every task counts with one
    metric. Results and references must share protocol, backbone and initialisation, or the number means nothing.

    Args:
        results: Headline metric by task of the multi-task model.
        references: The same metrics of single-task models; may hold further tasks.
        higher_is_better: For every task whether larger values of its metric are better.
        weights: Weights of tasks in the mean, 1 where none is given; published delta_m have none.

    Raises:
        ValueError: If there are no results, or a task lacks a reference or ``higher_is_better``, or has a reference
            that is not above 0.
    """
    if not results:
        message = "delta_m needs the result of at least one task, got none"
        raise ValueError(message)
    for what, known in (("single-task reference", references), ("higher_is_better", higher_is_better)):
        missing = [task for task in results if task not in known]
        if missing:
            message = f"no {what} for {', '.join(missing)}; given: {', '.join(known) or 'none'}"
            raise ValueError(message)
    gains = []
    for task, value in results.items():
        try:
            gains.append(improvement(value, references[task], higher_is_better[task]))
        except ValueError as error:
            message = f"task {task!r}: {error}"
            raise ValueError(message) from error
    shares = [(weights or {}).get(task, 1.0) for task in results]
    return sum(share * gain for share, gain in zip(shares, gains, strict=True)) / sum(shares)
