"""The sentences of report 2, and of script 5's last lines, that depend on the numbers.

A difference is claimed where the McNemar test rejects after Holm, equality where the equivalence
test does, else neither. Of costs, the least is named with all whose interval reaches its own.
"""

import textwrap
from collections.abc import Callable
from functools import partial

from ..compare.comparison import MIB, Comparison, Row
from ..measure import paired
from ..models.variants import BASELINE, FP16, VARIANTS

Cost = tuple[float, ...]  # value, low, high, the less the better; () where not measured


def _bytes(part: str, row: Row) -> Cost:
    size = row.size.get(f"{part}_bytes")
    return (size / MIB,) * 3 if size else ()


def _time(row: Row) -> Cost:
    """Of a batch in the row's faster mode, ms."""
    return _median(row.fastest) if row.timed else ()


def _eager_time(row: Row) -> Cost:
    return _median(row.latency["eager"]) if row.timed else ()


def _median(time: dict | None) -> Cost:
    return tuple(time[f"median{end}_ms"] for end in ("", "_low", "_high")) if time else ()


def _rate(name: str, sign: int, row: Row) -> Cost:
    """The better mode's, of those whose interval is known."""
    if not row.timed:
        return ()
    between = row.latency[f"{name}_between"]
    rates = [
        (sign * value, *sorted(sign * end for end in between[mode]))
        for mode, value in row.latency[name].items()
        if between[mode]
    ]
    return min(rates, default=())


# What may count: how its figure reads, and the figure.
AIMS: dict[str, tuple[str, Callable[[Row], Cost]]] = {
    "the least storage": ("{:.2f} MB stored", partial(_bytes, "stored")),
    "the least memory while loaded": ("{:.2f} MB resident", partial(_bytes, "resident")),
    "the least memory at the peak of a forward": ("{:.2f} MB at the peak", partial(_bytes, "peak")),
    "the shortest time of a batch": ("{:.2f} ms for {} texts of {} tokens", _time),
    "the shortest time without compiling": (
        "{:.2f} ms for the same batch, run as transformers runs it",
        _eager_time,
    ),
    "the most texts a second": (
        "{:,.0f} texts a second over test texts at their real lengths",
        partial(_rate, "texts_per_s", -1),
    ),
    "the least energy": (
        "{:.2f} J a thousand texts",
        partial(_rate, "joules_per_1000_texts", 1),
    ),
}


def _least(rows: list[Row], cost: Callable[[Row], Cost]) -> list[Row]:
    """The row of least cost and those not told apart from it, ascending; [] where none is known."""
    known = sorted((row for row in rows if cost(row)), key=lambda row: cost(row)[0])
    return [row for row in known if cost(row)[1] <= cost(known[0])[2]]


def findings(comparison: Comparison) -> list[str]:
    baseline, rows, derived = comparison.baseline, comparison.others, comparison.derived
    sentences = [
        "{label} reaches an accuracy of {value:.4f} (95% interval {low:.4f} to {high:.4f}, "
        "n = {n:,}).".format(label=baseline.label, **baseline.metrics["accuracy"])
    ]
    if same := [row.label for row in rows if row.equivalent]:
        how = f"within {comparison.margin_points} of accuracy (two one-sided tests, Holm)"
        sentences.append(f"Equivalent to it {how}: {_listed(same)}.")
    if worse := [row for row in rows if row.different]:
        each = ", ".join(f"{row.label} ({row.points:+.2f} points)" for row in worse)
        sentences.append(f"Different from it (exact McNemar, Holm): {each}.")
    if undecided := [row.label for row in rows if row.undecided]:
        fault = f"Neither a difference nor equivalence is shown for {_listed(undecided)}"
        sentences.append(f"{fault}: see the last section for how many test rows would decide.")
    if rows:
        most = max(derived, key=lambda row: row.against["flips"])
        changed = 100 * (1 - most.against["agreement"])
        of = "" if derived == rows else " of the checkpoint"
        sentences.append(
            "No row{of} changes more answers than {label}: {flips:,} of {n:,} ({changed:.2f}%), "
            "{only_variant_right:,} for the better and {only_baseline_right:,} for the worse."
            "".format(of=of, label=most.label, changed=changed, **most.against)
        )
    nll = {row.label: row.against["difference"]["nll"] for row in derived}
    if each := ", ".join(
        "{} ({value:+.2g} [{low:+.2g}, {high:+.2g}])".format(label, **difference)
        for label, difference in nll.items()
        if difference["low"] > 0 or difference["high"] < 0
    ):
        sentences.append(
            "The probabilities move where the answers may not: the difference in NLL, in nats a "
            f"text, has a 95% interval without zero for {each}."
        )
    if smallest := _smallest(comparison.rows, baseline):
        sentences.append(f"The least storage: {smallest}.")
    return sentences + _speed_findings(comparison)


