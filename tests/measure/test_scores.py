"""Scores against scikit-learn, statsmodels and numbers worked by hand."""

import numpy as np
import pytest
from result_folders import classifier, logits
from scipy.special import log_softmax, softmax
from sklearn import metrics
from statsmodels.stats.proportion import proportion_confint

from gpt2_quant.errors import UserError
from gpt2_quant.measure import scores


@pytest.fixture(scope="module")
def outside():
    """Labels [1000] and logits [1000, 4] of a classifier made with scikit-learn."""
    return classifier()["labels"], logits("nf4_scratch")


@pytest.fixture(scope="module")
def scored(outside):
    return scores.classification_scores(*outside, resamples=2000)


def test_values_are_scikit_learns(outside, scored):
    labels, values = outside
    predicted, probability = values.argmax(axis=1), softmax(values.astype(float), axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, zero_division=0
    )
    expected = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "precision_macro": precision.mean(),
        "recall_macro": recall.mean(),
        "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
        "f1_weighted": metrics.f1_score(labels, predicted, average="weighted"),
        "nll": metrics.log_loss(labels, probability),
        "brier": metrics.brier_score_loss(labels, probability, scale_by_half=False),
    }
    for number in range(4):
        expected |= {
            f"precision_{number}": precision[number],
            f"recall_{number}": recall[number],
            f"f1_{number}": f1[number],
        }
        assert scored[f"recall_{number}"]["n"] == support[number]
    for name, value in expected.items():
        # Sums are of float32 terms: 24 bits, about 1e-7 relative a term.
        assert scored[name]["value"] == pytest.approx(value, rel=1e-6), name


def test_wilson_is_statsmodels_and_the_hand_worked_case(outside, scored):
    # 9 of 10, z = 1.96: centre (0.9 + z²/20) / (1 + z²/10) = 0.7890, half-width 0.1931.
    assert scores.wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert scores.wilson(0, 0) == (0.0, 1.0)
    labels, values = outside
    hits = int((values.argmax(axis=1) == labels).sum())
    low, high = proportion_confint(hits, len(labels), method="wilson")
    assert (scored["accuracy"]["low"], scored["accuracy"]["high"]) == pytest.approx((low, high))


def test_calibration_error_by_hand():
    # Four rows of two classes. Confidence 0.7: one right, one wrong: |0.7 - 0.5|; confidence 0.9:
    # both right: |0.9 - 1|.
    probability = np.array([[0.7, 0.3], [0.3, 0.7], [0.9, 0.1], [0.1, 0.9]])
    values = scores.classification_scores(np.array([0, 0, 0, 1]), np.log(probability), resamples=50)
    assert values["ece"]["value"] == pytest.approx(0.5 * 0.2 + 0.5 * 0.1)
    diagram = scores.reliability(np.array([0, 0, 0, 1]), np.log(probability))
    assert diagram["count"].tolist() == [2, 2]
    assert diagram["accuracy"].tolist() == [0.5, 1.0]
    assert diagram["confidence"].tolist() == pytest.approx([0.7, 0.9])


def test_calibration_error_is_the_textbook_loop(outside, scored):
    labels, values = outside
    probability = softmax(values.astype(float), axis=1)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == labels
    edges, error = np.linspace(0, 1, 16), 0.0
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert scored["ece"]["value"] == pytest.approx(error, rel=1e-5)
    runs = np.array_split(np.argsort(confidence, kind="stable"), 15)
    adaptive = sum(
        len(run) / len(labels) * abs(confidence[run].mean() - right[run].mean()) for run in runs
    )
    assert scored["ece_adaptive"]["value"] == pytest.approx(adaptive, rel=1e-5)


def test_count_scores_are_scikit_learns_on_the_samples_drawn(outside):
    """Each drawn table, spelt out row by row and handed to scikit-learn."""
    labels, values = outside
    answers = np.column_stack([labels, values.argmax(axis=1)])
    cells, counts = scores.draw_counts(answers, 25, seed=3)
    fast = scores.count_scores(counts, *cells, 4)["f1_macro"]
    assert (counts.sum(axis=1) == len(labels)).all() and len(np.unique(fast[1:])) > 20
    for times, found in zip(counts, fast, strict=True):
        truth, predicted = (np.repeat(cell, times) for cell in cells)
        assert found == pytest.approx(
            metrics.f1_score(truth, predicted, average="macro"), rel=1e-12
        )
    assert fast[0] == pytest.approx(metrics.f1_score(*answers.T, average="macro"), rel=1e-12)


