"""The Hugging Face hub, where weights and data come from unless a folder is named.

A model is fetched as a folder of safetensors, config and tokenizer files at one commit; nothing
that would have to be unpickled is downloaded. huggingface_hub checks sizes and caches; it asks
again when a connection breaks, but not when the hub answers 503 to the download of a file, so that
is done here. What goes wrong becomes one sentence.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ..cli import UserError, looks_like_path

T = TypeVar("T")
WAITS_SECONDS = (1, 2, 4, 8)
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "merges.txt", "*.md")


def fetch_model_folder(name: str, revision: str | None = None, flag: str = "--base-model") -> Path:
    """The local folder of a model: `name` itself where it is a folder, else a snapshot of the hub's
    repository.

    Raises UserError for an empty or missing folder, an unknown id or revision, and a hub out of
    reach.
    """
    if looks_like_path(name):
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(
                f"{flag} {name}: there is no such folder; give an existing folder or a hub id like owner/name"
            )
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{flag} {name} holds no config.json: give a model folder as save_pretrained writes it"
            )
        return folder
    from huggingface_hub import snapshot_download

    with hub_faults(name, flag):
        return Path(
            retried(
                lambda: snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES))
            )
        )


def retried(download: Callable[[], T]) -> T:
    """The result of `download`, begun again after a while each time the hub answers that it is busy
    (5xx).
    """
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS_SECONDS:
        try:
            return download()
        except HfHubHTTPError as fault:
            if fault.response is None or fault.response.status_code < 500:
                raise
            print(
                f"the hub answers {fault.response.status_code}; asking again in {wait} s",
                file=sys.stderr,
            )
            time.sleep(wait)
    return download()


def local_commit(folder: Path) -> str | None:
    """The commit that a folder in the hub's cache (…/snapshots/<commit>) was fetched at; None for
    any other folder.
    """
    return folder.name if folder.parent.name == "snapshots" else None


@contextmanager
def hub_faults(name: str, flag: str) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into a UserError that says which it was."""
    import httpx
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    away = f"the hub is out of reach and {name} is not in the local cache: check the network, or give {flag} a local folder"
    try:
        yield
    except errors.RevisionNotFoundError as fault:
        raise UserError(
            f"{flag} {name}: the hub has no such revision; update this code or give {flag} a folder"
        ) from fault
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as fault:
        raise UserError(
            f"{flag} {name}: the hub knows no such public id; check its spelling or give a folder"
        ) from fault
    except DatasetNotFoundError as fault:
        # datasets raises the same class for an unknown id and for an unreachable hub; the wording
        # tells them apart.
        if "doesn't exist on the Hub or cannot be accessed" in str(fault):
            raise UserError(
                f"{flag} {name}: the hub knows no such public id; check its spelling or give a folder"
            ) from fault
        raise UserError(away) from fault
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        httpx.HTTPError,
        ConnectionError,
    ) as fault:
        raise UserError(away) from fault
    except OSError as fault:
        if "Consistency check failed" in str(fault):
            raise UserError(
                f"{name} arrived cut short from the hub: run the same command again"
            ) from fault
        raise
