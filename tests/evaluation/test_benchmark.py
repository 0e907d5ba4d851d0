"""The benchmark's figures against closed forms, known allocations and clocks that are set by hand."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch import nn

import taskformer
from taskformer.errors import ConfigError
from taskformer.evaluation.benchmark import Benchmark, Figures, Growth, Timed
from taskformer.evaluation.benchmark import run as door
from taskformer.evaluation.benchmark.cost import Cost, count
from taskformer.evaluation.benchmark.memory import CLEAR, peak_memory
from taskformer.evaluation.benchmark.report import write
from taskformer.evaluation.benchmark.subjects import Subject, noise
from taskformer.evaluation.benchmark.timing import WARMUP, Reading, Spread, take_turns
from taskformer.models.autotaskformer import Architecture
from taskformer.modules import AutoTaskFormer
from taskformer.modules.autotaskformer_args import Head, Space
from taskformer.modules.balancing import FAMO, METHODS, FixedWeights
from taskformer.modules.base import MultiTaskModule
from taskformer.tasks import build_tasks

CPU = torch.device("cpu")
RUN = Path(__file__).parent.parent / "earlier" / "run"
SIZE = (8, 12)
PIXELS = 8 * 12
#: Parameters and products of the network below: a convolution of 3x3, and for each task one of 1x1.
BACKBONE = Cost(3 * 9 * 5 + 5, 3 * 9 * 5 * PIXELS)
HEADS = {"depth": Cost(5 * 1 + 1, 5 * 1 * PIXELS), "normals": Cost(5 * 3 + 3, 5 * 3 * PIXELS)}
on_linux = pytest.mark.skipif(not CLEAR.exists(), reason="only Linux tells the largest memory of a process")


class Plain(nn.Module):
    """A network that is counted by hand; it may do its work several times."""

    def __init__(self, channels, repeat):
        super().__init__()
        self.backbone = nn.Conv2d(3, 5, kernel_size=3, padding=1)
        self.head = nn.ModuleDict({task: nn.Conv2d(5, count, kernel_size=1) for task, count in channels.items()})
        self.repeat = repeat

    def forward(self, image):
        for _ in range(self.repeat):
            features = self.backbone(image)
            outputs = {task: layer(features) for task, layer in self.head.items()}
        return outputs


class PlainModule(MultiTaskModule):
    """It as a model."""

    def __init__(self, tasks, repeat: int = 1, **kwargs):
        channels = {name: task.channels for name, task in build_tasks(tasks).items()}
        super().__init__(tasks, Plain(channels, repeat), **kwargs)


@pytest.fixture
def plain():
    return PlainModule({"depth": {}, "normals": {}}, loss_weights={"depth": 2.0})


class Clock:
    """A clock that stands still but for what calls add to it."""

    def __init__(self):
        self.now = Reading(0.0, 0.0, 0)
        self.calls = []

    def __call__(self):
        return self.now

    def call(self, name, wall):
        def run():
            self.calls.append(name)
            self.now = Reading(self.now.wall + wall, self.now.cpu + 2 * wall, self.now.faults + 3)

        return run


def test_calls_take_turns_and_the_first_rounds_do_not_count():
    clock = Clock()
    first, second = take_turns([clock.call("A", 1.0), clock.call("B", 4.0)], 3, clock)
    assert clock.calls == ["A", "B"] * (3 + WARMUP)
    assert first == [Reading(1.0, 2.0, 3)] * 3
    assert second == [Reading(4.0, 8.0, 3)] * 3


def test_a_slower_machine_does_not_change_ratios():
    a, b = [1.0, 5.0, 1.0, 3.0], [2.0, 10.0, 2.0, 6.0]  # the second is always half as fast
    assert Spread.of_ratios(a, b) == (0.5, 0.5, 0.5)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 9.0]) == (3.0, 2.0, 4.0)


def test_costs_are_those_counted_by_hand(plain):
    found = taskformer.benchmark(plain, size=SIZE, rounds=1, batch=1, train=False).subjects[0]
    head = Cost(sum(cost.params for cost in HEADS.values()), sum(cost.macs for cost in HEADS.values()))
    total = Cost(BACKBONE.params + head.params, BACKBONE.macs + head.macs)
    assert found.cost == {"total": total, "backbone": BACKBONE, "head": head}
    assert found.tasks == HEADS  # nothing is shared but the backbone, so that a task adds its own layer


def test_twice_the_work_is_twice_the_products():
    model = PlainModule({"depth": {}}, repeat=2)
    found = count(model.network, torch.zeros(1, 3, *SIZE))["total"]
    assert found == Cost(BACKBONE.params + HEADS["depth"].params, 2 * (BACKBONE.macs + HEADS["depth"].macs))


def test_attention_is_counted():
    class Attend(nn.Module):
        def forward(self, image):
            tokens = image.flatten(2).transpose(1, 2).unsqueeze(1)  # (1, 1, 96, 3)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert count(Attend(), torch.zeros(1, 3, *SIZE))["total"].macs == 2 * PIXELS * PIXELS * 3


@on_linux
@pytest.mark.parametrize("arrays", [1, 400])
def test_memory_is_that_of_a_known_allocation_whatever_ran_before(arrays):
    megabytes = 40
    length = megabytes * 1_000_000 // (4 * arrays)

    def call():
        return [torch.ones(length) for _ in range(arrays)]

    before = peak_memory(call, CPU)
    [torch.ones(17_000 * number) for number in range(1, 60)]  # holes of many sizes in the heap
    after = peak_memory(call, CPU)
    for found in (before, after):
        assert found / 1e6 == pytest.approx(megabytes, abs=2)


@on_linux
def test_memory_of_one_at_a_time_is_that_of_one():
    def call():
        for _ in range(10):
            torch.ones(5_000_000)  # 20 MB

    assert peak_memory(call, CPU) / 1e6 == pytest.approx(20, abs=2)


@on_linux
def test_memory_of_a_training_step_holds_what_the_network_keeps():
    class Hoard(nn.Module):
        """Eight maps of 64 channels at 128x128, 4 MiB each, that the backward pass needs."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(64, 1, 1))

        def forward(self, image):
            kept = image[:, :1] * self.scale
            for _ in range(7):
                kept = kept.exp()
            return {"depth": kept.mean(1, keepdim=True)}

    module = MultiTaskModule({"depth": {}}, Hoard())
    subject = Subject.open(module, "hoard", (128, 128), CPU)
    map_bytes = 64 * 128 * 128 * 4
    training, inference = subject.training(1), subject.inference(1)
    training()
    inference()
    assert 7 * map_bytes < peak_memory(training, CPU) < 11 * map_bytes
    assert peak_memory(inference, CPU) < 4 * map_bytes


