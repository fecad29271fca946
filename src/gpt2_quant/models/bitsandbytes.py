"""bitsandbytes' two schemes on GPT-2: LLM.int8() and NF4, as published, and what they need checked.

*LLM.int8()* (Dettmers et al., 2022, arXiv 2208.07339): weights are int8 with one scale an output
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
to [out, in] on the way. The head is left out only by transformers' default, and naming any module
replaces that default, so `score` is named here.

Files hold what is not quantized in float16, whatever the device: 156.4 and 115.9 MiB for the 124M
model. On the CPU it is widened to float32 on loading, where float16 arithmetic may be 60 times as
slow (`checkpoints.float_dtype`).
"""

import logging
from pathlib import Path

from ..cli import UserError
from ..data.datasets import LABELS
from ..records import atomic_path
from .loading import VARIANTS, has_half_arithmetic

KEYS = ("int8_bitsandbytes", "nf4_bitsandbytes")
LAYERS_PER_BLOCK = 4  # attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj
OUTLIER_THRESHOLD = (
    6.0  # magnitude from which LLM.int8() takes an input feature in half precision; the paper's
)
SKIPPED = ["score"]


def require() -> None:
    """Raise UserError with the mending command where bitsandbytes (or accelerate, which its loader
    needs) is missing.
    """
    # On float32 activations LLM.int8() logs one warning a layer and forward; the cast it warns of
    # is the method itself.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for package in ("bitsandbytes", "accelerate"):
        try:
            __import__(package)
        except ImportError as fault:
            raise UserError(
                f"{package} cannot be imported ({fault}), which only src/3_bitsandbytes_quant.py needs: "
                "run pip install -r requirements.txt"
            ) from fault


def config(key: str):
    """The BitsAndBytesConfig of variant `key`, one of KEYS."""
    import torch
    from transformers import BitsAndBytesConfig

    if key == "int8_bitsandbytes":
        return BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=OUTLIER_THRESHOLD,
            llm_int8_skip_modules=list(SKIPPED),
        )
    if key == "nf4_bitsandbytes":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float16,
            llm_int8_skip_modules=list(SKIPPED),
        )
    raise ValueError(f"{key} is not one of {', '.join(KEYS)}")


def quantize(folder: Path, key: str, device: str):
    """The FP32 classifier in `folder`, quantized at load by scheme `key`, what is left in float16,
    in eval mode on `device`.

    Save it before its first forward: on some CPUs that repacks the NF4 codes, and the way back is
    not exact. Raises UserError where bitsandbytes is missing or the checkpoint is quantized
    already.
    """
    require()
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = AutoConfig.from_pretrained(folder)
    if getattr(settings, "quantization_config", None):
        raise UserError(
            f"{folder} is quantized already: give --checkpoint the FP32 classifier that it was made from"
        )
    settings.pad_token_id = (
        settings.eos_token_id if settings.pad_token_id is None else settings.pad_token_id
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=settings,
        dtype=torch.float16,
        quantization_config=config(key),
        device_map={"": device},  # without it transformers takes the GPU wherever there is one
    )
    check_conversion(model, key)
    return model.eval()


def converted_layers(model) -> dict:
    """Name -> module of every bitsandbytes layer (Linear8bitLt or Linear4bit) in `model`."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (Linear4bit, Linear8bitLt))
    }


def check_conversion(model, key: str) -> dict:
    """Check that scheme `key` took exactly the 4 x layers matrices of the blocks and left `score` a
    float layer.

    Returns what a record keeps of it. Raises RuntimeError, since a library that converts other
    layers than it says would make every figure of the row wrong.
    """
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    layers = converted_layers(model)
    expected = LAYERS_PER_BLOCK * model.config.n_layer
    kind, stored = (
        (Linear8bitLt, torch.int8) if key == "int8_bitsandbytes" else (Linear4bit, torch.uint8)
    )
    strangers = [
        name
        for name, layer in layers.items()
        if type(layer) is not kind or layer.weight.dtype != stored
    ]
    if len(layers) != expected or strangers:
        raise RuntimeError(
            f"{key}: {len(layers)} of {expected} linear layers are converted, {strangers[:3]} to another type"
        )
    if type(model.score) is not torch.nn.Linear or not model.score.weight.is_floating_point():
        raise RuntimeError(
            f"{key}: the score head was quantized ({type(model.score).__name__}); it is to stay a float layer"
        )
    facts = {
        "method": "LLM.int8()" if key == "int8_bitsandbytes" else "NF4",
        "layers_converted": len(layers),
        "skipped": SKIPPED,
    }
    if key == "int8_bitsandbytes":
        return facts | {"outlier_threshold": OUTLIER_THRESHOLD}
    state = next(iter(layers.values())).weight.quant_state
    if state.quant_type != "nf4" or not state.nested:
        raise RuntimeError(
            f"{key}: the layers hold {state.quant_type} (nested: {state.nested}) where nested NF4 is meant"
        )
    return facts | {
        "block_size": state.blocksize,
        "double_quantization": state.nested,
        "compute_dtype": str(next(iter(layers.values())).compute_dtype).removeprefix("torch."),
    }


def save(model, tokenizer, folder: Path, key: str, baseline: Path) -> None:
    """Write quantized `model` to `folder` as one transformers folder: weights, config, tokenizer,
    model card; atomically.
    """
    card = f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [gpt2, bitsandbytes, ag-news]
---

# GPT-2 on AG News, {VARIANTS[key].label}

Quantized with bitsandbytes from `{baseline.name}` by `{VARIANTS[key].script}`: the four linear layers of each block in
{config(key).quantization_method()}, everything else in float16. `AutoModelForSequenceClassification.from_pretrained` loads it
where bitsandbytes is installed. Labels: {", ".join(LABELS)}. Its scores stand in the record `{key}.json` of the run that
made it.
"""
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def settle(model, device: str) -> None:
    """Make a reloaded model run well where it is: on a CPU without float16 arithmetic NF4 computes
    in float32.

    The checkpoint asks for float16, which such a CPU emulates one element at a time.
    """
    require()
    import torch
    from bitsandbytes.nn import Linear4bit

    if not has_half_arithmetic(device):
        for layer in converted_layers(model).values():
            if isinstance(layer, Linear4bit):
                layer.compute_dtype = torch.float32
