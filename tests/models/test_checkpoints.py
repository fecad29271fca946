"""Loading refuses what is not a usable classifier; sizes are sums over tensors; predictions come
back in order.
"""

import numpy as np
import pytest
import torch

from gpt2_quant.data.datasets import Split
from gpt2_quant.data.tokens import tokenize
from gpt2_quant.errors import UserError
from gpt2_quant.measure.predictions import load_predictions, predict, save_predictions
from gpt2_quant.models import loading as checkpoints
from gpt2_quant.models.sizes import size_in_parts


@pytest.fixture
def saved(tiny_gpt2, tiny_tokenizer, tmp_path):
    tiny_gpt2.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_load_gives_back_the_same_weights(saved, tiny_gpt2):
    model = checkpoints.load_classifier(saved, "cpu")
    assert not model.training
    for name, tensor in tiny_gpt2.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_language_model_is_no_classifier_but_takes_a_new_head(tiny_gpt2_lm, tmp_path):
    tiny_gpt2_lm.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks score.weight"):
        checkpoints.load_classifier(tmp_path, "cpu")
    model = checkpoints.load_classifier(tmp_path, "cpu", new_head=True)
    assert model.score.weight.shape == (4, 64) and model.config.id2label[1] == "Sports"
    assert torch.equal(model.transformer.wte.weight, tiny_gpt2_lm.transformer.wte.weight)


def test_size_counts_every_tensor_once(tiny_gpt2, tiny_gpt2_lm):
    for model in (tiny_gpt2, tiny_gpt2_lm):
        parts = size_in_parts(model)
        assert sum(parts.values()) == 4 * sum(parameter.numel() for parameter in model.parameters())
        assert parts["quantization_state"] == 0
    linear = 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256)
    assert size_in_parts(tiny_gpt2)["linear"] == 4 * linear
    assert size_in_parts(tiny_gpt2)["head"] == 4 * 4 * 64


def test_published_size_of_the_baseline():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    with torch.device("meta"):
        model = GPT2ForSequenceClassification(GPT2Config(num_labels=4))
    assert sum(p.numel() for p in model.parameters()) == 124_442_880
    assert round(4 * 124_442_880 / 2**20, 2) == 474.71


def test_predictions_are_in_row_order_whatever_the_batches(
    tiny_gpt2, tiny_tokenizer, tiny_texts, tmp_path
):
    texts, labels = tiny_texts[0][:50] + [""], tiny_texts[1][:50] + [0]
    tokens = tokenize(tiny_tokenizer, Split("test", texts, labels, "demo"), 64)
    batched = predict(tiny_gpt2, tokens, 16, tiny_tokenizer.pad_token_id, "batched")
    with torch.inference_mode():
        single = [
            tiny_gpt2(torch.from_numpy(tokens.row(i)).long()[None]).logits[0].numpy()
            for i in range(len(tokens))
        ]
    # Different summation orders in float32: a few hundred terms of order 1, each rounded to 2**-24.
    np.testing.assert_allclose(batched, np.stack(single), atol=2e-5)
    save_predictions(tmp_path, "baseline", tokens.labels, batched)
    frame = load_predictions(tmp_path, "baseline")
    assert list(frame["label"]) == labels and list(frame["id"]) == list(range(51))
    np.testing.assert_array_equal(frame[[f"logit_{i}" for i in range(4)]].to_numpy(), batched)


def test_a_model_that_answers_nan_is_refused(tiny_gpt2, tiny_tokenizer, tiny_texts):
    tokens = tokenize(
        tiny_tokenizer, Split("test", tiny_texts[0][:4], tiny_texts[1][:4], "demo"), 64
    )
    tiny_gpt2.score.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="4 of 4 texts with NaN"):
        predict(tiny_gpt2, tokens, 16, tiny_tokenizer.pad_token_id, "broken")