def test_the_model_stays_as_it_is(plain):
    before = {name: values.clone() for name, values in plain.state_dict().items()}
    plain.eval()
    found = taskformer.benchmark(plain, size=SIZE, rounds=2, batch=2)
    assert not plain.training
    assert all(torch.equal(values, before[name]) for name, values in plain.state_dict().items())
    assert list(found.subjects[0].timed) == ["inference, batch 1", "inference, batch 2", "training, batch 2"]


def test_a_training_step_is_one_of_the_model_s_own(plain):
    plain.optimizer = lambda groups: torch.optim.SGD(groups, lr=0.1)
    subject = Subject.open(plain, "plain", SIZE, CPU)
    subject.training(2)()
    reference = PlainModule({"depth": {}, "normals": {}}, loss_weights={"depth": 2.0})
    reference.load_state_dict(plain.state_dict())
    outputs = reference.network(subject.images(2))
    targets = {name: noise(task, 2, SIZE) for name, task in reference.tasks.items()}
    weights = {"depth": 2.0, "normals": reference.tasks["normals"].loss_weight}
    sum(weights[name] * task.loss(outputs[name], targets[name]) for name, task in reference.tasks.items()).backward()
    expected = [(values - 0.1 * values.grad).detach() for values in reference.network.parameters()]
    for found, value in zip(subject.network.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), value)
        assert found.grad is None


def test_a_network_computes_as_its_trainer_would(plain, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward) or forward)
    subject = Subject.open(plain, "plain", SIZE, CPU, mixed=True)
    assert {values.dtype for values in subject.inference(1)().values()} == {torch.bfloat16}
    assert not compiled
    plain.compiles = True
    subject = Subject.open(plain, "plain", SIZE, CPU)
    assert {values.dtype for values in subject.inference(1)().values()} == {torch.float32}
    assert compiled == [subject.network.forward]


@pytest.mark.parametrize("name", taskformer.list_tasks())
def test_every_task_learns_from_noise(name):
    classes = {"classes": ["a", "b", "c"]} if name == "semseg" or name.startswith("class") else {}
    (task,) = build_tasks({name: classes}).values()
    targets = noise(task, 2, SIZE)
    output = torch.randn(2, task.channels, *(() if task.geometry == "image" else SIZE), requires_grad=True)
    loss = task.loss(output, targets)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0  # noqa: PT018  # one statement about one number
    assert output.grad.abs().sum() > 0


def test_growth_is_that_of_the_closed_form(plain):
    found = taskformer.benchmark(plain, size=SIZE, rounds=1, batch=1, growth=True, growth_tasks=[1, 3],
                                 growth_task={"type": "regression", "channels": 2})  # fmt: skip
    (growth,) = found.growth
    one = 5 * 2 * PIXELS
    assert [figures.cost["total"].macs for figures in growth.axes["tasks"].values()] == [
        BACKBONE.macs + one,
        BACKBONE.macs + 3 * one,
    ]
    small, large = (figures.cost["total"].macs for figures in growth.axes["side"].values())
    assert large == 4 * small
    assert list(growth.axes["side"]) == [1.0, 2.0]


