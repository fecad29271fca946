"""Model cards: metadata that the hub reads, with the scores of the record and no local path."""

import pytest
import yaml

from gpt2_quant.data.labels import LABELS
from gpt2_quant.models.cards import write_card
from gpt2_quant.models.variants import BASELINE, VARIANTS


def record(base: str, data: str) -> dict:
    estimate = {"value": 0.91234, "low": 0.9, "high": 0.92}
    train = {"n": 12, "name": data, "sha256": "0" * 64}
    training = {
        "epochs": 3, "updates": 9, "batch_size": 16, "max_length": 128, "learning_rate": 2e-5,
        "precision": "fp32", "best_epoch": 2,
    }  # fmt: skip
    return {
        "training": training,
        "metrics": {"accuracy": estimate, "f1_macro": estimate},
        "provenance": {"git_commit": "abc", "packages": {"torch": "2"}, "device": "a CPU"},
        "checkpoint": {"base_model": base},
        "splits": {"train": train},
        "data": {"name": data, "split": "test", "n": 7, "classes": LABELS},
    }


def card_of(folder, variant, base, data) -> tuple[str, dict]:
    text = write_card(folder, record(base, data), variant, base).read_text(encoding="utf-8")
    return text, yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("variant", [v for v in VARIANTS.values() if v is BASELINE or v.method])
def test_the_metadata_of_ids_and_of_folders(variant, tmp_path):
    _, said = card_of(tmp_path, variant, "openai-community/gpt2", "fancyzhx/ag_news")
    assert said["datasets"] == ["fancyzhx/ag_news"]
    assert said["base_model"] == "openai-community/gpt2" and said["license"] == "other"
    (result,) = said["model-index"][0]["results"]
    assert result["dataset"] == {
        "name": "fancyzhx/ag_news",
        "type": "fancyzhx/ag_news",
        "split": "test",
    }
    scores = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert scores == {"accuracy": 0.9123, "f1": 0.9123}

    private = tmp_path / "somebody's: models"
    private.mkdir()
    text, said = card_of(tmp_path, variant, str(private), str(private))
    assert not {"datasets", "base_model"} & said.keys() and str(tmp_path) not in text
    assert said["model-index"][0]["results"][0]["dataset"]["name"] == private.name
