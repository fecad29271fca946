"""Data: AG News' own files read exactly, a validation split by content, tokens, batches and
padding.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gpt2_quant.cli import Settings
from gpt2_quant.data import datasets as data
from gpt2_quant.data.ag_news import read_csv
from gpt2_quant.data.demo import write_ag_news
from gpt2_quant.data.demo_corpus import generate_corpus
from gpt2_quant.data.tokens import (
    Tokens,
    length_grouped_batches,
    load_tokenizer,
    pad_batch,
    sorted_batches,
    tokenize,
)
from gpt2_quant.errors import UserError


def settings_for(folder: Path, **changes) -> Settings:
    defaults = Settings(
        preset="paper", base_model="unused", base_revision=None, dataset=str(folder),
        dataset_revision=None, models_dir=folder, results_dir=folder, device="cpu", batch_size=16,
        max_length=128, seed=0, max_train_samples=None, max_test_samples=None, overwrite=False,
    )  # fmt: skip
    return replace(defaults, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """400 train and 200 test rows in AG News' own form."""
    path = tmp_path_factory.mktemp("news")
    rows = list(zip(*generate_corpus(600, seed=7), strict=True))
    write_ag_news(path / "train.csv", rows[:400])
    write_ag_news(path / "test.csv", rows[400:])
    return path


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_csv_quotes_commas_and_lines_inside_a_field(tmp_path):
    path = write(
        tmp_path / "train.csv",
        '"3","A ""quoted"" title, with comma","two\nlines \\ and a backslash"\n"1","b",""\r\n',
    )
    assert read_csv(path) == (
        ['A "quoted" title, with comma two\nlines \\ and a backslash', "b "],
        [2, 0],
    )


def test_csv_keeps_empty_and_very_long_texts(tmp_path, tiny_tokenizer):
    path = write(tmp_path / "test.csv", f'"2","",""\n"4","long","{"word " * 40_000}"\n')
    texts, labels = read_csv(path)
    assert (texts[0], len(texts[1]), labels) == ("", 200_005, [1, 3])
    tokens = tokenize(tiny_tokenizer, data.Split("test", texts, labels, "x"), 128)
    assert tokens.lengths.tolist() == [1, 128] and tokens.truncated == 1
    assert tokens.row(0).tolist() == [tiny_tokenizer.eos_token_id]
    assert data.Split("test", texts, labels, "x").describe()["empty_texts"] == 1


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b'"1","title"\n', "line 1 has 2 columns"),
        (b'"1","a","b"\n"0","a","b"\n', "line 2 begins with '0'"),
        (b'"5","a","b"\n', "begins with '5'"),
        (b'"Class Index","Title","Description"\n', "remove the header row"),
        (b"", "is empty"),
        (b'"1","caf\xe9","b"\n', "is not UTF-8"),
        (b'"1","a\x00","b"\n', "NUL|well-formed"),
        (b'"1","a","b"x"\n', "well-formed"),
    ],
)
def test_csv_faults_name_file_and_line(tmp_path, content, complaint):
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as fault:
        read_csv(path)
    assert str(path) in str(fault.value) and "\n" not in str(fault.value)


def test_validation_split_depends_on_the_text_alone(folder):
    splits = data.load_splits(settings_for(folder))
    again = data.load_splits(settings_for(folder, seed=5))
    assert {name: split.sha256 for name, split in splits.items()} == {
        name: split.sha256 for name, split in again.items()
    }
    for name in ("train", "validation"):
        for text in splits[name].texts:
            held_out = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 20 == 0
            assert held_out == (name == "validation")
    assert len(splits["train"].texts) + len(splits["validation"].texts) == 400
    assert len(splits["test"].texts) == 200


