"""The runner with the five scripts replaced by stubs that leave the same files: order, resuming, flags, failure, Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = [path.stem for path in sorted((ROOT / "src").glob("[1-5]_*.py"))]

STUB = '''
import sys, time
from pathlib import Path
sys.path.append(str(Path(__file__).parents[1]))
from run_all_experiments import STAGES
from gpt2_quant import settings as common

stage = next(stage for stage in STAGES if stage.name == Path(__file__).stem)
parser = common.parser("stub")
flags = {1: ["--epochs", "--learning-rate"], 2: ["--checkpoint"], 3: ["--checkpoint"], 4: ["--human-judgements"]}
for flag in flags.get(stage.number, []):
    parser.add_argument(flag)
if stage.number == 2:
    parser.add_argument("--skip-timing", action="store_true")

def main():
    args = parser.parse_args()
    here = Path(__file__).parents[1]
    (here / f"started_{stage.number}").write_text(" ".join(sys.argv[1:]))
    print("stub", stage.number, "at work", flush=True)
    if (here / f"fault_{stage.number}").exists():
        code = (here / f"fault_{stage.number}").read_text()
        if code == "2":
            raise common.UserError("the stub was told to")
        raise RuntimeError("the stub was told to")
    try:
        while (here / f"hang_{stage.number}").exists():
            time.sleep(0.02)
    except KeyboardInterrupt:
        (here / "tidied").touch()
        raise
    for path in (args.results_dir / name for name in stage.makes):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    weights = args.models_dir / "baseline_gpt2" / "model.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    if stage.number == 1:
        weights.write_text(str(args.epochs))

common.run(main)
'''


@pytest.fixture
def house(tmp_path) -> Path:
    """A copy of the runner beside the real library and five stubs."""
    shutil.copy(ROOT / "run_all_experiments.py", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "gpt2_quant").symlink_to(ROOT / "src" / "gpt2_quant")
    for name in NAMES:
        (tmp_path / "src" / f"{name}.py").write_text(STUB)
    return tmp_path


def command(house: Path, *flags: str) -> list[str]:
    fixed = ["--device", "cpu", "--models-dir", str(house / "models"), "--results-dir", str(house / "results")]
    return [sys.executable, str(house / "run_all_experiments.py"), *fixed, *flags]


def run(house: Path, *flags: str) -> subprocess.CompletedProcess:
    """Run, and forget which stubs had been started before."""
    for mark in house.glob("started_*"):
        mark.unlink()
    return subprocess.run(command(house, *flags), capture_output=True, text=True, timeout=60)


def started(house: Path) -> list[int]:
    """Numbers of the stubs that ran, in the order in which they started."""
    marks = sorted(house.glob("started_*"), key=lambda path: path.stat().st_mtime_ns)
    return [int(mark.name[-1]) for mark in marks]


def test_there_are_five_scripts_and_the_runner_names_them():
    source = (ROOT / "run_all_experiments.py").read_text(encoding="utf-8")
    assert len(NAMES) == 5 and all(f'"{name}"' in source for name in NAMES)


def test_runs_all_in_order_keeps_logs_and_a_second_run_only_says_so(house):
    done = run(house)
    assert done.returncode == 0, done.stderr
    assert started(house) == [1, 2, 3, 4, 5]
    for number, name in enumerate(NAMES, 1):
        assert (house / "results" / "logs" / f"{name}.log").read_text() == f"stub {number} at work\n"
        assert f"stub {number} at work" in done.stdout and f"[{number}/5] {name}: done in" in done.stdout
    assert "all" in done.stdout.splitlines()[-2]

    begun = time.perf_counter()
    again = run(house)
    assert again.returncode == 0 and started(house) == []
    assert again.stdout.count("already complete for these flags") == 5
    assert time.perf_counter() - begun < 10


def test_what_changed_is_redone_and_what_depends_on_it(house):
    assert run(house).returncode == 0
    (house / "results" / "training_curve.png").unlink()
    run(house)
    assert started(house) == [1, 5]
    (house / "results" / "records" / "int8_scratch.json").write_text('{"metrics": 1}')
    run(house)
    assert started(house) == [2, 5]
    run(house, "--epochs", "2")  # other weights from script 1 make 2 and 3 stale, too
    assert started(house) == [1, 2, 3, 5]
    run(house, "--epochs", "2", "--overwrite")
    assert started(house) == [1, 2, 3, 4, 5]


def test_only_and_from(house):
    run(house, "--only", "1", "3")
    assert started(house) == [1, 3]
    run(house, "--from", "2")
    assert started(house) == [2, 4, 5]
    assert run(house, "--only", "6").returncode == 2
    assert run(house, "--only", "1", "--from", "2").returncode == 2


def test_flags_go_to_the_scripts_that_have_them(house):
    flags = ["--learning-rate", "1e-4", "--checkpoint", "owner/name", "--human-judgements", "folder", "--batch-size", "4"]
    flags += ["--dataset", "owner/news"]
    assert run(house, *flags).returncode == 0
    given = {number: (house / f"started_{number}").read_text() for number in range(1, 6)}
    assert all("--batch-size 4" in text and "--device cpu" in text for text in given.values())
    assert [number for number, text in given.items() if "--learning-rate 0.0001" in text] == [1]
    assert [number for number, text in given.items() if "--checkpoint owner/name" in text] == [2, 3]
    assert [number for number, text in given.items() if "--human-judgements folder" in text] == [4]
    # Script 5 would print texts for it, and the runner keeps what a script prints.
    assert [number for number, text in given.items() if "--dataset owner/news" in text] == [1, 2, 3, 4]


@pytest.mark.parametrize("code", [1, 2])
def test_a_failing_step_stops_the_run_and_is_named(house, code):
    (house / "fault_3").write_text(str(code))
    done = run(house)
    log = house / "results" / "logs" / "3_bitsandbytes_quant.log"
    assert done.returncode == code and started(house) == [1, 2, 3]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: step 3 (3_bitsandbytes_quant)") and f"exit code {code}" in last and str(log) in last
    assert ("Traceback" in log.read_text()) == (code == 1)
    (house / "fault_3").unlink()
    assert run(house).returncode == 0 and started(house) == [3, 4, 5]


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_child_in_order(house, what):
    (house / "hang_2").touch()
    # Tests started in the background ignore SIGINT and would hand that on; a user's terminal does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    runner = subprocess.Popen(command(house), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 30
    while not (house / "started_2").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)  # past the mark, into the wait
    runner.send_signal(what)
    _, errors = runner.communicate(timeout=30)
    assert runner.returncode == 130
    assert "interrupted" in errors and "Traceback" not in errors
    assert (house / "tidied").exists() and not (house / "started_3").exists()
    assert not list((house / "results" / "records" / "steps").glob("run_all_2*"))


def test_paper_on_a_cpu_says_the_cost_and_what_to_type(house):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    fixed = ["--models-dir", str(house / "models"), "--results-dir", str(house / "results")]
    done = subprocess.run(
        [sys.executable, str(house / "run_all_experiments.py"), *fixed],
        capture_output=True, text=True, timeout=60, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2 and started(house) == []
    # 6 x 85 million x 114,000 rows x 3 epochs x 52 tokens = 9.1e15 operations, at 5e10 a core and second.
    hours = 9.06e15 / (5e10 * os.cpu_count()) / 3600
    assert f"about {hours:.1f} hours" in done.stderr
    assert "python run_all_experiments.py --preset demo" in done.stderr and "--device cpu" in done.stderr
    told = run(house, "--only", "1")
    assert told.returncode == 0 and "note: no CUDA device is used" in told.stdout


@pytest.mark.slow
def test_the_demo_ends_in_five_minutes_with_every_file(tmp_path):
    flags = ["--preset", "demo", "--models-dir", str(tmp_path / "models"), "--results-dir", str(tmp_path / "results")]
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / "run_all_experiments.py"), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.perf_counter() - begun < 300
    results = tmp_path / "results"
    for key in ("baseline", "int8_scratch", "int8_bitsandbytes", "nf4_bitsandbytes"):
        assert (results / f"{key}_confusion_matrix.png").stat().st_size > 5_000
    for name in ("performance_comparison.png", "efficiency_comparison.png", "report_1.pdf", "report_2.pdf"):
        assert (results / name).stat().st_size > 5_000
    header = (results / "comparison_table.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.startswith("Model,Accuracy,F1-Score,Size (MB),Inference (ms),Compression")
    accuracy = float((results / "comparison_table.csv").read_text(encoding="utf-8").splitlines()[1].split(",")[1])
    assert 0.90 <= accuracy <= 0.97
