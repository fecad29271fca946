"""Perplexity against token-by-token arithmetic, over windows, and as its units are defined."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from gpt2_quant.errors import UserError
from gpt2_quant.metrics.perplexity import _windows, context_gain, load_language_model, perplexity


def nll_by_hand(language_model, text: str) -> np.ndarray:
    """One forward pass over end-of-text and the text, one token's log-probability at a time."""
    ids = [language_model.start_id, *language_model.encode([text])[0]]
    with torch.inference_mode():
        logits = language_model.model(input_ids=torch.tensor([ids])).logits[0]
    return np.array(
        [-row.log_softmax(-1)[k].item() for row, k in zip(logits[:-1], ids[1:], strict=True)]
    )


def test_equals_one_token_at_a_time_whatever_the_batch(tiny_language_model, tiny_texts):
    texts = [*tiny_texts[0][:7], "word", "a b"]
    scored = perplexity(texts, tiny_language_model)
    for i, text in enumerate(texts):
        nll = nll_by_hand(tiny_language_model, text)
        # Same float32 model; padding and batch change sums of 64 products in their last bits.
        assert scored.parts["nll"][i] == pytest.approx(nll.sum(), rel=1e-5)
        assert scored.values[i] == pytest.approx(np.exp(nll.mean()), rel=1e-5)
        per_word = np.exp(nll.sum() / len(text.split()))
        assert scored.parts["per_word"][i] == pytest.approx(per_word, rel=1e-5)
        bits = nll.sum() / np.log(2) / len(text.encode())
        assert scored.parts["bits_per_byte"][i] == pytest.approx(bits, rel=1e-5)
    total = scored.parts["nll"].sum() / scored.parts["tokens"].sum()
    assert scored.corpus == pytest.approx(np.exp(total))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 12, 13, 41])
def test_windows_score_each_token_once_with_half_a_context_before_it(length):
    seen = []
    for row, first, size, count in _windows([length], context=8):
        assert row == 0 and size <= 8
        last = first + size
        assert first == 0 or size - count >= 4  # context // 2 positions before the first scored one
        seen += range(last - count, last)
    assert seen == list(range(length))


def test_long_text_equals_windows_by_hand(tiny_language_model, tiny_texts):
    text = " ".join(tiny_texts[0][:25])
    ids = tiny_language_model.encode([text])[0]
    context = tiny_language_model.model.config.n_positions
    assert len(ids) > 1.5 * context
    stream = [tiny_language_model.start_id, *ids]
    total, done = 0.0, 0
    while done < len(ids):
        count = context if done == 0 else min(context // 2, len(ids) - done)
        first = done + count - context
        read, targets = (torch.tensor(row[first : first + context]) for row in (stream, ids))
        with torch.inference_mode():
            logits = tiny_language_model.model(input_ids=read[None]).logits[0]
        total += cross_entropy(logits[-count:], targets[-count:], reduction="sum").item()
        done += count
    assert perplexity([text], tiny_language_model).parts["nll"][0] == pytest.approx(total, rel=1e-5)


def test_odd_texts(tiny_language_model, odd_texts):
    values = perplexity(odd_texts, tiny_language_model).values
    assert np.isnan(values[:3]).all() and np.isfinite(values[3:]).all() and (values[3:] >= 1).all()


def test_a_classifier_is_refused(tmp_path, tiny_gpt2, tiny_tokenizer):
    tiny_gpt2.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no GPT-2 language model"):
        load_language_model(str(tmp_path), None, "cpu")


def test_context_gain_by_hand(tiny_language_model, story):
    first, second = story[:2]
    ids = tiny_language_model.encode([first, f" {second}"])
    within = tiny_language_model.token_nll([ids[0] + ids[1]])[0][len(ids[0]) :]
    alone = tiny_language_model.token_nll([ids[1]])[0]
    scored = context_gain([f"{first} {second}", first, " "], tiny_language_model)
    assert scored.values[0] == pytest.approx((alone.sum() - within.sum()) / len(ids[1]), abs=1e-6)
    assert np.isnan(scored.values[1:]).all() and scored.n == 1
