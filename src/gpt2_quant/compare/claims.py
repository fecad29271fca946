"""The published README's claims, one by one, against what was measured here.

A verdict is `supported`, `not supported`, `in part`, `not decided` (too few test rows for either
answer) or `not measured`. A claim about speed is judged by the intervals of the two medians, one
about accuracy by the equivalence test, one about size by bytes. Where the published figure rests on
how it was measured, `why` says so.
"""

from dataclasses import dataclass, replace
from operator import le

from ..models.variants import BASELINE, FP16, INT8, LIBRARY_NF4, LLM_INT8, VARIANTS
from .comparison import MIB, Comparison, Row

PUBLISHED_TEST_ROWS = 7600
PUBLISHED = {key: variant.published for key, variant in VARIANTS.items() if variant.published}


@dataclass(frozen=True)
class Claim:
    """What was published, what was measured here, and how the one fares by the other."""

    claim: str
    published: str
    why: str
    measured: str = "–"
    verdict: str = "not measured"

    def judged(self, measured: str, holds: bool) -> "Claim":
        """This claim with a measurement and the verdict that follows from it."""
        return replace(self, measured=measured, verdict="supported" if holds else "not supported")


def published_claims(comparison: Comparison) -> list[Claim]:
    """Every claim of the published table and its key findings, restated with our measurement."""
    faster, due_to_quantization, slower = _speed_claims(comparison)
    return [
        faster,
        due_to_quantization,
        _four_times(comparison),
        *(_compression(comparison, key) for key in (LLM_INT8.key, LIBRARY_NF4.key)),
        *(_accuracy_preserved(comparison, key) for key in PUBLISHED if key != BASELINE.key),
        _one_test_row(comparison),
        slower,
        _best_overall(comparison),
    ]


def claims_scope(comparison: Comparison) -> str:
    """Whether this run is of the published model, and on which device its times were taken."""
    record, baseline = comparison.record, comparison.row(BASELINE.key)
    if not (record and baseline and baseline.size):
        return "Nothing is known of sizes and times here, so most claims stay open."
    megabytes, published = baseline.size["stored_bytes"] / MIB, PUBLISHED[BASELINE.key].size_mb
    device = record["provenance"].get("device")
    if abs(megabytes / published - 1) < 0.01:
        return f"Times were measured on {device}; the published ones on a GPU that is not named."
    return (
        f"This run's model is not the published one ({megabytes:.2f} MB against {published} in "
        f"FP32), and it was timed on {device}: the verdicts below are about this run and do not "
        "settle the published claims."
    )


def _speed_claims(comparison: Comparison) -> list[Claim]:
    faster = Claim(
        "NF4 is 40% faster than FP32",
        "56.37 ms against 94.13 ms: 0.60 times",
        "The published pair compares float16 arithmetic with float32: the control row shows what "
        "float16 alone gives. NF4 stores 4 bits but multiplies in its compute dtype, after "
        "dequantizing every weight in every forward.",
    )
    due_to_quantization = Claim(
        "… and that is due to quantization",
        "no FP16 row was published",
        "Like with like: both compute in float16, so what is left is what 4-bit storage costs or "
        "gains.",
    )
    slower = Claim(
        "LLM.int8() is slower than FP32",
        "247.94 ms against 94.13: 2.63 times",
        "LLM.int8() looks for outlier columns and quantizes activations in every forward, work "
        "that FP32 does not have; at GPT-2's size there is little product to save it on (its "
        "kernels were made for training, bitsandbytes#490).",
    )
    claims = []
    for claim, variant, reference, holds in (
        (faster, LIBRARY_NF4, BASELINE, lambda low, high: high <= 0.65),
        (due_to_quantization, LIBRARY_NF4, FP16, lambda low, high: high < 1),
        (slower, LLM_INT8, BASELINE, lambda low, high: low > 1),
    ):
        if ratio := _time_ratio(comparison.row(variant.key), comparison.row(reference.key)):
            name = reference.label.split()[-1]
            measured = "{:.2f} [{:.2f}, {:.2f}] times".format(*ratio) + f" {name}'s time"
            claim = claim.judged(measured, holds(*ratio[1:]))
        claims.append(claim)
    return claims


def _time_ratio(row: Row | None, reference: Row | None) -> tuple[float, float, float] | None:
    """(ratio, low, high) of two rows' eager medians; None unless both were timed in one session.

    low and high put the ends of the medians' 95% intervals against each other: wider than a 95%
    interval of the ratio, so a claim that passes here passes there.
    """
    one, two = (it.latency.get("eager") if it else None for it in (row, reference))
    if not (one and two and one["session"] == two["session"]):
        return None
    return (
        one["median_ms"] / two["median_ms"],
        one["median_low_ms"] / two["median_high_ms"],
        one["median_high_ms"] / two["median_low_ms"],
    )


