"""Tokens that were made once are read back: GPT-2's tokenizer takes 3 to 6 s for 47,000 news items, this a few hundredths.

A file holds one split under one tokenizer, and its name is a hash of all that decides what is in it: the texts in order, the
tokenizer's own state and version, `max_length`. So nothing is ever out of date, and files may be deleted at any time.
It is an `.npz` without pickles, whose CRC-32 of each array shows damage; what cannot be read is made again. Processes that
make the same file at the same time write it under different temporary names, and each rename puts a whole one in place.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .records import atomic_path

FORMAT = 1  # raise it when the code that fills a file changes what it makes
Arrays = dict[str, np.ndarray]


def cached(folder: Path | None, tokenizer, texts: list[str], max_length: int, make: Callable[[], Arrays]) -> Arrays:
    """What `make()` returns (`flat`, `offsets`, `truncated`), read from `folder` where it was made before.

    `folder=None` keeps nothing; nor is anything kept for a tokenizer written in Python, whose state cannot be read whole.
    Raises OSError when the disk refuses a new file.
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

    # What stands before the added tokens is how the last call was asked to cut and to pad, which is no part of the tokenizer.
    state = tokenizer.backend_tokenizer.to_str().split('"added_tokens"', 1)[-1]
    settings = (FORMAT, tokenizers.__version__, tokenizer.truncation_side, tokenizer.eos_token_id, max_length)
    digest = hashlib.sha256(repr(settings).encode() + state.encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)  # the length, so that ("ab", "c") and ("a", "bc") differ
    return digest.hexdigest()[:16]
