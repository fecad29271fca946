"""The Triton kernels against plain arithmetic: integers equal, floats within the rounding of their
format.

On a CUDA device these are ordinary GPU tests. With TRITON_INTERPRET=1 set before Python starts they
run on the CPU; `test_kernels_interpreted.py` does that in every run of the suite.
"""

import math
import os
from functools import partial
from types import SimpleNamespace

import interpreted_e4m3
import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from gpt2_quant.inference import gpt2
from gpt2_quant.quantization import affine, fp8, kernels, layers, nf4

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
if INTERPRETED:
    interpreted_e4m3.repair()

# The interpreter reads bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (not INTERPRETED)
MANY_ROWS = [] if INTERPRETED else [(4100, 1600)]  # a program each, slow in the interpreter
ROWS = [(affine.quantize_rows, torch.int8), (fp8.quantize_rows, fp8.E4M3)]
TANH_ERROR = 2.0**-11  # of the GPU's own tanh
# Relative rounding error of one operation in each format: half a unit in the last place.
HALF_ULP = {torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def codes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator).to(DEVICE)


def assert_codes_close(got, scale, exact, relative_error=1e-5):
    """Codes of an inexact float differ by at most the step that its error can tip, as often as it
    comes near a boundary.

    An error e (in steps) tips a value that lies within e of a boundary: a share of 2 e of them, e
    being at most 127 relative errors.
    """
    expected, expected_scale = affine.quantize_rows(exact)
    torch.testing.assert_close(scale, expected_scale, rtol=relative_error, atol=0)
    difference = (got.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 2 * 127 * relative_error


@pytest.mark.parametrize("quantize_rows, kind", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (5, 768), (2, 3072), (0, 64)])
def test_quantize_rows_equals_the_arithmetic(shape, dtype, quantize_rows, kind):
    x = normal(*shape) * torch.logspace(-6, 4, shape[0], device=DEVICE)[:, None]
    x = torch.cat([x, torch.zeros_like(x)]).to(dtype)
    got, scale = kernels.quantize_rows(x, kind)
    expected, expected_scale = quantize_rows(x.cpu())
    assert got.dtype == kind and torch.equal(scale.cpu(), expected_scale)
    steps = x.cpu().double() / expected_scale
    # Nearer to a tie than x * (1 / scale) is rounded, a GPU, which rounds product and sum once,
    # may take the other neighbour.
    tie = ((steps - steps.floor() - 0.5).abs() < 2.0**-16) & (kind == torch.int8)
    got, expected = got.cpu().float(), expected.float()
    assert torch.equal(got[~tie], expected[~tie])
    assert not tie.any() or (got - expected)[tie].abs().max() <= 1


def test_quantize_rows_of_zeros_denormals_ties_and_an_outlier():
    x = torch.zeros(4, 130)
    x[1] = 1e-40
    # Scale 1: halves go to the even neighbour.
    x[2, :6] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    x[3] = torch.randn(130)
    x[3, 7] = 1e4
    x = x.to(DEVICE)
    got, scale = kernels.quantize_rows(x)
    expected, expected_scale = affine.quantize_rows(x.cpu())
    assert torch.equal(got.cpu(), expected) and torch.equal(scale.cpu(), expected_scale)
    assert got[0].eq(0).all()
    assert got[2, :6].tolist() == [127, 0, 2, 2, 0, -2]


def assert_e4m3_close(got, scale, exact, relative_error=1e-5):
    """As `assert_codes_close`: codes differ by at most one step. Steps are at least 2^-4 of a
    value, so an error that is relative to the value tips at most 32 times its size of the codes
    (2^-9 of all steps may lie in the subnormal range, where steps are larger).
    """
    expected, expected_scale = fp8.quantize_rows(exact)
    torch.testing.assert_close(scale, expected_scale, rtol=relative_error, atol=0)
    # Sign and magnitude: within a sign, neighbouring bytes are neighbouring values.
    steps = (got.view(torch.uint8).int() & 127) - (expected.view(torch.uint8).int() & 127)
    assert steps.abs().max() <= 1
    assert steps.ne(0).float().mean() < max(32 * relative_error, 1e-3)


