"""The renderer of the embedded data set ``rooms``: furnished rooms with exact labels.

Only `render.render_rooms` is meant for callers; it needs the extra ``taskformer[render]`` and the Debian packages
``libllvm19`` and ``sweethome3d-furniture``.
"""

from taskformer.data.datasets.rooms import CLASSES
from taskformer.datatools.rendering.catalog import SPLITS
from taskformer.datatools.rendering.render import render_rooms
from taskformer.datatools.rendering.scene import RendererMissingError

__all__ = ["CLASSES", "SPLITS", "RendererMissingError", "render_rooms"]
