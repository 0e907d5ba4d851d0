"""The small problems behind methods that combine gradients, solved for what the tasks' Gramian says about them.

A Gramian holds the products of each two of T gradients, ``(T, T)``; what is returned weighs these gradients. In double
precision on the processor, where such problems take well below a millisecond to some milliseconds.
"""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Least eigenvalue of a Gramian over its trace: rounding makes those of dependent gradients negative.
RIDGE = 1e-10
#: More steps than Newton's method ever needs.
STEPS = 100


def without_conflict(gramian: Matrix, weights: Vector) -> Vector:
    """Project a weighted sum of gradients to the nearest vector that is against none of them.

    That is the shortest sum whose weights are at least those given (dual problem), a least-squares problem in what is
    added to them.

    >>> opposed = np.array([[1.0, -0.5], [-0.5, 1.0]])
    >>> without_conflict(opposed, np.array([1.0, 0.0])).tolist()  # the first, less its part against the second
    [1.0, 0.5]

    Args:
        gramian: Products of the gradients ``(T, T)``.
        weights: Weights of the sum ``(T,)``.

    Returns:
        Weights of the projection ``(T,)``.

    Reference:
        Quinton, Rey. Jacobian Descent for Multi-Objective Optimization. arXiv 2406.16232, proposition 1.
    """
    from scipy.optimize import nnls  # here and below: it takes a while, and few trainings need it

    root = _root(gramian)
    added, _ = nnls(root, -root @ weights, maxiter=STEPS * len(weights))
    return np.asarray(weights + added)


def conflict_averse(gramian: Matrix, c: float) -> Vector:
    """Find the vector around the mean gradient whose product with the gradient that it helps least is largest.

    >>> conflict_averse(np.eye(2), c=0.5).round(6).tolist()  # no conflict, so in the direction of the mean
    [0.75, 0.75]

    Args:
        gramian: Products of the gradients ``(T, T)``.
        c: How far from the mean gradient, in lengths of it.

    Returns:
        Weights of the vector ``(T,)``; zeros if some mean of the gradients is zero, as none then helps all.

    Reference:
        Liu et al. Conflict-Averse Gradient Descent for Multi-task Learning. NeurIPS 2021, equation 5.
    """
    from scipy.optimize import minimize

    root = _root(gramian)
    gramian = root.T @ root
    count = len(gramian)
    mean = np.full(count, 1 / count)
    reach = c * np.sqrt(mean @ gramian @ mean)

    def dual(shares: Vector) -> tuple[float, Vector]:
        length = np.sqrt((shares @ gramian @ shares).clip(RIDGE**2))
        return shares @ gramian @ mean + reach * length, gramian @ mean + reach / length * gramian @ shares

    whole = {"type": "eq", "fun": lambda shares: shares.sum() - 1, "jac": np.ones_like}
    options = {"ftol": 1e-14, "maxiter": 500}
    found = minimize(
        dual, mean, jac=True, bounds=[(0, 1)] * count, constraints=whole, method="SLSQP", options=options
    ).x
    length = np.sqrt((found @ gramian @ found).clip(0))
    return mean + reach / length * found if length > RIDGE**0.5 else np.zeros(count)


def bargain(gramian: Matrix) -> Vector:
    """Find the positive weights with ``gramian @ weights = 1 / weights``: the tasks' Nash bargaining solution.

    They are where ``weights @ gramian @ weights / 2 - log(weights).sum()``, which is convex, is least; Newton's method,
    damped while far from there, finds it.

    >>> bargain(np.diag([4.0, 1.0])).round(6).tolist()
    [0.5, 1.0]

    Args:
        gramian: Products of the gradients ``(T, T)``, none of which is zero.

    Returns:
        The weights ``(T,)``.

    Reference:
        Navon et al. Multi-Task Learning as a Bargaining Game. ICML 2022, claim 3.2.
    """
    from scipy.linalg import solve

    lengths = np.sqrt(np.diag(gramian))
    root = _root(gramian / np.outer(lengths, lengths))
    cosines = len(gramian) * root.T @ root
    weights = np.ones(len(gramian))
    for _ in range(STEPS):
        gradient = cosines @ weights - 1 / weights
        step = solve(cosines + np.diag(weights**-2), gradient, assume_a="pos")
        decrement = np.sqrt((gradient @ step).clip(0))
        weights -= step / (1 + decrement) if decrement > 0.25 else step  # a self-concordant function's
        if decrement < RIDGE:
            break
    return np.asarray(weights / lengths)


def _root(gramian: Matrix) -> Matrix:
    """Return vectors, the columns, with the products of a Gramian whose trace is 1."""
    values, vectors = np.linalg.eigh(gramian / np.trace(gramian))
    return np.asarray(np.sqrt(values.clip(RIDGE))[:, None] * vectors.T)
