"""Flags, presets and exit codes, as a process shows them."""

import signal
import subprocess
import sys
import time

import pytest

from gpt2_quant.cli import PRESETS, ROOT, parser, settings_from
from gpt2_quant.errors import UserError


def resolve(*flags: str):
    return settings_from(parser("").parse_args(["--device", "cpu", *flags]))


def test_paper_preset_is_the_published_setting_at_pinned_commits():
    settings = resolve()
    assert (settings.base_model, settings.dataset) == ("openai-community/gpt2", "fancyzhx/ag_news")
    assert len(settings.base_revision) == len(settings.dataset_revision) == 40
    assert (settings.batch_size, settings.max_length) == (16, 128)
    assert (PRESETS["paper"].epochs, PRESETS["paper"].learning_rate) == (3, 2e-5)


def test_a_flag_overrides_the_preset_and_its_revision(tmp_path):
    settings = resolve("--base-model", "owner/other", "--dataset", str(tmp_path))
    assert (settings.base_model, settings.base_revision) == ("owner/other", None)
    assert (settings.dataset, settings.dataset_revision) == (str(tmp_path), None)


def test_demo_keeps_to_its_own_folders():
    settings = resolve("--preset", "demo")
    assert (
        settings.models_dir == ROOT / "models" / "demo"
        and settings.results_dir == ROOT / "results" / "demo"
    )


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--max-length", "2048"], "1,024 positions"),
        (["--dataset", "./nowhere"], "no such folder"),
        (["--base-model", "/no/such/model"], "no such folder"),
        (["--models-dir", "pyproject.toml/models"], "cannot be written"),
    ],
)
def test_bad_settings_are_refused(flags, complaint):
    with pytest.raises(UserError, match=complaint):
        resolve(*flags)


CASES = {
    "pass": 0,
    "raise errors.UserError('wrong input: mend it')": 2,
    "raise KeyboardInterrupt": 130,
    "raise OSError(28, 'No space left on device', '/full/file')": 2,
    "raise ValueError('ours')": 1,
}


@pytest.mark.parametrize("body", CASES)
def test_exit_codes(body):
    code = f"import sys; sys.path.insert(0, 'src'); from gpt2_quant import errors\ndef main():\n    {body}\nerrors.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == CASES[body]
    assert ("Traceback" in done.stderr) == (CASES[body] == 1)
    assert len(done.stderr.strip().splitlines()) <= 1 or CASES[body] == 1


def test_sigterm_ends_like_an_interrupt():
    code = (
        "import sys, time; sys.path.insert(0, 'src'); from gpt2_quant import errors\n"
        "def main():\n    print('on', flush=True); time.sleep(60)\nerrors.run(main)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "on\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == 130


def test_help_answers_at_once_without_torch():
    code = (
        "import sys; sys.path.insert(0, 'src'); from gpt2_quant import cli\n"
        "try:\n    cli.parser('What it does.').parse_args(['--help'])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--max-train-samples" in done.stdout
    assert time.perf_counter() - start < 5


def test_a_record_names_folders_from_the_root_of_the_repository(tmp_path):
    values = resolve("--preset", "demo", "--results-dir", str(tmp_path)).as_dict()
    assert (values["models_dir"], values["base_model"]) == ("models/demo", "models/demo/base_gpt2")
    assert values["results_dir"] == str(tmp_path)
    assert resolve().as_dict()["base_model"] == "openai-community/gpt2"
