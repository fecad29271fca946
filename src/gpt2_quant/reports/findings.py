"""The sentences of report 2 that depend on the numbers: what this run found, and what to choose
when.

A difference is claimed where the McNemar test rejects after Holm, equality where the equivalence
test does, and neither where neither does. A speed is called higher where the intervals of the
medians lie apart.
"""

from ..compare.comparison import MIB, Comparison, Row
from ..models.variants import FP16


def findings(comparison: Comparison) -> list[str]:
    """The report's first page: what this run found, a sentence each."""
    rows = [row for row in comparison.present if row.against]
    baseline = comparison.row(comparison.baseline)
    accuracy = baseline.metrics["accuracy"]
    n = len(comparison.labels)
    sentences = [
        f"{baseline.label} reaches an accuracy of {accuracy['value']:.4f} (95% interval {accuracy['low']:.4f} to "
        f"{accuracy['high']:.4f}, n = {n:,})."
    ]
    same = [row for row in rows if row.against["tost_holm_p"] < 0.05]
    worse = [row for row in rows if row.against["mcnemar_holm_p"] < 0.05]
    if same:
        sentences.append(
            f"Equivalent to it within ±0.5 points of accuracy (two one-sided tests, Holm): {_names(same)}."
        )
    if worse:
        each = [
            f"{row.label} ({100 * row.against['difference']['accuracy']['value']:+.2f} points)"
            for row in worse
        ]
        sentences.append(f"Different from it (exact McNemar, Holm): {', '.join(each)}.")
    open_rows = [row for row in rows if row not in same and row not in worse]
    if open_rows:
        sentences.append(
            f"Neither a difference nor equivalence is shown for {_names(open_rows)}: more test rows would be needed."
        )
    if rows:
        most = max(rows, key=lambda row: row.against["flips"])
        sentences.append(
            f"Accuracy hides changes that cancel: {most.label} changes {most.against['flips']:,} of {n:,} answers "
            f"({100 * (1 - most.against['agreement']):.2f}%), {most.against['only_variant_right']} for the better and "
            f"{most.against['only_baseline_right']} for the worse."
        )
    sized = [row for row in rows if row.size and row.size["compression"]]
    if sized:
        small = min(sized, key=lambda row: row.size["stored_bytes"])
        of_half = small.size["compression_fp16"]
        sentences.append(
            f"{small.label} stores least: {small.size['stored_bytes'] / MIB:.2f} MB, {small.size['compression']:.2f} times smaller "
            f"than {baseline.label}"
            + (f" and {of_half:.2f} times smaller than float16." if of_half else ".")
        )
    return sentences + _speed_findings(comparison)


def _speed_findings(comparison: Comparison) -> list[str]:
    """The fastest row of the baseline's session, and what is faster than float16 alone beyond both
    medians' intervals.
    """
    timed = [row for row in comparison.present if row.latency and row.latency["same_session"]]
    baseline, half = comparison.row(comparison.baseline), comparison.row(FP16.key)
    if len(timed) < 2:
        return []
    fast = min(timed, key=_fastest_ms)
    texts, tokens = fast.latency["shape"]
    others = "" if fast is baseline else f"; {baseline.label} takes {_fastest_ms(baseline):.2f} ms"
    modes = (
        ", each row in its faster mode,"
        if any(row.latency["best"] for row in timed)
        else ", run eagerly,"
    )
    sentences = [
        f"Fastest at {texts} texts of {tokens} tokens{modes} is {fast.label} with {_fastest_ms(fast):.2f} ms{others}."
    ]
    if half in timed and half is not baseline:
        quantized = [row for row in timed if row is not half and row is not baseline]
        beaten = [
            row
            for row in quantized
            if _fastest(row)["median_high_ms"] < _fastest(half)["median_low_ms"]
        ]
        verb = "is" if len(beaten) == 1 else "are"
        what = (
            f"{_names(beaten)} {verb} faster than that"
            if beaten
            else "no quantized row is faster than that"
        )
        sentences.append(
            f"The control, float16 alone, takes {_fastest_ms(half):.2f} ms: {what}, beyond the medians' intervals."
        )
    return sentences


