"""What bench_quantization.py compares.

Each builder takes the `Bench` and returns (call(ids) -> logits, bytes of weights).
"""

import copy
import tempfile
from functools import partial
from pathlib import Path

from gpt2_quant.models.variants import FP8, NF4, W8A8

SIZES = {  # GPT-2's published ones
    "small": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}


class Bench:
    """The FP32 model, the device, and a folder for what libraries want to read from one."""

    def __init__(self, device: str, checkpoint: str | None, size: str):
        import torch
        from transformers import GPT2Config, GPT2ForSequenceClassification

        from gpt2_quant.models.loading import load_classifier

        torch.manual_seed(0)
        self.device = device
        if checkpoint:
            self.fp32 = load_classifier(checkpoint, device)
        else:
            config = GPT2Config(num_labels=4, pad_token_id=50256, **SIZES[size])
            with torch.device(device):
                self.fp32 = GPT2ForSequenceClassification(config).eval()
            # Embeddings as large as GPT-2's own (0.14; drawn at 0.02): else each random block
            # outweighs what it is added to, and any rounding grows from block to block.
            for table in (self.fp32.transformer.wte, self.fp32.transformer.wpe):
                table.weight.data *= 7
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
        """A copy with every Conv1D as the equal nn.Linear: torchao and quantize_dynamic know no
        other.
        """
        import torch
        from transformers.pytorch_utils import Conv1D

        model = self.model(dtype)
        for path, module in list(model.named_modules()):
            if isinstance(module, Conv1D):
                weight = module.weight
                linear = torch.nn.Linear(*weight.shape, device=weight.device, dtype=weight.dtype)
                linear.weight = torch.nn.Parameter(weight.t().contiguous())
                linear.bias = module.bias
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
    """torch.compile with symbolic shapes: one compilation serves all. On a GPU in CUDA graphs of
    our own, whose replay costs the host less than mode="reduce-overhead" does.
    """
    import torch

    run = call_of(torch.compile(model, dynamic=True))
    if bench.device == "cpu":
        return run, weight_bytes(model)
    return graphed(model, run)


def compiled_blocks(model):
    """torch.compile of the block at each static shape: compiled once a shape for all blocks, which
    the whole model's compilation unrolls (torchao takes minutes then). In the same CUDA graphs.
    """
    for block in model.transformer.h:
        block.compile(dynamic=False)
    return graphed(model, partial(through_blocks, model))


def through_blocks(model, ids):
    """Logits of full texts. Not by transformers' forward, which gives the blocks a mask while a
    graph is captured and none before: they would be compiled anew, and a capture forbids that.
    """
    import torch

    body = model.transformer
    x = body.wte(ids) + body.wpe(torch.arange(ids.shape[1], device=ids.device))
    for block in body.h:
        x = block(x)
        x = x[0] if isinstance(x, tuple) else x
    return model.score(body.ln_f(x[:, -1]))


def graphed(model, run):
    import torch

    from gpt2_quant.inference.graphs import GraphedClassifier

    config = model.config
    graphs = GraphedClassifier(
        lambda ids, _: run(ids), config.pad_token_id, config.n_positions, torch.device("cuda")
    )
    return (lambda ids: graphs(ids, None)), weight_bytes(model)


def scratch(bench, scheme, best=False):
    from gpt2_quant.inference.engine import best_mode
    from gpt2_quant.quantization.quantizer import quantize_model

    model = bench.model(bench.half())
    model = quantize_model(model, scheme) if scheme else model
    if not best:
        return call_of(model), weight_bytes(model)
    run = best_mode(model, bench.device)
    return (lambda ids: run(ids, None)), weight_bytes(model)


def bitsandbytes(bench, **options):
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    from gpt2_quant.models.bitsandbytes import require

    require()
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=["score"])
    model = AutoModelForSequenceClassification.from_pretrained(
        bench.saved(), quantization_config=config, dtype=bench.half(), device_map={"": bench.device}
    ).eval()
    return call_of(model), weight_bytes(model)


def torchao(bench, name, **options):
    import torch
    import torchao.quantization as ao

    model = bench.linear_model(torch.bfloat16 if bench.device == "cuda" else None)
    ao.quantize_(model.transformer, getattr(ao, name)(**options))
    return compiled(bench, model) if bench.device == "cpu" else compiled_blocks(model)


def torchao_fp8(bench):
    from torchao.quantization import PerRow

    return torchao(bench, "Float8DynamicActivationFloat8WeightConfig", granularity=PerRow())


def dynamic(bench):
    import io

    import torch

    model = torch.ao.quantization.quantize_dynamic(
        bench.linear_model(), {torch.nn.Linear}, dtype=torch.qint8
    )
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
        batch = torch.export.Dim("batch", min=1, max=512)
        length = torch.export.Dim("length", min=2, max=1024)
        torch.onnx.export(
            Logits(bench.linear_model()), (ids,), str(path), dynamo=True,
            dynamic_shapes=({0: batch, 1: length},), verbose=False,
        )  # fmt: skip
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
    """Bytes of a model's tensors; a tensor subclass (torchao) counts as what it holds."""
    from gpt2_quant.models.sizes import resident_bytes

    def inner(tensor):
        if hasattr(tensor, "__tensor_flatten__"):
            return sum(inner(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
        return tensor.numel() * tensor.element_size()

    parameters = list(model.parameters())  # each once, shared ones too
    if not any(hasattr(parameter.data, "__tensor_flatten__") for parameter in parameters):
        return resident_bytes(model)
    return sum(inner(parameter.data) for parameter in parameters)


def half_eager(bench):
    import torch

    return eager(bench, torch.float16)


def half_compiled(bench):
    import torch

    return compiled(bench, bench.model(torch.float16))


def half_blocks(bench):
    import torch

    return compiled_blocks(bench.model(torch.float16))


BNB_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
VARIANTS = {
    "fp32": eager,
    "fp32_compile": lambda bench: compiled(bench, bench.model()),
    "fp16": half_eager,
    "fp16_compile": half_compiled,
    "fp16_blocks": half_blocks,
    "fp16_chain": lambda bench: scratch(bench, None, best=True),
    "w8a8": lambda bench: scratch(bench, W8A8.key),
    "w8a8_best": lambda bench: scratch(bench, W8A8.key, best=True),
    "fp8": lambda bench: scratch(bench, FP8.key),
    "fp8_best": lambda bench: scratch(bench, FP8.key, best=True),
    "nf4": lambda bench: scratch(bench, NF4.key),
    "nf4_best": lambda bench: scratch(bench, NF4.key, best=True),
    "bnb_int8": lambda bench: bitsandbytes(bench, load_in_8bit=True),
    "bnb_int8_no_outliers": lambda bench: bitsandbytes(
        bench, load_in_8bit=True, llm_int8_threshold=0.0
    ),
    "bnb_nf4": lambda bench: bitsandbytes(bench, **BNB_NF4, bnb_4bit_compute_dtype=bench.half()),
    "torchao_weight_only": lambda bench: torchao(bench, "Int8WeightOnlyConfig"),
    "torchao_dynamic": lambda bench: torchao(bench, "Int8DynamicActivationInt8WeightConfig"),
    "torchao_fp8": torchao_fp8,
    "dynamic": dynamic,
    "onnx": lambda bench: onnx(bench, False),
    "onnx_int8": lambda bench: onnx(bench, True),
}