def _kept(comparison: Comparison) -> list[Row]:
    """The other rows that are shown to lose no more than the margin."""
    return [row for row in comparison.others if row.equivalent or row.gains]


def answer(comparison: Comparison) -> list[str]:
    """What quantization costs on this data: the smallest and the fastest row within the margin,
    what is not decided and how many test rows would decide it, and what these rows can show.
    """
    baseline, margin = comparison.baseline, comparison.margin_points
    if not comparison.others:
        return [f"Only {baseline.label} has results: there is nothing to choose from."]
    among = [baseline, *_kept(comparison)]
    within = f"within {margin} of {baseline.label}"
    if len(among) == 1:
        return [f"No row is shown to be {within}, or better.", *_power(comparison)]
    if any(row.gains for row in among[1:]):
        within += ", or shown to be better"
    sentences, timed = [], [row for row in among if row.timed]
    if smallest := _smallest(among, baseline):
        sentences.append(f"The smallest {within}: {smallest}.")
    if len(timed) > 1:
        sentences.append(f"Of the rows {within}, {_fastest(timed)} ({_batch(timed)}).")
    return sentences + _power(comparison)


def printed_answer(comparison: Comparison, width: int = 100) -> str:
    lines = ["What quantization costs on this data:", *map("- {}".format, answer(comparison))]
    return "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in lines) + "\n"


def _power(comparison: Comparison) -> list[str]:
    """What the test rows decide, and what they could."""
    others, n, sentences = comparison.others, len(comparison.labels), []
    for row in others:
        if row.undecided:
            rows, shown = paired.rows_to_decide(
                row.discordant, row.points / 100, comparison.margin, row.against["alpha"]
            )
            sentences.append(
                f"{row.label} is not decided ({row.points:+.2f} points, at most "
                f"{row.within:.2f} either way): about {float(f'{rows:.2g}'):,.0f} test rows would "
                f"show {shown}, 8 times in 10, if it stays as it is."
            )
    if same := [row for row in others if row.equivalent]:
        loosest = max(same, key=lambda row: row.within)
        sentences.append(
            f"All rows that are equivalent lie within ±{loosest.within:.2g} points by their 90% "
            f"score intervals, each by itself ({loosest.label} is the widest)."
        )
    widest = max(comparison.derived, key=lambda row: row.discordant)
    alpha, share = widest.against["alpha"], f"{100 * widest.discordant:.2f}%"
    least = paired.minimum_detectable(widest.discordant, n, alpha)
    where = f"{share} of them are right in one model only, as for {widest.label}"
    if least > widest.discordant:  # so few that a difference that large would be all of them
        where = f"all that differ do so one way, and are more than the {share} of {widest.label}"
    test = f"McNemar at {100 * alpha:.2g}%, rows compared: {len(others)}"
    if least == 1 or paired.mcnemar(n, 0) > alpha:  # even if all rows differed
        return [*sentences, f"{n:,} rows are too few to show any difference ({test})."]
    return [
        *sentences,
        f"{n:,} rows show a difference of {100 * least:.2f} points 8 times in 10 where {where} "
        f"({test}); smaller ones are missed more often.",
    ]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _batch(rows: list[Row]) -> str:
    return "{} texts of {} tokens".format(*rows[0].latency["shape"])


