"""A small study, and what is kept of its runs, made up."""

import json
from pathlib import Path

import pytest
import yaml

from taskformer.studies import read_study

MODEL = {
    "model": {
        "class_path": "Baseline",
        "init_args": {"backbone": "lcnet_050", "loss_weights": {"semseg": 4.0, "depth": 4.0}, "embed_dim": 64},
    }
}
DATA = {"data": {"class_path": "RoomsDataModule", "init_args": {"tasks": ["semseg", "depth"]}}}
RECIPE = {"model": {"init_args": {"embed_dim": 32}}, "trainer": {"max_epochs": 6, "accelerator": "cpu"}}
STUDY = {
    "title": "Small",
    "base": ["data.yaml", "recipe.yaml"],
    "seeds": [0, 1],
    "reference": "plain",
    "single_tasks": "single",
    "arms": {
        "single": {"config": ["model.yaml"]},
        "plain": {"config": ["model.yaml"]},
        "wide": {"config": ["model.yaml"], "settings": {"model.init_args.embed_dim": 128}},
    },
}
HEADLINES = {"semseg": ("mIoU", "higher", "%"), "depth": ("rmse", "lower", "m")}


#: Scores of the whole split and of three images: ``{variant: [of each seed]}``.
WHOLE = {
    "single-semseg": [{"semseg": 0.4}, {"semseg": 0.6}],
    "single-depth": [{"depth": 0.5}, {"depth": 0.5}],
    "plain": [{"semseg": 0.5, "depth": 0.3}, {"semseg": 0.45, "depth": 0.55}],
    "wide": [{"semseg": 0.6, "depth": 0.5}, {"semseg": 0.55, "depth": 0.45}],
}
IMAGES = {
    "single-semseg": [{"semseg": [0.2, 0.4, 0.6]}, {"semseg": [0.4, 0.4, 0.7]}],
    "single-depth": [{"depth": [0.5, 0.4, 0.3]}, {"depth": [0.3, 0.6, 0.5]}],
    "plain": [
        {"semseg": [0.3, 0.4, 0.5], "depth": [0.4, 0.5, None]},
        {"semseg": [0.2, 0.5, 0.6], "depth": [0.5, 0.6, None]},
    ],
    "wide": [
        {"semseg": [0.5, 0.3, 0.7], "depth": [0.4, 0.4, None]},
        {"semseg": [0.3, 0.6, 0.8], "depth": [0.3, 0.6, None]},
    ],
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a study into the folder to work in, with what it lies on, and read it."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"model": MODEL, "data": DATA, "recipe": RECIPE}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))

    def written(**changes):
        content = {key: value for key, value in (STUDY | changes).items() if value is not None}
        Path("small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return read_study("small.yaml")

    return written


@pytest.fixture
def keep():
    """Write what is kept of a run, with made up scores of the whole split and of each image."""

    def kept(trial, values, images, split="test", **more):
        record = {
            "protocol": "standard",
            "tasks": {task: {HEADLINES[task][0]: value, "other": 0.5} for task, value in values.items()},
            "better": {task: {HEADLINES[task][0]: HEADLINES[task][1]} for task in values},
            "headline": {task: HEADLINES[task][0] for task in values},
            "units": {task: {HEADLINES[task][0]: HEADLINES[task][2]} for task in values},
            "facts": {"data": "rooms", "images": 3, "holdout": 0.0, "protocol": "standard"},
        }
        if images:
            record["images"] = {"ids": ["a", "b", "c"], **images}
        content = {
            "configuration": trial.configuration,
            "git_revision": "0123abc",
            "steps": 100,
            "seconds": 120.0,
            "processor_seconds": 60.0,
            "parameters": 1_000_000,
            "macs": 2_000_000_000,
            "split": split,
            "evaluations": {split: record},
        }
        path = Path("docs/studies/small/runs") / f"{trial.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content | more))

    return kept


@pytest.fixture
def study(write, keep):
    """The study with all its runs."""
    found = write()
    for trial in found.trials():
        name, place = trial.variant.name, found.seeds.index(trial.seed)
        keep(trial, WHOLE[name][place], IMAGES[name][place])
    return found


@pytest.fixture
def images():
    """The scores of single images, ``{variant: [{task: values} of each seed]}``."""
    return IMAGES
