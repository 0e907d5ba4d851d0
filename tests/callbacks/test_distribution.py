"""Evaluation on two processes: the numbers of one, whatever the number of images."""

import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from taskformer.data.datamodules.base import EvaluationBatches, collate
from taskformer.evaluation.per_image import ImageScores, write_rows
from taskformer.metrics.images import update_by_image
from taskformer.modules.evaluating import class_scores
from taskformer.tasks import PROTOCOLS, build_tasks

ROOT = Path(__file__).parents[2]
IMAGES, SIZE = 13, (24, 32)
SPECS = {
    "semseg": {"classes": [str(k) for k in range(5)]},
    "human_parts": {},
    "depth": {},
    "normals": {},
    "edges": {},
    "saliency": {},
    "reshading": {},
    "class_scene": {"classes": ["kitchen", "office", "bath"]},
}
TASKS = build_tasks(SPECS)


def sample(index):
    """One image's outputs and targets; number 4 has no label, and number 9 no salient pixel or edge."""
    generator = torch.Generator().manual_seed(index)
    outputs, targets = {}, {}
    for name, task in TASKS.items():
        target = task.invalid(*SIZE)
        outputs[name] = torch.randn(task.channels, *(SIZE if task.geometry != "image" else ()), generator=generator)
        values = torch.rand(target.shape, generator=generator)
        if target.dtype == torch.int64:
            values = (values * task.channels).long()
        elif name == "normals":
            values = torch.nn.functional.normalize(values - 0.5, dim=0)
        elif name == "edges":
            values = (values > 0.97).float()
        if index == 9 and name in ("saliency", "edges"):
            values = torch.zeros_like(values)
        targets[name] = target if index == 4 else values
    return {"image": torch.zeros(3, *SIZE), "targets": targets, "outputs": outputs, "meta": {"id": f"image {index}"}}


class Samples(torch.utils.data.Dataset):
    """Thirteen images."""

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return sample(index)


def evaluate(rank, processes, folder):
    """Score this process's share by every protocol; the first process saves what all have found."""
    warnings.simplefilter("ignore")  # what has no label says so
    torch.set_num_threads(1)
    if processes > 1:
        file = f"file://{folder}/meeting"
        distributed.init_process_group("gloo", init_method=file, rank=rank, world_size=processes)
        sampler = DistributedSampler(Samples(), processes, rank, shuffle=False)
    else:
        sampler = SequentialSampler(Samples())
    try:
        score(EvaluationBatches(sampler, 2, drop_last=False), rank, processes, folder)
    finally:
        if processes > 1:
            distributed.destroy_process_group()


def second_process(_, folder):
    """What the other of two processes does."""
    evaluate(1, 2, folder)


def score(batches, rank, processes, folder):
    """Score these images."""
    loader = DataLoader(Samples(), batch_sampler=batches, collate_fn=lambda samples: samples)
    images = ImageScores(loader, rank, processes)
    collections = {
        (protocol, name): task.metrics(protocol, "test") for protocol in PROTOCOLS for name, task in TASKS.items()
    }
    for samples in loader:
        outputs = {name: torch.stack([one["outputs"][name] for one in samples]) for name in TASKS}
        batch = collate(samples)
        scores = {}
        for (protocol, name), metrics in collections.items():
            target = TASKS[name].check(batch["targets"][name], outputs[name])
            if protocol == "standard":
                scores[name] = update_by_image(metrics, outputs[name], target)
            else:
                metrics.update(outputs[name], target)
        images.update(batch, scores)
    found = {}
    for key, metrics in collections.items():
        found[key] = {f"value {name}": value for name, value in metrics.compute().items()}
        for metric in metrics.values():
            with metric.sync_context():
                found[key] |= {name: getattr(metric, name).clone() for name in metric._defaults}
            found[key] |= {f"class {k}": torch.tensor(score) for k, score in enumerate(class_scores(metric))}
    rows = images.gather()
    if rank == 0:
        torch.save(found, f"{folder}/found{processes}.pt")
        write_rows(Path(folder) / f"images{processes}.csv", rows)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process and what two find, and the folder with their tables of images."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.spawn(second_process, (str(folder),), join=False, daemon=True)
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        evaluate(0, 1, str(folder))
        evaluate(0, 2, str(folder))
    torch.set_num_threads(threads)
    while not context.join():
        pass
    return torch.load(folder / "found1.pt"), torch.load(folder / "found2.pt"), folder


