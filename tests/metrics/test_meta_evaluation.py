"""Correlations, intervals and tests against SciPy and by hand; both forms of the human data."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gpt2_quant.errors import UserError
from gpt2_quant.metrics.studies import human_study
from gpt2_quant.metrics.studies import meta_evaluation as meta
from gpt2_quant.metrics.studies.human_judgements import QUALITIES, SummEval, load_human_judgements
from gpt2_quant.metrics.studies.resampling import document_means, draws


@pytest.fixture
def columns():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(30, 12))
    return x, x + draw.normal(size=x.shape), x + 3 * draw.normal(size=x.shape)


def test_correlations_equal_scipy(columns):
    x, y, _ = (column[0] for column in columns)
    x = np.round(x)  # ties
    assert meta.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert meta.kendall(x[None], y[None]) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert meta.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    with_gap = np.append(x, np.nan), np.append(y, 1.0)
    assert meta.spearman(*with_gap) == pytest.approx(meta.spearman(x, y))
    assert np.isnan(meta.spearman(np.ones(5), np.arange(5.0)))


def test_partial_correlation_equals_correlation_of_residuals(columns):
    x, y, z = (stats.rankdata(column[0]) for column in columns)

    def residual(a):
        return a - np.polyval(np.polyfit(z, a, 1), z)

    expected = stats.pearsonr(residual(x), residual(y)).statistic
    assert meta.partial_spearman(x, y, z) == pytest.approx(expected)
    assert meta.partial_spearman(x, y, np.ones(12)) == pytest.approx(meta.spearman(x, y))


def test_interval_covers_and_difference_sees_what_is_there(columns):
    ratings, close, far = columns
    drawn = draws(30)
    first, second = meta.spearman(close, ratings), meta.spearman(far, ratings)
    result = meta.interval_of_mean(first, drawn)
    assert result["value"] == pytest.approx(first.mean())
    assert result["low"] < result["value"] < result["high"]
    # The bootstrap's standard error of a mean is s / sqrt(n); 2,000 resamples know it to about 2
    # percent.
    width = result["high"] - result["low"]
    assert width == pytest.approx(2 * 1.96 * first.std() / np.sqrt(30), rel=0.15)
    gap = meta.difference(first, second, drawn)
    assert gap["low"] > 0 and gap["p"] < 0.01
    none = meta.difference(first, first, drawn)
    assert none["value"] == 0 and none["p"] == 1


def test_undefined_documents_are_left_out():
    drawn = draws(4)
    result = meta.interval_of_mean(np.array([0.5, np.nan, 0.5, 0.5]), drawn)
    assert result["value"] == 0.5 and result["n"] == 3


def test_a_constant_metric_ranks_nothing_and_a_constant_rating_leaves_the_document_out():
    x = np.array([[1.0, 1, 1], [1, 2, 3], [3, 1, 2], [1, np.nan, np.nan]])
    y = np.array([[1.0, 2, 3], [1, 2, 3], [4, 4, 4], [1, 2, 3]])
    result = meta.summary_level(x, y, np.ones_like(x))
    for correlation in result.values():
        np.testing.assert_allclose(correlation, [0, 1, np.nan, np.nan])


def test_means_over_resampled_documents():
    # Documents of 1, 2 and 3 rows; all rows of one document go together.
    values = pd.DataFrame({"a": [0.0, 1, 1, 2, 2, 2], "b": [np.nan, 1, 3, 5, 5, 5]})
    means = document_means(values, pd.Series([7, 8, 8, 9, 9, 9]))
    counts = np.array([np.bincount(row, minlength=3) for row in draws(3)])
    expected = counts @ [0, 2, 6] / (counts @ [1, 2, 3])
    np.testing.assert_allclose(means[:, 0], expected)
    only_first = (counts[:, 1:] == 0).all(1)
    assert only_first.any() and np.isnan(means[only_first, 1]).all()
    # The variance of whole documents is that of the three means, not of six rows.
    assert means[:, 0].min() == 0 and means[:, 0].max() == 2


@pytest.fixture
def rated():
    """20 documents x 6 systems rated by the length of what they said, and metrics that know it."""
    rng = np.random.default_rng(0)
    ratings = rng.normal(size=(20, 6))
    texts = ["x"] * 20, [["x"]] * 20, list("abcdef"), [["x"] * 6] * 20
    data = SummEval(*texts, {"coherence": ratings})
    noise = rng.normal(size=ratings.shape)
    names = [*human_study.RIVALS, "ROUGE-1, eleven references"]
    metrics = {name: rng.normal(size=ratings.shape) for name in names}
    metrics |= {"SCS": ratings + noise, "ROUGE-1, eleven references": ratings + 0.1 * noise}
    metrics["adjacent cosine"] = np.ones_like(ratings)
    return data, metrics


def test_the_strongest_rival_is_found_and_all_rows_have_one_n(rated):
    table = human_study.coherence_differences(*rated)
    strongest = table[table["strongest"]]
    assert set(strongest["rival"]) == {"ROUGE-1, eleven references"}
    assert (strongest["high"] < 0).all()  # it is better than SCS here, and the table says so
    assert set(table["n"]) == {20}  # the constant metric's documents are not dropped


def test_williams_against_a_worked_case():
    # r12 = .50, r13 = .30, r23 = .40, n = 103: |R| = 1 - .25 - .09 - .16 + .12 = .62; rm = .4
    # t = .2 sqrt(102 * 1.4 / (2 * .62 * 102 / 100 + .16 * .216)) = 2.0966, df = 100
    t = 0.2 * np.sqrt(102 * 1.4 / (2 * 0.62 * 102 / 100 + 0.16 * 0.6**3))
    assert t == pytest.approx(2.0966, abs=1e-4)
    assert meta.williams(0.5, 0.3, 0.4, 103) == pytest.approx(2 * stats.t.sf(t, 100))
    assert meta.williams(0.5, 0.5, 0.4, 103) == 1


def test_folder_of_human_judgements(human_judgements_dir):
    summeval, pairs = load_human_judgements(str(human_judgements_dir))
    assert (len(summeval.sources), len(summeval.systems)) == (100, 16)
    assert {len(group) for group in summeval.references} == {11}
    assert all(summeval.ratings[quality].shape == (100, 16) for quality in QUALITIES)
    assert (
        min(r.min() for r in summeval.ratings.values()) >= 1
        and max(r.max() for r in summeval.ratings.values()) <= 5
    )
    assert len(pairs.first) == len(pairs.second) == 1379
    # Only counting sentences reaches this much on coherence: known beforehand, so data and
    # statistics are in order.
    counts = np.array(
        [[-float(text.count(" . ") + 1) for text in row] for row in summeval.summaries]
    )
    agreement = np.nanmean(meta.spearman(counts, summeval.ratings["coherence"]))
    assert agreement == pytest.approx(0.23, abs=0.04)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no summeval\.jsonl"):
        load_human_judgements(str(tmp_path))
    (tmp_path / "summeval.jsonl").write_text('{"id": 1}\n')
    (tmp_path / "stsb_test.csv").write_text("a\tb\n")
    with pytest.raises(UserError, match="not in the stated form"):
        load_human_judgements(str(tmp_path))
