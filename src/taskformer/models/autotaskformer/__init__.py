"""AutoTaskFormer: a supernet of vision transformers that also searches what tasks share."""

from taskformer.models.autotaskformer.architecture import Architecture
from taskformer.models.autotaskformer.autoformer import import_autoformer
from taskformer.models.autotaskformer.space import SearchSpace
from taskformer.models.autotaskformer.supernet import Supernet

__all__ = ["Architecture", "SearchSpace", "Supernet", "import_autoformer"]
