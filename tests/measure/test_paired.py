"""Paired statistics against statsmodels, scipy, a numerical likelihood and cases worked by hand."""

import numpy as np
import pytest
from result_folders import classifier, logits
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import entropy, norm
from sklearn.metrics import f1_score, log_loss
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from gpt2_quant.measure import paired


def test_mcnemar_by_hand():
    # 8 against 1: 2 (C(9,0) + C(9,1)) / 2^9 = 20 / 512.
    assert paired.mcnemar(8, 1) == pytest.approx(20 / 512)
    assert paired.mcnemar(0, 0) == 1.0
    # The smallest differences that reach p < .05, as tables have them: 8 among 10, 14 among 40, 26
    # among 160.
    for discordant, difference in ((10, 8), (40, 14), (160, 26)):
        wins = (discordant + difference) // 2
        assert (
            paired.mcnemar(wins, discordant - wins)
            < 0.05
            <= paired.mcnemar(wins - 1, discordant - wins + 1)
        )


@pytest.mark.parametrize(("b", "c"), [(0, 1), (3, 3), (12, 5), (45, 98), (300, 260)])
def test_mcnemar_is_statsmodels(b, c):
    assert paired.mcnemar(b, c) == pytest.approx(mcnemar([[50, b], [c, 20]], exact=True).pvalue)


def test_holm_by_hand_and_statsmodels():
    # Sorted .01 .03 .04 times 3 2 1: .03 .06 .04, and .04 may not be below .06 before it.
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    p_values = np.random.default_rng(0).uniform(size=12) ** 3
    assert paired.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert paired.holm([]) == []


def test_tango_by_hand():
    # b = c = 0, n = 100, difference -0.05: q = (sqrt(10²) + 10) / 400 = 0.05, variance 100 (0.1 -
    # 0.0525) = 4.75.
    assert paired.tango(0, 0, 100, -0.05) == pytest.approx(5 / np.sqrt(4.75))
    assert paired.equivalence(0, 0, 100, 0.05) == pytest.approx(norm.sf(5 / np.sqrt(4.75)))


@pytest.mark.parametrize(("b", "c", "n"), [(7, 3, 60), (0, 4, 80), (45, 98, 7600), (30, 0, 500)])
@pytest.mark.parametrize("difference", [-0.08, -0.005, 0.005, 0.05])
def test_tango_uses_the_constrained_likelihood(b, c, n, difference):
    """q is the p_c that makes (b, c, rest) likeliest under p_b = p_c + difference, found here by
    searching.
    """

    def minus_log_likelihood(q):
        p = np.array([q + difference, q, 1 - 2 * q - difference])
        counts = np.array([b, c, n - b - c])
        return -np.sum(counts * np.log(np.maximum(p, 1e-300)))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    q = minimize_scalar(
        minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    ).x
    expected = (b - c - n * difference) / np.sqrt(n * (2 * q + difference - difference**2))
    assert paired.tango(b, c, n, difference) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("b", "c", "n"),
    [(0, 0, 7600), (5, 4, 7600), (13, 30, 7600), (45, 98, 7600), (61, 42, 7600), (0, 1, 44)],
)
def test_the_90_percent_interval_lies_within_the_margin_exactly_when_both_tests_reject(b, c, n):
    low, high = paired.tango_interval(b, c, n, 0.90)
    assert low < (b - c) / n < high
    for margin in (0.0005, 0.002, 0.005, 0.02, 0.1):
        assert (paired.equivalence(b, c, n, margin) < 0.05) == (-margin < low and high < margin)


def test_equivalence_is_wrong_no_more_often_than_it_says():
    """With a true loss of exactly the margin, 'equivalent' at 5% comes out about 5% of the time."""
    draws = np.random.default_rng(5).multinomial(7600, [0.010, 0.015, 0.975], size=4000)
    share = np.mean([paired.equivalence(b, c, 7600) < 0.05 for b, c, _ in draws])
    # Binomial standard error at 5% of 4,000: 0.34 points; four of them.
    assert share == pytest.approx(0.05, abs=0.014)


