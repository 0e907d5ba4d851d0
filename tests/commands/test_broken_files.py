"""What a broken file does to a training, through the real entry point."""

from pathlib import Path

import pytest

from taskformer.cli import main
from taskformer.data import NYUD
from taskformer.datatools.miniature.nyud import write_nyud

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def flags(tmp_path, monkeypatch, tiny):
    """A miniature of NYUD with one truncated map, and the flags that train on it."""
    monkeypatch.chdir(tmp_path)
    write_nyud(tmp_path / "nyud", counts={"train": 4, "val": 2})
    dataset = NYUD(tmp_path / "nyud", "train", {})
    path = dataset.root / "segmentation" / f"{dataset.ids[1]}.png"
    path.write_bytes(path.read_bytes()[:-30])
    return [
        f"--config={CONFIGS}/model/baseline.yaml",
        *("--data=NYUDDataModule", "--data.tasks=[semseg,depth]"),
        *(flag for flag in tiny if not flag.startswith("--data.root")),
        f"--data.root={tmp_path / 'nyud'}",
        "--name=run",
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_file_stops_the_training_with_its_name(flags, workers, capsys):
    with pytest.raises(SystemExit) as error:
        main(["fit", *flags, f"--data.num_workers={workers}"])
    assert error.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("taskformer: ")
    assert "/segmentation/" in said
    assert "truncated" in said
    assert len(said) < 300


def test_with_skip_the_training_goes_on_and_names_the_file_once(flags, caplog):
    main(["fit", *flags, "--data.on_error=skip", "--trainer.max_epochs=2"])
    assert (Path("runs") / "run" / "checkpoints" / "last.ckpt").exists()
    assert caplog.text.count("/segmentation/") == 1
