"""A user's own files: what is read, what is refused with which sentence, what is written."""

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
    expected = ["one text", "", "three"]
    groups = [["a", "b"], ["c"], ["d"]]
    assert texts.read_files(plain, references) == (expected, groups)
    assert texts.read_files(lines, references) == (expected, groups)
    assert texts.read_files(lines, None) == (expected, None)


@pytest.mark.parametrize(
    ("candidates", "references", "sentence"),
    [
        (b"", b"a\n", "has no line"),
        (b"a\nb\n", b"a\n", "has 2 texts but .* has 1"),
        (b"a\n\xff\xfe\n", b"a\nb\n", "line 2 is not UTF-8"),
    ],
)
def test_faults_are_named(files, candidates, references, sentence):
    with pytest.raises(UserError, match=sentence):
        texts.read_files(files("c.txt", candidates), files("r.txt", references))


def test_json_lines_that_are_not(files):
    with pytest.raises(UserError, match="line 2 is not JSON"):
        texts.read_files(files("c.jsonl", '"a"\nb\n'), None)
    with pytest.raises(UserError, match="line 1 holds no text"):
        texts.read_files(files("d.jsonl", "5\n"), None)
    with pytest.raises(UserError, match="holds no reference"):
        texts.read_files(files("e.jsonl", '"a"\n'), files("f.jsonl", "[]\n"))
    with pytest.raises(UserError, match="is not a file"):
        texts.read_files(files("g.txt", "a\n").with_name("none.txt"), None)


def test_own_texts(tmp_path, encoder, tiny_language_model, tiny_texts):
    candidates, references = tiny_texts[0][:20], [[text] for text in tiny_texts[0][20:40]]
    candidates[7] = ""
    tools = suite.Tools(encoder, tiny_language_model, Cache(None))
    whole = suite.score_texts(candidates, references, tools)
    table = suite.score_own_texts(candidates, references, tools, tmp_path / "out.csv")
    table = table.set_index("metric")
    for name, scored in whole.items():
        assert table.loc[name, "defined"] == scored.n
        assert table.loc[name, "corpus"] == pytest.approx(scored.corpus, rel=1e-5)
    written = pd.read_csv(tmp_path / "out.csv")
    assert list(written["line"]) == list(range(1, 21))
    assert np.isnan(written.loc[7, "ROUGE-1"]) and written["ROUGE-1"].notna().sum() == 19
    without = suite.score_own_texts(candidates, None, tools, tmp_path / "out.csv")
    assert list(without["metric"]) == ["Perplexity", "SCS"]
