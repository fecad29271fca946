"""Damaged versions are what their names say; a metric that knows the originals is right."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_quant.errors import UserError
from gpt2_quant.metrics.sentences import split_sentences
from gpt2_quant.metrics.studies import coherence_study
from gpt2_quant.metrics.studies.coherence_study import control_table, damaged_versions, whole_texts


def texts(n: int) -> list[str]:
    return [" ".join(f"Text {k} says {i}." for i in range(5)) for k in range(n)] + ["Too short."]


def test_versions_hold_the_sentences_they_should():
    versions = damaged_versions(texts(3), permutations=2)
    assert versions["text"].nunique() == 3
    sentences = versions["version"].map(split_sentences)
    for text, group in versions.groupby("text"):
        of = {control: sentences[rows] for control, rows in group.groupby("control").groups.items()}
        original = of["original"].iloc[0]
        assert " ".join(original) == texts(3)[text]
        assert len(of["shuffle"]) == len(of["block shuffle"]) == 2
        for shuffled in (*of["shuffle"], *of["block shuffle"]):
            assert sorted(shuffled) == sorted(original) and shuffled != original
        (intruded,), (switched,) = of["intrusion"], of["topic switch"]
        assert len(set(intruded) - set(original)) == 1 and len(intruded) == 6
        assert switched[:2] == original[:2] and not set(switched[2:]) & set(original)
        assert [len(*of[f"{what} twice"]) for what in ("one sentence", "each sentence")] == [6, 10]
        assert of["whole text twice"].iloc[0] == original * 2


def test_held_out_documents_stand_beside_those_looked_at(tmp_path):
    news = SimpleNamespace(texts=texts(3))
    (tmp_path / "own.txt").write_text("\n".join(texts(2)), encoding="utf-8")
    sets = whole_texts(None, news, tmp_path / "own.txt", 2)
    documents, source = sets["held_out"]
    assert len(sets["coherence"][0]) == 2 and documents == texts(2)
    assert source.startswith("own.txt, sha256 ")
    assert set(whole_texts(None, news, None, 2)) == {"coherence"}
    (tmp_path / "short.txt").write_text("One. Two.\n" * 9, encoding="utf-8")
    with pytest.raises(UserError, match="at least four sentences"):
        whole_texts(None, news, tmp_path / "short.txt", 2)


def test_table_of_a_perfect_and_of_a_blind_metric(monkeypatch):
    known = {"\n".join(split_sentences(text)) for text in texts(4)}
    metrics = {
        "perplexity": lambda read: np.array([float(text in known) for text in read]),
        "blind": lambda read: np.zeros(len(read)),
    }
    monkeypatch.setattr(coherence_study, "coherence_metrics", lambda tools: metrics)
    table = control_table(texts(4), None, permutations=3).set_index(["metric", "control"])
    columns = ["prefers_original", "low", "high"]
    assert (table.loc["perplexity", columns] == 1).all(None)
    assert (table.loc["blind", columns] == 0.5).all(None)
    assert set(table["texts"]) == {4}
    assert table.loc[("perplexity", "shuffle"), "versions"] == 1  # it reads each version anew
    assert table.loc[("blind", "shuffle"), "versions"] == 3
