"""Small models that several tests build for themselves. (Not in conftest.py: two folders have one,
and an import finds either.)
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make_tiny_gpt2(tokenizer, head: bool = True):
    """A GPT-2 of 2 layers x 64 with random weights, biases and norms included: zero biases would
    hide a dropped one.
    """
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=64, n_layer=2, n_head=4, num_labels=4,
        pad_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = (GPT2ForSequenceClassification if head else GPT2LMHeadModel)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def save_variant(key: str, models_dir: Path, tokenizer) -> Path:
    """Make variant `key` from the FP32 folder in `models_dir`, as scripts 2 and 3 do."""
    import torch

    from gpt2_quant.models import cards, loading, variants

    variant, baseline = variants.VARIANTS[key], models_dir / variants.BASELINE.folder
    model = loading.load_classifier(baseline, "cpu")
    dtype = torch.float32 if variant.by_hand else torch.float16
    quantized = variant.how.quantize(key, model, baseline, dtype)
    card = cards.variant_card(variant, baseline.name)
    cards.save_model(quantized, tokenizer, models_dir / variant.folder, card)
    return models_dir / variant.folder
