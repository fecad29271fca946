"""The notebook as a reader runs it: every cell, in a kernel of its own, with a small model."""

import pytest
from tiny_models import ROOT, make_tiny_gpt2

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytestmark = pytest.mark.e2e


def test_the_tour_runs_and_draws_every_error(tiny_tokenizer, tmp_path, monkeypatch):
    make_tiny_gpt2(tiny_tokenizer, head=False).save_pretrained(tmp_path)
    monkeypatch.setenv("TOUR_MODEL", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks/tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without outputs
    folder = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=240, resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == 5  # the weights, three errors of weights, one of outputs
    assert "bits a weight" in outputs[-1]["text"]
