"""Quantized inference speed: every variant and every peer that is installed, one process,
interleaved rounds.

  python benchmarks/bench_quantization.py --device cuda                        # random GPT-2 124M
  python benchmarks/bench_quantization.py --device cuda --checkpoint models/baseline_gpt2
  python benchmarks/bench_quantization.py --device cpu --shapes 4x128 --rounds 5
  python benchmarks/bench_quantization.py --size medium large xl --variants fp16_blocks fp8_best

All get the same full batch of token ids (nothing padded, so no mask: the fast path of every peer).
Before any is timed its logits are compared with FP32 eager: `error` is |logits - FP32| / |FP32|.
Times are from an idle device to an idle device, one call of each per round in a new order every
round; `ratio` is to FP32 eager. Bytes are those of weights and scales.

fp32, fp16                 transformers' GPT-2, eager
*_compile                  torch.compile (in CUDA graphs on a GPU)
fp16_blocks                torch.compile of each block at static shapes, in CUDA graphs
fp16_chain                 FP16 through our own chain of fused kernels: what fusion alone is worth
w8a8, fp8, nf4             ours, module by module; *_best: `engine.best_mode`
bnb_*                      bitsandbytes; int8 with outlier threshold 6 (its default) and without (0)
torchao_*                  torchao, Conv1D converted to Linear; compiled, on a GPU in bf16 and by
                           block as fp16_blocks; FP8 by rows (GPU)
dynamic, onnx, onnx_int8   torch.ao quantize_dynamic and ONNX Runtime (CPU)

A variant that fails, or whose package is missing, is listed as failed with its message. The last
line is the table as JSON, which --json keeps after every shape as well.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from quantization_peers import SIZES, VARIANTS, Bench, eager

SHAPES = ("1x64", "16x128", "64x128", "256x64")
CPU_SHAPES = ("1x64", "4x128", "16x128")
TOLERANCE = 1.0  # relative error of the logits at which they are as wrong as zeros would be
# Half arithmetic on a CPU is emulated or many times slower.
ONLY_CUDA = {"fp16", "fp16_compile", "fp16_blocks", "fp16_chain", "torchao_fp8"}
ONLY_CPU = {"dynamic", "onnx", "onnx_int8"}
FAULT_LENGTH = 200


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        metavar="NAME",
        help="default: all that the device can run",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="BxL",
        help=f"default: {' '.join(SHAPES)}; CPU: {' '.join(CPU_SHAPES)}",
    )
    parser.add_argument(
        "--checkpoint", help="folder of a classifier (default: random GPT-2, the same speed)"
    )
    parser.add_argument(
        "--size", nargs="+", choices=SIZES, default=["small"], help="without --checkpoint"
    )
    parser.add_argument("--json", metavar="FILE", help="keep the table here, too")
    parser.add_argument(
        "--rounds",
        type=int,
        default=30,
        help="timed calls of each variant and shape at most (default: 30)",
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="time for the rounds of one shape (default: 20)"
    )
    return parser.parse_args()


def main() -> None:
    args = flags()
    import torch

    from gpt2_quant.records import provenance

    on_cuda = args.device == "cuda"
    named = args.shapes or (SHAPES if on_cuda else CPU_SHAPES)
    left_out = ONLY_CPU if on_cuda else ONLY_CUDA
    names = args.variants or [name for name in VARIANTS if name not in left_out]
    torch._dynamo.config.recompile_limit = 64  # one graph per shape and model
    about = {"provenance": provenance(args.device, 0), "checkpoint": args.checkpoint}
    rows: list[dict] = []
    for size in args.size:
        bench = Bench(args.device, args.checkpoint, size)
        with torch.inference_mode():
            reference = eager(bench)[0]
            calls, broken = prepared(bench, names)
            rows += [{"size": size, **row} for row in broken]
            for name in named:
                shape = tuple(map(int, name.split("x")))
                ids = torch.randint(0, bench.fp32.config.vocab_size - 1, shape, device=args.device)
                found = measured(calls, ids, reference(ids).float().cpu(), name, args)
                print(size)
                show(broken + found)
                rows += [{"size": size, **row} for row in found]
                if args.json:
                    Path(args.json).write_text(json.dumps({**about, "rows": rows}, indent=1))
        del bench, reference, calls  # the next size needs their memory
        torch._dynamo.reset()
    print(json.dumps({**about, "rows": rows}))


def prepared(bench: Bench, names: list[str]) -> tuple[dict, list[dict]]:
    """name -> (call, bytes of weights), and a row for each variant that could not be built."""
    calls, rows = {}, []
    for name in names:
        print(f"preparing {name}", file=sys.stderr, flush=True)
        try:
            calls[name] = VARIANTS[name](bench)
        # A peer may fail in any way; the others are still to be measured.
        except Exception as fault:
            rows.append(failed(name, None, fault))
    return calls, rows


def measured(calls: dict, ids, wanted, shape: str, args: argparse.Namespace) -> list[dict]:
    """One row per variant: checked against the logits `wanted` of FP32, then timed in turns."""
    import numpy as np

    from gpt2_quant.measure.timing import time_interleaved

    ready, errors, rows = {}, {}, []
    for name, (call, _) in calls.items():
        try:
            got = call(ids).float().cpu()
            errors[name] = float((got - wanted).norm() / wanted.norm())
            if not errors[name] < TOLERANCE:
                raise ValueError(f"logits are off by {errors[name]:.2g} of FP32's")
            ready[name] = partial(call, ids)
        except Exception as fault:
            rows.append(failed(name, shape, fault))
    rng = np.random.default_rng(0)
    time_interleaved(ready, args.device, rng, 2, args.seconds)  # warm
    times = time_interleaved(ready, args.device, rng, args.rounds, args.seconds)
    base = float(np.median(times["fp32"])) if "fp32" in times else float("nan")
    for name, values in times.items():
        median, p95 = float(np.median(values)), float(np.percentile(values, 95))
        rows.append(
            {
                "variant": name, "shape": shape, "median_ms": median, "p95_ms": p95,
                "ratio": median / base, "n": len(values), "bytes": calls[name][1],
                "error": errors[name],
            }
        )  # fmt: skip
    return rows


def failed(name: str, shape: str | None, fault: Exception) -> dict:
    message = " ".join(f"{type(fault).__name__}: {fault}".split())[:FAULT_LENGTH]
    return {"variant": name, "shape": shape, "failed": message}


def show(rows: list[dict]) -> None:
    heads = (
        ("shape", 8),
        ("median ms", 11),
        ("p95 ms", 10),
        ("ratio", 8),
        ("MiB", 8),
        ("error", 9),
    )
    print(f"{'variant':22}" + "".join(f"{head:>{width}}" for head, width in heads))
    for row in rows:
        if "failed" in row:
            print(f"{row['variant']:22}{row['shape'] or 'all':>8}  failed: {row['failed']}")
            continue
        numbers = (
            f"{row['median_ms']:11.3f}{row['p95_ms']:10.3f}{row['ratio']:8.3f}"
            f"{row['bytes'] / 2**20:8.1f}{row['error']:9.4f}"
        )
        print(f"{row['variant']:22}{row['shape']:>8}{numbers}")
    print(flush=True)


if __name__ == "__main__":
    main()
