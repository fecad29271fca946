"""The published README's claims against what was measured.

A claim is an entry of `claims.toml` (as published, and why each verdict may come out) and a judge
below, which returns the verdict and our figures. `not decided` means that intervals overlap or test
rows are too few. Speed is asked at every shape timed, eagerly, by the ends of both medians'
intervals; accuracy by McNemar and equivalence against FP32, whichever row is the baseline; size by
bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ..cli import read_toml
from ..measure import paired
from ..models.variants import BASELINE, FP16, INT8, LIBRARY_NF4, LLM_INT8, VARIANTS, Variant
from .comparison import MIB, Comparison, Row
from .experiment import departures
from .timings import HEADLINE_SHAPE, interval_of

TEXTS = read_toml(__file__)
NOT_MEASURED = "not measured", "–"
Judge = Callable[[Comparison, Row], tuple[str, str]]


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
    row = comparison.row(variant.key)
    verdict, measured = judge(comparison, row) if row else NOT_MEASURED
    published = variant.published._asdict() if variant.published else {}
    dtype = row.record["variant"].get("dtype") if row else None
    values = {"label": variant.label, "margin": comparison.margin_points, **published}
    values["dtype"] = dtype or "a dtype that is not known"
    texts = {name: text.format(**values) for name, text in TEXTS[name].items()}
    why = " ".join(filter(None, [texts.get(verdict, ""), texts["why"]]))
    return Claim(texts["topic"], texts["claim"], texts["published"], measured, verdict, why)


def claims_scope(comparison: Comparison) -> str:
    where = "The published times are of a device that is not named"
    where += f"; ours of {comparison.device}." if comparison.timed else "; here none was measured."
    if departures(comparison):
        return f"{where} This is not the published experiment: the verdicts are about this run."
    return where


def _time_over(other: Variant, least: float, most: float) -> Judge:
    """Whether the variant's time over `other`'s lies within [least, most], shape by shape."""

    def judge(comparison: Comparison, row: Row) -> tuple[str, str]:
        ratios = time_ratios(comparison, row.key, other.key)
        if not ratios:
            return NOT_MEASURED
        holds = sum(least <= low and high <= most for _, low, high in ratios.values())
        fails = sum(high < least or low > most for _, low, high in ratios.values())
        verdict = "in part" if holds else "not supported" if fails else "not decided"
        if holds == len(ratios):
            verdict = "supported"
        ranked = sorted(ratios, key=lambda shape: ratios[shape])
        shown = dict.fromkeys([ranked[0], HEADLINE_SHAPE, ranked[-1]])
        figures = ", ".join(
            "{:.2f} [{:.2f}, {:.2f}] at {} x {}".format(*ratios[shape], *shape)
            for shape in shown
            if shape in ratios
        )
        counts = f"holds at {holds} of {len(ratios)} shapes, fails at {fails}"
        of = f"(texts x tokens) times {other.label.split()[-1]}'s time"
        return verdict, f"{counts}; {figures} {of}"

    return judge


def time_ratios(
    comparison: Comparison, key: str, other: str
) -> dict[tuple[int, int], tuple[float, float, float]]:
    """Eager time over the other row's of one session and device, by (batch size, tokens): value,
    low, high from the ends of the medians' intervals, wider than the ratio's own interval.
    """
    found = []
    for row in (comparison.row(key), comparison.row(other)):
        times = (row.record.get("latency") or []) if row else []
        eager = [time | interval_of(time) for time in times if time["mode"] == "eager"]
        where = "batch_size", "seq_len", "session", "device"
        found.append({tuple(time.get(name) for name in where): time for time in eager})
    ratios = {}
    for at in sorted(found[0].keys() & found[1].keys(), key=str):
        one, two = (times[at] for times in found)
        ratios[at[:2]] = (
            one["median_ms"] / two["median_ms"],
            one["median_low_ms"] / two["median_high_ms"],
            one["median_high_ms"] / two["median_low_ms"],
        )
    return ratios


def _compression(comparison: Comparison, row: Row) -> tuple[str, str]:
    times = _times_smaller(comparison, row, "stored_bytes")
    if not times:
        return NOT_MEASURED
    measured = f"{times:.2f}x ({row.size['stored_bytes'] / MIB:.2f} MB)"
    if of_half := row.size["compression_fp16"]:
        measured += f"; {of_half:.2f}x of FP16"
    return "supported" if _as_small(times, row) else "not supported", measured


def _quarter(comparison: Comparison, row: Row) -> tuple[str, str]:
    """Two claims in one: the file's size, and the memory while it runs."""
    names = "stored_bytes", "resident_bytes"
    times, saved = (_times_smaller(comparison, row, name) for name in names)
    if not (times and saved):
        return NOT_MEASURED
    stored, resident = (row.size[name] / MIB for name in names)
    measured = (
        f"{times:.4f}x stored ({stored:.2f} MB); {resident:.2f} MB resident while running, "
        f"{saved:.2f}x"
    )
    parts = [_as_small(figure, row) for figure in (times, saved)]
    return "supported" if all(parts) else "in part" if any(parts) else "not supported", measured


