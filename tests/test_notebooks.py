"""Every notebook runs from top to bottom, and is committed as it ran."""

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
#: Bytes of all pictures of a notebook.
MEGABYTE = 2**20


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs(cells):
    return [output for cell in cells for output in cell.outputs]


def pictures(output):
    return [content for kind, content in output.get("data", {}).items() if kind in ("image/png", "image/jpeg")]


@pytest.mark.parametrize(
    "path",
    # All but the first train, for a minute or two.
    [pytest.param(path, marks=[pytest.mark.slow] if k else []) for k, path in enumerate(NOTEBOOKS)],
    ids=[path.stem for path in NOTEBOOKS],
)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(path.parent)}}).execute()
    found = outputs(cell for cell in notebook.cells if cell.cell_type == "code")
    assert [output.text for output in found if output.get("name") == "stderr"] == []
    assert any(pictures(output) for output in found)


@EACH
def test_outputs_are_committed_without_noise(path):
    cells = code_cells(path)
    assert all(cell.execution_count for cell in cells)
    found = outputs(cells)
    assert {output.output_type for output in found} <= {"stream", "display_data", "execute_result"}
    assert [output.text for output in found if output.get("name") == "stderr"] == []
    assert 0 < sum(len(base64.b64decode(picture)) for output in found for picture in pictures(output)) < MEGABYTE
    text = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in found)
    assert not re.search(r"/(home|root|tmp|work|usr)/", text)


def test_all_notebooks_begin_alike():
    assert len({code_cells(path)[0].source for path in NOTEBOOKS}) == 1


def test_where_there_is_only_a_notebook_the_repository_is_cloned(tmp_path):
    """As on Colab; nothing is installed here, for taskformer is."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this copy of the repository cannot be cloned: it needs git, and its history")
    first = code_cells(NOTEBOOKS[0])[0].source

    def begin(**env):
        command = [sys.executable, "-c", f"{first}\nprint(ROOT)"]
        return subprocess.run(command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, check=False)

    assert "set REPOSITORY" in begin(TASKFORMER_REPOSITORY="").stderr
    for _ in range(2):  # the second time it is there
        done = begin(TASKFORMER_REPOSITORY=str(ROOT))
        assert done.stdout.strip() == str(tmp_path / "taskformer"), done.stderr
    assert (tmp_path / "taskformer" / "data" / "rooms" / "rooms.json").exists()
