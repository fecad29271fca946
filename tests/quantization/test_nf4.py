"""nf4.py against published constants, bitsandbytes' own codes, and bounds from the arithmetic."""

import pytest
import torch

from gpt2_quant.errors import UserError
from gpt2_quant.quantization import nf4

# QLoRA, arXiv 2305.14314, appendix E.
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def decode(codes, scales):
    return nf4.levels()[codes.long()] * scales.unsqueeze(-1)


def test_levels_are_the_published_constants():
    assert torch.allclose(nf4.levels(), torch.tensor(PUBLISHED), atol=3e-7, rtol=0)
    assert nf4.levels()[[0, 7, 15]].tolist() == [-1.0, 0.0, 1.0]


def test_dynamic_map_equals_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(nf4.dynamic_map(), functional.create_dynamic_map())


def test_packing_puts_the_first_code_into_the_high_nibble():
    codes = torch.tensor([1, 2, 15, 0, 7], dtype=torch.uint8)
    assert nf4.pack(codes).tolist() == [0x12, 0xF0, 0x77]
    values = nf4.dequantize(torch.tensor([0x0F, 0x7F], dtype=torch.uint8), torch.tensor([2.0]), 3)
    assert values.tolist() == [-2.0, 2.0, 0.0]


@pytest.mark.parametrize("shape", [(7, 64), (48, 200), (1000,), (5, 3), (300, 256)])
def test_codes_and_values_equal_bitsandbytes(shape):
    functional = pytest.importorskip("bitsandbytes.functional")
    x = torch.randn(shape) * 0.02
    options = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}
    theirs, state = functional.quantize_4bit(x, **options)
    ours = nf4.quantize(x)
    scales = nf4.to_blocks(x).abs().amax(1)
    # A weight between two levels, to the last bit, may go to either; it must not go anywhere else.
    ours_at, theirs_at = (
        nf4.dequantize(packed.flatten(), scales, x.numel()).view(shape)
        for packed in (ours.packed, theirs)
    )
    assert ((ours_at - x).abs() - (theirs_at - x).abs()).abs().max() <= 1e-6 * scales.max()
    assert (ours.packed != theirs.flatten()).sum() <= 2
    # The scales' own codes likewise; bitsandbytes' search for the nearest entry of the map is exact
    # to a few thousandths.
    our_scales = nf4.read_scales(ours.scale_codes, ours.scale_absmax, ours.scale_offset)
    their_scales = nf4.read_scales(state.absmax, state.state2.absmax, state.offset)
    spread = (scales - scales.mean()).abs().max()
    excess = (their_scales - scales).abs() - (our_scales - scales).abs()
    assert excess.min() >= -1e-6 * scales.max() and excess.max() <= 1e-3 * spread + 1e-9
    same_scale = torch.isclose(our_scales, their_scales, rtol=1e-6).repeat_interleave(64)
    same = same_scale[: x.numel()].view(shape) & (ours_at == theirs_at)
    back = functional.dequantize_4bit(theirs, state).view(shape)
    assert torch.allclose(ours.dequantize()[same], back[same], rtol=1e-6, atol=1e-9)
    assert same.float().mean() > 0.7  # of a few blocks one may be a tie; of many hardly any is
    assert x.numel() < 10_000 or same.float().mean() > 0.98


@pytest.mark.parametrize("fit", ["absmax", "mse"])
def test_error_is_at_most_half_the_widest_gap(fit):
    x = torch.randn(64, 256)
    blocks = nf4.to_blocks(x)
    scales = blocks.abs().amax(1)
    error = (decode(nf4.encode(blocks, scales), scales) - blocks).abs()
    assert (error <= scales[:, None] * nf4.levels().diff().max() / 2 * 1.0001).all()
    # Double quantization moves a scale by half a gap of the map at most: 1.5% of the spread of
    # scales around their mean.
    error = (nf4.quantize(x, fit=fit).dequantize() - x).square().mean().sqrt() / x.std()
    assert error < 0.1


def test_least_squares_never_loses_to_absmax():
    normal, even = torch.randn(200, 64), torch.rand(200, 64)
    for x in (normal, even, normal**3, torch.zeros(2, 64), torch.ones(3, 64)):
        absmax = x.abs().amax(1)
        fitted = nf4._least_squares(x, absmax)

        def error(scales, x=x):
            return (decode(nf4.encode(x, scales), scales) - x).square().sum(1)

        assert (error(fitted) <= error(absmax) * 1.0001 + 1e-12).all()
    gaussian = torch.randn(2000, 64)
    read_back = (nf4.quantize(gaussian, fit=fit).dequantize() for fit in ("absmax", "mse"))
    absmax, mse = ((back - gaussian).square().sum() for back in read_back)
    assert mse < 0.93 * absmax  # 0.4 dB on normal weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_tensors(dtype):
    few = torch.zeros(0), torch.tensor([3.0]), torch.tensor([[-2.0, 2.0]])
    for x in (torch.zeros(3, 64), torch.full((2, 64), 0.5), *few):
        for fit in ("absmax", "mse"):
            back = nf4.quantize(x.to(dtype), fit=fit).dequantize(dtype)
            assert back.shape == x.shape and back.dtype == dtype
            assert torch.allclose(back.float(), x, atol=1e-6, rtol=0.02), (x.shape, fit)


def test_an_outlier_spoils_its_block_only():
    x = torch.randn(10, 64) * 0.02
    x[4, 7] = 200.0
    codes = nf4.encode(x, x.abs().amax(1))
    assert (codes[4] == 7).sum() == 63 and codes[4, 7] == 15
    assert (decode(codes, x.abs().amax(1))[5:] - x[5:]).abs().max() < 0.02


def test_nan_is_refused_by_name():
    with pytest.raises(UserError, match="wte"):
        nf4.quantize(torch.tensor([1.0, float("nan")]), name="wte.weight")


def test_bits_a_weight():
    quantized = nf4.quantize(torch.randn(768, 768))
    tensors = (quantized.packed, quantized.scale_codes, quantized.scale_absmax)
    n_bytes = sum(t.numel() * t.element_size() for t in tensors)
    assert quantized.n_bytes == n_bytes + 4
    assert 8 * n_bytes / 768**2 == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), rel=1e-4)
