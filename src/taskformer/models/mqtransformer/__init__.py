"""MQTransformer: ``head.py`` is the network, ``stages.py`` and ``attention.py`` what it is made of.

``released.py`` takes the weights that the authors' program has trained.
"""

from taskformer.models.mqtransformer.head import MQTransformerHead, MultiQueryDecoder, require_whole_heads
from taskformer.models.mqtransformer.released import import_released

__all__ = ["MQTransformerHead", "MultiQueryDecoder", "import_released", "require_whole_heads"]
