"""What a record keeps beside the scores: batch invariance, and the control's row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt2_quant.data.datasets import Split
from gpt2_quant.data.tokens import tokenize
from gpt2_quant.measure import evaluation


class OfItsBatch(torch.nn.Module):
    """Logits that lean by 0.25 towards the second class where texts stand side by side."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask, use_cache):
        # Every other text is a near tie between the first class and the second.
        lead = torch.where(torch.arange(len(input_ids)) % 2 == 0, 0.1, 1.0)
        logits = torch.zeros(len(input_ids), 4)
        logits[:, 0], logits[:, 1] = lead, 0.25 * (len(input_ids) > 1)
        return SimpleNamespace(logits=logits)


@pytest.fixture
def tokens(tiny_tokenizer, tiny_texts):
    return tokenize(tiny_tokenizer, Split("test", *(x[:60] for x in tiny_texts), "demo"), 64)


def test_batch_invariance_counts_what_a_batch_changes(tokens, tiny_tokenizer):
    found = evaluation.batch_invariance(OfItsBatch(), tokens, tiny_tokenizer.pad_token_id)
    assert found["n"] == 48 and found["batch_sizes"] == [1, 16]
    # Alone, a text is the first of its batch, which leads by 0.1.
    assert found["largest_logit_difference"] == pytest.approx(0.9)
    assert found["flips"] == 24


def test_a_float_model_is_batch_invariant(tiny_gpt2, tokens, tiny_tokenizer):
    found = evaluation.batch_invariance(tiny_gpt2, tokens, tiny_tokenizer.pad_token_id)
    assert found["flips"] == 0
    # Sums over 64 and 256 products in another order: some 16 of float32's steps, a few times over.
    largest = float(np.abs(tiny_gpt2.score.weight.detach()).sum(1).max())
    assert found["largest_logit_difference"] < 1000 * 2**-24 * max(largest, 1)
