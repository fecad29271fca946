"""The fused forward pass against the module-by-module one of the same model (see test_kernels.py on
where it runs).
"""

import copy
import os

import interpreted_e4m3
import pytest
import torch

from gpt2_quant.inference import engine, fused, gpt2
from gpt2_quant.quantization.fp8 import is_native
from gpt2_quant.quantization.quantizer import quantize_model

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = not INTERPRETED
DTYPE = torch.float16 if HALF else torch.float32
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
if INTERPRETED:
    interpreted_e4m3.repair()


@pytest.fixture
def batch(tiny_gpt2):
    """Three texts of 21, 13 and 1 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, tiny_gpt2.config.vocab_size, (3, 21), generator=generator)  # 0 pads
    mask = (torch.arange(21) < torch.tensor([[21], [13], [1]])).long()
    return ids.masked_fill(mask == 0, tiny_gpt2.config.pad_token_id).to(DEVICE), mask.to(DEVICE)


def logits_of(model, ids, mask):
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits.float()


@pytest.mark.parametrize("scheme", ["int8_scratch_w8a8", "fp8_scratch", "nf4_scratch", None])
def test_fused_logits_are_the_models(tiny_gpt2, batch, scheme):
    model = tiny_gpt2.to(DTYPE)
    model = (quantize_model(model, scheme) if scheme else model).to(DEVICE)
    fp8 = gpt2.is_fp8(model)
    assert gpt2.can_fuse(model) or fp8 and not is_native(torch.device(DEVICE))
    ids, mask = batch
    expected = logits_of(model, ids, mask)
    run = fused.FusedClassifier(model)
    # A last-bit difference before a rounding to codes moves single codes by one step, in FP8 of a
    # sixteenth of the value; floats differ by rounding alone.
    step = 0.05 if fp8 else 0.02 if scheme == "int8_scratch_w8a8" or HALF else 1e-4
    for got in (run(ids, mask), run(ids, None)):
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() <= step * expected.abs().max()


def test_left_padding_is_masked(tiny_gpt2, batch):
    model = tiny_gpt2.to(DTYPE).to(DEVICE)
    ids, mask = batch[0].flip(1), batch[1].flip(1)
    expected = logits_of(model, ids, mask)
    got = fused.FusedClassifier(model)(ids, mask)
    assert (got - expected).abs().max() <= (1e-4 if INTERPRETED else 0.02) * expected.abs().max()


def test_scores_scaled_by_layer(tiny_gpt2, batch):
    model = copy.deepcopy(tiny_gpt2)
    model.config.scale_attn_by_inverse_layer_idx = True
    for block in model.transformer.h:
        block.attn.scaling /= block.attn.layer_idx + 1
    model = model.to(DTYPE).to(DEVICE)
    expected, got = logits_of(model, *batch), fused.FusedClassifier(model)(*batch)
    assert (got - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_two_halves_at_once_give_the_same_logits(tiny_gpt2, masked):
    """Captured and replayed. Equal: W8A8's sums are integers, and no row's floats are added in
    another order in a batch of another size.
    """
    model = quantize_model(tiny_gpt2.half(), "int8_scratch_w8a8").to(DEVICE)
    ids = torch.randint(1, tiny_gpt2.config.vocab_size, (64, 64), device=DEVICE)
    assert ids.numel() >= fused.HALVED_FROM
    mask = (torch.arange(64, device=DEVICE) >= torch.arange(64, device=DEVICE)[:, None]).long()
    mask = mask if masked else None
    chain, expected = fused.FusedClassifier(model), []
    for part in ids.chunk(2), ids.chunk(1):
        masks = mask.chunk(len(part)) if masked else [None] * len(part)
        expected.append(torch.cat([chain._logits(*x) for x in zip(part, masks, strict=True)]))
    assert torch.equal(*expected)
    run = engine.best_mode(model, DEVICE)
    assert all(torch.equal(run(ids, mask), expected[0]) for _ in range(20))


def test_unknown_shapes_are_not_fused(tiny_gpt2):
    tiny_gpt2.config.activation_function = "relu"
    assert not gpt2.can_fuse(tiny_gpt2)


@pytest.mark.parametrize("pad", [None, 9])
def test_pooled_positions(pad):
    ids = torch.tensor([[1, 2, 9, 9], [1, 9, 3, 9], [9, 9, 9, 9], [1, 2, 3, 4]])
    assert gpt2.pooled_positions(ids, pad).tolist() == ([3] * 4 if pad is None else [1, 2, 0, 3])