def assert_both_codes_close(quantize, exact, relative_error=1e-5):
    assert_codes_close(*quantize(torch.int8), exact, relative_error)
    assert_e4m3_close(*quantize(fp8.E4M3), exact, relative_error)


@pytest.mark.parametrize("rows, width", [(3, 768), (5, 100), *MANY_ROWS])
def test_layer_norm_quantize(rows, width):
    x = normal(rows, width, dtype=torch.float16) * 3 + 1
    weight, bias = normal(width, seed=1), normal(width, seed=2)
    exact = layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5)
    assert_both_codes_close(partial(kernels.layer_norm_quantize, x, weight, bias, 1e-5), exact)


@pytest.mark.parametrize("rows, width", [(3, 3072), (5, 77), *MANY_ROWS])
def test_gelu_quantize(rows, width):
    x = normal(rows, width, dtype=torch.float16) * 3
    exact = gelu(x.double(), approximate="tanh")
    error = 1e-5 if INTERPRETED else TANH_ERROR
    assert_both_codes_close(partial(kernels.gelu_quantize, x), exact, error)


GEMM_SHAPES = [(1, 8, 16), (17, 33, 100), (64, 128, 128), (130, 96, 256), (5, 768, 3072)]


def floats_as_codes(*shape, seed=0):
    return fp8.quantize_rows(normal(*shape, seed=seed))[0]


def assert_exact(x, weight):
    """With scales of 1 the float32 result is the sum itself, which is below 2^24 or a multiple of
    1024 here.
    """
    ones = torch.ones(len(x), 1, device=DEVICE), torch.ones(len(weight), device=DEVICE)
    got = kernels.scaled_gemm(x, ones[0], weight, ones[1], dtype=torch.float32)
    assert torch.equal(got.cpu().long(), x.cpu().long() @ weight.cpu().long().T)


@pytest.mark.parametrize("m, n, k", GEMM_SHAPES)
def test_integer_product_is_exact(m, n, k):
    assert_exact(codes(m, k), codes(n, k, seed=1))


def test_integer_product_of_extreme_codes_is_exact():
    weight = torch.full((3, 3072), -127, dtype=torch.int8).to(DEVICE)
    assert_exact(-weight[:2], weight)


@pytest.mark.parametrize("m, n, k", [(0, 8, 16), (4, 0, 16)])
def test_an_empty_product_has_its_shape(m, n, k):
    scales = normal(m, 1), normal(n)
    got = kernels.scaled_gemm(codes(m, k), scales[0], codes(n, k), scales[1])
    assert got.shape == (m, n) and got.dtype == torch.float16


@pytest.mark.parametrize(
    "tiles", [(64, 32, 0, 128, False), (64, 64, 32, 128, False), (128, 128, 0, 64, True)]
)
def test_every_kind_of_grid_gives_the_product(tiles, monkeypatch):
    x, weight = codes(300, 200), codes(152, 200, seed=1)
    names = ("BLOCK_M", "BLOCK_N", "REST_N", "BLOCK_K", "PERSISTENT")
    sizes = dict(zip(names, tiles, strict=True), num_stages=3)
    monkeypatch.setattr("gpt2_quant.quantization.kernels.gemm.tile_sizes", lambda *_: sizes)
    assert_exact(x, weight)
    # And its epilogue takes each column's own scale, bias and residual.
    assert_epilogue(x, weight, True, True, torch.float32)
    assert_epilogue(
        floats_as_codes(300, 200), floats_as_codes(152, 200, seed=1), True, True, torch.float32
    )


def sum_error(x, weight):
    """Bound of the error of `x weight^T`, float64 `[m, n]`. Integers are exact; of e4m3 the
    interpreter sums k products in float32, and a GPU 32 at a time with the sum so far, each addend
    cut to 14 bits of the largest (Hopper; others keep more).
    """
    if x.dtype == torch.int8:
        return 0.0
    x, weight, error = x.double(), weight.double(), 0.0
    if INTERPRETED:
        return x.shape[1] * HALF_ULP[torch.float32] * (x.abs() @ weight.abs().T)
    for start in range(0, x.shape[1], 32):
        step = slice(start, start + 32)
        largest = (x[:, None, step] * weight[:, step]).abs().amax(dim=-1)
        before = (x[:, :start] @ weight[:, :start].T).abs() + error
        error = error + 33 * 2.0**-13 * torch.maximum(largest, before)
    return error


