"""``taskformer data``: every command through the real entry point."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from taskformer.cli import main
from taskformer.commands import data
from taskformer.datatools.miniature import writer
from taskformer.datatools.prepare import PREPARED

ROOT = Path(__file__).parent.parent.parent
SET_COMMANDS = ("verify", "preview", "stats", "shard")


@pytest.fixture(scope="module")
def nyud(tmp_path_factory):
    return writer("nyud")(tmp_path_factory.mktemp("nyud") / "data")


def fails(args, capsys, status=2):
    """Run a command that ends with a sentence, and return it."""
    with pytest.raises(SystemExit) as done:
        main(["data", *map(str, args)])
    assert done.value.code == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("args", [[], *([command] for command in SET_COMMANDS)])
def test_help_answers_without_importing_torch(args):
    code = f"""if True:
        import sys
        from taskformer.cli import main
        try:
            main(["data", *{args}, "--help"])
        finally:
            sys.stderr.write(str("torch" in sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False")
    assert "usage: taskformer data" in done.stdout
    if not args:
        assert all(f"  {name} " in done.stdout for name in data.COMMANDS)


@pytest.mark.parametrize("args", [
    *([command] for command in (*SET_COMMANDS, "render")),
    *([command, name] for command in ("prepare", "miniature") for name in PREPARED),
])  # fmt: skip
def test_every_option_is_explained(args, capsys):
    with pytest.raises(SystemExit) as done:
        main(["data", *args, "--help"])
    assert done.value.code == 0
    options = capsys.readouterr().out.split("options:")[1]
    entries = ("\n" + options).split("\n  -")[1:]
    assert entries
    for entry in entries:
        text = " ".join(entry.split()).split("(type:")[0].split("(default:")[0].split("(required")[0]
        words = [word for word in text.split() if not word.startswith("-") and word.upper() != word]
        assert len(words) >= 2, entry


def test_right_data_is_status_0_and_json_has_the_numbers(nyud, tmp_path, capsys):
    main(["data", "verify", "nyud", f"--root={nyud}", f"--json={tmp_path / 'report.json'}"])
    out = capsys.readouterr().out
    assert f"all 6 images of nyud in {nyud} are right" in out
    assert "semseg" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"]
    assert report["splits"]["train"]["opened"] == 4


def test_wrong_data_is_status_1_and_the_files_are_listed(tmp_path, capsys):
    main(["data", "miniature", "nyud", f"--out={tmp_path / 'x'}", "--fault=truncated", "--layout=b"])
    out = capsys.readouterr().out
    damaged = out.split("with the fault 'truncated' in ")[1].strip()
    assert Path(damaged).is_file()
    with pytest.raises(SystemExit) as done:
        main(["data", "verify", "nyud", f"--root={tmp_path / 'x'}", f"--json={tmp_path / 'report.json'}"])
    assert done.value.code == 1
    out = capsys.readouterr().out
    assert f"corrupt  train  {damaged}" in out
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert (finding["file"], finding["kind"], finding["task"]) == (damaged, "corrupt", "semseg")
    main(["data", "verify", "nyud", f"--root={tmp_path / 'x'}", "--tasks=[depth,edges]"])
    assert "are right" in capsys.readouterr().out


def test_partial_copies_and_samples(nyud, tmp_path, capsys):
    for entry in nyud.iterdir():
        if entry.name != "miniature.json":
            (tmp_path / entry.name).symlink_to(entry)
    fails(["verify", "nyud", f"--root={tmp_path}", "--sample=1"], capsys, 1)
    main(["data", "verify", "nyud", f"--root={tmp_path}", "--sample=1", "--partial"])
    assert "2 of 6 images of nyud" in capsys.readouterr().out


def test_a_configuration_names_data_and_options(nyud, tmp_path, capsys):
    config = f"--config={ROOT}/configs/data/nyud_13.yaml"
    main(["data", "stats", config, f"--root={nyud}", "--tasks=[semseg]", f"--json={tmp_path / 'stats.json'}"])
    (task,) = json.loads((tmp_path / "stats.json").read_text())["tasks"].values()
    assert len(task["classes"]) == 13
    main(["data", "stats", "nyud", f"--root={nyud}", "--tasks=[semseg]", f"--json={tmp_path / 'stats.json'}"])
    (task,) = json.loads((tmp_path / "stats.json").read_text())["tasks"].values()
    assert len(task["classes"]) == 40
    capsys.readouterr()
    main(["data", "verify", config, f"--root={nyud}"])
    assert "all 6 images" in capsys.readouterr().out


def test_a_whole_experiment_is_a_configuration_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    block = yaml.safe_load((ROOT / "configs/data/rooms.yaml").read_text())
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 3, "model": "Baseline", **block}))
    main(["data", "verify", f"--config={path}", "--sample=2", "--tasks=[depth]"])
    assert "6 of 640 images of rooms in data/rooms were opened; they are right" in capsys.readouterr().out


