"""Freed memory stays with the process: page faults of arrays that come and go, in a process of its own."""

import platform
import subprocess
import sys

import pytest

from taskformer import cli

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
#: A forward pass of the whole network.
NETWORK = """
import resource, sys
import torch
from taskformer.memory import keep_freed_memory
from taskformer.modules import MQTransformer

tasks = {"semseg": {"classes": [str(i) for i in range(40)]}, "depth": {}, "normals": {}, "edges": {}}
model = MQTransformer(tasks, backbone="swin_tiny_patch4_window7_224").eval()
image = torch.zeros(1, 3, 448, 576)
if sys.argv[1] == "keep":
    keep_freed_memory()
with torch.no_grad():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        model(image)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")


def faults(program, mode):
    command = [sys.executable, "-c", program, mode]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@only_glibc
def test_freed_memory_is_kept():
    assert faults(ARRAYS, "keep") < 100
    assert faults(ARRAYS, "default") > 1000  # else this file is not needed any more


@only_glibc
@pytest.mark.slow
def test_a_network_that_predicts_fetches_no_memory():
    assert faults(NETWORK, "keep") < 30_000
    assert faults(NETWORK, "default") > 100_000


@pytest.mark.parametrize("command", ["fit", "search", "predict", "evaluate"])
def test_every_command_keeps_memory_before_it_works(command, monkeypatch):
    called = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: called.append("keep"))
    module = type("Module", (), {"main": staticmethod(lambda argv: called.append(argv[0]))})
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    cli.main([command])
    assert called == ["keep", command]


def test_elsewhere_nothing_happens(monkeypatch):
    import taskformer.memory

    monkeypatch.setattr(taskformer.memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.delattr(taskformer.memory.ctypes, "CDLL")
    taskformer.memory.keep_freed_memory()