def test_two_networks_are_compared_round_by_round(plain, monkeypatch):
    clock = Clock()
    works = {1: 2.0, 2: 5.0}

    def prepare(self, batch, method=None):
        return clock.call(self.name, works[self.module.network.repeat] * batch)

    monkeypatch.setattr(Subject, "inference", prepare)
    monkeypatch.setattr(Subject, "training", prepare)
    monkeypatch.setattr(door, "clock_of", lambda device: clock)
    other = PlainModule({"depth": {}, "normals": {}}, repeat=2)
    found = taskformer.benchmark(other, plain, size=SIZE, rounds=3, batch=4, names=("twice", "once"))
    timed = 3 + WARMUP
    # A call that is not timed measures the memory.
    assert clock.calls == (["twice", "once"] * timed + ["twice", "once"]) * 3
    for ratios in found.ratios.values():
        assert ratios == {"seconds": (2.5, 2.5, 2.5), "cpu_seconds": (2.5, 2.5, 2.5)}
    rows = {row[0]: row[1:] for row in found.rows()}
    assert rows["inference, batch 4: ms"] == ["20000 (20000-20000)", "8000 (8000-8000)", "2.500 (2.500-2.500)"]
    assert rows["  images/s"][2] == "0.4"


def test_methods_of_balancing_take_turns_and_are_compared_with_fixed_weights(plain, monkeypatch, tmp_path):
    clock = Clock()

    def prepare(self, batch, method=None):
        return clock.call(method and method.__name__, {FixedWeights: 2.0, FAMO: 5.0}.get(method, 3.0))

    monkeypatch.setattr(Subject, "inference", prepare)
    monkeypatch.setattr(Subject, "training", prepare)
    monkeypatch.setattr(door, "clock_of", lambda device: clock)
    found = taskformer.benchmark(plain, size=SIZE, rounds=3, batch=4, balancing=True, out=tmp_path)
    names = [method.__name__ for method in METHODS]
    calls = [call for call in clock.calls if call]
    assert calls == names * (3 + WARMUP) + names
    rows = {row[0]: row[1:] for row in found.methods[0].rows()}
    assert list(rows) == names
    assert rows["FAMO"][:3] == ["5000 (5000-5000)", "2.500 (2.500-2.500)", "2.500"]
    assert found.as_dict()["balancing"][0]["FAMO"]["ratios"]["seconds"]["median"] == 2.5
    assert "NashMTL" in (tmp_path / "benchmark.md").read_text()


def test_a_step_of_each_method_trains(plain):
    for method in METHODS:
        subject = Subject.open(plain, "plain", SIZE, CPU)
        before = subject.network.backbone.weight.clone()
        subject.training(2, method)()
        assert (subject.network.backbone.weight - before).any(), method


def test_parameters_that_train_have_rows_where_some_are_frozen():
    parts = {"total": Cost(7_000_000, 9, 5_000_000), "backbone": Cost(6_000_000, 8, 5_000_000), "head": Cost(10**6, 1)}
    adapted, plain = Figures("a", SIZE, parts), Figures("b", SIZE, {part: Cost(*c[:2]) for part, c in parts.items()})
    rows = {row[0]: row[1:] for row in Benchmark([adapted, plain], [], {}).rows()[3:6]}
    assert rows == {"trained, M": ["2", "7", "0.286"], "  backbone": ["1", "6", "0.167"], "  head": ["1", "1", "1"]}
    assert not [row for row in Benchmark([plain], [], {}).rows() if row[0] == "trained, M"]


