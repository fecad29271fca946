"""Model cards, and a model folder written whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli import looks_like_path
from ..data.labels import LABELS
from ..records import atomic_path, write_text
from .variants import BASELINE, SCRIPTS, Variant

IMPORT = """\
# gpt2_quant is the repository that made this folder: clone it, then pip install -e .
import gpt2_quant.quantization.quantizer  # registers the method with transformers
"""


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


def _data_name(record: dict) -> str:
    return "AG News" if _is_news(record) else _public(record["data"]["name"])


def _public(name: str) -> str:
    """A hub id, or a folder's own name without the path to it."""
    return Path(name).name if looks_like_path(name) else name


def _listed(classes: Sequence[str]) -> str:
    return ", ".join([*classes[:20], *["…"] * (len(classes) > 20)])


def _estimate(metric: dict) -> str:
    return "{value:.4f} (95% interval {low:.4f} to {high:.4f})".format(**metric)


def write_card(
    folder: Path, record: dict, variant: Variant = BASELINE, source: str | Path = ""
) -> Path:
    """`source`: the FP32 checkpoint, folder or hub id, that `variant` was made from."""
    card = _variant_card(variant, str(source), record) if variant.method else _model_card(record)
    write_text(folder / "README.md", card)
    return folder / "README.md"


def _model_card(record: dict) -> str:
    training, metrics, made = record["training"], record["metrics"], record["provenance"]
    base, train = record["checkpoint"]["base_model"], record["splits"]["train"]
    classes, tested = record["data"]["classes"], "that data set's texts"
    if _is_news(record):
        tested = "AG News: title, one space, description, in English, of about 2004"
    return f"""{_front_matter((), "GPT-2 fine-tuned", base, record)}
# GPT-2 fine-tuned on {_data_name(record)}

Sorts a text into {len(classes)} classes: {_listed(classes)}.
All parameters of `{_public(base)}` were fine-tuned by `{SCRIPTS[1]}`.

```python
from transformers import pipeline

pipeline("text-classification", "FOLDER OR ID OF THIS MODEL")("Late goal sends the home side on")
```

| | |
| --- | --- |
| test accuracy | {_estimate(metrics["accuracy"])}, n = {record["data"]["n"]} |
| test macro F1 | {_estimate(metrics["f1_macro"])} |
| trained on | {train["n"]} rows of `{_public(train["name"])}`, sha256 {train["sha256"][:16]} |
| training | {training["epochs"]} epochs, {training["updates"]} updates of \
{training["batch_size"]} texts of at most {training["max_length"]} tokens, AdamW at \
{training["learning_rate"]:g}, linear warm-up and decay, \
clipping at 1, dropout 0.1, {training["precision"]} |
| kept | epoch {training["best_epoch"]}, the best on validation |
| made by | commit {made["git_commit"]}, torch {made["packages"]["torch"]}, {made["device"]} |

It was tested on nothing but {tested}.
Pad on the right with the end-of-text token. An empty text has no token to classify from: give
`<|endoftext|>` in its place.
"""


def _variant_card(variant: Variant, source: str, record: dict) -> str:
    tag = "gpt2_quant" if variant.by_hand else "bitsandbytes"
    return f"""{_front_matter([tag], f"GPT-2, {variant.label}", source, record)}
# GPT-2 on {_data_name(record)}, {variant.label}

Quantized from `{_public(source)}` by `{variant.script_path}`. {variant.description}

```python
{IMPORT if variant.by_hand else ""}from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("{variant.folder}")
```

Labels: {_listed(record["data"]["classes"])}. Its scores stand in the record `{variant.key}.json`.
"""


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
