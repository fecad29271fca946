"""Weights and data from the Hugging Face hub.

huggingface_hub checks sizes, caches, and retries a broken connection but not a busy hub (503): that
is done here. So is giving up on a hub that sends next to nothing: a time limit on single reads
never ends while bytes drip in.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpcore
import httpx

from ..cli import NO_FOLDER, looks_like_path
from ..errors import UserError

WAITS_S = (1, 2, 4, 8)
PATIENCE_S, LEAST_BYTES_PER_S = 30.0, 200.0  # a 1990 modem had more
MODEL_FILES = ["*.safetensors", "*.json", "merges.txt", "*.md"]


def fetch_model_folder(name: str, revision: str | None = None, flag: str = "--base-model") -> Path:
    """`name` itself where it is a folder, else the local folder of the hub's snapshot.

    Raises UserError where there is no model.
    """
    if looks_like_path(name):
        if not Path(name).is_dir():
            raise UserError(f"{flag} {name}: {NO_FOLDER}")
        if not Path(name, "config.json").is_file():
            raise UserError(f"{flag} {name} holds no config.json: give what save_pretrained wrote")
        return Path(name)
    from huggingface_hub import snapshot_download

    with hub_faults(name, flag):
        snapshot = partial(snapshot_download, name, revision=revision, allow_patterns=MODEL_FILES)
        return Path(retried(snapshot))


def retried(download: Callable[[], Any]) -> Any:
    """Retry on 5xx."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS_S:
        try:
            return download()
        except HfHubHTTPError as fault:
            status = fault.response.status_code
            if status < 500:
                raise
            print(f"the hub answers {status}; asking again in {wait} s", file=sys.stderr)
            time.sleep(wait)
    return download()


def check_login(repository: str) -> None:
    """Raises UserError unless logged in."""
    from huggingface_hub import HfApi

    with hub_faults(repository, PUSH):
        HfApi().whoami()


def push(folder: Path, repository: str) -> str:
    """Publish the model folder; returns the commit's address. Raises UserError."""
    from huggingface_hub import HfApi

    with hub_faults(repository, PUSH):
        full = HfApi().create_repo(repository, exist_ok=True).repo_id
        return str(HfApi().upload_folder(repo_id=full, folder_path=folder))


PUSH = "--push-to-hub"


class _WatchedStream:
    """A connection (httpcore.NetworkStream), given up when it brings too little for the wait."""

    def __init__(self, stream: httpcore.NetworkStream, host: str):
        self.stream, self.host, self.bytes, self.waited_s = stream, host, 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def start_tls(self, *arguments, **options) -> "_WatchedStream":
        return _WatchedStream(self.stream.start_tls(*arguments, **options), self.host)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        begun = time.monotonic()
        data = self.stream.read(max_bytes, min(timeout or PATIENCE_S, PATIENCE_S))
        self.bytes += len(data)
        self.waited_s += time.monotonic() - begun
        if self.waited_s > PATIENCE_S:
            if self.bytes < LEAST_BYTES_PER_S * self.waited_s:
                slow = f"{self.host} sent {self.bytes} bytes in {self.waited_s:.0f} s"
                raise UserError(f"{slow}: check the network, or give local folders")
            self.bytes, self.waited_s = 0, 0.0
        return data


class _WatchedNetwork(httpcore.SyncBackend):
    def connect_tcp(self, host: str, *arguments, **options) -> Any:
        return _WatchedStream(super().connect_tcp(host, *arguments, **options), host)


@cache
def _watch() -> None:
    """Have huggingface_hub, and datasets through it, use watched connections."""
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx.Client:
        made = default_client_factory()
        for transport in (made._transport, *made._mounts.values()):  # direct, and by proxies
            if isinstance(transport, httpx.HTTPTransport):
                transport._pool._network_backend = _WatchedNetwork()  # httpx has no way to ask
        return made

    huggingface_hub.set_client_factory(client)


@contextmanager
def hub_faults(name: str, flag: str) -> Iterator[None]:
    """Turn faults of hub, network or id into UserErrors; says whom it waits for."""
    _watch()
    print(f"asking the hub for {name}", file=sys.stderr)
    try:
        yield
    except Exception as fault:
        if what := _what_went_wrong(fault, publishing=flag == PUSH):
            raise UserError(f"{flag} {name}: {what}") from fault
        raise


def _what_went_wrong(fault: Exception, publishing: bool) -> str | None:
    """None for any other fault."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    unknown = "the hub knows no such public id; check its spelling or give a folder"
    otherwise = "and give the same command again" if publishing else "or give a local folder"
    strange = f"not the hub answers, but a login page or a proxy: log in there, {otherwise}"
    away = f"the hub is out of reach: check the network, {otherwise}"
    match fault:
        case errors.LocalTokenNotFoundError():
            return "it needs a login: run hf auth login, or set HF_TOKEN"
        case errors.HFValidationError() if publishing:
            return "it names no repository: give owner/name, of letters, digits, '-', '_' and '.'"
        case errors.RevisionNotFoundError():
            return "the hub has no such revision; update this code or give a folder"
        case errors.HfHubHTTPError() if publishing:
            status = fault.response.status_code
            said = f"the hub answers {status} ({fault.server_message or 'no reason given'})"
            login = "run hf auth login with a token that may write there"
            later = "try the same command later, what is trained stays"
            return f"{said}: {login if status in (401, 403, 404) else later}"
        case errors.RepositoryNotFoundError() | errors.HFValidationError():
            return unknown
        case errors.HfHubHTTPError():
            return f"the hub answers {fault.response.status_code}: try later, {otherwise}"
        case DatasetNotFoundError():  # unknown id or hub out of reach
            missing = "doesn't exist on the Hub or cannot be accessed" in str(fault)
            return unknown if missing else away
        case FileNotFoundError() | httpx.HTTPError() | ConnectionError():
            return away  # offline mode is a ConnectionError, too
        case OSError() if "Consistency check failed" in str(fault):
            return "a file arrived cut short from the hub: run the same command again"
        case RuntimeError() if publishing:
            said = (str(fault) or type(fault).__name__).splitlines()[0]
            return f"the upload broke off ({said}): give the same command again, nothing is lost"
        case ValueError() if str(fault).startswith(("BuilderConfig", "Config name")):
            return None  # a data set's configurations, which its reader names
        case errors.FileMetadataError() | ValueError() | LookupError():
            return strange
        case TypeError() | AttributeError():  # libraries stumble over an answer of another form
            return strange
    return None
