"""Where randomness comes from: the run's seed and the place in the training, never what was drawn before.

What a training draws (its order of images, their augmentation, dropout, sub-networks) is a function of the seed and of
the epoch, step or image it is drawn for. So it depends on no number of processes, and a run that was stopped anywhere
goes on as if it had not been.
"""

import os
from hashlib import sha256


def run_seed() -> int:
    """Return the seed that ``seed_everything`` set for this run, which all of its processes inherit; 0 without."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derive(purpose: str, *keys: int) -> int:
    """Return a seed of 63 bits for one purpose and place of the run; others get unrelated ones."""
    return int.from_bytes(sha256(f"{run_seed()} {purpose} {keys}".encode()).digest()[:8], "big") >> 1
