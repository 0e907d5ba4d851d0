"""Checkpoints say how long the training to them took, also one that was stopped and went on."""

import pytest

from taskformer.callbacks import Stopwatch
from taskformer.callbacks import stopwatch as module


def test_the_time_of_all_parts_of_a_training_is_added_up(monkeypatch):
    now = {"at": (100.0, 3.0)}
    monkeypatch.setattr(module, "_clocks", lambda: now["at"])
    first = Stopwatch()
    assert first.state_dict() == {"seconds": 0.0, "processor_seconds": 0.0}
    first.on_train_start(None, None)
    now["at"] = (110.0, 18.0)
    saved = first.state_dict()
    assert saved == {"seconds": 10.0, "processor_seconds": 15.0}
    now["at"] = (115.0, 20.0)  # lost: the process is killed
    now["at"] = (7.0, 1.0)  # another process
    second = Stopwatch()
    second.load_state_dict(saved)
    assert second.state_dict() == saved
    second.on_train_start(None, None)
    now["at"] = (9.5, 3.0)
    assert second.state_dict() == pytest.approx({"seconds": 12.5, "processor_seconds": 17.0})
