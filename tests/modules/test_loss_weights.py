"""Weights of losses: one by one, or a recipe's, which are what the configurations of its data sets say."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.modules import Baseline
from taskformer.modules.loss_weights import RECIPES, RecipeName

ROOT = Path(__file__).parent.parent.parent
NYUD = {"semseg": {"classes": ["a", "b"]}, "depth": {}, "normals": {}, "edges": {}}
PASCAL = {"semseg": {"classes": ["a", "b"]}, "human_parts": {}, "saliency": {}, "normals": {}, "edges": {}}


def weights(recipe, tasks=NYUD):
    return Baseline(tasks, embed_dim=8, head_dim=4, backbone="test_resnet", loss_weights=recipe).loss_weights


@pytest.mark.parametrize("recipe", ["mqtransformer", "invpt", "mtinet"])
def test_the_usual_ones_are_the_tasks_defaults(recipe):
    assert list(weights(recipe).values()) == [1, 1, 10, 50]
    assert list(weights(recipe, PASCAL).values()) == [1, 2, 5, 10, 50]
    assert weights(recipe, PASCAL) == weights(None, PASCAL)


def test_others_differ():
    assert set(weights("sak", PASCAL).values()) == {1.0}
    assert weights("mtlora", {name: PASCAL[name] for name in ("normals", "human_parts")}) == {
        "normals": 10.0,
        "human_parts": 2.0,
    }


@pytest.mark.parametrize("data", ["nyud", "cityscapes", "taskonomy"])
def test_adashares_are_those_of_its_data(data):
    config = yaml.safe_load((ROOT / "configs" / "data" / f"{data}_adashare.yaml").read_text())
    assert RECIPES[f"adashare_{data}"] == config["data"]["init_args"]["loss_weights"]


def test_every_recipe_is_a_choice_of_the_command_line(parse):
    assert set(get_args(RecipeName)) == set(RECIPES)
    flags = ["--model=Baseline", "--data=RoomsDataModule"]
    assert parse([*flags, "--model.loss_weights=invpt"]).model.init_args.loss_weights == "invpt"
    given = parse([*flags, "--model.loss_weights={depth: 2}"]).model.init_args.loss_weights
    assert given == {"depth": 2.0}
    with pytest.raises(ConfigError, match="loss_weights"):
        parse([*flags, "--model.loss_weights=invp"])


def test_a_recipe_without_the_task_is_refused():
    with pytest.raises(
        ConfigError, match=r"of adashare_nyud are of semseg, normals, depth, not of edges; give numbers"
    ):
        weights("adashare_nyud")
    with pytest.raises(UnknownNameError, match=r"unknown recipe of loss_weights 'invp' .did you mean 'invpt'"):
        weights("invp")
    with pytest.raises(ConfigError, match=r"loss_weights\.depth must be in \[0, inf\), got -1"):
        weights({"depth": -1.0})