def _smallest(rows: list[Row], baseline: Row) -> str:
    """Who stores least, ties named, and how much that is; "" below two sizes."""
    if sum(bool(row.size) for row in rows) < 2:
        return ""
    ties = _least(rows, partial(_bytes, "stored"))
    size = ties[0].size
    others = {baseline.label: size["compression"], FP16.label: size["compression_fp16"]}
    smaller = [
        f"{times:.2f} times smaller than {who}"
        for who, times in others.items()
        if times and round(times, 2) > 1
    ]
    each = f"{size['stored_bytes'] / MIB:.2f} MB{' each' * (len(ties) > 1)}"
    who = f"{_listed([row.label for row in ties])} with {each}"
    return f"{who}, {_listed(smaller)}" if smaller else who


def _fastest(rows: list[Row]) -> str:
    ties = _least(rows, _time)
    each = ["{} with {:.2f} ms [{:.2f}, {:.2f}]".format(row.label, *_time(row)) for row in ties]
    if len(ties) == 1:
        return f"the fastest is {each[0]}"
    return f"{_listed(each)} are not told apart as the fastest: their intervals overlap"


def _speed_findings(comparison: Comparison) -> list[str]:
    rows = comparison.timed
    if len(rows) < 2:
        return []
    mode = "each row in its faster mode" if any(r.latency["best"] for r in rows) else "run eagerly"
    sentences = [f"At {_batch(rows)}, {mode}, {_fastest(rows)}."]
    ours = {row: VARIANTS[row.key] for row in rows if row.key in VARIANTS}
    quantized = [row for row, variant in ours.items() if variant.method]
    for control, variant in ours.items() if quantized else ():
        if variant.method or variant is BASELINE or control is comparison.baseline:
            continue
        value, low, _ = _time(control)
        faster = [row.label for row in quantized if _time(row)[2] < low]
        verb = "is" if len(faster) == 1 else "are"
        who = f"{_listed(faster)} {verb}" if faster else "no quantized row is shown to be"
        sentences.append(
            f"The control {control.label}, which quantizes nothing, takes {value:.2f} ms: {who} "
            "faster than that, beyond the intervals."
        )
    return sentences


def choices(comparison: Comparison) -> dict:
    """What to choose when: {among, rows: [{aim, choice, because}]}.

    Among the baseline and the rows equivalent to it or better, else those not shown to differ; no
    rows where there is none of either. Aims without a measurement, or with an interval that is not
    known, are left out.
    """
    baseline, rows = comparison.baseline, _kept(comparison)
    better = " or shown to be better" * any(row.gains for row in rows)
    among = f"Among {baseline.label} and the rows equivalent to it{better}:"
    if not rows:
        rows = [row for row in comparison.others if not row.different]
        among = f"No row is shown to be equivalent to {baseline.label}. "
        among += "Among it and those not shown to differ from it:"
    if not rows:
        return {"among": "", "rows": []}
    rows = [baseline, *rows]
    compiled = any(row.latency["best"] for row in rows if row.timed)
    found = []
    for aim, (because, cost) in AIMS.items():
        ties = _least(rows, cost)
        if not ties or (cost is _eager_time and not compiled):
            continue
        reason = because.format(abs(cost(ties[0])[0]), *(comparison.shape or ()))
        if len(ties) > 1:
            reason += f" ({ties[0].label}; the others' figures are not told apart from it)"
        choice = _listed([row.label for row in rows if row in ties])
        found.append({"aim": aim, "choice": choice, "because": reason})
    return {"among": among, "rows": found}
