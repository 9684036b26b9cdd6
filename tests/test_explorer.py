"""The mask explorer: the model as a function, and the view through its widgets, as clicks and sliders move them."""

import re

import pytest
import torch

from utils.attention import attention
from utils.explorer import MAX_TOKENS, MaskExplorer, State, explore, query_and_key
from utils.masks import all_of, causal_mask, full_mask, local_mask, mask_to_text, prefix_mask, segment_mask


def mask_of(**chosen):
    return explore(State(**chosen)).mask


def drawn(explorer):
    """The mask as the cells show it."""
    length = len(explorer.sentence.value.replace("|", " ").split()) + explorer.pads.value
    return "\n".join("".join(explorer.cells[q, k].description for k in range(length)) for q in range(length))


# ---- the model


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, full_mask(4)),
        ({"causal": "AND"}, causal_mask(4)),
        ({"causal": "OR"}, causal_mask(4)),  # the first rule has nothing before it
        ({"window": "AND"}, local_mask(4, back=1, ahead=1)),
        ({"causal": "AND", "window": "AND"}, local_mask(4, back=1)),
        ({"causal": "AND", "prefix": "OR"}, prefix_mask(4, 2)),
        ({"padding": "AND"}, full_mask(4)),
        ({"packing": "AND"}, full_mask(4)),
    ],
)
def test_each_rule_is_the_mask_of_its_name(rules, expected):
    assert torch.equal(mask_of(rules=rules), expected)


def test_documents_are_separated_by_a_bar():
    expected = all_of(causal_mask(5), segment_mask(torch.tensor([0, 0, 0, 1, 1])))
    assert torch.equal(mask_of(sentence="the cat sat | a dog", rules={"packing": "AND", "causal": "AND"}), expected)


def test_padding_is_hidden_on_its_own_side():
    chosen = {"sentence": "a dog", "pads": 1, "rules": {"causal": "AND", "padding": "AND"}}
    assert mask_to_text(mask_of(**chosen)) == "■⬚⬚\n■■⬚\n■■⬚"
    assert mask_to_text(mask_of(**chosen, pads_left=True)) == "⬚⬚⬚\n⬚■⬚\n⬚■■"
    assert explore(State(**chosen, pads_left=True)).dead.tolist() == [True, False, False]


def test_padding_joined_by_or_opens_what_causality_hides():
    chosen = {"sentence": "a dog", "pads": 1, "rules": {"causal": "AND", "padding": "OR"}}
    assert mask_to_text(mask_of(**chosen)) == "■■⬚\n■■⬚\n■■■"


def test_the_formula_says_how_the_rules_were_joined():
    picture = explore(State(rules={"padding": "AND", "causal": "AND", "prefix": "OR"}))
    assert picture.formula == "(causal OR prefix) AND padding"
    assert explore(State()).formula == "every key"


@pytest.mark.parametrize("rules", [{"casual": "AND"}, {"causal": "and"}, {"causal": "off"}])
def test_a_rule_that_is_none_is_refused(rules):
    with pytest.raises(ValueError, match=r"unknown rules .*; expected some of causal, .*, each AND or OR"):
        State(rules=rules)


def test_a_flipped_cell_is_the_only_one_that_changes():
    before, after = mask_of(rules={"causal": "AND"}), mask_of(rules={"causal": "AND"}, flipped=frozenset({(0, 3)}))
    assert (before != after).nonzero().tolist() == [[0, 0, 0, 3]]


def test_the_weights_are_those_of_attention():
    picture = explore(State(sentence="a dog", pads=2, pads_left=True, rules={"causal": "AND", "padding": "AND"}))
    query, key = torch.stack([query_and_key(token) for token in picture.tokens], dim=1)[:, None, None]
    _, weights = attention(query, key, key, picture.mask)
    torch.testing.assert_close(picture.weights, weights[0, 0])
    assert picture.dead.tolist() == [True, True, False, False]


