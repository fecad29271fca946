"""Checkpoint folders that are not what they say: one sentence each, before anything is computed;
and the forms in which others save theirs, read right.
"""

import json

import pytest
import safetensors.torch
import torch
from tiny_models import make_tiny_gpt2, save_tiny_gpt2, save_variant

from gpt2_quant.data.datasets import Split
from gpt2_quant.data.labels import LABELS
from gpt2_quant.data.tokens import load_tokenizer, tokenize
from gpt2_quant.errors import UserError
from gpt2_quant.models.checkpoints import check_checkpoint, weights_sha256
from gpt2_quant.models.loading import baseline_folder, check_float, load_classifier
from gpt2_quant.models.sizes import file_bytes, stored_size
from gpt2_quant.models.variants import BASELINE, VARIANTS

BITSANDBYTES = [v.key for v in VARIANTS.values() if v.method and not v.by_hand]


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    return save_tiny_gpt2(tmp_path / "theirs", tiny_tokenizer)


def load(folder):
    folder = baseline_folder(folder, str(folder))
    split = Split("test", ["Oil prices rise"], [0], "tiny")
    return load_classifier(folder, "cpu"), tokenize(load_tokenizer(folder), split, 128)


def edit(folder, **entries):
    """Change entries of config.json; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def rename_head(tensors):
    tensors["classifier.weight"] = tensors.pop("score.weight")


CONFIGS = {
    "vocabulary": ({"vocab_size": 900}, "wte.weight is"),
    "positions": ({"n_positions": 64}, "wpe.weight is"),
    "width": ({"n_embd": 32}, "wte.weight is"),
    "fewer layers": ({"n_layer": 1}, "there are 2 layers, which are 1 by"),
    "more layers": ({"n_layer": 3}, "there are 2 layers, which are 3 by"),
    "heads": ({"n_head": 7}, "no multiple of n_head 7"),
    "no heads": ({"n_head": 0}, "n_head is 0"),
    "a size in words": ({"n_layer": "two"}, "n_layer is two"),
    "inner width": ({"n_inner": 100}, "mlp.c_fc.weight is"),
    "activation": ({"activation_function": "jelu"}, "'jelu' is no activation"),
    "a thousand million layers": ({"n_layer": 10**9}, "there are 2 layers, which are 1000000000"),
    "inner width in words": ({"n_inner": "256"}, "n_inner is 256, not a whole number"),
    "cross-attention": ({"add_cross_attention": True}, "add_cross_attention is True, which must"),
    "attentions": ({"output_attentions": True}, "output_attentions is True, which must be False"),
    "tuples": ({"return_dict": False}, "return_dict is False, which must be True"),
    "several classes a text": (
        {"problem_type": "multi_label_classification"},
        "must be single_label_classification",
    ),
    "dropout": ({"resid_pdrop": 7.0}, "resid_pdrop is 7.0, not a number from 0 to 1"),
    "NaN": ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan, not a number"),
    "a dtype that is none": ({"dtype": "float99"}, "config.json: transformers refuses it"),
    "no activation": ({"activation_function": None}, "config.json: transformers refuses it"),
    "a cache in words": ({"use_cache": "no"}, "config.json: transformers refuses it"),
    "pad beyond": ({"pad_token_id": 1000}, "pad_token_id is 1000"),
    "pad negative": ({"pad_token_id": -1}, "pad_token_id is -1"),
    "end beyond": ({"eos_token_id": 50256}, "eos_token_id is 50256"),
    "no model type": ({"model_type": ""}, "not a model's configuration"),
    "three names": ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "names 3 classes.*head has 4"),
    "names a list": ({"id2label": ["a", "b", "c", "d"]}, "id2label must name"),
    "names from 1": ({"id2label": {str(i + 1): x for i, x in enumerate(LABELS)}}, "must name"),
    "quantized, a word": ({"quantization_config": "int8"}, "quantized already|is not one of"),
    "quantized, how?": ({"quantization_config": {"quant_method": "gpt2_quant"}}, "is not one of"),
    "quantized, unknown": ({"quantization_config": {"quant_method": "awq"}}, "is not one of"),
    "quantized": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        "quantized already: give the FP32",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit(name, folder):
    entries, sentence = CONFIGS[name]
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(UserError, match=sentence):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "not JSON", '{"a":' * 100_000, "\0\xff"])
def test_a_config_that_is_none(text, folder):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="config.json is not a model's configuration"):
        load(folder)
    with pytest.raises(UserError, match="config.json is not a model's configuration"):
        check_float(folder, new_head=True)


WEIGHTS = {
    "no head": (lambda t: t.pop("score.weight"), "lacks score.weight.*language model"),
    "another head": (rename_head, "lacks score.weight"),
    "a head of five": (
        lambda t: t.update({"score.weight": torch.zeros(5, 64)}),
        "has 5 labels where 4 are needed",
    ),
    "no bias": (lambda t: t.pop("transformer.h.1.mlp.c_fc.bias"), "h.1.mlp.c_fc.bias is missing"),
    "codes": (
        lambda t: t.update({"transformer.wte.weight": torch.zeros(1000, 64, dtype=torch.int8)}),
        "stored as I8, which are floats",
    ),
    "infinity": (
        lambda t: t["transformer.h.0.ln_1.weight"].fill_(torch.inf),
        "h.0.ln_1.weight hold NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_fit(name, folder):
    change, sentence = WEIGHTS[name]
    edit(folder, id2label=None, label2id=None)
    edit_weights(folder, change)
    with pytest.raises(UserError, match=sentence):
        load(folder)


def test_a_pickle_is_named_with_the_command_that_converts_it(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle.*save_pretrained") as told:
        check_checkpoint(folder)
    model = make_tiny_gpt2(load_tokenizer(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    command = str(told.value).split('python -c "')[1].rstrip('"')
    exec(command, {})
    assert torch.equal(load(folder)[0].score.weight, model.score.weight)


def test_shards_are_read_and_missed(folder, tiny_tokenizer):
    whole, one = load(folder)[0].state_dict(), stored_size(folder)
    (folder / "model.safetensors").unlink()
    make_tiny_gpt2(tiny_tokenizer).save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    found = load(folder)[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    sizes = stored_size(folder)
    assert sizes["parts"] == one["parts"]
    assert sizes["header_bytes"] + sizes["tensor_bytes"] == file_bytes(folder)
    before = weights_sha256(folder)
    path = shards[-1]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert weights_sha256(folder) != before
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged or cut short"):
        load(folder)
    path.unlink()
    with pytest.raises(UserError, match=f"lacks the shard {path.name}"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a"}}')
    with pytest.raises(UserError, match="lists no shards"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype, folder, tiny_tokenizer):
    model = make_tiny_gpt2(tiny_tokenizer).to(dtype)
    model.save_pretrained(folder)
    found = load(folder)[0]
    assert found.dtype == torch.float32
    assert torch.equal(found.score.weight, model.score.weight.float())


@pytest.mark.parametrize("entries", [{"id2label": None}, {"id2label": None, "num_labels": 4}])
def test_the_head_says_how_many_classes_there_are(entries, folder):
    edit(folder, label2id=None, pad_token_id=None, **entries)
    model, _ = load(folder)
    assert model.config.num_labels == 4 and list(model.config.id2label.values()) == list(LABELS)
    assert model.config.pad_token_id == load_tokenizer(folder).pad_token_id


@pytest.mark.parametrize(
    "names", [["LABEL_2", "LABEL_0", "LABEL_3", "LABEL_1"], ["2", "0", "3", "1"],
              ["business", "WORLD", "Sci-Tech", "sports "]],
)  # fmt: skip
def test_names_in_any_spelling_find_their_rows(names, folder):
    before = load(folder)[0].score.weight
    edit(folder, id2label={str(i): name for i, name in enumerate(names)}, label2id=None)
    assert torch.equal(load(folder)[0].score.weight[[2, 0, 3, 1]], before)
    edit(folder, id2label=None, label2id={name: i for i, name in enumerate(names)})
    assert torch.equal(load(folder)[0].score.weight[[2, 0, 3, 1]], before)


def test_a_resized_vocabulary_may_be_larger_than_the_tokenizer(folder, tiny_tokenizer):
    model = make_tiny_gpt2(tiny_tokenizer)
    model.resize_token_embeddings(1024, mean_resizing=False)
    model.save_pretrained(folder)
    assert load(folder)[0].config.vocab_size == 1024


def test_texts_longer_than_the_model(folder, tiny_tokenizer):
    split = Split("test", ["Oil"], [0], "tiny")
    with pytest.raises(UserError, match="257 is more than the model's 256 positions"):
        tokenize(load_tokenizer(folder), split, 257)


def test_tokenizers_in_other_layouts(folder, tiny_tokenizer):
    expected = load_tokenizer(folder)("Oil prices rise")["input_ids"]
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder)("Oil prices rise")["input_ids"] == expected
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer.json").unlink()
    assert load_tokenizer(folder)("Oil prices rise")["input_ids"] == expected
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match="has no tokenizer: copy tokenizer.json"):
        load_tokenizer(folder)


def test_a_damaged_tokenizer(folder):
    for text in ("{", '{"model": 1}', ""):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="has no tokenizer that loads"):
            load_tokenizer(folder)


BNB_FAULTS = (
    "no scales",
    "fewer scales",
    "codes of another shape",
    "a longer norm",
    "negative",
    "zeros",
    "NaN",
)


@pytest.mark.parametrize("fault", BNB_FAULTS)
@pytest.mark.parametrize("key", BITSANDBYTES)
def test_bitsandbytes_folders_are_looked_at(key, fault, tiny_tokenizer, tmp_path):
    save_tiny_gpt2(tmp_path / BASELINE.folder, tiny_tokenizer)
    folder = save_variant(key, tmp_path, tiny_tokenizer)
    path = "transformer.h.1.mlp.c_fc."

    def change(tensors):
        scales = [x for x in tensors if x.startswith(path) and x.endswith(("SCB", ".absmax"))]
        if fault == "no scales":
            del tensors[scales[0]]
        elif fault == "fewer scales":
            tensors[scales[0]] = tensors[scales[0]][:-1].contiguous()
        elif fault == "a longer norm":
            tensors["transformer.ln_f.weight"] = torch.ones(128)
        elif fault == "codes of another shape":
            tensors[f"{path}weight"] = tensors[f"{path}weight"][:-2].contiguous()
        else:
            floats = [x for x in tensors if x.startswith(path) and x.endswith(("SCB", "_absmax"))]
            tensors[floats[0]].fill_({"negative": -1.0, "zeros": 0.0, "NaN": torch.nan}[fault])

    edit_weights(folder, change)
    with pytest.raises(UserError, match="lacks its scales|below zero|NaN|does not load"):
        load_classifier(folder, "cpu")
    with pytest.raises(UserError, match="quantized already: give the FP32"):
        check_float(folder)


def test_levels_of_another_kind(tiny_tokenizer, tmp_path):
    save_tiny_gpt2(tmp_path / BASELINE.folder, tiny_tokenizer)
    folder = save_variant("nf4_bitsandbytes", tmp_path, tiny_tokenizer)
    edit_weights(
        folder, lambda x: [x[name].zero_() for name in x if name.endswith("c_fc.weight.quant_map")]
    )
    with pytest.raises(UserError, match="quant_map do not ascend"):
        load_classifier(folder, "cpu")


@pytest.mark.parametrize("key", [v.key for v in VARIANTS.values() if v.method])
def test_our_own_folders_pass_and_are_no_float_checkpoints(key, tiny_tokenizer, tmp_path):
    save_tiny_gpt2(tmp_path / BASELINE.folder, tiny_tokenizer)
    folder = save_variant(key, tmp_path, tiny_tokenizer)
    assert load_classifier(folder, "cpu").config.num_labels == 4
    with pytest.raises(UserError, match="quantized already: give the FP32"):
        check_float(folder, new_head=True)
