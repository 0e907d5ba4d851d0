"""AutoTaskFormer's training: what is sampled when, what is learned from what, and that runs can be used afterwards."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import taskformer
from taskformer.cli import main
from taskformer.errors import ConfigError, UnknownNameError, WeightsError
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet
from taskformer.models.autotaskformer.autoformer import export_autoformer
from taskformer.modules import AutoTaskFormer
from taskformer.modules.autotaskformer_args import Head, Sampling, Space
from taskformer.modules.sampling import sample, split_probability

ROOT = Path(__file__).parent.parent.parent
SAMPLERS = ("uniform", "sandwich", "complexity_aware", "grow")
TASKS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}, "normals": {}}
SPACE = {
    "preset": "custom", "embed_dims": [8, 16], "depths": [1, 2], "mlp_ratios": [2.0, 3.0], "num_heads": [1, 2],
    "head_dim": 8,
}  # fmt: skip
TOY = {"image_size": (32, 48), "drop_path": 0.0}


def toy_space(**changes):
    return Space(**SPACE | changes)


def build(tasks=tuple(TASKS), space=SPACE, sampling=Sampling(), **changes):  # noqa: B008
    torch.manual_seed(0)
    options = TOY | {"optimizer": lambda parameters: SGD(parameters, lr=0.05), "lr_scheduler": None} | changes
    return AutoTaskFormer({name: TASKS[name] for name in tasks}, space, sampling=sampling, **options)


def samples(count):
    """Images with a label at every pixel, so that the mean over a batch is the mean over its parts."""
    generator = torch.Generator().manual_seed(0)

    def one():
        normals = torch.randn(3, 32, 48, generator=generator)
        targets = {
            "semseg": torch.randint(0, 3, (32, 48), generator=generator),
            "depth": torch.rand(1, 32, 48, generator=generator) + 0.5,
            "normals": normals / normals.norm(dim=0),
        }
        return {"image": torch.randn(3, 32, 48, generator=generator), "targets": targets, "meta": {}}

    return [one() for _ in range(count)]


def trainer(folder, **options):
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
                "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 1}  # fmt: skip
    return Trainer(default_root_dir=folder, **defaults | options)


def loader(count=4, batch_size=2):
    return DataLoader(samples(count), batch_size=batch_size)


@pytest.fixture(scope="module")
def flags(small_rooms):
    """A toy supernet on a few rooms."""
    space = {name: json.dumps(value) for name, value in SPACE.items() if name != "preset"}
    return [
        f"--config={ROOT}/configs/data/rooms.yaml",
        "--model=AutoTaskFormer",
        "--model.space.preset=custom",
        *(f"--model.space.{name}={value}" for name, value in space.items()),
        "--model.image_size=[128,160]",
        "--model.drop_path=0.0",
        "--model.patch_size=32",
        f"--data.root={small_rooms}",
        "--data.tasks=[semseg,depth,normals,edges]",
        "--data.batch_size=4",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--gallery.images=1",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("complexity_aware", "grow") else name for name in SAMPLERS],
)
def test_a_supernet_trains_and_is_tested_from_the_command_line(sampler, flags, folder, monkeypatch):
    monkeypatch.chdir(folder)
    sampling = [f"--model.sampling.sampler={sampler}", "--model.sampling.sharing_warmup=0.5"]
    main(["fit", *flags, *sampling, f"--name={sampler}"])
    main(["test", f"--config=runs/{sampler}/config.yaml", f"--ckpt_path=runs/{sampler}/checkpoints/best.ckpt"])
    header = (folder / "runs" / sampler / "logs" / "fit" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/semseg/mIoU", "val_smallest/loss", "val_median/depth/rmse"} <= set(header)
    model = taskformer.load(folder / "runs" / sampler)
    assert isinstance(model.network, Supernet)
    assert model.predict_image(torch.zeros(100, 120, 3, dtype=torch.uint8).numpy())["depth"].shape == (1, 100, 120)
    saved = torch.load(folder / "runs" / sampler / "checkpoints" / "last.ckpt", weights_only=True)
    expected = {"sampler": sampler, "distill": 0.5, "divide": False, "sandwich_from": 0.0, "sharing_warmup": 0.5}
    assert saved["hyper_parameters"]["sampling"] == expected


def test_a_sub_network_inherits_its_weights_and_trains_alone(flags, folder, monkeypatch):
    monkeypatch.chdir(folder)
    main(["fit", *flags, "--name=super"])
    supernet = taskformer.load(folder / "runs" / "super").network
    architecture = supernet.space.random(Random(0))
    file = folder / "arch.json"
    file.write_text(architecture.to_json())
    inherit = ["--model.weights=runs/super/checkpoints/best.ckpt", f"--model.architecture={file}"]
    frozen = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.0"]
    main(["fit", *flags, *inherit, *frozen, "--name=sub"])
    main(["fit", *flags, *inherit, "--name=tuned"])
    file.unlink()  # a run does not depend on it
    subnet = taskformer.load(folder / "runs" / "sub")
    assert sum(p.numel() for p in subnet.network.parameters()) == supernet.count_parameters(architecture)
    image = torch.randn(1, 3, 128, 160)
    for name, expected in supernet(image, architecture).items():
        torch.testing.assert_close(subnet.network(image)[name], expected, atol=1e-5, rtol=1e-5)
    assert "val_smallest" not in (folder / "runs" / "sub" / "logs" / "fit" / "metrics.csv").read_text()
    tuned = taskformer.load(folder / "runs" / "tuned")
    assert not torch.equal(tuned.network.stem.pos_embed, subnet.network.stem.pos_embed)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_is_a_function_of_seed_and_step(sampler):
    space = SearchSpace((8, 16), (2, 3, 5), (2.0, 3.0), (1, 2), num_tasks=3, sharing="tree", copies=3)

    def cost(architecture):
        return architecture.depth * architecture.embed_dim

    def draw(seed, step):
        return sample(sampler, space, cost, seed, step, step / 100, 0.0)

    torch.rand(3)
    first = [draw(0, step) for step in range(60)]
    Random(5).random()
    assert [draw(0, step) for step in reversed(range(60))] == first[::-1]
    assert [draw(1, step) for step in range(60)] != first
    assert len({step[-1] for step in first}) > 30
    assert all(architecture in space for step in first for architecture in step)


def test_a_module_samples_by_the_seed_of_its_run(tmp_path, monkeypatch):
    drawn = []
    for seed in (3, 3, 4):
        model = build()
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(model, loader(), loader())
        drawn.append([model.sample(step) for step in range(20)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_sandwich_is_the_extremes_and_one_more():
    space = SearchSpace.preset("tiny", 3, "binary")
    largest, smallest, other = sample("sandwich", space, len, 0, 7, 0.5, 0.2)
    assert (largest, smallest) == (space.largest(), space.smallest())
    assert other in space
    early = sample("sandwich", space, len, 0, 7, 0.1, 0.2)
    assert [one.sharing for one in early] == [(), (), ()]
    assert (early[0].embed_dim, early[0].depth) == (240, 14)


def test_complexity_aware_steps_have_similar_costs():
    space = SearchSpace.preset("tiny")

    def cost(architecture):
        return architecture.depth * architecture.embed_dim**2

    def costs(sampler):
        return torch.tensor([float(cost(sample(sampler, space, cost, 0, step, 0.5, 0)[0])) for step in range(800)])

    aware, uniform = costs("complexity_aware"), costs("uniform")
    assert aware.diff().abs().mean() < 0.6 * uniform.diff().abs().mean()
    assert aware.mean().item() == pytest.approx(uniform.mean().item(), rel=0.03)
    assert aware.std().item() == pytest.approx(uniform.std().item(), rel=0.15)


def test_growing_unlocks_the_space_bit_by_bit():
    space = SearchSpace.preset("tiny")
    seen = {
        progress: {sample("grow", space, len, 0, step, progress, 0)[0].embed_dim for step in range(50)}
        for progress in (0.0, 0.25, 0.5, 1.0)
    }
    assert seen == {0.0: {192}, 0.25: {192, 216}, 0.5: {192, 216, 240}, 1.0: {192, 216, 240}}
    assert sample("grow", space, len, 0, 0, 0.0, 0)[0] == space.smallest()


def test_the_probability_of_parting_rises_after_the_warm_up():
    assert [split_probability(p, 0.2) for p in (0, 0.1, 0.2, 0.3, 0.4, 1)] == pytest.approx([0, 0, 0, 0.25, 0.5, 0.5])
    assert split_probability(0.0, 0.0) == 0.5
    assert split_probability(0.9, 1.0) == 0


def test_in_the_warm_up_everything_is_shared_and_then_the_copies_start_from_it(tmp_path):
    model = build(space=toy_space(depths=[2]), sampling=Sampling(sharing_warmup=0.5))
    seen = []

    step = model.training_step

    def training_step(batch, batch_idx):
        copies = model.network.units
        same = all(
            torch.equal(a, b)
            for unit in copies
            for copy in unit
            for a, b in zip(copy.parameters(), unit[0].parameters(), strict=True)
        )
        seen.append((bool(model.sample(model.global_step)[0].sharing), same))
        return step(batch, batch_idx)

    model.training_step = training_step
    trainer(tmp_path, max_epochs=4, limit_val_batches=0).fit(model, loader(count=10), loader())
    shared, same = zip(*seen, strict=True)
    assert not any(shared[:10])  # 20 steps in all
    assert any(shared[11:])
    assert same[0]
    assert not any(same[1:10])  # the shared copy trains alone
    assert same[10]
    assert not same[-1]


def test_validation_in_the_warm_up_measures_what_has_been_trained(tmp_path):
    model = build(sampling=Sampling(sharing_warmup=1.0))
    trainer(tmp_path).fit(model, loader(), loader())
    image = torch.randn(2, 3, 32, 48)
    plain = model.space.largest().to_dict() | {"sharing": []}
    torch.testing.assert_close(model.network(image), model.network(image, Architecture.from_dict(plain)))
    assert set(model.results) == {"val", "val_smallest", "val_median"}
    assert model.results["val"] != model.results["val_smallest"]


def test_the_loss_is_the_mean_over_the_sub_networks(tmp_path):
    model = build(sampling=Sampling("sandwich", distill=0.25, sharing_warmup=0.0))
    logged = []
    model._log_losses = lambda stage, losses, size: logged.append({k: v.item() for k, v in losses.items()})
    model.total_steps = 10.0
    model.trainer = type("Still", (), {"global_step": 3})
    batch = next(iter(loader()))
    loss = model.training_step(batch, 0)
    largest, *others = model.sample(3)
    with torch.no_grad():
        teacher = model.network(batch["image"], largest)
        total = model.compute_losses(teacher, batch["targets"])["total"]
        for architecture in others:
            student = model.network(batch["image"], architecture)
            kl = teacher["semseg"].softmax(1) * (teacher["semseg"].log_softmax(1) - student["semseg"].log_softmax(1))
            distance = (student["depth"] - teacher["depth"]).abs().mean()
            cosine = torch.cosine_similarity(student["normals"], teacher["normals"]).mean()
            guided = kl.sum(1).mean() + distance + 10 * (1 - cosine)
            total += 0.75 * model.compute_losses(student, batch["targets"])["total"] + 0.25 * guided
    torch.testing.assert_close(loss, total / 3)
    assert logged[0]["total"] == pytest.approx(loss.item())


@pytest.mark.parametrize(("count", "sizes"), [(8, (3, 3, 2)), (3, (1, 1, 1)), (2, (1, 1))])
def test_a_divided_batch_gives_each_sub_network_images_of_its_own(count, sizes):
    model = build(sampling=Sampling("sandwich", distill=0.0, divide=True, sharing_warmup=0.0))
    model._log_losses = lambda *_: None
    model.total_steps = 10.0
    model.trainer = type("Still", (), {"global_step": 3})
    batch = next(iter(loader(count, count)))
    loss = model.training_step(batch, 0)
    expected, first = 0, 0
    for architecture, size in zip(model.sample(3), sizes, strict=False):
        one, first = slice(first, first + size), first + size
        outputs = model.network(batch["image"][one], architecture)
        targets = {name: target[one] for name, target in batch["targets"].items()}
        expected += model.compute_losses(outputs, targets)["total"] / len(sizes)
    torch.testing.assert_close(loss, expected)


def test_a_late_sandwich_begins_with_one_sub_network_at_a_time():
    late = build(sampling=Sampling("sandwich", sandwich_from=0.75))
    uniform = build(sampling=Sampling("uniform"))
    sandwich = build(sampling=Sampling("sandwich"))
    for model in (late, uniform, sandwich):
        model.total_steps = 40.0
    assert [late.sample(step) for step in range(30)] == [uniform.sample(step) for step in range(30)]
    assert [late.sample(step) for step in range(30, 40)] == [sandwich.sample(step) for step in range(30, 40)]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"sampler": "sandwich", "divide": True}, "set sampling.distill to 0, got 0.5"),
        ({"sampler": "uniform", "divide": True, "distill": 0.0}, "are the sandwich's, got the sampler 'uniform'"),
        ({"sampler": "grow", "sandwich_from": 0.5}, "are the sandwich's, got the sampler 'grow'"),
        ({"sampler": "sandwich", "sandwich_from": 1.5}, "sampling.sandwich_from"),
    ],
)
def test_settings_of_the_sandwich_that_contradict_each_other_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        Sampling(**settings)


def test_earlier_layers_learn_more_slowly():
    model = build(layer_decay=0.5)
    groups = model.configure_optimizers().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    expected = {"stem.": 0.125, "units.0.": 0.25, "units.1.": 0.25, "units.2.": 0.5, "units.3.": 0.5,
                "norm.": 1.0, "heads.": 1.0}  # fmt: skip
    for name, parameter in model.network.named_parameters():
        (rate,) = (rate for prefix, rate in expected.items() if name.startswith(prefix))
        assert rates[id(parameter)] == pytest.approx(0.05 * rate), name


def test_autoformers_weights_fill_every_copy(tmp_path):
    torch.manual_seed(1)
    source = AutoTaskFormer(
        {"imagenet": {"type": "classification", "classes": ["a", "b"]}},
        space=toy_space(head_dim=64),
        image_size=(32, 32),
    ).network
    file = tmp_path / "supernet.pth"
    torch.save({"model": export_autoformer(source), "epoch": 3, "args": argparse.Namespace(lr=1)}, file)
    network = build(space=toy_space(head_dim=64, sharing="grouped", copies=2), weights=str(file)).network
    for unit, original in zip(network.units, source.units, strict=True):
        for copy in unit:
            for key, value in copy.state_dict().items():
                torch.testing.assert_close(value, original[0].state_dict()[key])


def test_a_sub_network_is_any_that_fits_the_weights():
    architecture = Architecture(12, 1, (2.5,), (2,))
    model = build(architecture=architecture.to_json())
    assert model.network.architecture == architecture
    with pytest.raises(ConfigError, match="supernet holds 16"):
        build(architecture=Architecture(32, 1, (2.0,), (1,)).to_json())


def test_the_single_task_reference_takes_the_same_file():
    split = Architecture(12, 1, (2.5,), (2,), ((1, 2, 3),) * 2)
    torch.manual_seed(0)
    model = AutoTaskFormer({"depth": {}}, toy_space(), **TOY, architecture=split.to_json())
    assert model.network.architecture == Architecture(12, 1, (2.5,), (2,))
    assert model(torch.randn(1, 3, 32, 48))["depth"].shape == (1, 1, 32, 48)


DECODER = {"num_queries": [2, 4], "num_scales": [1, 4], "decoder_widths": [8, 16]}
QUERY = {"space": toy_space(**DECODER), "head": Head("query")}


def test_the_query_decoder_trains_with_the_transformer_and_is_taken_over(tmp_path):
    model = build(**QUERY, sampling=Sampling("sandwich"))
    assert set(model.space.decoders()) == {(n, s, c) for n in (2, 4) for s in (1, 4) for c in (8, 16)}
    assert model.network.heads.dense.queries.shape == (3, 4, 16)  # as large as the largest choice
    before = model.network.heads.dense.queries.clone()
    trainer(tmp_path, enable_checkpointing=True).fit(model, loader(), loader())
    assert (model.network.heads.dense.queries != before).all()
    assert {"val", "val_smallest", "val_median"} == set(model.results)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    again = AutoTaskFormer.load_from_checkpoint(checkpoint, map_location="cpu")
    assert again.space == model.space
    chosen = model.space.smallest()
    assert chosen.decoder == (2, 1, 8)
    subnet = build(**QUERY, weights=str(checkpoint), architecture=chosen.to_json())
    image = torch.randn(1, 3, 32, 48)
    for task, value in again.eval().network(image, chosen).items():
        torch.testing.assert_close(subnet.eval().network(image)[task], value, atol=1e-5, rtol=1e-5)


def test_autoformers_space_may_choose_the_decoder_too():
    model = AutoTaskFormer(TASKS, Space("tiny", **DECODER), Head("query"), image_size=(32, 32))
    assert (model.space.embed_dims, model.space.decoder_widths) == ((192, 216, 240), (8, 16))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"space": toy_space(num_queries=[2, 4])}, ConfigError, "sizes of the head 'query'"),
        (QUERY | {"head": Head("query", 8)}, ConfigError, "weights hold width=8, an architecture needs 16"),
        ({"space": toy_space(preset="tiny")}, ConfigError, "the space 'tiny' has its own embed_dims, depths"),
        ({"space": toy_space(num_heads=None)}, ConfigError, r"the custom space needs space\.num_heads"),
        ({"space": "custom"}, ConfigError, r"space is a group of settings, got 'custom': it is space\.preset now"),
        ({"space": {"depth": [1]}}, UnknownNameError, r"unknown setting of space 'depth' \(did you mean 'depths'"),
        ({"architecture": "nowhere.json"}, ConfigError, "cannot read the architecture 'nowhere.json'"),
        ({"architecture": '{"depth": 1}'}, ConfigError, "lacks embed_dim"),
        ({"weights": "nowhere.ckpt"}, WeightsError, "no file 'nowhere.ckpt'"),
        ({"sampling": {"distill": 2.0}}, ConfigError, r"sampling\.distill must be in \[0, 1\], got 2.0"),
        ({"sampling": {"sharing_warmup": -1.0}}, ConfigError, r"sampling\.sharing_warmup must be in \[0, 1\]"),
        ({"layer_decay": 0.0}, ConfigError, r"layer_decay must be in \(0, 1\], got 0.0"),
        ({"drop_path": 1.0}, ConfigError, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"image_size": (0, 8)}, ConfigError, r"image_size must be in \[1, inf\), got \(0, 8\)"),
        ({"patch_size": 0}, ConfigError, "patch_size must be in"),
        ({"head": {"width": 0}}, ConfigError, r"head\.width must be in"),
    ],
)
def test_mistakes_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        build(**changes)


def test_a_supernets_positions_serve_another_image_size(tmp_path):
    source = build()
    file = tmp_path / "supernet.ckpt"
    torch.save(
        {
            "taskformer_class": "taskformer.modules.autotaskformer.AutoTaskFormer",
            "hyper_parameters": {"patch_size": 16, "image_size": (32, 48)},
            "state_dict": source.state_dict(),
        },
        file,
    )
    network = build(weights=str(file), image_size=(64, 96)).network
    old, new = source.network.stem.pos_embed, network.stem.pos_embed
    maps = old[:, 1:].transpose(1, 2).unflatten(2, (2, 3))
    expected = F.interpolate(maps, (4, 6), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(new[:, 1:], expected)
    torch.testing.assert_close(new[:, :1], old[:, :1])


#: The settings of a checkpoint, or of a run's config.yaml, from before there were groups.
FLAT = {
    "space": "custom", "embed_dims": [8, 16], "depths": [1, 2], "mlp_ratios": [2.0, 3.0], "num_heads": [1, 2],
    "head_dim": 8, "sharing": "tree", "copies": 2, "num_queries": [2, 4], "num_scales": None,
    "decoder_widths": [8, 16], "head": "query", "head_width": 32, "image_size": [32, 48], "patch_size": 16,
    "max_relative": 14, "drop_path": 0.0, "sampler": "sandwich", "distill": 0.25, "sharing_warmup": 0.5,
    "layer_decay": 0.5, "architecture": None, "weights": "random", "loss_weights": None, "weight_decay_on": "weights",
}  # fmt: skip
GROUPED = {
    "space": {**SPACE, "sharing": "tree", "copies": 2, "num_queries": [2, 4], "decoder_widths": [8, 16]},
    "head": {"kind": "query", "width": 32},
    "sampling": {"sampler": "sandwich", "distill": 0.25, "sharing_warmup": 0.5},
}


def test_checkpoints_from_before_there_were_groups_load(tmp_path):
    model = build(**GROUPED, layer_decay=0.5)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": FLAT | {"tasks": TASKS}}
    model.on_save_checkpoint(checkpoint)
    file = tmp_path / "last.ckpt"
    torch.save(checkpoint, file)
    loaded = taskformer.load(file)
    image = torch.randn(1, 3, 32, 48)
    for task, expected in model.eval().network(image).items():
        torch.testing.assert_close(loaded.network(image)[task], expected)
    assert (loaded.space, loaded.sampling, loaded.layer_decay) == (model.space, model.sampling, 0.5)
    assert loaded.hparams["head"] == {"kind": "query", "width": 32}
    build(**GROUPED).on_load_checkpoint(checkpoint)  # as `fit --ckpt_path` does
    other = GROUPED | {"space": GROUPED["space"] | {"num_heads": [1]}}
    with pytest.raises(WeightsError, match=r"space\.num_heads \[1, 2\] there, \[1\] here"):
        build(**other).on_load_checkpoint(checkpoint)
    network = build(**GROUPED | {"image_size": (64, 96)}, weights=str(file)).network  # also as initial weights
    assert torch.equal(network.stem.cls_token, model.network.stem.cls_token)


def test_configurations_from_before_there_were_groups_are_read(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"model": {"class_path": "taskformer.modules.AutoTaskFormer", "init_args": FLAT}}))
    data = ["--data=RoomsDataModule", f"--data.root={ROOT}/data/rooms"]
    model, _ = taskformer.from_config(file, overrides=[*data, "--model.space.copies=3", "--model.head.width=16"])
    assert (model.space.copies, model.space.sharing, model.space.depths) == (3, "tree", (1, 2))
    assert model.sampling == Sampling(**GROUPED["sampling"])
    assert model.hparams["head"] == {"kind": "query", "width": 16}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.space=tiny", r"space is a group of settings, got 'tiny'; it has .*space\.preset"),
        ("--model.head=pup", r"head is a group of settings, got 'pup'; it has head\.kind, head\.width"),
        ("--model.init_args.embed_dims=[8]", r"unknown setting 'embed_dims' \(did you mean 'space\.embed_dims'\?\)$"),
        ("--model.sampler=grow", r"unknown setting 'sampler' \(did you mean 'sampling\.sampler'\?\)$"),
        ("--model.head_width=8", r"unknown setting 'head_width' \(did you mean 'head\.width'\?\)$"),
    ],
)
def test_flags_from_before_there_were_groups_name_todays(flag, message):
    with pytest.raises(ConfigError, match=message):
        taskformer.from_config(overrides=["--model=AutoTaskFormer", "--data=RoomsDataModule", flag])


def test_weights_that_do_not_fit_are_named(tmp_path):
    file = tmp_path / "broken.ckpt"
    file.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="damaged or not a checkpoint"):
        build(weights=str(file))
    torch.save({"taskformer_class": "x", "state_dict": {"network.stem.cls_token": torch.zeros(1)}}, file)
    with pytest.raises(WeightsError, match="holds no supernet of this space, head and tasks"):
        build(weights=str(file))


def test_mixed_precision_and_clipped_gradients(tmp_path):
    model = build(sampling=Sampling("sandwich"), optimizer=lambda parameters: SGD(parameters, lr=1e-3))
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    options = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    trainer(tmp_path, **options).fit(model, loader(), loader())
    after = dict(model.network.named_parameters())
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(before["stem.pos_embed"], after["stem.pos_embed"])
    # Two clipped steps move the weights by at most their rate each.
    moved = torch.stack([(after[name] - before[name]).square().sum() for name in before]).sum().sqrt()
    assert moved < 2 * 1e-3 * 1.1


def test_endless_training_cannot_be_sampled(tmp_path):
    with pytest.raises(ConfigError, match=r"set trainer\.max_epochs or max_steps"):
        trainer(tmp_path, max_epochs=-1, max_steps=-1).fit(build(), loader(), loader())


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_autotaskformer import Sampling, build, loader, trainer
sampler, devices, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
tasks, optimizer, rate = sys.argv[4].split(","), getattr(torch.optim, sys.argv[5]), float(sys.argv[6])
torch.set_num_threads(1)
sampling = Sampling(sampler, sharing_warmup=0.25)
model = build(tasks, sampling=sampling, optimizer=lambda groups: optimizer(groups, lr=rate))
torch.manual_seed(0)
losses = []
model.on_train_batch_end = lambda outputs, batch, index: losses.append(outputs["loss"].detach())
strategy = "ddp_find_unused_parameters_true" if devices > 1 else "auto"
run = trainer(folder, max_epochs=4, devices=devices, strategy=strategy, use_distributed_sampler=False)
rank = int(__import__("os").environ.get("LOCAL_RANK", 0))
batches = list(loader(count=12, batch_size=4))
half = lambda x: {{k: half(v) for k, v in x.items()}} if isinstance(x, dict) else x[2 * rank : 2 * rank + 2]
data = [half(batch) for batch in batches] if devices > 1 else batches
run.fit(model, torch.utils.data.DataLoader(data, batch_size=None))
torch.save([torch.stack(losses), model.network.state_dict()], folder / f"{{devices}}_{{rank}}.pt")
"""


