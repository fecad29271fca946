"""bitsandbytes takes exactly the matrices it should, the right way round, and comes back from the
disk as it was.
"""

import sys

import pytest
import torch
from transformers import BitsAndBytesConfig

from gpt2_quant.errors import UserError
from gpt2_quant.models import bitsandbytes as bnb
from gpt2_quant.models import loading as checkpoints

# Half the widest gap between neighbouring NF4 levels, between -1 and -0.6962 (QLoRA, appendix E).
WIDEST_HALF_GAP = (1 - 0.6961928009986877) / 2


METHODS = {"int8_bitsandbytes": bnb.LLM_INT8, "nf4_bitsandbytes": bnb.NF4}


def quantize(folder, key):
    model = checkpoints.load_classifier(folder, "cpu")
    return METHODS[key].quantize(key, model, folder, torch.float16)


@pytest.fixture(scope="module")
def folders(tiny_tokenizer, tmp_path_factory):
    """A tiny baseline and both quantized folders made from it."""
    from tiny_models import make_tiny_gpt2, save_variant

    models_dir = tmp_path_factory.mktemp("models")
    make_tiny_gpt2(tiny_tokenizer).save_pretrained(models_dir / "baseline_gpt2")
    tiny_tokenizer.save_pretrained(models_dir / "baseline_gpt2")
    for key in METHODS:
        save_variant(key, models_dir, tiny_tokenizer)
    return models_dir


@pytest.fixture
def original(folders):
    return checkpoints.load_classifier(folders / "baseline_gpt2", "cpu")


def test_int8_weights_are_the_transposed_ones_within_half_a_scale(folders, original):
    model = quantize(folders / "baseline_gpt2", "int8_bitsandbytes")
    layers = bnb.converted_layers(model)
    assert len(layers) == 4 * 2
    for name, layer in layers.items():
        weight = original.get_submodule(
            name
        ).weight.T  # Conv1D keeps [in, out]; square c_proj would load transposed silently
        scale = layer.weight.SCB[:, None] / 127
        # The scale is the row's absmax in float16, within 2**-11 of the row's own; so are the
        # weights that were rounded.
        assert torch.allclose(layer.weight.SCB, weight.abs().amax(1), rtol=2**-10)
        error = (layer.weight.data.float() * scale - weight).abs()
        assert (error <= scale / 2 + weight.abs() * 2**-10).all(), name


def test_nf4_weights_are_the_transposed_ones_within_half_a_gap(folders, original):
    from bitsandbytes.functional import dequantize_4bit

    model = quantize(folders / "baseline_gpt2", "nf4_bitsandbytes")
    layers = bnb.converted_layers(model)
    assert len(layers) == 4 * 2
    for name, layer in layers.items():
        weight = original.get_submodule(name).weight.T
        read = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        block_max = (
            weight.reshape(-1, 64).abs().amax(1, keepdim=True).expand(-1, 64).reshape(weight.shape)
        )
        # Double quantization moves a block maximum by at most the widest half gap of its own 8-bit
        # code, 1% of the largest.
        slack = 0.01 * block_max.max() + block_max * 2**-10
        assert ((read - weight).abs() <= WIDEST_HALF_GAP * block_max + slack).all(), name


@pytest.mark.parametrize("key", METHODS)
def test_everything_else_is_the_float16_of_the_original(folders, original, key):
    model = quantize(folders / "baseline_gpt2", key)
    converted = set(bnb.converted_layers(model))
    kept = 0
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if module in converted and leaf == "weight":
            continue
        assert parameter.dtype == torch.float16 and torch.equal(
            parameter, original.get_parameter(name).half()
        ), name
        kept += 1
    assert (
        kept == 2 + 8 + 2 * 4 + 2 + 1
    )  # tables, biases of the matrices, two norms a block, the last norm, the head


@pytest.mark.parametrize("key", METHODS)
def test_reloaded_tensors_are_the_saved_ones(folders, key):
    fresh = quantize(folders / "baseline_gpt2", key)
    loaded = checkpoints.load_classifier(folders / key, "cpu", torch.float16)
    before, after = fresh.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name


@pytest.mark.parametrize("key", METHODS)
def test_reloaded_in_float32_only_the_float_parts_widen(folders, key):
    half = checkpoints.load_classifier(folders / key, "cpu", torch.float16)
    full = checkpoints.load_variant(key, folders, "cpu")
    assert full.dtype == torch.float32
    for name, tensor in half.state_dict().items():
        other = full.state_dict()[name]
        assert torch.equal(other, tensor.to(other.dtype)), name
    assert METHODS[key].facts(full) == METHODS[key].facts(half)


