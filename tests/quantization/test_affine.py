"""affine.py against hand-computed codes, torch's own quantizers and the bounds that the arithmetic
gives.
"""

import pytest
import torch

from gpt2_quant.errors import UserError
from gpt2_quant.quantization import affine


def test_codes_of_a_worked_example():
    # absmax 2.54 -> scale 0.02; 0.05 / 0.02 = 2.5 and 0.03 / 0.02 = 1.5 are ties: half to even
    # gives 2 and 2.
    x = torch.tensor([2.54, -2.54, 0.05, 0.03, 0.0, -0.011])
    quantized = affine.quantize_tensor(x, per="tensor")
    assert quantized.scale.item() == pytest.approx(0.02)
    ties = torch.tensor([0.5, 1.5, 2.5, -2.5, 200.0, -200.0])
    exact = affine.quantize(ties, torch.tensor(1.0), 0, -127, 127)
    assert exact.tolist() == [0, 2, 2, -2, 127, -127]
    assert quantized.codes.tolist()[:2] == [127, -127] and quantized.codes.tolist()[4:] == [0, -1]


def test_affine_example_with_a_zero_point():
    # [-1, 4]: scale 5/255, zero point round(-128 + 51) = -77; 0 must read back as exactly 0.
    x = torch.tensor([-1.0, 0.0, 4.0])
    quantized = affine.quantize_tensor(x, symmetric=False, per="tensor")
    assert quantized.scale.item() == pytest.approx(5 / 255)
    assert quantized.zero_point.item() == -77
    assert quantized.codes.tolist() == [-128, -77, 127]
    assert quantized.dequantize()[1].item() == 0.0


def assert_same(x, scale, zero_point, theirs):
    """Codes and values equal those of torch's quantized tensor."""
    codes = affine.quantize(x, scale, zero_point, -128, 127)
    assert torch.equal(codes, theirs.int_repr())
    assert torch.equal(affine.dequantize(codes, scale, zero_point), theirs.dequantize())


@pytest.mark.parametrize("zero_point", [0, 5, -100, 127])
def test_equals_torch_per_tensor_bit_for_bit(zero_point):
    x = torch.randn(10_007) * 3
    for scale in (0.0173, 0.1, 1e-5, 7.0):
        theirs = torch.quantize_per_tensor(x, scale, zero_point, torch.qint8)
        assert_same(x, torch.tensor(scale), zero_point, theirs)


@pytest.mark.parametrize("zero_point", [0, 1, -100, 127])
def test_equals_torch_on_values_next_to_a_tie(zero_point):
    x = (torch.randint(-120, 120, (64, 2000)) + 0.5) * 0.7 * (1 + torch.randn(64, 2000) * 1e-6)
    scale, zero_points = torch.full((64,), 0.7), torch.full((64,), zero_point)
    theirs = torch.quantize_per_tensor(x, 0.7, zero_point, torch.qint8)
    assert_same(x, torch.tensor(0.7), zero_point, theirs)
    theirs = torch.quantize_per_channel(x, scale, zero_points, 0, torch.qint8)
    assert_same(x, scale[:, None], zero_points[:, None], theirs)


def test_equals_torch_per_channel_bit_for_bit():
    x, scale = torch.randn(33, 257), torch.rand(33) * 0.05 + 1e-3
    zero_point = torch.randint(-20, 20, (33,))
    theirs = torch.quantize_per_channel(x, scale, zero_point, 0, torch.qint8)
    assert_same(x, scale[:, None], zero_point[:, None], theirs)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("transposed", [False, True])
def test_error_is_at_most_half_a_scale(symmetric, per, transposed):
    x = torch.randn(48, 200) * torch.rand(48, 1) * 10 + 0.3
    x = x.t() if transposed else x
    quantized = affine.quantize_tensor(x, symmetric=symmetric, per=per)
    scale = quantized.scale.unsqueeze(-1)
    # On top of half a scale: float32 rounds x / scale (at most 255) and the product, a few 2**-24
    # of absmax.
    slack = 4 * 2**-24 * x.abs().max()
    assert ((quantized.dequantize() - x).abs() <= scale / 2 + slack).all()
    assert quantized.codes.shape == x.shape and quantized.codes.is_contiguous()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_tensors(symmetric, dtype):
    cases = {
        "zeros": torch.zeros(4, 5),
        "constant": torch.full((4, 5), 0.75),
        "negative constant": torch.full((4, 5), -3.0),
        "one element": torch.tensor([[2.0]]),
        "empty": torch.zeros(0, 5),
        "no columns": torch.zeros(4, 0),
    }
    for name, x in cases.items():
        for per in ("tensor", "channel"):
            x = x.to(dtype)
            quantized = affine.quantize_tensor(x, symmetric=symmetric, per=per, name=name)
            back = quantized.dequantize()
            assert back.shape == x.shape and torch.isfinite(back).all(), name
            assert torch.allclose(back, x.float(), atol=0, rtol=1 / 254 + 1e-6), name


def test_denormals_and_the_largest_floats():
    tiny = torch.tensor([1e-40, -1e-42, 0.0])
    error = affine.quantize_tensor(tiny, per="tensor").dequantize() - tiny
    assert error.abs().max() <= affine.SMALLEST_SCALE / 2
    huge = torch.tensor([3.3e38, -3.3e38, 1e38])
    for symmetric in (True, False):  # high - low overflows float32
        quantized = affine.quantize_tensor(huge, symmetric=symmetric, per="tensor")
        assert torch.isfinite(quantized.scale).all()
        assert ((quantized.dequantize() - huge).abs() <= quantized.scale * 0.51).all()


def test_an_outlier_of_ten_thousand_sigma_spoils_a_tensor_but_only_its_own_channel():
    weight = torch.randn(16, 64)
    weight[3, 5] = 1e4
    others = [i for i in range(16) if i != 3]
    per_tensor = affine.quantize_tensor(weight, per="tensor").dequantize()
    per_channel = affine.quantize_tensor(weight, per="channel").dequantize()
    assert (per_tensor[others] == 0).all()  # the scale is 79 sigma
    error = (per_channel[others] - weight[others]).abs().max()
    assert error <= weight[others].abs().max() / 254 * 1.0001
    assert per_channel[3, 5].item() == pytest.approx(1e4, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name(bad):
    x = torch.ones(3, 3)
    x[1, 1] = bad
    with pytest.raises(UserError, match=r"h\.0\.mlp"):
        affine.quantize_tensor(x, name="h.0.mlp")


def test_a_scale_per_channel_needs_channels():
    with pytest.raises(ValueError, match="axes"):
        affine.quantize_tensor(torch.ones(2), per="channel", name="bias")


def test_rows_are_quantized_with_a_scale_each():
    x = torch.randn(5, 130) * torch.tensor([[1e-3], [1.0], [1e3], [0.0], [1e-40]])
    codes, scale = affine.quantize_rows(x)
    assert codes.dtype == torch.int8 and scale.shape == (5, 1)
    assert codes[:3].abs().amax(1).tolist() == [127, 127, 127] and (codes[3:] == 0).all()
    assert ((affine.dequantize(codes, scale) - x).abs() <= scale * (0.5 + 1e-4)).all()
