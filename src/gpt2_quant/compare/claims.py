"""The published README's claims, one by one, against what was measured here.

Each claim becomes {claim, published, measured, verdict, why}; the verdict is `supported`, `not
supported`, `in part`, `not decided` (too few test rows for either answer) or `not measured`. A
claim about speed is judged by the intervals of the two medians, one about accuracy by the
equivalence test, one about size by bytes. Where the published figure rests on how it was measured,
`why` says so.
"""

from ..models.variants import BASELINE, FP16, INT8, LIBRARY_NF4, LLM_INT8
from .comparison import MIB, Comparison, Row

PUBLISHED_TEST_ROWS = 7600


def _claim(claim: str, published: str, measured: str | None, holds: bool | None, why: str) -> dict:
    verdict = {True: "supported", False: "not supported", None: "not measured"}[holds]
    return {
        "claim": claim,
        "published": published,
        "measured": measured or "–",
        "verdict": verdict,
        "why": why,
    }


def time_ratio(row: Row | None, reference: Row | None) -> tuple[float, float, float] | None:
    """(ratio, low, high) of the eager median latencies row / reference; None unless timed in one
    session.

    low and high put the ends of the two medians' 95% intervals against each other: wider than a 95%
    interval of the ratio, so a claim that passes here passes there.
    """
    if not (row and reference and row.latency and reference.latency):
        return None
    one, other = row.latency["eager"], reference.latency["eager"]
    if not (one and other and one["session"] == other["session"]):
        return None
    return (
        one["median_ms"] / other["median_ms"],
        one["median_low_ms"] / other["median_high_ms"],
        one["median_high_ms"] / other["median_low_ms"],
    )


def _times(ratio: tuple[float, float, float] | None, of: str) -> str | None:
    return ratio and f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}] times {of}'s time"


def published_claims(comparison: Comparison) -> list[dict]:
    """Every claim of the published table and its key findings, restated with our measurement."""
    return [
        _nf4_faster(comparison),
        _nf4_faster_than_half(comparison),
        _four_times(comparison),
        *_library_compression(comparison),
        *_accuracy_preserved(comparison),
        _one_test_row(comparison),
        _llm_int8_slower(comparison),
        _best_overall(comparison),
    ]


def claims_scope(comparison: Comparison) -> str:
    """What this run's figures say about the published ones: the device, and whether it is the
    published model at all.
    """
    record, baseline = comparison.record, comparison.row(BASELINE.key)
    if not (record and baseline and baseline.size):
        return "Nothing is known of sizes and times here, so most claims stay open."
    megabytes = baseline.size["stored_bytes"] / MIB
    published = BASELINE.published.size_mb
    device = record["provenance"].get("device")
    if abs(megabytes / published - 1) < 0.01:
        return f"Times were measured on {device}; the published ones on a GPU that is not named."
    return (
        f"This run's model is not the published one ({megabytes:.2f} MB against {published} in FP32), and it was timed on "
        f"{device}: the verdicts below are about this run and do not settle the published claims."
    )


def _nf4_faster(comparison: Comparison) -> dict:
    nf4, baseline = comparison.row(LIBRARY_NF4.key), comparison.row(BASELINE.key)
    ratio = time_ratio(nf4, baseline)
    holds = None if ratio is None else ratio[2] <= 0.65
    why = (
        "The published pair compares float16 arithmetic with float32: the control row shows what float16 alone gives. NF4 "
        "stores 4 bits but multiplies in its compute dtype, after dequantizing every weight in every forward."
    )
    return _claim(
        "NF4 is 40% faster than FP32",
        "56.37 ms against 94.13 ms: 0.60 times",
        _times(ratio, "FP32"),
        holds,
        why,
    )


def _nf4_faster_than_half(comparison: Comparison) -> dict:
    ratio = time_ratio(comparison.row(LIBRARY_NF4.key), comparison.row(FP16.key))
    holds = None if ratio is None else ratio[2] < 1
    why = "Like with like: both compute in float16, so what is left is what 4-bit storage costs or gains."
    return _claim(
        "… and that is due to quantization",
        "no FP16 row was published",
        _times(ratio, "FP16"),
        holds,
        why,
    )


def _four_times(comparison: Comparison) -> dict:
    row = comparison.row(INT8.key)
    if row is None or row.size.get("compression") is None:
        return _claim(
            "INT8 Scratch is 4.00x smaller",
            "118.68 MB of 474.71",
            None,
            None,
            "No record of this variant.",
        )
    size = row.size
    measured = (
        f"{size['compression']:.4f}x stored ({size['stored_bytes'] / MIB:.2f} MB, {size['stored_parts']['quantization_state']:,} "
        f"bytes of it scales and zero-points); {size['resident_bytes'] / MIB:.2f} MB resident while running"
    )
    why = (
        "True of the file: one byte instead of four, and a scale and zero-point a tensor weigh next to nothing. Memory is "
        "saved only as far as the resident figure says: the published scheme dequantizes at load and then runs in FP32. "
        "Against float16, which costs nothing, it is 2x."
    )
    claim = _claim(
        "INT8 Scratch is 4.00x smaller, 75% memory saved",
        "118.68 MB of 474.71",
        measured,
        True,
        why,
    )
    if size["resident_bytes"] > 1.1 * size["stored_bytes"]:
        claim["verdict"] = "in part"
    return claim


