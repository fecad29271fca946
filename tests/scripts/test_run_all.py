"""The runner with the real five scripts, on the demo that README shows: order, resuming, flags,
failure, Ctrl-C.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = [path.stem for path in sorted((ROOT / "src").glob("[1-5]_*.py"))]


def command(house: Path, *flags: str) -> list[str]:
    fixed = [
        "--device",
        "cpu",
        "--models-dir",
        str(house / "models"),
        "--results-dir",
        str(house / "results"),
    ]
    return [sys.executable, str(ROOT / "run_all_experiments.py"), *fixed, *flags]


def run(house: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(house, *flags), capture_output=True, text=True, env={**os.environ, **environment}
    )


def said(done: subprocess.CompletedProcess, outcome: str) -> list[int]:
    """Numbers of the steps with this outcome, in the order in which they were told."""
    return [
        int(number)
        for number in re.findall(rf"^\[(\d)/5\] \w+: {outcome}", done.stdout, flags=re.MULTILINE)
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> SimpleNamespace:
    """README's demo in a folder of its own: `house`, what the runner printed (`done`), and
    `seconds`.
    """
    house = tmp_path_factory.mktemp("demo")
    begun = time.perf_counter()
    done = run(house, "--preset", "demo")
    assert done.returncode == 0, done.stderr[-2000:]
    return SimpleNamespace(house=house, done=done, seconds=time.perf_counter() - begun)


@pytest.fixture
def parsed(monkeypatch):
    """The runner as a module, and its flags as parsed from a command line."""
    monkeypatch.syspath_prepend(str(ROOT))
    import run_all_experiments as runner

    def parse(*flags: str):
        monkeypatch.setattr(sys, "argv", ["run_all_experiments.py", *flags])
        return runner.flags()

    return runner, parse


def test_there_are_five_scripts_and_the_runner_names_them(parsed):
    runner, _ = parsed
    assert [stage.name for stage in runner.STAGES] == NAMES and len(NAMES) == 5


def test_the_demo_ends_in_five_minutes_with_every_file(demo):
    assert demo.seconds < 300
    results = demo.house / "results"
    for key in ("baseline", "int8_scratch", "int8_bitsandbytes", "nf4_bitsandbytes"):
        assert (results / f"{key}_confusion_matrix.png").stat().st_size > 5_000
    for name in (
        "performance_comparison.png",
        "efficiency_comparison.png",
        "report_1.pdf",
        "report_2.pdf",
    ):
        assert (results / name).stat().st_size > 5_000
    lines = (results / "comparison_table.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("Model,Accuracy,F1-Score,Size (MB),Inference (ms),Compression")
    assert 0.90 <= float(lines[1].split(",")[1]) <= 0.97


def test_all_run_in_order_and_keep_logs_and_a_second_run_only_says_so(demo):
    assert said(demo.done, "done in") == [1, 2, 3, 4, 5]
    for name in NAMES:
        log = (demo.house / "results" / "logs" / f"{name}.log").read_text(encoding="utf-8")
        assert log and log.splitlines()[-1] in demo.done.stdout
    begun = time.perf_counter()
    again = run(demo.house, "--preset", "demo")
    assert again.returncode == 0 and said(again, "already complete for these flags") == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert time.perf_counter() - begun < 10


def test_what_is_gone_is_redone_and_nothing_else(demo):
    (demo.house / "results" / "comparison_table.csv").unlink()
    done = run(demo.house, "--preset", "demo")
    assert done.returncode == 0, done.stderr
    assert said(done, "already complete") == [1, 2, 3, 4] and said(done, "done in") == [5]


def test_only_and_from(demo):
    assert said(run(demo.house, "--preset", "demo", "--only", "1", "3"), "already complete") == [
        1,
        3,
    ]
    assert said(run(demo.house, "--preset", "demo", "--from", "4"), "already complete") == [4, 5]
    assert run(demo.house, "--only", "6").returncode == 2
    assert run(demo.house, "--only", "1", "--from", "2").returncode == 2


def test_damaged_weights_make_step_2_stale_and_its_failure_stops_the_run_and_is_named(demo):
    weights = demo.house / "models" / "baseline_gpt2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # the last test that reads this demo
    done = run(demo.house, "--preset", "demo", "--from", "2")
    log = demo.house / "results" / "logs" / "2_quantization_scratch.log"
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: step 2 (2_quantization_scratch)")
    assert (
        "exit code 2" in last
        and str(log) in last
        and "Traceback" not in log.read_text(encoding="utf-8")
    )
    assert "[3/5]" not in done.stdout


@pytest.mark.parametrize("code", [1, 2])
def test_a_failed_step_ends_the_run_with_its_own_code(parsed, capsys, code):
    runner, _ = parsed
    with pytest.raises(SystemExit) as end:
        runner.stop(runner.STAGES[2], code, Path("some.log"))
    told = capsys.readouterr().err
    assert (
        end.value.code == code
        and f"step 3 (3_bitsandbytes_quant) ended with exit code {code}" in told
        and "some.log" in told
    )


def test_flags_go_to_the_scripts_that_have_them(parsed):
    runner, parse = parsed
    flags = [
        "--learning-rate",
        "1e-4",
        "--checkpoint",
        "owner/name",
        "--human-judgements",
        "folder",
        "--batch-size",
        "4",
    ]
    args = parse(*flags, "--dataset", "owner/news", "--device", "cpu")
    given = {number: " ".join(runner.arguments_of(args, number)) for number in range(1, 6)}
    assert all("--batch-size 4" in text and "--device cpu" in text for text in given.values())
    assert [number for number, text in given.items() if "--learning-rate 0.0001" in text] == [1]
    assert [number for number, text in given.items() if "--checkpoint owner/name" in text] == [2, 3]
    assert [number for number, text in given.items() if "--human-judgements folder" in text] == [4]
    # Script 5 would print texts for it, and the runner keeps what a script prints.
    assert [number for number, text in given.items() if "--dataset owner/news" in text] == [
        1,
        2,
        3,
        4,
    ]
    for number, name in enumerate(NAMES, 1):
        help_text = subprocess.run(
            [sys.executable, f"src/{name}.py", "--help"], cwd=ROOT, capture_output=True, text=True
        ).stdout
        assert all(
            word in help_text for word in runner.arguments_of(args, number) if word.startswith("--")
        )


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_script_in_order(tmp_path, what):
    # Tests started in the background ignore SIGINT and would hand that on; a user's terminal does
    # not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    runner = subprocess.Popen(
        command(tmp_path, "--preset", "demo"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    log, deadline = tmp_path / "results" / "logs" / f"{NAMES[0]}.log", time.monotonic() + 60
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline and runner.poll() is None
        time.sleep(0.02)
    runner.send_signal(what)
    _, errors = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert "interrupted" in errors and "Traceback" not in errors + log.read_text(encoding="utf-8")
    assert (
        not list((tmp_path / "results").rglob("run_all_*"))
        and not (tmp_path / "results" / "records" / "baseline.json").exists()
    )


def test_paper_on_a_cpu_says_the_cost_and_what_to_type(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    fixed = ["--models-dir", str(tmp_path / "models"), "--results-dir", str(tmp_path / "results")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_all_experiments.py"), *fixed],
        capture_output=True, text=True, timeout=60, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2 and "[1/5]" not in done.stdout
    # 6 x 85 million x 114,000 rows x 3 epochs x 52 tokens = 9.1e15 operations, at 5e10 a core and
    # second.
    hours = 9.06e15 / (5e10 * os.cpu_count()) / 3600
    assert f"about {hours:.1f} hours" in done.stderr
    assert (
        "python run_all_experiments.py --preset demo" in done.stderr
        and "--device cpu" in done.stderr
    )
    told = run(
        tmp_path, "--only", "1", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hub")
    )
    assert (
        "note: no CUDA device is used" in told.stdout and told.returncode == 2
    )  # the hub is out of reach
