"""The unit in which people read a metric.

Shares (IoU, accuracy, F-measure) are fractions from 0 to 1 in metrics, logs, files and Python, and percent where people
read them: in tables and on axes. A task's ``units`` mark them by :data:`SHARE`. Relative changes, such as delta_m, are
percent everywhere.
"""

#: Unit of shares: fractions for programs, percent for people.
SHARE = "%"


def factor(unit: str) -> float:
    """Return the factor by which a value is multiplied before people read it in this unit."""
    return 100.0 if unit == SHARE else 1.0


def shown(value: float, unit: str = SHARE, digits: int = 4) -> str:
    """Write a value as tables show it: shares in percent with two decimals, all else with significant ``digits``.

    >>> shown(0.4567), shown(1.23456, "m")
    ('45.67', '1.235')
    """
    return f"{value * factor(unit):.2f}" if unit == SHARE else f"{value:.{digits}g}"
