"""Downloads over a loopback server, tokens, padding and buckets."""

import gzip
import hashlib
import io
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
import torch

from utils import corpora
from utils.corpora import (
    BOS,
    EOS,
    PAD,
    BucketedPairs,
    BucketedTexts,
    CopyingFirst,
    Corpus,
    DownloadError,
    appointments,
    download,
    fetch,
)
from utils.corpora.appointments import ACCEPTED, CHOICES

CONTENT = gzip.compress(b"ein Mann\nzwei Hunde\n", mtime=0)
TINY = Corpus("tiny", "http://127.0.0.1:9/", {"a.txt.gz": hashlib.sha256(CONTENT).hexdigest()})


@pytest.fixture
def mirror(monkeypatch):
    """A server on loopback; its `answer` is (bytes to send, bytes to announce)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body, announced = server.answer
            server.requests += 1
            self.send_response(200 if self.path == "/tiny/a.txt.gz" else 404)
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answer, server.requests = (CONTENT, len(CONTENT)), 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("SERIES_DATA_MIRROR", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def test_a_good_file_is_downloaded_once(mirror, tmp_path):
    paths = [fetch(TINY, "a.txt.gz", cache=tmp_path) for _ in range(2)]
    assert corpora.read_lines(paths[1]) == ["ein Mann", "zwei Hunde"]
    assert mirror.requests == 1


@pytest.mark.parametrize(
    "answer, reason",
    [
        ((b"x" * len(CONTENT), len(CONTENT)), "not the published ones"),
        ((CONTENT[:20], len(CONTENT)), "download failed"),
        ((CONTENT[:20], 20), "not the published ones"),
    ],
    ids=["corrupt", "cut off", "cut off and announced so"],
)
def test_a_bad_file_is_refused_and_not_kept(mirror, tmp_path, answer, reason):
    mirror.answer = answer
    with pytest.raises(DownloadError, match=reason):
        fetch(TINY, "a.txt.gz", cache=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    mirror.answer = (CONTENT, len(CONTENT))
    assert fetch(TINY, "a.txt.gz", cache=tmp_path).read_bytes() == CONTENT


def test_a_damaged_cache_is_mended(mirror, tmp_path):
    fetch(TINY, "a.txt.gz", cache=tmp_path).write_bytes(b"damaged")
    assert fetch(TINY, "a.txt.gz", cache=tmp_path).read_bytes() == CONTENT


def test_no_network_is_said_and_what_to_do(tmp_path):
    with pytest.raises(DownloadError, match=r"download failed.*run the cell again.*SERIES_DATA_MIRROR"):
        fetch(TINY, "a.txt.gz", cache=tmp_path)  # port 9 of loopback answers nobody


def test_a_missing_file_is_said(mirror, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        fetch(Corpus("other", "", TINY.digests), "a.txt.gz", cache=tmp_path)


def packed(files, compresslevel):
    """A .tar.gz with these files in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=compresslevel) as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


FILES = {"top/b.txt": "zwei Hunde", "top/a.txt": "ein Mann"}


@pytest.fixture
def packed_corpus(tmp_path):
    (tmp_path / "published.tar.gz").write_bytes(packed(FILES, 9))
    digest = download.archive_digest(tmp_path / "published.tar.gz")
    return TINY._replace(digests={"a.txt.gz": digest}, digest_of=download.archive_digest)


def test_an_archive_may_be_packed_in_another_way(mirror, tmp_path, packed_corpus):
    other = packed(dict(reversed(FILES.items())), 1)
    mirror.answer = other, len(other)
    path = fetch(packed_corpus, "a.txt.gz", cache=tmp_path)
    assert download.archived(path) == [("top/a.txt", b"ein Mann"), ("top/b.txt", b"zwei Hunde")]


