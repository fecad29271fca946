"""KL, agreement and perplexity of quantized language models, against a computation that keeps all
logits.
"""

import numpy as np
import pytest
import torch

from gpt2_quant.errors import UserError
from gpt2_quant.metrics.studies import quantization_cost
from gpt2_quant.models import variants
from gpt2_quant.models.variants import BASELINE, FP16, INT8, NF4, VARIANTS, W8A8, made_by


@pytest.fixture
def folder(tiny_language_model, tmp_path):
    """Where the FP32 checkpoint lies."""
    tiny_language_model.model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_table_equals_a_direct_computation(tiny_language_model, tiny_texts, folder):
    texts = [*tiny_texts[0][:6], ""]
    table, missing = quantization_cost.cost_of_all(tiny_language_model, folder, texts)
    # Of TF32's weights there is nothing to study, and the control is no language model.
    left = [v for v in VARIANTS.values() if not v.outside_torch and v is not variants.TF32]
    others = [variant.key for variant in left]
    assert [*table["scheme"], *missing] == others
    quantized = INT8.how.quantize(INT8.key, tiny_language_model.model, folder, torch.float32)
    kl, agree, nll, base_nll = [], [], [], []
    for row in tiny_language_model.encode(texts[:-1]):
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
    row = table.set_index("scheme").loc[INT8.key]
    # float32 logits of size 1: log-probabilities are good to about 1e-6, and KL is a sum of 1,000
    # terms weighted to 1.
    assert row["kl_mean"] == pytest.approx(kl.mean().item(), rel=2e-2, abs=2e-7)
    assert row["perplexity"] == pytest.approx(nll.mean().exp().item(), rel=1e-5)
    assert row["ratio"] == pytest.approx((nll.mean() - base_nll.mean()).exp().item(), rel=1e-5)
    assert row["top1_agreement"] == pytest.approx(agree.mean().item(), abs=2 / len(agree))
    assert row["tokens"] == len(agree)


def test_finer_schemes_cost_less(tiny_language_model, tiny_texts, folder):
    keys = [FP16.key, *(variant.key for variant in made_by(2))]
    models = quantization_cost.quantized_language_models(tiny_language_model, folder, keys)
    table = quantization_cost.cost_table(tiny_language_model, models, tiny_texts[0][:6]).set_index(
        "scheme"
    )
    kl = table["kl_mean"]
    assert kl[BASELINE.key] == 0 and table.loc[BASELINE.key, "ratio"] == 1
    assert kl[FP16.key] < kl[INT8.key] and kl[W8A8.key] < kl[NF4.key]
    assert np.isfinite(table.select_dtypes("number").to_numpy()).all()


def test_without_bitsandbytes_its_variants_are_missing(
    tiny_language_model, tiny_texts, folder, monkeypatch
):
    def require():
        raise UserError("bitsandbytes cannot be imported")

    monkeypatch.setattr(quantization_cost, "require", require)
    table, missing = quantization_cost.cost_of_all(tiny_language_model, folder, tiny_texts[0][:3])
    assert list(missing) == [v.key for v in made_by(3) if v.method]
    assert not set(missing) & set(table["scheme"])
