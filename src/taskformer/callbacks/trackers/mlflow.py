"""What MLflow keeps of a run: parameters, tags, pictures with a slider, tables and files."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image

from taskformer.callbacks.trackers.base import NOTHING, Names, Tracker, tracks
from taskformer.callbacks.trackers.text import is_picture
from taskformer.errors import MissingExtraError
from taskformer.evaluation.gallery import DrawnSample, gallery_sheet

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Most parameters that MLflow takes at once.
BATCH = 100
#: Tag by which MLflow's pages find tables.
TABLES = "mlflow.loggedArtifacts"


class LocalMLFlowLogger(MLFlowLogger):
    """Lightning's logger for MLflow, with a store in the run's own folder where no other is named.

    MLflow's own default is one database in the current folder, which runs that start at once would create together.

    >>> logger = LocalMLFlowLogger(save_dir="runs/demo")  # doctest: +SKIP

    Args:
        experiment_name: MLflow's experiment.
        tracking_uri: A server or another store, by default what ``MLFLOW_TRACKING_URI`` says; None: ``mlflow.db`` in
            the folder.
        save_dir: The folder.
        artifact_location: Where files go; None: ``mlruns`` in the folder, or where a server puts them.
        kwargs: Further arguments of ``MLFlowLogger``.
    """

    def __init__(
        self,
        experiment_name: str = "taskformer",
        tracking_uri: str | None = os.getenv("MLFLOW_TRACKING_URI"),
        save_dir: str = ".",
        artifact_location: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not tracking_uri:
            folder = Path(save_dir).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
            artifact_location = artifact_location or str(folder / "mlruns")
        super().__init__(
            experiment_name,
            tracking_uri=tracking_uri,
            save_dir=save_dir,
            artifact_location=artifact_location,
            **kwargs,
        )


@tracks(MLFlowLogger)
class MlflowTracker(Tracker):
    """Write to the logger's run.

    MLflow never changes a parameter: where a training goes on with another value, that is a tag of the same name.

    >>> from taskformer.callbacks.trackers import trackers
    >>> [tracker] = trackers([LocalMLFlowLogger(save_dir="runs/demo")])  # doctest: +SKIP
    """

    kind = "mlflow"

    @classmethod
    def arguments(cls, names: Names, known: Mapping[str, str]) -> dict[str, Any]:
        """Name the run; one that is known keeps its id.

        Raises:
            MissingExtraError: If MLflow is not installed.
        """
        try:
            import mlflow  # noqa: F401  # only to see whether it is there
        except ImportError as error:
            package = extra = "mlflow"
            raise MissingExtraError(package, extra) from error
        return {"run_name": names.name, "tags": {"group": names.group, "tags": ", ".join(names.tags)}, **known}

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client."""
        client: MlflowClient = self.logger.experiment
        return client

    @property
    def identity(self) -> dict[str, str]:
        """The run's id, and the server that has it."""
        place = self.logger._tracking_uri
        return {"run_id": self._run} | ({"tracking_uri": place} if place.startswith("http") else {})

    def describe(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Keep the configuration as parameters; facts as metrics where they are numbers, else as tags."""
        from mlflow.entities import Param

        before = self.client.get_run(self._run).data.params
        values = {_key(name): str(value) for name, value in config.items()}
        new = [Param(name, value) for name, value in values.items() if name not in before]
        for start in range(0, len(new), BATCH):
            self.client.log_batch(self._run, params=new[start : start + BATCH])
        for name in before.keys() & values.keys():
            if before[name] != values[name]:
                self.client.set_tag(self._run, name, values[name])
        for name, value in facts.items():
            if isinstance(value, int | float):
                self.client.log_metric(self._run, _key(name), value)
            else:
                self.client.set_tag(self._run, _key(name), value)

    def define(self, senses: Mapping[str, str]) -> None:
        """Keep the directions as a file; MLflow itself knows none."""
        self.client.log_dict(self._run, dict(senses), "better.json")

    def best(self, values: Mapping[str, float], senses: Mapping[str, str]) -> None:
        """Keep the best values so far beside the values themselves, of which MLflow shows the last."""
        self.values({f"best/{name}": value for name, value in values.items()})

    def gallery(self, key: str, samples: Sequence[DrawnSample], epoch: int) -> None:
        """Keep a sheet of each image, which has a slider over the epochs."""
        for sample in samples:
            self.client.log_image(
                self._run, np.asarray(gallery_sheet([sample])), key=_key(f"{key}/{sample.name}"), step=epoch
            )

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep a table as MLflow's own ``log_table`` does, which needs pandas; its pictures are files beside it."""
        cells = [[self._cell(f"{key}/{row}-{column}", cell) for column, cell in enumerate(line)]
                 for row, line in enumerate(rows)]  # fmt: skip
        file = f"{_key(key)}.json"
        self.client.log_dict(self._run, {"columns": list(columns), "data": cells}, file)
        tag = self.client.get_run(self._run).data.tags.get(TABLES, "[]")
        if file not in [each["path"] for each in json.loads(tag)]:
            tables = [*json.loads(tag), {"path": file, "type": "table"}]
            self.client.set_tag(self._run, TABLES, json.dumps(tables))

    def picture(self, key: str, path: Path, step: int | None = None) -> None:
        """Keep a picture; those with steps have a slider."""
        if step is None:
            self.client.log_artifact(self._run, str(path), _key(key))
        else:
            with Image.open(path) as image:
                self.client.log_image(self._run, image, key=_key(key), step=step)

    def values(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Keep numbers."""
        self.logger.log_metrics({_key(name): value for name, value in values.items()}, step)

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any] = NOTHING) -> None:
        """Keep a file or folder, and what to know of it beside it."""
        folder = f"{kind}/{_key(name)}"
        keep = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        keep(self._run, str(path), folder)
        self.client.log_dict(self._run, dict(metadata), f"{folder}/metadata.json")

    @property
    def _run(self) -> str:
        return str(self.logger.run_id)

    def _cell(self, name: str, cell: Any) -> Any:
        """Return a cell as a JSON table has it, and keep it if it is a picture."""
        if not is_picture(cell):
            return None if isinstance(cell, float) and cell != cell else cell
        file = f"table_images/{_key(name)}.png"
        self.client.log_image(self._run, cell, file)
        return {"type": "image", "filepath": file, "compressed_filepath": file}


def _key(name: str) -> str:
    """Replace the characters that MLflow takes in no name."""
    return re.sub(r"[^\w/. -]", "_", name, flags=re.ASCII)
