"""Little and partial labels: which images train and what they keep of their labels, by hand and against all labels."""

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from miniature_rooms import write_rooms
from torch.nn import functional as F

from taskformer.data import CombinedDataModule, RoomsDataModule, TaskonomyDataModule
from taskformer.data.labels import LabelTurns, evenly
from taskformer.data.predictions import saved
from taskformer.data.transforms import RandomHorizontalFlip, RandomScaledCrop
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.modules import Baseline, PolyLR
from taskformer.tasks import build_tasks

FOUR = ["semseg", "depth", "normals", "edges"]
IMAGES = 18


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(write_rooms(tmp_path_factory.mktemp("rooms") / "rooms", images={"train": IMAGES, "val": 3, "test": 2}))


def fitted(root, tasks=FOUR, **options):
    data = RoomsDataModule(root, list(tasks), **{"batch_size": 2, **options})
    data.setup("fit")
    return data


def samples(data):
    """One sample of each image that trains, by its name, in the order of the split."""
    return {sample["meta"]["id"]: sample for sample in data.datasets["train"]}


def trained(data):
    """Names of the images that train."""
    return list(samples(data))


def kept(sample):
    """Tasks of which a sample has a label."""
    return {name for name, target in sample["targets"].items() if (target.isfinite() & (target != 255)).any()}


# Which images ---------------------------------------------------------------------------------------------------


def test_a_quarter_is_what_the_golden_ratio_says(root):
    # The fractions of n * 1.618...: 0 -> 0, 13 -> 0.034, 5 -> 0.090, 8 -> 0.944; the four smallest of 18 are these.
    fractions = {number: number * (1 + 5**0.5) / 2 % 1 for number in range(IMAGES)}
    smallest = sorted(sorted(fractions, key=fractions.get)[:4])
    assert smallest == [0, 5, 10, 13]
    assert trained(fitted(root, label_share=0.25)) == [f"train_{number}" for number in smallest]


@pytest.mark.parametrize("count", [1, 16, 352, 440])
def test_images_of_any_share_are_spread_evenly_and_among_those_of_larger_shares(count):
    order = evenly(count)
    assert sorted(order) == list(range(count))
    for share in (1 / 16, 1 / 4, 0.3):
        chosen = sorted(order[: max(1, round(share * count))])
        gaps = {int(gap) for gap in np.diff([*chosen, chosen[0] + count])[:-1]}
        assert len(gaps) <= 3
        assert max(gaps, default=0) <= 3 / share  # a regular comb's would be 1 / share


def test_no_period_of_the_split_decides_what_a_share_has():
    for period in (2, 3, 4, 5, 6):  # views of a room, kinds of rooms in turn
        counts = np.bincount(evenly(440)[:110] % period, minlength=period)
        assert counts.min() >= 0.8 * 110 / period


def test_the_images_do_not_depend_on_the_seed_and_combine_with_a_holdout(root):
    found = set()
    for seed in (0, 7):
        seed_everything(seed, verbose=False)
        data = fitted(root, holdout=0.3, label_share=0.5)
        held = [sample["meta"]["id"] for sample in data.datasets["val"]]
        assert held == [f"train_{number}" for number in range(12, 18)]  # the last 30 %, as with all labels
        found.add(tuple(trained(data)))
    ((*images,),) = found
    assert len(images) == 6
    assert not set(images) & set(held)
    quarter = trained(fitted(root, holdout=0.3, label_share=0.25))
    assert set(quarter) < set(images)


@pytest.mark.parametrize("options", [{"label_share": 0.5}, {"label_share": 1 / 16}, {"one_label_of": FOUR}])
def test_an_epoch_is_as_long_as_with_all_images_and_has_each_equally_often(root, options):
    data = fitted(root, ["depth"], **options)
    names = [name for batch in data.train_dataloader() for name in batch["meta"]["id"]]
    counts = [names.count(name) for name in trained(data)]
    assert len(names) == sum(counts) == IMAGES
    assert max(counts) - min(counts) <= 1


def test_an_image_that_comes_up_again_is_augmented_anew(root):
    data = fitted(root, ["depth"], batch_size=IMAGES, label_share=1 / 16, train_transforms=[RandomHorizontalFlip()])
    (batch,) = data.train_dataloader()
    assert len(set(batch["meta"]["id"])) == 1
    assert len({image.sum(dim=(0, 1)).argmax().item() for image in batch["image"]}) == 2  # brighter on one side


