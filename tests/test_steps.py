"""Receipts: a step is complete only while flags, inputs and outputs are what they were."""

import pytest

from gpt2_quant.cache import LARGE_BYTES, Step


@pytest.fixture
def finished(tmp_path):
    source, output = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(b"1" * (LARGE_BYTES + 1))
    output.write_bytes(b"2")
    Step(tmp_path, "step", {"epochs": 3, "overwrite": False}, [source]).finish([output])
    return tmp_path, source, output


def test_complete_for_the_same_flags_whatever_overwrite_says(finished):
    folder, source, _ = finished
    assert Step(folder, "step", {"overwrite": True, "epochs": 3}, [source]).complete()
    assert not Step(folder, "step", {"epochs": 4}, [source]).complete()
    assert not Step(folder, "other", {"epochs": 3}, [source]).complete()


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
