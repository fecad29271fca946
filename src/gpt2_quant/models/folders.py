"""A quantized checkpoint as a folder: weights, configuration, tokenizer and a card that says how to
load it.
"""

import copy
from pathlib import Path

from transformers import GPT2PreTrainedModel

from ..quantization.layers import QuantizedLayer
from ..quantization.quantizer import METHOD, quantize_model
from ..records import atomic_path

DESCRIPTIONS = {
    "int8_scratch": "Each parameter is one int8 tensor with one scale and one zero-point; loading turns it back into floats.",
    "int8_scratch_w8a8": "Weights are int8 with one scale an output channel, activations int8 with one scale a token; the "
    "products are summed as integers. Biases, LayerNorm and the classification head stay float.",
    "nf4_scratch": "Weights and token embeddings are 4-bit NormalFloat in blocks of 64 with doubly quantized, least-squares "
    "scales; position embeddings are int8. Biases, LayerNorm and the classification head stay float.",
}


def save_quantized(
    model: GPT2PreTrainedModel, scheme: str, tokenizer, folder: Path, source: str
) -> None:
    """Quantize a copy of the float `model` and write it to `folder`, whole or not at all.

    `source` names the float checkpoint in the card. Raises UserError as `quantize_model` does.
    """
    quantized = quantize_model(copy.deepcopy(model), scheme)
    card = f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [gpt2, ag-news, {METHOD}]
---

# {folder.name}

GPT-2, quantized by hand (`{scheme}`) from `{source}`. {DESCRIPTIONS[scheme]}

    import gpt2_quant.quantization.quantizer  # registers the method with transformers
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained("{folder.name}")
"""
    with atomic_path(folder) as temporary:
        quantized.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def describe(model: GPT2PreTrainedModel) -> dict:
    """What a record keeps of a quantized model: scheme, layout version, checksum, and what became
    which layer.
    """
    config = model.config.quantization_config
    kinds: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
    return {
        "method": METHOD,
        "scheme": config.scheme,
        "format_version": config.format_version,
        "sha256": config.sha256,
        "layers": kinds,
        "description": DESCRIPTIONS[config.scheme],
    }
