"""The fine-tuned classifier's model card, and its way to the hub."""

from pathlib import Path

from .data import LABELS
from .hub import hub_faults
from .records import write_text
from .settings import UserError


def model_card(record: dict) -> str:
    """The card of script 1's model, from its record: what it is, what it was trained on, how well it does."""
    training, data, metrics = record["training"], record["data"], record["metrics"]
    base, made = record["checkpoint"]["base_model"], record["provenance"]
    train = record["splits"]["train"]
    accuracy, f1 = metrics["accuracy"], metrics["f1_macro"]
    base_tag = f"base_model: {base}\n" if base.count("/") == 1 and not base.startswith((".", "/")) else ""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
language: en
tags: [gpt2, ag-news]
{base_tag}---

# GPT-2 fine-tuned on AG News

Sorts a news item into {", ".join(LABELS)}. All parameters of `{base}` were fine-tuned by `src/1_baseline_finetuning.py`.

```python
from transformers import pipeline

pipeline("text-classification", "FOLDER OR ID OF THIS MODEL")("Late goal sends the home side to the final")
```

| | |
| --- | --- |
| test accuracy | {accuracy["value"]:.4f} (95% interval {accuracy["low"]:.4f} to {accuracy["high"]:.4f}, n = {data["n"]}) |
| test macro F1 | {f1["value"]:.4f} ({f1["low"]:.4f} to {f1["high"]:.4f}) |
| trained on | {train["n"]} rows of `{train["name"]}`, sha256 {train["sha256"][:16]} |
| training | {training["epochs"]} epochs, {training["updates"]} updates of {training["batch_size"]} texts of at most \
{training["max_length"]} tokens, AdamW at {training["learning_rate"]:g}, linear warm-up and decay, clipping at 1, dropout 0.1, \
{training["precision"]} |
| kept | epoch {training["best_epoch"]}, the best on validation |
| made by | commit {made["git_commit"]}, torch {made["packages"]["torch"]}, {made["device"]} |

Input is title, one space, description, in English, of about 2004; anything else is outside of what it was tested on.
Pad on the right with the end-of-text token: the answer is read at the last token that is not padding.
"""


def write_card(folder: Path, record: dict) -> Path:
    """Write the card into the model's folder."""
    write_text(folder / "README.md", model_card(record))
    return folder / "README.md"


def check_login(repository: str) -> None:
    """Find out before the training whether pushing can work. Raises UserError where nobody is logged in."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    with hub_faults(repository, "--push-to-hub"):
        try:
            HfApi().whoami()
        except LocalTokenNotFoundError:
            raise UserError("--push-to-hub needs a login: run hf auth login, or set HF_TOKEN") from None


def push(folder: Path, repository: str) -> str:
    """Publish the model folder, card included, as `repository` (owner/name); returns the address of the commit."""
    from huggingface_hub import HfApi

    with hub_faults(repository, "--push-to-hub"):
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="GPT-2 fine-tuned on AG News"))