def _four_times(comparison: Comparison) -> Claim:
    published = "118.68 MB of 474.71"
    row = comparison.row(INT8.key)
    size = row.size if row else {}
    if not size.get("compression"):
        return Claim("INT8 Scratch is 4.00x smaller", published, "No record of this variant.")
    stored, resident = size["stored_bytes"], size["resident_bytes"]
    measured = (
        f"{size['compression']:.4f}x stored ({stored / MIB:.2f} MB, "
        f"{size['stored_parts']['quantization_state']:,} bytes of it scales and zero-points); "
        f"{resident / MIB:.2f} MB resident while running"
    )
    return Claim(
        "INT8 Scratch is 4.00x smaller, 75% memory saved",
        published,
        "True of the file: one byte instead of four, and a scale and zero-point a tensor weigh "
        "next to nothing. Memory is saved only as far as the resident figure says: the published "
        "scheme dequantizes at load and then runs in FP32. Against float16, which costs nothing, "
        "it is 2x.",
        measured,
        "in part" if resident > 1.1 * stored else "supported",
    )


def _compression(comparison: Comparison, key: str) -> Claim:
    ratio = PUBLISHED[key].compression
    claim = Claim(
        f"{VARIANTS[key].label} is {ratio}x smaller",
        f"{PUBLISHED[key].size_mb} MB of 474.71",
        "The published size counts 12.00 MB of causal-mask buffers that older transformers kept, "
        "and leaves out the quantization state. Only the linear layers are quantized; embeddings, "
        "a third of GPT-2, are the rest's dtype.",
    )
    row = comparison.row(key)
    size = row.size if row else {}
    if not size.get("compression"):
        return claim
    of_half = size["compression_fp16"]
    measured = f"{size['compression']:.2f}x ({size['stored_bytes'] / MIB:.2f} MB)"
    measured += f"; {of_half:.2f}x of FP16" if of_half else ""
    return claim.judged(measured, size["compression"] >= ratio)


def _accuracy_preserved(comparison: Comparison, key: str) -> Claim:
    claim = Claim(
        f"{VARIANTS[key].label} preserves accuracy",
        f"{PUBLISHED[key].accuracy:.4f} against 0.9459",
        "Equal accuracies are no proof of equality. The finding is that the difference lies "
        "within ±0.5 points (two one-sided tests, Holm); answers that changed both ways cancel in "
        "the accuracy and are counted here.",
    )
    row = comparison.row(key)
    if not (row and row.against):
        return claim
    against = row.against
    low, high = (100 * end for end in against["score_interval_90"])
    measured = (
        f"{100 * against['difference']['accuracy']['value']:+.2f} points, 90% interval "
        f"[{low:+.2f}, {high:+.2f}]; {against['flips']:,} of {against['n']:,} answers changed"
    )
    claim = claim.judged(measured, row.equivalent)
    decided = row.equivalent or row.different
    return claim if decided else replace(claim, verdict="not decided")


def _one_test_row(comparison: Comparison) -> Claim:
    accuracy, n = comparison.baseline.metrics["accuracy"], len(comparison.labels)
    half_width = 50 * (accuracy["high"] - accuracy["low"])
    return Claim(
        "NF4 loses a little accuracy (0.9458 against 0.9459)",
        f"0.01 points: one text of {PUBLISHED_TEST_ROWS:,}",
        "A difference of one test row ranks nothing: an exact McNemar test needs at least six "
        "discordant rows, all on one side, to reach p < 0.05.",
        f"half a 95% interval is {half_width:.2f} points at n = {n:,}; one text is {100 / n:.3f}",
        "not supported",
    )


def _best_overall(comparison: Comparison) -> Claim:
    claim = Claim(
        "NF4 BitsAndBytes is the best overall",
        "smallest time, second in size",
        "“Best” needs a weighting that was not given. What can be said: whether another row is at "
        "least as small, as fast and as accurate (by value), and better in one of them.",
    )
    costs = {
        row.key: (
            row.size["stored_bytes"],
            row.latency["eager"]["median_ms"],
            -row.metrics["accuracy"]["value"],
        )
        for row in comparison.timed
        if row.size and row.latency["eager"]
    }
    nf4 = costs.pop(LIBRARY_NF4.key, None)
    if not (nf4 and costs):
        return claim
    labels = {row.key: row.label for row in comparison.rows}
    better = ", ".join(labels[key] for key, other in costs.items() if _dominates(other, nf4))
    measured = f"in size, time and accuracy by {better}" if better else "by none"
    best = not better and all(_dominates(nf4, other) for other in costs.values())
    return claim.judged(f"beaten at once {measured}", best)


def _dominates(costs: tuple, others: tuple) -> bool:
    """Whether no cost is above the other's, and one is below."""
    return costs != others and all(map(le, costs, others))
