"""Every file in configs/sweeps/ expands to runs that parse, set what they say, and log what they are compared by."""

import pydoc
from functools import cache, reduce
from operator import getitem
from pathlib import Path

import pytest
import wandb
from torch import nn

from taskformer.callbacks.checkpoints import DELTA_M, Checkpoints, monitors
from taskformer.commands.trainer import TaskformerCLI
from taskformer.models import MQTransformerHead
from taskformer.modules import FixedWeights, MultiTaskModule
from taskformer.sweeps import command_line, read_sweep

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
#: Quantiles at which settings of random and Bayesian sweeps are taken.
QUANTILES = (0.01, 0.99)
SEED = "seed_everything"


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def settings(parse):
    """Parse each command line once."""
    return cache(parse)


def distinct(sweep):
    """List runs of a sweep that differ in more than the seed: all of a grid, some of other methods."""
    if sweep.method == "grid":
        runs = sweep.grid()
    else:
        runs = [{name: each.at(quantile) for name, each in sweep.parameters.items()} for quantile in QUANTILES]
    return [run for run in runs if run.get(SEED) == runs[0].get(SEED)]


def flags(sweep, run):
    """Return the flags of a run, whose command must be ``fit``."""
    program, module, name, command, *words = command_line(sweep, run)[1:]
    assert (Path(program).name[:6], module, name, command) == ("python", "-m", "taskformer", "fit")
    return tuple(words)


def logged(config):
    """Return what the training of a configuration logs that rates it, and whether more is better, without its data."""
    data = pydoc.locate(config.data.class_path)(root="nowhere", tasks=config.data.init_args.tasks)
    module = MultiTaskModule(data.task_specs, nn.Identity())
    module.protocol = config.results.protocol
    return monitors(module) | {DELTA_M: True}


def name_of_class(setting):
    """A class may be chosen by its name alone."""
    return setting["class_path"].rsplit(".", 1)[-1] if isinstance(setting, dict) and "class_path" in setting else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_parses_and_logs_the_metric(path, settings):
    sweep = read_sweep(path)
    parsed = [settings(flags(sweep, run)) for run in distinct(sweep)]
    for run, config in zip(distinct(sweep), parsed, strict=True):
        for name, value in run.items():
            if not name.startswith("config") and name != "model.init_args":
                found = reduce(getitem, name.split("."), config.as_dict())
                assert value in (found, name_of_class(found))
        assert config.name is None, "agents would fight for one folder"
        assert config.trainer.logger.class_path.endswith("WandbLogger")
        assert config.checkpoint.monitor in (sweep.metric.name, None)
    assert len({str(config.as_dict()) for config in parsed}) == len(parsed)
    known = logged(parsed[0])
    assert sweep.metric.goal == ("maximize" if known[sweep.metric.name] else "minimize")


@pytest.mark.parametrize("data", ["rooms", "nyud", "pascal_context", "cityscapes", "taskonomy"])
def test_models_are_compared_on_each_data_set(data, settings):
    sweep = read_sweep(ROOT / "configs" / "sweeps" / f"{data}_models.yaml")
    assert len(sweep.parameters[SEED].grid()) > 1
    parsed = [settings(flags(sweep, run)) for run in distinct(sweep)]
    models = [config.model.class_path.rsplit(".", 1)[-1] for config in parsed]
    assert sorted(models) == ["AutoTaskFormer", "Baseline", "MQTransformer"]
    for part in ("data", "trainer", "checkpoint"):
        first, *others = [vars(config[part]) | {"gradient_clip_val": "the model's own"} for config in parsed]
        assert others == [first, first]
    first, *others = [config.model.init_args.loss_weights for config in parsed]
    assert others == [first, first], "losses with other weights cannot be compared"


def test_an_ablation_changes_what_it_says_and_nothing_else(settings):
    sweep = read_sweep(ROOT / "configs" / "sweeps" / "nyud_mqtransformer_ablations.yaml")
    whole, *others = (settings(flags(sweep, run)).model.init_args.as_dict() for run in sweep.grid())
    changes = [run["model.init_args"] for run in sweep.grid()]
    for change, other in zip(changes[1:], others, strict=True):
        assert {key: other[key] for key in other if other[key] != whole[key]} == change
        MQTransformerHead({"depth": 1}, [8] * 4, [4, 8, 16, 32], **{"scales": whole["scales"], **change})


@pytest.mark.slow  # a training's beginning for each
@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("rooms")], ids=lambda path: path.stem)
def test_trainings_begin_and_find_what_they_are_compared_with(path, monkeypatch, tmp_path):
    class Begun(Exception):  # noqa: N818  # no error
        pass

    def begin(*args):
        raise Begun

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(Checkpoints, "on_train_start", begin)
    sweep = read_sweep(path)
    for run in distinct(sweep):
        with pytest.raises(Begun):  # val/delta_m without single-task runs would be refused before
            TaskformerCLI(["fit", *flags(sweep, run), f"--runs_dir={tmp_path}"])
        wandb.finish()


class Halved(FixedWeights):
    """A balancing method of somebody's own."""

    def __init__(self, weights, factor: float = 0.5):
        super().__init__({task: factor * weight for task, weight in weights.items()})


AXES = f"""
method: grid
metric: {{name: val/loss, goal: minimize}}
parameters:
  config: {{values: [configs/model/mqtransformer.yaml, configs/model/baseline.yaml]}}
  config.data: {{values: [configs/data/rooms.yaml, configs/data/nyud.yaml]}}
  config.encoder: {{values: [null, configs/encoder/hrnet18.yaml]}}
  model.init_args.balancing: {{values: [FixedWeights, {{class_path: {__name__}.Halved, init_args: {{factor: 0.1}}}}]}}
  model.init_args.optimizer: {{parameters: {{init_args: {{parameters: {{lr: {{value: 1.0e-05}}}}}}}}}}
  seed_everything: {{values: [3]}}
command: [python, -m, taskformer, fit, --model.lr_scheduler.power=2, "${{args}}"]
"""


def test_axes_of_every_kind_in_any_order(parse, tmp_path):
    (tmp_path / "a.yaml").write_text(AXES)
    sweep = read_sweep(tmp_path / "a.yaml")
    runs = sweep.grid()
    assert len(runs) == 16
    for run in (runs[0], runs[7], runs[-1]):
        words = command_line(sweep, run)[4:]
        config = parse(tuple(words))
        assert parse(tuple(reversed(words))) == config
        model = config.model.init_args
        assert config.model.class_path.split(".")[-1].lower() == Path(run["config"]).stem
        assert config.data.class_path.split(".")[-1].lower() == f"{Path(run['config.data']).stem}datamodule"
        assert model.backbone.startswith("hrnet") == (run["config.encoder"] is not None)
        assert model.balancing.class_path.rsplit(".", 1)[-1] in str(run["model.init_args.balancing"])
        assert (model.optimizer.init_args.lr, model.lr_scheduler.init_args.power) == (1.0e-5, 2)
        assert config.seed_everything == 3
    assert model.balancing.init_args.factor == 0.1
