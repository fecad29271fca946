"""verify_setup.py as a user runs it, and each kind of fault it should find."""

import importlib.metadata
import json
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def verify(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import verify_setup

    return verify_setup


def test_demo_is_ready_where_these_tests_run(run_script):
    done = run_script(
        "verify_setup.py", "--preset", "demo", "--json", HF_ENDPOINT="http://127.0.0.1:9"
    )
    report = json.loads(done.stdout)
    faults = [line for line in report["checks"] if line["status"] == "FAIL"]
    assert (done.returncode, report["failed"], faults) == (0, 0, [])
    checks = {line["check"]: line for line in report["checks"]}
    promised = "python,torch,bitsandbytes,CUDA,bitsandbytes round trip,Typst compile,disk,memory"
    assert set(promised.split(",")) <= set(checks)
    assert checks["openai-community/gpt2"]["status"] == "SKIP"
    assert checks["all-MiniLM-L6-v2"]["status"] == "OK"


def test_paper_without_hub_fails_with_a_mend_on_the_line(run_script):
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent"}
    done = run_script("verify_setup.py", **away, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    for name in ("openai-community/gpt2", "CUDA"):
        assert any(name in line for line in failed)
    assert all("  ->  " in line for line in failed)
    assert "checks failed" in done.stdout


def test_every_pin_is_checked(verify):
    names = [name for name, _ in verify.pins(ROOT / "requirements.txt")]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line.strip() and not line.startswith(("#", "-e"))]
    assert len(names) == len(pinned) > 20
    for name, pin in verify.pins(ROOT / "requirements.txt"):
        assert importlib.metadata.version(name).split("+")[0] == pin


def test_missing_and_other_versions(verify):
    missing = verify.outcome("x", lambda: verify.requirement("no-such-package-anywhere", "1.0"))
    assert (missing.status, missing.fix) == ("FAIL", "pip install -r requirements.txt")
    other = verify.outcome("numpy", lambda: verify.requirement("numpy", "0.1"))
    assert (other.status, other.fix) == ("FAIL", "pip install numpy==0.1")
    assert "pinned is 0.1" in other.detail


def test_a_broken_library_is_a_finding(verify):
    def broken():
        raise OSError("libsomething.so: cannot open shared object file\nmore lines")

    line = verify.outcome("x", broken)
    assert line.status == "FAIL" and line.fix
    assert "libsomething.so" in line.detail and "more lines" not in line.detail


def test_too_little_disk_or_memory(verify):
    for check in (verify.disk, verify.memory):
        assert verify.outcome("x", lambda check=check: check(1e9)).status == "FAIL"
        assert verify.outcome("x", lambda check=check: check(0)).status == "OK"


def test_old_python(verify, monkeypatch):
    assert verify.outcome("python", verify.python).status == "OK"
    monkeypatch.setattr(verify, "PYTHON", ((4, 0), (4, 1)))
    line = verify.outcome("python", verify.python)
    assert line.status == "FAIL" and sys.version.split()[0] in line.detail


def test_bitsandbytes_that_rounds_wrongly_is_found(verify, monkeypatch):
    from bitsandbytes import functional

    assert verify.outcome("x", verify.bitsandbytes).status == "OK"
    right = functional.dequantize_4bit
    monkeypatch.setattr(functional, "dequantize_4bit", lambda *arguments: right(*arguments) * 2)
    assert verify.outcome("x", verify.bitsandbytes).status == "FAIL"


def test_hub_item_in_the_cache(verify, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    check = partial(verify.hub_item, "model", "owner/name", "a" * 40)
    line = verify.outcome("x", check)
    assert line.status == "FAIL" and "--base-model" in line.fix
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    assert verify.outcome("x", check).status == "OK"