def _fastest(row: Row) -> dict:
    """The latency entry of a row's faster mode at the table's shape."""
    return min(
        (entry for entry in (row.latency["eager"], row.latency["best"]) if entry),
        key=lambda entry: entry["median_ms"],
    )


def _fastest_ms(row: Row) -> float:
    """The median of `_fastest`, in ms."""
    return _fastest(row)["median_ms"]


def _names(rows: list[Row]) -> str:
    names = [row.label for row in rows]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def choices(comparison: Comparison) -> dict:
    """What to choose when: {among, rows: [{aim, choice, because}]}.

    Among the baseline and the rows equivalent to it; where no row is, among those not shown to
    differ.
    """
    baseline = comparison.row(comparison.baseline)
    others = [row for row in comparison.present if row is not baseline]
    equivalent = [row for row in others if row.against["tost_holm_p"] < 0.05]
    if equivalent:
        return {
            "among": f"Among {baseline.label} and the rows equivalent to it:",
            "rows": _best_rows([baseline, *equivalent]),
        }
    rows = [row for row in others if row.against["mcnemar_holm_p"] >= 0.05]
    among = f"No row is shown to be equivalent to {baseline.label}. Among it and those not shown to differ from it:"
    return {"among": among, "rows": _best_rows([baseline, *rows])}


def _best_rows(rows: list[Row]) -> list[dict]:
    """For each aim the row that serves it best: {aim, choice, because}; aims that nothing was
    measured for are left out.
    """
    sized = [row for row in rows if row.size]
    timed = [row for row in rows if row.latency and row.latency["same_session"]]
    found = []
    for aim, field, unit in (
        ("the smallest file", "stored_bytes", "stored"),
        ("the least memory while loaded", "resident_bytes", "resident"),
        ("the least memory at the peak of a forward", "peak_bytes", "at the peak"),
    ):
        having = [row for row in sized if row.size.get(field)]
        if having:
            best = min(having, key=lambda row: row.size[field])
            found.append(
                {
                    "aim": aim,
                    "choice": best.label,
                    "because": f"{best.size[field] / MIB:.2f} MB {unit}",
                }
            )
    if timed:
        best = min(timed, key=_fastest_ms)
        shape = best.latency["shape"]
        because = f"{_fastest_ms(best):.2f} ms for {shape[0]} texts of {shape[1]} tokens"
        found.append(
            {"aim": "the shortest time of a batch", "choice": best.label, "because": because}
        )
    plain = [row for row in timed if row.latency["eager"]]
    if plain and any(row.latency["best"] for row in timed):
        best = min(plain, key=lambda row: row.latency["eager"]["median_ms"])
        because = f"{best.latency['eager']['median_ms']:.2f} ms for the same batch, run as transformers runs it"
        found.append(
            {"aim": "the shortest time without compiling", "choice": best.label, "because": because}
        )
    through = [row for row in timed if row.latency["texts_per_s"]]
    if through:
        best = max(through, key=lambda row: max(row.latency["texts_per_s"].values()))
        rate = max(best.latency["texts_per_s"].values())
        because = f"{rate:,.0f} texts a second over test texts at their real lengths"
        found.append({"aim": "the most texts a second", "choice": best.label, "because": because})
    frugal = [row for row in timed if row.latency["joules_per_1000_texts"]]
    if frugal:
        best = min(frugal, key=lambda row: min(row.latency["joules_per_1000_texts"].values()))
        because = f"{min(best.latency['joules_per_1000_texts'].values()):.2f} J a thousand texts"
        found.append({"aim": "the least energy", "choice": best.label, "because": because})
    return found