def test_own_folders_are_checked_by_their_configuration(tmp_path, capsys):
    for split in ("train", "val"):
        for name in "ab":
            pixels = np.full((6, 8, 3), 9, np.uint8)
            for folder, values in {"image": pixels, "semseg": pixels[..., 0] % 3}.items():
                (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(tmp_path / folder / split / f"{name}.png")
    settings = {
        "root": str(tmp_path),
        "image": "image/{split}/{id}.png",
        "labels": {"semseg": {"file": "semseg/{split}/{id}.png", "spec": {"classes": ["x", "y"]}}},
        "splits": {"train": "train", "val": "val"},
    }
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump({"data": {"class_path": "FolderDataModule", "init_args": settings}})
    )
    main(["data", "verify", f"--config={tmp_path / 'own.yaml'}"])
    assert "all 4 images of folder" in capsys.readouterr().out
    Image.fromarray(np.full((6, 8), 2, np.uint8)).save(tmp_path / "semseg" / "val" / "b.png")
    fails(["verify", f"--config={tmp_path / 'own.yaml'}"], capsys, 1)


def test_previews_are_drawn(nyud, tmp_path, capsys):
    main(["data", "preview", "nyud", f"--root={nyud}", f"--out={tmp_path / 'x.png'}", "--count=2", "--width=50"])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'x.png'}\n"
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.size[0] == 5 * 52 - 2


@pytest.mark.parametrize("name", PREPARED)
def test_miniatures_are_written_and_right(name, tmp_path, capsys):
    main(["data", "miniature", name, f"--out={tmp_path / 'x'}"])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'x'}\n"
    main(["data", "verify", name, f"--root={tmp_path / 'x'}"])
    assert "are right" in capsys.readouterr().out


def test_real_data_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert f"{tmp_path} is not empty" in fails(["miniature", "nyud", f"--out={tmp_path}"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


MISTAKES = [
    (["verfy"], "unknown data command 'verfy' (did you mean 'verify'?)"),
    (["verify", "nyd"], "unknown data set 'nyd' (did you mean 'nyud'?)"),
    (["prepare", "nyd"], "unknown data set 'nyd' (did you mean 'nyud'?)"),
    (["miniature", "pascal"], "unknown data set 'pascal' (did you mean 'pascal_context'?)"),
    (["verify"], "give the name of a data set (cityscapes, combined, folder, nyud, "),
    (["verify", "nyud", "--config=x.yaml"], "give the name of a data set"),
    (["verify", "folder"], "'folder' needs options that only a YAML file can give"),
    (["verify", "--config=nowhere.yaml"], "nowhere.yaml does not exist"),
    (["verify", "nyud", "--root=nowhere"], "nowhere"),
    (["verify", "nyud", "--sample=few"], "sample: expected int, got few; see `taskformer data verify --help`"),
    (["verify", "nyud", "--smple=1"], "--smple=1 (did you mean 'sample'?)"),
    (["verify", "rooms", "--tasks=[dept]"], "(did you mean 'depth'?)"),
    (["stats", "rooms", "--tasks=[dept]"], "(did you mean 'depth'?)"),
    (["preview", "rooms"], "out"),
    (["miniature", "nyud", "--out=nowhere", "--fault=trunc"], "unknown fault 'trunc' (did you mean 'truncated'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_mistakes_are_one_sentence(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = fails(args, capsys)
    assert error.startswith("taskformer: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_shards_are_written(nyud, tmp_path, capsys):
    pytest.importorskip("litdata", reason="litdata comes with the extra `stream`")
    main(["data", "shard", "nyud", f"--root={nyud}", f"--out={tmp_path / 'shards'}", "--tasks=[depth]", "--workers=0"])
    assert f"wrote {tmp_path / 'shards'}" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {"train", "val"}
