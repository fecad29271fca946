"""The published README's claims against what was measured.

A claim is an entry of `claims.toml` (as published, and why each verdict may come out) and a judge
below, which returns the verdict and our figures. `not decided` means that intervals overlap or test
rows are too few. Speed is asked at every shape timed, eagerly, by the ends of both medians'
intervals; accuracy by McNemar and equivalence against FP32, whichever row is the baseline; size by
bytes.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..measure import paired
from ..models.variants import BASELINE, FP16, INT8, LIBRARY_NF4, LLM_INT8, VARIANTS, Variant
from .comparison import MIB, Comparison, Row
from .experiment import departures
from .timings import HEADLINE_SHAPE, interval_of

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
NOT_MEASURED = "not measured", "–"
Judge = Callable[[Comparison, Variant], tuple[str, str]]


@dataclass(frozen=True)
class Claim:
    """What was published, our figures, the verdict, and what it rests on."""

    topic: str
    claim: str
    published: str
    measured: str
    verdict: str
    why: str


def published_claims(comparison: Comparison) -> list[Claim]:
    """Every claim, judged."""
    quantized = [v for v in VARIANTS.values() if v.published and v is not BASELINE]
    cases: list[tuple[str, Variant, Judge]] = [
        ("faster", LIBRARY_NF4, _time_over(BASELINE, 0, 0.65)),
        ("by_quantization", LIBRARY_NF4, _time_over(FP16, 0, 1)),
        ("quarter", INT8, _quarter),
        *(("compression", variant, _compression) for variant in (LLM_INT8, LIBRARY_NF4)),
        *(("accuracy", variant, _accuracy_preserved) for variant in quantized),
        ("one_row", LIBRARY_NF4, _loses_a_little),
        ("slower", LLM_INT8, _time_over(BASELINE, 1, float("inf"))),
        ("best", LIBRARY_NF4, _best),
    ]
    return [_judged(comparison, *case) for case in cases]


def _judged(comparison: Comparison, name: str, variant: Variant, judge: Judge) -> Claim:
    verdict, measured = judge(comparison, variant) if comparison.row(variant.key) else NOT_MEASURED
    margin = f"±{100 * comparison.margin:g} points"
    published = variant.published._asdict() if variant.published else {}
    values = {"label": variant.label, "margin": margin, **published}
    texts = {name: text.format(**values) for name, text in TEXTS[name].items()}
    why = " ".join(filter(None, [texts.get(verdict, ""), texts["why"]]))
    return Claim(texts["topic"], texts["claim"], texts["published"], measured, verdict, why)


def claims_scope(comparison: Comparison) -> str:
    device = (comparison.record.get("provenance") or {}).get("device") or "an unnamed device"
    where = f"Times were measured on {device}; the published ones on a device that is not named."
    if departures(comparison):
        return f"{where} This is not the published experiment: the verdicts are about this run."
    return where


def _time_over(other: Variant, least: float, most: float) -> Judge:
    """Whether the variant's time over `other`'s lies within [least, most], shape by shape."""

    def judge(comparison: Comparison, variant: Variant) -> tuple[str, str]:
        ratios = time_ratios(comparison, variant.key, other.key)
        if not ratios:
            return NOT_MEASURED
        spans = {shape: ratio[1:] for shape, ratio in ratios.items()}
        holds = [shape for shape, (low, high) in spans.items() if least <= low and high <= most]
        fails = [shape for shape, (low, high) in spans.items() if high < least or low > most]
        every = len(holds) == len(ratios)
        verdict = "supported" if every else "in part" if holds else "not supported"
        if not (holds or fails):
            verdict = "not decided"
        ranked = sorted(ratios, key=lambda shape: ratios[shape])
        shown = {shape: None for shape in (ranked[0], HEADLINE_SHAPE, ranked[-1])}
        figures = ", ".join(
            "{:.2f} [{:.2f}, {:.2f}] at {} x {}".format(*ratios[shape], *shape)
            for shape in shown
            if shape in ratios
        )
        name = other.label.split()[-1]
        counts = f"holds at {len(holds)} of {len(ratios)} shapes, fails at {len(fails)}"
        return verdict, f"{counts}; {figures} (texts x tokens) times {name}'s time"

    return judge


def time_ratios(
    comparison: Comparison, key: str, other: str
) -> dict[tuple[int, int], tuple[float, float, float]]:
    """Eager time over the other row's of one session, by (batch size, tokens): value, low, high
    from the ends of the medians' intervals, wider than the ratio's own interval.
    """
    found = []
    for row in (comparison.row(key), comparison.row(other)):
        times = (row.record.get("latency") or []) if row else []
        eager = [time | interval_of(time) for time in times if time["mode"] == "eager"]
        found.append({(t["batch_size"], t["seq_len"], t["session"]): t for t in eager})
    ratios = {}
    for batch, length, session in found[0].keys() & found[1].keys():
        one, two = (times[batch, length, session] for times in found)
        ratios[batch, length] = (
            one["median_ms"] / two["median_ms"],
            one["median_low_ms"] / two["median_high_ms"],
            one["median_high_ms"] / two["median_low_ms"],
        )
    return dict(sorted(ratios.items()))


def _times_smaller(comparison: Comparison, variant: Variant) -> float | None:
    """FP32's stored bytes over the variant's."""
    whole, row = comparison.row(BASELINE.key), comparison.row(variant.key)
    if not (whole and row and whole.size and row.size):
        return None
    return whole.size["stored_bytes"] / row.size["stored_bytes"]


def _as_small(times_smaller: float, published: float) -> bool:
    return round(times_smaller, 2) >= published  # which has two decimals


def _quarter(comparison: Comparison, variant: Variant) -> tuple[str, str]:
    """Two claims in one: the file's size, and the memory while it runs."""
    whole, row = comparison.row(BASELINE.key), comparison.row(variant.key)
    times = _times_smaller(comparison, variant)
    if not (times and row and whole and variant.published):
        return NOT_MEASURED
    resident = row.size["resident_bytes"]
    saved = whole.size["resident_bytes"] / resident
    measured = (
        f"{times:.4f}x stored ({row.size['stored_bytes'] / MIB:.2f} MB); {resident / MIB:.2f} MB "
        f"resident while running, {saved:.2f}x"
    )
    parts = [_as_small(figure, variant.published.compression) for figure in (times, saved)]
    return "supported" if all(parts) else "in part" if any(parts) else "not supported", measured