def test_sums_are_those_of_rows_drawn_with_replacement(outside):
    labels, values = outside
    terms = scores.row_terms(labels, values)
    found = scores.sum_scores(scores.draw_sums(terms, 25, seed=3), len(labels))["nll"]
    probability = softmax(values.astype(float), axis=1)
    rows = np.random.default_rng(3).integers(0, 1000, size=(25, 1000), dtype=np.int32)
    slow = [metrics.log_loss(labels[drawn], probability[drawn], labels=range(4)) for drawn in rows]
    assert found[1:] == pytest.approx(slow, rel=1e-5)
    assert found[0] == pytest.approx(metrics.log_loss(labels, probability), rel=1e-6)


def test_the_bootstraps_spread_is_the_binomials(outside):
    labels, values = outside
    answers = np.column_stack([labels, values.argmax(axis=1)])
    cells, counts = scores.draw_counts(answers, 10_000, seed=0)
    sample = scores.count_scores(counts[1:], *cells, 4)["accuracy"]
    accuracy = (answers[:, 0] == answers[:, 1]).mean()
    # A standard deviation from 10,000 draws is known to 1/sqrt(20,000) = 0.7%; four times that.
    expected = np.sqrt(accuracy * (1 - accuracy) / len(labels))
    assert sample.std() == pytest.approx(expected, rel=0.028)


def test_a_mistake_costs_what_its_confidence_says():
    """A wrong answer at 100 nats, where scikit-learn's log_loss stops at 36."""
    found = scores.classification_scores(np.array([1, 1]), np.array([[100.0, 0], [0, 100.0]]), 50)
    assert found["nll"]["value"] == pytest.approx(50) and found["nll"]["high"] == pytest.approx(100)


def test_intervals_hold_their_values_and_order_of_rows_does_not_matter(outside, scored):
    for name, score in scored.items():
        assert score["low"] <= score["value"] <= score["high"], name
    labels, values = outside
    order = np.random.default_rng(0).permutation(len(labels))
    again = scores.classification_scores(labels[order], values[order], resamples=10)
    for name, score in scored.items():
        assert again[name]["value"] == pytest.approx(score["value"], rel=1e-9), name


def test_a_perfectly_calibrated_classifier_has_temperature_one():
    generator = np.random.default_rng(1)
    values = generator.normal(scale=2, size=(20_000, 4))
    probability = softmax(values, axis=1)
    labels = (generator.random((20_000, 1)) > probability.cumsum(axis=1)).sum(axis=1)
    temperature = scores.fit_temperature(labels, values)
    # 1/T is a one-parameter maximum likelihood estimate; its standard deviation is 1/sqrt(n *
    # information) < 0.01 here.
    assert temperature == pytest.approx(1, abs=0.04)
    assert scores.fit_temperature(labels, 3 * values) == pytest.approx(3 * temperature, rel=1e-4)
    assert scores.classification_scores(labels, values, resamples=200)["ece"]["value"] < 0.015


def test_temperature_is_a_minimum_of_the_nll(outside):
    labels, values = outside
    best = scores.fit_temperature(labels, values)

    def nll(temperature):
        return -log_softmax(values.astype(float) / temperature, axis=1)[
            np.arange(len(labels)), labels
        ].mean()

    assert nll(best) <= min(nll(best * 1.01), nll(best / 1.01))


def test_a_class_never_predicted_scores_zero():
    values = np.array([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0]])
    scored = scores.classification_scores(np.array([0, 2, 1]), values, resamples=20)
    assert scored["precision_2"] == {"value": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    assert scored["f1_macro"]["value"] == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize(
    ("labels", "values", "words"),
    [
        ([0, 1], [[0.0, np.nan], [0, 1]], "1 rows have NaN or infinite logits, the first is row 0"),
        ([0, 1], [[0.0, np.inf], [0, 1]], "NaN or infinite"),
        ([0, 2], [[0.0, 1], [0, 1]], "labels run from 0 to 2 but the logits have 2 columns"),
        ([0], [[0.0, 1], [0, 1]], r"got \(1,\) and \(2, 2\)"),
        ([], np.empty((0, 4)), "no rows"),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, values, words):
    with pytest.raises(UserError, match=words):
        scores.classification_scores(np.array(labels, dtype=int), np.array(values))


def test_a_class_that_does_not_occur_leaves_macro_scores_alone():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)  # class 3 is in neither labels nor answers
    values = rng.normal(size=(200, 4))
    values[:, 3] = -9.0
    expected = f1_score(labels, values.argmax(axis=1), average="macro")
    assert scores.classification_scores(labels, values)["f1_macro"]["value"] == pytest.approx(
        expected
    )