def drawn(n, discordant, difference):
    """b and c of 2,000 data sets of n rows."""
    p = (discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant
    return np.random.default_rng(6).multinomial(n, p, size=2000)[:, :2].tolist()


# Four binomial standard errors of 80% of 2,000 are 3.6 points; two more for exact McNemar, which
# rejects less often than the normal approximation of the power has it.
POWER = pytest.approx(0.8, abs=0.056)


@pytest.mark.parametrize(("n", "discordant", "alpha"), [(7600, 0.03, 0.05), (2000, 0.1, 0.01)])
def test_the_minimum_detectable_difference_is_found_8_times_in_10(n, discordant, alpha):
    difference = paired.minimum_detectable(discordant, n, alpha)
    found = [paired.mcnemar(b, c) < alpha for b, c in drawn(n, discordant, difference)]
    assert np.mean(found) == POWER
    rows, shown = paired.rows_to_decide(discordant, difference, alpha=alpha)
    assert shown == "a difference" and abs(rows - n) <= 1


def test_the_rows_to_decide_show_equivalence_8_times_in_10():
    rows, shown = paired.rows_to_decide(0.03, 0.0)
    p_values = [paired.equivalence(b, c, rows) for b, c in drawn(rows, 0.03, 0.0)]
    assert shown == "equivalence" and np.mean(np.array(p_values) < 0.05) == POWER


@pytest.fixture(scope="module")
def labels():
    return classifier()["labels"]


def test_bootstrap_differences_are_those_of_the_rows_drawn_again(labels):
    """Drawing counts finds the interval that drawing rows, scored by scikit-learn, finds."""
    pair = {"baseline": logits("baseline"), "nf4_scratch": logits("nf4_scratch")}
    found = paired.bootstrap_differences(labels, pair, "baseline", seed=9)["nf4_scratch"]
    before, after = (values.argmax(axis=1) for values in pair.values())
    rng = np.random.default_rng(1)
    slow = []
    for _ in range(600):
        rows = rng.integers(0, len(labels), len(labels))
        truth = labels[rows]
        slow.append(
            f1_score(truth, after[rows], average="macro")
            - f1_score(truth, before[rows], average="macro")
        )
    # A 2.5% quantile of 600 draws has a standard error of 2.67 / sqrt(600) = 0.11 deviations.
    tolerance = 4 * 0.11 * np.std(slow)
    low, high = np.quantile(slow, (0.025, 0.975))
    assert found["f1_macro"]["low"] == pytest.approx(low, abs=tolerance)
    assert found["f1_macro"]["high"] == pytest.approx(high, abs=tolerance)
    difference = (after == labels).mean() - (before == labels).mean()
    assert found["accuracy"]["value"] == pytest.approx(difference, abs=1e-12)
    losses = [log_loss(labels, softmax(values.astype(float), axis=1)) for values in pair.values()]
    assert found["nll"]["value"] == pytest.approx(losses[1] - losses[0], rel=1e-4)


def test_a_twin_differs_by_nothing(labels):
    twin = paired.bootstrap_differences(
        labels, {"a": logits("baseline"), "b": logits("baseline")}, "a", resamples=200
    )["b"]
    assert all(score == {"value": 0.0, "low": 0.0, "high": 0.0} for score in twin.values())
    same = paired.compare(labels, logits("baseline"), logits("baseline"))
    assert (same["agreement"], same["flips"], same["kl_max"], same["mcnemar_p"]) == (
        1.0,
        0,
        0.0,
        1.0,
    )


def test_divergence_is_scipys(labels):
    kl = paired.divergence(logits("baseline"), logits("nf4_scratch"))
    p, q = (softmax(logits(key).astype(float), axis=1) for key in ("baseline", "nf4_scratch"))
    assert kl == pytest.approx(entropy(p, q, axis=1), abs=1e-12)
    result = paired.compare(labels, logits("baseline"), logits("nf4_scratch"))
    assert result["kl_p99"] == pytest.approx(np.quantile(entropy(p, q, axis=1), 0.99))


def test_flips_are_counted_by_direction_and_class():
    one = np.eye(4)
    labels = np.array([0, 0, 1, 2, 3, 3])
    before, after = one[[0, 0, 2, 3, 3, 1]], one[[0, 1, 1, 0, 3, 2]]
    result = paired.compare(labels, before, after)
    # Row 1 gets worse, row 2 better, rows 3 and 5 go from one wrong class to another.
    assert (result["only_variant_right"], result["only_baseline_right"]) == (1, 1)
    assert (result["flips"], result["flips_wrong_to_other_wrong"]) == (4, 2)
    assert result["flips_by_true_class"] == [1, 1, 1, 1]
    assert result["agreement"] == pytest.approx(2 / 6)


def test_known_discordant_counts(labels):
    """Answers changed on purpose: 30 right ones spoilt, 10 wrong ones put right."""
    before = logits("baseline")
    right = before.argmax(axis=1) == labels
    after = before.copy()
    for row in np.flatnonzero(right)[:30]:
        after[row, (labels[row] + 1) % 4] = before[row].max() + 1
    for row in np.flatnonzero(~right)[:10]:
        after[row, labels[row]] = before[row].max() + 1
    result = paired.compare(labels, before, after)
    assert (result["only_variant_right"], result["only_baseline_right"]) == (10, 30)
    assert result["mcnemar_p"] == pytest.approx(mcnemar([[0, 10], [30, 0]], exact=True).pvalue)
