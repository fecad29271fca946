"""The sentences of report 2, and of script 5's last lines, that depend on the numbers: chosen
here, worded in findings.toml.

A difference is claimed where the McNemar test rejects after Holm, equality where the equivalence
test does, else neither. Of costs, the least is named with all whose interval reaches its own.
"""

import textwrap
from collections.abc import Callable
from functools import partial

from ..cli import read_toml
from ..compare.comparison import MIB, Comparison, Row
from ..measure import paired
from ..models.variants import BASELINE, FP16, VARIANTS
from . import fill

SENTENCES = read_toml(__file__)
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


# The figure of each of the TOML file's aims, in its order.
AIMS: list[Callable[[Row], Cost]] = [
    *(partial(_bytes, part) for part in ("stored", "resident", "peak")),
    _time,
    _eager_time,
    partial(_rate, "texts_per_s", -1),
    partial(_rate, "joules_per_1000_texts", 1),
]


def _least(rows: list[Row], cost: Callable[[Row], Cost]) -> list[Row]:
    """The row of least cost and those not told apart from it, ascending; [] where none is known."""
    known = sorted((row for row in rows if cost(row)), key=lambda row: cost(row)[0])
    return [row for row in known if cost(row)[1] <= cost(known[0])[2]]


def findings(comparison: Comparison) -> list[str]:
    baseline, rows, derived = comparison.baseline, comparison.others, comparison.derived
    sentences = [_said("accuracy", label=baseline.label, **baseline.metrics["accuracy"])]
    if same := [row.label for row in rows if row.equivalent]:
        who = _listed(same)
        sentences.append(_said("equivalent", margin=comparison.margin_points, who=who))
    if each := ", ".join(_said("each_different", row=row) for row in rows if row.different):
        sentences.append(_said("different", each=each))
    if undecided := [row.label for row in rows if row.undecided]:
        sentences.append(_said("neither", who=_listed(undecided)))
    if rows:
        most = max(derived, key=lambda row: row.against["flips"])
        changed = 100 * (1 - most.against["agreement"])
        of = "" if derived == rows else " of the checkpoint"
        said = _said("flips", of=of, label=most.label, changed=changed, **most.against)
        sentences.append(said)
    nll = {row.label: row.against["difference"]["nll"] for row in derived}
    if each := ", ".join(
        _said("each_nll", label=label, **difference)
        for label, difference in nll.items()
        if difference["low"] > 0 or difference["high"] < 0
    ):
        sentences.append(_said("nll", each=each))
    if smallest := _smallest(comparison.rows, baseline):
        sentences.append(_said("storage", who=smallest))
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
        return [_said("alone", label=baseline.label)]
    among = [baseline, *_kept(comparison)]
    within = f"within {margin} of {baseline.label}"
    if len(among) == 1:
        return [_said("none_within", within=within), *_power(comparison)]
    if any(row.gains for row in among[1:]):
        within += ", or shown to be better"
    sentences, timed = [], [row for row in among if row.timed]
    if who := _smallest(among, baseline):
        sentences.append(_said("smallest_within", within=within, who=who))
    if len(timed) > 1:
        fastest = {"who": _fastest(timed), "batch": _batch(timed)}
        sentences.append(_said("fastest_within", within=within, **fastest))
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
            rounded = float(f"{rows:.2g}")
            sentences.append(_said("undecided", row=row, rows=rounded, shown=shown))
    if same := [row for row in others if row.equivalent]:
        sentences.append(_said("loosest", row=max(same, key=lambda row: row.within)))
    widest = max(comparison.derived, key=lambda row: row.discordant)
    share, alpha = widest.discordant, widest.against["alpha"]
    least = paired.minimum_detectable(share, n, alpha)
    # Where so few rows differ that a difference that large would be all of them: one way.
    where = "one_way" if least > share else "both_ways"
    test = _said("mcnemar", percent=100 * alpha, compared=len(others))
    if least == 1 or paired.mcnemar(n, 0) > alpha:  # even if all rows differed
        return [*sentences, _said("too_few", n=n, test=test)]
    where = _said(where, share=share, label=widest.label)
    return [*sentences, _said("power", n=n, points=100 * least, where=where, test=test)]


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
        _said("times_smaller", times=times, who=who)
        for who, times in others.items()
        if times and round(times, 2) > 1
    ]
    each = fill("{:.2f} MB", size["stored_bytes"] / MIB) + " each" * (len(ties) > 1)
    who = f"{_listed([row.label for row in ties])} with {each}"
    return f"{who}, {_listed(smaller)}" if smaller else who


def _fastest(rows: list[Row]) -> str:
    ties = _least(rows, _time)
    each = [fill(SENTENCES["each_time"], row.label, *_time(row)) for row in ties]
    return _said("fastest" if len(ties) == 1 else "fastest_tie", each=_listed(each))


def _speed_findings(comparison: Comparison) -> list[str]:
    rows = comparison.timed
    if len(rows) < 2:
        return []
    mode = "each row in its faster mode" if any(r.latency["best"] for r in rows) else "run eagerly"
    sentences = [_said("speed", batch=_batch(rows), mode=mode, who=_fastest(rows))]
    ours = {row: VARIANTS[row.key] for row in rows if row.key in VARIANTS}
    quantized = [row for row, variant in ours.items() if variant.method]
    for control, variant in ours.items() if quantized else ():
        if variant.method or variant is BASELINE or control is comparison.baseline:
            continue
        value, low, _ = _time(control)
        faster = [row.label for row in quantized if _time(row)[2] < low]
        verb = "is" if len(faster) == 1 else "are"
        who = f"{_listed(faster)} {verb}" if faster else "no quantized row is shown to be"
        sentences.append(_said("control", label=control.label, ms=value, who=who))
    return sentences


def choices(comparison: Comparison) -> dict:
    """What to choose when: {among, rows: [{aim, choice, because}]}.

    Among the baseline and the rows equivalent to it or better, else those not shown to differ; no
    rows where there is none of either. Aims without a measurement, or with an interval that is not
    known, are left out.
    """
    baseline, rows = comparison.baseline, _kept(comparison)
    better = " or shown to be better" * any(row.gains for row in rows)
    among = _said("among", label=baseline.label, better=better)
    if not rows:
        rows = [row for row in comparison.others if not row.different]
        among = _said("among_undecided", label=baseline.label)
    if not rows:
        return {"among": "", "rows": []}
    rows = [baseline, *rows]
    compiled = any(row.latency["best"] for row in rows if row.timed)
    found = []
    for (aim, because), cost in zip(SENTENCES["aims"].items(), AIMS, strict=True):
        ties = _least(rows, cost)
        if not ties or (cost is _eager_time and not compiled):
            continue
        reason = fill(because, abs(cost(ties[0])[0]), *(comparison.shape or ()))
        if len(ties) > 1:
            reason += _said("tie", label=ties[0].label)
        choice = _listed([row.label for row in rows if row in ties])
        found.append({"aim": aim, "choice": choice, "because": reason})
    return {"among": among, "rows": found}


def _said(which: str, /, **values) -> str:
    return fill(SENTENCES[which], **values)
