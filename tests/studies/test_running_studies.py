"""Which runs a study has, and that they stay what they are; and a study from its file to its report."""

from pathlib import Path

import pytest
import yaml

from taskformer.errors import ConfigError
from taskformer.studies.running import Place, _plan

ROOT = Path(__file__).parents[2]


def place():
    return Place(Path("runs/small"), Path("docs/studies/small"))


def planned():
    return [Path(file).stem for file in yaml.safe_load(Path("runs/small/grid.yaml").read_text())["parameters"]["config"]
            ["values"]]  # fmt: skip


def test_runs_keep_their_numbers_when_arms_and_seeds_are_added_anywhere(write):
    study = write()
    before = _plan(study, place())
    assert before == {trial.name: number for number, trial in enumerate(study.trials())}
    arms = {"first": {"config": ["model.yaml"]}} | {
        name: {"config": list(arm.config), "settings": dict(arm.settings)} for name, arm in study.arms.items()
    }
    after = _plan(write(arms=arms, seeds=[4, 0, 1]), place())
    assert {name: after[name] for name in before} == before
    assert sorted(after.values()) == list(range(3 * 5))
    assert planned() == sorted(after, key=after.__getitem__)
    del arms["wide"]
    assert _plan(write(arms=arms, seeds=[0]), place()) == after, "runs of arms that are left out keep theirs"


def test_an_arm_that_changed_since_it_was_begun_is_refused(write):
    number = _plan(write(), place())["wide-seed1"]
    changed = {"wide": {"config": ["model.yaml"], "settings": {"model.init_args.embed_dim": 256}}}
    arms = {name: {"config": ["model.yaml"]} for name in ("single", "plain")} | changed
    _plan(write(arms=arms), place())  # nothing was trained yet
    file = Path("runs/small/arms/wide-seed1.yaml")
    assert yaml.safe_load(file.read_text())["model"]["init_args"]["embed_dim"] == 256
    begun = Path(f"runs/small/{number:04d}/config.yaml")
    begun.parent.mkdir()
    begun.touch()
    with pytest.raises(ConfigError, match=r"wide of small\.yaml is another than when runs/small/0007 was begun with"):
        _plan(write(), place())
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text().replace("max_epochs: 6", "max_epochs: 7"))
    with pytest.raises(ConfigError, match="give the changed arm another name, or undo the change"):
        _plan(write(arms=arms), place())
