"""Networks in plain torch: backbones, heads, and the two put together. Nothing here knows Lightning."""

from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet, import_autoformer
from taskformer.models.backbones import Backbone
from taskformer.models.baseline import BaselineHead
from taskformer.models.decoders import TaskDecoder, register_decoder
from taskformer.models.mqtransformer import MQTransformerHead
from taskformer.models.network import DenseNetwork

__all__ = [
    "Architecture",
    "Backbone",
    "BaselineHead",
    "DenseNetwork",
    "MQTransformerHead",
    "SearchSpace",
    "Supernet",
    "TaskDecoder",
    "import_autoformer",
    "register_decoder",
]