def test_a_copy_never_crosses_the_split(folder, tmp_path):
    """Rows reversed and doubled: the same texts are held out, each with its copy."""
    rows = (folder / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    write(tmp_path / "train.csv", "".join([*reversed(rows), *rows]))
    write(tmp_path / "test.csv", rows[0])
    ours, doubled = data.load_splits(settings_for(folder)), data.load_splits(settings_for(tmp_path))
    assert set(doubled["validation"].texts) == set(ours["validation"].texts)
    assert not set(doubled["train"].texts) & set(doubled["validation"].texts)


def test_fewer_rows_are_nested_and_too_many_are_refused(folder):
    few, more = (
        data.load_splits(settings_for(folder, max_train_samples=n, max_test_samples=n))
        for n in (30, 60)
    )
    for name in ("train", "test"):
        assert len(few[name].texts) == 30 and set(few[name].texts) <= set(more[name].texts)
    assert few["validation"].sha256 == more["validation"].sha256
    with pytest.raises(
        UserError, match="--max-test-samples 201 asks for more than the 200 test rows"
    ):
        data.load_splits(settings_for(folder, max_test_samples=201))


def test_fingerprint_sees_text_label_and_order():
    base = data.Split("test", ["a", "b"], [0, 1], "x")
    assert base.sha256 == hashlib.sha256(b"0\ta\x001\tb\x00").hexdigest()
    others = [(["b", "a"], [1, 0]), (["a", "c"], [0, 1]), (["a", "b"], [0, 2])]
    assert (
        len(
            {
                base.sha256,
                *(data.Split("test", texts, labels, "x").sha256 for texts, labels in others),
            }
        )
        == 4
    )


def test_parquet_folder_gives_the_same_split(folder, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        texts, labels = read_csv(folder / f"{name}.csv")
        table = pyarrow.table({"text": texts, "label": labels})
        half = len(texts) // 2
        pyarrow.parquet.write_table(
            table.slice(0, half), tmp_path / "data" / f"{name}-00000-of-00002.parquet"
        )
        pyarrow.parquet.write_table(
            table.slice(half), tmp_path / "data" / f"{name}-00001-of-00002.parquet"
        )
    ours, theirs = data.load_splits(settings_for(folder)), data.load_splits(settings_for(tmp_path))
    assert {name: split.sha256 for name, split in ours.items()} == {
        name: split.sha256 for name, split in theirs.items()
    }


def test_tokens_are_the_tokenizers_and_cut_at_max_length(tiny_tokenizer, tiny_texts):
    texts, labels = tiny_texts
    tokens = tokenize(tiny_tokenizer, data.Split("test", texts[:50], labels[:50], "x"), 48)
    for row, text in enumerate(texts[:50]):
        assert tokens.row(row).tolist() == tiny_tokenizer(text)["input_ids"][:48]
    assert (
        tokens.truncated
        == sum(len(tiny_tokenizer(text)["input_ids"]) > 48 for text in texts[:50])
        > 0
    )


def test_batches_hold_every_row_once_and_little_padding(tiny_tokenizer, tiny_texts):
    random = np.random.default_rng(0)
    lengths = random.integers(5, 129, size=3001)
    for batches in (
        length_grouped_batches(lengths, 16, seed=1, epoch=0),
        sorted_batches(lengths, 16),
    ):
        assert sorted(np.concatenate(batches)) == list(range(3001))
        assert max(map(len, batches)) == 16
        padded = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
        shuffled = sum(
            int(lengths[i : i + 16].max()) * len(lengths[i : i + 16]) for i in range(0, 3001, 16)
        )
        assert padded / lengths.sum() < 1.10 < shuffled / lengths.sum()
    first = [rows.tolist() for rows in length_grouped_batches(lengths, 16, 1, 0)]
    assert first == [rows.tolist() for rows in length_grouped_batches(lengths, 16, 1, 0)]
    assert first != [rows.tolist() for rows in length_grouped_batches(lengths, 16, 1, 1)]
    assert first != [rows.tolist() for rows in length_grouped_batches(lengths, 16, 2, 0)]
    assert int(lengths[sorted_batches(lengths, 16)[0]].max()) == lengths.max()


def test_padding_is_on_the_right_and_rounded_up():
    flat = np.arange(100, 100 + 3 + 10, dtype=np.int32)
    tokens = Tokens(flat, np.array([0, 3, 13]), np.array([2, 0]), truncated=0)
    batch = pad_batch(tokens, np.array([0, 1]), pad_id=7)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][0].tolist() == [100, 101, 102] + [7] * 13
    assert (
        batch["attention_mask"].sum(1).tolist() == [3, 10] and batch["attention_mask"][0, :3].all()
    )
    assert batch["labels"].tolist() == [2, 0]


def test_tokenizer_pads_right_with_the_end_of_text(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.padding_side, loaded.pad_token_id) == ("right", loaded.eos_token_id)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no tokenizer: copy"):
        load_tokenizer(tmp_path / "empty")


def test_real_ag_news(ag_news_dir):
    """The published counts: 7,600 test rows, 1,900 a class, train balanced too."""
    texts, labels = read_csv(ag_news_dir / "test.csv")
    assert len(texts) == 7600 and set(Counter(labels).values()) == {1900}
    assert texts[0].startswith("Fears for T N pension after talks ")
    assert labels[0] == data.LABELS.index("Business")