# Which labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 440])
@pytest.mark.parametrize("names", [["depth"], ["depth", "edges"], FOUR])
def test_every_task_has_equally_many_labels_in_any_share(count, names):
    order, turns = evenly(count), LabelTurns.over(evenly(count), names)
    for images in (count, max(1, count // 4), max(1, count // 16)):
        counts = np.bincount(turns.owners[order[:images]], minlength=len(names))
        assert counts.sum() == images
        assert counts.max() - counts.min() <= 1
    assert turns.owners.tolist() == LabelTurns.over(order, names[::-1]).owners.tolist()


def test_each_image_has_one_label_and_it_is_the_full_one(root):
    crop = [RandomScaledCrop(0.8, 1.5, 6, 8, max_share=0.5), RandomHorizontalFlip()]  # it looks at semseg
    part = fitted(root, train_transforms=crop, one_label_of=FOUR)
    full = fitted(root, train_transforms=crop)
    turns = LabelTurns.over(evenly(IMAGES), FOUR)
    tasks = build_tasks(full.task_specs)
    batches = zip(part.train_dataloader(), full.train_dataloader(), strict=True)
    seen = dict.fromkeys(FOUR, 0)
    for few, all_labels in batches:
        torch.testing.assert_close(few["image"], all_labels["image"], rtol=0, atol=0)
        for place, name in enumerate(few["meta"]["id"]):
            owner = turns.tasks[turns.owners[int(name.removeprefix("train_"))]]
            seen[owner] += 1
            for task in FOUR:
                target, whole = few["targets"][task][place], all_labels["targets"][task][place]
                expected = whole if task == owner else tasks[task].invalid(6, 8)
                torch.testing.assert_close(target, expected, rtol=0, atol=0, equal_nan=True)
    assert set(seen.values()) == {4, 5}
    for sample in part.datasets["val"]:
        assert kept(sample) == set(FOUR)


def test_a_task_alone_has_the_labels_that_it_has_among_the_others(root):
    together = samples(fitted(root, one_label_of=FOUR, label_share=0.5))
    owners = {name: kept(sample) for name, sample in together.items()}
    assert len(owners) == 9
    for task in FOUR:
        alone = fitted(root, [task], one_label_of=FOUR, label_share=0.5)
        assert trained(alone) == [name for name, tasks in owners.items() if tasks == {task}]


def test_tasks_beside_the_list_keep_their_labels(root):
    dataset = fitted(root, one_label_of=["semseg", "depth"]).datasets["train"]
    found = [kept(sample) for sample in dataset]
    assert found.count({"semseg", "normals", "edges"}) == found.count({"depth", "normals", "edges"}) == IMAGES / 2


@pytest.mark.parametrize("cached", [False, True])
def test_processes_and_the_cache_give_the_same_labels(root, tmp_path, cached):
    options = {"cache_dir": str(tmp_path)} if cached else {}
    if cached:
        RoomsDataModule(root, FOUR, **options).build_caches()  # with all labels: one cache serves every choice
        written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.samples")}
    batches = []
    for workers in (0, 2):
        data = RoomsDataModule(
            root, FOUR, batch_size=2, num_workers=workers, one_label_of=FOUR, label_share=0.5, **options
        )
        data.prepare_data()
        data.setup("fit")
        batches.append([batch["targets"] for batch in data.train_dataloader()])
    torch.testing.assert_close(*batches, rtol=0, atol=0, equal_nan=True)
    if cached:
        assert data.datasets["train"].dataset.cache is not None
        assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.samples")} == written


def test_a_broken_image_is_replaced_by_one_that_trains_with_its_own_label(tmp_path):
    root = write_rooms(tmp_path / "rooms", images={"train": IMAGES, "val": 2, "test": 1})
    intact = fitted(str(root), one_label_of=FOUR, label_share=0.5)
    images, labels = trained(intact), [kept(sample) for sample in samples(intact).values()]
    for number in (0, 1, 8):
        (root / "image" / f"{images[number]}.jpg").write_bytes(b"broken")
    broken = fitted(str(root), one_label_of=FOUR, label_share=0.5, on_error="skip").datasets["train"]
    broken = [broken[number] for number in range(9)]
    expected = [2, 2, *range(2, 8), 2]  # the next one, from the first again after the last
    assert [sample["meta"]["id"] for sample in broken] == [images[number] for number in expected]
    assert [kept(sample) for sample in broken] == [labels[number] for number in expected]


def test_what_a_teacher_says_is_no_label(root, tmp_path):
    (tmp_path / "depth").mkdir()
    for number in range(IMAGES):
        np.save(tmp_path / "depth" / f"train_{number}.npy", np.full((8, 10), 2.0, np.float32))
    dataset = fitted(root, predictions=str(tmp_path), one_label_of=FOUR).datasets["train"]
    assert {name for sample in dataset for name in kept(sample)} == {*FOUR, saved("depth")}
    assert all(saved("depth") in kept(sample) and len(kept(sample)) == 2 for sample in dataset)


def test_a_mixture_hands_the_choice_to_its_parts_by_their_own_names(root):
    parts = [RoomsDataModule(root, ["semseg", "depth"]), RoomsDataModule(root, ["semseg", "edges"])]
    names = ["semseg", "depth", "other"]
    data = CombinedDataModule(parts, [{}, {"semseg": "other"}], one_label_of=names, label_share=0.5, batch_size=2)
    data.setup("fit")
    found = [frozenset(kept(sample)) for sample in data.datasets["train"]]
    assert len(found) == 2 * IMAGES
    # The first part's images have one of two labels, the second's keep both: no other task of the list is theirs.
    assert set(found[:IMAGES]) == {frozenset(["semseg"]), frozenset(["depth"])}
    assert abs(found.count({"semseg"}) - found.count({"depth"})) <= 2
    assert set(found[IMAGES:]) == {frozenset(["other", "edges"])}


def test_wrong_settings_are_refused(root):
    with pytest.raises(UnknownNameError, match=r"task of RoomsDataModule 'dept' .did you mean 'depth'"):
        RoomsDataModule(root, ["depth"], one_label_of=["dept"])
    with pytest.raises(ConfigError, match="shards are read in their own order and cannot leave out images or labels"):
        TaskonomyDataModule("nowhere", ["normals"], shards="x", label_share=0.5)
    with pytest.raises(ConfigError, match="the labels of inpainting are made from the image"):
        TaskonomyDataModule("nowhere", ["normals", "inpainting"], one_label_of=["normals", "inpainting"])


# Training -------------------------------------------------------------------------------------------------------


def test_a_training_with_few_labels_goes_on_in_the_middle_of_an_epoch(root):
    def batches(place):
        data = fitted(root, one_label_of=FOUR, label_share=0.5, train_transforms=[RandomHorizontalFlip()])
        data.load_state_dict({"batches": place})
        return [batch["image"] for batch in data.train_dataloader()]

    torch.testing.assert_close(batches(4), batches(0)[4:], rtol=0, atol=0)


@pytest.fixture
def model(root):
    torch.manual_seed(0)
    return Baseline(RoomsDataModule(root, FOUR).task_specs, embed_dim=8, head_dim=4, lr_scheduler=PolyLR).eval()


@pytest.mark.parametrize("images", [slice(0, 4), slice(0, 1)])
def test_losses_of_partial_labels_are_those_written_down_plainly(root, model, images):
    found = list(samples(fitted(root, one_label_of=FOUR)).values())[images]
    image = torch.stack([sample["image"] for sample in found])
    targets = {name: torch.stack([sample["targets"][name] for sample in found]) for name in FOUR}
    outputs = model(image)
    losses = model.compute_losses(outputs, targets)
    zero = outputs["depth"].sum() * 0
    semseg, depth, edges = targets["semseg"] != 255, targets["depth"].isfinite(), targets["edges"].isfinite()
    facing = targets["normals"].isfinite().all(dim=1)
    unit = F.normalize(outputs["normals"], dim=1, eps=1e-3)  # shorter ones, as of untrained networks, are not blown up
    plain = {
        "semseg": F.cross_entropy(outputs["semseg"], targets["semseg"], ignore_index=255) if semseg.any() else zero,
        "depth": (outputs["depth"] - targets["depth"])[depth].abs().mean() if depth.any() else zero,
        "normals": (unit - targets["normals"]).abs().sum(dim=1)[facing].mean() if facing.any() else zero,
        "edges": weighted(outputs["edges"][edges], targets["edges"][edges]) if edges.any() else zero,
    }
    assert 0 < sum(loss == 0 for loss in plain.values()) < 4
    for name, loss in plain.items():
        torch.testing.assert_close(losses[name], loss)
    losses["total"].backward()
    assert all(weight.grad.isfinite().all() for weight in model.network.parameters() if weight.grad is not None)


def weighted(logits, target):
    """Cross-entropy of edges that weigh 0.8 and the rest that weighs 0.2."""
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * torch.where(target > 0.5, 0.8, 0.2)).mean()


class Watch(Callback):
    """Notes after how many steps there were validations, and the rates of the steps."""

    def __init__(self):
        self.validated, self.rates = [], []

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.global_step)

    def on_train_batch_start(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"] / trainer.optimizers[0].defaults["lr"])


BY_EPOCHS = {"max_epochs": 2, "check_val_every_n_epoch": 2}  # of three batches
BY_STEPS = {"max_epochs": -1, "max_steps": 4, "check_val_every_n_epoch": None, "val_check_interval": 4}


@pytest.mark.parametrize(("length", "steps"), [(BY_EPOCHS, 6), (BY_STEPS, 4)])
def test_a_recipe_has_its_steps_and_one_validation_at_the_end_with_any_share(root, model, length, steps):
    data = RoomsDataModule(root, FOUR, batch_size=6, label_share=1 / 16)
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = Trainer(**length, **quiet, accelerator="cpu", num_sanity_val_steps=0, callbacks=[watch := Watch()])
    trainer.fit(model.train(), data)
    assert trainer.global_step == steps
    assert watch.validated == [steps]
    assert watch.rates == pytest.approx([(1 - step / steps) ** 0.9 for step in range(steps)])
