"""Preset sizes, and the study's record, written part by part."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ...cli import PRESETS, Settings
from ...data.datasets import Split, load_splits
from ...records import load_record, provenance, save_record, write_csv
from ..embeddings import Encoder
from ..suite import Tools
from . import figures

PARTS = ("scores", "edits", "humans", "coherence", "held_out", "quantization")


@dataclass(frozen=True)
class Size:
    """Texts per part, strengths of edits, shuffles per text."""

    edits: int
    strengths: tuple[int, ...]
    permutations: int
    coherence_texts: int
    held_out: int
    baseline_texts: int


SIZES = {
    "paper": Size(200, (1, 3), 20, 100, 200, 500),
    "demo": Size(8, (2,), 5, 12, 24, 40),
}


def news_or_none(settings: Settings, parts: set[str], people: object | None) -> Split | None:
    """The test split, None where no part reads it: with SummEval at hand three do not."""
    without = {"humans", "edits", "coherence"} if people else {"humans"}
    return load_splits(settings)["test"] if parts - without else None


class Study:
    """Writes results as they come; `outputs` lists the files."""

    def __init__(self, settings: Settings, tools: Tools, news: Split | None):
        self.settings, self.outputs = settings, list[Path]()
        self.news = news.texts if news else []
        self.data = news.describe() if news else None
        model, signature = tools.language_model.model, tools.language_model.signature
        self.models = {
            "language_model": signature,
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": model.config.n_layer,
            "width": model.config.n_embd,
            "published": settings.base_model == PRESETS["paper"].base_model,
            "encoder": Encoder.signature,
        }
        self._sections: dict[str, dict] = {}

    def write(self, name: str, table: pd.DataFrame, figure: Callable | None = None) -> None:
        path = self.settings.results_dir / f"{name}.csv"
        write_csv(path, table)
        self.outputs.append(path)
        if figure:
            self.draw(name, table, figure)

    def draw(self, name: str, table: pd.DataFrame, figure: Callable) -> None:
        self.outputs += figures.draw(figure, table, self.settings.results_dir / f"{name}.png")

    def keep(self, part: str, shown: list[pd.DataFrame], **section) -> None:
        """Record one part, tables as lists of rows, and print `shown`."""
        self._sections[part] = {
            name: value.to_dict("records") if isinstance(value, pd.DataFrame) else value
            for name, value in section.items()
        }
        print(f"\n{part}")
        for table in shown:
            table = table.drop(columns="signature", errors="ignore")
            named = table.set_index(table.columns[0])  # names each row of each part of a wide table
            print(named.to_string(line_width=100, float_format="{:.3f}".format), "\n", flush=True)

    def save(self) -> Path:
        """Write the record; parts of an earlier run with the same models stay in it."""
        path = self.settings.results_dir / "records" / "text_metrics.json"
        before = load_record(path) if path.is_file() else {}
        same = before.get("models") == self.models
        record = {
            "settings": self.settings.as_dict(),
            "data": self.data or (before.get("data") if same else None),
            "models": self.models,
            "provenance": provenance(self.settings.device, self.settings.seed),
            **{part: before[part] for part in PARTS if same and part in before},
            **self._sections,
        }
        return save_record(self.settings.results_dir, "text_metrics", record)
