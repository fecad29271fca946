"""Texts as tokens, cached, and in batches of similar length.

*Tokens.* `GPT2ForSequenceClassification` classifies from the last token that is not padding, so
tokenizer and config must mean the same one. Padding is on the right: on the left it would shift the
positions.

*Batches.* AG News averages 52 tokens; padding all to 128 would more than double the work. Rows of
similar length share a batch (Khomenko et al., 2016, arXiv 1708.05604): a shuffled epoch is cut into
pools of 50 batches, each sorted by length, and the batches are shuffled again.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from ..cache import content_key, load_arrays, save_arrays
from ..errors import UserError
from .datasets import Split

POOL_BATCHES = 50
CHUNK = 10_000  # texts tokenized at a time: Python's numbers take ten times an array's memory
FORMAT = 3  # raise it when a file's contents change


def load_config(folder: Path):
    """config.json as transformers reads it. Raises UserError where it does not."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)  # nosec B615: local
    except Exception as fault:  # each wrong entry has a type of its own
        said = " ".join(str(fault).split())[-150:]
        raise UserError(
            f"{folder}/config.json: transformers refuses it ({said}): mend it"
        ) from fault


def load_tokenizer(folder: Path):
    """A checkpoint's tokenizer, padding on the right with the token that its config names, else its
    own, else end-of-text. Its `model_max_length` is the model's number of positions.

    Raises UserError where its files are missing (transformers would make an empty one) or damaged,
    and for a vocabulary that is not the model's.
    """
    from transformers import AutoTokenizer

    files = {path.name for path in Path(folder).iterdir()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        need = "tokenizer.json, or vocab.json and merges.txt"
        raise UserError(f"{folder} has no tokenizer: copy {need} from the model it was made from")
    config = load_config(folder) if "config.json" in files else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)  # nosec B615: local
    except Exception as error:  # a damaged tokenizer.json is a bare Exception
        mend = "copy tokenizer.json and tokenizer_config.json into it"
        raise UserError(f"{folder} has no tokenizer that loads: {mend}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no end-of-text token; use GPT-2's")
    known = config.vocab_size if config else len(tokenizer)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    # A few rows may have been added for alignment, or tokens that the model never saw.
    if not 0.5 * known < len(tokenizer) <= known or largest >= known:
        said = f"its tokenizer knows {max(len(tokenizer), largest + 1)} tokens and its model"
        raise UserError(f"{folder}: {said} {known}; copy the one that the model was made with")
    if config and (pad := config.pad_token_id) is not None:
        token = tokenizer.convert_ids_to_tokens(pad)
        if token is None:
            fault = f"{folder}/config.json: pad_token_id {pad} is unknown to its tokenizer"
            raise UserError(f"{fault}: take it out")
        tokenizer.pad_token = token
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = config.n_positions if config else 1024
    return tokenizer


@dataclass(frozen=True)
class Tokens:
    """A tokenized split, flat: row i is `flat[offsets[i]:offsets[i + 1]]`.

    flat int32; offsets int64 [n + 1]; labels int64 [n]; `truncated` counts texts that were cut,
    `truncated_tokens` what they lost.
    """

    flat: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    truncated: int
    truncated_tokens: int = 0

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 [n]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.labels)

    def cut(self) -> dict[str, int]:
        """For a record: how many texts were cut, and by how many tokens together."""
        return {"truncated_texts": self.truncated, "truncated_tokens": self.truncated_tokens}

    def row(self, i: int) -> np.ndarray:
        return self.flat[self.offsets[i] : self.offsets[i + 1]]


def tokenize(tokenizer, split: Split, max_length: int) -> Tokens:
    """Each text is cut at `max_length` tokens. Raises UserError for more than the model has,
    OSError when the cache cannot be written.

    A cached file's name hashes all that decides its contents, so none is out of date.
    """
    if max_length > (most := tokenizer.model_max_length):
        fault = f"--max-length {max_length} is more than the model's {most} positions"
        raise UserError(f"{fault}: give --max-length {most} or less")
    arrays = path = None
    if split.cache and tokenizer.is_fast:  # a Python one has no state to hash
        path = split.cache / f"tokens-{fingerprint(tokenizer, split.texts, max_length)}.npz"
        arrays = load_arrays(path, *KEPT)
    if arrays is None:
        arrays = _encode(tokenizer, split.texts, max_length)
        if path:
            save_arrays(path, dict(zip(KEPT, arrays, strict=True)))
    flat, offsets, lost = arrays
    return Tokens(flat, offsets, np.asarray(split.labels, dtype=np.int64), *map(int, lost))


KEPT = ("flat", "offsets", "lost")  # lost: texts that were cut, tokens that they lost


def _encode(tokenizer, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    flat, lengths, lost = [], [np.zeros(1, np.int64)], np.zeros(2, np.int64)
    for start in range(0, len(texts), CHUNK):
        part = texts[start : start + CHUNK]
        encoded = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        told_apart = len(set(map(tuple, encoded))) >= len(set(part))
        if not told_apart and not any(len(set(ids)) > 1 for ids in encoded):
            raise UserError("the tokenizer makes one token of every text: copy the model's own")
        # An empty text becomes end-of-text: a position to classify from.
        rows = [ids[:max_length] or [tokenizer.eos_token_id] for ids in encoded]
        flat.append(np.fromiter(chain.from_iterable(rows), dtype=np.int32))
        lengths.append(np.array([len(row) for row in rows], dtype=np.int64))
        over = np.array([len(ids) for ids in encoded]) - max_length
        lost += (over > 0).sum(), over[over > 0].sum()
    return [np.concatenate(flat), np.cumsum(np.concatenate(lengths)), lost]


def fingerprint(tokenizer, texts: Iterable[str], max_length: int) -> str:
    """16 hex digits of the sha256 of all that decides the tokens of `texts`."""
    import tokenizers

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    del state["truncation"], state["padding"]  # of the last call
    ours = [FORMAT, tokenizer.truncation_side, tokenizer.eos_token_id, max_length]
    made_with = json.dumps([tokenizers.__version__, *ours, state])
    digest = hashlib.sha256(content_key(made_with))
    for text in texts:
        digest.update(content_key(text))
    return digest.hexdigest()[:16]


def length_grouped_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Rows of each training batch, order set by (seed, epoch)."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), POOL_BATCHES * batch_size):
        pool = order[start : start + POOL_BATCHES * batch_size]
        batches += _cut(pool[np.argsort(lengths[pool], kind="stable")], batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows of each evaluation batch, longest first: peak memory comes at once."""
    return _cut(np.argsort(-lengths, kind="stable"), batch_size)


def _cut(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def pad_batch(tokens: Tokens, rows: np.ndarray, pad_id: int):
    """One batch as CPU tensors, padded on the right to its longest row, rounded up to 8.

    input_ids int64 [B, L], attention_mask int64 [B, L], labels int64 [B].
    """
    import torch

    lengths = tokens.lengths[rows]
    width = -(-int(lengths.max()) // 8) * 8
    mask = np.arange(width) < lengths[:, None]
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([tokens.row(i) for i in rows])
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "labels": torch.from_numpy(tokens.labels[rows]),
    }
