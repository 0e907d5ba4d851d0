"""What a model learns from teachers, against plain restatements."""

import copy
import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import taskformer
from taskformer.callbacks.averaging import MovingAverage
from taskformer.cli import main
from taskformer.data.predictions import saved
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.modules import AutoTaskFormer, Baseline
from taskformer.modules.autotaskformer_args import Space
from taskformer.modules.distillation import Distillation, Distiller

TASKS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}, "normals": {}}
LR = 0.05


def build(seed=0, tasks=TASKS, backbone="test_resnet", **options):
    torch.manual_seed(seed)
    return Baseline(tasks, embed_dim=8, head_dim=4, backbone=backbone, optimizer=lambda groups: SGD(groups, lr=LR),
                    lr_scheduler=None, **options)  # fmt: skip


def batches(count=3, labelled=1):
    """Batches of two images, of which the first ones have labels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        targets = {
            "semseg": torch.randint(3, (2, 32, 64), generator=generator),
            "depth": torch.rand(2, 1, 32, 64, generator=generator) + 0.5,
            "normals": F.normalize(torch.randn(2, 3, 32, 64, generator=generator), dim=1),
        }
        for target in targets.values():
            target[labelled:] = torch.nan if target.is_floating_point() else 255
        found.append({"image": torch.randn(2, 3, 32, 64, generator=generator), "targets": targets, "meta": {}})
    return found


def fit(module, folder, data=None, ckpt=None, epochs=1, **options):
    seed_everything(1, verbose=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False,
             "limit_val_batches": 0}  # fmt: skip
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", max_epochs=epochs, log_every_n_steps=1,
                      enable_checkpointing=False, **quiet, **options)  # fmt: skip
    trainer.fit(module, *[DataLoader(data or batches(), batch_size=None)] * 2, ckpt_path=ckpt, weights_only=True)
    return trainer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A trained model's checkpoint."""
    folder = tmp_path_factory.mktemp("teacher")
    fit(build(seed=5, backbone="test_vit"), folder, batches(labelled=2)).save_checkpoint(folder / "teacher.ckpt")
    return str(folder / "teacher.ckpt")


def plain_step(model, network, projection, optimizer, batch, teacher):
    """A step of the losses that the settings mean, in plain torch."""
    settings = model.distillation
    with torch.no_grad():
        said = teacher(batch["image"])
    features = network.backbone(batch["image"])
    outputs = network.head(features, (32, 64))
    names = settings.tasks or TASKS
    total = 0.0
    for name, task in model.tasks.items():
        target = batch["targets"][name].clone()
        if name in names and not settings.labels:
            target[:] = torch.nan if target.is_floating_point() else 255
        if name in names and settings.confidence is not None:
            for image in range(2):
                if (target[image] == 255).all() or target[image].isnan().all():
                    target[image] = sure(task, said[name][image], settings.confidence)
        loss = task.loss(outputs[name], target)
        if name in names:
            loss = loss + settings.weight * task.distance(outputs[name], said[name])
        total = total + model.loss_weights[name] * loss
    if projection is not None:
        with torch.no_grad():
            theirs = teacher.network.backbone(batch["image"])[-1]
        own = projection(features[-1])
        total = total + settings.feature_weight * (1 - F.cosine_similarity(own, theirs, dim=1).mean())
    optimizer.zero_grad()
    total.backward()
    optimizer.step()


def sure(task, output, confidence):
    if task.name == "depth":
        return output.clamp(min=0)
    if task.name == "normals":
        return F.normalize(output, dim=0)
    probability, label = output.softmax(0).max(0)
    return torch.where(probability >= confidence, label, 255)


