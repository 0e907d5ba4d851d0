"""How published tables were scored: every deviation from the right definition, in one place.

``standard`` is the mathematically right definition. The others reproduce the numbers of the field's evaluators, quirks
included, so that a model can be compared with what was published. The names of the metrics are the same in all.

What cannot be reproduced, because raw outputs and targets (255 or NaN where invalid) do not tell it:

* ``atrc`` ignores depths of 0, as all protocols here do, but not its padding, whose depth is 255. No published number
  shows that: images are scored without padding.
* ``invpt`` takes true depths of 0 and below as 1e-9; here they are invalid. The filled depth of NYUD-v2 has none.
* Both make the edges of NYUD-v2 out of a line drawing taken for a map of classes; here it is thinned as it is, which
  mostly gives the same lines. On PASCAL-Context they are the boundaries of the classes as here, but half of the
  validation images (2,498 of 5,105) are scored. Their thresholds must be exceeded, ours reached: of 8-bit
  probabilities 51, 102, 153 and 204 lie exactly on one.
* Normals of NYUD-v2 and PASCAL-Context are stored with 8 bits; that is in the targets of all protocols. MTI-Net also
  scores its predictions from files of 8 bits, truncated: ``taskformer evaluate`` on such files does the same.
* ``adashare`` averages batches weighted by their size, so its numbers depend on the batches. Here each image is a batch
  of its own, and images without a valid pixel are left out.
* ``adashare`` compares normals as its files store them, whose lengths vary by 12 % (two real images); targets have
  length 1, which does not tell the stored vector any more. One angle differs by .05 to .08 degrees on average, their
  mean by .02 to .03.
* ``adashare`` upsamples predictions by nearest neighbours; the networks here predict at the input's resolution.
* ``adashare`` reports a cosine similarity of normals and a cross entropy of classes on Taskonomy; they have no
  counterpart here.
"""

import math
from dataclasses import dataclass
from typing import Literal

#: Classes whose IoUs are averaged: those that occur in predictions or labels (``present``), ``all`` of them, 0 for one
#: that does not occur, or those with a pixel that is right (``hit``).
Averaged = Literal["present", "all", "hit"]

#: Thresholds .05, .10, ... .95.
STEPS = tuple(step / 20 for step in range(1, 20))

#: InvPT thresholds the sigmoid of the salient probability as if that were a logit. It is between .5 and .731, so that
#: thresholds up to .5 take every pixel, those from .75 none, and .55 to .70 take probabilities from .2007, .4055,
#: .6190 and .8473, their log-odds.
TWICE_SQUASHED = (0.0, *(math.log(step / (1 - step)) for step in (0.55, 0.6, 0.65, 0.7)))

#: ``parameters/HED.txt`` of SEISM: .001, .01, .02, ..., .99, .999.
SEISM_THRESHOLDS = (0.001, *(step / 100 for step in range(1, 100)), 0.999)


@dataclass(frozen=True)
class Protocol:
    """The choices that evaluators differ in; the defaults are the right ones.

    Attributes:
        averaged_classes: The classes whose IoUs are averaged for the mIoU.
        ignore_bare_background: Human parts: whether images whose labels are all background are left out.
        wrong_void: Semantic segmentation: numbers of classes with which pixels without label count as wrong in the
            pixel accuracy. AdaShare counts all labels below the number of classes, which its void on Cityscapes (19
            classes), -1, is, and that on NYUD-v2 (40 classes), 255, is not.
        image_means: Whether pixel accuracy and the mean errors of depth are means over images of each image's mean,
            instead of means over all pixels.
        depth_floor: Predicted depths below it are raised to it, in metres; None leaves negative ones, which then
            count as near enough to any depth, because both ratios are negative.
        log_floor: The same before the logarithm is taken, in metres.
        depth_above: True depths up to this one, in metres (or 1/m), are invalid; None: those that are not above 0, or
            of inverse depth those below 0.
        inclusive: Whether an error of exactly the limit is within it (ratios of depth, angles of normals).
        uncentred: Whether angles are measured between vectors ``(n + 1) / 2``, as they are stored in images, instead of
            between normals, with x to the right, y up and z into the scene, as AdaShare's files have them (in another
            order, which does not matter).
        saliency_thresholds: Thresholds of the probability whose best F-measure counts.
        edge_thresholds: Thresholds of edge probabilities.
        edge_nms: Whether edge probabilities are suppressed off the ridges before they are thresholded.
        edge_bytes: Whether edge probabilities are truncated to 8 bits first, as files hold them.
        edge_thin_truth: Whether the true edges are thinned.
    """

    averaged_classes: Averaged = "present"
    ignore_bare_background: bool = False
    wrong_void: tuple[int, ...] = ()
    image_means: bool = False
    depth_floor: float | None = 0.0
    log_floor: float = 1e-3
    depth_above: float | None = None
    inclusive: bool = False
    uncentred: bool = False
    saliency_thresholds: tuple[float, ...] = STEPS
    edge_thresholds: tuple[float, ...] = tuple(step / 100 for step in range(1, 100))
    edge_nms: bool = True
    edge_bytes: bool = False
    edge_thin_truth: bool = True


PROTOCOLS: dict[str, Protocol] = {
    "standard": Protocol(),
    # ATRC, MQTransformer, DeMT.
    "atrc": Protocol(
        averaged_classes="all",
        ignore_bare_background=True,
        edge_thresholds=SEISM_THRESHOLDS,
        edge_bytes=True,
    ),
    # InvPT, TaskPrompter, MTMamba.
    "invpt": Protocol(
        averaged_classes="all",
        ignore_bare_background=True,
        depth_floor=1e-9,
        log_floor=1e-9,
        saliency_thresholds=TWICE_SQUASHED,
        edge_thresholds=SEISM_THRESHOLDS,
        edge_bytes=True,
    ),
    # AdaShare and the searches compared with it (AutoMTL).
    "adashare": Protocol(
        averaged_classes="hit",
        wrong_void=(19,),
        image_means=True,
        depth_floor=None,
        depth_above=3e-5,
        inclusive=True,
        uncentred=True,
    ),
}
