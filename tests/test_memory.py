"""Freed memory stays with the process: page faults of arrays that come and go, in a process of its own."""

import platform
import subprocess
import sys

import pytest
from torch import nn

from taskformer.modules import MultiTaskModule

#: Arrays of 3, 30 and 90 MB: of a picture, and of a batch's features and logits.
ARRAYS = """
import resource, sys
from taskformer.memory import keep_freed_memory

def work():
    [b"x" * size for size in (3_000_000, 3_000_000, 30_000_000, 90_000_000)]

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(10):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""
#: A forward pass of a whole network, of which nothing is asked.
NETWORK = """
import resource
import torch
from taskformer.modules import MQTransformer

tasks = {"semseg": {"classes": [str(i) for i in range(40)]}, "depth": {}, "normals": {}, "edges": {}}
model = MQTransformer(tasks, backbone="swin_tiny_patch4_window7_224").eval()
image = torch.zeros(1, 3, 448, 576)
with torch.no_grad():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        model(image)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")


def faults(program, *mode):
    command = [sys.executable, "-c", program, *mode]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@only_glibc
def test_freed_memory_is_kept():
    assert faults(ARRAYS, "keep") < 100
    assert faults(ARRAYS, "default") > 1000  # else this file is not needed any more


@only_glibc
@pytest.mark.slow
def test_a_network_that_predicts_fetches_no_memory():
    assert faults(NETWORK) < 30_000


def test_whoever_has_a_network_keeps_memory(monkeypatch):
    called = []
    monkeypatch.setattr("taskformer.modules.base.keep_freed_memory", lambda: called.append("keep"))
    MultiTaskModule({"depth": {}}, nn.Conv2d(3, 1, kernel_size=1))
    assert called == ["keep"]


def test_elsewhere_nothing_happens(monkeypatch):
    import taskformer.memory

    monkeypatch.setattr(taskformer.memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.delattr(taskformer.memory.ctypes, "CDLL")
    taskformer.memory.keep_freed_memory()
