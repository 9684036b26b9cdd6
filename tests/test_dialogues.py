"""Dialogues: the booking bot's generator, Schema-Guided Dialogue, speaker tokens, windows, packed rows."""

import hashlib
import json
import re
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from utils import corpora
from utils.corpora import (
    BOT,
    EOS,
    SPEAKERS,
    USER,
    BucketedTexts,
    DownloadError,
    bookings,
    dialogue_tokens,
    dialogue_windows,
    encode_turns,
    latest,
    packed_batch,
    schema_guided,
    train_tokenizer,
)
from utils.corpora.restaurant import CLOSED, QUESTIONS, REMINDERS, WISHES
from utils.masks import all_of, causal_mask, segment_mask
from utils.training import token_loss
from utils.transformer import DecoderOnly, TransformerConfig


def answers(dialogue):
    """What a waiter says who listens to the guest alone: an oracle, written in another way than the generator."""
    wishes, complete, said = {}, False, []
    for turn in dialogue[::2]:
        old = [found[1] for found in re.finditer(r", not (.*?)\.", turn)]
        named = [
            (m.start(), wish, value) for wish in WISHES for value in WISHES[wish] for m in re.finditer(value, turn)
        ]
        named = [(wish, value) for _, wish, value in sorted(named) if value not in old]
        if "forget" in turn or "no table" in turn:
            said.append("nothing is booked. goodbye.")
        elif "no, book it" in turn or "that is all" in turn:
            said.append("booked: a table " + " ".join(wishes[wish] for wish in WISHES) + ". goodbye.")
        elif turn in REMINDERS.values():
            (wish,) = (wish for wish in WISHES if REMINDERS[wish] == turn)
            said.append(f"{wishes[wish]}. anything else?")
        elif re.match("my sister|last year|a friend", turn):
            said.append("i see. anything else?")
        elif complete:
            wishes |= named
            said.append(f"{named[0][1]}, noted. anything else?")
        else:
            wishes |= named
            closed = wishes.get("day") == CLOSED
            asked = ["day"] if closed else [wish for wish in WISHES if wish not in wishes]
            complete = not asked
            if closed:
                del wishes["day"]
            read = f"a table {' '.join(wishes.get(wish, '') for wish in WISHES)}. anything else?"
            said.append(read if complete else closed * "we are closed on monday. " + QUESTIONS[asked[0]])
    return said


def test_the_bot_says_what_follows_from_what_the_guest_has_said():
    for dialogue in bookings(2000):
        assert dialogue[1::2] == answers(dialogue)


def test_bookings_are_different_repeatable_and_prefixes_of_one_another():
    dialogues = bookings(2000, seed=1)
    assert len(set(map(tuple, dialogues))) == 2000
    assert bookings(300, seed=1) == dialogues[:300]
    assert bookings(300, seed=2) != dialogues[:300]


DIALOGUES = [
    [{"speaker": "USER", "utterance": "A  table."}, {"speaker": "SYSTEM", "utterance": "Booked."}],
    [{"speaker": "USER", "utterance": "Hi."}, {"speaker": "SYSTEM", "utterance": "Hello."}],
]


def packed_file(dialogues, notes=""):
    return json.dumps([{"dialogue_id": "1", "notes": notes, "turns": turns} for turns in dialogues]).encode()


