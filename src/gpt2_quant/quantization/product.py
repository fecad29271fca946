"""The linear layer on int8 codes, by the fastest exact way that the machine has.

On a CPU the way (`path`) is decided when this module is imported:

path        where                                     how                           time
vnni        x86 with AVX512-VNNI                      `torch._int_mm` (oneDNN)      0.24
vpmaddubsw  other x86 with AVX2 and a C++ compiler    `product.cpp`                 0.47
float32     no compiler, ARM, older x86               float32 products, in pieces   1.23

Time: a pass of GPT-2 124M at 4x128 in best mode, FP32 eager being 1, on two cores of an AMD EPYC,
a Zen 4 for the first, a Zen 3 for the others.

VNNI adds four byte products to a 32-bit sum in one instruction. Without it `torch._int_mm` is a
plain loop, 20 times slower than FP32; `product.cpp` takes three, made exact, and quantizes x,
too. Float sums of up to 1,040 products are exact: integers below 2**24
(127 * 127 * 1040 = 16.77e6).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import affine, native

SOURCE = Path(__file__).with_name("product.cpp")
ARGUMENTS = (native.POINTER,) * 6 + (native.INT,) * 4
FLAGS = ("-ffp-contract=off",)  # scale and bias stay two roundings, as in torch
EXACT_INPUTS = 1040


def _best_path() -> str:
    if torch.cpu._is_vnni_supported() and torch.backends.mkldnn.is_available():
        return "vnni"
    return "vpmaddubsw" if native.can_compile() else "float32"


path = _best_path()


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """`(codes @ weight.T) * scale * weight_scale + bias`, float32 `[m, n]`, the sum exact, where
    codes and scale are `affine.quantize_rows(x)`.

    x float `[m, k]`, weight int8 `[n, k]` in [-127, 127], weight_scale float32 `[n]`, bias float
    `[n]`.
    """
    layer = weight, weight_scale, bias
    if torch.onnx.is_in_onnx_export():  # ONNX has neither `_int_mm` nor our operator
        codes, scale = affine.quantize_rows(x)
        y = codes.float() @ affine.dequantize(weight, weight_scale.unsqueeze(1)).t() * scale
        return y if bias is None else y + bias
    if x.is_cuda or path == "vnni":
        return _by_torch(int8_matmul, x, *layer)
    return _int8_linear(x, *layer) if path == "vpmaddubsw" else _by_torch(_float_matmul, x, *layer)


def _by_torch(
    matmul: Callable, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """In torch's operators, which Inductor fuses before and after the product."""
    codes, scale = affine.quantize_rows(x)
    y = matmul(codes, weight).float().mul_(scale).mul_(weight_scale)
    return y if bias is None else y.add_(bias)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The exact product int8 `[m, k]` x int8 `[n, k]` -> int32 `[m, n]`, by torch."""
    if not a.is_cuda:
        return torch._int_mm(a, b.t())
    # cuBLAS wants more than 16 rows and multiples of 8 elsewhere. Zeros change no sum.
    (m, k), n = a.shape, b.shape[0]
    a = pad(a, (0, -k % 8, 0, max(0, 17 - m)))
    b = pad(b, (0, -k % 8, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]


def _float_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The same by float32 products, as float32 where one suffices."""
    pieces = zip(a.split(EXACT_INPUTS, 1), b.split(EXACT_INPUTS, 1), strict=True)
    products = [x.float() @ y.float().t() for x, y in pieces]
    # The sum of several may pass 2**24.
    return products[0] if len(products) == 1 else sum(product.int() for product in products)


# An operator: torch.compile does not look inside.
@torch.library.custom_op("gpt2_quant::int8_linear", mutates_args=(), device_types="cpu")
def _int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    multiply = native.function(SOURCE, ARGUMENTS, *FLAGS)
    if multiply is None:
        return _by_torch(_float_matmul, x, weight, weight_scale, bias)
    x, (m, k), n = x.float(), x.shape, weight.shape[0]
    if k % 64:
        x, weight = pad(x, (0, -k % 64)), pad(weight, (0, -k % 64))
    tiles, y = weight.new_empty(m + -m % 32, x.shape[1]), x.new_empty(m, n)
    given = x, weight, weight_scale, None if bias is None else bias.float()
    inputs = [None if tensor is None else tensor.contiguous() for tensor in given]
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (*inputs, tiles, y)]
    multiply(*pointers, m, n, x.shape[1], torch.get_num_threads())
    return y


@_int8_linear.register_fake
def _(x, weight, weight_scale, bias):
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)
