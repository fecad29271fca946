"""Model cards, and a model folder written whole."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..cli import looks_like_path
from ..data.labels import LABELS
from ..records import atomic_path, write_text
from .variants import BASELINE, SCRIPTS, Variant

AG_NEWS_INPUT = """Input is title, one space, description, in English, of about 2004: it was tested
on nothing else."""


def _front_matter(tag: str, name: str, base: str, record: dict) -> str:
    """The hub's metadata. A folder's name means nothing there, so only ids are written."""
    data, metrics = record["data"], record["metrics"]
    news = tuple(data["classes"]) == LABELS
    hub_id = "" if looks_like_path(data["name"]) else data["name"]
    shown = json.dumps(_public(data["name"]))  # quoted
    lines = ["library_name: transformers", "pipeline_tag: text-classification", "language: en"]
    lines += [
        f"tags: [gpt2{', ag-news' * news}{tag}]",
        "license: other",
        "license_name: educational-use",
    ]
    lines += [f"datasets: [{hub_id}]"] if hub_id else []
    lines += [] if looks_like_path(base) else [f"base_model: {base}"]
    return (
        "\n".join(["---", *lines, "model-index:", f"- name: {name}"])
        + f"""
  results:
  - task: {{type: text-classification}}
    dataset: {{name: {shown}, type: {hub_id or "local"}, split: {data["split"]}}}
    metrics:
    - {{type: accuracy, value: {metrics["accuracy"]["value"]:.4f}}}
    - {{type: f1, name: macro F1, value: {metrics["f1_macro"]["value"]:.4f}}}
---
"""
    )


def _public(name: str) -> str:
    """A hub id, or a folder's own name without the path to it."""
    return Path(name).name if looks_like_path(name) else name


def model_card(record: dict) -> str:
    training, metrics, made = record["training"], record["metrics"], record["provenance"]
    base, train = record["checkpoint"]["base_model"], record["splits"]["train"]
    accuracy, f1, classes = metrics["accuracy"], metrics["f1_macro"], record["data"]["classes"]
    is_news = tuple(classes) == LABELS
    return f"""{_front_matter("", "GPT-2 fine-tuned", base, record)}
# GPT-2 fine-tuned on {"AG News" if is_news else _public(train["name"])}

Sorts a text into {len(classes)} classes: {_listed(classes)}.
All parameters of `{_public(base)}` were fine-tuned by `{SCRIPTS[1]}`.

```python
from transformers import pipeline

pipeline("text-classification", "FOLDER OR ID OF THIS MODEL")("Late goal sends the home side on")
```

| | |
| --- | --- |
| test accuracy | {_estimate(accuracy)}, n = {record["data"]["n"]} |
| test macro F1 | {_estimate(f1)} |
| trained on | {train["n"]} rows of `{_public(train["name"])}`, sha256 {train["sha256"][:16]} |
| training | {training["epochs"]} epochs, {training["updates"]} updates of \
{training["batch_size"]} texts of at most {training["max_length"]} tokens, AdamW at \
{training["learning_rate"]:g}, linear warm-up and decay, \
clipping at 1, dropout 0.1, {training["precision"]} |
| kept | epoch {training["best_epoch"]}, the best on validation |
| made by | commit {made["git_commit"]}, torch {made["packages"]["torch"]}, {made["device"]} |

{AG_NEWS_INPUT if is_news else "It was tested on nothing but that data set's texts."}
Pad on the right with the end-of-text token. An empty text has no token to classify from: give
`<|endoftext|>` in its place.
"""


def _listed(classes: Sequence[str], most: int = 20) -> str:
    return ", ".join([*classes[:most], *["…"] * (len(classes) > most)])


def _estimate(metric: dict) -> str:
    return f"{metric['value']:.4f} (95% interval {metric['low']:.4f} to {metric['high']:.4f})"


def write_card(
    folder: Path, record: dict, variant: Variant = BASELINE, source: str | Path = ""
) -> Path:
    """`source`: the FP32 checkpoint, folder or hub id, that `variant` was made from."""
    card = variant_card(variant, str(source), record) if variant.method else model_card(record)
    write_text(folder / "README.md", card)
    return folder / "README.md"


def variant_card(variant: Variant, source: str, record: dict) -> str:
    register = (
        "# gpt2_quant is the repository that made this folder: clone it, then pip install -e .\n"
        "import gpt2_quant.quantization.quantizer  # registers the method with transformers\n"
    )
    tag = ", gpt2_quant" if variant.by_hand else ", bitsandbytes"
    classes = record["data"]["classes"]
    return f"""{_front_matter(tag, f"GPT-2, {variant.label}", source, record)}
# GPT-2 on {"AG News" if tuple(classes) == LABELS else _public(record["data"]["name"])}, \
{variant.label}

Quantized from `{_public(source)}` by `{variant.script_path}`. {variant.description}

```python
{register if variant.by_hand else ""}from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("{variant.folder}")
```

Labels: {_listed(classes)}. Its scores stand in the record `{variant.key}.json`.
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
