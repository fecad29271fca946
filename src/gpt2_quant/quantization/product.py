"""The linear layer on int8 codes, by the fastest exact way that the machine has.

On a CPU the way (`path`) is decided when this module is imported:

path       where                                     how                              time
vnni       x86 with AVX512-VNNI                      `torch._int_mm` (oneDNN)         0.24
vpmaddwd   other x86 with AVX2 and a C++ compiler    `product.cpp`, on 16-bit lanes   0.54 *
float32    no compiler, ARM, older x86               float32 products, in pieces      1.14

Time: a pass of GPT-2 124M at 4x128 in best mode, FP32 eager being 1, on two cores of an AMD EPYC
(Zen 4). * With AVX-512; with AVX2 alone 0.61, on two cores of a Zen 3.

VNNI adds four byte products to a 32-bit sum in one instruction. Without it `torch._int_mm` is a
plain loop, 20 times slower than FP32, and vpmaddwd the widest exact product, with twice as many
multiplications as an FP32 instruction; `product.cpp` makes two products by each. Float sums of up
to 1,040 products are exact: integers below 2**24 (127 * 127 * 1040 = 16.77e6).
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import native
from .affine import dequantize

SOURCE = Path(__file__).with_name("product.cpp")
ARGUMENTS = (native.POINTER,) * 7 + (native.INT,) * 5
FLAGS = ("-ffp-contract=off",)  # scale and bias stay two roundings, as in torch
EXACT_INPUTS = 1040


def _best_path() -> str:
    if torch.cpu._is_vnni_supported() and torch.backends.mkldnn.is_available():
        return "vnni"
    return "vpmaddwd" if native.can_compile() else "float32"


path = _best_path()


def int8_linear(
    codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """`(codes @ weight.T) * scale * weight_scale + bias`, float32 `[m, n]`, the sum exact.

    codes int8 `[m, k]` in [-127, 127], scale float32 `[m, 1]`, weight int8 `[n, k]` likewise,
    weight_scale float32 `[n]`, bias float `[n]`.
    """
    if torch.onnx.is_in_onnx_export():  # which knows neither operator
        y = codes.float() @ dequantize(weight, weight_scale.unsqueeze(1)).t() * scale
        return y if bias is None else y + bias
    if not codes.is_cuda and path != "vnni":
        return _int8_linear(codes, scale, weight, weight_scale, bias)
    # Inductor fuses what follows the product with the GELU or the residual after it.
    y = int8_matmul(codes, weight).float() * scale * weight_scale
    return y if bias is None else y + bias


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The exact product int8 `[m, k]` x int8 `[n, k]` -> int32 `[m, n]`, by torch."""
    if not a.is_cuda:
        return torch._int_mm(a, b.t())
    # cuBLAS wants more than 16 rows and multiples of 8 elsewhere. Zeros change no sum.
    (m, k), n = a.shape, b.shape[0]
    a = pad(a, (0, -k % 8, 0, max(0, 17 - m)))
    b = pad(b, (0, -k % 8, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]


# An operator: torch.compile does not look inside.
@torch.library.custom_op("gpt2_quant::int8_linear", mutates_args=(), device_types="cpu")
def _int8_linear(
    codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    multiply = path == "vpmaddwd" and native.function(SOURCE, ARGUMENTS, *FLAGS)
    if not multiply:
        return _by_floats(codes, scale, weight, weight_scale, bias)
    (m, k), n = codes.shape, weight.shape[0]
    wide, y = codes.new_empty(m, k + -k % 64, dtype=torch.int16), scale.new_empty(m, n)
    given = codes, scale, weight, weight_scale, None if bias is None else bias.float()
    inputs = [None if tensor is None else tensor.contiguous() for tensor in given]
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (*inputs, wide, y)]
    multiply(*pointers, m, n, k, wide.shape[1], torch.get_num_threads())
    return y


@_int8_linear.register_fake
def _(codes, scale, weight, weight_scale, bias):
    return scale.new_empty(codes.shape[0], weight.shape[0])


def _by_floats(
    codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    pieces = zip(codes.split(EXACT_INPUTS, 1), weight.split(EXACT_INPUTS, 1), strict=True)
    products = [a.float() @ b.float().t() for a, b in pieces]
    y = products[0]
    if len(products) > 1:  # their sum may pass 2**24
        y = torch.stack([product.int() for product in products]).sum(0, dtype=torch.int32).float()
    y.mul_(scale).mul_(weight_scale)
    return y if bias is None else y.add_(bias)
