"""The scores of generated texts, against counts by hand."""

import pytest

from utils.scores import rouge


def test_rouge_counts_stems_pairs_and_the_longest_common_subsequence():
    found = rouge(["meetings on friday", "no"], ["friday the meeting", "yes"])
    # first pair: the stems "meet" and "friday" are shared, 2 of 3; no pair of neighbours; one of them in order
    expected = {"rouge1": 100 * (2 / 3) / 2, "rouge2": 0.0, "rougeL": 100 * (1 / 3) / 2}
    assert found == pytest.approx(expected)


def test_rouge_wants_a_reference_for_each_text():
    with pytest.raises(ValueError):
        rouge(["a"], ["a", "b"])