SETTINGS = [
    {},
    {"weight": 0.5, "tasks": ["depth", "semseg"], "labels": False},
    {"weight": 0.0, "confidence": 0.36},
    {"confidence": 0.0, "labels": False, "tasks": ["normals"]},
    {"weight": 0.0, "feature_weight": 2.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_are_those_of_a_plain_loop(settings, teacher, tmp_path):
    model = build(distillation=Distillation(teacher, **settings))
    network, source = copy.deepcopy(model.network), taskformer.load(teacher)
    before = copy.deepcopy(source.state_dict())
    if settings.get("feature_weight"):  # the projection is made when the training begins
        projections = []
        made = model.load_teachers
        model.load_teachers = lambda: (made(), projections.append(copy.deepcopy(model.scaffold["features"])))
    fit(model, tmp_path)
    projection = projections[0] if settings.get("feature_weight") else None
    learnable = [*network.parameters(), *(projection.parameters() if projection else ())]
    optimizer = SGD(learnable, lr=LR)
    network.train()
    for batch in batches():
        plain_step(model, network, projection, optimizer, batch, source)
    for (name, value), expected in zip(model.network.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4, msg=name)
    if projection:
        torch.testing.assert_close(model.scaffold["features"].weight, projection.weight, atol=1e-5, rtol=1e-4)
    after = model.distiller.teacher.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("network."))


def test_a_weight_of_0_is_no_teacher_bit_for_bit(teacher, tmp_path):
    plain, taught = build(), build(distillation=Distillation(teacher, weight=0.0))
    fit(plain, tmp_path)
    fit(taught, tmp_path)
    assert taught.distiller is None
    ours, theirs = taught.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert taught.recipe == plain.recipe


def test_with_a_teacher_the_recipe_is_another_and_says_which(teacher, tmp_path):
    model = build(distillation={"teacher": teacher, "tasks": ["depth"]})
    fit(model, tmp_path)
    assert model.recipe["distillation"] == asdict(Distillation(teacher, ["depth"]))


def test_images_without_labels_teach_only_with_a_teacher(teacher, tmp_path):
    unlabelled = batches(labelled=0)
    for settings, moves in ((Distillation(), False), (Distillation(teacher), True)):
        model = build(distillation=settings)
        before = copy.deepcopy(list(model.network.parameters()))
        fit(model, tmp_path, unlabelled)
        assert moves == any(not torch.equal(*pair) for pair in zip(before, model.network.parameters(), strict=True))


def test_saved_predictions_are_losses_and_pseudo_labels(teacher):
    (batch,) = batches(1)
    outputs = {name: value.detach() for name, value in build().eval()(batch["image"]).items()}
    tasks = build().tasks
    batch["targets"][saved("depth")] = torch.full((2, 1, 32, 64), 2.0)
    network = build().network
    distiller = Distiller(Distillation("saved", ["depth"], weight=0.5), network, tasks)
    taught = distiller.teach(batch)
    assert torch.equal(taught["targets"]["depth"].nan_to_num(), batch["targets"]["depth"].nan_to_num())
    expected = {"depth": 0.5 * (outputs["depth"] - 2.0).abs().mean()}
    torch.testing.assert_close(distiller.distances(outputs, taught), expected)
    filled = Distiller(Distillation("saved", ["depth"], confidence=0.0), network, tasks).teach(batch)["targets"]
    assert torch.equal(filled["depth"][0], batch["targets"]["depth"][0])
    assert (filled["depth"][1] == 2.0).all()
    with pytest.raises(ConfigError, match=r"no predictions of semseg, normals are loaded; give their folder as data"):
        Distiller(Distillation("saved"), network, tasks).teach(batch)


def test_a_timm_encoder_teaches_features_beside_a_run_that_teaches_tasks(teacher):
    (batch,) = batches(1)
    model = build()
    settings = Distillation(teacher, encoder="test_vit2", encoder_weights="random", feature_weight=1.0,
                            feature_level=0, encoder_level=0, precision="bfloat16")  # fmt: skip
    distiller = Distiller(settings, model.network, model.tasks)
    with distiller.watching():
        outputs = model(batch["image"])
    assert set(distiller.distances(outputs, distiller.teach(batch))) == {*TASKS, "features"}
    assert not any(p.requires_grad for p in distiller.features.guide.backbone.parameters())


def test_teachers_are_in_no_checkpoint_and_the_training_goes_on_exactly(teacher, tmp_path):
    settings = Distillation(teacher, feature_weight=1.0, feature_level=1)
    whole = build(distillation=settings)
    fit(whole, tmp_path / "whole", epochs=2)
    half = build(distillation=settings)
    fit(half, tmp_path / "half").save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    others = {name for name in state if not name.startswith(("network.", "metrics."))}
    assert others == {"train_size", "scaffold.features.weight", "scaffold.features.bias"}
    rest = build(seed=3, distillation=settings)
    fit(rest, tmp_path / "rest", epochs=2, ckpt=tmp_path / "half.ckpt")
    ours, theirs = rest.state_dict(), whole.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # What was learnt is loaded without the teacher.
    image = batches(1)[0]["image"]
    loaded = taskformer.load(tmp_path / "half.ckpt")
    torch.testing.assert_close(loaded(image), half.eval()(image))
    assert loaded.distillation == settings
    assert len(loaded.scaffold) == 0


def test_a_supernets_sub_networks_all_learn_from_the_teacher(teacher, tmp_path):
    space = Space("custom", embed_dims=[16, 32], depths=[1, 2], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=16)
    model = AutoTaskFormer(TASKS, space, image_size=(32, 64), distillation=Distillation(teacher, labels=False),
                           sampling={"sampler": "sandwich", "distill": 0.25}, drop_path=0.0)  # fmt: skip
    (batch,) = batches(1)
    model.distiller = Distiller(model.distillation, model.network, model.tasks)
    model.log_dict = model.log = lambda *args, **kwargs: None
    model.eval().training_step(batch, 0)
    found, said = model.train_losses, model.distiller.teach(batch)["teacher"]
    outputs = model.network(batch["image"], model.sample(0)[0])
    for name, task in model.tasks.items():  # what is shown are the losses of the largest
        torch.testing.assert_close(found[name], task.distance(outputs[name], said[name]).detach())
    settings = Distillation(teacher, feature_weight=1.0)
    with pytest.raises(ConfigError, match="has no encoder with feature maps but is a Supernet"):
        Distiller(settings, model.network, model.tasks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, r"distillation.weight must be in \[0, inf\)"),
        ({"confidence": 1.5}, r"distillation.confidence must be in \[0, 1\]"),
        ({"feature_weight": 1.0}, "needs distillation.encoder, or a run as teacher"),
        ({"teacher": "saved", "confidence": 0.5}, "saved predictions have no confidence; set .* to 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Distillation(**settings)


def test_teachers_that_cannot_teach_are_refused(teacher):
    other = {"semseg": {"classes": ["x", "y", "z"]}, "depth": {}}
    model = build(tasks=other)
    with pytest.raises(ConfigError, match=r"semseg has other classes or channels for the teacher .*distillation.tasks"):
        Distiller(Distillation(teacher), model.network, model.tasks)
    with pytest.raises(UnknownNameError, match=r"task of both the model and its teacher .*'dept' .did you mean"):
        Distiller(Distillation(teacher, ["dept"]), model.network, model.tasks)
    model = build(tasks={"edges": {}})
    with pytest.raises(ConfigError, match=r"knows semseg, depth, normals and nothing of edges; choose another"):
        Distiller(Distillation(teacher), model.network, model.tasks)
    with pytest.raises(ConfigError, match=r"a task is called 'features'"):
        build(tasks={"features": {"type": "depth"}}, distillation=Distillation(teacher, feature_weight=1.0))


def test_a_copy_of_a_model_shares_its_teacher(teacher, tmp_path):
    model = build(distillation=Distillation(teacher))
    fit(model, tmp_path, batches(1))
    assert copy.deepcopy(model).distiller is model.distiller


def test_the_average_of_weights_has_a_place_for_what_features_need(teacher, tmp_path):
    settings = Distillation(teacher, feature_weight=1.0)
    plain, averaged = build(distillation=settings), build(distillation=settings)
    fit(plain, tmp_path)
    fit(averaged, tmp_path, callbacks=[MovingAverage(decay=0.0)])  # of the last step alone
    ours, theirs = averaged.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


RANKS = """
import json, sys
sys.path.insert(0, {folder!r})
import torch
from test_distillation import batches, build, fit
from taskformer.modules.distillation import Distillation
model = build(distillation=Distillation({teacher!r}, feature_weight=1.0, confidence=0.3))
data = batches(4, labelled=1)
devices = int(sys.argv[1])
options = {{"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}} | json.loads(sys.argv[2])
trainer = fit(model, {out!r}, data, **options)
values = {{name: value.flatten()[:3].tolist() for name, value in model.named_parameters()}}
open(f"{out}/{{devices}}-{{trainer.global_rank}}.json", "w").write(json.dumps(values))
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_processes_learn_the_same_from_teachers(teacher, tmp_path, precision):
    script = tmp_path / "train.py"
    script.write_text(RANKS.format(folder=str(__file__).rpartition("/")[0], teacher=teacher, out=str(tmp_path)))
    subprocess.run([sys.executable, script, "2", json.dumps({"precision": precision})], check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"2-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert "scaffold.features.weight" in ranks[0]


@pytest.mark.slow
def test_features_are_learnt_by_a_compiled_network_too(teacher, tmp_path):
    settings = Distillation(teacher, feature_weight=1.0)
    plain, compiled = build(distillation=settings), build(distillation=settings, compile=True)
    for model in (plain, compiled):  # a single step: later ones enlarge differences of rounding
        fit(model, tmp_path, batches(count=1))
    for (name, value), expected in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_run_teaches_from_its_checkpoint_and_from_its_predictions(tiny, small_rooms, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "said"
    flags = [*tiny, "--data.tasks=[semseg,depth,normals]", f"--runs_dir={runs}"]
    main(
        ["fit", "--model=Baseline", "--data=RoomsDataModule", "--model.backbone=test_resnet", "--name=teacher", *flags]
    )
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for path in sorted((small_rooms / "image").iterdir())[20:25]:
        (photographs / path.name).symlink_to(path)
    main(["predict", str(runs / "teacher"), str(photographs), "--out", str(out)])
    config = tmp_path / "mixture.yaml"
    parts = [
        {"class_path": "RoomsDataModule", "init_args": {"root": str(small_rooms), "tasks": ["semseg", "depth"]}},
        {"class_path": "UnlabelledFolder", "init_args": {"root": str(photographs), "predictions": str(out)}},
    ]
    mixture = {"class_path": "CombinedDataModule", "init_args": {"parts": parts}}
    config.write_text(json.dumps({"data": mixture}))
    for name, teacher in (("run", str(runs / "teacher")), ("saved", "saved")):
        main(["fit", f"--config={config}", "--model=Baseline", "--model.backbone=test_resnet", f"--name={name}",
              f"--model.distillation.teacher={teacher}", "--model.distillation.confidence=0", f"--runs_dir={runs}",
              *[flag for flag in tiny if "data.root" not in flag]])  # fmt: skip
        recipe = taskformer.load(runs / name).recipe
        assert recipe["distillation"]["teacher"] == teacher
        main(["test", str(runs / name)])
        assert set(json.loads((runs / name / "metrics.json").read_text())["test"]["tasks"]) == {"semseg", "depth"}
