"""lm-evaluation-harness (pip install "lm-eval[hf]==0.4.13") on language models of ours: its word
perplexity and multiple-choice accuracy are those that the models' logits give.
"""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from tiny_models import make_tiny_gpt2

from gpt2_quant.cli import ROOT
from gpt2_quant.models.variants import BASELINE, VARIANTS
from gpt2_quant.quantization.quantizer import quantize_model

KEYS = [BASELINE.key, *(key for key, variant in VARIANTS.items() if variant.by_hand)]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
"""
WORDS = """
task: tiny_words
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""
CHOICE = """
task: tiny_choice
output_type: multiple_choice
doc_to_text: "{{start}}"
doc_to_choice: "{{ends}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def ground(tiny_tokenizer, tiny_texts, tmp_path_factory):
    """Tasks and models in one folder, with the texts and choices of the tasks."""
    folder = tmp_path_factory.mktemp("lm_eval")
    texts = tiny_texts[0][:12]
    words = [text.split() for text in texts]
    choices = [
        {"start": " ".join(w[:4]), "ends": [" ".join(w[4:8]), " ".join(w[8:4:-1])], "right": i % 2}
        for i, w in enumerate(words)
    ]
    for name, task, rows in (
        ("words", WORDS, [{"text": text} for text in texts]),
        ("choice", CHOICE, choices),
    ):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(task + COMMON.format(file=file))
    for key in KEYS:
        model = make_tiny_gpt2(tiny_tokenizer, head=False)
        if key != BASELINE.key:
            quantize_model(model, key)
        model.save_pretrained(folder / key)
        tiny_tokenizer.save_pretrained(folder / key)
    return folder, texts, choices


def log_likelihood(model, tokenizer, context: str, target: str) -> float:
    """Of the target's tokens, after the context (end-of-text where it is empty)."""
    before = tokenizer(context)["input_ids"] if context else [tokenizer.eos_token_id]
    after = tokenizer(f"{context} {target}" if context else target)["input_ids"]
    ids = torch.tensor([after if context else before + after])
    with torch.inference_mode():
        logs = model(ids).logits[0].log_softmax(-1)
    return sum(logs[i - 1, ids[0, i]].item() for i in range(len(before), ids.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_its_figures_are_those_of_the_logits(key, ground, tiny_tokenizer, tmp_path):
    pytest.importorskip("lm_eval")
    from transformers import AutoModelForCausalLM

    folder, texts, choices = ground
    command = [sys.executable, "-m", "gpt2_quant.models.lm_eval", "--model", "hf"]
    command += ["--model_args", f"pretrained={folder / key},dtype=float32", "--device", "cpu"]
    command += ["--tasks", "tiny_words,tiny_choice", "--include_path", str(folder)]
    command += ["--output_path", str(tmp_path), "--batch_size", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]

    model = AutoModelForCausalLM.from_pretrained(folder / key, dtype=torch.float32).eval()
    total = sum(log_likelihood(model, tiny_tokenizer, "", text) for text in texts)
    perplexity = math.exp(-total / sum(len(text.split()) for text in texts))
    # Batches are padded, and sums of float32 taken in another order.
    assert results["tiny_words"]["word_perplexity,none"] == pytest.approx(perplexity, rel=1e-4)
    hits = 0
    for row in choices:
        scores = [log_likelihood(model, tiny_tokenizer, row["start"], end) for end in row["ends"]]
        hits += scores.index(max(scores)) == row["right"]
    assert results["tiny_choice"]["acc,none"] == hits / len(choices)


def test_without_lm_eval_it_is_a_sentence(monkeypatch):
    from gpt2_quant.errors import UserError
    from gpt2_quant.models import lm_eval

    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        lm_eval.main()
