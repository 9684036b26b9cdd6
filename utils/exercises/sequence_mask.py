"""Exercises of notebook 03, the sequence mask."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from utils.exercises.core import Exercise
from utils.exercises.mistakes import (
    ONE_AHEAD,
    POLARITY,
    TRANSPOSED,
    WITHOUT_ITSELF,
    flipped,
    one_ahead,
    transposed,
    without_itself,
)
from utils.masks import causal_mask, full_mask, pairwise_mask

LENGTHS = [(length,) for length in range(2, 9)]

check_row_of_weights = Exercise(
    task="Row 2, counted from 0, of the weights under causal_mask(4) when all scores are equal: four numbers.",
    solution=[1 / 3, 1 / 3, 1 / 3, 0.0],
    tolerance=0.005,
    mistakes={
        "Off by one: this is row 1. Rows are counted from 0, so row 2 is the third query, which sees three keys.": [
            1 / 2,
            1 / 2,
            0.0,
            0.0,
        ],
        "No mask: key 3 lies in the future of query 2, and its weight is 0.": [1 / 4, 1 / 4, 1 / 4, 1 / 4],
        "Future instead of past: the query sees what comes *before* it, and itself.": [0.0, 0.0, 1 / 2, 1 / 2],
        "Masked too late: the weights of a row add up to 1. The mask acts before the softmax, which shares the whole "
        "weight among the keys that are left.": [1 / 4, 1 / 4, 1 / 4, 0.0],
    },
)


def backwards(length: int) -> Bool[Tensor, "1 1 L L"]:
    """A query sees itself and what comes after it."""
    positions = torch.arange(length)
    return pairwise_mask(torch.le, positions, positions)


check_backwards = Exercise(
    task="backwards(length): the mask of a model that reads from right to left, [1, 1, length, length].",
    solution=backwards,
    cases=LENGTHS,
    mistakes={
        "Past instead of future: this is the causal mask, for reading from left to right. Here what is *later* has "
        "been read already.": causal_mask,
        WITHOUT_ITSELF: without_itself(backwards),
        POLARITY: flipped(backwards),
        "Mirrored in one direction only: a triangle along the other diagonal. Flip rows *and* columns of the causal "
        "mask, or compare positions with torch.le.": lambda length: causal_mask(length).flip(3),
    },
)


def inputs_and_labels(tokens: Int[Tensor, "B L"]) -> tuple[Tensor, Tensor]:
    """All tokens but the last, and for each its successor."""
    return tokens[:, :-1], tokens[:, 1:]


check_inputs_and_labels = Exercise(
    task="inputs_and_labels(tokens): [B, L] -> two tensors [B, L - 1], the inputs and for each input its label.",
    solution=inputs_and_labels,
    cases=[
        (torch.arange(2, 2 + rows * length).square().reshape(rows, length),) for rows in (1, 2) for length in (2, 3, 5)
    ],
    mistakes={
        "Not shifted: each label is its own input, which the diagonal of the mask shows.": lambda tokens: (
            tokens,
            tokens,
        ),
        "Not shifted: you cut one token off, but each label is still its own input.": lambda tokens: (
            tokens[:, :-1],
            tokens[:, :-1],
        ),
        "Wrong direction: the label of each place is the token *before* it. That one stands in the input.": (
            lambda tokens: (tokens[:, 1:], tokens[:, :-1])
        ),
        "Rolled over: torch.roll brings the first token to the end, so the last label is the beginning of the text. "
        "The last token has no successor: cut it off.": lambda tokens: (tokens, tokens.roll(-1, dims=1)),
        "Inputs not cut: the last token has no label, so there is one input too many.": lambda tokens: (
            tokens,
            tokens[:, 1:],
        ),
    },
)


def by_pairs(length: int) -> Bool[Tensor, "1 1 L L"]:
    """A query sees its own pair and all pairs before."""
    pair = torch.arange(length) // 2
    return pairwise_mask(torch.ge, pair, pair)


def _pairs_from(start: int, length: int) -> Bool[Tensor, "1 1 L L"]:
    pair = torch.arange(start, start + length) // 2
    return pairwise_mask(torch.ge, pair, pair)


check_by_pairs = Exercise(
    task="by_pairs(length): tokens 0 and 1, 2 and 3, ... see each other and all pairs before, [1, 1, length, length].",
    solution=by_pairs,
    cases=LENGTHS,
    mistakes={
        "Tokens compared, not pairs: in the plain causal mask the first token of a pair does not see the second.": (
            causal_mask
        ),
        "Off by one: your pairs are tokens 1 and 2, 3 and 4, ... The pair of token i is i // 2.": lambda length: (
            _pairs_from(1, length)
        ),
        "The pairs before are missing: each pair sees itself alone. Compare the pairs with >=, not with ==.": (
            lambda length: by_pairs(length) & by_pairs(length).transpose(2, 3)
        ),
        ONE_AHEAD: one_ahead(by_pairs),
        TRANSPOSED: transposed(by_pairs),
        POLARITY: flipped(by_pairs),
    },
)


def after_cache(cached: int, new: int) -> Bool[Tensor, "1 1 Lq Lk"]:
    """The last `new` rows of the square mask over all tokens."""
    return causal_mask(new, query_start=cached)


check_after_cache = Exercise(
    task="after_cache(cached, new): the causal mask of `new` queries after `cached` tokens, [1, 1, new, cached + new].",
    solution=after_cache,
    cases=[(cached, new) for cached in range(4) for new in range(1, 5)],
    mistakes={
        "Top-left: the first query is treated as the first token of the text, but it stands at position `cached`. The "
        "triangle belongs into the bottom-right corner.": lambda cached, new: causal_mask(new, cached + new),
        "The cached keys are missing: there are cached + new keys, and every new query sees all cached ones.": (
            lambda cached, new: causal_mask(new)
        ),
        "The cached keys are hidden: the triangle is in its place, but every new query sees what is cached, too.": (
            lambda cached, new: torch.cat((~full_mask(new, cached), causal_mask(new)), dim=-1)
        ),
        "The future is open: a new query sees the new tokens after it.": lambda cached, new: full_mask(
            new, cached + new
        ),
        POLARITY: flipped(after_cache),
    },
)

check_leaking_line = Exercise(
    task="The number of the line through which the future leaks: a number from 1 to 5.",
    solution=3,
    mistakes={
        "Line 1 only gives the layer its name and its input.": 1,
        "Line 2 is right: row i of causal_mask is True up to key i. A right mask does not make a model tight: test the "
        "whole layer.": 2,
        "Line 4 is right: attention keeps to the mask, and x + ... adds to each place its own vector.": 4,
        "Line 5 is right: a feed-forward network works on each place alone.": 5,
    },
)
