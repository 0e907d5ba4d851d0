"""Pictures of a study, readable at 800 pixels' width: a row for each arm, a dot for each seed."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from taskformer.plots import BLUE, GREY, STYLE, WIDTH, save
from taskformer.studies.findings import DELTA_M, Evaluation, Finding

#: Panels beside each other, height of a row in inches, and what a panel needs besides.
COLUMNS, ROW, FRAME = 3, 0.26, 0.95


@rc_context(STYLE | {"font.size": 9})
def draw_findings(path: Path, evaluation: Evaluation) -> None:
    """Draw each quantity of each arm, and how far delta_m is from the reference's.

    Args:
        path: The picture.
        evaluation: What was found.
    """
    columns, arms = evaluation.columns, evaluation.arms
    rows = -(-(len(columns) + (DELTA_M in columns)) // COLUMNS)
    figure = Figure((WIDTH, rows * (FRAME + ROW * len(arms))), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).ravel()
    places = iter(grid)
    for key, findings in columns.items():
        _draw_values(next(places), findings, arms)
        if key == DELTA_M:
            _draw_differences(next(places), findings, arms, evaluation.evidence.study.against)
    for left in places:
        left.set_visible(False)
    grid[0].set_yticks(range(len(arms)), arms)
    grid[0].set_ylim(len(arms) - 0.5, -0.5)
    save(figure, path)


def _draw_values(axes: Axes, findings: Sequence[Finding], arms: Sequence[str]) -> None:
    """Draw a dot for each seed and a line at their mean."""
    for finding in findings:
        row, values = arms.index(finding.arm), [finding.scale * value for value in finding.values.values()]
        axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=4, alpha=0.6, clip_on=False)
        axes.vlines(fmean(values), row - 0.32, row + 0.32, color="black", linewidth=1.5)
    lower = "\n(lower is better)" if findings[0].better == "lower" else ""
    axes.set_title(findings[0].heading + lower, fontsize=9)


def _draw_differences(axes: Axes, findings: Sequence[Finding], arms: Sequence[str], against: str) -> None:
    """Draw delta_m's difference with its interval over images and seeds, or over seeds where only that is known."""
    axes.axvline(0, color=GREY, linewidth=1)
    for finding in findings:
        if found := finding.difference or finding.over_seeds:
            row = arms.index(finding.arm)
            axes.hlines(row, found.low, found.high, color=BLUE, linewidth=3)
            axes.plot(found.difference, row, "D", color="black", markersize=4, zorder=3)
    axes.set_title(f"delta_m minus that of {against}, %", fontsize=9)
