"""KL, agreement and perplexity of quantized language models, against a computation that keeps all
logits.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2_quant.cache import Cache
from gpt2_quant.metrics.studies import quantization_cost
from gpt2_quant.metrics.studies.quantization_cost import (
    SCRATCH,
    cached_cost_table,
    cost_table,
    quantized_language_models,
)
from gpt2_quant.quantization.quantizer import quantize_model


def test_table_equals_a_direct_computation(tiny_language_model, tiny_texts, tmp_path):
    texts = tiny_texts[0][:6]
    tiny_language_model.model.save_pretrained(tmp_path)
    table, missing = cached_cost_table(tiny_language_model, tmp_path, texts, Cache(None))
    table = table.set_index("scheme")
    assert {"baseline", "baseline_fp16", "int8_scratch", "int8_scratch_w8a8", "nf4_scratch"} <= set(
        table.index
    )
    assert {"int8_bitsandbytes", "nf4_bitsandbytes"} <= set(table.index) | set(missing)

    quantized = quantize_model(copy.deepcopy(tiny_language_model.model), "int8_scratch")
    kl, agree, nll, base_nll = [], [], [], []
    for row in tiny_language_model.encode(texts):
        ids = torch.tensor([[tiny_language_model.start_id, *row]])
        with torch.inference_mode():
            p, q = (
                torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
                for model in (tiny_language_model.model, quantized)
            )
        kl.append((p.exp() * (p - q)).sum(-1))
        agree.append(p.argmax(-1) == q.argmax(-1))
        targets = ids[0, 1:, None]
        nll.append(-q.gather(1, targets))
        base_nll.append(-p.gather(1, targets))
    kl, agree, nll, base_nll = (torch.cat(values).double() for values in (kl, agree, nll, base_nll))
    row = table.loc["int8_scratch"]
    # float32 logits of size 1: log-probabilities are good to about 1e-6, and KL is a sum of 1,000
    # terms weighted to 1.
    assert row["kl_mean"] == pytest.approx(kl.mean().item(), rel=2e-2, abs=2e-7)
    assert row["perplexity"] == pytest.approx(nll.mean().exp().item(), rel=1e-5)
    assert row["ratio"] == pytest.approx((nll.mean() - base_nll.mean()).exp().item(), rel=1e-5)
    assert row["top1_agreement"] == pytest.approx(agree.mean().item(), abs=2 / len(agree))
    assert row["tokens"] == len(agree)


def test_finer_schemes_cost_less(tiny_language_model, tiny_texts, tmp_path):
    tiny_language_model.model.save_pretrained(tmp_path)
    models = quantized_language_models(tiny_language_model, tmp_path, ["baseline_fp16", *SCRATCH])
    table = cost_table(tiny_language_model, models, tiny_texts[0][:6]).set_index("scheme")
    assert table.loc["baseline", "kl_mean"] == 0 and table.loc["baseline", "ratio"] == 1
    assert table.loc["baseline_fp16", "kl_mean"] < table.loc["int8_scratch", "kl_mean"]
    assert table.loc["int8_scratch_w8a8", "kl_mean"] < table.loc["nf4_scratch", "kl_mean"]
    assert np.isfinite(table.select_dtypes("number").to_numpy()).all()


def test_rows_are_read_back_until_texts_or_weights_change(
    tiny_language_model, tiny_texts, tmp_path, monkeypatch
):
    tiny_language_model.model.save_pretrained(tmp_path)
    texts, cached = tiny_texts[0][:3], tmp_path / "cache"
    first, _ = cached_cost_table(tiny_language_model, tmp_path, texts, Cache(cached))
    measured = []

    def count(*arguments):
        measured.append(arguments)
        return cost_table(*arguments)

    monkeypatch.setattr(quantization_cost, "cost_table", count)
    again, _ = cached_cost_table(tiny_language_model, tmp_path, texts, Cache(cached))
    assert again.equals(first) and not measured
    cached_cost_table(tiny_language_model, tmp_path, texts[:2], Cache(cached))
    cached_cost_table(
        replace(tiny_language_model, signature="other weights"), tmp_path, texts, Cache(cached)
    )
    assert len(measured) == 2