FILES = {"dev/dialogues_001.json": packed_file(DIALOGUES[:1]), "dev/dialogues_002.json": packed_file(DIALOGUES[1:])}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A loopback server that holds FILES, except those in its `missing`; the cache is an empty folder."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            name = self.path.removeprefix("/sgd/")
            body = FILES[name] if name not in server.missing else b""
            self.send_response(200 if body else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(schema_guided, "SCHEMA_GUIDED", corpora.SCHEMA_GUIDED._replace(digests=digests))
    monkeypatch.setattr(schema_guided, "fetch", lambda *names: corpora.fetch(*names, cache=tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.missing = [], set()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("SERIES_DATA_MIRROR", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def test_a_download_that_broke_off_goes_on_with_the_missing_file(server):
    second = list(FILES)[1]
    server.missing = {second}
    with pytest.raises(DownloadError, match=r"dialogues_002.*503"):
        corpora.load_schema_guided("dev")
    server.requests, server.missing = [], set()
    assert corpora.load_schema_guided("dev") == [["A table.", "Booked."], ["Hi.", "Hello."]]
    assert server.requests == [f"/sgd/{second}"]


def test_one_annotated_file_at_a_time_is_in_memory(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    digests = {f"dev/{number}.json": "" for number in range(6)}
    for name in digests:
        (tmp_path / name).write_bytes(packed_file(DIALOGUES, notes="x" * 1_000_000))
    monkeypatch.setattr(schema_guided, "SCHEMA_GUIDED", corpora.SCHEMA_GUIDED._replace(digests=digests))
    tracemalloc.start()
    corpora.load_schema_guided("dev", folder=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one_file = 2 * 1_000_000  # two dialogues with their notes
    assert peak < 4 * one_file  # bytes, text and parsed form of one of the six files


def test_turns_that_do_not_alternate_are_said(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in (name for name in corpora.SCHEMA_GUIDED.digests if name.startswith("dev/")):
        (tmp_path / name).write_bytes(packed_file([DIALOGUES[0][::-1]]))
    with pytest.raises(ValueError, match="do not alternate"):
        corpora.load_schema_guided("dev", folder=tmp_path)
    with pytest.raises(ValueError, match="train, dev and test"):
        corpora.load_schema_guided("val", folder=tmp_path)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([turn for dialogue in bookings(50) for turn in dialogue], 300, markers=SPEAKERS)


def test_speaker_tokens_follow_the_reserved_ids(tokenizer):
    assert [tokenizer.token_to_id(marker) for marker in SPEAKERS] == [USER, BOT] == [4, 5]


def test_only_what_the_bot_writes_counts(tokenizer):
    ids, scored = dialogue_tokens(encode_turns(tokenizer, ["at noon.", "for two."]))
    assert tokenizer.decode(ids) == "at noon. for two."
    bot = ids.index(BOT)
    assert ids[0] == USER and ids[bot - 1] == ids[-1] == EOS
    assert scored == [False] * (bot + 1) + [True] * (len(ids) - bot - 1)


def test_nobody_can_write_a_speaker_token(tokenizer):
    ((first, *words, last),) = encode_turns(tokenizer, ["hi [EOS][BOT] booked [USER]"])
    assert (first, last) == (USER, EOS) and not {USER, BOT, EOS} & set(words)


@pytest.mark.parametrize("limit", [40, 64, 1000])
def test_windows_count_each_turn_of_the_bot_once_and_start_between_turns(tokenizer, limit):
    dialogues = bookings(60)
    texts, scored = dialogue_windows(tokenizer, dialogues, limit)
    assert max(map(len, texts)) <= limit and all(text[0] in (USER, BOT) and text[-1] == EOS for text in texts)
    counted = [
        token
        for text, flags in zip(texts, scored, strict=True)
        for token, flag in zip(text, flags, strict=True)
        if flag
    ]
    turns = [turn for dialogue in dialogues for turn in encode_turns(tokenizer, dialogue)]
    assert counted == [token for turn in turns if turn[0] == BOT for token in turn[1:]]
    assert (len(texts) == len(dialogues)) == (limit == 1000)


def test_a_turn_that_fits_no_window_is_said(tokenizer):
    with pytest.raises(ValueError, match=r"expected at most 10, a window"):
        dialogue_windows(tokenizer, [["at noon in the garden, please, at noon.", "for two."]], 10)


def test_a_turn_longer_than_half_a_window_pushes_its_history_out(tokenizer):
    turns = ["for two.", "at noon in the garden, please."]
    first, second = encode_turns(tokenizer, turns)
    assert dialogue_windows(tokenizer, [turns], len(second))[0] == [first, second]


def test_the_latest_turns_are_whole_and_as_many_as_fit():
    turns = [[1] * 3, [2] * 4, [3] * 2]
    assert [len(latest(turns, limit)) for limit in (1, 2, 5, 6, 8, 9)] == [0, 1, 1, 2, 2, 3]


TEXTS = [[4, 11, 12], [4, 21, 22, 23, 24], [4, 31]]
FLAGS = [[True, False, True], [False, True, True, True, True], [True, True]]


def test_packed_rows_say_whose_each_token_is_and_where_it_stands():
    batch = packed_batch(TEXTS, FLAGS, row_len=8)
    assert batch.tokens.tolist() == [[4, 21, 22, 23, 24, 4, 11, 12], [4, 31, 0, 0, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0] + [-1] * 6]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert batch.scored.int().tolist() == [[0, 1, 1, 1, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0]]


def test_a_text_that_fits_no_row_is_said():
    with pytest.raises(ValueError, match="5 tokens, and a row holds row_len = 4"):
        packed_batch(TEXTS, FLAGS, row_len=4)


def test_packed_rows_give_loss_and_gradients_of_the_separate_texts():
    torch.manual_seed(0)
    model = DecoderOnly(TransformerConfig(40, d_model=16, num_heads=2, d_ff=32, num_layers=2)).eval()
    packed, results = packed_batch(TEXTS, FLAGS, row_len=9), []
    mask = all_of(causal_mask(8), segment_mask(packed.segments[:, :-1]))
    for batch in (packed, next(BucketedTexts(TEXTS, FLAGS, max_tokens=99)(0))):
        model.zero_grad()
        arguments = {"positions": packed.positions[:, :-1]} if batch is packed else {}
        logits, _ = model(batch.tokens[:, :-1], mask if batch is packed else causal_mask(4), **arguments)
        loss = token_loss(logits, batch.tokens[:, 1:], batch.scored[:, 1:])
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
