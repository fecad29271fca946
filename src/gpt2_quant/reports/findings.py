"""The sentences of report 2 that depend on the numbers: what this run found, what to choose when.

A difference is claimed where the McNemar test rejects after Holm, equality where the equivalence
test does, and neither where neither does. A speed is called higher where the intervals of the
medians lie apart.
"""

from operator import itemgetter

from ..compare.comparison import MIB, Comparison, Row
from ..models.variants import FP16

# What may count, the figure that decides it (`_costs`), and how that reads.
AIMS = (
    ("the smallest file", "stored_bytes", "{:.2f} MB stored"),
    ("the least memory while loaded", "resident_bytes", "{:.2f} MB resident"),
    ("the least memory at the peak of a forward", "peak_bytes", "{:.2f} MB at the peak"),
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
    label, rows, n = comparison.baseline.label, comparison.others, len(comparison.labels)
    sentences = [
        "{label} reaches an accuracy of {value:.4f} (95% interval {low:.4f} to {high:.4f}, "
        "n = {n:,}).".format(label=label, **comparison.baseline.metrics["accuracy"])
    ]
    if same := [row.label for row in rows if row.equivalent]:
        margin = "within ±0.5 points of accuracy (two one-sided tests, Holm)"
        sentences.append(f"Equivalent to it {margin}: {_listed(same)}.")
    if worse := [row for row in rows if row.different]:
        values = {row.label: row.against["difference"]["accuracy"]["value"] for row in worse}
        each = ", ".join(f"{name} ({100 * value:+.2f} points)" for name, value in values.items())
        sentences.append(f"Different from it (exact McNemar, Holm): {each}.")
    if undecided := [row.label for row in rows if not (row.equivalent or row.different)]:
        sentences.append(
            f"Neither a difference nor equivalence is shown for {_listed(undecided)}: "
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
        size, half = small.size, small.size["compression_fp16"]
        sentences.append(
            f"{small.label} stores least: {size['stored_bytes'] / MIB:.2f} MB, "
            f"{size['compression']:.2f} times smaller than {label}"
            + (f" and {half:.2f} times smaller than float16." if half else ".")
        )
    return sentences + _speed_findings(comparison)


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _speed_findings(comparison: Comparison) -> list[str]:
    """The fastest row of the baseline's session, and what is faster than float16 alone."""
    rows, baseline, half = comparison.timed, comparison.baseline, comparison.row(FP16.key)
    if len(rows) < 2 or not comparison.shape:
        return []
    fastest = {row.key: row.fastest for row in rows}
    ms = {key: f"{time['median_ms']:.2f} ms" for key, time in fastest.items()}
    first = min(rows, key=lambda row: fastest[row.key]["median_ms"])
    other = "" if first is baseline else f"; {baseline.label} takes {ms[baseline.key]}"
    best = any(row.latency["best"] for row in rows)
    modes = ", each row in its faster mode," if best else ", run eagerly,"
    what = "{} texts of {} tokens".format(*comparison.shape)
    sentences = [f"Fastest at {what}{modes} is {first.label} with {ms[first.key]}{other}."]
    if half and half in rows and half is not baseline:
        limit = fastest[half.key]["median_low_ms"]
        quantized = [row for row in rows if row not in (half, baseline)]
        faster = [r.label for r in quantized if fastest[r.key]["median_high_ms"] < limit]
        verb = "is" if len(faster) == 1 else "are"
        who = f"{_listed(faster)} {verb}" if faster else "no quantized row is"
        sentences.append(
            f"The control, float16 alone, takes {ms[half.key]}: {who} faster than that, "
            "beyond the medians' intervals."
        )
    return sentences


def choices(comparison: Comparison) -> dict:
    """What to choose when: {among, rows: [{aim, choice, because}]}.

    Among the baseline and the rows equivalent to it; where no row is, among those not shown to
    differ. Aims that nothing was measured for are left out.
    """
    baseline, others = comparison.baseline, comparison.others
    among = f"Among {baseline.label} and the rows equivalent to it:"
    rows = [row for row in others if row.equivalent]
    if not rows:
        rows = [row for row in others if not row.different]
        among = f"No row is shown to be equivalent to {baseline.label}. "
        among += "Among it and those not shown to differ from it:"
    rows = [baseline, *rows]
    timed = [row for row in rows if row in comparison.timed]
    compiled = any(row.latency["best"] for row in timed)
    costs = {row.label: _costs(row, row in timed) for row in rows}
    found = []
    for aim, name, because in AIMS:
        known = [(cost[name], label) for label, cost in costs.items() if cost.get(name)]
        # Without compiled modes the shortest time is that of the eager mode.
        if known and (compiled or name != "eager_ms"):
            value, choice = (max if name == "texts_per_s" else min)(known, key=itemgetter(0))
            reason = because.format(value, *(comparison.shape or ()))
            found.append({"aim": aim, "choice": choice, "because": reason})
    return {"among": among, "rows": found}


def _costs(row: Row, timed: bool) -> dict:
    """A row's figures by the names of AIMS, as far as they were measured."""
    sizes = {name: row.size.get(name) for name in ("stored_bytes", "resident_bytes", "peak_bytes")}
    costs = {name: size / MIB for name, size in sizes.items() if size}
    if not timed:
        return costs
    eager, joules = row.latency["eager"], row.latency["joules_per_1000_texts"].values()
    return costs | {
        "fastest_ms": row.fastest["median_ms"],
        "eager_ms": eager["median_ms"] if eager else None,
        "texts_per_s": max(row.latency["texts_per_s"].values(), default=None),
        "joules": min(joules, default=None),
    }
