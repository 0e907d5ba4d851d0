"""What happens inside a trained network, as arrays and as pictures."""

from taskformer.insight.attention import Attention, Round, recorded
from taskformer.insight.exchange import Affinity, affinity, affinity_of
from taskformer.insight.gradients import Conflicts, conflicts

__all__ = ["Affinity", "Attention", "Conflicts", "Round", "affinity", "affinity_of", "conflicts", "recorded"]
