"""The rules of the house, and a toy variant that walks through all of its rooms.

The toy is what README's "Adding a variant" promises: one registry entry and one object, and nothing
else has to know of it.
"""

import ast
import copy
import json
import re
import runpy
from importlib.metadata import packages_distributions

import pandas as pd
import pytest
from tiny_models import ROOT, save_tiny_gpt2, write_news

from gpt2_quant.models import variants

SRC = ROOT / "src"
PYTHON_FILES = sorted(SRC.rglob("*.py"))
GROUND_FLOOR = {"errors", "cli", "records", "cache", "style"}
ROOMS = {
    "reports", "compare", "metrics", "training", "measure", "inference", "models", "quantization",
    "data",
}  # fmt: skip
# Of all Python below src/: 516,000 when the house was built. Since then any data set, checks of
# others' checkpoints, FP8, TF32 and TF-IDF rows, long texts and several GPUs in the fused step,
# a seed per process, latency by blocks, claims as a table, answers for one's own data, ONNX, halves
# of a batch at once, attention on CPUs.
MOST_CHARACTERS = 657_000
MOST_LINES, MOST_SCRIPT_LINES = 300, 120


class FourBits:
    """A `Method`: every matrix rounded to 15 steps of its largest value, kept as plain floats."""

    def quantize(self, key, model, folder, dtype):
        rounded = copy.deepcopy(model).to(dtype)
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                step = parameter.data.abs().max() / 7
                parameter.data = (parameter.data / step).round() * step
        return rounded.eval()

    def facts(self, model):
        return {"scheme": "toy", "bits": 4}


TOY = FourBits()
ENTRY = variants.Variant(
    "toy", "Toy INT4", script=3, colour="#009e73", marker="*", method="test_house:TOY",
    description="Rounded to 4 bits, kept as floats.", floats="float32",
)  # fmt: skip


@pytest.fixture
def toy():
    """The toy, registered for one test."""
    variants.register(ENTRY)
    yield ENTRY
    del variants.VARIANTS[ENTRY.key]


@pytest.fixture
def workplace(tmp_path, tiny_tokenizer, tiny_texts):
    """models/ with a (random) FP32 classifier, and data/ in AG News' form."""
    save_tiny_gpt2(tmp_path / "models" / variants.BASELINE.folder, tiny_tokenizer)
    write_news(tmp_path / "data", tiny_texts, 400, 80)
    return tmp_path


@pytest.mark.e2e
def test_a_toy_variant_walks_through_every_room(toy, workplace, monkeypatch, capsys):
    import torch

    from gpt2_quant.cli import parser, settings_from
    from gpt2_quant.data.datasets import load_splits
    from gpt2_quant.data.tokens import load_tokenizer
    from gpt2_quant.measure.evaluation import evaluate_variant
    from gpt2_quant.measure.latency import measure_and_store
    from gpt2_quant.models.cards import save_model
    from gpt2_quant.models.loading import load_classifier, load_variant

    models, results = workplace / "models", workplace / "results"
    baseline = models / variants.BASELINE.folder
    flags = [
        "--preset", "demo", "--device", "cpu", "--base-model", baseline,
        "--dataset", workplace / "data", "--models-dir", models, "--results-dir", results,
    ]  # fmt: skip
    settings = settings_from(parser("A test.").parse_args(list(map(str, flags))))
    assert toy in variants.made_by(toy.script)

    # Saved, loaded from the disk, evaluated; the baseline beside it, to compare with.
    tokenizer, splits = load_tokenizer(baseline), load_splits(settings)
    model = load_classifier(baseline, "cpu")
    quantized = toy.how.quantize(toy.key, model, baseline, torch.float32)
    save_model(quantized, tokenizer, models / toy.folder, card="")
    for variant in (variants.BASELINE, toy):
        loaded = load_variant(variant.key, models, "cpu")
        facts = {"quantization": variant.how.facts(loaded)} if variant.method else {}
        evaluate_variant(
            settings, variant.key, loaded, tokenizer, splits,
            folder=models / variant.folder, baseline=baseline, extra=facts,
        )  # fmt: skip
    weights = load_variant(toy.key, models, "cpu").transformer.h[0].mlp.c_fc.weight
    assert len(weights.unique()) <= 15

    assert set(measure_and_store(settings)) == {variants.BASELINE.key, toy.key}
    record = json.loads((results / "records" / f"{toy.key}.json").read_text(encoding="utf-8"))
    assert record["quantization"] == {"scheme": "toy", "bits": 4}
    assert all(entry["median_ms"] > 0 for entry in record["latency"]) and record["latency"]

    # Script 5 as it stands, in this process, where the toy is registered.
    monkeypatch.setattr("sys.argv", ["5_compare_all_models.py", *map(str, flags)])
    runpy.run_path(str(SRC / "5_compare_all_models.py"))["main"]()
    assert toy.label in capsys.readouterr().out
    table = pd.read_csv(results / "comparison_table.csv").set_index("Model")
    assert table.loc[toy.label, "Accuracy"] == pytest.approx(
        record["metrics"]["accuracy"]["value"], abs=5e-5
    )
    for name in (f"{toy.key}_confusion_matrix", "performance_comparison", "efficiency_comparison"):
        assert (results / f"{name}.png").stat().st_size > 5000
    assert (results / "report_2.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("key", variants.VARIANTS)
def test_only_the_registry_names_variants(key):
    # "baseline" is a word of every day, too: there, only comparing with it counts.
    pattern = rf"\b{key}\b" if "_" in key else rf"[=!]=\s*[\"']{key}[\"']"
    naming = {
        path.relative_to(SRC).as_posix()
        for path in (*PYTHON_FILES, *SRC.rglob("*.typ"))
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }
    assert naming <= {"gpt2_quant/models/variants.py"}


def test_nine_rooms_on_a_ground_floor():
    package = SRC / "gpt2_quant"
    assert {path.stem for path in package.glob("*.py")} - {"__init__"} <= GROUND_FLOOR
    assert {path.parent.name for path in package.glob("*/__init__.py")} == ROOMS
    folders = {path.name for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}
    assert folders <= ROOMS | {"scripts", "benchmarks"}


def test_files_stay_small_and_open_with_what_they_teach():
    texts = {path: path.read_text(encoding="utf-8") for path in PYTHON_FILES}
    assert sum(map(len, texts.values())) <= MOST_CHARACTERS
    for path, text in texts.items():
        most = MOST_LINES if path.is_relative_to(SRC / "gpt2_quant") else MOST_SCRIPT_LINES
        assert len(text.splitlines()) <= most, path
        assert ast.get_docstring(ast.parse(text)), path
        assert "sys.path" not in text, path


def test_every_requirement_is_at_work():
    """Each package that running needs is imported in src/ or by verify_setup.py."""
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    modules = {normal(pin): [] for pin in pins}
    for module, packages in packages_distributions().items():
        for package in map(normal, packages):
            modules.get(package, []).append(module)
    files = [*PYTHON_FILES, ROOT / "verify_setup.py"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    imported = re.compile(r"^\s*(?:from|import) (\w+)|[\"'](\w+)[\"']", re.MULTILINE)
    names = {name for found in imported.findall(code) for name in found}
    assert len(pins) > 20
    assert not [pin for pin, of_pin in modules.items() if not names & set(of_pin)]


def normal(package: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()
