"""The training curve."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..style import look, save

TRAIN, VALIDATION, RATE, WINDOW = "#1f4e79", "#d55e00", "#117733", "#b9c2ca"


def training_curve(frame: pd.DataFrame, path: Path) -> list[Path]:
    """`frame`: see `loop.curve`."""
    frame = frame.set_index("step")
    validated, train = frame.dropna(subset=["validation_loss"]), frame["train_loss"]
    window = max(1, len(frame) // 40)
    smooth = train.rolling(window, min_periods=1).mean()
    with look():
        figure = Figure(figsize=(9.9, 3.0), layout="constrained")
        loss, accuracy, rate = figure.subplots(1, 3)
        loss.plot(train, color=WINDOW, lw=0.8, label="train, each log line")
        loss.plot(smooth, color=TRAIN, lw=1.6, label=f"train, mean of last {window}")
        loss.plot(validated["validation_loss"], "o", color=VALIDATION, label="validation")
        loss.legend(fontsize=8)
        accuracy.plot(validated["validation_accuracy"], "o-", color=VALIDATION)
        rate.plot(frame["learning_rate"], color=RATE)
        rate.yaxis.set_major_formatter("{x:.3g}")
        titles = ("cross-entropy (nats)", "validation accuracy (axis truncated)", "learning rate")
        for axes, title, bottom in zip(figure.axes, titles, (0, None, 0), strict=True):
            axes.set_title(title, loc="left")
            axes.set_xlabel("optimizer step")
            axes.set_ylim(bottom=bottom)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(axis="y")
        return save(figure, path)
