"""The coherence score's promises: range, order, repetition, subject, undefinedness; its arithmetic;
sentence splitting.
"""

import numpy as np
import pytest

from gpt2_quant.metrics import coherence as scs
from gpt2_quant.metrics.cues import Cues, context_cues
from gpt2_quant.metrics.order_model import WEIGHTS, cues_of, judge
from gpt2_quant.metrics.sentences import split_sentences


def test_defined_from_two_sentences_on_and_in_the_unit_interval(encoder, story, odd_texts):
    texts = [" ".join(story), " ".join(story[:2]), story[0], "", *odd_texts]
    scored = scs.coherence(texts, encoder)
    assert np.isfinite(scored.values[:2]).all() and np.isnan(scored.values[2:]).all()
    assert (scored.values[:2] > 0).all() and (scored.values[:2] < 1).all()
    assert scored.n == 2


def test_value_is_the_product_of_its_parts(encoder, story):
    scored = scs.coherence([" ".join(story)], encoder)
    parts = [scored.parts[name][0] for name in scs.PARTS]
    assert scored.values[0] == pytest.approx(np.prod(parts))
    alone = scs.coherence([" ".join(story)], encoder, ("novelty",))
    assert alone.values[0] == pytest.approx(scored.parts["novelty"][0])


def test_parts_by_hand():
    # Cosines .9 (s1, s2), .6 (s1, s3), .2786 (s2, s3): nearest to an earlier one .9 and .6, so r =
    # .5 and 0.
    vectors = np.zeros((3, 384), np.float32)
    vectors[0, 0] = 1
    vectors[1, :2] = 0.9, np.sqrt(0.19)
    vectors[2, :3] = 0.6, -0.6, np.sqrt(0.28)
    continuity, novelty, unity = scs.coherence_parts(np.array([0.9, 0.5, 0.7]), vectors)
    assert continuity == pytest.approx(0.7)
    assert novelty == pytest.approx(1 - np.sqrt(0.5**2 / 2), abs=1e-5)
    assert unity == 1  # too short to fall into two halves


def test_unity_is_that_of_the_weakest_split():
    # Two halves of three sentences: every cosine is .1 across and at least that within, so u = .1.
    vectors = np.zeros((6, 384), np.float32)
    for i in range(6):
        vectors[i, 0], vectors[i, 1 + i] = np.sqrt(0.1), np.sqrt(0.9)
    expected = 1 - np.exp(-((0.1 / 0.08) ** 2))
    assert scs.coherence_parts(np.ones(6), vectors)[2] == pytest.approx(expected, abs=1e-5)
    vectors[:, 0] = 0
    assert scs.coherence_parts(np.ones(6), vectors)[2] == 0


def test_judge_prefers_an_opening_to_a_sentence_from_the_middle(encoder, story):
    vectors, cues = encoder.sentence_vectors(story), [cues_of(sentence) for sentence in story]
    in_place = judge(vectors, cues)
    assert in_place.shape == (4,) and ((in_place > 0) & (in_place < 1)).all()
    assert all(in_place[0] > judge(vectors[i:], cues[i:])[0] for i in (1, 2, 3))
    assert WEIGHTS.stat().st_size < 2**20


def test_a_sentence_is_judged_by_what_precedes_it_alone(encoder, story):
    vectors, cues = encoder.sentence_vectors(story), [cues_of(sentence) for sentence in story]
    assert judge(vectors[:3], cues[:3]) == pytest.approx(judge(vectors, cues)[:3], abs=1e-6)


def test_order_is_seen_where_cosines_are_blind(encoder, story):
    backwards = " ".join(story[::-1])
    original, reverse = scs.coherence([" ".join(story), backwards], encoder).values
    assert original > reverse
    for cosine in (scs.adjacent_cosine, scs.all_pairs_cosine):
        same = cosine([" ".join(story), backwards], encoder).values
        assert same[0] == pytest.approx(same[1], abs=1e-6)


def test_repetition_and_change_of_subject_lower_it(encoder, story):
    other = ["The cup final ended without a goal.", "Both keepers were praised by their coaches."]
    versions = [story, [story[0], *story], [*story, *story], [*story[:2], *other]]
    texts = list(map(" ".join, versions))
    values = scs.coherence(texts, encoder).values
    assert (values[0] > values[1:]).all()
    # The usual score falls for it.
    assert scs.adjacent_cosine(texts[:2], encoder).values.argmax() == 1


def test_repetition_is_charged_on_real_articles(encoder, human_judgements_dir):
    from gpt2_quant.metrics.studies.human_judgements import load_human_judgements

    articles = load_human_judgements(str(human_judgements_dir))[0].sources[:12]
    doubled = [" ".join(s for s in split_sentences(text) for _ in range(2)) for text in articles]
    assert (scs.coherence(articles, encoder).values > scs.coherence(doubled, encoder).values).all()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three? Four…", 4),
        ("Mr. Lee met Dr. J. Smith of the U.S. team. They spoke.", 2),
        ("It rose 3.5 percent. Shares fell.", 2),
        ("the draw in turin . townsend hit back . `` yes '' , he said .", 3),
        ("'Just been watching the game . ' Merson said .", 2),
        ("“We won.” He smiled.", 2),
        ("船が座礁した。乗客は無事だ。", 2),
        ("No stop at all", 1),
        ("A heading\nA line.", 2),
        ("  \n ", 0),
        ("...", 1),
    ],
)
def test_sentences(text, count):
    sentences = split_sentences(text)
    assert len(sentences) == count
    assert "".join("".join(sentences).split()) == "".join(text.split())


def test_cues_of_what_a_sentence_takes_up():
    full = Cues("Striker Paul Merson signed a deal.")
    bare = Cues("Later, Merson praised the deal and the club.")
    assert "merson" in full.full and "merson" in bare.bare
    forward, backward = context_cues([full, bare]), context_cues([bare, full])
    assert forward[0, 0] == 1 and forward[1, 0] == 0  # opens the text
    assert forward[1, 8] == 1 and backward[1, 8] == -1  # full name before surname, and the reverse
    # "the deal" is known, "the club" is not.
    assert forward[1, 3] == forward[1, 4] == pytest.approx(1 / 3)


def test_cue_of_an_unfinished_sentence():
    finished, cut = Cues("They met in the old town."), Cues("They met in the")
    assert list(finished.vector[14:16]) == [1, 0] and list(cut.vector[14:16]) == [0, 1]
