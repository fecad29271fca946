"""The training curve."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..style import look, save

TRAIN, VALIDATION, RATE, WINDOW = "#1f4e79", "#d55e00", "#117733", "#b9c2ca"


def training_curve(frame: pd.DataFrame, path: Path) -> list[Path]:
    """Loss, validation accuracy and learning rate over updates.

    `frame` is that of `loop.curve`: NaN in `validation_*` where validation was not run.
    """
    validated, steps = frame.dropna(subset=["validation_loss"]), frame["step"]
    window = max(1, len(frame) // 40)
    smooth = frame["train_loss"].rolling(window, min_periods=1).mean()
    with look():
        figure = Figure(figsize=(9.9, 3.0), layout="constrained")
        loss, accuracy, rate = figure.subplots(1, 3)
        loss.plot(steps, frame["train_loss"], color=WINDOW, lw=0.8, label="train, each log line")
        loss.plot(steps, smooth, color=TRAIN, lw=1.6, label=f"train, mean of last {window}")
        loss.plot(
            "step", "validation_loss", "o", data=validated, color=VALIDATION, label="validation"
        )
        loss.set_ylim(bottom=0)
        loss.set_title("cross-entropy (nats)", loc="left")
        loss.legend(fontsize=8)
        accuracy.plot("step", "validation_accuracy", "o-", data=validated, color=VALIDATION)
        accuracy.yaxis.set_major_locator(MaxNLocator(5))
        accuracy.set_title("validation accuracy (axis truncated)", loc="left")
        rate.plot(steps, frame["learning_rate"], color=RATE)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        rate.set_ylim(bottom=0)
        rate.set_title("learning rate", loc="left")
        for axes in figure.axes:
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(axis="y")
        return save(figure, path)
