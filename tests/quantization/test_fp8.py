"""FP8 against e4m3 as its paper defines it, and its layers against what their codes stand for."""

import numpy as np
import pytest
import torch

from gpt2_quant.models.variants import FP8
from gpt2_quant.quantization import affine, fp8
from gpt2_quant.quantization.fp8 import FP8Embedding, FP8Linear
from gpt2_quant.quantization.layers import TiedHead


def e4m3_values() -> torch.Tensor:
    """The 256 values by the definition: float64 [256], NaN where the exponent and mantissa are all
    ones.
    """
    byte = torch.arange(256)
    exponent, mantissa = (byte >> 3) & 15, (byte & 7).double() / 8
    size = torch.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    size = size.masked_fill((byte & 127) == 127, torch.nan)
    return torch.where(byte > 127, -size, size)


def test_every_code_has_the_value_of_its_definition():
    every = torch.arange(256, dtype=torch.uint8)
    values = e4m3_values()
    assert torch.allclose(every.view(fp8.E4M3).double(), values, rtol=0, atol=0, equal_nan=True)
    assert values.nan_to_num().max() == fp8.CODE_MAX


def test_rounding_is_that_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")  # comes with onnx
    codes, scale = fp8.quantize_rows(rows())
    scaled = (rows() * (1.0 / scale)).numpy()
    theirs = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(codes.view(torch.uint8).numpy(), theirs)


def rows() -> torch.Tensor:
    """Even rows, rows with outliers, large, tiny, denormal and zero ones: float32 [10, 200]."""
    x = torch.randn(10, 200, generator=torch.Generator().manual_seed(0))
    x[2:4, 7] *= 100
    x[4] *= 1e30
    x[5] *= 1e-30
    x[6] *= 1e-42
    x[7] = 0
    x[8] = torch.linspace(-1, 1, 200)
    return x


def test_rows_take_the_nearest_codes():
    x = rows()
    codes, scale = fp8.quantize_rows(x)
    assert codes.dtype == fp8.E4M3 and scale.shape == (10, 1) and scale.dtype == torch.float32
    wanted = (x.abs().amax(1, keepdim=True) / 448).clamp_min(affine.SMALLEST_SCALE)
    assert torch.equal(scale, wanted)
    values = e4m3_values()[~e4m3_values().isnan()]
    exact = x.double() / scale.double()
    nearest = (exact[..., None] - values).abs().amin(-1)
    # x * (1 / scale) is rounded twice in float32 before the code is chosen, which matters at ties.
    slack = 2.0**-22 * exact.abs()
    assert ((codes.double() - exact).abs() <= nearest + slack).all()
    assert torch.equal(codes[7].float(), torch.zeros(200))


def test_the_error_is_relative_to_each_value():
    """At most 2^-4 of a value, or 2^-10 scales below the smallest normal code."""
    x = rows()
    codes, scale = fp8.quantize_rows(x)
    error = (codes.double() * scale.double() - x.double()).abs()
    bound = torch.maximum(2.0**-4 * x.double().abs(), 2.0**-10 * scale.double())
    assert (error <= bound * (1 + 2.0**-20)).all()


def test_outliers_decide_between_int8_and_fp8():
    def noise(quantize, x):
        codes, scale = quantize(x)
        return (codes.float() * scale - x).square().sum()

    even, with_outlier = rows()[:2], rows()[2:4]
    assert noise(affine.quantize_rows, even) < noise(fp8.quantize_rows, even)
    assert noise(fp8.quantize_rows, with_outlier) < noise(affine.quantize_rows, with_outlier)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n, k", [(96, 64), (33, 50), (1, 8)])
def test_linear_is_a_float_layer_on_what_the_codes_stand_for(n, k, bias):
    float_layer = torch.nn.Linear(k, n, bias=bias)
    layer = FP8Linear(n, k, torch.float32, bias=bias)
    layer.quantize_(float_layer.weight, "w", float_layer.bias)
    x = torch.randn(2, 5, k) * torch.tensor([1e-3, 1.0, 30.0, 0.0, 1.0]).view(5, 1)
    codes, scale = fp8.quantize_rows(x.view(-1, k))
    values = e4m3_values()
    activations = values[codes.view(torch.uint8).int()] * scale.double()
    weight = values[layer.weight.int()] * layer.weight_scale[:, None].double()
    exact, magnitude = activations @ weight.t(), activations.abs() @ weight.abs().t()
    if bias:
        exact, magnitude = exact + layer.bias.double(), magnitude + layer.bias.double().abs()
    # Products of codes are exact in float32 (8 bits); k - 1 sums, two scales and a bias are not.
    bound = (k + 3) * 2.0**-24 * magnitude
    assert ((layer(x).double().view(-1, n) - exact).abs() <= bound).all()
    assert layer(x).shape == (2, 5, n) and layer(x).dtype == x.dtype


def test_a_table_gives_its_rows_and_a_tied_head_multiplies_by_them():
    table = torch.randn(40, 64)
    embedding = FP8Embedding(40, 64, torch.float32).quantize_(table, "wte")
    ids = torch.tensor([[0, 39, 5], [5, 5, 17]])
    assert torch.equal(embedding(ids), embedding.dequantize(torch.float32)[ids])
    assert (embedding.dequantize(torch.float32) - table).norm() < 0.04 * table.norm()
    x = torch.randn(3, 64)
    codes, scale = fp8.quantize_rows(x)
    expected = (codes.float() * scale) @ embedding.dequantize(torch.float32).t()
    torch.testing.assert_close(TiedHead(embedding)(x), expected)


def test_codes_and_scales_keep_their_bits_in_half_precision():
    layer = FP8Linear(8, 16, torch.float32, bias=True)
    layer.quantize_(torch.randn(8, 16), "w", torch.randn(8))
    weight, scale = layer.weight.clone(), layer.weight_scale.clone()
    layer.half()
    assert torch.equal(layer.weight, weight) and torch.equal(layer.weight_scale, scale)
    assert layer(torch.randn(2, 16).half()).dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("n, k", [(768, 256), (768, 3072), (33, 40)])
def test_the_gpus_product_is_the_emulated_one(n, k):
    layer = FP8Linear(n, k, torch.float32, bias=True)
    layer.quantize_(torch.randn(n, k), "w", torch.randn(n))
    x = torch.randn(50, k)
    emulated, got = layer(x), layer.to("cuda")(x.cuda()).cpu()
    assert fp8.is_native(torch.device("cuda"))
    # Codes may differ by a step (2^-4) where a quotient rounds otherwise: one in 10,000 at most.
    # Sums keep 14 bits of their addends; for random signs that is well below 1% of the results.
    assert (got - emulated).norm() < 0.01 * (emulated - layer.bias.cpu()).norm()


@pytest.mark.parametrize("capability, native", [((9, 0), True), ((8, 9), True), ((8, 6), False)])
def test_it_is_timed_where_it_is_native(capability, native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert (FP8.how.untimed("cuda") == "") is native
    assert "emulated" in FP8.how.untimed("cpu")


def test_the_record_says_where_it_was_emulated(tiny_gpt2):
    model = FP8.how.quantize(FP8.key, tiny_gpt2, None, torch.float32)
    facts = FP8.how.facts(model)
    assert facts["emulated"] is True and facts["layers"] == {"FP8Embedding": 2, "FP8Linear": 8}
