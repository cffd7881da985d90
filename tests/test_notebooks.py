"""The notebooks run from top to bottom, and their dashboards are in their output."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PAGES = {
    "01_model_diffing": ["prompt.html", "tuned_features.html"],
    "02_cross_layer_transcoder": ["clt.html", "prompt.html"],
}
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == list(PAGES)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    root = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without their output"
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "display_data" and "text/html" in output.data
    ]
    assert any(text.startswith('<iframe srcdoc="&lt;!doctype html&gt;') for text in shown)
    pages = sorted(p.name for p in tmp_path.glob("*.html"))
    assert pages == PAGES[path.stem]
