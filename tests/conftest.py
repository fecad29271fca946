"""For all tests: a tiny classifier, real data where its folder is named, scripts as run.

Nothing here needs the hub: HF_HUB_OFFLINE is set before any library reads it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_arrow = tempfile.TemporaryDirectory()  # where `datasets` keeps what it has read, until the end
os.environ.setdefault("HF_DATASETS_CACHE", _arrow.name)
# Two files of tests run at a time, and their scripts with them: a thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import loaded  # noqa: E402
import pytest  # noqa: E402
from tiny_models import ROOT, make_tiny_gpt2  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items) -> None:
    """Mark as e2e what runs a script (all of tests/scripts/, and whoever asks for `run_script`) and
    what runs kernels in Triton's interpreter, which is as slow.

    Tests marked gpu or slow are left out unless -m names that marker. Scripts come first, then what
    else is e2e: these files take longest, and pytest-xdist gives a whole file to one process.
    """
    asked, left_out, long = config.option.markexpr, [], set()
    for item in items:
        runs_script = item.path.parent.name == "scripts" or "run_script" in item.fixturenames
        if runs_script or "interpret" in item.nodeid.rpartition("/")[2]:
            item.add_marker("e2e")
        if item.get_closest_marker("e2e"):
            long.add(item.path)
        rare = {"gpu", "slow"} & {marker.name for marker in item.iter_markers()}
        if rare and not any(name in asked for name in rare):
            left_out.append(item)
    config.hook.pytest_deselected(items=left_out)
    kept = (item for item in items if item not in left_out)
    items[:] = sorted(
        kept, key=lambda item: (item.path.parent.name != "scripts", item.path not in long)
    )


def _named_folder(variable: str, what: str) -> Path:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set: name the folder that holds {what} to run this test")
    return Path(folder)


@pytest.fixture(scope="session")
def ag_news_dir() -> Path:
    """AG News as train.csv and test.csv, from the folder that AG_NEWS_DIR names."""
    return _named_folder("AG_NEWS_DIR", "AG News' train.csv and test.csv")


@pytest.fixture(scope="session")
def gpt2_news_mini() -> Path:
    """A small pretrained GPT-2 with its tokenizer, from the folder that GPT2_NEWS_MINI names."""
    return _named_folder("GPT2_NEWS_MINI", "a small pretrained GPT-2")


@pytest.fixture(scope="session")
def human_judgements_dir() -> Path:
    """summeval.jsonl and stsb_test.csv, from the folder that HUMAN_JUDGEMENTS_DIR names."""
    return _named_folder("HUMAN_JUDGEMENTS_DIR", "summeval.jsonl and stsb_test.csv")


@pytest.fixture(scope="session")
def tiny_texts() -> tuple[list[str], list[int]]:
    """600 items of the demo's corpus: texts (title, space, description) and labels 0–3."""
    from gpt2_quant.data.demo import generate_corpus

    titles, descriptions, labels = generate_corpus(600, seed=7)
    return [" ".join(parts) for parts in zip(titles, descriptions, strict=True)], labels


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_texts):
    """A byte-level BPE of 1,000 tokens, trained on `tiny_texts`, padding on the right."""
    from gpt2_quant.data.demo import train_tokenizer

    tokenizer = train_tokenizer(tiny_texts[0], vocab_size=1000)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture
def tiny_gpt2(tiny_tokenizer):
    """A fresh `make_tiny_gpt2` classifier."""
    return make_tiny_gpt2(tiny_tokenizer)


@pytest.fixture
def tiny_gpt2_lm(tiny_tokenizer):
    """A fresh `make_tiny_gpt2` language model."""
    return make_tiny_gpt2(tiny_tokenizer, head=False)


@pytest.fixture(scope="session")
def run_script():
    """Run a script as a user does: `run_script("src/2_…py", "--help")` -> CompletedProcess.

    With an `environment` of its own it gets a fresh interpreter.
    """

    def run(
        script: str, *arguments: object, timeout: float = 240, **environment: str
    ) -> subprocess.CompletedProcess:
        command = [script, *map(str, arguments)]
        if not environment:
            return loaded.run(ROOT, command, timeout)
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory) -> dict[str, str]:
    """An environment for `run_script` in which a script that loads torch ends at once."""
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "torch.py").write_text("raise SystemExit('torch is being loaded')\n")
    return {"PYTHONPATH": str(folder)}
