"""TF32 holds during a model's calls and at no other time; rows that a device lacks."""

import pytest
import torch

from gpt2_quant.inference import engine
from gpt2_quant.models import loading, tf32
from gpt2_quant.models.variants import BASELINE, FP16, TF32


@pytest.fixture
def precisions(tiny_gpt2):
    """A model in TF32, and the settings that its calls have found."""
    seen = []
    tiny_gpt2.score.register_forward_hook(
        lambda *call: seen.append(torch.get_float32_matmul_precision())
    )
    tf32.compute_in_tf32(tiny_gpt2)
    return tiny_gpt2, seen


def test_the_setting_ends_with_the_call(precisions):
    model, seen = precisions
    ids = torch.ones(2, 8, dtype=torch.int64)
    model(input_ids=ids)
    with pytest.raises(ValueError):
        model(input_ids=None)
    tf32.as_computed_in(model, lambda: model.score(torch.ones(1, 64)))()
    assert seen == ["high", "high"] and torch.get_float32_matmul_precision() == "highest"


def test_other_models_are_left_alone(tiny_gpt2):
    function = object()
    assert tf32.as_computed_in(tiny_gpt2, function) is function


@pytest.mark.parametrize(
    ("variant", "device", "capability", "half", "row"),
    [
        (FP16, "cpu", None, False, False), (FP16, "cpu", None, True, True),
        (TF32, "cpu", None, True, False), (TF32, "cuda", (7, 5), True, False),
        (TF32, "cuda", (8, 0), True, True), (BASELINE, "cpu", None, False, True),
    ],
)  # fmt: skip
def test_a_row_stands_where_the_device_has_its_arithmetic(
    monkeypatch, variant, device, capability, half, row
):
    monkeypatch.setattr(loading, "has_half_arithmetic", lambda device: half)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    assert (loading.unavailable(variant, device) == "") is row


@pytest.mark.gpu
def test_tensor_cores_round_and_graphs_keep_it(tiny_gpt2):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    model, ids = tiny_gpt2.to("cuda"), torch.randint(0, 900, (16, 64), device="cuda")
    with torch.inference_mode():
        exact = model(input_ids=ids).logits
        tf32.compute_in_tf32(model)
        rounded, graphed = model(input_ids=ids).logits, engine.best_mode(model, "cuda")(ids)
    for logits in (rounded, graphed):
        # 2^-11 a product, against 2^-24.
        assert 1e-5 < (logits - exact).abs().max() / exact.abs().max() < 1e-2
    assert torch.get_float32_matmul_precision() == "highest"