def assert_epilogue(x, weight, with_bias, with_residual, dtype):
    m, n = len(x), len(weight)
    x_scale, weight_scale = normal(m, 1, seed=2).abs() / 127, normal(n, seed=3).abs() / 127
    bias = normal(n, seed=4, dtype=dtype) if with_bias else None
    residual = normal(m, n, seed=5, dtype=dtype) if with_residual else None
    got = kernels.scaled_gemm(
        x, x_scale, weight, weight_scale, bias, residual=residual, dtype=dtype
    )
    exact = (x.double() @ weight.double().T) * x_scale.double() * weight_scale.double()
    magnitude = exact.abs()
    for term in (bias, residual):
        if term is not None:
            exact, magnitude = exact + term.double(), magnitude + term.double().abs()
    # Up to 6 float32 roundings of terms no larger than `magnitude`, then one to `dtype`.
    bound = 16 * HALF_ULP[torch.float32] * magnitude + HALF_ULP[dtype] * exact.abs() + 1e-7
    bound += 1.001 * sum_error(x, weight) * (x_scale * weight_scale).double()
    assert got.dtype == dtype
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("m, n, k", GEMM_SHAPES[:4])
@pytest.mark.parametrize("bias, residual", [(False, False), (True, False), (True, True)])
def test_epilogue(m, n, k, bias, residual, dtype):
    assert_epilogue(codes(m, k), codes(n, k, seed=1), bias, residual, dtype)
    x, weight = floats_as_codes(m, k), floats_as_codes(n, k, seed=1)
    assert_epilogue(x, weight, bias, residual, dtype)


