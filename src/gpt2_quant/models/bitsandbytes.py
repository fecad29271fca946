"""bitsandbytes' two schemes on GPT-2: LLM.int8() and NF4, as published, and what they need checked.

*LLM.int8()* (Dettmers et al., 2022, arXiv 2208.07339): weights are int8 with one scale per output
channel, absmax / 127. Activations are quantized per token on the fly, but for the input features in
which any token reaches 6.0: those columns are multiplied in half precision with the dequantized
weights (section 3.2), because one such outlier would stretch the scale of its whole row. Finding
them needs an answer from the device in the middle of every layer, so the forward pass cannot be
captured in a CUDA graph, and it is slower than float16 at this model's size.

*NF4* (Dettmers et al., 2023, arXiv 2305.14314): blocks of 64 weights share an absmax, each weight
is one of 16 levels placed at the quantiles of a normal distribution (section 3), and double
quantization stores the block maxima in 8 bits, with one float32 a 256 of them: 4 + 8/64 + 32/(64 *
256) = 4.127 bits a weight instead of 4.5. Arithmetic is float16.

Both replace the linear layers inside the blocks, four a block, and leave embeddings, norms and the
`score` head alone. GPT-2's layers are `Conv1D` with weights [in, out]; transformers transposes them
to [out, in] on the way.

Files hold what is not quantized in float16, whatever the device: 156.4 and 115.9 MiB for the 124M
model. On the CPU it is widened to float32 on loading, where float16 arithmetic may be 60 times as
slow (`loading.float_dtype`).
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

LAYERS_PER_BLOCK = 4  # attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj
OUTLIER_THRESHOLD = (
    6.0  # magnitude from which an input feature stays in half precision; the paper's
)


def require() -> None:
    """Raise UserError where bitsandbytes, or accelerate, which its loader needs, is missing."""
    # On float32 activations it logs one warning per layer and forward: the cast is the method.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for package in ("bitsandbytes", "accelerate"):
        try:
            __import__(package)
        except ImportError as fault:
            raise UserError(
                f"{package} cannot be imported ({fault}), which only script 3 needs: run "
                "pip install -r requirements.txt"
            ) from fault


def converted_layers(model) -> dict:
    """Name -> module of every bitsandbytes layer (Linear8bitLt or Linear4bit) in `model`."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (Linear4bit, Linear8bitLt))
    }


@dataclass(frozen=True)
class BitsAndBytes:
    """One of the library's schemes; the `Method` of a variant."""

    name: str
    layer: str  # class in bitsandbytes.nn
    stored: str  # dtype of the codes in torch
    options: dict

    def config(self, skip: str):
        """The BitsAndBytesConfig that leaves the head, module `skip`, alone."""
        from transformers import BitsAndBytesConfig

        # `skip` is left out only by transformers' default, which naming any module replaces.
        return BitsAndBytesConfig(**self.options, llm_int8_skip_modules=[skip])

    def quantize(self, key: str, model, folder: Path, dtype) -> Any:
        """The FP32 checkpoint in `folder`, from which `model` was loaded, quantized while it loads
        again, the rest in `dtype`.

        Save it before its first forward: on some CPUs that repacks the NF4 codes, and the way back
        is not exact. Raises UserError where bitsandbytes is missing or the checkpoint is quantized.
        """
        require()
        if getattr(model.config, "quantization_config", None):
            raise UserError(
                f"{folder} is quantized already: give the FP32 checkpoint that it was made from"
            )
        quantized = type(model).from_pretrained(
            folder,
            config=copy.deepcopy(model.config),
            dtype=dtype,
            quantization_config=self.config(_head_name(type(model))),
            device_map={"": str(model.device)},  # else transformers takes the GPU if there is one
        )
        self.facts(quantized)
        return quantized.eval()

    def facts(self, model) -> dict:
        """What a record keeps, after a check that exactly the 4 matrices of each block were taken.

        Raises RuntimeError otherwise, since a library that converts other layers than it says would
        make every figure of the row wrong.
        """
        import torch
        from bitsandbytes import nn

        layers = converted_layers(model)
        expected = LAYERS_PER_BLOCK * model.config.n_layer
        kind, stored = getattr(nn, self.layer), getattr(torch, self.stored)
        strangers = [
            name
            for name, layer in layers.items()
            if type(layer) is not kind or layer.weight.dtype != stored
        ]
        if len(layers) != expected or strangers:
            raise RuntimeError(
                f"{self.name}: {len(layers)} of {expected} linear layers are converted, "
                f"{strangers[:3]} to another type"
            )
        name = _head_name(type(model))
        head = getattr(model, name)
        if type(head) is not torch.nn.Linear or not head.weight.is_floating_point():
            raise RuntimeError(f"{self.name}: the head was quantized ({type(head).__name__})")
        facts = {"method": self.name, "layers_converted": len(layers), "skipped": [name]}
        if "llm_int8_threshold" in self.options:
            return facts | {"outlier_threshold": OUTLIER_THRESHOLD}
        layer = next(iter(layers.values()))
        state = layer.weight.quant_state
        if state.quant_type != "nf4" or not state.nested:
            raise RuntimeError(
                f"{self.name}: the layers hold {state.quant_type} (nested: {state.nested})"
            )
        return facts | {
            "block_size": state.blocksize,
            "double_quantization": state.nested,
            "compute_dtype": str(layer.compute_dtype).removeprefix("torch."),
        }


def _head_name(architecture: type) -> str:
    return "lm_head" if "LMHead" in architecture.__name__ else "score"


LLM_INT8 = BitsAndBytes(
    "LLM.int8()",
    "Linear8bitLt",
    "int8",
    {"load_in_8bit": True, "llm_int8_threshold": OUTLIER_THRESHOLD},
)
NF4 = BitsAndBytes(
    "NF4",
    "Linear4bit",
    "uint8",
    {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float16",
    },
)


def compute_in_float32(model) -> None:
    """NF4 layers ask for float16, which some CPUs emulate one element at a time: not there."""
    import torch
    from bitsandbytes.nn import Linear4bit

    for layer in converted_layers(model).values():
        if isinstance(layer, Linear4bit):
            layer.compute_dtype = torch.float32