@pytest.mark.parametrize(
    "bad",
    [packed(FILES | {"top/a.txt": "ein Hund"}, 9), packed({"top/a.txt": "ein Mann"}, 9), packed(FILES, 9)[:60], b"x"],
    ids=["another content", "a file missing", "cut off", "no archive"],
)
def test_an_archive_with_anything_else_in_it_is_refused_and_not_kept(mirror, tmp_path, packed_corpus, bad):
    mirror.answer = bad, len(bad)
    with pytest.raises(DownloadError, match="not the published ones"):
        fetch(packed_corpus, "a.txt.gz", cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_gzipped_file_may_be_packed_in_another_way_but_hold_nothing_else(mirror, tmp_path):
    digest = hashlib.sha256(gzip.decompress(CONTENT)).hexdigest()
    corpus = TINY._replace(digests={"a.txt.gz": digest}, digest_of=download.gunzipped_digest)
    for content, kept in ((b"ein Hund\n", False), (gzip.decompress(CONTENT), True)):
        body = gzip.compress(content, compresslevel=1, mtime=5)
        mirror.answer = body, len(body)
        if kept:
            assert fetch(corpus, "a.txt.gz", cache=tmp_path).read_bytes() == body != CONTENT
        else:
            with pytest.raises(DownloadError, match="not the published ones"):
                fetch(corpus, "a.txt.gz", cache=tmp_path)


def test_a_file_with_an_address_of_its_own_is_fetched_from_there(mirror, tmp_path, monkeypatch):
    address = f"http://127.0.0.1:{mirror.server_port}/tiny/a.txt.gz"
    monkeypatch.delenv("SERIES_DATA_MIRROR")
    assert fetch(TINY._replace(urls={"a.txt.gz": address}), "a.txt.gz", cache=tmp_path).read_bytes() == CONTENT


def test_a_mail_has_sentences_and_a_subject_and_no_notes_of_annotators(tmp_path):
    mail = "Hi  Ann,\tplease call.\n\nThanks,\n\n@subject\nA  call\n\n@ann0\nplease call\n\n@ann1\nring\n"
    files = {"x/enron_subject_line/dev/a.subject": mail, "x/enron_subject_line/test/a.subject": "b\n@subject\nc\n"}
    (tmp_path / next(iter(corpora.AESLC.digests))).write_bytes(packed(files, 1))
    assert corpora.load_aeslc("dev", folder=tmp_path) == ([["Hi Ann, please call.", "Thanks,"]], ["A call"])
    with pytest.raises(ValueError, match="train, dev and test"):
        corpora.load_aeslc("val", folder=tmp_path)


def agreed(dialogue):
    """The plan that a listener notes down: each proposal that is accepted replaces a part of it."""
    turns = re.split(r" ?\b[a-z]+: ", dialogue)[1:]
    kinds = {kind: re.compile("|".join(values)) for kind, values in CHOICES.items()}
    plan = {kind: pattern.search(turns[0])[0] for kind, pattern in kinds.items()}
    for turn, answer in pairwise(turns):
        if answer in ACCEPTED and turn != turns[0]:
            plan |= {kind: found[0] for kind, pattern in kinds.items() if (found := pattern.search(turn))}
    return " ".join(plan.values())


def test_a_summary_says_what_was_agreed():
    dialogues, summaries = appointments(500)
    assert all(summary.endswith(f" {agreed(line)}.") for line, summary in zip(dialogues, summaries, strict=True))


def test_appointments_are_different_repeatable_and_prefixes_of_one_another():
    dialogues, summaries = appointments(2000, seed=1)
    assert len(set(dialogues)) == 2000
    assert appointments(300, seed=1) == (dialogues[:300], summaries[:300])
    assert appointments(300, seed=2) != (dialogues[:300], summaries[:300])


def test_parallel_files_must_have_equally_many_lines(tmp_path):
    for language, lines in {"en": "a\nb\n", "de": "a\n"}.items():
        (tmp_path / f"val.{language}.gz").write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(ValueError, match=r"\[2, 1\] lines"):
        corpora.load_multi30k("val", ["en", "de"], folder=tmp_path)


def test_number_words_are_different_repeatable_and_prefixes_of_one_another():
    english, german = corpora.number_words(300, below=400, seed=1)
    assert len(set(english)) == len(set(german)) == 300
    assert corpora.number_words(100, below=400, seed=1) == (english[:100], german[:100])
    with pytest.raises(ValueError, match="only 10"):
        corpora.number_words(11, below=10)


def test_tokens_decode_to_the_lower_cased_text():
    lines = ["A man, in Köln, rides.", "Two dogs (brown) play!"]
    tokenizer = corpora.train_tokenizer(lines, 80)
    ids = corpora.encode(tokenizer, lines, bos=True)
    assert [(row[0], row[-1]) for row in ids] == [(BOS, EOS)] * 2
    assert tokenizer.decode_batch(ids) == [line.lower() for line in lines]


def test_a_long_line_is_cut_before_its_end_mark():
    tokenizer = corpora.train_tokenizer(["a b c d"], 80)
    (whole,) = corpora.encode(tokenizer, ["a b c d"], bos=True)
    assert corpora.encode(tokenizer, ["a b c d"], bos=True, limit=2) == [[*whole[:3], EOS]]


def test_nobody_can_write_a_special_token():
    tokenizer = corpora.train_tokenizer(["a [b] c"], 80)
    (ids,) = corpora.encode(tokenizer, ["a [EOS] b [PAD]"])
    assert ids.index(EOS) == len(ids) - 1 and PAD not in ids


def test_an_empty_row_is_nothing_but_padding():
    tokens, valid = corpora.pad([[], [5, 7]])
    assert tokens.dtype == torch.int64 and tokens.tolist() == [[PAD, PAD], [5, 7]]
    assert valid.tolist() == [[False, False], [True, True]]


def test_padding_flags_come_from_lengths_even_if_the_padding_id_is_a_token():
    tokens, valid = corpora.pad([[5, PAD, 7], [PAD]])
    assert tokens.tolist() == [[5, PAD, 7], [PAD, PAD, PAD]]
    assert valid.tolist() == [[True, True, True], [True, False, False]]


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 20, (200, 2), generator=generator).tolist()
    return BucketedPairs(
        [[10 + n] * a for n, (a, _) in enumerate(lengths)],
        [[10 + n] * b for n, (_, b) in enumerate(lengths)],
        max_tokens=64,
    )