def test_two_processes_add_up_to_one(found):
    one, two, _ = found
    integers = 0
    assert one.keys() == two.keys()
    for key, states in one.items():
        assert states.keys() == two[key].keys()
        for name, state in states.items():
            if state.dtype == torch.int64:
                integers += state.numel()
                assert torch.equal(state, two[key][name]), (key, name)
            else:
                torch.testing.assert_close(two[key][name], state, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert integers > 1000  # the comparison was of something


def test_images_are_scored_alone_and_in_the_order_of_the_data_set(found):
    *_, folder = found
    assert (folder / "images1.csv").read_text() == (folder / "images2.csv").read_text()
    with (folder / "images2.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(dict.fromkeys(row["id"] for row in rows)) == [f"image {index}" for index in range(IMAGES)]
    values = {(row["id"], row["task"], row["metric"]): float(row["value"]) for row in rows}
    assert len(values) == len(rows)
    assert all(np.isnan(value) for (image, *_), value in values.items() if image == "image 4")
    # Written out for one image: depth's root mean squared error, and the share of right pixels.
    seven = sample(7)
    error = seven["outputs"]["depth"].clamp(min=0) - seven["targets"]["depth"]
    assert values["image 7", "depth", "rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-6)
    right = (seven["outputs"]["semseg"].argmax(0) == seven["targets"]["semseg"]).float().mean().item()
    assert values["image 7", "semseg", "pixel_accuracy"] == pytest.approx(right, rel=1e-6)


@pytest.mark.slow  # three processes that import Lightning, about 60 s
def test_taskformer_test_on_two_processes_gives_the_numbers_of_one(tmp_path, tiny):
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    for entry in (ROOT / "data" / "rooms").iterdir():
        if entry.stem != "test":
            (rooms / entry.name).symlink_to(entry)
    records = json.loads((ROOT / "data" / "rooms" / "test.json").read_text())
    (rooms / "test.json").write_text(json.dumps(records[:IMAGES]))
    # One image at a time and one thread, so that the network itself computes the same to the last bit.
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/baseline", "data/rooms")]
    flags = [*tiny, f"--data.root={rooms}", "--data.batch_size=1", "--results.per_image=true", "--ckpt=initial"]
    found = []
    for processes in (1, 2):
        several = ["--trainer.strategy=ddp", f"--trainer.devices={processes}", f"--name=on{processes}"]
        command = [sys.executable, "-m", "taskformer", "test", *configs, *flags, *several]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "replicates some samples" not in done.stderr
        run = tmp_path / "runs" / f"on{processes}"
        found.append((json.loads((run / "metrics.json").read_text())["test"], (run / "per_image.csv").read_text()))
    (one, images), (two, other_images) = found
    assert one["facts"]["images"] == two["facts"]["images"] == IMAGES
    assert images == other_images
    for task, scores in one["tasks"].items():
        assert two["tasks"][task] == pytest.approx(scores, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.slow  # two processes that import Lightning, about 40 s
def test_training_goes_on_after_validation_on_unequal_shares(tmp_path, tiny):
    # Three validation images one by one: a process has two batches, the other one.
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/mqtransformer", "data/rooms")]
    several = [
        "--trainer.strategy=ddp",
        "--trainer.devices=2",
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=2",
    ]
    command = [
        sys.executable,
        "-m",
        "taskformer",
        "fit",
        *configs,
        *tiny,
        *several,
        "--data.batch_size=1",
        "--name=ddp",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "runs" / "ddp" / "metrics.json").read_text())["val"]["epoch"] == 1
