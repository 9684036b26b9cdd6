"""Searches against exhaustive search, with a cache against without, and translation of batches."""

from functools import partial
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from utils.attention import KeyValueCache
from utils.corpora import BOS, EOS, train_tokenizer
from utils.decoding import (
    beam_search,
    decoder_only_next_logits,
    greedy_search,
    no_repeated_ngrams,
    sample,
    seq2seq_next_logits,
    summarize,
    together,
    translate,
)
from utils.transformer import (
    DecoderOnly,
    Seq2SeqMasks,
    Transformer,
    TransformerConfig,
    decoder_only_mask,
    seq2seq_masks,
)

VOCAB = 6  # PAD, BOS, EOS, UNK and two words


def table_model(seed):
    """Random scores of the next token that depend on the sequence so far, for one sequence."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCAB, VOCAB, VOCAB, generator=generator)
    table[..., [0, 1, 3]] = float("-inf")

    def next_logits(tokens):
        before = tokens[:, -2] if tokens.shape[1] > 1 else torch.zeros_like(tokens[:, 0])
        return table[before, tokens[:, -1]]

    return next_logits


def best_by_hand(next_logits, max_len, length_penalty=1.0):
    """The best ended sequence of all, by trying every one."""
    best = (float("-inf"), None)
    for length in range(max_len):
        for words in product([4, 5], repeat=length):
            sequence, score = [BOS], 0.0
            for token in (*words, EOS):
                score += next_logits(torch.tensor([sequence]))[0].log_softmax(-1)[token].item()
                sequence.append(token)
            best = max(best, (score / len(sequence) ** length_penalty, list(words)))
    return best[1]


@pytest.mark.parametrize("seed", range(10))
def test_a_wide_beam_finds_the_best_sequence_of_all(seed):
    next_logits, width = table_model(seed), 64
    start = torch.full((2 * width, 1), BOS)
    found = beam_search(next_logits, start, torch.full((2 * width,), 4), beam_size=width)
    # sequences cut off at max_len compete too, so compare only if the winner has ended
    best = best_by_hand(next_logits, 4)
    cut = any(len(words) == 4 for words in found)
    assert cut or found == [best, best]


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(seed):
    next_logits, start, max_len = table_model(seed), torch.full((1, 1), BOS), torch.tensor([6])
    greedy = greedy_search(next_logits, start, max_len)
    assert beam_search(next_logits, start, max_len, beam_size=1) == greedy


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(vocab_size=60, d_model=16, num_heads=2, d_ff=32, num_layers=1)).eval()


def test_the_scores_of_the_next_token_are_those_of_the_whole_forward(model):
    src = torch.randint(4, 60, (2, 5))
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    tgt = torch.cat((torch.full((2, 1), BOS), torch.randint(4, 60, (2, 3))), dim=1)
    logits, _ = model(src, tgt, seq2seq_masks(valid, torch.ones_like(tgt, dtype=torch.bool)))
    assert_close(seq2seq_next_logits(model, src, valid)(tgt), logits[:, -1])


def test_other_masks_take_the_place_of_the_right_ones(model):
    src, valid = torch.randint(4, 60, (2, 5)), torch.arange(5) < torch.tensor([[5], [3]])
    tgt, no_masks = torch.full((2, 1), BOS), Seq2SeqMasks(None, None, None)
    logits, _ = model(src, tgt, no_masks)
    assert_close(seq2seq_next_logits(model, src, valid, build_masks=lambda *_: no_masks)(tgt), logits[:, -1])
    assert not torch.allclose(seq2seq_next_logits(model, src, valid)(tgt)[1], logits[1, -1])


def test_models_that_write_together_go_by_the_mean_of_their_probabilities():
    scorers, text = [table_model(seed) for seed in range(3)], torch.tensor([[BOS, 4], [BOS, 5]])
    mean = sum(score(text).softmax(dim=-1) for score in scorers) / 3
    assert_close(together(scorers)(text).softmax(dim=-1), mean)


def test_a_model_and_itself_together_write_what_it_writes_alone(model):
    lines = ["a man", "two dogs play in the sun"]
    tokenizer = train_tokenizer(lines, 60)
    assert translate([model, model], tokenizer, lines, beam_size=3) == translate(model, tokenizer, lines, beam_size=3)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_line_is_translated_the_same_alone_and_in_a_batch(model, beam_size):
    lines = ["a man", "two dogs play in the sun", "a", "the man and the two dogs"]
    tokenizer = train_tokenizer(lines, 60)
    in_a_batch = translate(model, tokenizer, lines, beam_size=beam_size)
    alone = [translate(model, tokenizer, [line], beam_size=beam_size)[0] for line in lines]
    assert in_a_batch == alone
    assert any(in_a_batch)


def test_a_summary_is_as_short_as_asked_and_repeats_no_pair(model):
    lines = ["a man", "two dogs play in the sun", "a", "the man and the two dogs"]
    tokenizer = train_tokenizer(lines, 60)
    written = [tokenizer.encode(text).ids for text in summarize(model, tokenizer, lines, max_len=7, no_repeat=2)]
    assert max(map(len, written)) > 2
    assert all(len(ids) <= 7 and not has_repeated_runs(ids, 2) for ids in written)


def test_of_a_long_text_the_encoder_reads_the_first_pieces_and_the_end_mark(model, monkeypatch):
    lines = ["two dogs play in the sun", "two dogs play and the man"]
    tokenizer, read, encode = train_tokenizer(lines, 60), [], model.encode
    monkeypatch.setattr(model, "encode", lambda src, masks: read.append(src) or encode(src, masks))
    summarize(model, tokenizer, lines, source_limit=3)
    assert read[0].tolist() == [[*tokenizer.encode("two dogs play").ids, EOS]] * 2


def loop_model(tokens):
    """Always prefers 4, then 5: greedy search repeats 4 for ever."""
    return torch.tensor([[-9.0, -9.0, -5.0, -9.0, 2.0, 1.0]]).expand(len(tokens), -1)


def has_repeated_runs(ids, n):
    runs = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return len(set(runs)) < len(runs)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_run_of_n_tokens_is_written_twice(n):
    start, max_len = torch.full((1, 1), BOS), torch.tensor([12])
    assert has_repeated_runs(greedy_search(loop_model, start, max_len)[0], n)
    written = greedy_search(no_repeated_ngrams(loop_model, n), start, max_len)[0]
    assert written and not has_repeated_runs(written, n)


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([[0.1, 0.0, 0.2, 0.0, 0.3, 0.4]]).log()
    start = torch.full((4000, 1), BOS)
    generator = torch.Generator().manual_seed(0)
    one = torch.ones(4000, dtype=torch.long)
    drawn = sample(lambda tokens: logits.expand(len(tokens), -1), start, one, generator=generator)
    share = sum(ids == [5] for ids in drawn) / 4000
    assert abs(share - 0.4) < 0.03
    cold = sample(lambda tokens: logits.expand(len(tokens), -1), start, one, temperature=0.01, generator=generator)
    assert all(ids == [5] for ids in cold)


@pytest.mark.parametrize("top_p, allowed", [(0.3, {5}), (0.5, {4, 5}), (0.8, {2, 4, 5})])
def test_the_nucleus_keeps_the_likeliest_tokens_up_to_top_p(top_p, allowed):
    logits = torch.tensor([[0.1, 0.0, 0.2, 0.0, 0.3, 0.4]]).log()
    start = torch.full((500, 1), BOS)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(
        lambda tokens: logits.expand(len(tokens), -1),
        start,
        torch.ones_like(start[:, 0]),
        top_p=top_p,
        generator=generator,
    )
    assert {ids[0] if ids else EOS for ids in drawn} == allowed


def test_a_prompt_is_continued_and_not_returned():
    start = torch.tensor([[BOS, 4, 5]])
    assert sample(loop_model, start, torch.tensor([2]), temperature=0.01) == [[4, 4]]


def test_the_next_token_of_a_text_is_that_of_the_whole_forward():
    torch.manual_seed(0)
    model = DecoderOnly(TransformerConfig(vocab_size=20, d_model=16, num_heads=2, d_ff=32, num_layers=2)).eval()
    tokens = torch.randint(4, 20, (2, 6))
    logits, _ = model(tokens, decoder_only_mask(torch.ones_like(tokens, dtype=torch.bool)))
    assert_close(decoder_only_next_logits(model)(tokens[:, :4]), logits[:, 3])


# --- with a cache and without ---


def language_model():
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=30, d_model=16, num_heads=2, d_ff=32, num_layers=2)
    return DecoderOnly(config).double().eval()


def recording(next_logits, record):
    """The same function, which also keeps what it returned."""

    def recorded(tokens):
        record.append(next_logits(tokens))
        return record[-1]

    return recorded


def sampled(next_logits, start, max_len):
    generator = torch.Generator().manual_seed(0)
    return sample(next_logits, start, max_len, temperature=1.5, top_p=0.9, generator=generator)


def beam_of_3(next_logits, start, max_len):
    return beam_search(next_logits, start, max_len, beam_size=3)


def without_repetition(next_logits, start, max_len):
    return beam_of_3(no_repeated_ngrams(next_logits, 2), start, max_len)


SEARCHES = [(greedy_search, 1), (sampled, 1), (beam_of_3, 3), (without_repetition, 3)]


def written_with_and_without(next_logits_of, search, start, max_len):
    """What a search writes with the cache and without, [tokens, logits of every step] each."""
    results = []
    for cached in (True, False):
        record = []
        results.append((search(recording(next_logits_of(cached=cached), record), start, max_len), record))
    return results


@pytest.mark.parametrize("search, beam_size", SEARCHES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("lengths", [[1], [7], [2, 6, 1], [4, 4], [9, 3, 5, 8, 1]], ids=str)
def test_prompts_padded_on_the_left_are_continued_the_same_with_the_cache(search, beam_size, lengths):
    model, longest = language_model(), max(lengths)
    valid = torch.tensor([[False] * (longest - length) + [True] * length for length in lengths])
    start = torch.randint(4, 30, valid.shape).masked_fill(~valid, 0).repeat_interleave(beam_size, dim=0)
    max_len = torch.tensor([12 + 5 * (row % 2) for row in range(len(lengths))]).repeat_interleave(beam_size)
    with_cache, without = written_with_and_without(
        partial(decoder_only_next_logits, model, valid, beam_size=beam_size), search, start, max_len
    )
    assert with_cache[0] == without[0]
    assert_close(with_cache[1], without[1])


@pytest.mark.parametrize("search, beam_size", SEARCHES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("lengths", [[3], [5, 2], [1, 6, 3, 4]], ids=str)
def test_sources_are_answered_the_same_with_the_cache(model, search, beam_size, lengths):
    model, src_valid = model.double(), torch.arange(6) < torch.tensor(lengths)[:, None]
    src = torch.randint(4, 60, src_valid.shape)
    start = torch.full((len(lengths) * beam_size, 1), BOS)
    max_len = torch.arange(10, 10 + len(lengths)).repeat_interleave(beam_size)
    with_cache, without = written_with_and_without(
        partial(seq2seq_next_logits, model, src, src_valid, beam_size=beam_size), search, start, max_len
    )
    assert with_cache[0] == without[0]
    assert_close(with_cache[1], without[1])


def test_without_a_reordering_the_beams_go_wrong(monkeypatch):
    model, start = language_model(), torch.randint(4, 30, (6, 4))
    start, max_len = start[::3].repeat_interleave(3, dim=0), torch.full((6,), 12)
    monkeypatch.setattr(KeyValueCache, "reorder", lambda *_: None)
    of = partial(decoder_only_next_logits, model, beam_size=3)
    (_, with_cache), (_, without) = written_with_and_without(of, beam_of_3, start, max_len)
    assert not all(map(torch.allclose, with_cache, without))


@pytest.mark.parametrize("search, beam_size", SEARCHES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_token_is_read_once(search, beam_size):
    model, read = language_model(), []
    model.embedding.register_forward_hook(lambda module, args, output: read.append(args[0].shape[1]))
    start, max_len = torch.randint(4, 30, (1, 5)).expand(beam_size, -1), torch.full((beam_size,), 8)
    search(decoder_only_next_logits(model, beam_size=beam_size), start, max_len)
    assert read == [5] + [1] * (len(read) - 1)
    assert len(read) > 3


def test_a_cached_function_still_depends_on_nothing_but_the_tokens():
    """It may be asked about the same text twice, other texts, shorter ones, fewer, or in another order."""
    model, tokens = language_model(), torch.randint(4, 30, (4, 9))
    cached, anew = decoder_only_next_logits(model, beam_size=2), decoder_only_next_logits(model, cached=False)
    other = tokens.flip(1)
    swapped = tokens[[1, 0, 3, 2]]
    for asked in (tokens[:, :3], tokens[:, :5], tokens[:, :5], swapped[:, :7], other, tokens[:2, :3], tokens[:, :8]):
        assert_close(cached(asked), anew(asked))
    tokens[:, 0] = (tokens[:, 0] + 1) % 30  # in the tensor that was asked about last
    assert_close(cached(tokens), anew(tokens))


def test_masks_that_are_not_causal_are_never_cached(model):
    src, valid = torch.randint(4, 60, (2, 5)), torch.ones(2, 5, dtype=torch.bool)

    def without_causality(src_valid, tgt_valid):
        return seq2seq_masks(src_valid, tgt_valid)._replace(decoder_self=None)

    next_logits = seq2seq_next_logits(model, src, valid, build_masks=without_causality)
    tgt = torch.randint(4, 60, (2, 4))
    for length in range(1, 5):
        logits, _ = model(src, tgt[:, :length], without_causality(valid, torch.ones(2, length, dtype=torch.bool)))
        assert_close(next_logits(tgt[:, :length]), logits[:, -1])


@pytest.mark.usefixtures("raw_errors")
def test_prompts_that_end_with_padding_are_refused():
    with pytest.raises(ValueError, match="a prompt ends with padding; expected padding on the left"):
        decoder_only_next_logits(language_model(), torch.tensor([[True, True], [True, False]]))


@pytest.mark.parametrize("count", [3, 4])
def test_beam_search_refuses_beginnings_that_are_not_repeated(count):
    start = torch.arange(4, 4 + count)[:, None]
    with pytest.raises(ValueError, match=f"start has {count} rows; expected beam_size = 2 equal ones"):
        beam_search(loop_model, start, torch.full((count,), 2), beam_size=2)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_sampling_refuses_what_leaves_no_choice(wrong):
    with pytest.raises(ValueError, match="expected a temperature and a top_p above 0"):
        sample(loop_model, torch.tensor([[BOS]]), torch.tensor([2]), **wrong)


@pytest.mark.parametrize("search, beam_size", SEARCHES[::2], ids=lambda value: getattr(value, "__name__", ""))
def test_searches_return_only_what_they_wrote(search, beam_size):
    start, max_len = torch.tensor([[BOS, 4, 5, 5]]).expand(beam_size, -1), torch.full((beam_size,), 2)
    assert search(loop_model, start, max_len) == [[4, 4]]
