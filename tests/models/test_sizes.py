"""Sizes of every variant: what the arithmetic of its layout says, what the tensors sum to, what
lies in the file.

`expected` writes each layout down once, from the shape alone. The tests hold three independent
counts against it: the loaded model's tensors, the file's own header, and `stored_size`. At GPT-2's
shape the same arithmetic gives the published sizes, which a slow test also measures on a real 124M
model.
"""

import json
import struct
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from gpt2_quant.models import loading as checkpoints
from gpt2_quant.models.sizes import file_bytes, resident_bytes, size_in_parts, stored_size
from gpt2_quant.models.variants import BASELINE, VARIANTS

MIB = 2**20
BITSANDBYTES = ("int8_bitsandbytes", "nf4_bitsandbytes")
SCRATCH = ("int8_scratch", "int8_scratch_w8a8", "fp8_scratch", "nf4_scratch")
OF_GPT2 = [key for key, variant in VARIANTS.items() if not variant.outside_torch]
PARTS = ("linear", "embeddings", "norms_biases", "head", "quantization_state")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def expected(
    key: str, width: int, layers: int, vocabulary: int, positions: int, rest: int
) -> dict[str, int]:
    """Bytes by part of a variant as it is held, from GPT-2's shape; `rest` is the bytes of a float
    that is not quantized.
    """
    matrices = [
        (width, 3 * width),
        (width, width),
        (width, 4 * width),
        (4 * width, width),
    ] * layers  # in, out
    weights = sum(n * m for n, m in matrices)
    outputs = sum(m for _, m in matrices)
    tables = [vocabulary * width, positions * width]
    norms_biases = outputs + (4 * layers + 2) * width
    tensors = 2 * len(matrices) + 2 + (4 * layers + 2) + 1

    def nf4_state(numel: int) -> int:
        """A byte a block of 64, a float32 a 256 of these, and the float32 mean that was taken off
        them.
        """
        blocks = ceil_div(numel, 64)
        return blocks + 4 * ceil_div(blocks, 256) + 4

    full = {
        "linear": weights,
        "embeddings": sum(tables),
        "norms_biases": norms_biases,
        "head": 4 * width,
    }
    if key == "int8_scratch" or VARIANTS[key].folder == BASELINE.folder:
        # int8_scratch is float again once loaded, but keeps a float32 scale and an int8 zero-point
        # for each tensor.
        return {k: v * rest for k, v in full.items()} | {
            "quantization_state": 5 * tensors if key == "int8_scratch" else 0
        }
    sizes = {k: v * rest for k, v in full.items()}
    if key in (
        "int8_scratch_w8a8",
        "fp8_scratch",
    ):  # a float32 scale an output channel and a table row
        return sizes | {
            "linear": weights,
            "embeddings": sum(tables),
            "quantization_state": 4 * (outputs + vocabulary + positions),
        }
    if key == "nf4_scratch":  # positions stay int8, with a float32 a row
        return sizes | {
            "linear": weights // 2,
            "embeddings": tables[0] // 2 + tables[1],
            "quantization_state": sum(nf4_state(n * m) for n, m in matrices)
            + nf4_state(tables[0])
            + 4 * positions,
        }
    if key == "int8_bitsandbytes":
        return sizes | {"linear": weights, "quantization_state": 4 * outputs}
    # bitsandbytes keeps the 16 levels of NF4 and the 256 of its 8-bit scales with every layer, as
    # float32.
    state = sum(nf4_state(n * m) + 4 * (16 + 256) for n, m in matrices)
    return sizes | {"linear": weights // 2, "quantization_state": state}


@pytest.fixture(scope="module")
def variants(tiny_tokenizer, tmp_path_factory):
    """A models folder with all variants of one tiny classifier, and its shape."""
    from tiny_models import make_tiny_gpt2, save_variant

    models_dir = tmp_path_factory.mktemp("models")
    model = make_tiny_gpt2(tiny_tokenizer)
    baseline = models_dir / "baseline_gpt2"
    model.save_pretrained(baseline)
    tiny_tokenizer.save_pretrained(baseline)
    for key in (*SCRATCH, *BITSANDBYTES):
        save_variant(key, models_dir, tiny_tokenizer)
    config = model.config
    shape = {
        "width": config.n_embd,
        "layers": config.n_layer,
        "vocabulary": config.vocab_size,
        "positions": config.n_positions,
    }
    return SimpleNamespace(models_dir=models_dir, shape=shape)


def file_tensors(folder) -> tuple[dict[str, int], int]:
    """Bytes of each tensor by the file's header, as dtype width times shape, and the bytes of the
    whole file.
    """
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    width = {"F32": 4, "F16": 2, "I8": 1, "U8": 1}
    sizes = {
        name: width[entry["dtype"]] * torch.Size(entry["shape"]).numel()
        for name, entry in header.items()
    }
    assert 8 + length + sum(sizes.values()) == len(data)
    return sizes, len(data)


@pytest.mark.parametrize("key", OF_GPT2)
def test_held_bytes_are_the_layouts(variants, key):
    model = checkpoints.load_variant(key, variants.models_dir, "cpu")
    rest = model.transformer.ln_f.weight.element_size()
    parts = size_in_parts(model)
    assert parts == expected(key, **variants.shape, rest=rest)
    assert resident_bytes(model) == sum(parts.values())


def test_int8_held_bytes_survive_the_first_forward(variants):
    """LLM.int8() moves its row scales in it; a count that follows them finds the same bytes."""
    model = checkpoints.load_variant("int8_bitsandbytes", variants.models_dir, "cpu")
    before = size_in_parts(model)
    with torch.inference_mode():
        model(input_ids=torch.arange(8)[None])
    assert size_in_parts(model) == before


@pytest.mark.parametrize("key", OF_GPT2)
def test_file_is_the_sum_of_its_tensors(variants, key):
    folder = variants.models_dir / VARIANTS[key].folder
    sizes, whole_file = file_tensors(folder)
    stored = stored_size(folder)
    assert stored["tensor_bytes"] == sum(stored["parts"].values()) == sum(sizes.values())
    assert stored["tensor_bytes"] + stored["header_bytes"] == whole_file == file_bytes(folder)


def test_files_hold_what_the_layouts_say_and_nothing_else(variants):
    """The file against the layout, difference by difference; bitsandbytes' floats lie there in
    float16.
    """
    matrices = 4 * variants.shape["layers"]
    tensors = 2 * matrices + 2 + 4 * variants.shape["layers"] + 2 + 1
    codes = sum(expected("baseline", **variants.shape, rest=1).values())
    stored = {
        key: stored_size(variants.models_dir / VARIANTS[key].folder)["parts"] for key in OF_GPT2
    }
    assert stored["baseline"] == expected("baseline", **variants.shape, rest=4)
    assert sum(stored["int8_scratch"].values()) == codes + 5 * tensors
    for key in ("int8_scratch_w8a8", "fp8_scratch", "nf4_scratch"):
        assert stored[key] == expected(key, **variants.shape, rest=4)
    for key in BITSANDBYTES:
        wanted = expected(key, **variants.shape, rest=2)
        assert {part: stored[key][part] for part in PARTS[:4]} == {
            part: wanted[part] for part in PARTS[:4]
        }
    # LLM.int8() adds a byte a layer that names the layout; NF4 trades each float32 offset for a
    # small JSON tensor.
    state = {
        key: expected(key, **variants.shape, rest=2)["quantization_state"] for key in BITSANDBYTES
    }
    assert (
        stored["int8_bitsandbytes"]["quantization_state"] == state["int8_bitsandbytes"] + matrices
    )
    sizes, _ = file_tensors(variants.models_dir / "nf4_bitsandbytes")
    json_bytes = [
        size for name, size in sizes.items() if name.endswith("quant_state.bitsandbytes__nf4")
    ]
    assert len(json_bytes) == matrices
    assert stored["nf4_bitsandbytes"]["quantization_state"] == state[
        "nf4_bitsandbytes"
    ] - 4 * matrices + sum(json_bytes)


GPT2 = {"width": 768, "layers": 12, "vocabulary": 50257, "positions": 1024}


def test_published_sizes_of_gpt2():
    """The arithmetic that the tests above hold against real tensors, at GPT-2's shape."""
    total = sum(expected("baseline", **GPT2, rest=4).values())
    assert total == 4 * 124_442_880 and round(total / MIB, 2) == 474.71
    assert round(sum(expected("baseline_fp16", **GPT2, rest=2).values()) / MIB, 2) == 237.36
    assert round(total / 4 / MIB, 2) == 118.68  # int8_scratch without its 5 bytes a tensor
    for key, published in (("int8_bitsandbytes", 156.36), ("nf4_bitsandbytes", 115.86)):
        parts = expected(key, **GPT2, rest=2)
        assert round((sum(parts.values()) - parts["quantization_state"]) / MIB, 2) == published
    for key in ("int8_scratch_w8a8", "fp8_scratch"):
        assert sum(expected(key, **GPT2, rest=2).values()) / MIB <= 122
    assert sum(expected("nf4_scratch", **GPT2, rest=2).values()) / MIB <= 63.5


@pytest.mark.slow
@pytest.mark.parametrize("key", BITSANDBYTES)
def test_bitsandbytes_on_gpt2_itself(key, tiny_tokenizer, tmp_path):
    """The 124M model, random weights: quantized, saved, loaded again, every part to the byte."""
    from tiny_models import save_variant

    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(num_labels=4, pad_token_id=50256)).half()
    baseline = tmp_path / "baseline_gpt2"
    model.save_pretrained(baseline)
    save_variant(key, tmp_path, tiny_tokenizer)
    loaded = checkpoints.load_classifier(tmp_path / key, "cpu", torch.float16)
    parts = size_in_parts(loaded)
    assert parts == expected(key, **GPT2, rest=2)
    published = {"int8_bitsandbytes": 156.36, "nf4_bitsandbytes": 115.86}[key]
    assert round((sum(parts.values()) - parts["quantization_state"]) / MIB, 2) == published
