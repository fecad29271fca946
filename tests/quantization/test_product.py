"""int8_linear against int64, by every path that this CPU can take."""

import subprocess

import pytest
import torch

from gpt2_quant.quantization import affine, native, product

COMPILES = pytest.mark.skipif(not native.can_compile(), reason="needs AVX2 and a C++ compiler")
# torch._int_mm ("vnni"): everywhere exact, if not fast.
PATHS = ["vnni", *(pytest.param(p, marks=COMPILES) for p in ("vpmaddubsw", "avx2")), "float32"]
# Around the edges of tiles, panels and pieces; k odd, even and longer than one pass.
SHAPES = [
    (1, 1, 1), (2, 3, 5), (3, 17, 31), (7, 16, 768), (13, 33, 769), (6, 64, 1040), (37, 70, 1041),
    (36, 15, 1536), (5, 1, 2081), (4, 70, 3071), (19, 48, 3072), (400, 20, 40),
]  # fmt: skip


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    half_vectors = request.param == "avx2"  # product.cpp as an older CPU compiles it
    name = "vpmaddubsw" if half_vectors else request.param
    monkeypatch.setattr(product, "path", name)
    if half_vectors:
        monkeypatch.setitem(native.MACHINE_FLAGS, "AVX512", native.MACHINE_FLAGS["AVX2"])
        native.function.cache_clear()
    if name == "vpmaddubsw":
        found = native.function(product.SOURCE, product.ARGUMENTS, *product.FLAGS)
        assert found, "product.cpp does not compile"
    yield
    if half_vectors:
        native.function.cache_clear()


def codes(*shape):
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def rows(m, k):
    """Floats, their codes and scales: with 127 in a row and a power of two as scale, known."""
    a, scale = codes(m, k), 2.0 ** torch.randint(-9, 9, (m, 1))
    a[:, torch.randint(k, ())] = 127
    return a * scale, a, scale


@pytest.mark.parametrize("m,n,k", SHAPES)
def test_equals_int64(path, m, n, k):
    (x, a, scale), b, weight_scale = rows(m, k), codes(n, k), torch.rand(n)
    exact = a.long() @ b.long().t()
    assert exact.abs().max() < 2**24
    assert torch.equal(product.int8_linear(a.float(), b, torch.ones(n), None).long(), exact)
    expected = exact.float() * scale * weight_scale
    for bias in (None, torch.randn(n), torch.randn(n).half()):
        want = expected if bias is None else expected + bias
        assert torch.equal(product.int8_linear(x, b, weight_scale, bias), want)


def test_quantizes_as_affine_does(path):
    """Ordinary rows, ties, an outlier, the smallest floats, zeros."""
    x = torch.randn(40, 200)
    x[1] = torch.arange(200) - 99.5
    x[1, 0] = 127
    x[2, 7] = 1e30
    x[3:6] *= torch.tensor([1e-37, 1e-40, 0.0]).unsqueeze(1)
    b, (a, scale) = codes(20, 200), affine.quantize_rows(x)
    want = (a.long() @ b.long().t()).float() * scale
    assert torch.equal(product.int8_linear(x, b, torch.ones(20), None), want)
    for kind in (torch.float16, torch.bfloat16):
        y = product.int8_linear(x[6:].to(kind), b, torch.ones(20), None)
        assert y.dtype == torch.float32
        assert torch.equal(y, product.int8_linear(x[6:].to(kind).float(), b, torch.ones(20), None))


@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_codes(path, sign):
    x, b = torch.full((5, 3072), 127.0), torch.full((18, 3072), 127 * sign).char()
    layer = b, torch.ones(18), None
    # The sum, 49,548,288, is a multiple of 4, so that float32 holds it.
    assert (product.int8_linear(x, *layer) == sign * 127 * 127 * 3072).all()
    # What stays after large sums cancel shows each unit of them.
    x[:, 1536:] = -127
    x[:, -1] = -126
    assert (product.int8_linear(x, *layer) == sign * 127).all()
    # As many inputs as int32 holds in the end.
    x, b = torch.full((1, 133_144), 127.0), torch.full((1, 133_144), 127 * sign).char()
    y = product.int8_linear(x, b, torch.ones(1), None)
    assert y == torch.tensor(sign * 127 * 127 * 133_144).float()


@pytest.mark.parametrize("first", [64, 65, 127, -64, -65, -127])
def test_pairs_around_what_16_bits_hold(path, first):
    """Each pair of a weight near half the limit, or the largest, with any other."""
    second = torch.arange(-127, 128)
    b = torch.stack([torch.full_like(second, first), second], 1).repeat(1, 33).char()
    a = torch.tensor([[127], [-127], [126], [-126]]).expand(-1, b.shape[1]).contiguous()
    a[2:, 0] = 127
    y = product.int8_linear(a.float(), b, torch.ones(len(b)), None)
    assert torch.equal(y.long(), a @ b.long().t())


def test_strides_and_the_default_dtype_change_nothing(path):
    x, a, scale = rows(21, 50)
    x = torch.stack([x, x], 2)[..., 0]
    b, weight_scale, bias = codes(100, 50).t()[:, ::2].t(), torch.rand(100)[::2], torch.randn(50)
    want = (a.long() @ b.long().t()).float() * scale * weight_scale + bias
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = product.int8_linear(x, b, weight_scale, bias)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_threads_do_not_touch_one_another(path):
    (x, a, scale), b, threads = rows(400, 64), codes(70, 64), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in range(10):
            y = product.int8_linear(x, b, torch.ones(70), None)
            assert torch.equal(y, (a.long() @ b.long().t()).float() * scale)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("k", [50, 2100])
def test_in_compiled_code(path, k):
    """The layer inside torch.compile, with symbolic shapes and without a graph break."""
    b, weight_scale, bias = codes(24, k), torch.rand(24), torch.randn(24)

    def layer(x):
        return product.int8_linear(x, b, weight_scale, bias).relu()

    compiled = torch.compile(layer, backend="aot_eager", dynamic=True, fullgraph=True)
    for m in (3, 9):
        x = torch.randn(m, k)
        assert torch.equal(compiled(x), layer(x))


def test_the_operator_is_described_truly():
    inputs = torch.randn(3, 8), codes(5, 8), torch.rand(5), None
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(product._int8_linear, inputs, test_utils=checks)


def test_a_compiler_that_fails_costs_only_speed(monkeypatch, tmp_path):
    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr="no such header")

    monkeypatch.setattr(product, "path", "vpmaddubsw")
    monkeypatch.setattr(native, "function", native.function.__wrapped__)
    monkeypatch.setattr(native, "can_compile", lambda: True)
    monkeypatch.setattr(native.torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(native.subprocess, "run", fail)
    monkeypatch.setattr(native, "MACHINE_FLAGS", {torch.backends.cpu.get_cpu_capability(): []})
    (x, a, scale), b = rows(2, 9), codes(3, 9)
    with pytest.warns(UserWarning, match="could not be compiled.*no such header"):
        y = product.int8_linear(x, b, torch.ones(3), None)
    assert torch.equal(y, (a.long() @ b.long().t()).float() * scale)
    assert not any((tmp_path / "gpt2_quant").iterdir())