def _compression(comparison: Comparison, variant: Variant) -> tuple[str, str]:
    row, times = comparison.row(variant.key), _times_smaller(comparison, variant)
    if not (row and times and variant.published):
        return NOT_MEASURED
    measured = f"{times:.2f}x ({row.size['stored_bytes'] / MIB:.2f} MB)"
    if of_half := row.size["compression_fp16"]:
        measured += f"; {of_half:.2f}x of FP16"
    as_small = _as_small(times, variant.published.compression)
    return "supported" if as_small else "not supported", measured


def _tests(comparison: Comparison, against: str) -> dict[str, dict]:
    """Paired tests of every row against the row `against`, Holm-adjusted."""
    logits = {row.key: row.logits for row in comparison.rows}
    return paired.compare_all(comparison.labels, logits, against, comparison.margin)


def _test(comparison: Comparison, variant: Variant) -> tuple[float, bool, bool, str]:
    """Against FP32: the difference in points, whether McNemar and equivalence reject, figures."""
    test = _tests(comparison, BASELINE.key)[variant.key]
    gain = 100 * (test["only_variant_right"] - test["only_baseline_right"]) / test["n"]
    low, high = (100 * end for end in test["score_interval_90"])
    measured = (
        f"{gain:+.2f} points, 90% interval [{low:+.2f}, {high:+.2f}]; "
        "{flips:,} of {n:,} answers changed".format(**test)
    )
    different, equivalent = (test[f"{p}_holm_p"] < paired.ALPHA for p in ("mcnemar", "tost"))
    return gain, different, equivalent, measured


def _accuracy_preserved(comparison: Comparison, variant: Variant) -> tuple[str, str]:
    gain, different, equivalent, measured = _test(comparison, variant)
    if equivalent or (different and gain > 0):
        return "supported", measured
    return "not supported" if different else "not decided", measured


def _loses_a_little(comparison: Comparison, variant: Variant) -> tuple[str, str]:
    """`in part`: a loss is shown, but not that it is within the margin."""
    gain, different, equivalent, measured = _test(comparison, variant)
    if not different:
        return "not decided", measured
    if gain > 0:
        return "not supported", measured
    return "supported" if equivalent else "in part", measured


def _best(comparison: Comparison, variant: Variant) -> tuple[str, str]:
    """Row by row in size, time and accuracy: supported where none is better in any and it is in
    one; not supported where a row is better in one and as good in the others.
    """
    ours, tests = comparison.row(variant.key), _tests(comparison, variant.key)
    against = {
        row.label: _better(comparison, row, ours, tests[row.key])
        for row in comparison.rows
        if ours and row is not ours and row.size and time_ratios(comparison, row.key, variant.key)
    }
    if not against:
        return NOT_MEASURED
    aspects = "smaller", "faster", "more accurate"
    found = {a: [label for label, signs in against.items() if signs[i] == 1]
             for i, a in enumerate(aspects)}  # fmt: skip
    figures = "; ".join(f"{aspect}: {', '.join(who) or 'none'}" for aspect, who in found.items())
    beaten = [s for s in against.values() if 1 in s and None not in s and -1 not in s]
    leads = all(-1 in s and None not in s and 1 not in s for s in against.values())
    return "supported" if leads else "not supported" if beaten else "not decided", figures


def _better(comparison: Comparison, row: Row, ours: Row, test: dict) -> list[int | None]:
    """In size, time and accuracy: 1 where `row` is shown better than `ours`, -1 worse, 0 as good,
    None where it is not decided.
    """
    sizes = row.size["stored_bytes"], ours.size["stored_bytes"]
    ratios = time_ratios(comparison, row.key, ours.key)
    _, low, high = ratios.get(comparison.shape or HEADLINE_SHAPE) or next(iter(ratios.values()))
    time = 1 if high < 1 else -1 if low > 1 else None
    accuracy = 0 if test["tost_holm_p"] < paired.ALPHA else None
    if test["mcnemar_holm_p"] < paired.ALPHA and accuracy is None:
        accuracy = 1 if test["only_variant_right"] > test["only_baseline_right"] else -1
    return [(sizes[0] < sizes[1]) - (sizes[0] > sizes[1]), time, accuracy]
