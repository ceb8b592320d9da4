"""Every notebook runs, in an empty folder, and what is committed of it is small and names no machine."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from own_process import environment

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# Where a test is content with fewer steps than a reader sees; every program of the notebook is compiled all the same,
# but for pictures: of 47 worlds every fifth is drawn.
FEWER = {
    "01_custom_loop": {"STEP_COUNT = 128, 500": "STEP_COUNT = 128, 20", "step_count=1200": "step_count=20"},
    "02_offline_to_online": {
        "limit_schedule(24,": "limit_schedule(6,",
        "step_count=2000": "step_count=20",
        "step_count=1500": "step_count=20",
        "CHUNKS = 16, 4, 8": "CHUNKS = 16, 4, 2",
    },
    "03_offline_methods": {"UPDATES = 3000": "UPDATES = 20", "step_count=20_000": "step_count=5_000"},
    "04_worlds_and_pixels": {
        "SHOWN = envs.names()": "SHOWN = envs.names()[::5]",
        "COUNT, ITERATIONS = 5.0, 16, 400": "COUNT, ITERATIONS = 5.0, 16, 40",
    },
    "06_world_model": {"UPDATES, LENGTH, BATCH = 2500": "UPDATES, LENGTH, BATCH = 20"},
}

# folders of a machine, in sources, outputs or metadata; written in parts, so that this file does not match itself
MACHINE = re.compile("/(?:" + r"work|home|root|Users|tmp|var|opt|mnt|private)/|\b[A-Z]:\\+Users")
PICTURE = re.compile(r'"image/png": "[^"]*"')  # letters at random


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND")  # conftest.py sets it for tests; a reader has none, and one device
    monkeypatch.setenv("XLA_FLAGS", environment()["XLA_FLAGS"])
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):  # no profile or kernel of the user's
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "folder"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    for written, fewer in FEWER.get(path.stem, {}).items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and written in cell.source]
        cell.source = cell.source.replace(written, fewer)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()  # raises CellExecutionError with the cell and its traceback
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert list(folder.iterdir()) == []


@notebooks
def test_what_is_committed(path):
    text = path.read_text("utf-8")
    assert len(text) < 200_000
    assert MACHINE.findall(PICTURE.sub("", text)) == []
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.get("name", output.output_type) for cell in code for output in cell.outputs}
    assert kinds <= {"stdout", "display_data", "execute_result"}


@pytest.mark.parametrize("line", ['"/' + 'work/here"', "File /" + "home/me/x.py", r"line\n/" + "tmp/abc/pretrained"])
def test_a_folder_of_a_machine_is_found(line):
    assert MACHINE.search(line)


@pytest.mark.parametrize("line", ["actor/loss", "arXiv/2412", "benchmarks/offline_to_online.py"])
def test_other_text_is_not(line):
    assert not MACHINE.search(line)
