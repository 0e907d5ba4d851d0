"""MQTransformer: Multi-Query Transformer for multi-task dense prediction."""

from taskformer.models.mqtransformer.head import MQTransformerHead

__all__ = ["MQTransformerHead"]
