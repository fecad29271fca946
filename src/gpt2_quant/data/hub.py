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

from ..cli import looks_like_path
from ..errors import UserError

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
    """Turn what goes wrong while publishing into a UserError."""
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
