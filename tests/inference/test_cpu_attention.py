"""attention.cpp against float64, built for both kinds of vector registers."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gpt2_quant.inference import cpu
from gpt2_quant.quantization import native

KINDS = list(native.MACHINE_FLAGS)  # each CPU here runs those before its own, too
OWN = torch.backends.cpu.get_cpu_capability()
UNCACHED = native.function.__wrapped__
HALF_ULP = 2.0**-24
EXPONENTIAL = 2.0**-22  # its relative error in attention.cpp
SHAPES = [(4, 128, 12, 64), (1, 1, 1, 32), (2, 33, 3, 32), (3, 77, 2, 128), (1, 300, 1, 64)]


@pytest.fixture(params=KINDS[: KINDS.index(OWN) + 1] if OWN in KINDS else [])
def attend(request, monkeypatch):
    if not native.compiler():
        pytest.skip("needs a C++ compiler")
    built = {}

    def function(source, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
            built[source] = built.get(source) or UNCACHED(source, *arguments)
        assert built[source], f"{source.name} does not compile"
        return built[source]

    monkeypatch.setattr(cpu.native, "function", function)
    return cpu._causal_attention


def reference(qkv, texts, heads, scale):
    """In float64, and the largest sum of absolute products of a query and a key."""
    parts = qkv.double().view(texts, -1, qkv.shape[1]).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    products = query.abs() @ key.abs().mT * scale
    return out.transpose(1, 2).flatten(2).flatten(0, 1), float(products.max())


@pytest.mark.parametrize("texts, length, heads, size", SHAPES)
def test_within_float32s_rounding(attend, texts, length, heads, size):
    qkv = torch.randn(texts * length, 3 * heads * size)
    scale = size**-0.5
    got = attend(qkv, texts, heads, scale)
    expected, products = reference(qkv, texts, heads, scale)
    # A score is off by the rounding of its `size` products, of the scale and of the difference to
    # the highest: its weight's relative error.
    error = (size + 4) * HALF_ULP * products
    assert (got - expected).abs().max() <= bound(length, error) * qkv.abs().max()


def bound(length: int, error: float = 0) -> float:
    """Of a mean of values up to 1, weighted by exponentials of scores that are off by `error`."""
    return 2 * (error + EXPONENTIAL) + 2 * (length + 2) * HALF_ULP


@pytest.mark.parametrize("step", [1 / 16, 8])  # 8: a few keys have all the weight
@pytest.mark.parametrize("length", [8, 33, 100])
def test_exact_scores_show_the_exponential(attend, length, step):
    """Scores are multiples of a power of two, up to 0."""
    qkv = torch.randn(length, 3 * 32)
    qkv[:, :64] = 0
    qkv[:, 0] = 1
    qkv[:, 32] = -torch.randint(257, (length,)) * step
    expected, _ = reference(qkv, 1, 1, 1.0)
    error = (attend(qkv, 1, 1, 1.0) - expected).abs().max()
    assert error <= bound(length) * qkv[:, 64:].abs().max()


def test_threads_do_not_touch_one_another(attend):
    qkv, threads = torch.randn(3 * 50, 3 * 5 * 64), torch.get_num_threads()
    alone = attend(qkv, 3, 5, 0.1)
    torch.set_num_threads(3)
    try:
        assert all(torch.equal(attend(qkv, 3, 5, 0.1), alone) for _ in range(20))
    finally:
        torch.set_num_threads(threads)


def test_texts_do_not_touch_one_another(attend):
    qkv = torch.randn(4 * 40, 3 * 2 * 32)
    alone = attend(qkv[40:80], 1, 2, 0.2)
    qkv[:40], qkv[80:120], qkv[120:] = torch.nan, torch.inf, 1e30
    assert torch.equal(attend(qkv, 4, 2, 0.2)[40:80], alone)


@pytest.mark.parametrize(
    "size, dtype, broken",
    [(16, torch.float32, False), (64, torch.float64, False), (64, torch.float32, True)],
)
def test_where_it_does_not_serve_torch_does(monkeypatch, size, dtype, broken):
    if broken:
        monkeypatch.setattr(cpu.native, "function", lambda *_: None)
    qkv = torch.randn(2 * 21, 3 * 2 * size, dtype=dtype)
    expected, products = reference(qkv, 2, 2, 0.25)
    got = cpu._causal_attention(qkv, 2, 2, 0.25)
    assert got.dtype == dtype
    error = (size + 4) * HALF_ULP * products
    assert (got - expected).abs().max() <= bound(21, error) * qkv.abs().max()


def test_the_operator_is_described_truly():
    inputs = torch.randn(2 * 21, 3 * 2 * 32), 2, 2, 0.25
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(cpu._causal_attention, inputs, test_utils=checks)
