"""MQTransformer: ``head.py`` is the network, to be read from top to bottom, ``attention.py`` what it is made of."""

from taskformer.models.mqtransformer.head import MQTransformerHead, MultiQueryDecoder, require_whole_heads

__all__ = ["MQTransformerHead", "MultiQueryDecoder", "require_whole_heads"]
