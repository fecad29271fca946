"""AG News as tokens: made once, kept, and put into batches of like length.

*Tokens.* GPT-2 has no padding token; its end-of-text token serves, in tokenizer and config alike,
because `GPT2ForSequenceClassification` classifies from the last token that is not padding. Padding
is on the right: on the left it would shift the position embeddings. An empty text becomes a single
end-of-text token, so that it has a position to classify from. Texts are cut at `max_length` tokens
(at 128: 0.6% of AG News).

*Batches.* AG News averages 52 tokens but reaches past 128: padding everything to 128 would more
than double the work. Rows of like length share a batch instead (Khomenko et al., 2016, arXiv
1708.05604): a shuffled epoch is cut into pools of 50 batches, each pool sorted by length, and the
batches shuffled again.

*Kept.* GPT-2's tokenizer takes 3 to 6 s for 47,000 news items, reading the tokens back a few
hundredths: a split is tokenized once, and all scripts that use one `--results-dir` share its tokens
through `cache/` there. A file's name is a hash of all that decides what is in it: the texts in
order, the tokenizer's own state and version, `max_length`. So nothing is ever out of date, and
files may be deleted at any time. It is an `.npz` without pickles, whose CRC-32 of each array shows
damage; what cannot be read is made again. Processes that make the same file at once write it under
different temporary names, and each rename puts a whole one in place.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..records import atomic_path
from .datasets import Split

POOL_BATCHES = 50
FORMAT = 1  # raise it when the code that fills a file changes what it makes
Arrays = dict[str, np.ndarray]


def load_tokenizer(folder: Path):
    """GPT-2's tokenizer from a model folder, padding on the right with the end-of-text token.

    Raises UserError where the folder has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(
            f"{folder} has no tokenizer that loads: copy tokenizer.json and tokenizer_config.json into it"
        ) from fault
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no end-of-text token; use GPT-2's")
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class Tokens:
    """A tokenized split, flat: row i is `flat[offsets[i]:offsets[i + 1]]`.

    flat: int32 [sum of lengths]; offsets: int64 [n + 1]; labels: int64 [n]; `truncated` counts
    texts that were cut.
    """

    flat: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    truncated: int

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens a row, int64 [n]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.labels)

    def row(self, i: int) -> np.ndarray:
        """The token ids of row i, int32."""
        return self.flat[self.offsets[i] : self.offsets[i + 1]]


def tokenize(tokenizer, split: Split, max_length: int) -> Tokens:
    """Tokenize a split, each text cut at `max_length` tokens; an empty text becomes one end-of-text
    token.

    Done once for the same texts, tokenizer and length where the split has a cache. Raises OSError
    when that cannot be written.
    """

    def encode() -> dict[str, np.ndarray]:
        # One token more than is kept shows which texts are cut, without tokenizing the rest of a
        # very long one twice.
        encoded = tokenizer(
            split.texts, truncation=True, max_length=max_length + 1, add_special_tokens=False
        )["input_ids"]
        rows = [ids[:max_length] or [tokenizer.eos_token_id] for ids in encoded]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in rows], out=offsets[1:])
        flat = np.fromiter(
            (token for ids in rows for token in ids), dtype=np.int32, count=int(offsets[-1])
        )
        return {
            "flat": flat,
            "offsets": offsets,
            "truncated": np.array(sum(len(ids) > max_length for ids in encoded)),
        }

    made = cached(split.cache, tokenizer, split.texts, max_length, encode)
    return Tokens(
        made["flat"],
        made["offsets"],
        np.asarray(split.labels, dtype=np.int64),
        int(made["truncated"]),
    )


def cached(
    folder: Path | None, tokenizer, texts: list[str], max_length: int, make: Callable[[], Arrays]
) -> Arrays:
    """What `make()` returns (`flat`, `offsets`, `truncated`), read from `folder` where it was made
    before.

    `folder=None` keeps nothing; nor is anything kept for a tokenizer written in Python, whose state
    cannot be read whole. Raises OSError when the disk refuses a new file.
    """
    if folder is None or not tokenizer.is_fast:
        return make()
    path = folder / f"tokens-{fingerprint(tokenizer, texts, max_length)}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in ("flat", "offsets", "truncated")}
    except Exception:  # a cache is never worth an error, and a damaged archive raises a dozen kinds
        arrays = make()
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)
    return arrays


def fingerprint(tokenizer, texts: list[str], max_length: int) -> str:
    """sha256, shortened to 16 digits, of all that decides how `texts` are tokenized."""
    import tokenizers

    # What stands before the added tokens is how the last call was asked to cut and to pad, which is
    # no part of the tokenizer.
    state = tokenizer.backend_tokenizer.to_str().split('"added_tokens"', 1)[-1]
    settings = (
        FORMAT,
        tokenizers.__version__,
        tokenizer.truncation_side,
        tokenizer.eos_token_id,
        max_length,
    )
    digest = hashlib.sha256(repr(settings).encode() + state.encode())
    for text in texts:
        data = text.encode()
        digest.update(
            len(data).to_bytes(8, "little") + data
        )  # the length, so that ("ab", "c") and ("a", "bc") differ
    return digest.hexdigest()[:16]


def length_grouped_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """The rows of each training batch of one epoch: every row once, like lengths together, order
    set by (seed, epoch).
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), POOL_BATCHES * batch_size):
        pool = order[start : start + POOL_BATCHES * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The rows of each evaluation batch, longest first: the largest memory is met at once, padding
    is least.
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def pad_batch(tokens: Tokens, rows: np.ndarray, pad_id: int, multiple_of: int = 8):
    """One batch as CPU tensors, padded on the right to its longest row, rounded up to
    `multiple_of`.

    Returns input_ids int64 [B, L], attention_mask int64 [B, L], labels int64 [B].
    """
    import torch

    lengths = tokens.lengths[rows]
    width = -(-int(lengths.max()) // multiple_of) * multiple_of
    mask = np.arange(width) < lengths[:, None]
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([tokens.row(i) for i in rows])
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "labels": torch.from_numpy(tokens.labels[rows]),
    }
