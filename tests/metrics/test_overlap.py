"""ROUGE, BLEU and chrF against the packages, against arithmetic done by hand, and on texts that
break them.
"""

from functools import partial

import numpy as np
import pytest

from gpt2_quant.errors import UserError
from gpt2_quant.metrics.bleu import bleu, chrf, nltk_bleu
from gpt2_quant.metrics.rouge import UnicodeTokenizer, rouge

OVERLAP = [bleu, chrf, nltk_bleu]


def test_rouge_by_hand():
    # Unigrams: 3 of 4 and 3 of 6 match; bigrams "the cat": 1 of 3 and 1 of 5; subsequence "the cat
    # mat": 3.
    scored = rouge(["the cat likes mat"], [["the cat is on the mat"]])
    assert scored["rouge1"].parts["precision"][0] == pytest.approx(3 / 4)
    assert scored["rouge1"].parts["recall"][0] == pytest.approx(3 / 6)
    assert scored["rouge1"].values[0] == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert scored["rouge2"].values[0] == pytest.approx(2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5))
    assert scored["rougeL"].values[0] == pytest.approx(0.6)


def test_rouge_agrees_with_the_package(summeval_sample):
    from rouge_score.rouge_scorer import RougeScorer

    candidates, (group, *_) = summeval_sample
    candidates, group = (
        [text for text in texts if text.isascii()] for texts in (candidates, group)
    )
    package = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    ours = rouge(candidates, [group] * len(candidates))
    for i, candidate in enumerate(candidates):
        theirs = package.score_multi(group, candidate)
        for name in ("rouge1", "rouge2", "rougeL"):
            assert ours[name].values[i] == pytest.approx(theirs[name].fmeasure, abs=1e-6)
            assert ours[name].parts["recall"][i] == pytest.approx(theirs[name].recall, abs=1e-6)


def test_bleu_and_chrf_agree_with_sacrebleu(summeval_sample):
    import sacrebleu

    candidates, references = summeval_sample
    streams = [[group[k] for group in references] for k in range(11)]
    for metric, one, corpus in (
        (bleu, sacrebleu.sentence_bleu, partial(sacrebleu.corpus_bleu, force=True)),
        (chrf, sacrebleu.sentence_chrf, sacrebleu.corpus_chrf),
    ):
        ours = metric(candidates, references)
        assert ours.corpus == pytest.approx(corpus(candidates, streams).score, abs=1e-6)
        theirs = one(candidates[3], references[3]).score
        assert ours.values[3] == pytest.approx(theirs, abs=1e-6)


def test_tokenizer_equals_the_packages_on_ascii(tiny_texts):
    from rouge_score.tokenizers import DefaultTokenizer

    package, ours = DefaultTokenizer(use_stemmer=True), UnicodeTokenizer()
    odd = ["It's 3.5% of U.S. GDP_growth, isn't it?", "e-mail re-sent 10,000 times"]
    for text in [*tiny_texts[0][:200], *odd]:
        assert ours.tokenize(text) == package.tokenize(text)


def test_identical_texts_score_full_marks_in_any_alphabet():
    for text in ("Паром сел на мель", "ferry", "船が座礁した", "😀🚢", "a b c"):
        for metric in OVERLAP:
            assert metric([text], [[text]]).values[0] == pytest.approx(100), (metric.__name__, text)
        assert rouge([text], [[text]])["rouge1"].values[0] == pytest.approx(1)


def test_rouge2_of_single_words_is_undefined_and_not_zero():
    assert np.isnan(rouge(["ferry"], [["ferry"]])["rouge2"].values[0])
    assert rouge(["ferry sank"], [["boat left"]])["rouge2"].values[0] == 0


def test_odd_texts_have_a_value_or_are_undefined(odd_texts):
    for metric in OVERLAP:
        values = metric(odd_texts, [["some reference text"]] * len(odd_texts)).values
        assert np.isnan(values[:3]).all() and np.isfinite(values[3:]).all()
    values = rouge(odd_texts, [["some reference text"]] * len(odd_texts))["rouge1"].values
    assert list(np.flatnonzero(np.isnan(values))) == [0, 1, 2, 7]


def test_corpus_value_leaves_undefined_texts_out_and_names_the_number_of_references(tiny_texts):
    import sacrebleu

    texts, others = tiny_texts[0][:40], tiny_texts[0][1:41]
    package = {bleu: sacrebleu.corpus_bleu, chrf: sacrebleu.corpus_chrf}
    for metric, corpus in package.items():
        scored = metric([*texts, " "], [[other] for other in [*others, "x"]])
        assert scored.n == 40 and "|nrefs:1|" in scored.signature
        assert scored.corpus == pytest.approx(corpus(texts, [others]).score, abs=1e-9)
        assert "|nrefs:var|" in metric(texts[:2], [others[:2], others[:1]]).signature
        assert np.isnan(metric([" "], [["x"]]).corpus)


def test_more_references_never_lower_rouge():
    one, two = (rouge(["a cat sat"], [["a dog ran", *more]]) for more in ([], ["the cat sat"]))
    assert all(two[name].values[0] >= one[name].values[0] for name in one)


def test_unequal_numbers_are_refused():
    with pytest.raises(UserError, match="2 candidates but 1"):
        bleu(["a", "b"], [["a"]])
