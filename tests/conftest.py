"""What all tests share: no network, quiet loggers, and a handful of real rooms."""

import json
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # `make test` runs a process on each processor: more threads would only wait
    os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent
ROOMS = ROOT / "data" / "rooms"


@pytest.fixture(scope="session")
def small_rooms(tmp_path_factory):
    """The rooms with 8 training, 3 validation and 3 test images."""
    folder = tmp_path_factory.mktemp("rooms")
    for entry in ROOMS.iterdir():
        if entry.stem not in ("train", "val", "test"):
            (folder / entry.name).symlink_to(entry)
    for split, count in {"train": 8, "val": 3, "test": 3}.items():
        records = json.loads((ROOMS / f"{split}.json").read_text())
        (folder / f"{split}.json").write_text(json.dumps(records[:count]))
    return folder


@pytest.fixture(scope="session")
def tiny(small_rooms):
    """Flags that make any configuration train in seconds on a few rooms."""
    return [
        f"--data.root={small_rooms}",
        "--data.batch_size=4",
        "--data.num_workers=0",
        "--model.embed_dim=16",
        "--model.head_dim=8",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--plots.draw=false",
    ]


@pytest.fixture(scope="session")
def parse():
    """Parse the flags of ``fit`` as the command line does, without building anything; the parser is made once."""
    from taskformer.commands.parser import in_order, joined
    from taskformer.commands.trainer import TaskformerCLI

    class Parser(TaskformerCLI):
        def parse_arguments(self, parser, args):
            self.parser = parser
            raise KeyboardInterrupt

    cli = Parser.__new__(Parser)
    with pytest.raises(KeyboardInterrupt):
        cli.__init__(["fit"])

    def parsed(words):
        config = cli.parser.parse_args(["fit", *in_order(joined(words))]).fit
        config.pop("config")  # the names of the files
        return config

    return parsed
