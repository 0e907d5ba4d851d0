"""Flags in any order, and one class in place of another."""

import random
from itertools import permutations
from pathlib import Path

import pytest

from taskformer.commands.parser import joined
from taskformer.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = CONFIGS / "experiment" / "demo.yaml"


def lines(text):
    """Write a command line as a list of flags with their values."""
    return [line.split(" ") for line in text.strip().splitlines()]


def flat(flags):
    return [word for flag in flags for word in flag]


COMMAND_LINES = {
    "a flag before and after a file": f"""
--config {DEMO}
--model.embed_dim 32
--trainer.max_epochs=3
--data.batch_size 4""",
    "a class before its settings and after": """
--model Baseline
--model.head_dim 8
--model.init_args.embed_dim=16
--data RoomsDataModule
--data.batch_size 4
--data.tasks [depth]""",
    "another class": f"""
--config {DEMO}
--model Baseline
--model.optimizer SGD
--model.optimizer.momentum 0.5
--trainer.gradient_clip_val -1
--name=x""",
    "another class by its path": f"""
-c {DEMO}
--model.class_path=taskformer.modules.Baseline
--model.loss_weights.depth 2
--seed_everything 7""",
}


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_the_order_of_flags_does_not_matter(case, parse):
    flags = lines(COMMAND_LINES[case])
    orders = list(permutations(flags))
    first = parse(flat(flags))
    for order in random.Random(0).sample(orders, min(len(orders), 8)):
        assert parse(flat(order)) == first, order


def test_flags_win_over_files(parse):
    config = parse(["--model.embed_dim", "24", "--trainer.max_epochs=2", "--model", "Baseline", "--config", str(DEMO)])
    assert config.model.class_path == "taskformer.modules.Baseline"
    assert (config.model.init_args.embed_dim, config.trainer.max_epochs) == (24, 2)
    assert config.data.init_args.batch_size == 8


def test_later_files_win_over_earlier_ones(parse, tmp_path):
    (tmp_path / "a.yaml").write_text("trainer: {max_epochs: 2, limit_val_batches: 3}")
    (tmp_path / "b.yaml").write_text("trainer: {max_epochs: 4}")
    first, second = (f"--config={tmp_path / name}.yaml" for name in "ab")
    for words, epochs in (([first, second], 4), ([second, first], 2)):
        trainer = parse([f"--config={DEMO}", *words]).trainer
        assert (trainer.max_epochs, trainer.limit_val_batches) == (epochs, 3)


def test_of_two_flags_of_one_name_the_last_wins(parse):
    flags = ["--trainer.max_epochs=2", f"--config={DEMO}", "--trainer.max_epochs", "5"]
    assert parse(flags).trainer.max_epochs == 5
    assert parse([f"--config={DEMO}", "--model=AutoTaskFormer", "--model=Baseline"]).model.class_path.endswith(
        "Baseline"
    )


def test_settings_of_appended_items_stay_with_theirs(parse):
    callbacks = [
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",
        "--trainer.callbacks.logging_interval=epoch",
    ]
    stopping, rates = parse([*callbacks, f"--config={DEMO}"]).trainer.callbacks
    assert (stopping.init_args.monitor, rates.init_args.logging_interval) == ("val/loss", "epoch")


def test_a_later_file_with_another_class_replaces_the_whole_block(parse, tmp_path, caplog):
    supernet = CONFIGS / "model" / "autotaskformer.yaml"
    data = tmp_path / "data.yaml"
    data.write_text("data: {class_path: NYUDDataModule, init_args: {batch_size: 2}}")
    config = parse(["--config", str(DEMO), "--config", str(supernet), "--config", str(data)])
    alone = parse(["--config", str(supernet), "--config", str(data)])
    assert config.model == alone.model
    assert config.data == alone.data
    assert config.trainer.max_epochs == 6
    said = caplog.text
    assert "model: AutoTaskFormer takes the place of MQTransformer, whose settings are left out: backbone, " in said
    line = (
        "data: NYUDDataModule takes the place of RoomsDataModule, whose settings are left out: tasks, train_transforms"
    )
    assert line in said
    back = parse(["--config", str(DEMO), "--config", str(supernet), "--config", str(DEMO)])
    assert back.model == parse(["--config", str(DEMO)]).model


def test_a_file_that_names_the_same_class_or_none_changes_what_it_says(parse, tmp_path, caplog):
    for block in ("{class_path: taskformer.modules.MQTransformer, init_args: {embed_dim: 8}}", "{embed_dim: 8}"):
        (tmp_path / "a.yaml").write_text(f"model: {block}")
        model = parse(["--config", str(DEMO), "--config", str(tmp_path / "a.yaml")]).model
        assert (model.init_args.embed_dim, model.init_args.num_queries) == (8, 32)
    assert "takes the place" not in caplog.text


