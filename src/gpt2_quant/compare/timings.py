"""A row's times out of its record: at one shape, with intervals, and how they compare."""

from collections import Counter

from ..models.variants import VARIANTS
from .result_files import Source

MODES = ("eager", "best")
HEADLINE_SHAPE = (16, 128)  # batch size, tokens
LARGE_SHAPE = (64, 128)


def times_of(source: Source) -> list[dict]:
    """Its latencies; a best mode that is the eager one once more is none."""
    times, variant = source.record.get("latency") or [], VARIANTS.get(source.key)
    alone = variant and variant.no_best_mode
    return [time for time in times if time["mode"] == "eager" or not alone]


def _shape(time: dict) -> tuple[int, int]:
    return time["batch_size"], time["seq_len"]


def common_shape(sources: dict[str, Source]) -> tuple[int, int] | None:
    """The shape most rows were timed at; ties go to the headline shape, then the largest."""
    counts = Counter(shape for s in sources.values() for shape in set(map(_shape, times_of(s))))
    return max(counts, key=lambda it: (counts[it], it == HEADLINE_SHAPE, it), default=None)


def latency_of(source: Source, shape: tuple[int, int] | None, reference: dict) -> dict:
    """Times at `shape` and rates; {} if not timed there. `mark`: how they differ from the time
    `reference`: * in the process, † in the device, "" not at all.
    """
    times: dict[str, dict] = {}
    large: dict[str, float] = {}
    for time in times_of(source):
        if _shape(time) == shape:
            times[time["mode"]] = time | interval_of(time)
        elif _shape(time) == LARGE_SHAPE:
            large[time["mode"]] = time["median_ms"]
    if not times:
        return {}
    rates = {}
    for section, name in (("throughput", "texts_per_s"), ("energy", "joules_per_1000_texts")):
        measured = source.record.get(section) or {}
        timed = [mode for mode in MODES if mode in measured and (mode in times or mode == "eager")]
        rates[name] = {mode: measured[mode][name] for mode in timed}
        rates[f"{name}_between"] = {mode: _between(measured[mode], name) for mode in timed}
    mark = ""
    for sign, field in (("*", "session"), ("†", "device")):
        if any(time.get(field) != reference.get(field) for time in times.values()):
            mark = sign
    kept = {mode: times.get(mode) for mode in MODES} | {"large": large} | rates
    return {"shape": shape, "mark": mark, "same_session": not mark, **kept}


def interval_of(time: dict) -> dict:
    """The interval of a latency's median: its own, or the values' range where none was found (below
    six values no two enclose the median with 95%).
    """
    low, high = time.get("median_low_ms"), time.get("median_high_ms")
    if low is None or high is None:
        low, high = min(time["values_ms"]), max(time["values_ms"])
    return {"median_low_ms": low, "median_high_ms": high}


def _between(measured: dict, name: str) -> tuple[float, float] | None:
    """The interval of a rate, or the range of its passes; None where neither was kept."""
    values = [measured.get(f"{name}_low"), measured.get(f"{name}_high")]
    values = values if None not in values else measured.get(f"values_{name}") or []
    return (min(values), max(values)) if values else None
