"""The figures of one classifier and of its training."""

import numpy as np
import pandas as pd
import pytest
from drawn_figures import keep_figures, outside, overlaps
from matplotlib.text import Text
from result_folders import classifier, logits

from gpt2_quant.measure import figures as plots
from gpt2_quant.training import figures as training_plots


@pytest.fixture
def drawn(monkeypatch):
    return keep_figures(monkeypatch, plots, training_plots)


def test_training_curve_has_nothing_on_top_of_anything(drawn, tmp_path):
    steps = np.arange(10, 9000, 10)
    frame = pd.DataFrame({"step": steps, "train_loss": 1.4 * np.exp(-steps / 900) + 0.2})
    frame["learning_rate"] = 2e-5 * (1 - steps / 9000)
    frame["validation_loss"] = np.where(steps % 2990 == 0, 0.3, np.nan)
    frame["validation_accuracy"] = np.where(steps % 2990 == 0, 0.92, np.nan)
    training_plots.training_curve(frame, tmp_path / "curve.png")
    assert [overlaps(figure) + outside(figure) for figure in drawn] == [[]]


def test_confusion_matrix_shows_the_counts(drawn, tmp_path):
    labels, values = classifier()["labels"], logits("nf4_scratch")
    plots.confusion_matrix(labels, values, "NF4", tmp_path / "a.png")
    shown = [text.get_text().split("\n")[0] for text in drawn[0].axes[0].texts[:16]]
    expected = [
        str(((labels == i) & (values.argmax(axis=1) == j)).sum())
        for i in range(4)
        for j in range(4)
    ]
    assert shown == expected


def test_a_class_name_of_one_long_word_is_cut_and_long_names_have_room(drawn, tmp_path):
    names = [f"{i:02}_balance_not_updated_after_a_deposit\nof cash" for i in range(21)]
    labels = np.arange(210) % 21
    plots.confusion_matrix(labels, np.eye(21)[labels], "NF4", tmp_path / "a.png", names)
    (figure,) = drawn
    assert overlaps(figure) + outside(figure) == []
    shown = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert sorted(shown) == [f"{i:02}_balance_not_updated_after_a_…" for i in range(21)]


@pytest.mark.parametrize("n_classes", [2, 20, 21, 150])
def test_confusion_matrix_can_be_read_at_any_number_of_classes(drawn, tmp_path, n_classes):
    """No text covers another or leaves the figure, none is below 6 points, and beyond 20 classes
    the most frequent confusion (of the first class for the last) is listed and put side by side.
    """
    labels = np.arange(n_classes * 20) % n_classes
    values = 4.0 * np.eye(n_classes)[labels]
    mistaken = np.flatnonzero(labels == 0)[:9]
    values[mistaken, -1] = 9
    names = [f"a $ class, number {i}" for i in range(n_classes)]
    plots.confusion_matrix(labels, values, "NF4", tmp_path / "a.png", names)
    (figure,) = drawn
    assert overlaps(figure) + outside(figure) == []
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 6
    shown = [tick.get_text().replace("\\", "") for tick in figure.axes[0].get_yticklabels()]
    assert sorted(shown) == sorted(names)
    listed = any(
        f"number 0 → a \\$ class, number {n_classes - 1}: 9, 45%" in text.get_text()
        for text in figure.findobj(Text)
    )
    assert listed == (n_classes > 20)
    if listed:
        assert abs(shown.index(names[0]) - shown.index(names[-1])) == 1


def test_png_and_pdf_are_written_alike_each_time(tmp_path):
    def draw(name):
        return plots.confusion_matrix(
            classifier()["labels"], logits("baseline"), "Baseline", tmp_path / name
        )

    first, second = draw("a.png"), draw("b.png")
    assert [path.suffix for path in first] == [".png", ".pdf"]
    assert first[0].read_bytes()[:4] == b"\x89PNG" and first[1].read_bytes()[:4] == b"%PDF"
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
