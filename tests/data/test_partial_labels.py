"""Images that lack labels: they train what they have labels for, and nothing else depends on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from taskformer.cli import main
from taskformer.data import CombinedDataModule, FolderDataModule, Label
from taskformer.data.datamodules.base import collate
from taskformer.data.images import write_npy, write_png
from taskformer.modules import Baseline, MQTransformer
from taskformer.tasks import build_tasks

ROOT = Path(__file__).parents[2]
H, W = 32, 48
SPECS = {
    "semseg": {"classes": ["a", "b", "c"]},
    "depth": {},
    "normals": {},
    "edges": {},
    "saliency": {},
    "class_scene": {"classes": ["kitchen", "bath"]},
}
LABELS = {
    "semseg": Label("semseg/{id}.png", spec=SPECS["semseg"]),
    "depth": Label("depth/{id}.npy"),
    "normals": Label("normals/{id}.npy"),
    "edges": Label("edges/{id}.npy"),
    "saliency": Label("saliency/{id}.png"),
    "class_scene": Label("class_scene/{id}.npy", spec=SPECS["class_scene"]),
}
#: Tasks that each image has labels for.
HAVE = {
    "0": ["semseg"],
    "1": ["depth", "normals"],
    "2": list(SPECS),
    "3": [],
    "4": ["semseg", "edges", "class_scene"],
    "5": ["saliency", "depth"],
}
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def random_label(task, rng):
    if task == "class_scene":
        return np.array([0.3, 0.7])
    if task in ("semseg", "saliency"):
        return rng.integers(0, 2, (H, W), dtype=np.uint8)
    if task == "normals":
        return rng.normal(size=(3,)) / 3 + [0, 0, -1] + np.zeros((H, W, 3))
    return rng.random((H, W)).round() if task == "edges" else rng.uniform(1, 5, (H, W))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partial")
    rng = np.random.default_rng(0)
    for name, tasks in HAVE.items():
        write_png(folder / "img" / f"{name}.png", rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
        for task in tasks:
            path = folder / LABELS[task].file.replace("{id}", name)
            (write_npy if path.suffix == ".npy" else write_png)(path, random_label(task, rng))
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("\n".join(HAVE))
    return folder


def partial(root, **options):
    return FolderDataModule(str(root), "img/{id}.png", LABELS, {"train": "train.txt", "val": "val.txt"}, **options)


@pytest.fixture(scope="module", params=[MQTransformer, Baseline])
def model(request):
    torch.manual_seed(0)
    return request.param(SPECS, embed_dim=16, head_dim=8).eval()


def samples(root, names):
    dataset = partial(root).evaluation_dataset("val")
    return [dataset[dataset.ids.index(name)] for name in names]


@pytest.mark.parametrize("names", ["0", "01", "3", "013", "012345", "45"])
def test_losses_are_those_of_the_images_that_have_the_label(root, model, names):
    batch = collate(samples(root, names))
    with torch.no_grad():
        outputs = model(batch["image"])
        losses = model.compute_losses(outputs, batch["targets"])
        for name, task in model.tasks.items():
            labelled = [index for index, image in enumerate(names) if name in HAVE[image]]
            if labelled:
                expected = task.loss(outputs[name][labelled], batch["targets"][name][labelled])
                torch.testing.assert_close(losses[name], expected)
                assert losses[name] > 0
            else:
                assert losses[name].item() == 0
    total = sum(model.loss_weights[name] * losses[name] for name in model.tasks)
    torch.testing.assert_close(losses["total"], total)


def test_absent_tasks_get_no_gradient_and_the_others_do(root, model):
    batch = collate(samples(root, "01"))  # segmentation of one image, depth and normals of the other
    outputs = model(batch["image"])
    for output in outputs.values():
        output.retain_grad()
    model.compute_losses(outputs, batch["targets"])["total"].backward()
    moved = {name for name, output in outputs.items() if output.grad is not None and output.grad.abs().sum() > 0}
    assert moved == {"semseg", "depth", "normals"}
    assert (outputs["semseg"].grad[1] == 0).all()
    assert (outputs["depth"].grad[0] == 0).all()
    gradients = [parameter.grad for parameter in model.network.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    model.zero_grad()


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_results_are_those_of_each_task_on_its_own_images(root, model, batch_size):
    data = partial(root, batch_size=batch_size)
    Trainer(**QUIET).validate(model, data, verbose=False)
    for name, task in model.tasks.items():
        metrics = task.metrics()
        for sample in samples(root, [image for image, tasks in HAVE.items() if name in tasks]):
            with torch.no_grad():
                output = model(sample["image"][None])[name]
            metrics.update(output, sample["targets"][name][None])
        expected = {key: float(value) for key, value in metrics.compute().items()}
        assert model.results["val"][name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_a_mixture_of_disjoint_data_sets_is_the_same_as_one_set_with_partial_labels(root, model):
    only = {name: [image for image, tasks in HAVE.items() if name in tasks] for name in ("semseg", "depth")}
    parts = []
    for name, images in only.items():
        (root / f"{name}.txt").write_text("\n".join(images))
        lists = {"train": f"{name}.txt", "val": f"{name}.txt"}
        parts.append(FolderDataModule(str(root), "img/{id}.png", {name: LABELS[name]}, lists))
    Trainer(**QUIET).validate(model, partial(root), verbose=False)
    expected = {name: model.results["val"][name] for name in only}
    specs = {name: SPECS[name] for name in only}
    pair = type(model)(specs, embed_dim=16, head_dim=8)
    data = CombinedDataModule(parts, batch_size=3)
    assert data.task_specs == specs
    pair.network, pair.tasks = model.network, build_tasks(specs)  # the network that also has the other tasks
    Trainer(**QUIET).validate(pair, data, verbose=False)
    for name in only:
        assert pair.results["val"][name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.parametrize("config", ["mqtransformer", pytest.param("baseline", marks=pytest.mark.slow)])
def test_partial_labels_train_from_the_command_line(root, tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    labels = {name: {"file": label.file, "spec": label.spec} for name, label in LABELS.items()}
    options = {"root": str(root), "image": "img/{id}.png", "labels": labels, "batch_size": 2,
               "splits": {"train": "train.txt", "val": "val.txt"}}  # fmt: skip
    Path("data.yaml").write_text(yaml.safe_dump({"data": {"class_path": "FolderDataModule", "init_args": options}}))
    flags = [
        "--model.embed_dim=16", "--model.head_dim=8", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
        "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1", "--gallery.images=2",
        "--trainer.enable_progress_bar=false", "--trainer.detect_anomaly=true",
    ]  # fmt: skip
    main(["fit", f"--config={ROOT}/configs/model/{config}.yaml", "--config=data.yaml", "--name=run", *flags])
    weights = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(values.isfinite().all() for key, values in weights.items() if not key.startswith("metrics"))
