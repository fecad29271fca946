"""The sentences of report 2, and of script 5's last lines, that depend on the numbers.

A difference is claimed where the McNemar test rejects after Holm, equality where the equivalence
test does, else neither. A speed is called higher where intervals lie apart; the others are a tie.
"""

import textwrap

import numpy as np

from ..compare.comparison import MIB, Comparison, Row
from ..measure import paired
from ..models.variants import BASELINE, VARIANTS

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
    label, rows, margin = comparison.baseline.label, comparison.others, _margin(comparison)
    sentences = [
        "{label} reaches an accuracy of {value:.4f} (95% interval {low:.4f} to {high:.4f}, "
        "n = {n:,}).".format(label=label, **comparison.baseline.metrics["accuracy"])
    ]
    if same := [row.label for row in rows if row.equivalent]:
        how = f"within {margin} of accuracy (two one-sided tests, Holm)"
        sentences.append(f"Equivalent to it {how}: {_listed(same)}.")
    if worse := [row for row in rows if row.different]:
        each = ", ".join(f"{row.label} ({row.points:+.2f} points)" for row in worse)
        sentences.append(f"Different from it (exact McNemar, Holm): {each}.")
    if undecided := [row.label for row in rows if not (row.equivalent or row.different)]:
        fault = f"Neither a difference nor equivalence is shown for {_listed(undecided)}"
        sentences.append(f"{fault}: see the last section for how many test rows would decide.")
    if rows:
        most = max(rows, key=lambda row: row.against["flips"])
        changed = 100 * (1 - most.against["agreement"])
        sentences.append(
            "No row changes more answers than {label}: {flips:,} of {n:,} ({changed:.2f}%), "
            "{only_variant_right:,} for the better and {only_baseline_right:,} for the worse."
            "".format(label=most.label, changed=changed, **most.against)
        )
    if moved := [row for row in rows if _nll(row)["low"] > 0 or _nll(row)["high"] < 0]:
        each = ", ".join(
            "{} ({value:+.4f} [{low:+.4f}, {high:+.4f}])".format(row.label, **_nll(row))
            for row in moved
        )
        sentences.append(
            "The probabilities move where the answers may not: the difference in NLL, in nats a "
            f"text, has a 95% interval without zero for {each}."
        )
    if sized := [row for row in comparison.rows if row.size.get("compression")]:
        sentences.append(f"The smallest file: {_smallest(sized, label)}.")
    return sentences + _speed_findings(comparison)


def answer(comparison: Comparison) -> list[str]:
    """What quantization costs on this data: the smallest and the fastest row within the margin,
    what is not decided and how many test rows would decide it, and what these rows can show.
    """
    baseline, others, margin = comparison.baseline, comparison.others, _margin(comparison)
    if not others:
        return [f"Only {baseline.label} has results: there is nothing to choose from."]
    same = [row for row in others if row.equivalent]
    sentences = []
    if not same:
        sentences.append(f"No row is shown to be within {margin} of {baseline.label}.")
    among = [baseline, *same]
    if same and (sized := [row for row in among if row.size.get("compression")]):
        who = _smallest(sized, baseline.label)
        sentences.append(f"The smallest within {margin} of {baseline.label}: {who}.")
    timed = [row for row in among if row in comparison.timed]
    if same and len(timed) > 1 and comparison.shape:
        what = "{} texts of {} tokens".format(*comparison.shape)
        sentences.append(f"Within {margin}, {_fastest(timed)} ({what}).")
    return sentences + _power(comparison)


def printed_answer(comparison: Comparison, width: int = 100) -> str:
    lines = ["What quantization costs on this data:", *map("- {}".format, answer(comparison))]
    return "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in lines) + "\n"


def _power(comparison: Comparison) -> list[str]:
    """What the test rows decide, and what they could."""
    others, n, sentences = comparison.others, len(comparison.labels), []
    for row in others:
        if not (row.equivalent or row.different):
            rows, test = paired.rows_to_decide(
                _discordant(row), row.points / 100, comparison.margin, row.against["alpha"]
            )
            sentences.append(
                f"{row.label} is not decided ({row.points:+.2f} points, at most "
                f"{row.within:.2f} either way): about {rows:,} test rows would show "
                f"{'a difference' if test == 'difference' else 'equivalence'}, 8 times in 10, if "
                "it stays as it is."
            )
    if same := [row for row in others if row.equivalent]:
        loosest = max(same, key=lambda row: row.within)
        sentences.append(
            f"Equivalence is tighter than the margin: all that are equivalent lie within "
            f"±{loosest.within:.2f} points by their 90% score intervals, each by itself "
            f"({loosest.label} is the widest)."
        )
    widest = max(others, key=_discordant)
    least = paired.minimum_detectable(_discordant(widest), n, widest.against["alpha"])
    sentences.append(
        f"{n:,} rows show a difference of {100 * least:.2f} points 8 times in 10 where "
        f"{100 * _discordant(widest):.2f}% of them are right in one model only, as for "
        f"{widest.label} (McNemar at {100 * widest.against['alpha']:.2g}%, {len(others)} rows "
        "compared); smaller ones are likely to be missed."
    )
    return sentences


def _margin(comparison: Comparison) -> str:
    return f"±{100 * comparison.margin:g} points"


