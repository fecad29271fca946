"""Weight schemes that are read back at once: groups, bits per weight, clipping."""

import pytest
import torch

from gpt2_quant.quantization import affine, fake


def test_a_group_has_a_scale_of_its_own_and_the_last_may_be_shorter():
    weight = torch.randn(6, 150) * torch.rand(6, 150).exp()
    found = fake.WEIGHT_SCHEMES["int8 per group of 64"](weight, "w")
    for part, back in zip(weight.split(64, dim=1), found.values.split(64, dim=1), strict=True):
        assert torch.equal(back, affine.quantize_tensor(part).dequantize())


def test_bits_count_codes_scales_and_zero_points():
    x = torch.randn(10, 100)

    def n_bytes(scheme, x=x):
        return fake.WEIGHT_SCHEMES[scheme](x, "w").bits_per_weight * 1000 / 8

    assert n_bytes("int8 per tensor") == pytest.approx(1000 + 4)
    assert n_bytes("int8 per channel") == pytest.approx(1000 + 40)
    assert n_bytes("int8 per group of 64") == pytest.approx(1000 + 80)
    assert n_bytes("int8 affine per tensor", x + 9) == pytest.approx(1000 + 4 + 1)


def test_matrices_are_views_of_out_by_in(tiny_gpt2):
    found = fake.matrices(tiny_gpt2)
    up = tiny_gpt2.transformer.h[0].mlp.c_fc.weight
    assert up.shape == (64, 256) and found["transformer.h.0.mlp.c_fc"].shape == (256, 64)
    assert found["transformer.h.0.mlp.c_fc"].data_ptr() == up.data_ptr()