def test_an_epoch_holds_each_pair_once_with_its_partner(pairs):
    seen = []
    for batch in pairs(0):
        assert torch.equal(batch.src[:, 0], batch.tgt[:, 0])  # both sides of pair n are made of token 10 + n
        seen += (batch.src[:, 0] - 10).tolist()
    assert sorted(seen) == list(range(200))


def test_batches_keep_to_the_token_budget(pairs):
    assert all(max(batch.src.numel(), batch.tgt.numel()) <= 64 for batch in pairs(0))


def test_bucketing_wastes_less_than_random_batches(pairs):
    padded = sum((~batch.tgt_valid).sum().item() for batch in pairs(0))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()
    random = [corpora.pad([pairs.targets[i] for i in order[start : start + 8]])[1] for start in range(0, 200, 8)]
    assert padded < 0.7 * sum((~valid).sum().item() for valid in random)


@pytest.mark.parametrize("swapped", [False, True])
def test_pairs_with_equally_long_sides_are_sorted_by_their_shorter_ones(swapped):
    generator = torch.Generator().manual_seed(0)
    sides = [[[5] * size for size in torch.randint(1, 12, (100,), generator=generator).tolist()], [[5] * 12] * 100]
    batches = BucketedPairs(*(sides[::-1] if swapped else sides), max_tokens=64)(0)
    sizes = [(batch.tgt_valid if swapped else batch.src_valid).sum(dim=1).tolist() for batch in batches]
    ranges = sorted((min(of_batch), max(of_batch)) for of_batch in sizes)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))


def test_the_order_depends_on_seed_and_epoch_alone(pairs):
    first, again, other = (list(pairs(epoch)) for epoch in (0, 0, 1))
    assert all(torch.equal(a.src, b.src) for a, b in zip(first, again, strict=True))
    assert any(a.src.shape != b.src.shape or not torch.equal(a.src, b.src) for a, b in zip(first, other, strict=False))


def test_a_curriculum_copies_first_and_then_gives_the_real_pairs(pairs):
    own = [[source, [*source, EOS]] for source in pairs.sources]  # two sentences, both of the source's own token
    curriculum = CopyingFirst(pairs, own, epochs=2)
    rows = [batch for epoch in (0, 1) for batch in curriculum(epoch)]
    assert all(torch.equal(batch.src[:, 0], batch.tgt[:, 0]) for batch in rows)
    assert sum(len(batch.src) for batch in rows) == 2 * len(own)
    assert {int((batch.tgt == EOS).any(dim=1).sum()) > 0 for batch in rows} == {True, False}  # both were drawn
    assert all(torch.equal(a.tgt, b.tgt) for a, b in zip(curriculum(0), curriculum(0), strict=True))
    assert all(torch.equal(a.tgt, b.tgt) for a, b in zip(curriculum(2), pairs(2), strict=True))


def test_a_curriculum_needs_a_sentence_for_each_source(pairs):
    with pytest.raises(ValueError, match="at least one sentence for each of the 200 sources"):
        CopyingFirst(pairs, [[]] * 200, epochs=1)


def test_a_batch_of_texts_keeps_its_loss_mask_and_never_scores_padding():
    batch = corpora.text_batch([[5, 6, 7], [8]], [[False, True, True], [True]])
    assert batch.tokens.tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch.valid.tolist() == [[True, True, True], [True, False, False]]
    assert batch.scored.tolist() == [[False, True, True], [True, False, False]]


def test_texts_and_their_flags_must_fit(raw_errors):
    with pytest.raises(ValueError, match="one flag for each token"):
        BucketedTexts([[5, 6]], [[True]], max_tokens=8)


def test_an_epoch_holds_each_text_once():
    texts = [[10 + n] * (1 + n % 7) for n in range(50)]
    batches = list(BucketedTexts(texts, max_tokens=16)(0))
    assert sorted((token - 10) for batch in batches for token in batch.tokens[:, 0].tolist()) == list(range(50))
    assert all(torch.equal(batch.scored, batch.valid) for batch in batches)


def test_each_token_of_a_text_has_its_flag():
    with pytest.raises(ValueError, match="expected one flag for each token"):
        corpora.text_batch([[5, 6, 7], [8, 9]], [[True] * 3, [True] * 3])


def test_a_vocabulary_without_room_for_the_signs_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 10, but the signs of these lines alone make"):
        corpora.train_tokenizer(["the quick brown fox"], 10)


def test_one_string_is_no_list_of_lines():
    tokenizer = corpora.train_tokenizer(["two dogs"], 30)
    with pytest.raises(TypeError, match=r"expected a list of them: \[line\]"):
        corpora.encode(tokenizer, "two dogs")
