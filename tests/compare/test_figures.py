"""Figures: nothing overlaps at 2 to 12 rows, bars begin at zero, colours hold for colour-blind
readers.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from drawn_figures import keep_figures, outside, overlaps
from result_folders import STEPS, classifier, logits, write_results

from gpt2_quant.compare import figures
from gpt2_quant.compare.comparison import compare_results
from gpt2_quant.measure import figures as measure_figures
from gpt2_quant.models.variants import VARIANTS, style


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture
def drawn(monkeypatch):
    return keep_figures(monkeypatch, figures, measure_figures)


def outsiders(folder, count):
    """`count` more classifiers, as prediction files: the baseline's logits scaled, with names of
    some length.
    """
    folder.mkdir()
    for number in range(count):
        frame = pd.DataFrame({"id": np.arange(1000), "label": classifier()["labels"]})
        values = logits("nf4_scratch") * (1 + number / 10)
        for column in range(4):
            frame[f"logit_{column}"] = values[:, column]
        frame.to_csv(folder / f"another_classifier_{number}.csv", index=False)
    return folder


@pytest.mark.parametrize("count", [2, len(STEPS), 12])
def test_nothing_overlaps(results, drawn, tmp_path, count):
    few, all_ours = ("baseline", "nf4_bitsandbytes"), len(STEPS)
    folder = results if count >= all_ours else write_results(tmp_path / "few", few)
    more = outsiders(tmp_path / "outside", count - all_ours) if count > all_ours else None
    comparison = compare_results(folder, predictions=more)
    assert len(comparison.rows) == count
    figures.draw_all(comparison, tmp_path / "figures")
    assert len(drawn) == 6 + count
    for figure in drawn:
        assert overlaps(figure) == []
        assert outside(figure) == []


def test_bars_begin_at_zero_and_truncated_axes_say_so(results):
    comparison = compare_results(results)
    bars = figures.efficiency_comparison(comparison)
    assert [axes.get_xlim()[0] for axes in bars.axes] == [0, 0]
    points = figures.performance_comparison(comparison)
    assert points.axes[0].get_xlim()[0] > 0
    assert "truncated" in points.get_supxlabel()
    assert not points.axes[0].patches


def test_pareto_front_by_hand():
    points = [(1, 0.5), (2, 0.9), (2, 0.8), (3, 0.9), (4, 0.95), (5, 0.1)]
    assert figures.pareto_front(points) == [(1, 0.5), (2, 0.9), (4, 0.95)]


# Full-severity simulation matrices on linear RGB: Machado, Oliveira & Fernandes, IEEE TVCG 2009,
# table of section 5.
SIGHT = {
    "full": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour, sight):
    """CIELAB (D65) of a hex colour as seen with `sight`."""
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(SIGHT[sight]) @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    ratio = to_xyz @ seen / [0.9505, 1.0, 1.089]
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_our_variants_stay_apart_for_every_kind_of_sight(sight):
    colours = {key: lab(colour, sight) for key, (colour, _) in style(VARIANTS).items()}
    distances = {
        (one, other): np.linalg.norm(colours[one] - colours[other])
        for one, other in combinations(colours, 2)
    }
    closest = min(distances, key=distances.get)
    # A difference of 2.3 is just noticeable side by side; five times that is told apart at a
    # distance.
    assert distances[closest] > 11.5, closest


def test_a_variant_looks_the_same_whoever_stands_beside_it():
    alone, together = style(["nf4_scratch"]), style([*STEPS, "theirs", "others"])
    assert alone["nf4_scratch"] == together["nf4_scratch"]
    assert (
        len({colour for colour, _ in together.values()})
        == len({marker for _, marker in together.values()})
        == len(STEPS) + 2
    )
