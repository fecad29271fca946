"""A user's own files: what is read, what is refused with which sentence, and that pieces add up to
the whole.
"""

import json

import numpy as np
import pandas as pd
import pytest

from gpt2_quant.cache import Cache
from gpt2_quant.errors import UserError
from gpt2_quant.metrics import suite, texts


@pytest.fixture
def files(tmp_path):
    def write(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_lines_and_json_lines_are_the_same_texts(files):
    plain = files("a.txt", "one text\n\nthree\r\n")
    rows = ["one text", {"text": ""}, "three"]
    lines = files("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    references = files("r.jsonl", '["a", "b"]\n{"references": ["c"]}\n"d"\n')
    assert texts.check_files(plain, references) == (3, 1) == texts.check_files(lines, references)
    assert list(texts.read_chunks(plain, references)) == [
        (["one text", "", "three"], [["a", "b"], ["c"], ["d"]])
    ]
    assert list(texts.read_chunks(lines, None)) == [(["one text", "", "three"], None)]


@pytest.mark.parametrize(
    ("candidates", "references", "sentence"),
    [
        (b"", b"a\n", "has no line"),
        (b"a\nb\n", b"a\n", "has 2 texts but .* has 1"),
        (b"a\n\xff\xfe\n", b"a\nb\n", "line 2 is not UTF-8"),
    ],
)
def test_faults_are_named_before_anything_is_written(
    files, tmp_path, candidates, references, sentence
):
    with pytest.raises(UserError, match=sentence):
        suite.score_files(
            files("c.txt", candidates), files("r.txt", references), None, tmp_path / "out.csv"
        )
    assert not (tmp_path / "out.csv").exists()


def test_json_lines_that_are_not(files):
    with pytest.raises(UserError, match="line 2 is not JSON"):
        texts.check_files(files("c.jsonl", '"a"\nb\n'), None)
    with pytest.raises(UserError, match="line 1 holds no text"):
        texts.check_files(files("d.jsonl", "5\n"), None)
    with pytest.raises(UserError, match="holds no reference"):
        texts.check_files(files("e.jsonl", '"a"\n'), files("f.jsonl", "[]\n"))
    with pytest.raises(UserError, match="is not a file"):
        texts.check_files(files("g.txt", "a\n").with_name("none.txt"), None)


def test_pieces_add_up(files, tmp_path, monkeypatch, encoder, tiny_language_model, tiny_texts):
    candidates, references = tiny_texts[0][:20], tiny_texts[0][20:40]
    candidates = [*candidates[:7], "", *candidates[8:]]
    tools = suite.Tools(encoder, tiny_language_model, Cache(None))
    whole = suite.score_texts(candidates, [[text] for text in references], tools)
    monkeypatch.setattr(texts, "CHUNK_LINES", 6)
    paths = (
        files("c.txt", "\n".join(candidates) + "\n"),
        files("r.txt", "\n".join(references) + "\n"),
    )
    table, blank = suite.score_files(*paths, tools, tmp_path / "out.csv")
    assert blank == 1
    table = table.set_index("metric")
    for name, scored in whole.items():
        assert table.loc[name, "defined"] == scored.n
        assert table.loc[name, "corpus"] == pytest.approx(scored.corpus, rel=1e-5)
    written = pd.read_csv(tmp_path / "out.csv")
    assert list(written["line"]) == list(range(1, 21))
    assert np.isnan(written.loc[7, "ROUGE-1"]) and written["ROUGE-1"].notna().sum() == 19


def test_a_hundred_thousand_lines_are_read_in_flat_memory(files):
    import tracemalloc

    path = files(
        "many.txt", b"".join(b"line %d of a file with many lines\n" % i for i in range(100_000))
    )
    tracemalloc.start()
    assert texts.check_files(path, None) == (100_000, 0)
    assert sum(len(chunk) for chunk, _ in texts.read_chunks(path, None)) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        peak < path.stat().st_size / 4
    )  # 3.5 MB: a thousand lines are held, not a hundred thousand