@pytest.mark.slow  # starts three processes per case, about a minute
@pytest.mark.parametrize(
    ("sampler", "tasks", "optimizer", "rate", "losses", "weights"),
    [
        ("uniform", "semseg,depth", "SGD", 0.05, 1e-5, 1e-5),
        ("sandwich", "semseg,depth", "SGD", 0.05, 1e-5, 1e-5),
        # The direction of a fresh network's short vectors turns rounding into differences: with large steps of SGD
        # these reach 1e-2 within 12 steps, 1e-8 in double precision. AdamW moves weights without gradient by noise.
        ("uniform", "semseg,depth,normals", "AdamW", 1e-4, 1e-4, 1e-3),
    ],
)
def test_two_processes_train_like_one(sampler, tasks, optimizer, rate, losses, weights, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    for devices in (1, 2):
        done = subprocess.run(
            [sys.executable, str(script), sampler, str(devices), str(tmp_path), tasks, optimizer, str(rate)],
            capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    assert len(alone[0]) == 12
    assert not torch.equal(first[0], second[0])  # each process sees its own half
    torch.testing.assert_close((first[0] + second[0]) / 2, alone[0], atol=losses, rtol=losses)
    for key, value in alone[1].items():
        torch.testing.assert_close(first[1][key], value, atol=weights, rtol=weights)
        torch.testing.assert_close(second[1][key], first[1][key], atol=0, rtol=0)