def test_the_record_has_everything_in_seconds_and_bytes():
    readings = [Reading(1.0, 2.0, 10), Reading(3.0, 4.0, 20)]
    figures = Figures("a", SIZE, {"total": Cost(7, 9)}, {"depth": Cost(1, 2)}, {"train": Timed(4, readings, 123)})
    record = Benchmark([figures, figures], [Growth("a", {"tasks": {1: figures}, "side": {1.0: figures}})], {}).as_dict()
    assert json.loads(json.dumps(record)) == record
    call = record["subjects"][0]["calls"]["train"]
    assert call["seconds"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert call["cpu_seconds"]["median"] == 3.0
    assert (call["images_per_second"], call["page_faults"], call["peak_memory"], call["batch"]) == (2.0, 15.0, 123, 4)
    assert record["subjects"][0]["cost"] == {"total": {"params": 7, "macs": 9, "frozen": 0}}
    assert record["subjects"][0]["tasks"] == {"depth": {"params": 1, "macs": 2, "frozen": 0}}
    assert record["ratios"]["train"]["seconds"]["median"] == 1.0
    assert list(record["growth"][0]) == ["tasks", "side"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("grows", [False, True])
def test_the_picture_shows_something(tmp_path, count, grows):
    figures = Figures("a", SIZE, {"total": Cost(7, 9)}, {"depth": Cost(1, 2)})
    figures.timed["inference, batch 1"] = Timed(1, [Reading(1.0, 2.0, 10), Reading(2.0, 3.0, 20)], 123)
    growth = Growth("a", {"tasks": {1: figures, 2: figures}, "side": {1.0: figures, 2.0: figures}})
    conditions = {"device": "cpu", "threads": 1}
    found = Benchmark([figures] * count, [growth] * count if grows else [], conditions)
    write(tmp_path, found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark.json", "benchmark.md", "benchmark.png"]
    picture = imread(tmp_path / "benchmark.png")[..., :3]
    assert (picture.min(axis=2) < 0.9).mean() > 0.02
    assert (picture.max(axis=2) - picture.min(axis=2) > 0.3).mean() > 0.01  # bars have a colour
    text = (tmp_path / "benchmark.md").read_text()
    assert "| inference, batch 1: ms | 1500 (1250-1750) |" in text
    assert ("| tasks 2 |" in text) is grows


def supernet():
    torch.manual_seed(0)
    space = Space("custom", embed_dims=[16, 24], depths=[1, 2], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=8,
                  sharing="binary")  # fmt: skip
    return AutoTaskFormer({"depth": {}, "normals": {}, "edges": {}}, space, Head("linear"), image_size=(16, 24),
                          patch_size=8)  # fmt: skip


def test_of_a_supernet_the_largest_or_a_given_sub_network_is_measured(tmp_path):
    model = supernet()
    largest = taskformer.benchmark(model, size=(16, 24), rounds=1, batch=1, train=False).subjects[0]
    assert largest.cost["total"].params == model.network.count_parameters(model.space.largest())
    assert largest.cost["total"].macs == model.network.count_macs(model.space.largest(), (16, 24))
    split = Architecture(16, 1, (2.0,), (2,), ((0, 0, 0), (1, 2, 3)))
    file = tmp_path / "architecture.json"
    file.write_text(split.to_json())
    found = taskformer.benchmark(model, size=(16, 24), rounds=1, batch=1, architecture=str(file)).subjects[0]
    assert found.cost["total"].macs == model.network.count_macs(split, (16, 24))
    # Each task has an MLP of its own (6 tokens and one of the class, 16 -> 32 -> 16) and a linear head of 6 places.
    assert found.tasks["edges"].macs == 7 * 2 * 16 * 32 + 6 * 16 * 1
    with pytest.raises(ConfigError, match="growth is measured without --architecture"):
        taskformer.benchmark(model, size=(16, 24), rounds=1, batch=1, architecture=str(file), growth=True)


def test_a_supernet_grows_too():
    found = taskformer.benchmark(supernet(), size=(16, 24), rounds=1, batch=1, train=False, growth=True,
                                 growth_tasks=[1, 3])  # fmt: skip
    one, three = found.growth[0].axes["tasks"].values()
    assert one.cost["total"].macs < three.cost["total"].macs


def test_a_run_folder_is_measured_at_its_training_size():
    found = taskformer.benchmark(RUN, rounds=1, batch=1, train=False).subjects[0]
    model = taskformer.load(RUN)
    assert found.name == str(RUN)
    assert found.size == tuple(model.train_size.tolist()) == (128, 160)
    assert found.cost["total"].macs == model.network.count_macs(model.space.largest(), (128, 160))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"how large are the images of PlainModule\? .* with --size"),
        ({"size": (0, 3)}, r"size must be in \[1, inf\), got \(0, 3\)"),
        ({"rounds": 0}, r"rounds must be in \[1, inf\), got 0"),
        ({"size": SIZE, "device": "cuda:99"}, "device 'cuda:99' cannot be used|torch sees no GPU on this machine"),
        ({"size": SIZE, "device": "gpu"}, "device 'gpu' cannot be used"),
        ({"size": SIZE, "architecture": "{}"}, "only a supernet has sub-networks, and this is a PlainModule"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(plain, options, message):
    with pytest.raises(ConfigError, match=message) as raised:
        taskformer.benchmark(plain, **options)
    assert "\n" not in str(raised.value)


def test_threads_are_torch_s_again_afterwards(plain):
    before = torch.get_num_threads()
    found = taskformer.benchmark(plain, size=SIZE, rounds=1, batch=1, train=False, threads=before + 1)
    assert found.conditions["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_on_a_gpu_is_that_of_a_known_allocation():
    device = torch.device("cuda")

    def call():
        return torch.ones(10_000_000, device=device)

    call()
    assert peak_memory(call, device) == pytest.approx(40e6, abs=2e6)