@pytest.mark.parametrize("key", METHODS)
def test_logits_are_near_those_of_the_dequantized_weights(folders, original, key):
    """The same float model with the weights read back, against bitsandbytes' own arithmetic on the
    codes.
    """
    from bitsandbytes.functional import dequantize_4bit

    model = checkpoints.load_variant(key, folders, "cpu")
    for name, layer in bnb.converted_layers(model).items():
        if key == "int8_bitsandbytes":
            read = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
        else:
            read = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        original.get_submodule(name).weight.data.copy_(read.T)
    ids = torch.randint(
        0, original.config.vocab_size, (8, 32), generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        reference = original(input_ids=ids).logits
        answer = model(input_ids=ids).logits.float()
        unquantized = checkpoints.load_classifier(folders / "baseline_gpt2", "cpu")(
            input_ids=ids
        ).logits
    # int8 rounds activations to 1 part in 254 a layer; NF4's CPU kernel multiplies in bfloat16, 1
    # part in 256.
    spread = reference.std()
    assert (answer - reference).abs().max() < 0.05 * spread
    assert (answer - unquantized).abs().max() > 0


def test_conversion_of_other_layers_is_refused(folders):
    from transformers import AutoModelForSequenceClassification

    def load(**quantization):
        return AutoModelForSequenceClassification.from_pretrained(
            folders / "baseline_gpt2",
            dtype=torch.float16,
            device_map={"": "cpu"},
            quantization_config=BitsAndBytesConfig(**quantization),
        )

    with pytest.raises(RuntimeError, match="6 of 8 linear layers"):
        bnb.LLM_INT8.facts(load(load_in_8bit=True, llm_int8_skip_modules=["score", "c_fc"]))
    # Naming any module drops transformers' default, and the head is quantized with the rest.
    with pytest.raises(RuntimeError, match="9 of 8 linear layers"):
        bnb.LLM_INT8.facts(load(load_in_8bit=True, llm_int8_skip_modules=["wte"]))
    with pytest.raises(RuntimeError, match="to another type"):
        bnb.NF4.facts(load(load_in_8bit=True, llm_int8_skip_modules=["score"]))
    four_bits = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "llm_int8_skip_modules": ["score"],
    }
    with pytest.raises(RuntimeError, match="nested: False"):
        bnb.NF4.facts(load(**four_bits))


def test_folder_is_a_plain_transformers_folder(folders):
    names = {path.name for path in (folders / "nf4_bitsandbytes").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_a_quantized_checkpoint_is_not_quantized_again(folders):
    with pytest.raises(UserError, match="quantized already: give the FP32"):
        quantize(folders / "int8_bitsandbytes", "nf4_bitsandbytes")


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_a_missing_package_is_one_sentence(folders, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"{package} cannot be imported .*pip install -r requirements.txt"
    ):
        quantize(folders / "baseline_gpt2", "int8_bitsandbytes")
    with pytest.raises(UserError, match=package):
        checkpoints.load_variant("int8_bitsandbytes", folders, "cpu")


def test_a_cpu_without_float16_multiplies_in_float32(folders, monkeypatch):
    monkeypatch.setattr(checkpoints, "has_half_arithmetic", lambda device: False)
    nf4 = checkpoints.load_variant("nf4_bitsandbytes", folders, "cpu")
    assert {layer.compute_dtype for layer in bnb.converted_layers(nf4).values()} == {torch.float32}
    control = checkpoints.load_variant("baseline_fp16", folders, "cpu")
    full = checkpoints.load_variant("baseline", folders, "cpu")
    for name, parameter in control.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(
            parameter, full.get_parameter(name).half().float()
        ), name


@pytest.mark.gpu
@pytest.mark.parametrize("key", METHODS)
def test_on_a_gpu_the_rest_is_float16_and_the_logits_are_the_cpus(folders, key):
    ids = torch.randint(0, 500, (8, 32), generator=torch.Generator().manual_seed(0))
    on_gpu = checkpoints.load_variant(key, folders, "cuda")
    assert on_gpu.transformer.ln_f.weight.dtype == torch.float16 and METHODS[key].facts(on_gpu)
    with torch.inference_mode():
        answer = on_gpu(input_ids=ids.cuda()).logits.float().cpu()
        reference = checkpoints.load_variant(key, folders, "cpu")(input_ids=ids).logits
    assert (answer - reference).abs().max() < 0.05 * reference.std()
