"""The hub path against a hub on this machine: the libraries as installed, HF_ENDPOINT, no network.

Each case runs in a process of its own with an empty cache, because the libraries read their
settings once.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import COMMIT, Hub

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
MODEL, DATASET = "tester/tiny-gpt2", "tester/news"

FETCH = f"""
from gpt2_quant.data.hub import fetch_model_folder
folder = fetch_model_folder({MODEL!r}, revision)
print(json.dumps({{"commit": folder.name, "files": sorted(p.name for p in folder.iterdir())}}))
"""
READ = f"""
from gpt2_quant.data.tables import read_hub
tables = read_hub({DATASET!r}, revision, None)
print(json.dumps([[len(t), t[0]["text"], t["label"][:4]] for t in tables.values()]))
"""


def parquet(texts: list[str], labels: list[int]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def repositories(tiny_tokenizer, tiny_texts, tmp_path_factory):
    """A tiny GPT-2 as the hub holds it (with a pickle that nobody should fetch) and 240 rows of
    news as parquet.
    """
    from tiny_models import make_tiny_gpt2

    folder = tmp_path_factory.mktemp("hub") / "model"
    make_tiny_gpt2(tiny_tokenizer, head=False).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    model = {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "pytorch_model.bin": b"\x80pickle"
    }
    texts, labels = tiny_texts
    dataset = {
        "README.md": b"---\ntask_categories:\n- text-classification\n---\n",
        "data/train-00000-of-00001.parquet": parquet(texts[:200], labels[:200]),
        "data/test-00000-of-00001.parquet": parquet(texts[200:240], labels[200:240]),
    }
    return {("models", MODEL): model, ("datasets", DATASET): dataset}


@pytest.fixture
def hub(repositories):
    with Hub(repositories) as running:
        yield running


def ask(
    code: str, home: Path, endpoint: str, revision: str | None = COMMIT, offline: str = "0"
) -> subprocess.CompletedProcess:
    """Run `code` below errors.run, as a script does; the hub is `endpoint`, its cache `home`."""
    program = (
        f"import json\nfrom gpt2_quant.errors import run\nrevision = {revision!r}\ndef main():\n"
    )
    program += "".join(f"    {line}\n" for line in code.strip().splitlines()) + "run(main)\n"
    environment = {
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment |= {
        "HF_DATASETS_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_sentence(done: subprocess.CompletedProcess) -> str:
    """The error line of a run that ended as a user's fault does: exit code 2, no traceback."""
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def answer_of(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_model_at_a_pinned_commit_without_pickles_then_from_the_cache(hub, tmp_path):
    fetched = answer_of(ask(FETCH, tmp_path, hub.url))
    assert fetched["commit"] == COMMIT
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(fetched["files"])
    assert "pytorch_model.bin" not in fetched["files"]
    assert not any(path.endswith(".bin") for _, path in hub.asked)
    assert answer_of(ask(FETCH, tmp_path, "http://127.0.0.1:9", offline="1")) == fetched


def test_dataset_as_parquet(hub, tmp_path, tiny_texts):
    texts, labels = tiny_texts
    rows = answer_of(ask(READ, tmp_path, hub.url))
    assert rows == [[200, texts[0], labels[:4]], [40, texts[200], labels[200:204]]]


@pytest.mark.parametrize(
    "request_line", ["HEAD config.json", "GET config.json", "GET model.safetensors"]
)
def test_a_busy_hub_is_asked_again(hub, tmp_path, request_line):
    hub.busy = {request_line: 2}
    assert "model.safetensors" in answer_of(ask(FETCH, tmp_path, hub.url))["files"]
    assert hub.busy[request_line] == 0


def test_a_busy_hub_is_asked_again_for_data(hub, tmp_path):
    hub.busy = {"GET train-00000-of-00001.parquet": 2}
    assert answer_of(ask(READ, tmp_path, hub.url))[0][0] == 200
    assert hub.busy == {"GET train-00000-of-00001.parquet": 0}


def test_a_connection_that_breaks_in_mid_file_is_resumed(hub, repositories, tmp_path):
    hub.cut = {"model.safetensors"}
    assert "model.safetensors" in answer_of(ask(FETCH, tmp_path, hub.url))["files"]
    assert not hub.cut
    fetched = next(tmp_path.rglob("model.safetensors")).read_bytes()
    assert fetched == repositories["models", MODEL]["model.safetensors"]


def test_a_file_cut_short_is_refused_and_fetched_anew(hub, repositories, tmp_path):
    hub.short = {"model.safetensors"}
    assert "cut short" in one_sentence(ask(FETCH, tmp_path, hub.url))
    assert not list(tmp_path.rglob("model.safetensors"))
    hub.short = set()
    assert "model.safetensors" in answer_of(ask(FETCH, tmp_path, hub.url))["files"]
    assert (
        next(tmp_path.rglob("model.safetensors")).read_bytes()
        == repositories["models", MODEL]["model.safetensors"]
    )


@pytest.mark.parametrize("code, flag", [(FETCH, "--base-model"), (READ, "--dataset")])
def test_unknown_id(tmp_path, code, flag):
    with Hub({}) as empty:
        sentence = one_sentence(ask(code, tmp_path, empty.url))
    assert flag in sentence and "no such public id" in sentence


def test_unknown_revision(hub, tmp_path):
    assert "no such revision" in one_sentence(ask(FETCH, tmp_path, hub.url, revision="f" * 40))


def test_hub_out_of_reach(tmp_path):
    sentence = one_sentence(ask(FETCH, tmp_path, "http://127.0.0.1:9"))
    assert "out of reach" in sentence and "--base-model" in sentence


@pytest.mark.parametrize(
    "offline", ["1", pytest.param("0", marks=pytest.mark.slow)]
)  # datasets asks again for 23 s
def test_dataset_not_cached_and_hub_out_of_reach(tmp_path, offline):
    sentence = one_sentence(ask(READ, tmp_path, "http://127.0.0.1:9", offline=offline))
    assert "out of reach" in sentence and "--dataset" in sentence


IMPATIENT = "from gpt2_quant.data import hub\nhub.PATIENCE_S = 1.0\n"
HEAD = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
PAGE, LIST = b"<html>Log in to this network</html>", b"[]"
ANSWERS = {
    "a login page": (HEAD % (b"200 OK", len(PAGE), PAGE), "login page"),
    "a list": (HEAD % (b"200 OK", len(LIST), LIST), "login page"),
    "too many requests": (HEAD % (b"429 Too Many", 0, b""), "the hub answers 429"),
    "nothing": (b"", "out of reach"),
    "a byte at a time": (HEAD % (b"200 OK", 99999, b"x" * 99999), "bytes in"),
}


@contextmanager
def answering(answer: bytes, dripping: bool):
    """The address of a server that gives one answer to all, silent where that is empty."""
    server, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            pieces = [answer[at : at + 1] for at in range(len(answer))] if dripping else [answer]
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    ended.wait(0.1 if dripping else 0 if answer else 60)
            except OSError:
                pass  # the client gave up, as it should

    def accept() -> None:
        while not ended.is_set():
            try:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        ended.set()
        server.close()


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_is_not_the_hubs_ends_in_a_sentence(tmp_path, what):
    answer, said = ANSWERS[what]
    with answering(answer, what == "a byte at a time") as endpoint:
        done = ask(IMPATIENT + FETCH, tmp_path, endpoint)
    assert said in one_sentence(done)
    assert f"asking the hub for {MODEL}" in done.stderr


@pytest.mark.slow  # datasets asks again for half a minute
@pytest.mark.parametrize("what", ["a login page", "too many requests"])
def test_the_same_of_data(tmp_path, what):
    with answering(ANSWERS[what][0], False) as endpoint:
        assert "--dataset" in one_sentence(ask(IMPATIENT + READ, tmp_path, endpoint))