def _library_compression(comparison: Comparison) -> list[dict]:
    claims = []
    for variant in (LLM_INT8, LIBRARY_NF4):
        row, (_, megabytes, _, ratio) = comparison.row(variant.key), variant.published
        measured, holds = None, None
        if row and row.size.get("compression"):
            of_half = row.size["compression_fp16"]
            measured = f"{row.size['compression']:.2f}x ({row.size['stored_bytes'] / MIB:.2f} MB)"
            measured += f"; {of_half:.2f}x of FP16" if of_half else ""
            holds = row.size["compression"] >= ratio
        why = (
            "The published size counts 12.00 MB of causal-mask buffers that older transformers kept, and leaves out the "
            "quantization state. Only the linear layers are quantized; embeddings, a third of GPT-2, are the rest's dtype."
        )
        claims.append(
            _claim(
                f"{variant.label} is {ratio}x smaller",
                f"{megabytes} MB of 474.71",
                measured,
                holds,
                why,
            )
        )
    return claims


def _accuracy_preserved(comparison: Comparison) -> list[dict]:
    claims = []
    for variant in (INT8, LLM_INT8, LIBRARY_NF4):
        row = comparison.row(variant.key)
        measured, holds, undecided = None, None, False
        if row and row.against:
            against = row.against
            low, high = (100 * end for end in against["score_interval_90"])
            measured = (
                f"{100 * against['difference']['accuracy']['value']:+.2f} points, 90% interval [{low:+.2f}, {high:+.2f}]; "
                f"{against['flips']:,} of {against['n']:,} answers changed"
            )
            holds = against["tost_holm_p"] < 0.05
            undecided = not holds and against["mcnemar_holm_p"] >= 0.05
        why = (
            "Equal accuracies are no proof of equality. The finding is that the difference lies within ±0.5 points (two "
            "one-sided tests, Holm); answers that changed both ways cancel in the accuracy and are counted here."
        )
        claim = _claim(
            f"{variant.label} preserves accuracy",
            f"{variant.published.accuracy:.4f} against 0.9459",
            measured,
            holds,
            why,
        )
        claims.append(claim | {"verdict": "not decided"} if undecided else claim)
    return claims


def _one_test_row(comparison: Comparison) -> dict:
    accuracy = comparison.row(comparison.baseline).metrics["accuracy"]
    n = len(comparison.labels)
    half_width = 50 * (accuracy["high"] - accuracy["low"])
    return _claim(
        "NF4 loses a little accuracy (0.9458 against 0.9459)",
        f"0.01 points: one text of {PUBLISHED_TEST_ROWS:,}",
        f"half a 95% interval is {half_width:.2f} points at n = {n:,}; one text is {100 / n:.3f}",
        False,
        "A difference of one test row ranks nothing: an exact McNemar test needs at least six discordant rows, all on one "
        "side, to reach p < 0.05.",
    )


def _llm_int8_slower(comparison: Comparison) -> dict:
    ratio = time_ratio(comparison.row(LLM_INT8.key), comparison.row(BASELINE.key))
    why = (
        "LLM.int8() looks for outlier columns and quantizes activations in every forward, work that FP32 does not have; at "
        "GPT-2's size there is little product to save it on (its kernels were made for training, bitsandbytes#490)."
    )
    holds = None if ratio is None else ratio[1] > 1
    return _claim(
        "LLM.int8() is slower than FP32",
        "247.94 ms against 94.13: 2.63 times",
        _times(ratio, "FP32"),
        holds,
        why,
    )


def _best_overall(comparison: Comparison) -> dict:
    rows = [
        row
        for row in comparison.present
        if row.size and row.latency.get("same_session") and row.latency["eager"]
    ]
    nf4 = next((row for row in rows if row.key == LIBRARY_NF4.key), None)
    measured, holds = None, None
    if nf4 and len(rows) > 1:
        better = [row.label for row in rows if row is not nf4 and _dominates(row, nf4)]
        holds = not better and all(_dominates(nf4, row) for row in rows if row is not nf4)
        measured = (
            f"beaten at once in size, time and accuracy by {', '.join(better)}"
            if better
            else "beaten at once by none"
        )
    why = (
        "“Best” needs a weighting that was not given. What can be said: whether another row is at least as small, as fast "
        "and as accurate (by value), and better in one of them."
    )
    return _claim(
        "NF4 BitsAndBytes is the best overall",
        "smallest time, second in size",
        measured,
        holds,
        why,
    )


def _dominates(row: Row, other: Row) -> bool:
    """Whether `row` is at least as small, fast and accurate as `other`, and better in one."""

    def costs(one: Row) -> tuple[float, float, float]:
        return (
            one.size["stored_bytes"],
            one.latency["eager"]["median_ms"],
            -one.metrics["accuracy"]["value"],
        )

    return costs(row) != costs(other) and all(
        a <= b for a, b in zip(costs(row), costs(other), strict=True)
    )
