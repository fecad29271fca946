"""Flags, presets and exit codes, as a process shows them."""

import signal
import subprocess
import sys

import pytest

from gpt2_quant.cli import PRESETS, ROOT, parser, settings_from
from gpt2_quant.errors import UserError


def resolve(*flags: str):
    return settings_from(parser("").parse_args(["--device", "cpu", *flags]))


def program(*lines: str) -> subprocess.Popen:
    """A process that runs these lines with the library at hand."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", "\n".join(lines)], text=True, **pipes)


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
    assert settings.models_dir == ROOT / "models" / "demo"
    assert settings.results_dir == ROOT / "results" / "demo"


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
    child = program(f"from gpt2_quant import errors\ndef main():\n    {body}\nerrors.run(main)")
    _, told = child.communicate()
    assert child.returncode == CASES[body]
    assert ("Traceback" in told) == (CASES[body] == 1)
    assert len(told.strip().splitlines()) <= 1 or CASES[body] == 1


def test_sigterm_ends_like_an_interrupt():
    main = "    print('on', flush=True); time.sleep(60)"
    child = program(
        "import time; from gpt2_quant import errors", "def main():", main, "errors.run(main)"
    )
    assert child.stdout.readline() == "on\n"
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == 130


def test_help_and_whether_a_step_is_complete_are_told_without_torch(tmp_path):
    flags = ["--device", "cpu", "--results-dir", str(tmp_path)]
    child = program(
        "import sys; from gpt2_quant import cache, cli",
        f"settings = cli.settings_from(cli.parser('').parse_args({flags}))",
        "cache.Step(settings.results_dir, 'step', {}).complete()",
        "try: cli.parser('What it does.').parse_args(['--help'])",
        "finally: assert 'torch' not in sys.modules",
    )
    told, _ = child.communicate()
    assert child.returncode == 0 and "--max-train-samples" in told


def test_a_record_names_folders_from_the_root_of_the_repository(tmp_path):
    values = resolve("--preset", "demo", "--results-dir", str(tmp_path)).as_dict()
    assert (values["models_dir"], values["base_model"]) == ("models/demo", "models/demo/base_gpt2")
    assert values["results_dir"] == str(tmp_path)
    assert resolve().as_dict()["base_model"] == "openai-community/gpt2"
