"""Quantized layers against float layers that hold the dequantized weights."""

import copy
import warnings

import pytest
import torch
from torch import nn

from gpt2_quant.errors import UserError
from gpt2_quant.models.variants import made_by
from gpt2_quant.quantization import affine, layers
from gpt2_quant.quantization.layers import Int8Embedding, Int8Linear, NF4Embedding, NF4Linear


def is_what_its_codes_stand_for(layer, x):
    """Whether the layer's output is that of a float layer on the weights and activations that the
    codes stand for. A scale off by a thousandth is seen (below).
    """
    codes, scale = affine.quantize_rows(x.view(-1, x.shape[-1]))
    weight = layer.weight.double() * layer.weight_scale[:, None].double()
    expected = (codes.double() * scale.double()) @ weight.t()
    if layer.bias is not None:
        expected += layer.bias.double()
    expected = expected.view(*x.shape[:-1], -1)
    # Four float32 roundings (the sum to float, two scales, the bias), each of at most 2**-24 of
    # what it rounds. Where the bias cancels, that is more than the result: hence the absolute part.
    atol = 2**-22 * expected.abs().max().item()
    return torch.allclose(layer(x).double(), expected, rtol=4 * 2**-24, atol=atol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out_features,in_features", [(96, 64), (33, 50), (1, 8)])
def test_int8_linear_is_a_float_layer_on_what_the_codes_stand_for(out_features, in_features, bias):
    float_layer = nn.Linear(in_features, out_features, bias=bias)
    layer = Int8Linear(out_features, in_features, torch.float32, bias=bias)
    layer.quantize_(float_layer.weight, "w", float_layer.bias)
    x = torch.randn(2, 5, in_features) * torch.tensor([1e-3, 1.0, 30.0, 0.0, 1.0]).view(5, 1)
    assert is_what_its_codes_stand_for(layer, x)
    assert layer(x).shape == (2, 5, out_features) and layer(x).dtype == x.dtype


def test_a_wrong_scale_would_be_seen(monkeypatch):
    layer = Int8Linear(8, 16, torch.float32).quantize_(torch.randn(8, 16), "w")
    x = torch.randn(4, 16)
    assert is_what_its_codes_stand_for(layer, x)
    right = layer.forward
    off = torch.ones(8).index_fill(0, torch.tensor(3), 1.001)
    monkeypatch.setattr(layer, "forward", lambda x: right(x) * off)
    assert not is_what_its_codes_stand_for(layer, x)


@pytest.mark.parametrize("in_features", [64, 128, 50])
def test_nf4_linear_is_a_float_layer_on_what_the_codes_stand_for(in_features):
    float_layer = nn.Linear(in_features, 24)
    layer = NF4Linear(24, in_features, torch.float32, bias=True)
    layer.quantize_(float_layer.weight, "w", float_layer.bias)
    x = torch.randn(3, 7, in_features)
    weight = layer.dequantize(torch.float32)
    expected = nn.functional.linear(x, weight, float_layer.bias)
    assert torch.allclose(layer(x), expected, rtol=1e-6, atol=1e-6)
    assert (weight - float_layer.weight).norm() < 0.1 * float_layer.weight.norm()


@pytest.mark.parametrize("width", [64, 50, 2])
def test_embeddings_read_back_the_rows_of_the_whole_table(width):
    table = torch.randn(40, width)
    ids = torch.tensor([[0, 39, 5], [5, 5, 17]])
    int8 = Int8Embedding(40, width, torch.float32).quantize_(table, "wte")
    assert torch.equal(int8(ids), affine.quantize_tensor(table).dequantize()[ids])
    nf4 = NF4Embedding(40, width, torch.float32).quantize_(table, "wte")
    assert torch.equal(nf4(ids), nf4.dequantize(torch.float32)[ids])


def test_an_odd_nf4_row_is_refused():
    with pytest.raises(UserError, match="even"):
        NF4Embedding(4, 3, torch.float32)


@pytest.mark.parametrize("kind", [Int8Embedding, NF4Embedding])
def test_tied_head_multiplies_by_the_table_and_stores_nothing(kind, monkeypatch):
    monkeypatch.setattr(layers, "HEAD_TILE_ROWS", 16)  # several tiles, the last one shorter
    embedding = kind(40, 64, torch.float32).quantize_(torch.randn(40, 64), "wte")
    head = layers.TiedHead(embedding)
    x = torch.randn(2, 3, 64)
    table = embedding(torch.arange(40))
    largest = (x.norm(dim=-1).max() * table.norm(dim=-1).max()).item()
    tolerance = 0.02 * largest if kind is Int8Embedding else 1e-4
    assert torch.allclose(head(x), x @ table.t(), atol=tolerance)
    assert not head.state_dict() and not list(head.parameters())
    both = nn.ModuleList([embedding, head])
    twin = copy.deepcopy(both)
    assert twin[1]._embedding[0] is twin[0]


def test_dtype_moves_the_output_but_not_the_scales():
    layer = Int8Linear(8, 16, torch.float32, bias=True)
    layer = layer.quantize_(torch.randn(8, 16), "w", torch.randn(8)).to(torch.float16)
    assert layer.weight_scale.dtype == torch.float32 and layer.bias.dtype == torch.float16
    assert layer(torch.randn(2, 16, dtype=torch.float16)).dtype == torch.float16
    embedding = NF4Embedding(8, 64, torch.float32).quantize_(torch.randn(8, 64) / 3, "wte")
    scales = embedding.scale_absmax.clone(), embedding.scale_offset.clone()
    embedding.half()
    assert embedding(torch.tensor([1])).dtype == torch.float16
    assert torch.equal(embedding.scale_absmax, scales[0])
    assert torch.equal(embedding.scale_offset, scales[1])


def test_layers_compile_on_the_cpu_to_the_same_results():
    layer = Int8Linear(32, 64, torch.float32, bias=True)
    layer.quantize_(torch.randn(32, 64), "w", torch.randn(32))
    x = torch.randn(20, 64)
    compiled = torch.compile(layer, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), rtol=1e-6, atol=1e-6)


