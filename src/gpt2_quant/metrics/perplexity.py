"""Perplexity: how surprised a language model is, a token at a time. No reference, and no idea of
truth either.

    PPL = exp( -1/T * sum over t of log p(x_t | x_<t) )

Three choices decide the number and are fixed here. *First token*: GPT-2 has none before it, so the
end-of-text token stands there, as it did between documents in training; the first token is thus
scored too, and a one-word text has a perplexity. *Length*: a text beyond the context is read
through overlapping windows, each new one moved by half a context, so every token is scored once
and, past the first window, with at least half a context before it. *Unit*: per token depends on the
tokenizer; per word (white space) and bits per byte of UTF-8 compare across models:

    per word = exp(NLL / words),   bits per byte = NLL / (ln 2 * bytes)

It prefers what is frequent: short common phrases beat rare true facts, and a text that repeats
itself gets *better*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..cache import Cache, content_key
from ..data.hub import fetch_model_folder
from ..errors import UserError
from ..models.loading import quiet_loading
from ..records import file_sha256
from .scored import Scored, has_words
from .sentences import split_sentences

# Logits of one batch: 2,048 x 50,257 x 4 bytes = 412 MB, held some three times. A CPU is as fast
# with a quarter of that.
BATCH_TOKENS = {"cuda": 2048, "cpu": 512}


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer. `signature` names it by the hash of its weights."""

    model: torch.nn.Module
    tokenizer: object
    device: str
    signature: str

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, of any length, without special tokens."""
        return (
            self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            if len(texts)
            else []
        )

    @property
    def start_id(self) -> int:
        """The end-of-text token, which stands before each text."""
        return int(self.tokenizer.eos_token_id)

    def token_nll(self, ids: Sequence[Sequence[int]], what: str = "perplexity") -> list[np.ndarray]:
        """-log p of each token in nats, float64 [T] a sequence, by the windows that the module's
        docstring describes.
        """
        result = [np.empty(len(row)) for row in ids]
        for places, logits, targets in self.scored_positions(ids, what):
            nll = (
                torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                .double()
                .cpu()
                .numpy()
            )
            start = 0
            for row, first, count in places:
                result[row][first : first + count] = nll[start : start + count]
                start += count
        return result

    @torch.inference_mode()
    def scored_positions(self, ids: Sequence[Sequence[int]], what: str | None):
        """Yields (places, logits float32 [m, V], targets [m]); places lists (sequence, first token,
        count) in the rows' order.

        `what` names the progress bar; None is for models that read beside another's.
        """
        context = int(self.model.config.n_positions)
        windows = sorted(
            _windows([len(row) for row in ids], context), key=lambda window: -window[2]
        )
        with tqdm(
            total=sum(len(row) for row in ids),
            desc=what,
            unit="token",
            disable=what is None or len(ids) < 50,
            leave=False,
        ) as bar:
            while windows:
                size = max(1, BATCH_TOKENS[self.device] // windows[0][2])
                batch, windows = windows[:size], windows[size:]
                input_ids = torch.full((len(batch), batch[0][2]), self.start_id)
                mask, scored = (
                    torch.zeros_like(input_ids),
                    torch.zeros_like(input_ids, dtype=torch.bool),
                )
                for line, (row, first, length, count) in enumerate(batch):
                    # Position j of a window reads token first+j-1 and predicts token first+j;
                    # before token 0 stands start_id.
                    read = [self.start_id, *ids[row]][first : first + length]
                    input_ids[line, :length] = torch.tensor(read)
                    mask[line, :length] = 1
                    scored[line, length - count : length] = True
                targets = np.concatenate(
                    [
                        np.asarray(ids[row][first + length - count : first + length])
                        for row, first, length, count in batch
                    ]
                )
                hidden = self.model.transformer(
                    input_ids=input_ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    use_cache=False,
                ).last_hidden_state
                logits = self.model.lm_head(hidden[scored.to(self.device)]).float()
                places = [
                    (row, first + length - count, count) for row, first, length, count in batch
                ]
                yield places, logits, torch.from_numpy(targets).long().to(self.device)
                bar.update(len(targets))


def _windows(lengths: Sequence[int], context: int) -> list[tuple[int, int, int, int]]:
    """(sequence, first position, length, how many of its last positions are scored): each token
    scored in exactly one window.
    """
    windows = []
    for row, length in enumerate(lengths):
        done = min(length, context)
        if length:
            windows.append((row, 0, done, done))
        while done < length:
            count = min(context // 2, length - done)
            windows.append((row, done + count - context, context, count))
            done += count
    return windows


def load_language_model(name: str, revision: str | None, device: str) -> LanguageModel:
    """GPT-2 with its language-model head in float32, from a folder or the hub.

    Raises UserError when `name` is neither, or holds a model that is not a GPT-2 language model.
    """
    from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

    quiet_loading()
    folder = fetch_model_folder(name, revision)
    weights = sorted(Path(folder).glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"--base-model {name} holds no model.safetensors: give a model folder as save_pretrained writes it"
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "gpt2" or "Classification" in str(config.architectures):
            raise UserError(
                f"--base-model {name} is no GPT-2 language model: give one, for example openai-community/gpt2"
            )
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as fault:
        reason = str(fault).splitlines()[0]
        raise UserError(
            f"--base-model {name} cannot be loaded ({reason}): give another folder or hub id"
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
    context = int(language_model.model.config.n_positions)
    signature = f"{language_model.signature}|first token after end-of-text|context {context}, stride {context // 2}"
    keys = [content_key(signature, text) for text in texts]

    def compute(missing: list[int]) -> np.ndarray:
        ids = language_model.encode([texts[i] for i in missing])
        return np.array([(row.sum(), len(row)) for row in language_model.token_nll(ids)])

    rows = (cache or Cache(None)).rows("perplexity", keys, compute).reshape(-1, 2)
    blank = np.array([not has_words(text) for text in texts], dtype=bool)
    nll, tokens = np.where(blank, np.nan, rows[:, 0]), np.where(blank, np.nan, rows[:, 1])
    words = np.array([len(text.split()) or np.nan for text in texts])
    size = np.array([len(text.encode("utf-8", "surrogatepass")) or np.nan for text in texts])
    per_word = np.exp(
        np.minimum(nll / words, 700)
    )  # beyond it float64 overflows: a "word" of thousands of characters
    parts = {
        "per_word": per_word,
        "bits_per_byte": nll / np.log(2) / size,
        "tokens": tokens,
        "nll": nll,
    }
    additive = np.array([np.nansum(nll), np.nansum(tokens)]) if np.isfinite(nll).any() else None
    return Scored(
        "Perplexity",
        np.exp(nll / tokens),
        f"Perplexity|{signature}|per token",
        additive,
        lambda sums: float(np.exp(sums[0] / sums[1])),
        higher_is_better=False,
        parts=parts,
    )


def context_gain(
    texts: Sequence[str], language_model: LanguageModel, cache: Cache | None = None
) -> Scored:
    """How much what was said before lowers the surprise at the sentences that follow, in nats a
    token. A baseline for coherence.

        (NLL of every sentence by itself, summed - NLL of the text) / tokens of sentences 2 … n

    since the first sentence costs the same in both. A sentence by itself keeps the blank before it:
    its tokens are then the text's. Undefined for a text of fewer than two sentences; the corpus
    value is the mean.
    """
    cache = cache or Cache(None)
    split = [split_sentences(text) for text in texts]
    alone = perplexity(
        [" " * (k > 0) + part for parts in split for k, part in enumerate(parts)],
        language_model,
        cache,
    ).parts
    within = perplexity(texts, language_model, cache).parts["nll"]
    gains, start = np.full(len(texts), np.nan), 0
    for i, parts in enumerate(split):
        end = start + len(parts)
        if len(parts) > 1:
            gains[i] = (alone["nll"][start:end].sum() - within[i]) / alone["tokens"][
                start + 1 : end
            ].sum()
        start = end
    return Scored.mean(
        "context gain", gains, f"Context gain|{language_model.signature}|nats a token"
    )