def test_columns_must_match():
    with pytest.raises(ValueError, match="100 columns"):
        kernels.scaled_gemm(codes(4, 100), normal(4, 1), codes(8, 64), normal(8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embedding_looks_up_and_adds_positions(dtype):
    table, scale = codes(50, 100), normal(50, seed=1).abs()
    positions, position_scale = codes(9, 100, seed=2), normal(9, seed=3).abs()
    ids = torch.tensor([[0, 49, 7], [7, 7, 3]]).to(DEVICE)
    exact = table.double()[ids] * scale.double()[ids][..., None]
    got = kernels.read_rows(ids, table, scale, dtype)
    rtol = HALF_ULP[dtype] + HALF_ULP[torch.float32]
    torch.testing.assert_close(got.double(), exact, rtol=rtol, atol=0)
    exact = exact + positions.double()[:3] * position_scale.double()[:3, None]
    got = kernels.read_rows(ids, table, scale, dtype, positions, position_scale)
    largest = 127 * (scale.max() + position_scale.max())
    error = (got.double() - exact).abs().max()
    assert error <= largest * (HALF_ULP[dtype] + 4 * HALF_ULP[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16 if INTERPRETED else torch.bfloat16])
def test_embedding_reads_e4m3(dtype):
    table, scale = fp8.quantize_rows(normal(50, 100))
    positions, position_scale = fp8.quantize_rows(normal(9, 100, seed=1))
    ids = torch.tensor([[0, 49, 7], [7, 7, 3]]).to(DEVICE)
    got = kernels.read_rows(ids, table, scale[:, 0], dtype, positions, position_scale[:, 0])
    exact = (table.double() * scale.double())[ids] + (positions.double() * position_scale)[:3]
    ulp = 2.0**-9 if dtype == torch.bfloat16 else HALF_ULP[dtype]
    # Three float32 roundings of terms no larger than the largest two, then one to `dtype`.
    largest = 448 * (scale.max() + position_scale.max()).double()
    assert (got.double() - exact).abs().max() <= largest * (ulp + 3 * HALF_ULP[torch.float32])


def reference_attention(joint, texts, heads, mask, positions):
    length, width = joint.shape[0] // texts, joint.shape[1] // 3
    parts = joint.double().view(texts, length, 3, heads, -1)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    causal = torch.ones(length, length, dtype=torch.bool, device=joint.device).tril()
    visible = causal & mask.bool()[:, None, None, :]
    scores = query @ key.transpose(-1, -2) / math.sqrt(width // heads)
    out = scores.masked_fill(~visible, -1e30).softmax(-1) @ value
    out = out.transpose(1, 2).reshape(texts, length, width)
    return out[torch.arange(texts), positions] if positions is not None else out.reshape(-1, width)


@pytest.mark.parametrize("head_size", [16, 64])
@pytest.mark.parametrize("length", [1, 16, 70, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(length, dtype, head_size):
    texts, heads, width = 2, 3, 3 * head_size
    joint = normal(texts * length, 3 * width, dtype=dtype)
    mask = torch.ones(texts, length, dtype=torch.int64, device=DEVICE)
    mask[1, : length // 3] = 0  # left padding, the harder side: some queries see no key at all
    scale, bias = 1 / math.sqrt(width // heads), kernels.padding_bias(mask)
    got = kernels.causal_attention(*joint.split(width, dim=1), texts, heads, scale, bias)
    exact = reference_attention(joint, texts, heads, mask, None)
    seen = mask.cumsum(1).flatten() > 0
    assert torch.isfinite(got).all()
    # Weights and values are rounded once each to the format and averaged, which does not enlarge an
    # error; tensor cores may take float32 operands as tf32, with a half-ulp of 2^-11.
    half_ulp = 2.0**-9 if dtype == torch.bfloat16 else 2.0**-11
    bound = 4 * half_ulp * joint.abs().max().double()
    assert (got.double() - exact)[seen].abs().max() <= bound


def test_attention_of_one_query_a_text():
    texts, heads, width, length = 3, 2, 32, 75
    joint = normal(texts * length, 3 * width, dtype=torch.float16)
    mask = torch.ones(texts, length, dtype=torch.int64, device=DEVICE)
    positions = torch.tensor([0, 40, 74], device=DEVICE)
    rows = torch.arange(texts, device=DEVICE) * length + positions
    query, key, value = joint.split(width, dim=1)
    scale = 1 / math.sqrt(width // heads)
    every = kernels.causal_attention(query, key, value, texts, heads, scale)
    single = kernels.causal_attention(
        query[rows], key, value, texts, heads, scale, kernels.padding_bias(mask), positions
    )
    exact = reference_attention(joint, texts, heads, mask, positions)
    bound = 4 * 2.0**-11 * joint.abs().max().double()
    assert (single.double() - exact).abs().max() <= bound
    assert (every[rows].double() - exact).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_reads_no_other_text(dtype):
    """Tiles reach over a text's end: into a text that overflowed, too."""
    heads, width, length = 2, 32, 20
    joint = normal(3 * length, 3 * width, dtype=dtype)
    alone = [x[length : 2 * length] for x in joint.split(width, dim=1)]
    wanted = kernels.causal_attention(*alone, 1, heads, 0.25)
    joint[:length], joint[2 * length :] = math.inf, math.nan
    got = kernels.causal_attention(*joint.split(width, dim=1), 3, heads, 0.25)
    assert torch.equal(got[length : 2 * length], wanted)


def nf4_layer(n, k):
    """The fields of an `NF4Linear` (its own class wants an even k)."""
    stored = nf4.quantize(normal(n, k, seed=1).cpu() * 0.05)
    names = ("weight", "scale_codes", "scale_absmax", "scale_offset")
    fields = {name: field.to(DEVICE) for name, field in zip(names, stored[:4], strict=True)}
    return stored, SimpleNamespace(rows=n, columns=k, **fields)


@pytest.mark.parametrize("shape", [(3, 64), (5, 33), (40, 832), (1, 1)])
def test_nf4_dequantize_equals_the_arithmetic(shape):
    stored, layer = nf4_layer(*shape)
    got = kernels.nf4_dequantize(layer, torch.float32)
    # code * absmax + offset may be one fused operation on a GPU: half an ulp of the scale.
    rtol = 4 * HALF_ULP[torch.float32]
    torch.testing.assert_close(got.cpu(), stored.dequantize(), rtol=rtol, atol=0)


@pytest.mark.parametrize("rows, columns", [(20, 96), (7, 64), (5, 34)])
def test_nf4_embedding(rows, columns):
    table = layers.NF4Embedding(rows, columns, torch.float32)
    table.quantize_(normal(rows, columns).cpu(), "table").to(DEVICE)
    ids = torch.tensor([[0, rows - 1, 2], [2, 2, 1]], device=DEVICE)
    got, rtol = kernels.nf4_embedding(ids, table), 4 * HALF_ULP[torch.float32]
    torch.testing.assert_close(got, table(ids), rtol=rtol, atol=0)


def test_layers_compute_the_same_through_the_kernels(monkeypatch):
    x, ids = torch.randn(2, 5, 64), torch.tensor([[1, 2, 39], [0, 5, 5]])
    table, bias = torch.randn(40, 64), torch.randn(40)
    linear = [
        kind(40, 64, torch.float32, bias=True).quantize_(table, "w", bias)
        for kind in (layers.Int8Linear, layers.NF4Linear)
    ]
    odd = layers.Int8Linear(33, 50, torch.float32)
    odd.quantize_(torch.randn(33, 50), "w")
    tables = [
        kind(40, 64, torch.float32).quantize_(table, "wte")
        for kind in (layers.Int8Embedding, layers.NF4Embedding)
    ]

    def outputs(device):
        at, inputs = ids.to(device), x.to(device)
        for layer in (*linear, odd, *tables):
            layer.to(device)
        # x[..., :50] is not contiguous, which a kernel that counts in rows would not notice itself.
        return [
            odd(inputs[..., :50]),
            *(layer(part) for layer in linear for part in (inputs, inputs[:, :2])),
            *(found(at) for found in tables),
            *(layers.TiedHead(found)(inputs) for found in tables),
        ]

    expected = outputs("cpu")
    monkeypatch.setattr(layers, "kernels_for", lambda device: kernels)
    for theirs, ours in zip(expected, outputs(DEVICE), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert torch.allclose(ours.cpu(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n, k", [(40, 64), (33, 50)])
def test_an_fp8_layer_computes_the_same_through_the_kernels(n, k, monkeypatch):
    layer = fp8.FP8Linear(n, k, torch.float32, bias=True)
    layer.quantize_(torch.randn(n, k), "w", torch.randn(n))
    x = torch.randn(2, 5, k)
    emulated = layer(x)
    monkeypatch.setattr(fp8, "kernels_for", lambda device: kernels)
    monkeypatch.setattr(fp8, "is_native", lambda device: True)
    got = layer.to(DEVICE)(x.to(DEVICE)).cpu()
    assert got.shape == emulated.shape and got.dtype == emulated.dtype
    # float32 sums of at most 64 products; of 14 bits on a GPU.
    error = 64 * HALF_ULP[torch.float32] if INTERPRETED else 2.0**-8
    assert (got - emulated).norm() < error * emulated.norm()


@pytest.mark.parametrize("pad", [9, 0])
def test_pooled_rows_are_those_of_the_last_real_tokens(pad):
    texts = [[1, 2, 9, 9], [1, 9, 3, 9], [9, 9, 9, 9], [1, 2, 3, 4], [0, 0, 5, 0]]
    ids = torch.tensor(texts, device=DEVICE)
    positions, rows = kernels.pooled_rows(ids, pad)
    assert torch.equal(positions, gpt2.pooled_positions(ids, pad))
    assert torch.equal(rows, torch.arange(5, device=DEVICE) * 4 + positions)


@pytest.mark.parametrize("width, classes", [(768, 4), (100, 3)])
def test_layer_norm_head(width, classes):
    x, head = normal(3, width) * 3 + 1, normal(classes, width, seed=3)
    weight, bias = normal(width, seed=1), normal(width, seed=2)
    normed = layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5)
    got = kernels.layer_norm_head(x, weight, bias, 1e-5, head)
    # Sums of `width` products of numbers of a few units, each rounded once, with square root and
    # quotient before.
    error = (got.double() - normed @ head.double().T).abs().max()
    assert error <= 16 * width * HALF_ULP[torch.float32]
