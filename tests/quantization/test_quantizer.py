"""The transformers plug-in: quantize, save, load in a fresh process, and refuse folders that are
not what they say.
"""

import copy
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from gpt2_quant.cli import ROOT
from gpt2_quant.errors import UserError
from gpt2_quant.models.variants import VARIANTS, made_by
from gpt2_quant.quantization import affine, integrity, layers, product, quantizer
from gpt2_quant.quantization.quantizer import ScratchConfig, quantize_model, scheme_named

SCHEMES = [variant.key for variant in made_by(2)]


@pytest.fixture
def batch():
    ids = torch.randint(10, 900, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def answer(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def load(folder, auto=AutoModelForSequenceClassification, **options):
    return auto.from_pretrained(folder, dtype=torch.float32, **options)


def quantization_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def change_tensors(folder, change):
    """Rewrite the folder's tensors after `change(dict)`."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder, **entries):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= entries
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("head", ["classifier", "language model"])
def test_save_and_reload_give_the_same_bits(scheme, head, tiny_gpt2, tiny_gpt2_lm, batch, tmp_path):
    model = tiny_gpt2 if head == "classifier" else tiny_gpt2_lm
    auto = AutoModelForSequenceClassification if head == "classifier" else AutoModelForCausalLM
    expected = answer(model, batch)
    model.save_pretrained(tmp_path / "float")
    quantized = quantize_model(model, scheme)
    logits = answer(quantized, batch)
    # NF4's relative weight error is about 0.09; two layers of random weights stay within a few
    # times that.
    bound = 0.35 if scheme == "nf4_scratch" else 0.06
    assert 0 < (logits - expected).norm() / expected.norm() < bound
    quantized.save_pretrained(tmp_path / "first")
    first = load(tmp_path / "first", auto)
    assert torch.equal(answer(first, batch), logits)
    first.save_pretrained(tmp_path / "second")
    assert torch.equal(answer(load(tmp_path / "second", auto), batch), logits)
    at_load = load(tmp_path / "float", auto, quantization_config=ScratchConfig(scheme))
    assert torch.equal(answer(at_load, batch), logits)
    written = quantization_of(tmp_path / "second")
    assert written["scheme"] == scheme
    assert written["sha256"] == at_load.config.quantization_config.sha256


@pytest.mark.e2e
def test_a_fresh_process_needs_one_import(tiny_gpt2, batch, tmp_path):
    model = quantize_model(tiny_gpt2, "int8_scratch_w8a8")
    model.save_pretrained(tmp_path / "w8a8")
    torch.save(batch, tmp_path / "batch.pt")
    code = f"""
import torch, gpt2_quant.quantization.quantizer
from transformers import AutoModelForSequenceClassification as Auto
model = Auto.from_pretrained({str(tmp_path / "w8a8")!r})
batch = torch.load({str(tmp_path / "batch.pt")!r}, weights_only=True)
with torch.no_grad():
    torch.save(model(**batch).logits, {str(tmp_path / "logits.pt")!r})
"""
    environment, command = {**os.environ, "PYTHONPATH": str(ROOT / "src")}, [sys.executable, "-c"]
    done = subprocess.run([*command, code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), answer(model, batch))


def test_what_becomes_which_layer(tiny_gpt2, tiny_gpt2_lm):
    def kinds(scheme):
        model = quantize_model(copy.deepcopy(tiny_gpt2), scheme)
        assert not any(isinstance(m, (Conv1D, torch.nn.Embedding)) for m in model.modules())
        assert type(model.score) is torch.nn.Linear
        return VARIANTS[scheme].how.facts(model)["layers"]

    # 4 matrices in each of 2 layers.
    assert kinds("int8_scratch_w8a8") == {"Int8Embedding": 2, "Int8Linear": 8}
    assert kinds("nf4_scratch") == {"NF4Embedding": 1, "Int8Embedding": 1, "NF4Linear": 8}
    nf4 = quantize_model(tiny_gpt2_lm, "nf4_scratch")
    assert isinstance(nf4.lm_head, layers.TiedHead)
    assert isinstance(nf4.transformer.wte, layers.NF4Embedding)


def test_conv1d_is_quantized_along_its_output_axis(tiny_gpt2):
    # Square: a transposed copy would fit, and be wrong.
    weight = tiny_gpt2.transformer.h[0].attn.c_proj.weight.detach().clone()
    quantized = quantize_model(tiny_gpt2, "int8_scratch_w8a8").transformer.h[0].attn.c_proj
    back = affine.dequantize(quantized.weight, quantized.weight_scale[:, None])
    assert ((back - weight.t()).abs() <= quantized.weight_scale[:, None] / 2 * 1.001).all()
    assert torch.allclose(quantized.weight_scale, weight.abs().amax(0) / 127)


def test_int8_scratch_stores_one_byte_a_parameter(tiny_gpt2, tmp_path):
    n_parameters = sum(p.numel() for p in tiny_gpt2.parameters())
    n_tensors = len(list(tiny_gpt2.parameters()))
    quantize_model(tiny_gpt2, "int8_scratch").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    n_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    assert n_bytes == n_parameters + 5 * n_tensors  # a float32 scale and an int8 zero-point each
    loaded = load(tmp_path)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    name = "transformer.h.1.mlp.c_fc.weight"
    expected = (tensors[name].float() - tensors[f"{name}_zero_point"]) * tensors[f"{name}_scale"]
    assert torch.equal(loaded.get_parameter(name).flatten(), expected)


def test_int8_scratch_in_half_precision_saves_the_same_codes_and_refuses_changed_weights(
    tiny_gpt2, tmp_path
):
    quantize_model(tiny_gpt2, "int8_scratch").save_pretrained(tmp_path / "a")
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a", dtype=torch.float16)
    half.save_pretrained(tmp_path / "b")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    half.transformer.wpe.weight.data += 0.1
    with pytest.raises(UserError, match="no longer those"):
        half.save_pretrained(tmp_path / "c")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_float16_parts(scheme, tiny_gpt2, batch, tmp_path):
    model = quantize_model(tiny_gpt2, scheme)
    model.save_pretrained(tmp_path)
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.dtype == torch.float16 and half.transformer.ln_f.weight.dtype == torch.float16
    state = half.hf_quantizer.get_state_dict_and_metadata(half)[0] or half.state_dict()
    scales = [x for name, x in state.items() if name.endswith(("_scale", "absmax"))]
    assert scales and all(scale.dtype == torch.float32 for scale in scales)
    assert torch.allclose(answer(half, batch).float(), answer(model, batch), atol=0.02)


def test_generation_with_a_cache(tiny_gpt2_lm):
    ids = torch.randint(10, 900, (2, 9))
    model = quantize_model(tiny_gpt2_lm, "int8_scratch_w8a8")
    greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        cached, uncached = (
            model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use, **greedy)
            for use in (True, False)
        )
    assert torch.equal(cached, uncached)


def one_bit(n):
    return (torch.arange(n) == 3).char()


@pytest.mark.parametrize(
    "scheme,name,change,message",
    [
        ("int8_scratch_w8a8", "h.0.attn.c_attn.weight", lambda t: t ^ one_bit(64), "sha256"),
        ("nf4_scratch", "wte.weight", lambda t: t.flip(0), "sha256"),
        ("int8_scratch", "wpe.weight_zero_point", lambda t: t + 1, "sha256"),
        ("int8_scratch_w8a8", "h.0.attn.c_attn.weight_scale", lambda t: t * 1.001, "sha256"),
        (
            "int8_scratch_w8a8", "h.1.mlp.c_fc.weight_scale", lambda t: t[:-1].clone(),
            r"\[255\].*\[256\]",
        ),
        ("nf4_scratch", "wte.scale_absmax", lambda t: t.double(), "float64.*float32"),
        ("int8_scratch", "ln_f.weight_scale", lambda t: t.repeat(2), r"\[2\].*\[\]"),
    ],
)  # fmt: skip
def test_tampered_folders_are_refused(scheme, name, change, message, tiny_gpt2, tmp_path):
    quantize_model(tiny_gpt2, scheme).save_pretrained(tmp_path)
    name = f"transformer.{name}"
    change_tensors(tmp_path, lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "2_quantization_scratch.py" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_tensor_another_version_and_an_unknown_scheme(tiny_gpt2, tmp_path):
    quantize_model(tiny_gpt2, "nf4_scratch").save_pretrained(tmp_path)
    right = quantization_of(tmp_path)
    for change, message in (
        ({"format_version": 3}, "layout version 3"),
        ({"scheme": "int3"}, "int3.*nf4_scratch"),
    ):
        change_config(tmp_path, **right | change)
        with pytest.raises(UserError, match=message):
            load(tmp_path)
    change_config(tmp_path, **right)
    change_tensors(tmp_path, lambda tensors: tensors.pop("transformer.h.0.mlp.c_fc.scale_codes"))
    with pytest.raises(UserError, match=r"no tensor transformer\.h\.0\.mlp\.c_fc\.scale_codes"):
        load(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 1000)
    with pytest.raises(UserError, match="damaged or cut short"):
        load(tmp_path)


def test_models_that_cannot_be_quantized(tiny_gpt2):
    with pytest.raises(UserError, match="BertModel is not a GPT-2"):
        config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
        quantize_model(BertModel(config), "nf4_scratch")
    with pytest.raises(UserError, match="unknown quantization scheme"):
        quantize_model(tiny_gpt2, "int2")
    broken = copy.deepcopy(tiny_gpt2)
    broken.transformer.h[1].mlp.c_fc.weight.data[0, 0] = float("nan")
    for scheme in SCHEMES:
        with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc"):
            quantize_model(copy.deepcopy(broken), scheme)
    for scheme in SCHEMES:
        twice = quantize_model(copy.deepcopy(tiny_gpt2), scheme)
        with pytest.raises(UserError, match="already"):
            quantize_model(twice, scheme)


@pytest.mark.parametrize("path", ["vpmaddubsw", "float32"])
def test_every_path_computes_the_same_and_only_the_slow_one_says_so(
    tiny_gpt2, batch, monkeypatch, path
):
    monkeypatch.setattr(product, "path", "vnni")
    expected = answer(quantize_model(copy.deepcopy(tiny_gpt2), "int8_scratch_w8a8"), batch)
    monkeypatch.setattr(product, "path", path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = quantize_model(tiny_gpt2, "int8_scratch_w8a8")
    assert any("slower than FP32" in str(w.message) for w in said) == (path == "float32")
    assert torch.equal(answer(model, batch), expected)


def test_real_classifier_keeps_its_answers(gpt2_news_mini):
    """The language model's greedy next tokens on real text agree with the float model's."""
    from gpt2_quant.data.tokens import load_tokenizer

    tokenizer = load_tokenizer(gpt2_news_mini)
    text = "Oil prices rose sharply after the central bank said that growth would slow next year ."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(gpt2_news_mini, dtype=torch.float32)
    with torch.no_grad():
        expected = torch.log_softmax(model(ids).logits, -1)
        bounds = {"int8_scratch": 0.01, "int8_scratch_w8a8": 0.01, "fp8_scratch": 0.05}
        for scheme, bound in (bounds | {"nf4_scratch": 0.2}).items():
            found = torch.log_softmax(quantize_model(copy.deepcopy(model), scheme)(ids).logits, -1)
            kl = (expected.exp() * (expected - found)).sum(-1).mean().item()
            assert 0 <= kl < bound, (scheme, kl)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "scheme,limit_mib", [("int8_scratch_w8a8", 122), ("fp8_scratch", 122), ("nf4_scratch", 63.5)]
)
def test_resident_bytes_of_gpt2_124m(scheme, limit_mib, dtype):
    """Sizes follow from shapes, so the real model is built without memory."""
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(GPT2Config(num_labels=4)).to(dtype)
        assert sum(p.numel() for p in model.parameters()) == 124_442_880
        scheme_named(scheme).replace(model, dtype, fill=False)
    n_bytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert n_bytes <= limit_mib * 2**20


@pytest.mark.e2e
def test_without_the_plug_in_a_folder_of_codes_does_not_load(tiny_gpt2, tmp_path):
    """transformers warns of an unknown method and goes on: the codes' shape must stop it."""
    for name in SCHEMES:
        quantize_model(copy.deepcopy(tiny_gpt2), name).save_pretrained(tmp_path / name)
    code = """
import sys
from transformers import AutoModelForSequenceClassification as Auto
for folder in sys.argv[1:]:
    try:
        Auto.from_pretrained(folder)
        print("loaded")
    except (RuntimeError, ValueError) as fault:
        print("mismatch" if "mismatch" in str(fault).lower() else fault)
"""
    folders = [str(tmp_path / name) for name in SCHEMES]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True)
    assert done.stdout.split() == ["mismatch"] * len(folders), done.stdout + done.stderr[-500:]


def test_the_first_layout_is_read_and_saved_anew(tiny_gpt2, batch, tmp_path):
    """Layout 1 kept the codes of stored int8 in the parameters' own shapes."""
    model, old, new = quantize_model(tiny_gpt2, "int8_scratch"), tmp_path / "old", tmp_path / "new"
    model.save_pretrained(old)

    def give_shapes(tensors):
        tensors |= {name: tensors[name].view(p.shape) for name, p in model.named_parameters()}
        change_config(old, format_version=1, sha256=integrity.checksum(tensors))

    change_tensors(old, give_shapes)
    loaded = load(old)
    assert torch.equal(answer(loaded, batch), answer(model, batch))
    loaded.save_pretrained(new)
    assert quantization_of(new)["format_version"] == quantizer.FORMAT_VERSION
    assert torch.equal(answer(load(new), batch), answer(model, batch))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tensor", ["score.weight", "transformer.h.0.attn.c_attn.bias"])
@pytest.mark.parametrize("fault", ["missing", "another shape"])
def test_every_tensor_must_be_there_in_its_shape(scheme, tensor, fault, tiny_gpt2, tmp_path):
    def spoil(tensors):
        found = tensors.pop(tensor)
        if fault == "another shape":
            tensors[tensor] = found[:-1].contiguous()

    quantize_model(tiny_gpt2, scheme).save_pretrained(tmp_path)
    change_tensors(tmp_path, spoil)
    with pytest.raises(UserError, match=tensor.split(".", 1)[1]):
        load(tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_number_of_labels_is_refused_at_load(scheme, tiny_gpt2, tmp_path):
    quantize_model(tiny_gpt2, scheme).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="score"):
        load(tmp_path, num_labels=2)
