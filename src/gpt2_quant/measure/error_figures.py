"""The heat map of quantization error: depth by matrix, one panel a weight scheme, one colour scale
for all.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from .. import style as plots

EMBEDDINGS = ("wte", "wpe")


def heat_map(weights: pd.DataFrame, path: Path) -> list[Path]:
    """Draw SQNR in dB of every matrix; `weights` as `error_analysis.weight_errors` makes it.
    Returns the files written.

    The two embeddings have no depth: they share the row above layer 0. Brighter is better; 6 dB are
    one bit.
    """
    schemes = list(dict.fromkeys(weights["scheme"]))
    layered = weights[weights["layer"].notna()]
    kinds = list(dict.fromkeys(layered["matrix"]))
    depth = int(layered["layer"].max()) + 1
    low, high = weights["sqnr_db"].min(), weights["sqnr_db"].max()
    with plots.look():
        figure = Figure(
            figsize=(1.6 + 1.55 * len(schemes), 1.6 + 0.25 * (depth + 1)), layout="constrained"
        )
        panels = figure.subplots(1, len(schemes), sharey=True, squeeze=False)[0]
        for axes, scheme in zip(panels, schemes, strict=True):
            rows = weights[weights["scheme"] == scheme]
            grid = (
                rows[rows["layer"].notna()]
                .pivot(index="layer", columns="matrix", values="sqnr_db")[kinds]
                .to_numpy()
            )
            embeddings = rows[rows["layer"].isna()].set_index("matrix")["sqnr_db"]
            top = [[embeddings[name] for name in EMBEDDINGS]]
            image = axes.imshow(
                grid,
                vmin=low,
                vmax=high,
                aspect="auto",
                extent=(0, len(kinds), depth, 0),
                cmap="cividis",
            )
            axes.imshow(
                top,
                vmin=low,
                vmax=high,
                aspect="auto",
                extent=(0, len(kinds), -0.4, -1.4),
                cmap="cividis",
            )
            for i, name in enumerate(EMBEDDINGS):
                shade = "black" if embeddings[name] > (low + high) / 2 else "white"
                axes.text(
                    (i + 0.5) * len(kinds) / 2,
                    -0.9,
                    name,
                    ha="center",
                    va="center",
                    fontsize=10,
                    color=shade,
                )
            axes.set_ylim(depth, -1.4)
            axes.set_xlim(0, len(kinds))
            axes.set_xticks([i + 0.5 for i in range(len(kinds))], kinds, rotation=90, fontsize=10)
            axes.set_yticks([i + 0.5 for i in range(depth)], range(depth), fontsize=10)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            mean = rows["sqnr_db"].mean()
            title = scheme.replace(" per ", "\nper ").replace(" least", "\nleast")
            axes.set_title(f"{title}\n{mean:.1f} dB", fontsize=11)
        panels[0].set_ylabel("layer", fontsize=11)
        bar = figure.colorbar(image, ax=list(panels), shrink=0.9)
        bar.set_label("SQNR (dB)", fontsize=11)
        bar.ax.tick_params(labelsize=10)
        return plots.save(figure, path)
