"""The published README's claims (`claims.toml`) against our measurements. The verdict `not decided`
means too few test rows. Speed is judged by the intervals of the two medians, accuracy by the
equivalence test, size by bytes.
"""

import tomllib
from dataclasses import dataclass, replace
from operator import le
from pathlib import Path

from ..models.variants import BASELINE, FP16, INT8, LIBRARY_NF4, LLM_INT8, VARIANTS, Variant
from .comparison import MIB, Comparison

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Claim:
    """What was published, what that figure rests on, and our measurement."""

    claim: str
    published: str
    why: str
    measured: str = "–"
    verdict: str = "not measured"

    def judged(self, measured: str, holds: bool) -> "Claim":
        return replace(self, measured=measured, verdict="supported" if holds else "not supported")


def published_claims(comparison: Comparison) -> list[Claim]:
    """Every claim, judged."""
    quantized = [v for v in VARIANTS.values() if v.published and v is not BASELINE]
    return [
        _speed(comparison, "faster", LIBRARY_NF4, BASELINE, lambda low, high: high <= 0.65),
        _speed(comparison, "by_quantization", LIBRARY_NF4, FP16, lambda low, high: high < 1),
        _quarter(comparison),
        *(_compression(comparison, variant) for variant in (LLM_INT8, LIBRARY_NF4)),
        *(_accuracy_preserved(comparison, variant) for variant in quantized),
        _one_row(comparison),
        _speed(comparison, "slower", LLM_INT8, BASELINE, lambda low, high: low > 1),
        _best(comparison),
    ]


def claims_scope(comparison: Comparison) -> str:
    size, published = _size(comparison, BASELINE), BASELINE.published
    if not (size and published):
        return "Nothing is known of sizes and times here, so most claims stay open."
    megabytes, device = size["stored_bytes"] / MIB, comparison.record["provenance"].get("device")
    if abs(megabytes / published.size_mb - 1) < 0.01:
        return f"Times were measured on {device}; the published ones on a GPU that is not named."
    return (
        f"This run's model is not the published one ({megabytes:.2f} MB against "
        f"{published.size_mb} in FP32), and it was timed on {device}: the verdicts below are about "
        "this run and do not settle the published claims."
    )


def _claim(name: str, variant: Variant | None = None) -> Claim:
    """A claim of claims.toml, filled from what was published of `variant`."""
    if not (variant and variant.published):
        return Claim(**TEXTS[name])
    values = {"label": variant.label, **variant.published._asdict()}
    return Claim(**{field: text.format(**values) for field, text in TEXTS[name].items()})


def _size(comparison: Comparison, variant: Variant) -> dict:
    row = comparison.row(variant.key)
    return row.size if row else {}


def _speed(comparison: Comparison, name: str, variant: Variant, other: Variant, holds) -> Claim:
    """`holds` is asked of the ratio's (low, high) from the ends of the eager medians' 95%
    intervals, wider than the ratio's own interval. Both must be of one session.
    """
    rows = comparison.row(variant.key), comparison.row(other.key)
    one, two = (row.latency.get("eager") if row else None for row in rows)
    if not (one and two and one["session"] == two["session"]):
        return _claim(name)
    ratio = one["median_ms"] / two["median_ms"]
    low = one["median_low_ms"] / two["median_high_ms"]
    high = one["median_high_ms"] / two["median_low_ms"]
    measured = f"{ratio:.2f} [{low:.2f}, {high:.2f}] times {other.label.split()[-1]}'s time"
    return _claim(name).judged(measured, holds(low, high))


def _quarter(comparison: Comparison) -> Claim:
    claim, size = _claim("quarter"), _size(comparison, INT8)
    if not size.get("compression"):
        return replace(claim, claim=claim.claim.split(",")[0], why="No record of this variant.")
    stored, resident = size["stored_bytes"], size["resident_bytes"]
    state = size["stored_parts"]["quantization_state"]
    measured = (
        f"{size['compression']:.4f}x stored ({stored / MIB:.2f} MB, {state:,} bytes of it scales "
        f"and zero-points); {resident / MIB:.2f} MB resident while running"
    )
    verdict = "in part" if resident > 1.1 * stored else "supported"
    return replace(claim, measured=measured, verdict=verdict)


def _compression(comparison: Comparison, variant: Variant) -> Claim:
    claim, size = _claim("compression", variant), _size(comparison, variant)
    if not (size.get("compression") and variant.published):
        return claim
    measured = f"{size['compression']:.2f}x ({size['stored_bytes'] / MIB:.2f} MB)"
    if of_half := size["compression_fp16"]:
        measured += f"; {of_half:.2f}x of FP16"
    return claim.judged(measured, size["compression"] >= variant.published.compression)


def _accuracy_preserved(comparison: Comparison, variant: Variant) -> Claim:
    claim, row = _claim("accuracy", variant), comparison.row(variant.key)
    if not (row and row.against):
        return claim
    low, high = (100 * end for end in row.against["score_interval_90"])
    measured = (
        f"{row.points:+.2f} points, 90% interval [{low:+.2f}, {high:+.2f}]; "
        "{flips:,} of {n:,} answers changed".format(**row.against)
    )
    claim = claim.judged(measured, row.equivalent)
    decided = row.equivalent or row.different
    return claim if decided else replace(claim, verdict="not decided")


def _one_row(comparison: Comparison) -> Claim:
    accuracy, n = comparison.baseline.metrics["accuracy"], len(comparison.labels)
    half = f"{50 * (accuracy['high'] - accuracy['low']):.2f} points at n = {n:,}"
    measured = f"half a 95% interval is {half}; one text is {100 / n:.3f}"
    return _claim("one_row").judged(measured, holds=False)


def _best(comparison: Comparison) -> Claim:
    costs, claim = {}, _claim("best")
    for row in comparison.timed:
        if row.size and (eager := row.latency["eager"]):
            accuracy = row.metrics["accuracy"]["value"]
            costs[row.label] = (row.size["stored_bytes"], eager["median_ms"], -accuracy)
    nf4 = costs.pop(LIBRARY_NF4.label, None)
    if not (nf4 and costs):
        return claim
    better = ", ".join(label for label, other in costs.items() if _dominates(other, nf4))
    measured = f"in size, time and accuracy by {better}" if better else "by none"
    best = all(_dominates(nf4, other) for other in costs.values())
    return claim.judged(f"beaten at once {measured}", best)


def _dominates(costs: tuple, others: tuple) -> bool:
    return costs != others and all(map(le, costs, others))
