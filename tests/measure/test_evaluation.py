"""What a record keeps beside the scores: batch invariance, and the control's row."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt2_quant import records
from gpt2_quant.cli import parser, settings_from
from gpt2_quant.data.datasets import Split
from gpt2_quant.data.tokens import tokenize
from gpt2_quant.inference import engine
from gpt2_quant.measure import evaluation, latency
from gpt2_quant.measure.session import eager
from gpt2_quant.models.cards import save_model
from gpt2_quant.models.variants import BASELINE, ONNX, TFIDF


class OfItsBatch(torch.nn.Module):
    """Logits that lean by 0.25 towards the second class where texts stand side by side."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask, use_cache):
        # Every other text is a near tie between the first class and the second.
        lead = torch.where(torch.arange(len(input_ids)) % 2 == 0, 0.1, 1.0)
        logits = torch.zeros(len(input_ids), 4)
        logits[:, 0], logits[:, 1] = lead, 0.25 * (len(input_ids) > 1)
        return SimpleNamespace(logits=logits)


@pytest.fixture
def tokens(tiny_tokenizer, tiny_texts):
    return tokenize(tiny_tokenizer, Split("test", *(x[:60] for x in tiny_texts), "demo"), 64)


def test_batch_invariance_counts_what_a_batch_changes(tokens, tiny_tokenizer):
    found = evaluation.batch_invariance(OfItsBatch(), tokens, tiny_tokenizer.pad_token_id)
    assert found["n"] == 48 and found["batch_sizes"] == [1, 16]
    # Alone, a text is the first of its batch, which leads by 0.1.
    assert found["largest_logit_difference"] == pytest.approx(0.9)
    assert found["flips"] == 24


def test_a_float_model_is_batch_invariant(tiny_gpt2, tokens, tiny_tokenizer):
    found = evaluation.batch_invariance(tiny_gpt2, tokens, tiny_tokenizer.pad_token_id)
    assert found["flips"] == 0
    # Sums over 64 and 256 products in another order: some 16 of float32's steps, a few times over.
    largest = float(np.abs(tiny_gpt2.score.weight.detach()).sum(1).max())
    assert found["largest_logit_difference"] < 1000 * 2**-24 * max(largest, 1)


def test_gpt2_and_the_control_are_scored_and_timed_together(
    tiny_gpt2, tiny_tokenizer, tiny_texts, tmp_path, monkeypatch
):
    """From weights to records, best mode included; nothing is compiled."""
    test = Split("test", *(x[:40] for x in tiny_texts), "demo")
    splits = dict.fromkeys(("train", "validation", "test"), test)
    quick = replace(
        latency.PROTOCOLS["cpu"], shapes=((2, 16), (1, 8)), best_shapes=((2, 16),), max_rounds=1
    )
    monkeypatch.setitem(latency.PROTOCOLS, "cpu", quick)
    monkeypatch.setattr(latency, "MEMORY_SHAPE", (2, 16))
    monkeypatch.setattr(latency, "load_splits", lambda settings: splits)
    models, results = tmp_path / "models", tmp_path / "results"
    folders = ["--models-dir", str(models), "--results-dir", str(results), "--device", "cpu"]
    settings = settings_from(parser("").parse_args(folders))
    folder = models / BASELINE.folder
    save_model(tiny_gpt2, tiny_tokenizer, folder, card="")
    of_other_weights = records.save_record(results, ONNX[BASELINE.key].key, {})
    evaluation.evaluate_variant(
        settings, BASELINE.key, tiny_gpt2, tiny_tokenizer, splits, folder=folder, baseline=folder
    )
    assert not of_other_weights.exists()
    marker = results / "cache" / "best_mode_begun"
    marker.parent.mkdir()
    marker.touch()  # as a run leaves it that was killed while it compiled
    killed_before = latency.measure_and_store(settings)[BASELINE.key]
    assert {entry["mode"] for entry in killed_before["latency"]} == {"eager"}
    assert any("killed while preparing it" in note for note in killed_before["notes"])
    assert not marker.exists()

    def best_mode(model, device):
        assert marker.exists()
        return eager(model)

    monkeypatch.setattr(engine, "best_mode", best_mode)
    fitted = evaluation.evaluate_tfidf(settings, TFIDF, splits, folder)
    assert fitted["metrics"]["accuracy"]["value"] == 1  # on the texts that it was fitted on
    stored = latency.measure_and_store(settings)
    assert list(stored) == [BASELINE.key, TFIDF.key] and not marker.exists()
    for record in records.load_records(results).values():
        assert records.schema_fault(record, records.VARIANT_RECORD) == ""
    checked = stored[BASELINE.key]["best_check"]
    assert (checked["n"], checked["flips"]) == (40, 0)
    assert checked["accuracy"] == stored[BASELINE.key]["metrics"]["accuracy"]["value"]
    assert checked["largest_logit_difference"] < 1e-5
    modes = [entry["mode"] for entry in stored[BASELINE.key]["latency"]]
    assert sorted(modes) == ["best", "eager", "eager"]
    (entry,) = stored[TFIDF.key]["latency"]
    assert (entry["batch_size"], entry["seq_len"], entry["device"]) == (2, 16, "cpu")
    assert "memory" not in stored[TFIDF.key] and TFIDF.label in latency.table(stored)
