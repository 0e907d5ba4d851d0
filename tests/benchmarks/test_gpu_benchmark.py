"""The GPU's benchmark, on a CPU and a few tiny steps: that it runs and counts, not how fast."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402 - benchmarks are scripts, not a package

TINY = ["--accelerator=cpu", "--backbone=lcnet_050", "--size", "32", "64", "--batch-size=2", "--workers=0",
        "--warmup=1", "--steps=2", "--model.embed_dim=16", "--model.num_queries=4"]  # fmt: skip


def test_rows_are_no_option_each_alone_all_and_all_but_each():
    assert gpu.ROWS["none"] == []
    assert gpu.ROWS["tf32"] == ["tf32"]
    assert gpu.ROWS["all"] == list(gpu.OPTIONS)
    assert {*gpu.ROWS["all but fused"], "fused"} == set(gpu.OPTIONS)
    assert len(gpu.ROWS) == 2 + 2 * len(gpu.OPTIONS)


def test_the_timer_counts_images_and_waiting_after_the_first_steps(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(gpu, "time", clock)
    timer, trainer = gpu.Timer(warmup=2), SimpleNamespace(global_step=0, world_size=3)
    for _ in range(5):
        clock.now += 2.0  # the batch comes
        timer.on_train_batch_start(trainer, None, None, 0)
        clock.now += 8.0
        trainer.global_step += 1
        timer.on_train_batch_end(trainer, None, None, {"image": [0, 0]}, 0)
    clock.now += 6.0  # work that was left
    timer.on_train_end(trainer, None)
    assert timer.images == 3 * 2 * 3
    assert timer.waited == 6.0
    assert timer.end - timer.start == 36.0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_it_runs_on_a_cpu(processes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "gpu.json"
    gpu.main([*TINY, f"--processes={processes}", "--rows", "none", "bf16", "channels_last", "--json", str(file)])
    found = json.loads(file.read_text())
    assert [row["row"] for row in found["rows"]] == ["none", "bf16", "channels_last"]
    assert all(row["images/s"] > 0 and 0 <= row["waiting"] < 1 and row["peak MiB"] > 0 for row in found["rows"])
    assert "channels_last" in capsys.readouterr().out
