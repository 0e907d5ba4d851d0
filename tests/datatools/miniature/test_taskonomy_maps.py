"""The maps of Taskonomy's miniature depend on its seed and on nothing else."""

import numpy as np

from taskformer.datatools.miniature.scene import scene
from taskformer.datatools.miniature.taskonomy import _maps


def test_the_same_room_gives_the_same_maps_wherever_they_lie_in_memory():
    rng = np.random.default_rng(0)
    kept = []  # moves what is allocated next
    for seed in range(6):
        room = scene(64, 64, seed)
        first = _maps(room, 0, 0)
        for _ in range(8):
            kept.append(np.empty(rng.integers(1, 30000), np.uint8))
            again = _maps(room, 0, 0)
            for domain, values in first.items():
                np.testing.assert_equal(again[domain], values, err_msg=domain)
