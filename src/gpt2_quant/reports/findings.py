"""The sentences of report 2 that depend on the numbers: what this run found, what to choose when.

A difference is claimed where the McNemar test rejects after Holm, equality where the equivalence
test does, and neither where neither does. A speed is called higher where the intervals of the
medians lie apart.
"""

from operator import itemgetter

from ..compare.comparison import MIB, Comparison, Row
from ..models.variants import FP16

# What may count, the figure that decides it, and how that reads.
AIMS = (
    ("the smallest file", "stored_mb", "{:.2f} MB stored"),
    ("the least memory while loaded", "resident_mb", "{:.2f} MB resident"),
    ("the least memory at the peak of a forward", "peak_mb", "{:.2f} MB at the peak"),
    ("the shortest time of a batch", "fastest_ms", "{:.2f} ms for {} texts of {} tokens"),
    (
        "the shortest time without compiling",
        "eager_ms",
        "{:.2f} ms for the same batch, run as transformers runs it",
    ),
    (
        "the most texts a second",
        "texts_per_s",
        "{:,.0f} texts a second over test texts at their real lengths",
    ),
    ("the least energy", "joules", "{:.2f} J a thousand texts"),
)


def findings(comparison: Comparison) -> list[str]:
    """The report's first page: what this run found, a sentence each."""
    baseline, rows, n = comparison.baseline, comparison.others, len(comparison.labels)
    accuracy = baseline.metrics["accuracy"]
    sentences = [
        f"{baseline.label} reaches an accuracy of {accuracy['value']:.4f} (95% interval "
        f"{accuracy['low']:.4f} to {accuracy['high']:.4f}, n = {n:,})."
    ]
    same = [row for row in rows if row.equivalent]
    worse = [row for row in rows if row.different]
    undecided = [row for row in rows if not (row.equivalent or row.different)]
    if same:
        sentences.append(
            "Equivalent to it within ±0.5 points of accuracy (two one-sided tests, Holm): "
            f"{_names(same)}."
        )
    if worse:
        each = [
            f"{row.label} ({100 * row.against['difference']['accuracy']['value']:+.2f} points)"
            for row in worse
        ]
        sentences.append(f"Different from it (exact McNemar, Holm): {', '.join(each)}.")
    if undecided:
        sentences.append(
            f"Neither a difference nor equivalence is shown for {_names(undecided)}: "
            "more test rows would be needed."
        )
    if rows:
        most = max(rows, key=lambda row: row.against["flips"])
        against = most.against
        sentences.append(
            f"Accuracy hides changes that cancel: {most.label} changes {against['flips']:,} of "
            f"{n:,} answers ({100 * (1 - against['agreement']):.2f}%), "
            f"{against['only_variant_right']} for the better and "
            f"{against['only_baseline_right']} for the worse."
        )
    if sized := [row for row in rows if row.size.get("compression")]:
        small = min(sized, key=lambda row: row.size["stored_bytes"])
        size, of_half = small.size, small.size["compression_fp16"]
        sentences.append(
            f"{small.label} stores least: {size['stored_bytes'] / MIB:.2f} MB, "
            f"{size['compression']:.2f} times smaller than {baseline.label}"
            + (f" and {of_half:.2f} times smaller than float16." if of_half else ".")
        )
    return sentences + _speed_findings(comparison)


def _fastest_ms(row: Row) -> float:
    return row.fastest["median_ms"]


def _names(rows: list[Row]) -> str:
    *first, last = (row.label for row in rows)
    return f"{', '.join(first)} and {last}" if first else last


def _speed_findings(comparison: Comparison) -> list[str]:
    """The fastest row of the baseline's session, and what is faster than float16 alone."""
    timed, baseline, half = comparison.timed, comparison.baseline, comparison.row(FP16.key)
    if len(timed) < 2 or not comparison.shape:
        return []
    texts, tokens = comparison.shape
    fast = min(timed, key=_fastest_ms)
    other = "" if fast is baseline else f"; {baseline.label} takes {_fastest_ms(baseline):.2f} ms"
    best = any(row.latency["best"] for row in timed)
    modes = ", each row in its faster mode," if best else ", run eagerly,"
    sentences = [
        f"Fastest at {texts} texts of {tokens} tokens{modes} is {fast.label} with "
        f"{_fastest_ms(fast):.2f} ms{other}."
    ]
    if half and half in timed and half is not baseline:
        faster = [
            row
            for row in timed
            if row not in (half, baseline)
            and row.fastest["median_high_ms"] < half.fastest["median_low_ms"]
        ]
        verb = "is" if len(faster) == 1 else "are"
        who = f"{_names(faster)} {verb}" if faster else "no quantized row is"
        sentences.append(
            f"The control, float16 alone, takes {_fastest_ms(half):.2f} ms: {who} faster than "
            "that, beyond the medians' intervals."
        )
    return sentences


def choices(comparison: Comparison) -> dict:
    """What to choose when: {among, rows: [{aim, choice, because}]}.

    Among the baseline and the rows equivalent to it; where no row is, among those not shown to
    differ.
    """
    baseline = comparison.baseline
    rows = [row for row in comparison.others if row.equivalent]
    among = f"Among {baseline.label} and the rows equivalent to it:"
    if not rows:
        rows = [row for row in comparison.others if not row.different]
        among = (
            f"No row is shown to be equivalent to {baseline.label}. "
            "Among it and those not shown to differ from it:"
        )
    return {"among": among, "rows": _best_rows(comparison, [baseline, *rows])}


def _best_rows(comparison: Comparison, rows: list[Row]) -> list[dict]:
    """The row that serves each aim best; aims that nothing was measured for are left out."""
    timed = [row for row in rows if row in comparison.timed]
    costs = [(row, _costs(row, row in timed)) for row in rows]
    compiled = any(row.latency["best"] for row in timed)
    found = []
    for aim, name, because in AIMS:
        known = [(cost[name], row) for row, cost in costs if cost[name]]
        # Without compiled modes the shortest time is that of the eager mode.
        if known and (compiled or name != "eager_ms"):
            value, best = (max if name == "texts_per_s" else min)(known, key=itemgetter(0))
            because = because.format(value, *(comparison.shape or ()))
            found.append({"aim": aim, "choice": best.label, "because": because})
    return found


def _costs(row: Row, timed: bool) -> dict[str, float | None]:
    """A row's figures by the names of AIMS, None where none was measured."""
    sizes = {part: row.size.get(f"{part}_bytes") for part in ("stored", "resident", "peak")}
    costs = {f"{part}_mb": size / MIB if size else None for part, size in sizes.items()}
    if not timed:
        return costs | dict.fromkeys(("fastest_ms", "eager_ms", "texts_per_s", "joules"))
    eager, joules = row.latency["eager"], row.latency["joules_per_1000_texts"].values()
    return costs | {
        "fastest_ms": _fastest_ms(row),
        "eager_ms": eager["median_ms"] if eager else None,
        "texts_per_s": max(row.latency["texts_per_s"].values(), default=None),
        "joules": min(joules, default=None),
    }
