"""Timing against hand-worked cases, and a session against models whose answers are known."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2_quant import records
from gpt2_quant.cache import Step
from gpt2_quant.data.datasets import Split
from gpt2_quant.data.tokens import sorted_batches, tokenize
from gpt2_quant.inference import engine
from gpt2_quant.measure import best, footprint, latency, predictions, timing
from gpt2_quant.measure.session import AGAIN, Found, Protocol, Session, eager, measure_memory
from gpt2_quant.models import loading, sizes
from gpt2_quant.models.variants import LLM_INT8, W8A8
from gpt2_quant.quantization.quantizer import quantize_model

QUICK = Protocol(
    shapes=((2, 16), (1, 8)), best_shapes=((2, 16), (1, 8)), best_seconds=60, best_seconds_each=60,
    blocks=6, max_rounds=2, seconds_a_shape=1e9, texts=20, texts_a_batch=8, seconds_a_pass=0.0,
)  # fmt: skip
EAGER = ("baseline", "eager")


@pytest.fixture
def tokens(tiny_tokenizer, tiny_texts):
    return tokenize(
        tiny_tokenizer, Split("test", tiny_texts[0][:60], tiny_texts[1][:60], "demo"), 64
    )


@pytest.fixture
def session(tiny_gpt2, tiny_tokenizer, tokens):
    models, found = {"baseline": tiny_gpt2}, {"baseline": Found()}
    return Session(models, found, tokens, tiny_tokenizer.pad_token_id, "cpu", QUICK)


def nothing():
    """Where a progress bar would move."""


def batches_of(session):
    plan = session.plan
    return timing.text_batches(session.tokens, plan.texts, plan.texts_a_batch, session.pad_id)


@pytest.mark.parametrize(
    ("n", "rank"),
    # P(B < 1) = 1/64 for n = 6; 11/1024 for B < 2 of 10, where B < 3 has 56/1024; B < 6 of 20 has
    # 0.0207, B < 7 0.0577.
    [(6, 1), (10, 2), (20, 6)],
)
def test_median_interval_takes_the_ranks_of_the_binomial(n, rank):
    values = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    assert timing.median_interval(values) == ((n + 1) / 2, rank, n + 1 - rank)


def test_five_values_have_no_95_percent_interval():
    """Even their whole range misses the median with probability 2 / 32."""
    median, low, high = timing.median_interval([3.0, 1.0, 2.0, 5.0, 4.0])
    assert median == 3.0 and np.isnan(low) and np.isnan(high)


def test_median_interval_covers_the_median_of_a_skewed_distribution():
    random = np.random.default_rng(1)
    intervals = [timing.median_interval(random.lognormal(size=15))[1:] for _ in range(2000)]
    covered = np.mean([low <= 1.0 <= high for low, high in intervals])  # a lognormal's median is 1
    # 1 - 2 P(B(15, 1/2) < 4) = 0.9648; four standard errors of 2,000 draws are 0.0165.
    assert abs(covered - 0.9648) < 0.0165


def test_shape_batch_cuts_and_pads_real_texts(tokens):
    ids, mask = timing.shape_batch(tokens, 3, 12, pad_id=7, device="cpu")
    assert ids.shape == mask.shape == (3, 12) and ids.dtype == mask.dtype == torch.int64
    for row, source in enumerate((0, 29, 59)):  # evenly spaced over 60
        text = tokens.row(source)[:12]
        assert ids[row].tolist() == text.tolist() + [7] * (12 - len(text))
        assert mask[row].tolist() == [1] * len(text) + [0] * (12 - len(text))
    assert timing.shape_batch(tokens, 100, 8, 7, "cpu")[0].shape == (100, 8)


def test_time_once_is_the_time_of_the_call(monkeypatch):
    clock = iter((5_000_000, 27_000_000))
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: next(clock))
    assert timing.time_once(lambda: None, "cpu") == 22


def test_rounds_are_interleaved_and_their_number_is_bounded():
    order, rng = [], np.random.default_rng(0)
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    values = timing.time_interleaved(calls, "cpu", rng, max_rounds=9, seconds=1e9)
    assert [len(values[name]) for name in "abc"] == [9, 9, 9]
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all(sorted(one) == list("abc") for one in rounds) and len(set(map(tuple, rounds))) > 1
    assert len(timing.time_interleaved(calls, "cpu", rng, 9, seconds=0.0)["a"]) == 1


def test_rounds_stop_before_the_time_is_over():
    call, rng = {"a": lambda: time.sleep(0.01)}, np.random.default_rng(0)
    assert len(timing.time_interleaved(call, "cpu", rng, 1000, seconds=0.2)["a"]) <= 20


def test_peak_memory_of_a_known_sequence():
    def call():
        first = torch.empty(2**20)  # 4 MiB
        second = torch.empty(2 * 2**20)  # 8 MiB; both are alive: 12
        del first
        return second, torch.empty(2**18)  # 1 MiB beside the 8

    assert footprint.peak_bytes_of(call, "cpu") == 12 * 2**20


def test_memory_of_a_model(tiny_gpt2, tokens, tiny_tokenizer):
    batch = timing.shape_batch(tokens, 4, 32, tiny_tokenizer.pad_token_id, "cpu")
    found = measure_memory(tiny_gpt2, batch, "cpu", 0)
    assert found["resident_bytes"] == sizes.resident_bytes(tiny_gpt2)
    hidden = (
        4 * 32 * 4 * 64 * 4
    )  # the MLP's inner activations, float32: at least two of them live at once
    assert found["peak_bytes"] - found["resident_bytes"] > 2 * hidden
    assert (found["batch_size"], found["seq_len"]) == (4, 32)


def clocked(session, monkeypatch, milliseconds):
    """Run `session` on a clock that says `milliseconds(name, block)` for each call."""
    blocks = iter(range(QUICK.blocks + 1))

    def time_interleaved(calls, device, rng, max_rounds, seconds):
        block = next(blocks)
        return {name: [float(milliseconds(name, block))] * 2 for name in calls}

    monkeypatch.setattr("gpt2_quant.measure.session.time_interleaved", time_interleaved)
    function = eager(session.models["baseline"])
    functions = {EAGER: function, ("baseline", AGAIN): function}
    with torch.inference_mode():
        session.run({(2, 16): functions}, {}, batches_of(session), nothing)
    (entry,) = session.found["baseline"].latency
    return entry


def test_the_first_block_is_thrown_away_and_the_interval_lies_between_blocks(session, monkeypatch):
    entry = clocked(session, monkeypatch, lambda name, block: 1000 if block == 0 else 10 + block)
    assert entry["blocks"] == [11, 12, 13, 14, 15, 16] and entry["n"] == 12
    # Twelve values would give the third and tenth; six medians give the first and the last.
    assert (entry["median_ms"], entry["median_low_ms"], entry["median_high_ms"]) == (13.5, 11, 16)


@pytest.mark.parametrize(
    ("second", "equal"),
    [
        (lambda block: 10 + block, True),
        (lambda block: 14.9 + block, True),
        (lambda b: 17 + b, False),
    ],
)
def test_one_function_under_two_names_is_equal_where_the_intervals_meet(
    session, monkeypatch, second, equal
):
    def milliseconds(name, block):
        return second(block) if name[1] == AGAIN else 10 + block

    clocked(session, monkeypatch, milliseconds)
    (found,) = session.a_a
    assert found["equal"] is equal and found["median_ms"] == 13.5
    assert found["again_median_ms"] == second(3.5) and found["variant"] == "baseline"


def test_a_run_keeps_every_value(session, tiny_gpt2):
    with torch.inference_mode():
        session.run({(2, 16): {EAGER: eager(tiny_gpt2)}}, {}, batches_of(session), nothing)
    (entry,) = session.found["baseline"].latency
    shape = entry["batch_size"], entry["seq_len"], entry["mode"], entry["dtype"], entry["device"]
    assert shape == (2, 16, "eager", "float32", "cpu") and entry["session"] == session.id
    assert entry["n"] == len(entry["values_ms"]) == 12
    medians = np.median(np.reshape(entry["values_ms"], (6, 2)), axis=1)
    assert entry["blocks"] == pytest.approx(list(medians), abs=1e-5)
    assert entry["median_low_ms"] == min(entry["blocks"]) < entry["median_high_ms"]


def test_a_shape_beyond_the_memory_is_left_out_and_noted(session, tiny_gpt2):
    def too_large(ids, mask):
        if len(ids) == 2:
            raise torch.OutOfMemoryError("no")
        return eager(tiny_gpt2)(ids, mask)

    functions_at = {shape: {EAGER: too_large} for shape in QUICK.shapes}
    with torch.inference_mode():
        session.run(functions_at, {}, batches_of(session), nothing)
    assert [entry["batch_size"] for entry in session.found["baseline"].latency] == [1]
    assert any("2 x 16 does not fit" in note for note in session.found["baseline"].notes)


def test_throughput_counts_texts_and_real_tokens(session, tokens):
    rows = np.unique(np.linspace(0, 59, 20).astype(int))
    batches = batches_of(session)
    assert sum(len(batch["labels"]) for batch in batches) == 20
    seen = []

    def function(ids, mask):
        seen.append(int(mask.sum()))
        return torch.zeros(len(ids), 4)

    session.run({}, {EAGER: function}, batches, nothing)
    found = session.found["baseline"].throughput["eager"]
    assert sum(seen) == 7 * tokens.lengths[rows].sum()  # six blocks and the one thrown away
    rates = found["values_texts_per_s"]
    assert found["n"] == 20 and len(rates) == 6
    assert (found["texts_per_s_low"], found["texts_per_s_high"]) == (min(rates), max(rates))
    assert found["tokens_per_s"] / found["texts_per_s"] == pytest.approx(
        tokens.lengths[rows].mean()
    )
    assert session.found["baseline"].energy == {} and "energy" in session.found["baseline"].notes[0]


def test_energy_is_the_counter_over_the_texts(session):
    # Read before and after each pass: 5 J in the one thrown away, then 10, 20, … 60 J.
    readings = iter(np.cumsum([0, 5, 0, 10, 0, 20, 0, 30, 0, 40, 0, 50, 0, 60]).tolist())
    session.joules = lambda: next(readings)
    zeros = {EAGER: lambda ids, mask: torch.zeros(len(ids), 4)}
    session.run({}, zeros, batches_of(session), nothing)
    energy = session.found["baseline"].energy["eager"]
    assert energy["texts"] == 120 and energy["joules_per_1000_texts"] == 1000 * 35 / 20
    assert energy["joules_per_1000_texts_low"] == 500
    assert energy["joules_per_1000_texts_high"] == 3000
    assert energy["mean_watts"] == pytest.approx(210 / energy["seconds"])


def test_best_mode_is_taken_when_its_logits_are_the_same(session, monkeypatch):
    monkeypatch.setattr(engine, "best_mode", lambda model, device: eager(model))
    with torch.inference_mode():
        ready = best.prepare_best(session)
        for shape in QUICK.best_shapes:
            batch = session.batch(shape)
            expected = eager(session.models["baseline"])(*batch)
            assert torch.allclose(ready[shape]["baseline"](*batch), expected, atol=1e-5)


def raising(model, device):
    raise RuntimeError("no compiler\nhere")


def scaled(factor):
    return lambda model, device: lambda ids, mask: eager(model)(ids, mask) * factor


@pytest.mark.parametrize(
    ("best_mode", "sentence"),
    [
        (scaled(1.01), "its logits are"),
        (scaled(float("nan")), "its logits are"),
        (raising, "RuntimeError: no compiler here"),
    ],
)
def test_best_mode_that_cannot_be_had_is_noted(session, monkeypatch, best_mode, sentence):
    monkeypatch.setattr(engine, "best_mode", best_mode)
    with torch.inference_mode():
        assert not any(best.prepare_best(session).values())
    assert any(
        "best mode: given up at 2 x 16" in note and sentence in note
        for note in session.found["baseline"].notes
    )


@pytest.mark.parametrize("limit", ["best_seconds", "best_seconds_each"])
def test_best_mode_ends_with_its_time(session, monkeypatch, limit):
    def slow(model, device):
        return lambda ids, mask: time.sleep(0.05) or eager(model)(ids, mask)

    monkeypatch.setattr(engine, "best_mode", slow)
    session.plan = replace(QUICK, **{limit: 0.02})
    with torch.inference_mode():
        ready = best.prepare_best(session)
    assert list(ready[2, 16]) == ["baseline"] and not ready[1, 8]
    assert any("left out at 1 x 8" in note for note in session.found["baseline"].notes)


@pytest.mark.parametrize(("times", "refused"), [(0.3, False), (1.0, False), (2.0, True)])
def test_an_engine_twice_as_wrong_as_the_quantization_is_refused(tiny_gpt2, times, refused):
    """Best mode errs by `times` the error of W8A8 itself, beside that error."""
    ids = torch.randint(0, 900, (64, 32), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        exact = eager(tiny_gpt2)(ids, mask)
        own = eager(quantize_model(tiny_gpt2, W8A8.key))(ids, mask)
    error = own - exact
    answers = own + times * error.square().mean().sqrt() * torch.randn(
        error.shape, generator=torch.Generator().manual_seed(1)
    )
    if refused:
        with pytest.raises(ValueError, match=r"RMS"):
            best.check(answers, own, exact)
    else:
        best.check(answers, own, exact)


def test_what_is_timed_is_what_is_scored(session, monkeypatch):
    """A best mode that answers two texts in another way, by less than the check allows."""
    with torch.inference_mode():
        logits = predictions.predict(session.models["baseline"], session.tokens, 8, 0, "eager")
    lengths = session.tokens.lengths
    near = np.argsort(-lengths, kind="stable")[[0, 9]]  # in the first batch and in the second
    shifted = logits.copy()
    shifted[near] = shifted[near][:, ::-1]
    served = iter([shifted[rows] for rows in tokens_in_batches(lengths)])
    ready = {(2, 16): {"baseline": lambda ids, mask: torch.from_numpy(next(served))}}
    monkeypatch.setattr(best, "check", lambda *logits: None)
    best.check_on_test(session, ready, {"baseline": logits})
    found = session.found["baseline"].best_check
    flips = int((shifted.argmax(1) != logits.argmax(1)).sum())
    assert found["flips"] == flips and found["agreement"] == 1 - flips / 60 and found["n"] == 60
    assert found["largest_logit_difference"] == np.abs(shifted - logits).max()
    assert found["accuracy"] == (shifted.argmax(1) == session.tokens.labels).mean()


def tokens_in_batches(lengths):
    return sorted_batches(lengths, QUICK.texts_a_batch)


def test_best_mode_that_fails_on_the_test_texts_is_not_timed(session):
    ready = {
        shape: {"baseline": lambda ids, mask: torch.ones(len(ids), 4)} for shape in QUICK.shapes
    }
    logits = predictions.predict(session.models["baseline"], session.tokens, 8, 0, "eager")
    best.check_on_test(session, ready, {"baseline": logits})
    assert not any(ready.values()) and not session.found["baseline"].best_check
    assert any("given up on the test texts" in note for note in session.found["baseline"].notes)


def test_a_variant_without_best_mode_has_no_such_entry(
    tiny_gpt2, tiny_tokenizer, tokens, monkeypatch
):
    monkeypatch.setattr(engine, "best_mode", lambda model, device: eager(model))
    models = {"baseline": tiny_gpt2, LLM_INT8.key: tiny_gpt2}
    found = {key: Found() for key in models}
    session = Session(models, found, tokens, tiny_tokenizer.pad_token_id, "cpu", QUICK)
    with torch.inference_mode():
        ready = best.prepare_best(session)
    assert all(LLM_INT8.key not in functions for functions in ready.values())
    assert LLM_INT8.no_best_mode in found[LLM_INT8.key].notes


@pytest.fixture
def measured(tiny_gpt2, tiny_tokenizer, tiny_texts, tmp_path, monkeypatch):
    """Settings over a folder with a baseline, its record, its FP16 record and a record from another
    baseline.
    """
    from gpt2_quant import cli as common

    monkeypatch.setitem(latency.PROTOCOLS, "cpu", replace(QUICK, best_shapes=()))
    monkeypatch.setattr(latency, "MEMORY_SHAPE", (2, 16))
    test = Split("test", tiny_texts[0][:60], tiny_texts[1][:60], "demo")
    monkeypatch.setattr(latency, "load_splits", lambda settings: {"test": test})
    folder = tmp_path / "models" / "baseline_gpt2"
    tiny_gpt2.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    sha256 = records.file_sha256(folder / "model.safetensors")
    for key, origin in (
        ("baseline", sha256),
        ("baseline_fp16", sha256),
        ("int8_scratch", "of another"),
    ):
        body = {
            "variant": {"label": key},
            "checkpoint": {"baseline_sha256": origin},
            "latency": [],
            "metrics": {"accuracy": 0.5},
        }
        records.save_record(tmp_path / "results", key, body)
    folders = ["--models-dir", str(tmp_path / "models"), "--results-dir", str(tmp_path / "results")]
    args = common.parser("").parse_args([*folders, "--device", "cpu"])
    return common.settings_from(args)


def test_records_are_renewed_together_and_no_work_becomes_stale(measured):
    before = records.load_records(measured.results_dir)
    paths = [measured.results_dir / "records" / f"{key}.json" for key in before]
    step = Step(measured.results_dir, "some step", {})
    step.finish(paths)
    stored = latency.measure_and_store(measured)
    half = ["baseline_fp16"] if loading.has_half_arithmetic("cpu") else []
    assert list(stored) == ["baseline", *half]
    after = records.load_records(measured.results_dir)
    assert after["int8_scratch"] == before["int8_scratch"]
    sessions = {entry["session"] for key in stored for entry in after[key]["latency"]}
    assert len(sessions) == 1
    for key in stored:
        record = after[key]
        assert record["metrics"] == before[key]["metrics"]
        assert [(e["batch_size"], e["seq_len"]) for e in record["latency"]] == list(QUICK.shapes)
        assert {
            record["throughput"]["eager"]["session"],
            record["memory"]["session"],
            record["timing"]["session"],
        } == sessions
        assert "energy" not in record and record["notes"]
    assert step.complete()
    lines = latency.table(stored).splitlines()
    assert len(lines) == len(stored) + 2 and max(map(len, lines)) <= 100
    a_a = after["baseline"]["timing"]["a_a"]
    assert a_a["n"] == 2 and lines[-1].endswith(f"equal at {a_a['equal']} of 2 shapes.")


def test_every_protocol_has_an_interval_and_times_the_published_batch():
    for preset, device in (("paper", "cuda"), ("paper", "cpu"), ("demo", "cpu")):
        plan = latency.protocol(preset, device)
        assert plan.blocks >= 6 and latency.MEMORY_SHAPE in plan.shapes
        assert not plan.best_shapes or plan.best_shapes[0] == latency.MEMORY_SHAPE
    sweep = latency.protocol("paper", "cuda").shapes
    assert {batch for batch, _ in sweep} >= {1, 16, 256} and {length for _, length in sweep} == {
        32,
        64,
        128,
    }


@pytest.mark.gpu
def test_memory_and_energy_on_a_gpu():
    footprint.warm_libraries("cuda")
    assert footprint.peak_bytes_of(lambda: torch.empty(2**20, device="cuda"), "cuda") == 4 * 2**20
    joules, reason = footprint.energy_counter("cuda")
    if joules is None:
        pytest.skip(reason)
    start = joules()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        torch.ones(2048, 2048, device="cuda") @ torch.ones(2048, 2048, device="cuda")
        torch.cuda.synchronize()
    assert 20 < joules() - start < 2000  # a second of work on any data-centre GPU
