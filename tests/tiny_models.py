"""Small models and data folders that several tests build for themselves. (Not in conftest.py: two
folders have one, and an import finds either.)
"""

import csv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_news(folder: Path, texts: tuple[list[str], list[int]], n_train: int, n_test: int) -> Path:
    """A dataset folder in AG News' form: the first texts for training, the next for testing."""
    folder.mkdir(parents=True)
    rows = [(label + 1, text, "") for text, label in zip(*texts, strict=True)]
    splits = {"train": rows[:n_train], "test": rows[n_train : n_train + n_test]}
    for name, part in splits.items():
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(part)
    return folder


def save_tiny_gpt2(folder: Path, tokenizer, head: bool = True) -> Path:
    """A `make_tiny_gpt2` as a checkpoint folder."""
    make_tiny_gpt2(tokenizer, head).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_gpt2(tokenizer, head: bool = True, heads: int = 4):
    """A GPT-2 of 2 layers x 64 with random weights, biases and norms included: zero biases would
    hide a dropped one.
    """
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=64, n_layer=2, n_head=heads,
        num_labels=4, pad_token_id=end, bos_token_id=end, eos_token_id=end,
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
    cards.save_model(quantized, tokenizer, models_dir / variant.folder, card="")
    return models_dir / variant.folder