def _nll(row: Row) -> dict:
    return row.against["difference"]["nll"]


def _discordant(row: Row) -> float:
    test = row.against
    return (test["only_variant_right"] + test["only_baseline_right"]) / test["n"]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _smallest(rows: list[Row], baseline: str) -> str:
    """Who stores least, ties named, and how much that is."""
    size = min((row.size for row in rows), key=lambda size: size["stored_bytes"])
    ties = [row.label for row in rows if row.size["stored_bytes"] == size["stored_bytes"]]
    others = (size["compression"], baseline), (size["compression_fp16"], "float16")
    smaller = [f"{times:.2f} times smaller than {who}" for times, who in others if (times or 0) > 1]
    each = f"{size['stored_bytes'] / MIB:.2f} MB{' each' * (len(ties) > 1)}"
    return f"{_listed(ties)} with {each}" + (f", {_listed(smaller)}" if smaller else "")


def _fastest(rows: list[Row]) -> str:
    """Who is fastest, each in its faster mode; those whose interval reaches the first's tie."""
    times = {row.label: row.fastest for row in rows}
    first = min(times, key=lambda label: times[label]["median_ms"])
    limit = times[first]["median_high_ms"]
    ties = [label for label in times if times[label]["median_low_ms"] <= limit]
    each = [
        "{} with {median_ms:.2f} ms [{median_low_ms:.2f}, {median_high_ms:.2f}]".format(
            label, **times[label]
        )
        for label in sorted(ties, key=lambda label: times[label]["median_ms"])
    ]
    if len(ties) == 1:
        return f"the fastest is {each[0]}"
    return f"{_listed(each)} are not told apart as the fastest: their intervals overlap"


def _speed_findings(comparison: Comparison) -> list[str]:
    rows, baseline = comparison.timed, comparison.baseline
    if len(rows) < 2 or not comparison.shape:
        return []
    what = "{} texts of {} tokens".format(*comparison.shape)
    mode = "each row in its faster mode" if any(r.latency["best"] for r in rows) else "run eagerly"
    sentences = [f"At {what}, {mode}, {_fastest(rows)}."]
    for control in rows:
        variant = VARIANTS.get(control.key)
        if not variant or variant.method or control is baseline or variant is BASELINE:
            continue
        limit = control.fastest["median_low_ms"]
        quantized = [r for r in rows if r.key in VARIANTS and VARIANTS[r.key].method]
        faster = [row.label for row in quantized if row.fastest["median_high_ms"] < limit]
        verb = "is" if len(faster) == 1 else "are"
        who = f"{_listed(faster)} {verb}" if faster else "no quantized row is shown to be"
        sentences.append(
            f"The control {control.label}, which quantizes nothing, takes "
            f"{control.fastest['median_ms']:.2f} ms: {who} faster than that, beyond the intervals."
        )
    return sentences


def choices(comparison: Comparison) -> dict:
    """What to choose when: {among, rows: [{aim, choice, because}]}.

    Among the baseline and the rows equivalent to it, else those not shown to differ; all that tie
    are named. Aims without a measurement, or with an interval that is not known, are left out.
    """
    baseline, others = comparison.baseline, comparison.others
    among = f"Among {baseline.label} and the rows equivalent to it:"
    rows = [row for row in others if row.equivalent]
    if not rows:
        rows = [row for row in others if not row.different]
        among = f"No row is shown to be equivalent to {baseline.label}. "
        among += "Among it and those not shown to differ from it:"
    rows, timed = [baseline, *rows], comparison.timed
    costs = np.array([_costs(row, row in timed) for row in rows], dtype=float)  # [rows, AIMS, 3]
    compiled = any(row.latency["best"] for row in rows if row in timed)
    found = []
    for (aim, because), (values, low, high) in zip(
        AIMS.items(), costs.transpose(1, 2, 0), strict=True
    ):
        if np.isnan(values).sum() == len(rows) or not (compiled or because != _PLAINLY):
            continue
        best = int(np.nanargmin(values))
        ties = [row.label for row, end in zip(rows, low, strict=True) if end <= high[best]]
        reason = because.format(abs(values[best]), *(comparison.shape or ()))
        if len(ties) > 1:
            reason += f" ({rows[best].label}; the others' figures are not told apart from it)"
        found.append({"aim": aim, "choice": _listed(ties), "because": reason})
    return {"among": among, "rows": found}


def _costs(row: Row, timed: bool) -> list[tuple]:
    """A row's figures in the order of AIMS, the less the better, each with its interval's ends;
    None where not measured.
    """
    none = (None, None, None)
    sizes = [row.size.get(f"{part}_bytes") for part in ("stored", "resident", "peak")]
    costs: list[tuple] = [(size / MIB,) * 3 if size else none for size in sizes]
    if not timed:
        return costs + [none] * 4
    for entry in (row.fastest, row.latency["eager"]):
        ends = ("median_ms", "median_low_ms", "median_high_ms")
        costs.append(tuple(entry[end] for end in ends) if entry else none)
    for name, sign in (("texts_per_s", -1), ("joules_per_1000_texts", 1)):
        between = row.latency[f"{name}_between"]
        rates = [
            (sign * value, *sorted(sign * end for end in between[mode]))
            for mode, value in row.latency[name].items()
            if between[mode]
        ]
        costs.append(min(rates, default=none))
    return costs
