"""best_mode: the model's own logits, whatever the batch, the length and the side of the padding;
plain words where it cannot.
"""

import pytest
import torch
from tiny_models import make_tiny_gpt2

from gpt2_quant.inference import engine
from gpt2_quant.inference.gpt2 import is_right_padded
from gpt2_quant.inference.graphs import bucket
from gpt2_quant.quantization import layers
from gpt2_quant.quantization.quantizer import quantize_model

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
SHAPES = [(3, 21), (1, 5), (4, 64)]


def batch(model, texts, length, padding, device):
    """Random tokens, each text a token shorter than the one before, padded on the given side."""
    generator = torch.Generator().manual_seed(texts)
    ids = torch.randint(1, model.config.vocab_size, (texts, length), generator=generator)
    mask = (torch.arange(length) < torch.arange(length, length - texts, -1)[:, None]).long()
    if padding == "left":
        mask = mask.flip(1)
    return ids.masked_fill(mask == 0, model.config.pad_token_id).to(device), mask.to(device)


def assert_same_logits(run, model, shapes, device, tolerance):
    for texts, length in shapes:
        for padding in ("right", "left"):
            ids, mask = batch(model, texts, length, padding, device)
            with torch.inference_mode():
                expected = model(input_ids=ids, attention_mask=mask).logits.float()
            got = run(ids, mask)
            assert got.dtype == torch.float32 and got.shape == expected.shape
            error = (got - expected).abs().max()
            assert error <= tolerance * expected.abs().max(), (texts, length, padding)


@pytest.fixture
def uncompiled(monkeypatch):
    """The code that torch.compile would get, run as it is: milliseconds instead of a minute."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


# A last-bit difference before a rounding to codes moves single codes by one step: W8A8 repeats
# itself to 2%, FP8 with its coarser steps to 5%, not to 1e-4.
TOLERANCE = {
    "int8_scratch_w8a8": 0.02, "fp8_scratch": 0.05, "nf4_scratch": 1e-4, "int8_scratch": 1e-4,
    None: 1e-4,
}  # fmt: skip


@pytest.mark.parametrize("scheme", TOLERANCE)
def test_best_mode_on_the_cpu(tiny_gpt2, uncompiled, scheme):
    model = quantize_model(tiny_gpt2, scheme) if scheme else tiny_gpt2
    assert_same_logits(engine.best_mode(model, "cpu"), model, SHAPES, "cpu", TOLERANCE[scheme])


def test_heads_of_32_which_attention_in_cpp_takes(tiny_tokenizer, uncompiled):
    model = quantize_model(make_tiny_gpt2(tiny_tokenizer, heads=2), "int8_scratch_w8a8")
    assert_same_logits(engine.best_mode(model, "cpu"), model, SHAPES, "cpu", 0.02)


def test_without_a_mask_nothing_is_padded(tiny_gpt2, uncompiled):
    model = quantize_model(tiny_gpt2, "int8_scratch_w8a8")
    ids, mask = batch(model, 2, 9, "right", "cpu")
    run = engine.best_mode(model, "cpu")
    assert torch.equal(run(ids, None), run(ids, mask))


@pytest.mark.slow
def test_compiled_on_the_cpu(tiny_gpt2):
    model = quantize_model(tiny_gpt2, "int8_scratch_w8a8")
    assert_same_logits(engine.best_mode(model, "cpu"), model, SHAPES, "cpu", 0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", TOLERANCE)
def test_best_mode_on_a_gpu(tiny_gpt2, scheme):
    model = tiny_gpt2.half()
    model = (quantize_model(model, scheme) if scheme else model).to("cuda")
    run = engine.best_mode(model, "cuda")
    # Twice, larger before smaller: a captured bucket must not keep anything of the call before.
    shapes = [(4, 64), (3, 60), *SHAPES, (300, 17)]
    assert_same_logits(run, model, shapes, "cuda", max(0.03, TOLERANCE[scheme]))


def test_no_compiler_is_said_once_and_costs_only_speed(tiny_gpt2, monkeypatch):
    monkeypatch.setattr(engine, "compiler", lambda: None)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler was found"):
        run = engine.best_mode(tiny_gpt2, "cpu")
    assert_same_logits(run, tiny_gpt2, SHAPES[:1], "cpu", 0)


@pytest.mark.parametrize(
    "found, capability, words",
    [(None, (9, 0), "Triton is not installed"), ("spec", (7, 5), "older than Ampere")],
)
def test_a_gpu_that_cannot_is_named(tiny_gpt2, monkeypatch, found, capability, words):
    monkeypatch.setattr(layers, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.warns(UserWarning, match=words):
        run = engine.best_mode(tiny_gpt2, "cuda")
    assert_same_logits(run, tiny_gpt2, SHAPES[:1], "cpu", 0)


def test_buckets_hold_what_they_serve_and_are_few():
    shapes = [(texts, length) for texts in range(1, 257) for length in range(1, 1025)]
    buckets = {shape: bucket(*shape, longest=1024) for shape in shapes}
    assert all(held[0] >= shape[0] and held[1] >= shape[1] for shape, held in buckets.items())
    assert len(set(buckets.values())) == 9 * (8 + 3)
    assert bucket(16, 128, 1024) == (16, 128) and bucket(17, 129, 200) == (32, 200)


def test_is_right_padded():
    assert is_right_padded(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]))
    assert not is_right_padded(torch.tensor([[1, 1, 0], [0, 1, 1]]))
