"""Quantized inference speed: every variant and every peer that is installed, one process,
interleaved rounds.

  python benchmarks/bench_quantization.py --device cuda                                  # random GPT-2 124M
  python benchmarks/bench_quantization.py --device cuda --checkpoint models/baseline_gpt2
  python benchmarks/bench_quantization.py --device cpu --shapes 4x128 --rounds 5

All get the same full batch of token ids (nothing padded, so no mask: the fast path of every peer).
Before any is timed its logits are compared with FP32 eager: `error` is |logits - FP32| / |FP32|.
Times are from an idle device to an idle device, one call of each a round in a new order every
round; `ratio` is to FP32 eager. Bytes are those of weights and scales.

fp32, fp16                 transformers' GPT-2, eager; *_compile: torch.compile (in CUDA graphs on a GPU)
fp16_chain                 FP16 through our own chain of fused kernels: what fusion alone is worth
w8a8, nf4                  ours, module by module; *_best: `engine.best_mode`; w8a8_whole: without the exact saving of
                           computing the last block for the pooled token alone
bnb_*                      bitsandbytes; int8 with outlier threshold 6 (its default) and without (0)
torchao_*                  torchao on the model with Conv1D converted to Linear; bf16 on a GPU, compiled
dynamic, onnx, onnx_int8   torch.ao quantize_dynamic and ONNX Runtime (CPU)

A variant that fails, or whose package is missing, is listed as failed with its message. The last
line is the table as JSON.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from quantization_peers import VARIANTS, Bench, eager  # noqa: E402

SHAPES = ("1x64", "16x128", "64x128", "256x64")
CPU_SHAPES = ("1x64", "4x128", "16x128")
TOLERANCE = 1.0  # relative error of the logits at which they are as wrong as zeros would be


ONLY_CUDA = {
    "fp16",
    "fp16_compile",
    "fp16_chain",
    "w8a8_whole",
}  # half arithmetic on a CPU is emulated or many times slower
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
        "--checkpoint", help="folder of a classifier (default: random GPT-2 124M, the same speed)"
    )
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
    import numpy as np
    import torch

    from gpt2_quant.measure.timing import time_interleaved

    shapes = [
        tuple(map(int, shape.split("x")))
        for shape in args.shapes or (SHAPES if args.device == "cuda" else CPU_SHAPES)
    ]
    names = args.variants or [
        name for name in VARIANTS if name not in (ONLY_CPU if args.device == "cuda" else ONLY_CUDA)
    ]
    torch._dynamo.config.recompile_limit = 64  # one graph a shape and model
    bench, rows, calls = Bench(args.device, args.checkpoint), [], {}
    with torch.inference_mode():
        reference = eager(bench)[0]
        batches = {
            shape: torch.randint(0, bench.fp32.config.vocab_size - 1, shape, device=args.device)
            for shape in shapes
        }
        wanted = {shape: reference(ids).float().cpu() for shape, ids in batches.items()}
        for name in names:
            print(f"preparing {name}", file=sys.stderr, flush=True)
            try:
                calls[name] = VARIANTS[name](bench)
            except (
                Exception
            ) as fault:  # a peer may fail in any way; the others are still to be measured
                rows.append(failed(name, None, fault))
        for shape, ids in batches.items():
            ready, errors = {}, {}
            for name, (call, _) in calls.items():
                try:
                    got = call(ids).float().cpu()
                    errors[name] = float((got - wanted[shape]).norm() / wanted[shape].norm())
                    if not errors[name] < TOLERANCE:
                        raise ValueError(f"logits are off by {errors[name]:.2g} of FP32's")
                    ready[name] = lambda call=call, ids=ids: call(ids)
                except Exception as fault:
                    rows.append(failed(name, shape, fault))
            times = time_interleaved(
                ready, args.device, 3, min(6, args.rounds), args.rounds, args.seconds
            )
            base = float(np.median(times["fp32"])) if "fp32" in times else float("nan")
            for name, values in times.items():
                median, p95 = float(np.median(values)), float(np.percentile(values, 95))
                rows.append(
                    {
                        "variant": name, "shape": "x".join(map(str, shape)), "median_ms": median, "p95_ms": p95,
                        "ratio": median / base, "n": len(values), "bytes": calls[name][1], "error": errors[name],
                    }
                )  # fmt: skip
            show([row for row in rows if row["shape"] in ("x".join(map(str, shape)), None)])
    device = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        json.dumps(
            {
                "device": device,
                "torch": torch.__version__,
                "checkpoint": args.checkpoint,
                "rows": rows,
            }
        )
    )


def failed(name: str, shape, fault: Exception) -> dict:
    message = " ".join(f"{type(fault).__name__}: {fault}".split())[:FAULT_LENGTH]
    return {"variant": name, "shape": shape and "x".join(map(str, shape)), "failed": message}


def show(rows: list[dict]) -> None:
    print(
        f"{'variant':22}{'shape':>8}{'median ms':>11}{'p95 ms':>10}{'ratio':>8}{'MiB':>8}{'error':>9}"
    )
    for row in rows:
        if "failed" in row:
            print(f"{row['variant']:22}{row['shape'] or 'all':>8}  failed: {row['failed']}")
            continue
        numbers = f"{row['median_ms']:11.3f}{row['p95_ms']:10.3f}{row['ratio']:8.3f}{row['bytes'] / 2**20:8.1f}{row['error']:9.4f}"
        print(f"{row['variant']:22}{row['shape']:>8}{numbers}")
    print(flush=True)


if __name__ == "__main__":
    main()
