"""The sentences of report 2 that depend on the numbers.

A difference is claimed where the McNemar test rejects after Holm, equality where the equivalence
test does, else neither. A speed is called higher where the intervals of the medians lie apart.
"""

import numpy as np

from ..compare.comparison import MIB, Comparison, Row
from ..models.variants import FP16

_PLAINLY = "{:.2f} ms for the same batch, run as transformers runs it"
# What may count (the figures of `_costs`, in their order), and how its figure reads.
AIMS = {
    "the smallest file": "{:.2f} MB stored",
    "the least memory while loaded": "{:.2f} MB resident",
    "the least memory at the peak of a forward": "{:.2f} MB at the peak",
    "the shortest time of a batch": "{:.2f} ms for {} texts of {} tokens",
    "the shortest time without compiling": _PLAINLY,
    "the most texts a second": "{:,.0f} texts a second over test texts at their real lengths",
    "the least energy": "{:.2f} J a thousand texts",
}


def findings(comparison: Comparison) -> list[str]:
    label, rows = comparison.baseline.label, comparison.others
    sentences = [
        "{label} reaches an accuracy of {value:.4f} (95% interval {low:.4f} to {high:.4f}, "
        "n = {n:,}).".format(label=label, **comparison.baseline.metrics["accuracy"])
    ]
    if same := [row.label for row in rows if row.equivalent]:
        margin = "within ±0.5 points of accuracy (two one-sided tests, Holm)"
        sentences.append(f"Equivalent to it {margin}: {_listed(same)}.")
    if worse := [row for row in rows if row.different]:
        each = ", ".join(f"{row.label} ({row.points:+.2f} points)" for row in worse)
        sentences.append(f"Different from it (exact McNemar, Holm): {each}.")
    if undecided := [row.label for row in rows if not (row.equivalent or row.different)]:
        fault = f"Neither a difference nor equivalence is shown for {_listed(undecided)}"
        sentences.append(f"{fault}: more test rows would be needed.")
    if rows:
        most = max(rows, key=lambda row: row.against["flips"])
        changed = 100 * (1 - most.against["agreement"])
        sentences.append(
            f"Accuracy hides changes that cancel: {most.label} changes "
            "{flips:,} of {n:,} answers ({changed:.2f}%), {only_variant_right} for the better and "
            "{only_baseline_right} for the worse.".format(changed=changed, **most.against)
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

    Among the baseline and the rows equivalent to it, else those not shown to differ. Aims without a
    measurement are left out.
    """
    baseline, others = comparison.baseline, comparison.others
    among = f"Among {baseline.label} and the rows equivalent to it:"
    rows = [row for row in others if row.equivalent]
    if not rows:
        rows = [row for row in others if not row.different]
        among = f"No row is shown to be equivalent to {baseline.label}. "
        among += "Among it and those not shown to differ from it:"
    rows, timed = [baseline, *rows], comparison.timed
    costs = np.array([_costs(row, row in timed) for row in rows], dtype=float)  # [rows, AIMS]
    compiled = any(row.latency["best"] for row in rows if row in timed)
    found = []
    for (aim, because), values in zip(AIMS.items(), costs.T, strict=True):
        if np.isnan(values).all() or not (compiled or because != _PLAINLY):
            continue
        best = int(np.nanargmin(values))
        reason = because.format(abs(values[best]), *(comparison.shape or ()))
        found.append({"aim": aim, "choice": rows[best].label, "because": reason})
    return {"among": among, "rows": found}


def _costs(row: Row, timed: bool) -> list[float | None]:
    """A row's figures in the order of AIMS, the less the better; None where not measured."""
    sizes = [row.size.get(f"{part}_bytes") for part in ("stored", "resident", "peak")]
    costs = [size / MIB if size else None for size in sizes]
    if not timed:
        return costs + [None] * 4
    eager, latency = row.latency["eager"], row.latency
    rate = max(latency["texts_per_s"].values(), default=None)
    joules = min(latency["joules_per_1000_texts"].values(), default=None)
    times = [row.fastest["median_ms"], eager and eager["median_ms"]]
    return [*costs, *times, rate and -rate, joules]
