"""ONNX files of a tiny classifier: the same logits as torch, from what the checkpoint stores."""

import copy
from collections import Counter

import pytest
import torch
from safetensors.numpy import load_file
from tiny_models import make_tiny_gpt2

from gpt2_quant.errors import UserError
from gpt2_quant.models import onnx_export
from gpt2_quant.models.variants import BASELINE, FP8, INT8, NF4, ONNX, W8A8, made_by
from gpt2_quant.quantization.quantizer import quantize_model

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.e2e
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def batches(tiny_tokenizer, tiny_texts) -> list[tuple]:
    """Of 5, 1 and 9 texts, each padded to its longest."""

    def batch(rows: slice) -> tuple:
        texts = tiny_tokenizer(tiny_texts[0][rows], padding=True, return_tensors="pt")
        return texts["input_ids"], texts["attention_mask"]

    return [batch(slice(5)), batch(slice(20, 21)), batch(slice(30, 39))]


@pytest.fixture(scope="module", params=ONNX)
def exported(request, tiny_tokenizer, batches, tmp_path_factory):
    """(key, model, its checkpoint's folder, the record's facts); the file lies in onnx/ below."""
    key, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = make_tiny_gpt2(tiny_tokenizer)
    if key != BASELINE.key:
        model = quantize_model(model, key)
    model.save_pretrained(folder)
    return key, model, folder, onnx_export.write(model, folder, folder / "onnx", *batches[0])


def logits(model, ids, mask) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits


def test_logits_are_torchs_at_every_batch_and_length(exported, batches):
    key, model, folder, facts = exported
    function = onnx_export.load(folder / "onnx")
    assert facts["onnx"]["largest_logit_difference"] <= facts["onnx"]["bound"]
    assert facts["onnx"]["n"] == 5
    # Logits are below 1, and their last bit is 2**-24; eight roundings of W8A8's activations.
    assert facts["onnx"]["bound"] < (0.02 if key == W8A8.key else 1e-5)
    for batch in batches:
        found, expected = function(*batch), logits(model, *batch)
        assert found.shape == expected.shape and found.dtype == torch.float32
        assert (found - expected).abs().max() < (1e-3 if key == W8A8.key else 2e-6)


def test_the_file_holds_what_the_checkpoint_holds(exported):
    key, _, folder, facts = exported
    (path,) = (folder / "onnx").iterdir()
    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = load_file(folder / "model.safetensors")
    found = sum(array.nbytes for array in arrays.values())
    tables = onnx_export.TABLES if key == NF4.key else 0
    assert found == sum(array.nbytes for array in stored.values()) + tables
    size = facts["size"]["stored"]
    assert found == size["tensor_bytes"] == sum(size["parts"].values())
    assert path.stat().st_size == facts["size"]["file_bytes"] == found + size["header_bytes"]
    assert size["header_bytes"] < 120_000
    if key != BASELINE.key:  # the head of W8A8 and NF4 is a float, and NF4's bytes of two levels
        floats = [x for x in arrays.values() if x.dtype.kind == "f" and x.ndim == 2]
        assert all(x.shape in ((4, 64), (256, 2)) for x in floats)
    text = path.read_bytes()
    assert b".py" not in text and b"stack_trace" not in text  # nothing of this machine


def test_codes_go_out_as_dequantize_nodes(exported):
    key, model, folder, _ = exported
    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    nodes = Counter(node.op_type for node in graph.node)
    matrices, parameters = 4 * 2, len([*model.parameters()])
    # W8A8's and NF4's tables are looked up first; NF4's positions are int8, all else no even steps.
    expected = {BASELINE.key: 0, INT8.key: parameters, W8A8.key: matrices + 2, NF4.key: 1}[key]
    assert nodes["DequantizeLinear"] == expected
    assert nodes["Round"] == (matrices if key == W8A8.key else 0)  # the activations' codes


def test_fp8_is_refused_not_written_as_floats(tiny_gpt2, batches, tmp_path):
    assert [v for v in (BASELINE, *made_by(2)) if v.key not in ONNX] == [FP8]
    model = quantize_model(tiny_gpt2, FP8.key)
    model.save_pretrained(tmp_path)
    with pytest.raises(torch.onnx.errors.OnnxExporterError):
        onnx_export.write(model, tmp_path, tmp_path / "onnx", *batches[0])
    assert not (tmp_path / "onnx").exists()


def test_other_logits_are_refused_and_leave_no_file(tiny_gpt2, batches, tmp_path, monkeypatch):
    tiny_gpt2.save_pretrained(tmp_path)
    other = copy.deepcopy(tiny_gpt2)
    other.transformer.h[1].mlp.c_fc.bias.data[3] += 1e-3
    check = onnx_export._check
    monkeypatch.setattr(onnx_export, "_check", lambda model, *rest: check(other, *rest))
    with pytest.raises(UserError, match="more than the .* of rounding"):
        onnx_export.write(tiny_gpt2, tmp_path, tmp_path / "onnx", *batches[0])
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_floats_in_place_of_codes_are_refused(tiny_gpt2, batches, tmp_path):
    model = quantize_model(tiny_gpt2, INT8.key)
    model.save_pretrained(tmp_path)
    del model.int8_scales  # the model is one of floats
    with pytest.raises(UserError, match="would hold floats"):
        onnx_export.write(model, tmp_path, tmp_path / "onnx", *batches[0])
    assert not (tmp_path / "onnx").exists()
