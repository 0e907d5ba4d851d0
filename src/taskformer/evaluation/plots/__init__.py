"""Pictures of one run or of several on one axis, drawn from the files of their folders.

>>> from taskformer.evaluation.plots import PLOTS
>>> list(PLOTS)
['curves', 'classes', 'confusion', 'ranges', 'angles', 'precision_recall']
"""

from taskformer.evaluation.plots.run import PLOTS, Format, draw_test, draw_training, plot

__all__ = ["PLOTS", "Format", "draw_test", "draw_training", "plot"]
