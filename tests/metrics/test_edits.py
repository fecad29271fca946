"""Edits do what their names say, only that, and the same every time."""

import re

import pandas as pd
import pytest

from gpt2_quant.metrics.sentences import split_sentences
from gpt2_quant.metrics.studies.edit_study import (
    choose_originals,
    edit_pairs,
    edit_table,
    meaning_ranking,
)
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


def test_numbers_change_and_nothing_else():
    result = edited(BY_NAME["other number"], TEXT, OTHER, 3)
    assert all(a != b for a, b in zip(numbers(result), numbers(TEXT), strict=True))
    number = "|".join([r"\d+", *NUMBER_WORDS])
    assert re.sub(number, "#", result) == re.sub(number, "#", TEXT)


def test_strength_is_the_number_of_places():
    counts = [
        edited(BY_NAME["negation"], TEXT, OTHER, strength).count(" not") for strength in STRENGTHS
    ]
    assert counts == [1, 2, 3]  # were, will, was
    assert edited(BY_NAME["other date"], TEXT, OTHER, 3).count("Monday") == 0


def test_names_are_swapped_or_replaced():
    roles = edited(BY_NAME["role swap"], TEXT, OTHER, 1)
    assert "Tom Clark met Anna Berg" in roles
    replaced = edited(BY_NAME["entity swap"], TEXT, OTHER, 3)
    assert "Anna Berg" not in replaced and "Tom Clark" not in replaced


def test_sentence_edits_keep_the_sentences():
    sentences = split_sentences(TEXT)
    assert sorted(split_sentences(edited(BY_NAME["sentence order"], TEXT, OTHER, 3))) == sorted(
        sentences
    )
    assert len(split_sentences(edited(BY_NAME["repeated sentence"], TEXT, OTHER, 3))) == 2 * len(
        sentences
    )
    assert (
        len(split_sentences(edited(BY_NAME["dropped sentence"], TEXT, OTHER, 1)))
        == len(sentences) - 1
    )
    assert sorted(edited(BY_NAME["word order"], TEXT, OTHER, 3).split()) == sorted(TEXT.split())
    switched = edited(BY_NAME["topic switch"], TEXT, OTHER, 2)
    assert sentences[0] in switched and sentences[-1] not in switched and "Madrid" in switched


def test_study_tables_by_hand():
    originals = choose_originals(None, [TEXT, OTHER, "One number 5. And 7."], 1)
    pairs = edit_pairs(originals, limit=1, strengths=(1,))
    assert set(pairs.groupby(["edit", "strength"]).size()) == {1}
    scores = pairs[["text"]].rename(columns={"text": "m"}).astype(float)
    scores["m"] = pairs["effect"].map({"keeps": 3.0, "breaks": 1.0}).fillna(2.0)
    before = pd.DataFrame({"m": [2.0, 4.0, 3.0]})
    table = edit_table(pairs, scores, before).set_index("edit")
    row = pairs[pairs["edit"] == "negation"].iloc[0]
    assert table.loc["negation", "mean_fall"] == pytest.approx(
        (before["m"][row["text"]] - 1) / before["m"].std(ddof=0)
    )
    assert table.loc["negation", "prefers_original"] == 1
    ranking = meaning_ranking(pairs, scores[["m"]]).iloc[0]
    assert ranking["kept_above_broken"] == 1 and ranking["low"] == 1
