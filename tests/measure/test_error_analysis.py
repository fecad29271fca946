"""The error study against hand-made matrices, an orthogonal check of each number, and the files
that it writes.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from gpt2_quant.data.datasets import Split
from gpt2_quant.data.tokens import tokenize
from gpt2_quant.errors import UserError
from gpt2_quant.measure import activations, error_analysis
from gpt2_quant.quantization import affine, fake, nf4


@pytest.fixture(scope="module")
def analysis(tiny_tokenizer, tiny_texts):
    from tiny_models import make_tiny_gpt2

    texts, labels = tiny_texts
    tokens = tokenize(tiny_tokenizer, Split("validation", texts[:40], labels[:40], "demo"), 64)
    settings = SimpleNamespace(device="cpu", batch_size=8)
    return error_analysis.analyse(
        make_tiny_gpt2(tiny_tokenizer), tokens, tiny_tokenizer.pad_token_id, settings
    )


def test_every_matrix_under_every_scheme(analysis):
    weights = analysis.weights
    assert len(weights) == (2 * 4 + 2) * len(fake.WEIGHT_SCHEMES)
    assert set(weights["matrix"]) == set(error_analysis.KINDS)
    mean = weights.groupby("scheme")["sqnr_db"].mean()
    order = ("int8 per channel", "int8 per tensor", "nf4 least squares", "nf4")
    assert (
        mean["int8 per group of 64"]
        >= mean[order[0]]
        > mean[order[1]]
        > mean[order[2]]
        > mean[order[3]]
    )
    # Gaussian weights: 20.7 dB for NF4; int8 per channel of 64 inputs about 20 log10(127 sqrt(12) /
    # 2.6) = 44.5 dB
    assert mean["nf4"] == pytest.approx(20.7, abs=0.4)
    assert mean["int8 per channel"] == pytest.approx(44.5, abs=1.5)
    assert (weights["saturated_share"] <= 0.1).all() and (weights["worst_relative_error"] > 0).all()
    bits = weights.groupby("scheme")["bits_per_weight"].max()
    assert bits["int8 per group of 64"] == pytest.approx(8.5) and 4.12 < bits["nf4"] < 4.15


def test_figures_of_one_matrix_by_hand(tiny_gpt2):
    weight = tiny_gpt2.transformer.h[1].attn.c_proj.weight.detach()
    frame = error_analysis.weight_errors(tiny_gpt2)
    row = frame[
        (frame["layer"] == 1)
        & (frame["matrix"] == "attn.c_proj")
        & (frame["scheme"] == "int8 per channel")
    ].iloc[0]
    scale = (
        weight.abs().amax(0, keepdim=True) / 127
    ).numpy()  # Conv1D: a column of [in, out] is an output channel
    error = np.round(weight.numpy() / scale) * scale - weight.numpy()
    assert row["sqnr_db"] == pytest.approx(
        10 * np.log10((weight.numpy() ** 2).sum() / (error**2).sum()), rel=1e-3
    )
    assert row["worst_relative_error"] == pytest.approx(
        np.abs(error).max() / weight.abs().max().item(), rel=1e-3
    )
    assert row["mean_relative_error"] == pytest.approx(
        np.abs(error).mean() / weight.abs().mean().item(), rel=1e-3
    )
    assert row["absmax_over_sigma"] == pytest.approx(
        (weight.abs().max() / weight.std()).item(), rel=1e-5
    )


def test_outliers_are_found_where_they_are(tiny_gpt2):
    norm = tiny_gpt2.transformer.h[1].ln_2
    with torch.no_grad():
        norm.weight[17] = 50.0
    ids = torch.randint(10, 900, (4, 16))
    mask = torch.ones_like(ids)
    mask[2, 5:] = 0
    found = activations.input_statistics(tiny_gpt2, [{"input_ids": ids, "attention_mask": mask}])
    row = found["transformer.h.1.mlp.c_fc"].row()
    assert row["top_channel"] == 17 and row["outlier_ratio"] > 10 and row["channels_beyond_6"] >= 1
    assert row["tokens"] == int(mask.sum())
    assert row["sqnr_per_token_db"] > row["sqnr_per_tensor_db"]
    assert not tiny_gpt2.transformer.h[1].mlp.c_fc._forward_pre_hooks


def test_effects_and_choices(analysis):
    effects, choices = analysis.effects, analysis.choices
    assert len(effects) == 4 * 7 and set(effects["part"]) == {*error_analysis.KINDS, "all"}
    assert (effects["kl_nats"] >= 0).all() and (effects["n"] == 40).all()
    whole = effects[effects["part"] == "all"].set_index("scheme")
    for scheme, rows in effects[effects["part"] != "all"].groupby("scheme"):
        assert rows["kl_nats"].min() <= whole.loc[scheme, "kl_nats"]
    assert whole.loc["NF4", "kl_nats"] > whole.loc["W8A8", "kl_nats"]
    # What a scheme is said to do is what it does: the choice that is taken is the scheme with
    # everything quantized.
    for scheme, rows in choices[choices["taken"]].groupby("scheme"):
        assert rows["kl_nats"].iloc[0] == pytest.approx(whole.loc[scheme, "kl_nats"], rel=1e-3)


def test_files_and_summary(analysis, tmp_path):
    written = analysis.save(tmp_path)
    expected = {
        "quantization_error.csv",
        "quantization_error_heatmap.png",
        "activation_outliers.csv",
    }
    assert {path.name for path in written} >= expected
    assert all(path.stat().st_size > 300 for path in written)
    assert len(pd.read_csv(tmp_path / "quantization_error.csv")) == len(analysis.weights)
    assert "SQNR" in analysis.summary() and "median channel" in analysis.summary()


def test_fake_quantization_rounds_the_weights_and_the_tied_head_follows(tiny_gpt2_lm):
    weight = tiny_gpt2_lm.transformer.h[0].mlp.c_fc.weight.detach().clone()
    for scheme in fake.WEIGHT_SCHEMES:
        model = fake.fake_quantize_weights(copy.deepcopy(tiny_gpt2_lm), scheme)
        assert model.lm_head.weight is model.transformer.wte.weight
        assert not torch.equal(model.lm_head.weight, tiny_gpt2_lm.lm_head.weight)
    nearest = nf4.quantize(weight.t()).dequantize().t()
    model = fake.fake_quantize_weights(copy.deepcopy(tiny_gpt2_lm), "nf4")
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, nearest)
    only = fake.fake_quantize_weights(
        copy.deepcopy(tiny_gpt2_lm), "int8 per tensor", lambda path: path.endswith("c_fc")
    )
    assert torch.equal(only.transformer.wte.weight, tiny_gpt2_lm.transformer.wte.weight)
    expected = affine.quantize_tensor(weight, per="tensor").dequantize()
    assert torch.equal(only.transformer.h[0].mlp.c_fc.weight, expected)
    with pytest.raises(UserError, match="unknown weight scheme"):
        fake.fake_quantize_weights(tiny_gpt2_lm, "int5")
