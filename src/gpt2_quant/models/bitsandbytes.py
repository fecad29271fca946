"""bitsandbytes' two schemes on GPT-2, as published, and checks of them.

*LLM.int8()* (arXiv 2208.07339): int8 weights per output channel, int8 activations per token. Input
features in which any token reaches 6.0 are multiplied in half precision, as one such outlier would
stretch the scale of its whole row. *NF4*: see `quantization/nf4.py`.

Both replace the four linear layers of each block. The rest is float16 in the file, and widened on
loading where float16 is slow.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .checkpoints import REMAKE, expected_shapes, read_config, stored_tensors

LAYERS_PER_BLOCK = 4  # attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj
OUTLIER_THRESHOLD = 6.0  # the paper's


def require() -> None:
    """Raise UserError without bitsandbytes, or accelerate, which its loader needs."""
    # On float32 activations it logs one warning per layer and forward: the cast is the method.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for package in ("bitsandbytes", "accelerate"):
        try:
            __import__(package)
        except ImportError as fault:
            said = f"{package} cannot be imported ({fault})"
            raise UserError(f"{said}: run pip install -r requirements.txt") from fault


def converted_layers(model) -> dict:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    kinds = Linear4bit, Linear8bitLt
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@dataclass(frozen=True)
class BitsAndBytes:
    """The `Method` of a variant."""

    name: str
    layer: tuple[str, torch.dtype]  # class in bitsandbytes.nn, dtype of the codes
    options: dict  # of BitsAndBytesConfig

    def quantize(self, key: str, model, folder: Path, dtype) -> Any:
        """Load `folder` again, quantized. Save it before its first forward, which on some CPUs
        repacks the NF4 codes.

        Raises UserError without bitsandbytes or for a quantized checkpoint.
        """
        require()
        from transformers import BitsAndBytesConfig

        if getattr(model.config, "quantization_config", None):
            raise UserError(f"{folder} is quantized already: give the FP32 one it was made from")
        # Named, because naming any module replaces transformers' default, which is the head.
        config = BitsAndBytesConfig(**self.options, llm_int8_skip_modules=[_head_name(model)])
        quantized = type(model).from_pretrained(
            folder,
            config=copy.deepcopy(model.config),
            dtype=dtype,
            quantization_config=config,
            device_map={"": str(model.device)},  # else transformers takes the GPU if there is one
        )
        if hasattr(model, "score"):  # whose classes may stand in another order in the file
            quantized.score.weight.data.copy_(model.score.weight)
        self.facts(quantized)
        return quantized.eval()

    def facts(self, model) -> dict:
        """Raises RuntimeError unless exactly the four matrices of each block were converted."""
        layers = list(converted_layers(model).values())
        expected = LAYERS_PER_BLOCK * model.config.n_layer
        others = [x for x in layers if (type(x).__name__, x.weight.dtype) != self.layer]
        if len(layers) != expected or others:
            done = f"{len(layers)} of {expected} linear layers are converted"
            raise RuntimeError(f"{self.name}: {done}, {len(others)} to another type")
        head = _head_name(model)
        if type(getattr(model, head)) is not torch.nn.Linear:
            raise RuntimeError(f"{self.name}: the head was quantized")
        facts = {"method": self.name, "layers_converted": len(layers), "skipped": [head]}
        if "llm_int8_threshold" in self.options:
            return facts | {"outlier_threshold": OUTLIER_THRESHOLD}
        state = layers[0].weight.quant_state
        if state.quant_type != "nf4" or not state.nested:
            raise RuntimeError(f"{self.name}: not {state.quant_type}, nested: {state.nested}")
        return facts | {
            "block_size": state.blocksize,
            "double_quantization": state.nested,
            "compute_dtype": str(layers[0].compute_dtype).removeprefix("torch."),
        }


def check_files(folder: Path) -> None:
    """Raise UserError unless every matrix has codes of its shape, and scales: without them the
    library answers nonsense.
    """
    config, found = read_config(folder), stored_tensors(folder)
    eight_bits = bool(config["quantization_config"].get("load_in_8bit"))
    for name, shape in expected_shapes(config).items():
        if name.startswith("h.") and ".ln_" not in name and name.endswith(".weight"):
            (rows, columns), kept = shape, found.get(name)
            packed = ("U8", (rows * columns // 2, 1))
            scales = f"{name.removesuffix('weight')}SCB" if eight_bits else f"{name}.absmax"
            codes = ("I8", (columns, rows)) if eight_bits else packed
            # 64 codes share one of NF4's scales.
            n_scales = (columns if eight_bits else -(-rows * columns // 64),)
            if kept != codes or found.get(scales, ("", ()))[1] != n_scales:
                fault = f"{folder}: {name} is not what bitsandbytes stores, or lacks its scales"
                raise UserError(f"{fault}: {REMAKE}")


def _head_name(model) -> str:
    return "lm_head" if hasattr(model, "lm_head") else "score"


LLM_INT8 = BitsAndBytes(
    "LLM.int8()",
    ("Linear8bitLt", torch.int8),
    {"load_in_8bit": True, "llm_int8_threshold": OUTLIER_THRESHOLD},
)
NF4 = BitsAndBytes(
    "NF4",
    ("Linear4bit", torch.uint8),
    {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float16",
    },
)


def compute_in_float32(model) -> None:
    """Keep NF4 layers off float16, which some CPUs emulate one element at a time."""
    for layer in converted_layers(model).values():
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype = torch.float32
