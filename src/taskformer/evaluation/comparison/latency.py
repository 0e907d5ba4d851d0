"""How long networks take for one image, all measured in one process, in turns."""

from collections.abc import Mapping
from pathlib import Path

import torch

from taskformer.evaluation.benchmark.subjects import Subject
from taskformer.evaluation.benchmark.timing import Spread, clock_of, take_turns

#: How often each network is timed.
ROUNDS = 30


def measure_latency(
    folders: Mapping[str, Path], size: tuple[int, int] | None, device: torch.device
) -> dict[str, Spread]:
    """Time the inference of one image.

    Networks that take turns are compared rightly although the machine is faster at one time than at another.

    Args:
        folders: A run folder for each name.
        size: Height and width of the image; None: of the first one's training.
        device: Where the networks run.

    Returns:
        Seconds by name.
    """
    subjects: dict[str, Subject] = {}
    for name, folder in folders.items():
        subjects[name] = Subject.open(folder, name, size, device)
        size = subjects[name].size
    readings = take_turns([subject.inference(batch=1) for subject in subjects.values()], ROUNDS, clock_of(device))
    return {name: Spread.of([one.wall for one in found]) for name, found in zip(subjects, readings, strict=True)}