def test_another_class_keeps_what_both_describe_alike(parse, caplog):
    demo = parse([f"--config={DEMO}"]).model.init_args
    config = parse([f"--config={DEMO}", "--model=Baseline"]).model.init_args
    for name in ("backbone", "weights", "optimizer", "lr_scheduler", "loss_weights"):
        assert config[name] == demo[name]
    assert config.embed_dim is None  # channels of a task, not the width of queries
    said = caplog.text
    assert "model: Baseline takes the place of MQTransformer, whose settings are left out: cross_drop_path, " in said
    assert "backbone" not in said
    config = parse([f"--config={DEMO}", "--model=AutoTaskFormer"]).model.init_args
    assert (config.weights, config.optimizer) == ("random", demo.optimizer)  # not the bundled ones of another network
    assert parse([f"--config={DEMO}", "--data=NYUDDataModule"]).data.init_args.root == "data/nyud"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=Baseline", "--model.num_queries=3", f"--config={DEMO}"], "unknown setting 'num_queries'"),
        (["--model.embed_dim=x", f"--config={DEMO}"], "embed_dim: expected int, got x"),
        (["--model.embed_dims=3", f"--config={DEMO}"], r"'embed_dims' \(did you mean 'embed_dim'\?\)"),
        (["--model=Baselin", f"--config={DEMO}"], "did you mean 'Baseline'"),
        (["--data.batch_size=3", "--model=Baseline"], "data"),
        (["--config"], "config"),
        (["runs/x"], "runs/x"),
    ],
)
def test_mistakes_are_one_sentence(words, message, parse):
    with pytest.raises(ConfigError, match=message) as error:
        parse(words)
    assert "\n" not in str(error.value)


CHOSEN = {"model": "model/baseline.yaml", "data": "data/nyud.yaml"}
ON_TOP = {"encoder": "encoder/vit_b.yaml", "recipe": "recipe/adamw.yaml"}


def named(files):
    return [f"--config.{name}={CONFIGS / path}" for name, path in files.items()]


def test_named_files_lie_on_the_others_whatever_their_order(parse):
    flags = [f"--config={DEMO}", *named(CHOSEN), *named(ON_TOP), "--model.lr_scheduler.power=2"]
    files = [str(CONFIGS / path) for path in (*CHOSEN.values(), *ON_TOP.values())]
    expected = parse([word for file in (str(DEMO), *files) for word in ("--config", file)] + flags[-1:])
    assert expected.model.init_args.optimizer.init_args.lr == 2.0e-5
    assert expected.model.init_args.backbone.startswith("vit_base")
    for order in random.Random(0).sample(list(permutations(flags)), 6):
        assert parse(order) == expected


def test_a_list_of_files_is_one_value(parse):
    files = [str(CONFIGS / path) for path in ("model/baseline.yaml", "recipe/adamw.yaml")]
    apart = parse([f"--config={DEMO}", *(f"--config={file}" for file in files)])
    for flag in ("--config", "--config.more"):
        assert parse([f"--config={DEMO}", f"{flag}={files}"]) == apart
        assert parse([f"--config={DEMO}", flag, f"[{', '.join(files)}]"]) == apart
    assert parse([f"--config={DEMO}", "--config.more=None"]) == parse([f"--config={DEMO}"])


def test_values_mean_what_python_means(parse):
    config = parse(
        [
            f"--config={DEMO}",
            "--name=None",
            "--checkpoint.monitor=None",
            "--model.compile=True",
            "--data.tasks=['depth', 'edges']",
            "--model.loss_weights={'depth': 2.0, 'edges': 1e-05}",
            "--model.init_args={'num_queries': 8, 'merge': 'concat'}",
            "--trainer.max_epochs=-1",
        ]
    )
    model = config.model.init_args
    assert (config.name, config.checkpoint.monitor, config.trainer.max_epochs) == (None, None, -1)
    assert (model.compile, model.num_queries, model.merge, model.embed_dim) == (True, 8, "concat", 128)
    assert (config.data.init_args.tasks, model.loss_weights) == (["depth", "edges"], {"depth": 2.0, "edges": 1.0e-5})


@pytest.mark.parametrize("text", ["semseg", "1", "0x10", "'None'", "[1, x]", "{a: null}", "[{1}]", "b'1'", "((", ""])
def test_what_is_no_python_value_stays_as_it_is(text):
    assert joined([f"--x={text}"]) == [f"--x={text}"]


def test_a_missing_named_file_is_one_sentence(parse):
    with pytest.raises(ConfigError, match=r"nothing\.yaml") as error:
        parse([f"--config={DEMO}", "--config.model=nothing.yaml"])
    assert "\n" not in str(error.value)
