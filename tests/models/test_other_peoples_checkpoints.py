"""Checkpoints that others made: what is read differently from ours, and what is refused."""

import json

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_gpt2

from gpt2_quant.data.datasets import Split
from gpt2_quant.data.labels import LABELS
from gpt2_quant.data.tokens import load_tokenizer, tokenize
from gpt2_quant.errors import UserError
from gpt2_quant.measure.predictions import predict
from gpt2_quant.models.cards import save_model
from gpt2_quant.models.loading import load_classifier

TEXTS = ["Late goal sends the home side to the final", "Oil rises", ""]


def logits_of(folder, texts=TEXTS) -> np.ndarray:
    tokenizer = load_tokenizer(folder)
    tokens = tokenize(tokenizer, Split("test", texts, [0] * len(texts), "tiny"), 64)
    return predict(load_classifier(folder, "cpu"), tokens, 4, tokenizer.pad_token_id, "tiny")


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    make_tiny_gpt2(tiny_tokenizer).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("by_name", [lambda label: label, str.upper])
def test_classes_in_another_order_are_mapped_by_name(folder, by_name):
    before = logits_of(folder)  # the tiny model has no names, so its rows count
    order = [2, 0, 3, 1]
    names = {str(row): by_name(LABELS[label]) for row, label in enumerate(order)}
    change_config(folder, id2label=names, label2id={name: int(row) for row, name in names.items()})
    np.testing.assert_array_equal(logits_of(folder)[:, order], before)


def test_names_of_other_classes_are_refused(folder):
    names = dict(enumerate(["bad", "fair", "good", "best"]))
    change_config(folder, id2label=names, label2id={name: row for row, name in names.items()})
    with pytest.raises(UserError, match="bad, fair, good, best"):
        load_classifier(folder, "cpu")


@pytest.mark.parametrize(
    "theirs, classes, said",
    [
        (None, ("a", "b", "c", "d"), True),  # LABEL_0 … by number
        (["y", "x", "w", "z"], ("0", "1", "2", "3"), True),
        (["D", "c", "b", "a"], ("a", "b", "c", "d"), False),
    ],
)
def test_classes_of_any_data_set_fit_by_name_else_by_number(folder, theirs, classes, said, capsys):
    before = load_classifier(folder, "cpu").score.weight.detach().clone()
    if theirs:
        change_config(folder, id2label=dict(enumerate(theirs)))
    capsys.readouterr()
    model = load_classifier(folder, "cpu", classes=classes)
    assert ("matched with the data set's by number" in capsys.readouterr().out) == said
    expected = before if said else before.flip(0)
    assert torch.equal(model.score.weight, expected)
    assert model.config.id2label == dict(enumerate(classes))


def test_another_number_of_classes_is_refused(folder):
    with pytest.raises(UserError, match="has 4 labels where 3 are needed, one for each class"):
        load_classifier(folder, "cpu", classes=("a", "b", "c"))


def test_a_padding_token_of_its_own_pads_and_is_saved(tiny_tokenizer, tmp_path):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = make_tiny_gpt2(tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    single = []
    for text in TEXTS[:2]:  # alone nothing is padded
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            single.append(model(input_ids=ids).logits[0].numpy())
    np.testing.assert_allclose(logits_of(tmp_path / "theirs")[:2], np.stack(single), atol=2e-5)
    ours = load_tokenizer(tmp_path / "theirs")
    save_model(load_classifier(tmp_path / "theirs", "cpu"), ours, tmp_path / "saved", "card")
    saved = load_classifier(tmp_path / "saved", "cpu").config.pad_token_id
    assert saved == load_tokenizer(tmp_path / "saved").pad_token_id == tokenizer.pad_token_id


def test_the_saved_tokenizer_cuts_nothing_but_knows_how_long_a_text_may_be(folder, tmp_path):
    from transformers import AutoTokenizer

    logits_of(folder)
    tokenizer = load_tokenizer(folder)
    tokenize(tokenizer, Split("test", TEXTS, [0] * 3, "tiny"), 4)
    save_model(load_classifier(folder, "cpu"), tokenizer, tmp_path / "saved", "card")
    written = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert written["truncation"] is None and written["padding"] is None
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").model_max_length == 256


def test_a_tokenizer_of_another_model_is_refused(folder, tiny_texts):
    from gpt2_quant.data.demo import train_tokenizer

    train_tokenizer(tiny_texts[0], vocab_size=300).save_pretrained(folder)
    with pytest.raises(UserError, match="knows 300 tokens and its model 1000"):
        load_tokenizer(folder)


def test_the_pipeline_cuts_long_texts_and_answers_as_the_scripts_do(folder, tmp_path):
    from transformers import pipeline

    texts = [TEXTS[0], TEXTS[0] * 40, "<|endoftext|>"]
    save_model(load_classifier(folder, "cpu"), load_tokenizer(folder), tmp_path / "saved", "card")
    classify = pipeline(
        "text-classification", str(tmp_path / "saved"), truncation=True, top_k=None, device="cpu"
    )
    found = [
        [{x["label"]: x["score"] for x in answer}[label] for label in LABELS]
        for answer in classify(texts)
    ]
    tokenizer = load_tokenizer(folder)
    # An empty text is end-of-text to the scripts; the pipeline has no token to classify from.
    tokens = tokenize(tokenizer, Split("test", [*texts[:2], ""], [0] * 3, "tiny"), 256)
    logits = predict(load_classifier(folder, "cpu"), tokens, 4, tokenizer.pad_token_id, "tiny")
    np.testing.assert_allclose(found, torch.tensor(logits).softmax(-1), atol=1e-5)


def test_a_tokenizer_that_knows_no_word_is_refused(folder):
    """Short texts, too: encodings that are all alike tell nothing apart."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    with pytest.raises(UserError, match="one token of every text"):
        tokenize(tokenizer, Split("test", ["Oil rises", "Late goal"], [0, 1], "tiny"), 64)
