"""Tokens kept from one run to the next: found again only for the same input, made again where the
file is damaged.
"""

import copy
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from gpt2_quant.data import datasets as data
from gpt2_quant.data.tokens import Tokens, load_tokenizer, tokenize


@pytest.fixture
def split(tiny_texts, tmp_path):
    texts, labels = tiny_texts
    return data.Split("train", ["", *texts[:39]], [0, *labels[:39]], "x", cache=tmp_path / "cache")


@pytest.fixture
def calls(tiny_tokenizer, monkeypatch):
    """The number of texts of each call of the tokenizer."""
    seen, encode = [], type(tiny_tokenizer).__call__
    monkeypatch.setattr(
        type(tiny_tokenizer),
        "__call__",
        lambda self, t, **k: seen.append(len(t)) or encode(self, t, **k),
    )
    return seen


def assert_same(left: Tokens, right: Tokens):
    assert left.flat.dtype == np.int32 and left.offsets.dtype == np.int64
    for mine, theirs in (
        (left.flat, right.flat),
        (left.offsets, right.offsets),
        (left.labels, right.labels),
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert left.truncated == right.truncated


def test_the_second_time_is_read_and_equal_to_uncached(split, tiny_tokenizer, calls):
    plain = tokenize(tiny_tokenizer, replace(split, cache=None), 24)
    assert not split.cache.exists() and plain.truncated > 0
    for _ in range(3):
        assert_same(tokenize(tiny_tokenizer, split, 24), plain)
    assert calls == [40, 40] and len(list(split.cache.iterdir())) == 1
    # Labels are the split's own: they are no part of what is kept.
    other = tokenize(tiny_tokenizer, replace(split, labels=[3] * 40), 24)
    assert other.labels.tolist() == [3] * 40 and len(calls) == 2


def test_a_saved_tokenizer_finds_what_its_original_made(split, tiny_tokenizer, calls, tmp_path):
    """Script 1 tokenizes with the base model's, the later scripts with the copy beside the
    fine-tuned model.
    """
    first = tokenize(tiny_tokenizer, split, 24)
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    assert_same(tokenize(load_tokenizer(tmp_path / "model"), split, 24), first)
    assert calls == [40]


def test_other_texts_tokenizers_and_lengths_are_made_anew(split, tiny_tokenizer, calls):
    tokenize(tiny_tokenizer, split, 24)
    longer = copy.deepcopy(tiny_tokenizer)
    longer.add_tokens(["Fujiwara"])
    own = split.texts
    for tokenizer, texts, length in (
        (tiny_tokenizer, [*own[:-1], own[-1] + "s"], 24),
        (
            tiny_tokenizer,
            [own[0], own[1] + own[2][:1], own[2][1:], *own[3:]],
            24,
        ),  # the same characters, cut elsewhere
        (tiny_tokenizer, own[::-1], 24),
        (tiny_tokenizer, own, 25),
        (longer, own, 24),
    ):
        changed = replace(split, texts=texts)
        assert_same(
            tokenize(tokenizer, changed, length),
            tokenize(tokenizer, replace(changed, cache=None), length),
        )
    assert len(calls) == 11 and len(list(split.cache.iterdir())) == 6


def test_a_file_damaged_anywhere_is_made_again(split, tiny_tokenizer, calls):
    plain = tokenize(tiny_tokenizer, split, 24)
    (path,) = split.cache.iterdir()
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        assert_same(tokenize(tiny_tokenizer, split, 24), plain)
        assert path.read_bytes()[:4] == whole[:4] and len(path.read_bytes()) == len(whole)
    assert len(calls) == 5
    for place in range(
        0, len(whole), 13
    ):  # whichever bit is flipped: made again, or of no consequence
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        assert_same(tokenize(tiny_tokenizer, split, 24), plain)
    assert [file.name for file in split.cache.iterdir()] == [path.name]


@pytest.mark.e2e
def test_processes_that_make_the_same_file_at_once_all_get_it_whole(split, tiny_tokenizer):
    plain = tokenize(tiny_tokenizer, replace(split, cache=None), 24)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        for tokens in pool.starmap(tokenize, [(tiny_tokenizer, split, 24)] * 6, chunksize=1):
            assert_same(tokens, plain)
    assert len(list(split.cache.iterdir())) == 1
