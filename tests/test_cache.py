"""Receipts: a step is complete only while flags, inputs and outputs are what they were."""

import pytest

from gpt2_quant.cache import LARGE_BYTES, Step
from gpt2_quant.records import save_record


@pytest.fixture
def finished(tmp_path):
    source, output = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(b"1" * (LARGE_BYTES + 1))
    output.write_bytes(b"2")
    Step(tmp_path, "step", {"epochs": 3, "overwrite": False}, [source]).finish([output])
    return tmp_path, source, output


def test_complete_for_the_same_name_flags_and_inputs(finished):
    folder, source, _ = finished
    assert Step(folder, "step", {"epochs": 3}, [source]).complete()
    assert not Step(folder, "step", {"epochs": 3}).complete()
    assert not Step(folder, "step", {"epochs": 4}, [source]).complete()
    assert not Step(folder, "other", {"epochs": 3}, [source]).complete()


def test_overwrite_makes_it_incomplete_and_only_a_complete_step_says_so(finished, capsys):
    folder, source, _ = finished
    assert not Step(folder, "step", {"overwrite": True, "epochs": 3}, [source]).complete()
    assert capsys.readouterr().out == ""
    assert Step(folder, "step", {"overwrite": False, "epochs": 3}, [source]).complete()
    assert capsys.readouterr().out.startswith("Complete for these flags: ")


def test_new_timings_leave_a_step_that_made_the_record_and_not_one_that_read_it(tmp_path):
    path = save_record(tmp_path, "row", {"metrics": {"accuracy": 0.9}, "latency": [1]})
    Step(tmp_path, "makes", {}).finish([path])
    Step(tmp_path, "reads", {}, [path]).finish([])
    save_record(tmp_path, "row", {"metrics": {"accuracy": 0.9}, "latency": [2]})
    assert Step(tmp_path, "makes", {}).complete()
    assert not Step(tmp_path, "reads", {}, [path]).complete()
    save_record(tmp_path, "row", {"metrics": {"accuracy": 0.8}, "latency": [2]})
    assert not Step(tmp_path, "makes", {}).complete()


@pytest.mark.parametrize(
    "fault", ["output gone", "output changed", "input changed", "receipt damaged"]
)
def test_any_change_makes_it_incomplete(finished, fault):
    folder, source, output = finished
    if fault == "output gone":
        output.unlink()
    elif fault == "output changed":
        output.write_bytes(b"3")
    elif fault == "input changed":
        source.write_bytes(b"9" * (LARGE_BYTES + 1))
    else:
        (folder / "records" / "steps" / "step.json").write_text("{")
    assert not Step(folder, "step", {"epochs": 3}, [source]).complete()


def test_finishing_without_an_output_is_a_fault(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.bin"):
        Step(tmp_path, "step", {}).finish([tmp_path / "gone.bin"])
