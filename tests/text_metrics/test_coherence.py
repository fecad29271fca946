"""The coherence score's promises: range, order, repetition, subject, undefinedness; its arithmetic; sentence splitting."""

import numpy as np
import pytest

from gpt2_quant.text_metrics import coherence as scs
from gpt2_quant.text_metrics.cues import Cues, pair_cues
from gpt2_quant.text_metrics.order_model import judge
from gpt2_quant.text_metrics.sentences import split_sentences


def test_defined_from_two_sentences_on_and_in_the_unit_interval(encoder, story, odd_texts):
    scored = scs.coherence([" ".join(story), " ".join(story[:2]), story[0], "", *odd_texts], encoder)
    assert np.isfinite(scored.values[:2]).all() and np.isnan(scored.values[2:]).all()
    assert (scored.values[:2] > 0).all() and (scored.values[:2] < 1).all()
    assert scored.n == 2


def test_value_is_the_geometric_mean_of_its_parts(encoder, story):
    scored = scs.coherence([" ".join(story)], encoder)
    parts = [scored.parts[name][0] for name in scs.PARTS]
    assert scored.values[0] == pytest.approx(np.prod(parts) ** 0.25)
    alone = scs.coherence([" ".join(story)], encoder, ("novelty",))
    assert alone.values[0] == pytest.approx(scored.parts["novelty"][0])


def test_parts_by_hand(story, monkeypatch):
    # Cosines .8 (s1, s2), .6 (s1, s3), 0 (s2, s3): nearest to an earlier one .8 and .6, so r = .5 and 0.
    vectors = np.zeros((3, 384), np.float32)
    vectors[0, 0] = 1
    vectors[1, :2] = 0.8, 0.6
    vectors[2, :3] = 0.6, -0.8, 0
    monkeypatch.setattr(scs, "judge", lambda sentences, v: (np.array([0.9, 0.5]), np.full((3, 3), 0.7)))
    continuity, precedence, novelty, unity = scs.coherence_parts(story[:3], vectors)
    assert continuity == pytest.approx(0.7) and precedence == pytest.approx(0.7)
    assert novelty == pytest.approx(1 - np.sqrt(0.5**2 / 2), abs=1e-6)
    assert unity == pytest.approx(1 - np.exp(-((1.4 / 3 / 0.25) ** 2)), abs=1e-6)


def test_precedence_of_a_pair_and_its_reverse_sum_to_one(encoder, story):
    continuation, precedence = judge(story, encoder.sentence_vectors(story))
    assert continuation.shape == (3,)
    assert np.allclose(precedence + precedence.T, 1, atol=1e-6)


def test_order_is_seen_where_cosines_are_blind(encoder, story):
    backwards = " ".join(story[::-1])
    original, reverse = scs.coherence([" ".join(story), backwards], encoder).values
    assert original > reverse
    for cosine in (scs.adjacent_cosine, scs.all_pairs_cosine):
        same = cosine([" ".join(story), backwards], encoder).values
        assert same[0] == pytest.approx(same[1], abs=1e-6)


def test_repetition_and_change_of_subject_lower_it(encoder, story):
    other = ["The cup final ended without a goal.", "Both keepers were praised by their coaches."]
    text = " ".join(story)
    worse = [" ".join([*story, *story]), " ".join([story[0], *story]), " ".join([*story[:2], *other])]
    values = scs.coherence([text, *worse], encoder).values
    assert (values[0] > values[1:]).all()
    assert scs.adjacent_cosine([text, worse[1]], encoder).values.argmax() == 1  # the usual score falls for it


def test_repetition_is_charged_on_real_articles(encoder, human_judgements_dir):
    from gpt2_quant.text_metrics.human_judgements import load_human_judgements

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


def test_full_name_before_surname_is_a_cue():
    full, bare = Cues("Striker Paul Merson was angry."), Cues("Later, Merson apologised to him.")
    assert "merson" in full.full and "merson" in bare.bare
    assert pair_cues(full, bare)[0] == 1 and pair_cues(bare, full)[0] == -1
