"""Quantized inference speed: every variant and every peer that is installed, one process, interleaved rounds.

  python benchmarks/bench_quantization.py --device cuda                                  # random GPT-2 124M
  python benchmarks/bench_quantization.py --device cuda --checkpoint models/baseline_gpt2
  python benchmarks/bench_quantization.py --device cpu --shapes 4x128 --rounds 5

All get the same full batch of token ids (nothing padded, so no mask: the fast path of every peer). Before any is timed its
logits are compared with FP32 eager: `error` is |logits - FP32| / |FP32|. Times are from an idle device to an idle device,
one call of each a round in a new order every round; `ratio` is to FP32 eager. Bytes are those of weights and scales.

fp32, fp16                 transformers' GPT-2, eager; *_compile: torch.compile (in CUDA graphs on a GPU), one graph a shape
fp16_chain                 FP16 through our own chain of fused kernels: what fusion alone is worth
w8a8, nf4                  ours, module by module; *_best: `engine.best_mode`; w8a8_whole: without the exact saving of
                           computing the last block for the pooled token alone
bnb_*                      bitsandbytes; int8 with outlier threshold 6 (its default) and without (0)
torchao_*                  torchao on the model with Conv1D converted to Linear; bf16 on a GPU, compiled
dynamic, onnx, onnx_int8   torch.ao quantize_dynamic and ONNX Runtime (CPU)

A variant that fails, or whose package is missing, is listed as failed with its message. The last line is the table as JSON.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

SHAPES = ("1x64", "16x128", "64x128", "256x64")
CPU_SHAPES = ("1x64", "4x128", "16x128")
TOLERANCE = 1.0  # relative error of the logits at which they are as wrong as zeros would be


class Bench:
    """The FP32 model and what the variants share. A builder returns (call(ids) -> logits, bytes of weights)."""

    def __init__(self, device: str, checkpoint: str | None):
        import torch
        from transformers import GPT2Config, GPT2ForSequenceClassification

        from gpt2_quant.checkpoints import load_classifier

        torch.manual_seed(0)
        self.device = device
        if checkpoint:
            self.fp32 = load_classifier(checkpoint, "cpu")
        else:
            self.fp32 = GPT2ForSequenceClassification(GPT2Config(num_labels=4, pad_token_id=50256)).eval()
        self.folder = tempfile.TemporaryDirectory(prefix="bench_quantization_")

    def model(self, dtype=None):
        """A fresh copy on the device."""
        return copy.deepcopy(self.fp32).to(self.device, dtype)

    def saved(self) -> str:
        """The FP32 model as a folder, for libraries that quantize while loading."""
        if not (Path(self.folder.name) / "config.json").exists():
            self.fp32.save_pretrained(self.folder.name)
        return self.folder.name

    def linear_model(self, dtype=None):
        """A copy with every Conv1D as the equal nn.Linear, the only layer that torchao and quantize_dynamic know."""
        import torch
        from transformers.pytorch_utils import Conv1D

        model = self.model(dtype)
        for path, module in list(model.named_modules()):
            if isinstance(module, Conv1D):
                linear = torch.nn.Linear(*module.weight.shape, device=module.weight.device, dtype=module.weight.dtype)
                linear.weight, linear.bias = torch.nn.Parameter(module.weight.t().contiguous()), module.bias
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, linear)
        return model

    def half(self):
        import torch

        return torch.float16 if self.device == "cuda" else torch.float32


def call_of(model):
    return lambda ids: model(input_ids=ids, use_cache=False).logits


def eager(bench, dtype=None):
    model = bench.model(dtype)
    return call_of(model), weight_bytes(model)


def compiled(bench, model):
    """torch.compile; on a GPU in CUDA graphs of our own, whose replay costs the host less than mode="reduce-overhead"."""
    import torch

    run = call_of(torch.compile(model, dynamic=False))
    if bench.device == "cpu":
        return run, weight_bytes(model)
    from gpt2_quant.quantization.graphs import GraphedClassifier

    config = model.config
    graphed = GraphedClassifier(lambda ids, _: run(ids), config.pad_token_id, config.n_positions, torch.device("cuda"))
    return (lambda ids: graphed(ids, None)), weight_bytes(model)


def scratch(bench, scheme, best=False):
    from gpt2_quant.quantization.engine import best_mode
    from gpt2_quant.quantization.quantizer import quantize_model

    model = bench.model(bench.half())
    model = quantize_model(model, scheme) if scheme else model
    if not best:
        return call_of(model), weight_bytes(model)
    run = best_mode(model, bench.device)
    return (lambda ids: run(ids, None)), weight_bytes(model)


def scratch_whole(bench):
    import torch

    from gpt2_quant.quantization.fused import FusedClassifier
    from gpt2_quant.quantization.graphs import GraphedClassifier
    from gpt2_quant.quantization.quantizer import quantize_model

    model = quantize_model(bench.model(bench.half()), "int8_scratch_w8a8")
    forward = FusedClassifier(model, whole_last_block=True)
    run = GraphedClassifier(forward, model.config.pad_token_id, model.config.n_positions, torch.device(bench.device))
    return (lambda ids: run(ids, None)), weight_bytes(model)


def bitsandbytes(bench, **options):
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=["score"])
    model = AutoModelForSequenceClassification.from_pretrained(
        bench.saved(), quantization_config=config, dtype=bench.half(), device_map={"": bench.device}
    ).eval()
    return call_of(model), weight_bytes(model)


def torchao(bench, name):
    import torch
    import torchao.quantization as ao

    model = bench.linear_model(torch.bfloat16 if bench.device == "cuda" else None)
    ao.quantize_(model.transformer, getattr(ao, name)())
    return compiled(bench, model)


def dynamic(bench):
    import io

    import torch

    model = torch.ao.quantization.quantize_dynamic(bench.linear_model(), {torch.nn.Linear}, dtype=torch.qint8)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)  # packed weights are no tensors; their serialized size is
    return call_of(model), file.tell()


def onnx(bench, quantized):
    import onnxruntime
    import torch

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(input_ids=ids, use_cache=False).logits

    path = Path(bench.folder.name) / "model.onnx"
    if not path.exists():
        ids = torch.ones((2, 16), dtype=torch.int64)
        shapes = ({0: torch.export.Dim("batch", min=1, max=512), 1: torch.export.Dim("length", min=2, max=1024)},)
        torch.onnx.export(Logits(bench.linear_model()), (ids,), str(path), dynamo=True, dynamic_shapes=shapes, verbose=False)
    if quantized:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        small = path.with_name("int8.onnx")
        quantize_dynamic(str(path), str(small), weight_type=QuantType.QInt8)
        path = small
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    n_bytes = sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))
    return (lambda ids: torch.from_numpy(session.run(None, {name: ids.numpy()})[0])), n_bytes


def weight_bytes(model) -> int:
    """Bytes of a model's tensors; a tensor subclass (torchao) counts as the tensors that it holds."""
    from gpt2_quant.checkpoints import resident_bytes

    def inner(tensor):
        if hasattr(tensor, "__tensor_flatten__"):
            return sum(inner(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
        return tensor.numel() * tensor.element_size()

    wrapped = [tensor for tensor in model.parameters() if hasattr(tensor.data, "__tensor_flatten__")]
    if not wrapped:
        return resident_bytes(model)
    return sum(inner(tensor.data) for tensor in {id(tensor): tensor for tensor in model.parameters()}.values())


def half_eager(bench):
    import torch

    return eager(bench, torch.float16)


def half_compiled(bench):
    import torch

    return compiled(bench, bench.model(torch.float16))


BNB_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
VARIANTS = {
    "fp32": eager,
    "fp32_compile": lambda bench: compiled(bench, bench.model()),
    "fp16": half_eager,
    "fp16_compile": half_compiled,
    "fp16_chain": lambda bench: scratch(bench, None, best=True),
    "w8a8": lambda bench: scratch(bench, "int8_scratch_w8a8"),
    "w8a8_whole": scratch_whole,
    "w8a8_best": lambda bench: scratch(bench, "int8_scratch_w8a8", best=True),
    "nf4": lambda bench: scratch(bench, "nf4_scratch"),
    "nf4_best": lambda bench: scratch(bench, "nf4_scratch", best=True),
    "bnb_int8": lambda bench: bitsandbytes(bench, load_in_8bit=True),
    "bnb_int8_no_outliers": lambda bench: bitsandbytes(bench, load_in_8bit=True, llm_int8_threshold=0.0),
    "bnb_nf4": lambda bench: bitsandbytes(bench, **BNB_NF4, bnb_4bit_compute_dtype=bench.half()),
    "torchao_weight_only": lambda bench: torchao(bench, "Int8WeightOnlyConfig"),
    "torchao_dynamic": lambda bench: torchao(bench, "Int8DynamicActivationInt8WeightConfig"),
    "dynamic": dynamic,
    "onnx": lambda bench: onnx(bench, False),
    "onnx_int8": lambda bench: onnx(bench, True),
}
ONLY_CUDA = {"fp16", "fp16_compile", "fp16_chain", "w8a8_whole"}  # half arithmetic on a CPU is emulated or many times slower
ONLY_CPU = {"dynamic", "onnx", "onnx_int8"}
FAULT_LENGTH = 200


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help="default: all that the device can run")
    parser.add_argument("--shapes", nargs="+", metavar="BxL", help=f"default: {' '.join(SHAPES)}; CPU: {' '.join(CPU_SHAPES)}")
    parser.add_argument("--checkpoint", help="folder of a classifier (default: random GPT-2 124M, the same speed)")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each variant and shape at most (default: 30)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for the rounds of one shape (default: 20)")
    return parser.parse_args()


def main() -> None:
    args = flags()
    import numpy as np
    import torch

    from gpt2_quant.timing import time_interleaved

    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes or (SHAPES if args.device == "cuda" else CPU_SHAPES)]
    names = args.variants or [name for name in VARIANTS if name not in (ONLY_CPU if args.device == "cuda" else ONLY_CUDA)]
    torch._dynamo.config.recompile_limit = 64  # one graph a shape and model
    bench, rows, calls = Bench(args.device, args.checkpoint), [], {}
    with torch.inference_mode():
        reference = eager(bench)[0]
        batches = {shape: torch.randint(0, bench.fp32.config.vocab_size - 1, shape, device=args.device) for shape in shapes}
        wanted = {shape: reference(ids).float().cpu() for shape, ids in batches.items()}
        for name in names:
            print(f"preparing {name}", file=sys.stderr, flush=True)
            try:
                calls[name] = VARIANTS[name](bench)
            except Exception as fault:  # a peer may fail in any way; the others are still to be measured
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
            times = time_interleaved(ready, args.device, 3, min(6, args.rounds), args.rounds, args.seconds)
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
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(json.dumps({"device": device, "torch": torch.__version__, "checkpoint": args.checkpoint, "rows": rows}))


def failed(name: str, shape, fault: Exception) -> dict:
    message = " ".join(f"{type(fault).__name__}: {fault}".split())[:FAULT_LENGTH]
    return {"variant": name, "shape": shape and "x".join(map(str, shape)), "failed": message}


def show(rows: list[dict]) -> None:
    print(f"{'variant':22}{'shape':>8}{'median ms':>11}{'p95 ms':>10}{'ratio':>8}{'MiB':>8}{'error':>9}")
    for row in rows:
        if "failed" in row:
            print(f"{row['variant']:22}{row['shape'] or 'all':>8}  failed: {row['failed']}")
            continue
        numbers = f"{row['median_ms']:11.3f}{row['p95_ms']:10.3f}{row['ratio']:8.3f}{row['bytes'] / 2**20:8.1f}{row['error']:9.4f}"
        print(f"{row['variant']:22}{row['shape']:>8}{numbers}")
    print(flush=True)


if __name__ == "__main__":
    main()
