"""The Triton kernels compiled by the pinned Triton for GPUs that are not at hand: an Ampere, which
has no copy engine, and a Hopper. What they compute, the interpreter and `pytest -m gpu` show.
"""

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpt2_quant.quantization.kernels.attention import _attention_kernel
from gpt2_quant.quantization.kernels.gemm import _gemm_kernel, tile_sizes
from gpt2_quant.quantization.kernels.rows import _quantize_kernel

pytestmark = pytest.mark.e2e
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # a program's largest (CUDA programming guide)
NAMES = {torch.int8: "i8", torch.float8_e4m3fn: "fp8e4nv"}


def compiled(kernel, capability, arguments, constants, **options):
    constants = {**constants, "HOPPER": capability >= 90}
    signature = {name: arguments.get(name, "constexpr") for name in kernel.arg_names}
    missing = dict.fromkeys(set(kernel.arg_names) - set(arguments) - set(constants))
    source = ASTSource(fn=kernel, signature=signature, constexprs={**constants, **missing})
    if capability >= 90:
        options["launch_pdl"] = True
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.metadata.shared <= SHARED_BYTES[capability]
    return made.asm["ptx"]


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("dtype, block_k", [("fp16", 64), ("fp32", 32)])
@pytest.mark.parametrize("head_size, block_q", [(64, 64), (64, 16)])
def test_attention(dtype, block_k, head_size, block_q, capability):
    tiles = dict.fromkeys(("query", "out"), block_q) | dict.fromkeys(("key", "value"), block_k)
    arguments = {x: f"tensordesc<{dtype}[1, {rows}, {head_size}]>" for x, rows in tiles.items()}
    arguments |= {"n_keys": "i32", "scale": "fp32"}
    sizes = {"HEADS": 12, "HEAD_DIM": head_size, "BLOCK_Q": block_q, "BLOCK_K": block_k}
    ptx = compiled(_attention_kernel, capability, arguments, sizes, num_warps=4, num_stages=2)
    assert ("cp.async.bulk.tensor" in ptx) == (capability >= 90)


@pytest.mark.parametrize("capability, dtype", [(80, torch.int8), *((90, dtype) for dtype in NAMES)])
@pytest.mark.parametrize(
    "m, n, k", [(16, 3072, 768), (2048, 2304, 768), (2048, 768, 3072), (8192, 3072, 768)]
)
def test_product(m, n, k, dtype, capability):
    sizes = tile_sizes(m, n, k, dtype)
    stages, kind = sizes.pop("num_stages"), NAMES[dtype]
    rows, columns, rest, depth = (
        sizes[name] for name in ("BLOCK_M", "BLOCK_N", "REST_N", "BLOCK_K")
    )
    columns_out = columns // 2 if sizes["PERSISTENT"] else columns
    arguments = dict.fromkeys(("M", "N", "K"), "i32")
    arguments |= dict.fromkeys(("x_scale_ptr", "weight_scale_ptr"), "*fp32")
    arguments |= {"weight_ptr": f"*{kind}", "bias_ptr": "*fp16"}
    if n < k:
        arguments["residual_ptr"] = "*fp16"
    arguments["x"] = f"tensordesc<{kind}[{rows}, {depth}]>"
    arguments["weight"] = f"tensordesc<{kind}[{columns}, {depth}]>"
    arguments["out"] = f"tensordesc<fp16[{rows}, {columns_out}]>"
    if rest:
        arguments["weight_rest"] = f"tensordesc<{kind}[{rest}, {depth}]>"
        arguments["out_rest"] = f"tensordesc<fp16[{rows}, {rest}]>"
    compiled(_gemm_kernel, capability, arguments, sizes, num_warps=4, num_stages=stages)


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("width, rows, warps", [(768, 2, 1), (3072, 1, 2), (1600, 1, 4)])
@pytest.mark.parametrize("gelu", [False, True])
def test_rows(width, rows, warps, gelu, capability):
    arguments = {"x_ptr": "*fp16", "codes_ptr": "*i8", "scale_ptr": "*fp32", "n_rows": "i32"}
    arguments["epsilon"] = "fp32"
    if not gelu:
        arguments |= {"weight_ptr": "*fp16", "bias_ptr": "*fp16"}
    block = 1 << (width - 1).bit_length()
    sizes = {"n_columns": width, "GELU": gelu, "ROWS": rows, "BLOCK": block}
    compiled(_quantize_kernel, capability, arguments, sizes, num_warps=warps)
