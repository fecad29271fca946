"""The fine-tuned classifier's model card, and its way to the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..cli import UserError, looks_like_path
from ..data.datasets import LABELS
from ..records import write_text


def model_card(record: dict) -> str:
    """The card of script 1's model, from its record: what it is, what it was trained on, how well
    it does.
    """
    training, data, metrics = record["training"], record["data"], record["metrics"]
    base, made = record["checkpoint"]["base_model"], record["provenance"]
    train = record["splits"]["train"]
    accuracy, f1 = metrics["accuracy"], metrics["f1_macro"]
    base_tag = (
        "" if looks_like_path(base) else f"base_model: {base}\n"
    )  # a folder's name means nothing on the hub
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
    """Find out before the training whether pushing can work. Raises UserError where nobody is
    logged in.
    """
    from huggingface_hub import HfApi

    with push_faults(repository):
        HfApi().whoami()


def push(folder: Path, repository: str) -> str:
    """Publish the model folder, card included, as `repository` (owner/name); returns the address of
    the commit.

    Raises UserError where the hub refuses, or is out of reach.
    """
    from huggingface_hub import HfApi

    with push_faults(repository):
        api = HfApi()
        full = api.create_repo(
            repository, exist_ok=True
        ).repo_id  # with the user's own name where none was given
        return str(
            api.upload_folder(
                repo_id=full, folder_path=folder, commit_message="GPT-2 fine-tuned on AG News"
            )
        )


@contextmanager
def push_faults(repository: str) -> Iterator[None]:
    """Turn what goes wrong while publishing into a UserError. (Fetching fails for other reasons:
    hub.hub_faults.)
    """
    import httpx
    from huggingface_hub import errors

    flag = f"--push-to-hub {repository}"
    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise UserError("--push-to-hub needs a login: run hf auth login, or set HF_TOKEN") from None
    except errors.HFValidationError as fault:
        raise UserError(
            f"{flag} names no repository: give owner/name, of letters, digits, '-', '_' and '.'"
        ) from fault
    except errors.HfHubHTTPError as fault:
        status = fault.response.status_code
        said = f"the hub answers {status}" + (
            f" ({fault.server_message})" if fault.server_message else ""
        )
        if status in (401, 403, 404):
            raise UserError(
                f"{flag}: {said}: run hf auth login with a token that may write there"
            ) from fault
        raise UserError(
            f"{flag}: {said}: try the same command later, what is trained stays"
        ) from fault
    except (httpx.HTTPError, ConnectionError, errors.OfflineModeIsEnabled) as fault:
        raise UserError(
            f"{flag}: the hub is out of reach: check the network and give the same command again"
        ) from fault
    except (
        RuntimeError
    ) as fault:  # what becomes of a connection that breaks while a large file is under way
        said = (str(fault) or type(fault).__name__).splitlines()[0]
        raise UserError(
            f"{flag}: the upload broke off ({said}): give the same command again, what is trained stays"
        ) from fault
