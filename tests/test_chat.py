"""Replies to histories of unequal length, a conversation, and its box."""

import html
import re

import pytest
import torch

from utils.chat import Chat, chat_box, left_padded, replies
from utils.corpora import BOT, EOS, PAD, SPEAKERS, encode_turns, train_tokenizer
from utils.masks import causal_mask
from utils.transformer import DecoderOnly, TransformerConfig

HISTORIES = [["a b c d e."], ["a.", "b c.", "d e a."], ["e."]]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([turn for history in HISTORIES for turn in history], 40, markers=SPEAKERS)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return DecoderOnly(TransformerConfig(40, d_model=16, num_heads=2, d_ff=32, num_layers=2))


def reply_by_hand(model, tokenizer, history, max_len):
    tokens = [token for turn in encode_turns(tokenizer, history) for token in turn] + [BOT]
    start = len(tokens)
    for _ in range(max_len):
        logits, _ = model(torch.tensor([tokens]), causal_mask(len(tokens)))
        tokens.append(logits[0, -1].argmax().item())
        if tokens[-1] == EOS:
            break
    return tokenizer.decode(tokens[start:])


def test_a_reply_in_a_batch_is_the_reply_alone(model, tokenizer):
    expected = [reply_by_hand(model.eval(), tokenizer, history, 12) for history in HISTORIES]
    assert len(set(expected)) > 1
    assert replies(model, tokenizer, HISTORIES, max_len=12) == expected


def test_prompts_are_padded_on_the_left():
    tokens, valid = left_padded([[4, 7], [4, 8, 9]])
    assert tokens.tolist() == [[PAD, 4, 7], [4, 8, 9]]
    assert valid.tolist() == [[False, True, True], [True, True, True]]


def test_only_the_last_turns_are_read_if_the_context_is_short(model, tokenizer):
    long, last = ["c c c c c.", "b.", "d e a."], ["d e a."]
    size = len(encode_turns(tokenizer, last)[0])
    assert replies(model, tokenizer, [long], context=2 * size) == replies(model, tokenizer, [last])
    assert replies(model, tokenizer, [long]) != replies(model, tokenizer, [last])


def test_a_history_ends_with_the_user(model, tokenizer):
    with pytest.raises(ValueError, match="2 turns; expected an odd number"):
        replies(model, tokenizer, [["a.", "b."]])


def test_a_turn_that_would_not_be_read_gets_no_reply(model, tokenizer):
    with pytest.raises(ValueError, match="at most 8"):
        replies(model, tokenizer, [["a " * 20]], context=16)


def test_a_conversation_remembers_its_turns(model, tokenizer):
    chat = Chat(model, tokenizer)
    first = chat.say("  a  b. ")
    assert chat.turns == ["a b.", first]
    second = chat.say("c.")
    assert second == replies(model, tokenizer, [["a b.", first, "c."]])[0]
    assert chat.transcript().splitlines()[::2] == ["user: a b.", "user: c."]


@pytest.mark.parametrize("text, message", [("  ", "is empty"), ("a " * 20, "at most 8. Write less")])
def test_a_turn_that_cannot_be_read_is_said_and_not_kept(model, tokenizer, text, message):
    chat = Chat(model, tokenizer, context=16)
    with pytest.raises(ValueError, match=message):
        chat.say(text)
    assert chat.turns == []


def parts(box):
    shown, line, buttons = box.children
    return shown, line, *buttons.children


def text_of(shown):
    """What a reader sees of a piece of HTML."""
    return html.unescape(re.sub("<[^>]*>", "", shown.value))


def test_the_box_shows_the_conversation_and_starts_again(model, tokenizer):
    shown, line, send, again, message = parts(chat_box(chat := Chat(model, tokenizer)))
    line.value = "a <b>."
    send.click()
    assert text_of(shown) == chat.transcript() and chat.transcript().startswith("user: a <b>.\n bot:")
    assert (line.value, message.value) == ("", "")
    again.click()
    assert (text_of(shown), chat.turns) == ("", [])


def test_the_box_says_what_is_wrong_and_keeps_what_was_written(model, tokenizer):
    shown, line, send, _, message = parts(chat_box(Chat(model, tokenizer, context=16)))
    line.value = "a " * 20
    send.click()
    assert "Write less" in message.value and text_of(shown) == "" and line.value == "a " * 20