def _times_smaller(comparison: Comparison, row: Row, size: str) -> float | None:
    """FP32's bytes over the row's."""
    whole = comparison.row(BASELINE.key)
    return whole.size[size] / row.size[size] if whole and whole.size and row.size else None


def _as_small(times_smaller: float, row: Row) -> bool:
    """Than FP32, as published, with two decimals."""
    published = VARIANTS[row.key].published
    return published is not None and round(times_smaller, 2) >= published.compression


@cache  # every claim on accuracy asks for the same
def _tests(comparison: Comparison, against: str) -> dict[str, dict]:
    """Paired tests of every row against the row `against`, Holm-adjusted."""
    logits = {row.key: row.logits for row in comparison.rows}
    return paired.compare_all(comparison.labels, logits, against, comparison.margin)


def _shown(test: dict) -> tuple[int, bool]:
    """1 where McNemar shows a gain in accuracy, -1 a loss, else 0; whether equivalence is shown."""
    gain = test["only_variant_right"] - test["only_baseline_right"]
    different, equivalent = (test[f"{p}_holm_p"] < paired.ALPHA for p in ("mcnemar", "tost"))
    return different * ((gain > 0) - (gain < 0)), equivalent


def _against_fp32(comparison: Comparison, row: Row) -> tuple[int, bool, str]:
    """`_shown` and the figures."""
    test = _tests(comparison, BASELINE.key)[row.key]
    gain = (test["only_variant_right"] - test["only_baseline_right"]) / test["n"]
    figures = "{:+.2f} points, 90% interval [{:+.2f}, {:+.2f}]".format(
        *(100 * end for end in (gain, *test["score_interval_90"]))
    )
    return *_shown(test), figures + "; {flips:,} of {n:,} answers changed".format(**test)


def _accuracy_preserved(comparison: Comparison, row: Row) -> tuple[str, str]:
    sign, equivalent, measured = _against_fp32(comparison, row)
    if equivalent or sign > 0:
        return "supported", measured
    return "not supported" if sign else "not decided", measured


def _loses_a_little(comparison: Comparison, row: Row) -> tuple[str, str]:
    """`in part`: a loss is shown, but not that it is within the margin."""
    sign, equivalent, measured = _against_fp32(comparison, row)
    if sign < 0:
        return "supported" if equivalent else "in part", measured
    return "not supported" if sign else "not decided", measured


def _best(comparison: Comparison, ours: Row) -> tuple[str, str]:
    """Row by row of the checkpoint, in size, time and accuracy: supported where none is better in
    any and it is in one; not supported where a row is better in one and as good in the others.
    """
    against, tests = {}, _tests(comparison, ours.key)
    for row in comparison.rows:
        ratios = time_ratios(comparison, row.key, ours.key)
        if row is not ours and row.of_gpt2 and row.size and ratios:
            ratio = ratios.get(comparison.shape or HEADLINE_SHAPE) or next(iter(ratios.values()))
            against[row.label] = _better(row, ours, ratio, tests[row.key])
    if not against:
        return NOT_MEASURED
    better = {
        aspect: [label for label, signs in against.items() if signs[i] == 1]
        for i, aspect in enumerate(("smaller", "faster", "more accurate"))
    }
    figures = "; ".join(f"{aspect}: {', '.join(who) or 'none'}" for aspect, who in better.items())
    signs = list(map(set, against.values()))
    if all(found in ({-1}, {-1, 0}) for found in signs):
        return "supported", figures
    beaten = any(found in ({1}, {1, 0}) for found in signs)
    return "not supported" if beaten else "not decided", figures


def _better(
    row: Row, ours: Row, ratio: tuple[float, float, float], test: dict
) -> tuple[int | None, ...]:
    """In size, time and accuracy: 1 where `row` is shown better than `ours`, -1 worse, 0 as good,
    None where it is not decided.
    """
    bytes_less = ours.size["stored_bytes"] - row.size["stored_bytes"]
    _, low, high = ratio
    sign, equivalent = _shown(test)
    return (
        (bytes_less > 0) - (bytes_less < 0),
        1 if high < 1 else -1 if low > 1 else None,
        0 if equivalent else sign or None,
    )
