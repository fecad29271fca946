"""Perplexity: how surprised a language model is, token by token. No reference, and no idea of truth
either.

    PPL = exp( -1/T * sum over t of log p(x_t | x_<t) )

Three choices decide the number. *First token*: GPT-2 has none before it, so the end-of-text token
stands there, as it did between documents in training; thus the first token is scored too, and a
one-word text has a perplexity. *Length*: a text beyond the context is read through overlapping
windows, each moved by half a context: every token is scored once and, past the first window, with
at least half a context before it. *Unit*: per token depends on the tokenizer; per word (white
space) and bits per byte of UTF-8 compare across models:

    per word = exp(NLL / words),   bits per byte = NLL / (ln 2 * bytes)

It prefers what is frequent: short common phrases beat rare true facts, and a text that repeats
itself gets *better*.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..cache import Cache
from ..data.hub import fetch_model_folder
from ..errors import UserError
from ..models.loading import quiet_loading
from ..records import file_sha256
from .scored import Scored, cached_rows, has_words
from .sentences import split_sentences

# Logits of one batch: 2,048 x 50,257 x 4 bytes = 412 MB, held some three times. A CPU is as fast
# with a quarter of that.
BATCH_TOKENS = {"cuda": 2048, "cpu": 512}


@dataclass
class LanguageModel:
    """A causal language model and its tokenizer; `signature` names it by its weights' hash."""

    model: Any
    tokenizer: Any
    device: str
    signature: str

    @property
    def context(self) -> int:
        """How many tokens the model reads at once."""
        return int(self.model.config.n_positions)

    @property
    def start_id(self) -> int:
        """The end-of-text token, which stands before each text."""
        return int(self.tokenizer.eos_token_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, of any length, without special tokens."""
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def token_nll(self, ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """-log p of each token in nats, float64 [T] per sequence, by the windows that the module's
        docstring describes.
        """
        result = [np.empty(len(sequence)) for sequence in ids]
        for positions, logits, targets in self.scored_positions(ids, None):
            nll = cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
            ends = np.cumsum([count for *_, count in positions])
            for (i, first, count), part in zip(positions, np.split(nll, ends[:-1]), strict=True):
                result[i][first : first + count] = part
        return result

    @torch.inference_mode()
    def scored_positions(
        self, ids: Sequence[Sequence[int]], what: str | None
    ) -> Iterator[tuple[list[tuple[int, int, int]], torch.Tensor, torch.Tensor]]:
        """Yields (positions, logits float32 [m, V], targets [m]); positions lists (sequence, first
        token, count) in the order of the logits.

        `what` names the progress bar; None is for models that read beside another's.
        """
        windows = _windows([len(sequence) for sequence in ids], self.context)
        windows.sort(key=lambda window: -window[2])  # windows of a batch have similar lengths
        total, hidden_bar = sum(map(len, ids)), what is None or len(ids) < 50
        with tqdm(total=total, desc=what, unit="token", disable=hidden_bar, leave=False) as bar:
            while windows:
                size = max(1, BATCH_TOKENS[self.device] // windows[0][2])
                batch, windows = windows[:size], windows[size:]
                positions = [(i, first + n - count, count) for i, first, n, count in batch]
                logits = self._window_logits(ids, batch)
                targets = np.concatenate(
                    [ids[i][first : first + count] for i, first, count in positions]
                )
                yield positions, logits, torch.from_numpy(targets).long().to(self.device)
                bar.update(len(targets))

    def _window_logits(self, ids, batch) -> torch.Tensor:
        """Logits float32 [m, V] at the scored positions of a batch of windows, longest first."""
        input_ids = torch.full((len(batch), batch[0][2]), self.start_id)
        mask, scored = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
        for row, (i, first, length, count) in enumerate(batch):
            # Position j of a window reads token first+j-1 and predicts token first+j; before token
            # 0 stands start_id.
            read = [self.start_id, *ids[i]][first : first + length]
            input_ids[row, :length] = torch.tensor(read)
            mask[row, :length] = 1
            scored[row, length - count : length] = True
        input_ids, mask = input_ids.to(self.device), mask.to(self.device)
        inner = self.model.transformer(input_ids=input_ids, attention_mask=mask, use_cache=False)
        # The head, 50,257 wide, reads only the positions that count.
        return self.model.lm_head(inner.last_hidden_state[scored.to(self.device)]).float()


def _windows(lengths: Sequence[int], context: int) -> list[tuple[int, int, int, int]]:
    """(sequence, first position, length, how many of its last positions are scored): each token
    scored in exactly one window.
    """
    windows = []
    for i, length in enumerate(lengths):
        done = min(length, context)
        if length:
            windows.append((i, 0, done, done))
        while done < length:
            count = min(context // 2, length - done)
            windows.append((i, done + count - context, context, count))
            done += count
    return windows


def load_language_model(name: str, revision: str | None, device: str) -> LanguageModel:
    """GPT-2 with its language-model head in float32, from a folder or the hub.

    Raises UserError when `name` is neither, or holds a model that is not a GPT-2 language model.
    """
    from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

    quiet_loading()
    folder = fetch_model_folder(name, revision)
    weights = sorted(folder.glob("*.safetensors"))
    fault_of = f"--base-model {name}"
    if not weights:
        raise UserError(
            f"{fault_of} holds no model.safetensors: "
            "give a model folder as save_pretrained writes it"
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "gpt2" or "Classification" in str(config.architectures):
            raise UserError(
                f"{fault_of} is no GPT-2 language model: "
                "give one, for example openai-community/gpt2"
            )
        model: Any = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as fault:
        reason = str(fault).splitlines()[0]
        raise UserError(
            f"{fault_of} cannot be loaded ({reason}): give another folder or hub id"
        ) from fault
    digest = "+".join(file_sha256(path)[:8] for path in weights)
    return LanguageModel(model.to(device).eval(), tokenizer, device, f"{Path(name).name}@{digest}")


def perplexity(
    texts: Sequence[str], language_model: LanguageModel, cache: Cache | None = None
) -> Scored:
    """Perplexity per token of each text under `language_model`; `parts`: per_word, bits_per_byte,
    tokens, nll (nats, summed).

    A blank text is undefined. The corpus value is exp of the summed NLL over the summed tokens, not
    the mean of perplexities.
    """
    context = language_model.context
    signature = (
        f"{language_model.signature}|first token after end-of-text"
        f"|context {context}, stride {context // 2}"
    )

    def compute(items):
        ids = language_model.encode([text for (text,) in items])
        return [(nll.sum(), len(nll)) for nll in language_model.token_nll(ids)]

    items = [(text,) for text in texts]
    rows = cached_rows(cache, "perplexity", signature, items, compute, width=2)
    nll, tokens = np.where([[has_words(text)] for text in texts], rows, np.nan).T
    words = np.array([len(text.split()) or np.nan for text in texts])
    size = np.array([len(text.encode("utf-8", "surrogatepass")) or np.nan for text in texts])
    parts = {
        # Beyond 700 float64 overflows: a "word" of thousands of characters.
        "per_word": np.exp(np.minimum(nll / words, 700)),
        "bits_per_byte": nll / np.log(2) / size,
        "tokens": tokens,
        "nll": nll,
    }

    def pooled() -> float:
        return float(np.exp(np.nansum(nll) / np.nansum(tokens)))

    signature = f"Perplexity|{signature}|per token"
    return Scored("Perplexity", np.exp(nll / tokens), signature, pooled, parts)


def context_gain(
    texts: Sequence[str], language_model: LanguageModel, cache: Cache | None = None
) -> Scored:
    """How much what was said before lowers the surprise at the sentences that follow, nats per
    token: a baseline for coherence.

        (NLL of every sentence by itself, summed - NLL of the text) / tokens of sentences 2 … n

    since the first sentence costs the same in both. Undefined for a text of fewer than two
    sentences; the corpus value is the mean.
    """
    split = [split_sentences(text) for text in texts]
    # A sentence by itself keeps the blank before it: its tokens are then the text's.
    alone = [" " * (k > 0) + part for parts in split for k, part in enumerate(parts)]
    apart = perplexity(alone, language_model, cache).parts
    within = perplexity(texts, language_model, cache).parts["nll"]
    gains, start = np.full(len(texts), np.nan), 0
    for i, parts in enumerate(split):
        end = start + len(parts)
        if len(parts) > 1:
            saved = apart["nll"][start:end].sum() - within[i]
            gains[i] = saved / apart["tokens"][start + 1 : end].sum()
        start = end
    signature = f"Context gain|{language_model.signature}|nats a token"
    return Scored("context gain", gains, signature)
