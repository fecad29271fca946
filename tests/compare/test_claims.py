"""Every verdict of every published claim can come out, and does, from made-up figures."""

from functools import partial

import pytest
from made_up import SHAPES, around, make
from result_folders import change_record

from gpt2_quant.compare.claims import published_claims
from gpt2_quant.compare.comparison import compare_results
from gpt2_quant.compare.experiment import claims_apply, departures, short, short_paths
from gpt2_quant.measure import paired
from gpt2_quant.models.variants import BASELINE, FP16, INT8, LIBRARY_NF4, LLM_INT8

FP32, NF4, INT8_LIBRARY = BASELINE.key, LIBRARY_NF4.key, LLM_INT8.key
SMALL, MIDDLE, LARGE = SHAPES


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Verdicts rest on exact tests and on intervals of time; the bootstrap is beside them."""
    fewer = partial(paired.bootstrap_differences, resamples=100)
    monkeypatch.setattr(paired, "bootstrap_differences", fewer)


def by_shape(*times):
    return dict(zip(SHAPES, map(around, times), strict=True))


def wide(ms):
    return around(ms, 0.8)


EQUAL = around(10)
FASTER, DUE, SLOWER = "NF4 is 40%", "… and that is due", "LLM.int8() is slower"
QUARTER, SMALLER = "INT8 Scratch is 4.00x", "NF4 BitsAndBytes is 3.71x"
PRESERVES, BEST = "NF4 BitsAndBytes preserves", "NF4 BitsAndBytes is the"
LOSES = "NF4 loses a little"


@pytest.mark.parametrize(
    ("claim", "verdict", "made"),
    [
        (FASTER, "supported", {"ms": {FP32: EQUAL, NF4: around(6)}}),
        (FASTER, "not supported", {"ms": {FP32: EQUAL, NF4: around(9)}}),
        (FASTER, "in part", {"ms": {FP32: EQUAL, NF4: by_shape(15, 9, 3)}}),
        (FASTER, "not decided", {"ms": {FP32: EQUAL, NF4: wide(6.5)}}),
        (FASTER, "not measured", {"ms": {FP32: EQUAL}}),
        (FASTER, "not measured", {}),
        (DUE, "supported", {"ms": {FP16.key: EQUAL, NF4: around(9)}}),
        (DUE, "not supported", {"ms": {FP16.key: EQUAL, NF4: around(11)}}),
        (DUE, "in part", {"ms": {FP16.key: EQUAL, NF4: by_shape(12, 11, 9)}}),
        (DUE, "not decided", {"ms": {FP16.key: EQUAL, NF4: wide(10)}}),
        (DUE, "not measured", {"keys": (FP32, NF4), "ms": {FP32: EQUAL, NF4: around(6)}}),
        (SLOWER, "supported", {"ms": {FP32: EQUAL, INT8_LIBRARY: around(25)}}),
        (SLOWER, "not supported", {"ms": {FP32: EQUAL, INT8_LIBRARY: around(8)}}),
        (SLOWER, "in part", {"ms": {FP32: EQUAL, INT8_LIBRARY: by_shape(30, 30, 4)}}),
        (SLOWER, "not decided", {"ms": {FP32: EQUAL, INT8_LIBRARY: wide(10)}}),
        (QUARTER, "supported", {}),
        (QUARTER, "not supported", {"sizes": {INT8.key: 3_000_000}}),  # 1.3x, which was "in part"
        (QUARTER, "not measured", {"keys": (FP32, NF4)}),
        (SMALLER, "supported", {}),
        (SMALLER, "not supported", {"sizes": {NF4: 3_000_000}}),
        (SMALLER, "not measured", {"keys": (FP32, INT8.key)}),
        (PRESERVES, "supported", {}),
        (PRESERVES, "not supported", {"discordant": {NF4: (4, 100)}}),  # -4.8 points
        (PRESERVES, "not decided", {"discordant": {NF4: (20, 28)}}),
        (PRESERVES, "supported", {"discordant": {NF4: (100, 4)}}),
        (LOSES, "not decided", {}),
        (LOSES, "in part", {"discordant": {NF4: (4, 100)}}),
        (LOSES, "not supported", {"discordant": {NF4: (100, 4)}}),
        (BEST, "not measured", {}),
        (
            BEST,
            "not supported",  # another is smaller, faster and as accurate
            {"keys": (FP32, "nf4_scratch", NF4),
             "ms": {FP32: EQUAL, NF4: EQUAL, "nf4_scratch": around(5)}},
        ),
        (
            BEST,
            "supported",
            {"keys": (FP32, FP16.key, NF4),
             "ms": {FP32: EQUAL, FP16.key: EQUAL, NF4: around(5)}},
        ),
        (
            BEST,
            "not decided",  # smaller, but slower
            {"keys": (FP32, FP16.key, NF4),
             "ms": {FP32: around(5), FP16.key: around(5), NF4: EQUAL}},
        ),
    ],
)  # fmt: skip
def test_a_claim_is_judged_by_the_figures(tmp_path, claim, verdict, made):
    comparison = compare_results(make(tmp_path, **made))
    (found,) = [c for c in published_claims(comparison) if c.claim.startswith(claim)]
    assert found.verdict == verdict, found
    assert (found.measured == "–") == (verdict == "not measured")
    assert found.why


def test_a_little_loss_within_the_margin(tmp_path):
    """The margin is wide enough for a loss that McNemar shows."""
    comparison = compare_results(make(tmp_path, discordant={NF4: (0, 30)}), margin=0.05)
    found = {claim.claim[:18]: claim.verdict for claim in published_claims(comparison)}
    assert found[LOSES[:18]] == "supported" and found[PRESERVES[:18]] == "supported"


def test_file_and_memory_are_two_claims(tmp_path):
    folder = make(tmp_path)
    change_record(folder, INT8.key, lambda record: record["size"].update(resident_bytes=4_000_000))
    (found,) = [c for c in published_claims(compare_results(folder)) if c.claim.startswith(QUARTER)]
    assert found.verdict == "in part" and "1.00x" in found.measured


def test_another_baseline_leaves_the_claims_as_they_are(tmp_path):
    times = {FP32: EQUAL, NF4: around(6), FP16.key: around(5), INT8_LIBRARY: around(25)}
    folder = make(tmp_path, discordant={NF4: (4, 100)}, ms=times)
    verdicts = [
        [(c.claim, c.verdict) for c in published_claims(compare_results(folder, key))]
        for key in (FP32, FP16.key, NF4)
    ]
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_where_a_claim_holds_is_said_by_shape(tmp_path):
    made = make(tmp_path, ms={FP32: EQUAL, NF4: by_shape(15, 9, 3)})
    (found,) = [c for c in published_claims(compare_results(made)) if c.claim.startswith(FASTER)]
    assert found.measured.startswith("holds at 1 of 3 shapes, fails at 2; 0.30 [0.29, 0.31]")
    assert "0.90 [0.88, 0.92] at 16 x 128" in found.measured


def test_which_experiment_it_is_comes_from_the_record(tmp_path):
    folder = make(tmp_path, keys=(FP32, NF4))
    comparison = compare_results(folder)
    assert claims_apply(comparison)
    assert departures(comparison) == ["it is tested on 2,000 rows of AG News, not on 7,600"]

    def other_model(record):
        small = str(tmp_path / "small")
        record["settings"].update(base_model=small, base_revision=None)
        record["checkpoint"]["base_model"] = small

    def other_revision(record):
        record["settings"]["base_revision"] = None

    change_record(folder, FP32, other_revision)
    assert (
        "gpt2 is not at the pinned revision 607a30d783df" in departures(compare_results(folder))[0]
    )
    change_record(folder, FP32, other_model)
    comparison = compare_results(folder)
    assert "fine-tuned from small, not from openai-community/gpt2" in departures(comparison)[0]
    assert not claims_apply(comparison)


def test_reports_hold_no_paths_of_one_machine(tmp_path):
    assert short("openai-community/gpt2") == "openai-community/gpt2"
    assert short(str(tmp_path / "small")) == "small"
    said = f"src/1_x.py --base-model {tmp_path}/small --dataset data/ag_news"
    assert short_paths(said) == "src/1_x.py --base-model …/small --dataset data/ag_news"
