"""Greedy and beam search against exhaustive search, and translation of batches."""

from itertools import product

import pytest
import torch

from utils.corpora import BOS, EOS, train_tokenizer
from utils.decoding import beam_search, greedy_search, seq2seq_next_logits, translate
from utils.transformer import Transformer, TransformerConfig, seq2seq_masks

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
    torch.testing.assert_close(seq2seq_next_logits(model, src, valid)(tgt), logits[:, -1])


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_line_is_translated_the_same_alone_and_in_a_batch(model, beam_size):
    lines = ["a man", "two dogs play in the sun", "a", "the man and the two dogs"]
    tokenizer = train_tokenizer(lines, 60)
    together = translate(model, tokenizer, lines, beam_size=beam_size)
    alone = [translate(model, tokenizer, [line], beam_size=beam_size)[0] for line in lines]
    assert together == alone
    assert any(together)
