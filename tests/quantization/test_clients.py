"""What other libraries ask of a model of ours: transformers' own calls, peft, torch.export."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from gpt2_quant.errors import UserError
from gpt2_quant.models.variants import VARIANTS
from gpt2_quant.quantization import layers
from gpt2_quant.quantization.quantizer import quantize_model

SCHEMES = [variant.key for variant in VARIANTS.values() if variant.by_hand]
IDS = torch.arange(10, 70).view(3, 20)


def logits_of(model, **inputs) -> torch.Tensor:
    with torch.inference_mode():
        return model(**(inputs or {"input_ids": IDS})).logits


@pytest.fixture(params=["tiny_gpt2", "tiny_gpt2_lm"])
def either(request):
    """A classifier, and a language model whose head is its token embedding."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameters_are_counted_as_of_the_float_model(scheme, either):
    counts = either.num_parameters(), either.num_parameters(exclude_embeddings=True)
    quantized = copy.deepcopy(quantize_model(either, scheme))
    found = quantized.num_parameters(), quantized.num_parameters(exclude_embeddings=True)
    assert found == counts
    trainable = sum(x.numel() for x in quantized.parameters() if x.requires_grad)
    assert quantized.num_parameters(only_trainable=True) == trainable


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dequantized_is_a_plain_model_of_the_same_weights(scheme, either, tmp_path):
    shapes = {name: x.shape for name, x in either.named_parameters()}
    quantized = quantize_model(either, scheme)
    weights = {
        path: module.dequantize(torch.float32)
        for path, module in quantized.named_modules()
        if isinstance(module, layers.QuantizedLayer)
    }
    expected = logits_of(quantized)
    plain = quantized.dequantize()
    assert {name: x.shape for name, x in plain.named_parameters()} == shapes
    for path, weight in weights.items():
        module = plain.get_submodule(path)
        assert torch.equal(
            module.weight.t() if isinstance(module, Conv1D) else module.weight, weight
        )
    # Products in floats on the same weights; W8A8 and FP8 round each activation, too: to 1/127 of
    # its row's largest, to 1/16 of itself; a few such steps reach two random layers' logits.
    rounded = scheme in ("int8_scratch_w8a8", "fp8_scratch")
    difference = (logits_of(plain) - expected).norm() / expected.norm()
    assert difference < (0.06 if rounded else 1e-5)
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path, dtype=torch.float32)
    assert not hasattr(again.config, "quantization_config")
    assert torch.equal(logits_of(again), logits_of(plain))
    assert plain.half().num_parameters() == again.num_parameters()
    again.resize_token_embeddings(1010)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_embeddings_of_codes_are_not_resized(scheme, tiny_gpt2, tmp_path):
    model = quantize_model(tiny_gpt2, scheme)
    assert model.resize_token_embeddings() is model.transformer.wte
    assert model.resize_token_embeddings(1000) is model.transformer.wte
    with pytest.raises(UserError, match="resize the float model"):
        model.resize_token_embeddings(1001)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cast_leaves_codes_and_scales_alone(scheme, dtype, tiny_gpt2, tmp_path):
    model = quantize_model(tiny_gpt2, scheme)
    expected = logits_of(model)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    # Float parts were rounded to float16: 2**-11 each, of activations up to about 4.
    torch.testing.assert_close(logits_of(loaded), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_copies_of_a_model_are_whole(scheme, tiny_gpt2):
    model = quantize_model(tiny_gpt2, scheme)
    again = copy.deepcopy(model)
    assert torch.equal(logits_of(again), logits_of(model))
    assert again.num_parameters.__self__ is again


def test_what_no_scheme_covers_is_a_sentence(tiny_gpt2_lm):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    small = {"vocab_size": 50, "n_positions": 16, "n_layer": 1, "n_head": 3, "pad_token_id": 0}
    odd = GPT2ForSequenceClassification(GPT2Config(n_embd=99, **small)).eval()
    with pytest.raises(UserError, match="width 99"):
        quantize_model(copy.deepcopy(odd), "nf4_scratch")
    ids = torch.arange(1, 13).view(1, 12)
    expected = logits_of(odd, input_ids=ids)
    found = logits_of(quantize_model(odd, "int8_scratch_w8a8"), input_ids=ids)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    crossed = GPT2Config(n_embd=96, add_cross_attention=True, **small)
    with pytest.raises(UserError, match="cross-attention"):
        quantize_model(AutoModelForCausalLM.from_config(crossed), "nf4_scratch")


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids, use_cache=False).logits


@pytest.mark.e2e
@pytest.mark.parametrize("scheme", SCHEMES)
def test_onnx_gives_the_same_logits_from_the_codes(scheme, tiny_gpt2, tmp_path):
    import onnxruntime

    n_bytes = 4 * tiny_gpt2.num_parameters()
    model = quantize_model(tiny_gpt2, scheme)
    path = tmp_path / "model.onnx"
    if scheme == "fp8_scratch":  # ONNX cannot read bytes as e4m3: refused, not written as floats
        with pytest.raises(torch.onnx.errors.OnnxExporterError):
            torch.onnx.export(Logits(model), (IDS,), path, dynamo=True, verbose=False)
        return
    torch.onnx.export(Logits(model), (IDS,), path, dynamo=True, verbose=False)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"input_ids": IDS.numpy()})
    # Float parts are summed in another order.
    torch.testing.assert_close(torch.from_numpy(found), logits_of(model), atol=2e-5, rtol=0)
    written = sum(file.stat().st_size for file in tmp_path.glob("model.onnx*"))
    if VARIANTS[scheme].computes_on_codes:  # stored as codes, beside 200 kB of graph
        assert written - 200_000 < n_bytes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_export_and_trainer(scheme, tiny_gpt2, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = quantize_model(tiny_gpt2, scheme)
    with torch.no_grad():
        exported = torch.export.export(Logits(model), (IDS,), strict=False).module()
        assert torch.equal(exported(IDS), logits_of(model))
    rows = [{"input_ids": row, "labels": 1} for row in IDS]
    settings = TrainingArguments(tmp_path, use_cpu=True, report_to="none", disable_tqdm=True)
    loss = Trainer(model, settings, eval_dataset=rows).evaluate()["eval_loss"]
    expected = torch.nn.functional.cross_entropy(logits_of(model), torch.tensor([1, 1, 1]))
    assert loss == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_lora_by_peft_trains_on_the_codes(scheme, tiny_gpt2, tiny_tokenizer, tiny_texts, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["c_attn", "c_proj", "c_fc"])
    config._register_custom_module({layers.Linear: peft.tuners.lora.Linear})
    quantized = quantize_model(tiny_gpt2, scheme)
    untouched = copy.deepcopy(quantized)
    model = peft.get_peft_model(quantized, config)
    options = {"padding": True, "truncation": True, "max_length": 32, "return_tensors": "pt"}
    batch = tiny_tokenizer(tiny_texts[0][:32], **options)
    batch["labels"] = torch.tensor(tiny_texts[1][:32])
    trained = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(50):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(untouched, tmp_path, config=config)
    assert torch.equal(logits_of(again.eval(), **batch), logits_of(model.eval(), **batch))
