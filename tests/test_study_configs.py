"""Every file in configs/studies/ is a study whose runs parse, and whose commands train the same."""

import subprocess
from pathlib import Path

import pytest
import yaml

from taskformer.studies import read_study
from taskformer.studies.evidence import command

ROOT = Path(__file__).parent.parent
#: Those of supernets have a file and tests of their own.
FILES = [file for file in sorted(ROOT.glob("configs/studies/*.yaml")) if not file.stem.startswith("supernet_")]


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_has_enough_seeds_and_one_budget(path):
    study = read_study(path)
    assert len(study.seeds) >= 3
    assert f"benchmarks/study.py configs/studies/{path.name}" in path.read_text()
    for variant in study.variants:
        assert (
            variant.configuration["trainer"]["max_epochs"]
            == variant.configuration["trainer"]["check_val_every_n_epoch"]
        ), "nothing is chosen by a validation on the way"


@pytest.mark.slow  # half a second for each arm
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_parses_and_its_command_trains_the_same(path, parse, tmp_path):
    study = read_study(path)
    parsed = {}
    for trial in study.trials(seeds=study.seeds[:1]):
        file = tmp_path / f"{trial.name}.yaml"
        file.write_text(yaml.safe_dump(trial.configuration, sort_keys=False))
        parsed[trial.name] = parse([f"--config={file}"])
        assert parse(command(trial)[2:]) == parsed[trial.name]
    assert len({str(config.as_dict()) for config in parsed.values()}) == len(parsed)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git")
def test_what_is_kept_of_studies_is_not_ignored():
    ignored = ["git", "check-ignore", "--quiet"]
    assert subprocess.run([*ignored, "docs/studies/decoders/runs/plain-seed0.json"], check=False).returncode == 1
    assert subprocess.run([*ignored, "runs/decoders/0000/metrics.json"], check=False).returncode == 0
