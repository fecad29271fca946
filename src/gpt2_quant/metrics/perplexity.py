"""Perplexity of a text under a causal language model.

    PPL = exp( -1/T * sum over t of log p(x_t | x_<t) )

The first token is scored given the end-of-text token, as between GPT-2's training documents. Beyond
the context, windows move by half of it: each token is scored once and, past the first window, with
at least half a context before it. Per token it depends on the tokenizer; across models compare

    per word (white space) = exp(NLL / words),   bits per byte of UTF-8 = NLL / (ln 2 * bytes)

It ignores truth: frequent phrases beat rare facts, and repetition *lowers* it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from ..cache import Cache
from ..data.hub import fetch_model_folder
from ..errors import UserError
from ..models.loading import quiet_loading
from ..records import file_sha256
from .scored import Scored, cached_rows, has_words
from .sentences import split_sentences

# Logits of 2,048 tokens x 50,257 x 4 bytes = 412 MB, held some three times; fewer suit a CPU.
BATCH_TOKENS = {"cuda": 2048, "cpu": 512}

Window = tuple[int, int, int, int]  # sequence, first position, length, scored


@dataclass
class LanguageModel:
    """GPT-2; `signature` names its weights, `start_id` stands before each text."""

    model: Any
    tokenizer: Any
    device: str
    signature: str

    @property
    def context(self) -> int:
        return int(self.model.config.n_positions)

    @property
    def start_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def token_nll(self, ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """-log p of each token in nats, float64 [T] per sequence."""
        ends = np.cumsum([len(sequence) for sequence in ids])
        result = np.empty(ends[-1])
        for tokens, logits, targets in self.scored_tokens(ids):
            nll = cross_entropy(logits, targets, reduction="none")
            result[tokens] = nll.double().cpu().numpy()
        return np.split(result, ends[:-1])

    @torch.inference_mode()
    def scored_tokens(
        self, ids: Sequence[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Yields (tokens [m], logits float32 [m, V], targets [m]); `tokens` indexes the
        concatenated sequences.
        """
        flat = np.concatenate(ids).astype(np.int64)
        lengths = [len(sequence) for sequence in ids]
        starts = np.cumsum([0, *lengths])
        windows = sorted(_windows(lengths, self.context), key=lambda window: -window[2])
        while windows:
            size = max(1, BATCH_TOKENS[self.device] // windows[0][2])
            batch, windows = windows[:size], windows[size:]
            ends = [(starts[i] + first + length, count) for i, first, length, count in batch]
            tokens = np.concatenate([np.arange(end - count, end) for end, count in ends])
            targets = torch.from_numpy(flat[tokens]).to(self.device)
            yield tokens, self._logits(ids, batch), targets

    def _logits(self, ids: Sequence[Sequence[int]], batch: list[Window]) -> torch.Tensor:
        """Logits float32 [m, V] at the scored positions of these windows."""
        # Position j reads token first+j-1 (before token 0: start_id) and predicts the next.
        read = [[self.start_id, *ids[i]][first : first + length] for i, first, length, _ in batch]
        input_ids = pad_sequence([torch.tensor(row) for row in read], True, self.start_id)
        position = torch.arange(input_ids.shape[1])
        *_, length, count = torch.tensor(batch).T[..., None]
        mask = position < length
        scored = mask & (position >= length - count)
        input_ids, mask = input_ids.to(self.device), mask.long().to(self.device)
        inner = self.model.transformer(input_ids=input_ids, attention_mask=mask, use_cache=False)
        # The head (50,257 wide) reads scored positions only.
        return self.model.lm_head(inner.last_hidden_state[scored.to(self.device)]).float()


def _windows(lengths: Sequence[int], context: int) -> list[Window]:
    """Windows whose last positions, the scored ones, cover each token once."""
    windows = []
    for i, length in enumerate(lengths):
        done = 0
        for end in [*range(context, length, context // 2), length] if length else ():
            first = max(0, end - context)
            windows.append((i, first, end - first, end - done))
            done = end
    return windows


def load_language_model(name: str, revision: str | None, device: str) -> LanguageModel:
    """GPT-2 with its language-model head in float32, from a folder or the hub.

    Raises UserError when `name` is neither, or holds another model.
    """
    from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

    quiet_loading()
    folder = fetch_model_folder(name, revision)
    weights = sorted(folder.glob("*.safetensors"))
    fault_of, mend = f"--base-model {name}", "give one, for example openai-community/gpt2"
    if not weights:
        raise UserError(f"{fault_of} holds no model.safetensors: {mend}")
    try:
        config = AutoConfig.from_pretrained(folder)  # nosec B615: local
        if config.model_type != "gpt2" or "Classification" in str(config.architectures):
            raise UserError(f"{fault_of} is no GPT-2 language model: {mend}")
        model: Any = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)  # nosec B615: local
        tokenizer = AutoTokenizer.from_pretrained(folder)  # nosec B615: local
    except (OSError, ValueError, RuntimeError) as fault:
        reason = str(fault).splitlines()[0]
        raise UserError(f"{fault_of} cannot be loaded ({reason}): {mend}") from fault
    digest = "+".join(file_sha256(path)[:8] for path in weights)
    return LanguageModel(model.to(device).eval(), tokenizer, device, f"{Path(name).name}@{digest}")


def perplexity(
    texts: Sequence[str], language_model: LanguageModel, cache: Cache | None = None
) -> Scored:
    """Perplexity per token of each text, NaN for a blank one; `parts`: per_word, bits_per_byte,
    tokens, nll (nats, summed). The corpus value is exp(summed NLL / summed tokens).
    """
    context = language_model.context
    signature = f"{language_model.signature}|first token after end-of-text"
    signature += f"|context {context}, stride {context // 2}"

    def compute(items):
        ids = language_model.encode([text for (text,) in items])
        return [(nll.sum(), len(nll)) for nll in language_model.token_nll(ids)]

    items = [(text,) for text in texts]
    rows = cached_rows(cache, "perplexity", signature, items, compute, width=2)
    nll, tokens = np.where([[has_words(text)] for text in texts], rows, np.nan).T
    words = [len(text.split()) or np.nan for text in texts]
    size = [len(text.encode("utf-8", "surrogatepass")) or np.nan for text in texts]
    per_word = np.exp(np.minimum(nll / words, 700))  # beyond, float64 overflows
    bits = nll / np.log(2) / size
    parts = {"per_word": per_word, "bits_per_byte": bits, "tokens": tokens, "nll": nll}

    def pooled() -> float:
        return float(np.exp(np.nansum(nll) / np.nansum(tokens)))

    signature = f"Perplexity|{signature}|per token"
    return Scored("Perplexity", np.exp(nll / tokens), signature, pooled, parts)


def context_gain(
    texts: Sequence[str], language_model: LanguageModel, cache: Cache | None = None
) -> Scored:
    """(NLL of every sentence by itself, summed - NLL of the text) / tokens of sentences 2 … n: how
    much context lowers the NLL. NaN below two sentences.
    """
    split = [split_sentences(text) for text in texts]
    # A sentence by itself keeps the blank before it: its tokens are then the text's.
    alone = [" " * (k > 0) + part for parts in split for k, part in enumerate(parts)]
    apart = perplexity(alone, language_model, cache).parts
    within = perplexity(texts, language_model, cache).parts["nll"]
    ends = np.cumsum([len(parts) for parts in split])[:-1]
    nll, tokens = (np.split(apart[name], ends) for name in ("nll", "tokens"))
    gains = [
        (costs.sum() - whole) / counts[1:].sum() if len(costs) > 1 else np.nan
        for costs, counts, whole in zip(nll, tokens, within, strict=True)
    ]
    signature = f"Context gain|{language_model.signature}|nats a token"
    return Scored("context gain", np.array(gains), signature)