@pytest.fixture
def pretend_gpu(monkeypatch):
    """Makes `kernels_for` see a GPU of this compute capability."""
    yield lambda capability: monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability
    )
    layers._kernels_on.cache_clear()


def test_a_gpu_without_an_int8_product_is_refused(pretend_gpu):
    pretend_gpu((7, 0))
    with pytest.raises(UserError, match=r"7\.0.*7\.5 or newer"):
        layers.kernels_for(torch.device("cuda", 0))


@pytest.mark.parametrize(
    "found, capability, words",
    [(None, (9, 0), "Triton is not installed"), ("spec", (7, 5), "older than Ampere")],
)
def test_without_kernels_it_falls_back_and_says_so(
    pretend_gpu, monkeypatch, found, capability, words
):
    pretend_gpu(capability)
    monkeypatch.setattr(layers, "find_spec", lambda name: found)
    with pytest.warns(UserWarning, match=words):
        assert layers.kernels_for(torch.device("cuda", 0)) is None


def test_on_the_cpu_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layers.kernels_for(torch.device("cpu")) is None


@pytest.mark.parametrize("scheme", [variant.key for variant in made_by(2)])
def test_gradients_are_those_of_the_weights_read_back(scheme, tiny_gpt2):
    """Straight through: d logits / d embeddings under the codes, against the same float model with
    the dequantized weights. int8 rounds activations by 1/254 of a token's largest, so directions
    agree to a few percent.
    """
    from gpt2_quant.quantization.quantizer import quantize_model

    reference = copy.deepcopy(tiny_gpt2)
    quantized = quantize_model(copy.deepcopy(tiny_gpt2), scheme)
    for name, layer in quantized.named_modules():
        if isinstance(layer, layers.Linear):
            reference.get_submodule(name).weight.data = layer.dequantize(torch.float32).t()
    gradients = []
    for model in (reference, quantized):
        torch.manual_seed(0)
        x = torch.randn(2, 12, 64, requires_grad=True)
        model(inputs_embeds=x, attention_mask=torch.ones(2, 12)).logits[:, 0].sum().backward()
        gradients.append(x.grad.flatten())
    ours, theirs = gradients[1], gradients[0]
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.98
    assert ours.norm() / theirs.norm() == pytest.approx(1, abs=0.1)
