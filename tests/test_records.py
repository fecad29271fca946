"""Records: what is written is whole or absent, and says where it came from."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from tiny_models import ROOT

from gpt2_quant import records
from gpt2_quant.errors import UserError


def test_atomic_file_replaces_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "deep" / "value.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), records.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(path.parent) == ["value.json"]


def test_atomic_folder_replaces_the_old_one_whole(tmp_path):
    folder = tmp_path / "model"
    for name in ("old", "new"):
        with records.atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(folder) == ["new"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    records.write_json(path, {"a": 1})
    code = (
        "import pathlib, time\n"
        "from gpt2_quant.records import atomic_path\n"
        f"with atomic_path(pathlib.Path({str(path)!r})) as temporary:\n"
        "    temporary.write_text('half'); print('in', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "in\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert json.loads(path.read_text()) == {"a": 1}


def test_json_takes_numpy_and_turns_nan_to_null(tmp_path):
    path = tmp_path / "value.json"
    values = [np.arange(3), np.float32(0.5), float("nan"), np.inf, tmp_path]
    records.write_json(path, dict(enumerate(values)))
    expected = {"0": [0, 1, 2], "1": 0.5, "2": None, "3": None, "4": str(tmp_path)}
    assert json.loads(path.read_text()) == expected


def test_records_of_variants_only_and_newer_schema_refused(tmp_path):
    records.save_record(tmp_path, "baseline", {"variant": {"label": "x"}})
    records.save_record(tmp_path, "text_metrics", {"scores": []})
    assert set(records.load_records(tmp_path)) == {"baseline"}
    newer = tmp_path / "records" / "baseline.json"
    newer.write_text(json.dumps({"schema_version": records.SCHEMA_VERSION + 1, "variant": {}}))
    with pytest.raises(UserError, match="schema version 2"):
        records.load_records(tmp_path)
    newer.write_text("{")
    with pytest.raises(UserError, match="not a record"):
        records.load_records(tmp_path)


def test_provenance_names_code_versions_device_and_the_time_in_utc():
    before = datetime.now(UTC).replace(microsecond=0)
    facts = records.provenance("cpu", 5)
    assert before <= datetime.fromisoformat(facts["time_utc"]) <= datetime.now(UTC)
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert facts["git_commit"] == (head or None)
    assert facts["seed"] == 5 and facts["packages"]["torch"] and "cores" in facts["device"]