def test_a_word_keeps_its_scores_in_other_company():
    alone, among = explore(State("cat sat")).scores, explore(State("the cat sat", pads=2)).scores
    torch.testing.assert_close(among[1:3, 1:3], alone)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"sentence": " | "}, "no words"),
        ({"sentence": "a " * 10, "pads": 3}, "10 words and 3 padding tokens make 13 tokens.* at most 12"),
    ],
)
def test_what_cannot_be_drawn_is_said(chosen, message):
    with pytest.raises(ValueError, match=message):
        explore(State(**chosen))
    assert len(explore(State("a " * MAX_TOKENS)).tokens) == MAX_TOKENS


# ---- the view


def test_a_control_changes_the_cells():
    explorer = MaskExplorer()
    assert drawn(explorer) == mask_to_text(causal_mask(4))
    explorer.rules["prefix"].value = "OR"
    assert drawn(explorer) == mask_to_text(prefix_mask(4, 2))
    explorer.prefix.value = 3
    assert drawn(explorer) == mask_to_text(prefix_mask(4, 3))
    explorer.pads.value, explorer.rules["window"].value, explorer.window.value = 1, "AND", 2
    assert drawn(explorer) == mask_to_text(explore(explorer.state()).mask)


def test_a_click_flips_a_cell_and_the_next_click_turns_it_back():
    explorer = MaskExplorer()
    explorer.cells[0, 3].click()
    assert drawn(explorer).splitlines()[0] == "■⬚⬚■"
    assert "1 cell flipped" in explorer.message.value
    explorer.cells[0, 3].click()
    assert drawn(explorer) == mask_to_text(causal_mask(4))


@pytest.mark.parametrize("forget", [lambda e: e.undo.click(), lambda e: setattr(e.sentence, "value", "a b c d")])
def test_flips_are_forgotten_on_request_and_with_other_words(forget):
    explorer = MaskExplorer()
    explorer.cells[0, 3].click()
    forget(explorer)
    assert drawn(explorer) == mask_to_text(causal_mask(4))


def test_the_tooltip_says_who_attends_to_whom():
    explorer = MaskExplorer()
    assert explorer.cells[2, 1].tooltip == "query 'sat' may attend to 'cat'"
    assert explorer.cells[1, 2].tooltip == "query 'cat' may not attend to 'sat'"


def test_a_dead_row_is_named_and_shown_without_weight():
    explorer = MaskExplorer(State("a dog", pads=1, pads_left=True, rules={"causal": "AND", "padding": "AND"}))
    assert "Dead rows: <b>[PAD]</b>" in explorer.message.value
    assert explorer.labels["query", 0].value == "[PAD] (dead)"
    colours = {explorer.cells[q, q].style.button_color for q in range(3)}
    assert len(colours) == 2
    weights = explorer.tables.value.split("<table>")[2]
    assert re.findall(r">([\d.]+)</td>", weights)[:3] == ["0", "0", "0"]


def test_a_sentence_that_is_too_long_leaves_the_picture_and_says_why():
    explorer = MaskExplorer()
    before = drawn(explorer), explorer.tables.value
    explorer.sentence.value = "word " * 13
    assert "at most 12" in explorer.message.value
    explorer.sentence.value = "the cat sat down"
    assert (drawn(explorer), explorer.tables.value) == before
    assert "Dead rows" in explorer.message.value


def test_words_are_text_and_not_html():
    explorer = MaskExplorer(State("<script>alert(1)</script> <b>", pads=1, pads_left=True, rules={"padding": "OR"}))
    explorer.rules["causal"].value = "AND"
    for q in range(3):
        explorer.cells[q, 0].click()
    for value in (explorer.tables.value, explorer.message.value):
        assert "<script>" not in value
    assert "&lt;script&gt;" in explorer.tables.value


def test_without_a_kernel_it_says_what_it_needs():
    assert repr(MaskExplorer()) == "The mask explorer. It needs a running kernel: run this cell."
