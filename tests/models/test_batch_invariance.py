"""A text's answer and the texts beside it in the batch, for every variant on the CPU."""

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_gpt2, save_variant

from gpt2_quant.data.datasets import Split
from gpt2_quant.data.tokens import pad_batch, tokenize
from gpt2_quant.models.loading import load_variant
from gpt2_quant.models.variants import BASELINE, VARIANTS


@pytest.fixture(scope="module")
def models_dir(tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny_gpt2(folder / BASELINE.folder, tiny_tokenizer)
    for key, variant in VARIANTS.items():
        if variant.method:
            save_variant(key, folder, tiny_tokenizer)
    return folder


@pytest.fixture(scope="module")
def tokens(tiny_tokenizer, tiny_texts):
    return tokenize(tiny_tokenizer, Split("test", tiny_texts[0][:16], [0] * 16, "demo"), 64)


def answers(model, tokens, rows, width: int) -> torch.Tensor:
    batch = pad_batch(tokens, np.array(rows), 0)
    missing = width - batch["input_ids"].shape[1]
    ids, mask = (
        torch.nn.functional.pad(batch[name], (0, missing))
        for name in ("input_ids", "attention_mask")
    )
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits.float()


@pytest.mark.parametrize("key", VARIANTS)
def test_the_texts_beside_it_do_not_change_an_answer(key, models_dir, tokens):
    """One width, batches of 1 and 16: every scale is of a token or a weight, none of a batch."""
    model = load_variant(key, models_dir, "cpu")
    together = answers(model, tokens, range(16), 64)
    alone = torch.cat([answers(model, tokens, [row], 64) for row in range(16)])
    # Libraries may cut a product of floats otherwise: 64 terms of order 1, each rounded to 2**-24.
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("key", VARIANTS)
def test_padding_moves_an_answer_less_than_quantization_does(key, models_dir, tokens):
    model, fp32 = (load_variant(k, models_dir, "cpu") for k in (key, BASELINE.key))
    wide = answers(model, tokens, range(16), 64)
    own = [-(-len(tokens.row(i)) // 8) * 8 for i in range(16)]
    alone = torch.cat([answers(model, tokens, [i], width) for i, width in enumerate(own)])
    error = (wide - answers(fp32, tokens, range(16), 64)).abs().max()
    assert (alone - wide).abs().max() <= max(2e-5, error)
