"""The scores of generated texts, against counts by hand."""

from functools import partial

import pytest

from utils.scores import bleu_13a, bleu_moses, rouge


def test_rouge_counts_stems_pairs_and_the_longest_common_subsequence():
    found = rouge(["meetings on friday", "no"], ["friday the meeting", "yes"])
    # first pair: the stems "meet" and "friday" are shared, 2 of 3; no pair of neighbours; one of them in order
    expected = {"rouge1": 100 * (2 / 3) / 2, "rouge2": 0.0, "rougeL": 100 * (1 / 3) / 2}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("score", [bleu_13a, partial(bleu_moses, language="en"), rouge])
@pytest.mark.parametrize(("texts", "references"), [(["a b", "c d"], ["a b"]), (["a"], ["a", "b"]), ([], [])])
def test_every_score_wants_a_reference_for_each_text(score, texts, references):
    with pytest.raises(ValueError, match=f"{len(texts)} texts and {len(references)} references; expected equally many"):
        score(texts, references)
