"""Edits do what their names say, only that, and the same every time."""

import csv
import os
import re
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpt2_quant.data.demo import generate_corpus
from gpt2_quant.metrics.sentences import split_sentences
from gpt2_quant.metrics.studies import edit_study
from gpt2_quant.metrics.studies.edits import EDITS, NUMBER_WORDS, STRENGTHS, edited

TEXT = (
    "Police said Anna Berg met Tom Clark on Monday. Both were injured in the crash, which killed "
    "14 people. The company will pay 3 million dollars. It was the largest accident since 1998."
)
OTHER = "Real Madrid beat Milan in March. The game ended late. Coach Luis Ortega praised his team."
BY_NAME = {edit.name: edit for edit in EDITS}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_every_edit_changes_the_text_and_is_repeatable(edit):
    for strength in STRENGTHS:
        first = edited(edit, TEXT, OTHER, strength)
        assert first is not None and first.split() != TEXT.split()
        assert first == edited(edit, TEXT, OTHER, strength)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_an_edit_without_a_place_to_work_gives_none(edit):
    for text in ("", "   "):
        assert not edited(edit, text, "", 1)


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def after(name: str, strength: int, text: str = TEXT) -> str | None:
    return edited(BY_NAME[name], text, OTHER, strength)


def test_numbers_change_and_nothing_else():
    result = after("other number", 3)
    assert all(a != b for a, b in zip(numbers(result), numbers(TEXT), strict=True))
    number = "|".join([r"\d+", *NUMBER_WORDS])
    assert re.sub(number, "#", result) == re.sub(number, "#", TEXT)


def test_strength_is_the_number_of_places():
    counts = [after("negation", strength).count(" not") for strength in STRENGTHS]
    assert counts == [1, 2, 3]  # were, will, was
    assert "Monday" not in after("other date", 3)


def test_names_are_swapped_or_replaced():
    assert "Tom Clark met Anna Berg" in after("role swap", 1)
    replaced = after("entity swap", 3)
    assert "Anna Berg" not in replaced and "Tom Clark" not in replaced


def test_sentence_edits_keep_the_sentences():
    sentences = split_sentences(TEXT)
    assert sorted(split_sentences(after("sentence order", 3))) == sorted(sentences)
    assert sorted(split_sentences(after("repeated sentence", 3))) == sorted(2 * sentences)
    assert len(split_sentences(after("dropped sentence", 1))) == len(sentences) - 1
    assert sorted(after("word order", 3).split()) == sorted(TEXT.split())
    switched = after("topic switch", 2)
    assert sentences[0] in switched and sentences[-1] not in switched and "Madrid" in switched


@pytest.fixture(scope="module")
def news() -> list[str]:
    """AG News where its folder is named, else the demo's items."""
    if folder := os.environ.get("AG_NEWS_DIR"):
        with open(Path(folder) / "test.csv", encoding="utf-8", newline="") as file:
            return [f"{title} {description}" for _, title, description in csv.reader(file)]
    titles, descriptions, _ = generate_corpus(2000, seed=5)
    return [f"{title} {text}" for title, text in zip(titles, descriptions, strict=True)]


def marked(before: str, after: str) -> str:
    """`after`, its changed words in brackets beside those that they replace."""
    old, new = before.split(), after.split()
    runs = []
    for what, i, j, k, n in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        kept, was = " ".join(new[k:n]), " ".join(old[i:j])
        runs.append(kept if what == "equal" else f"[{was} -> {kept}]")
    return " ".join(runs)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_twenty_random_edits_for_a_person_to_read(edit, news):
    """`pytest -s -k twenty` prints them. Asserted is what can be: facts stay where the meaning is
    kept, and where it is broken other words stand.
    """
    rng, shown = np.random.default_rng(1), []
    for i in rng.permutation(len(news)):
        result = edited(edit, news[i], news[(i + 1) % len(news)], 1)
        if result is not None:
            shown.append((news[i], result))
        if len(shown) == 20:
            break
    assert len(shown) == 20
    print(f"\n{edit.name} ({edit.effect} the meaning)")
    for before, result in shown:
        print("  -", marked(before, result))
        if edit.effect == "keeps":
            assert numbers(result) == numbers(before)
        if edit.effect == "breaks":
            assert Counter(result.split()) != Counter(before.split()) or edit.name == "role swap"


@pytest.mark.parametrize(
    ("kept", "changed"),
    [
        ("It fell last week.", None),
        ("They won the game.", None),
        ("Fans were worried about him.", None),
        ("It cost about 40 dollars.", "It cost approximately 40 dollars."),
        ("He was too large for a while.", None),
        ("It left because of rain.", "It left owing to rain."),
        ("Firms, more than 30, left.", "Firms, over 30, left."),
        ("No more than 30 left, no more than 30.", None),
    ],
)
def test_synonyms_ask_for_their_neighbours(kept, changed):
    assert after("synonyms", 3, kept) == changed


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("She will have gone.", "She will not have gone."),
        ("It is not so.", None),
        ("There are no fish.", None),
        ("They left the will.", None),
    ],
)
def test_one_negation_for_a_verb(text, changed):
    assert after("negation", 3, text) == changed


@pytest.mark.parametrize(
    "text",
    ["Rain fell on Ann and Tom.", "Yes, President Bush saw Bush.", "It was Paul (Reuters)."],
)
def test_roles_are_not_swapped_where_nothing_would_change(text):
    assert after("role swap", 3, text) is None


def test_punctuation_inside_numbers_stays():
    text = "Rates, at 10.5%, rose by $1,200."
    assert after("no punctuation", 3, text) == "Rates at 10.5% rose by $1,200"


def test_study_tables_by_hand():
    originals, _ = edit_study.choose_originals(None, [TEXT, OTHER, "One number 5. And 7."], 1)
    pairs = edit_study.edit_pairs(originals, limit=1, strengths=(1,))
    assert set(pairs.groupby(["edit", "strength"]).size()) == {1}
    scores = pairs[["text"]].rename(columns={"text": "m"}).astype(float)
    scores["m"] = pairs["effect"].map({"keeps": 3.0, "breaks": 1.0}).fillna(2.0)
    before = pd.DataFrame({"m": [2.0, 4.0, 3.0]})
    table = edit_study.edit_table(pairs, scores, before).set_index("edit")
    row = pairs[pairs["edit"] == "negation"].iloc[0]
    fall = (before["m"][row["text"]] - 1) / before["m"].std(ddof=0)
    assert table.loc["negation", "mean_fall"] == pytest.approx(fall)
    assert table.loc["negation", "prefers_original"] == 1
    ranking = edit_study.meaning_ranking(pairs, scores[["m"]]).iloc[0]
    assert ranking["kept_above_broken"] == 1 and ranking["low"] == 1


def test_each_pair_of_kinds_weighs_the_same_in_the_ranking():
    # Of "typos" three texts, all above; of "synonyms" one, below: 0.5 and not 0.75.
    rows = [("typos", "keeps", 3, i, i, "") for i in range(3)]
    rows += [("synonyms", "keeps", 3, 3, 3, "")]
    rows += [("negation", "breaks", 3, i, i, "") for i in range(4)]
    columns = ["edit", "effect", "strength", "text", "document", "edited"]
    pairs = pd.DataFrame(rows, columns=columns)
    scores = pd.DataFrame({"m": [2.0, 2, 2, 0, 1, 1, 1, 1]})
    ranking = edit_study.meaning_ranking(pairs, scores).iloc[0]
    assert ranking["kept_above_broken"] == 0.5
    assert list(ranking[["texts", "documents", "pairs", "kinds"]]) == [4, 4, 4, 2]
