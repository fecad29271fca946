"""Model cards, worded in cards.toml, and a model folder written whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli import looks_like_path, read_toml
from ..data.labels import LABELS
from ..records import atomic_path, write_text
from .variants import BASELINE, Variant

WORDS = read_toml(__file__)


def _front_matter(tags: Sequence[str], name: str, base: str, record: dict) -> str:
    """The hub's metadata. A folder's name means nothing there, so only ids are written."""
    from huggingface_hub import EvalResult, ModelCardData

    data, task = record["data"], "text-classification"
    hub_id = None if looks_like_path(data["name"]) else data["name"]
    shared: dict[str, Any] = {"task_type": task, "dataset_name": _public(data["name"])}
    shared |= {"dataset_type": hub_id or "local", "dataset_split": data["split"]}
    scores = [
        EvalResult(metric_type=kind, metric_name=key, metric_value=round(value, 4), **shared)
        for kind, key in (("accuracy", "accuracy"), ("f1", "f1_macro"))
        for value in [record["metrics"][key]["value"]]
    ]
    card = ModelCardData(
        language="en", license="other", license_name="educational-use", model_name=name,
        library_name="transformers", pipeline_tag=task, eval_results=scores,
        tags=["gpt2", *["ag-news"] * _is_news(record), *tags],
        datasets=[hub_id] if hub_id else None,
        base_model=None if looks_like_path(base) else base,
    )  # fmt: skip
    return f"---\n{card.to_yaml()}\n---\n"


def _is_news(record: dict) -> bool:
    return tuple(record["data"]["classes"]) == LABELS


def _public(name: str) -> str:
    """A hub id, or a folder's own name without the path to it."""
    return Path(name).name if looks_like_path(name) else name


def write_card(
    folder: Path, record: dict, variant: Variant = BASELINE, source: str | Path = ""
) -> Path:
    """`source`: the FP32 checkpoint, folder or hub id, that `variant` was made from."""
    made = bool(variant.method)
    data, train, news = record["data"], record["splits"]["train"], _is_news(record)
    base = str(source) if made else record["checkpoint"]["base_model"]
    tags = ["gpt2_quant" if variant.by_hand else "bitsandbytes"] * made
    name = f"GPT-2, {variant.label}" if made else "GPT-2 fine-tuned"
    values = {
        "variant": variant,
        "script": BASELINE.script_path,
        "base": _public(base),
        "data_name": "AG News" if news else _public(data["name"]),
        "n_classes": len(data["classes"]),
        "classes": ", ".join([*data["classes"][:20], *["…"] * (len(data["classes"]) > 20)]),
        "train": train,
        "train_name": _public(train["name"]),
        "tested": WORDS["news"] if news else "that data set's texts",
        "import": WORDS["import"] if variant.by_hand else "",
        **{key: WORDS["estimate"].format(**score) for key, score in record["metrics"].items()},
    }
    text = WORDS["quantized" if made else "fine_tuned"].format(**record | values)
    write_text(folder / "README.md", f"{_front_matter(tags, name, base, record)}\n{text}")
    return folder / "README.md"


def save_model(model, tokenizer, folder: Path, card: str) -> None:
    """Write weights, configuration, tokenizer and card, whole or not at all."""
    tokenizer.model_max_length = model.config.n_positions
    if tokenizer.is_fast:  # the last call's cut and padding would be every reader's
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
