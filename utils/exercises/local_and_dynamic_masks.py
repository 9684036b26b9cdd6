"""Exercises of notebook 12, local and dynamic masks."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY, TRANSPOSED, flipped, transposed
from utils.masks import all_of, any_of, causal_mask, local_mask, padding_mask, pairwise_mask, segment_mask

check_known_tokens = Exercise(
    task="Ten tokens, causal, one key back, token 0 global: the tokens that the last output knows after two layers.",
    solution=[0, 7, 8, 9],
    mistakes={
        "Everything through the global token: it has nothing to pass on. The causal mask leaves it no key but its "
        "own.": list(range(10)),
        "Global token forgotten: the window alone. Token 0 is also seen by every query, the last one included.": [
            7,
            8,
            9,
        ],
        "One layer only: the second layer hands on what token 8 has seen in the first.": [0, 8, 9],
        "Window too wide: back=1 adds one key before the query in each layer, so two layers reach two back.": [
            0,
            5,
            6,
            7,
            8,
            9,
        ],
        "Neighbour of the global token: token 0 would have to see token 1, which lies in its future.": [0, 1, 7, 8, 9],
    },
)

check_keys_and_reach = Exercise(
    task="Keys of a late query before and after the move, then how far back 32 layers reach before and after it.",
    solution=[128, 127, 32 * 127, 32 * 126],
    mistakes={
        "Same number, same window: flash-attn's 127 does not count the query itself, and transformers' 127 does.": [
            127,
            127,
            32 * 127,
            32 * 127,
        ],
        "Libraries exchanged: flash-attn counts the keys *before* the query, transformers counts the query, too.": [
            127,
            128,
            32 * 126,
            32 * 127,
        ],
        "Off by one in every layer: you multiplied the keys. The query itself takes nobody further back, so a layer "
        "adds one less than its keys.": [128, 127, 32 * 128, 32 * 127],
        "Reach of one layer: each layer hands on what the layer below has seen, so the steps add up.": [
            128,
            127,
            127,
            126,
        ],
        "Off by one at the end: these are the tokens that the output knows, itself included. The question was how far "
        "*back* it reaches.": [128, 127, 32 * 127 + 1, 32 * 126 + 1],
    },
)


def two_chunks(length: int) -> Bool[Tensor, "1 1 L L"]:
    """A query sees its own chunk of 4 up to itself, and the chunk before."""
    number = torch.arange(length) // 4
    near = pairwise_mask(lambda q, k: (q - k == 0) | (q - k == 1), number, number)
    return all_of(causal_mask(length), near)


def _own_chunk(length: int) -> Bool[Tensor, "1 1 L L"]:
    return segment_mask(torch.arange(length) // 4)


check_two_chunks = Exercise(
    task="two_chunks(length): causal, own chunk of 4 and the whole chunk before it, [1, 1, length, length].",
    solution=two_chunks,
    cases=[(length,) for length in range(2, 15)],
    mistakes={
        "A window, not chunks: a window moves on with the query, the borders of chunks stay where they are.": (
            lambda length: local_mask(length, back=7)
        ),
        "The chunk before is missing: the difference of the chunk numbers may be 0 *or* 1.": lambda length: all_of(
            causal_mask(length), _own_chunk(length)
        ),
        "The future is open: inside its own chunk a query still sees what comes after it. AND the causal mask.": (
            lambda length: any_of(two_chunks(length), _own_chunk(length))
        ),
        "All chunks before: this is the plain causal mask. Only one chunk before the own one is open.": causal_mask,
        TRANSPOSED: transposed(two_chunks),
        POLARITY: flipped(two_chunks),
    },
)


def _chunks(valid: Bool[Tensor, "B L"], positions: Tensor, size: int) -> Bool[Tensor, "B 1 L L"]:
    return all_of(segment_mask(positions // size), padding_mask(valid))


def chunk_mask(valid: Bool[Tensor, "B L"], size: int) -> Bool[Tensor, "B 1 L L"]:
    """Chunks of real tokens, counted from the first one; padding is hidden and counts as place 0."""
    return _chunks(valid, (valid.cumsum(dim=1) - 1).clamp(min=0), size)


PADDED = [  # on the left, and not at all
    torch.arange(length) >= length - torch.tensor(lengths)[:, None]
    for length, lengths in ((3, [3, 1]), (4, [2, 4]), (5, [3]), (7, [4, 7, 6]))
]

check_chunk_mask = Exercise(
    task="chunk_mask(valid, size): chunks of `size` real tokens, whatever stands to their left; padding is hidden.",
    solution=chunk_mask,
    cases=[(valid, size) for valid in PADDED for size in (2, 3)],
    mistakes={
        "Still counted from the first place: padding on the left moves the borders of the chunks. Count real tokens "
        "only.": lambda valid, size: _chunks(valid, torch.arange(valid.shape[1]), size),
        "Off by one: the first real token got place 1, so the first chunk is one token short. cumsum counts the token "
        "itself.": lambda valid, size: _chunks(valid, valid.cumsum(dim=1), size),
        "Dead rows: a query that is padding sees no key here. Either it got place -1, a chunk in which every key is "
        "hidden, or you hid its row. It counts as place 0.": lambda valid, size: _chunks(
            valid, valid.cumsum(dim=1) - 1, size
        ),
        "Padding is visible: the chunks are right, but the padding on the left belongs to the first one. AND the "
        "padding mask.": lambda valid, size: segment_mask((valid.cumsum(dim=1) - 1).clamp(min=0) // size),
        POLARITY: flipped(chunk_mask),
    },
)


def topk_mask(scores: Float[Tensor, "B H L L"], mask: Bool[Tensor, "B H L L"], k: int) -> Bool[Tensor, "B H L L"]:
    """The k highest-scoring visible keys of each query."""
    best = scores.masked_fill(~mask, -math.inf).topk(min(k, scores.shape[-1]), dim=-1).indices
    return torch.zeros_like(mask).scatter(-1, best, True) & mask


def _itself(scores: Float[Tensor, "B H L L"]) -> Bool[Tensor, "L L"]:
    return torch.eye(scores.shape[-1], dtype=torch.bool)


def keep_itself(scores: Float[Tensor, "B H L L"], mask: Bool[Tensor, "B H L L"], k: int) -> Bool[Tensor, "B H L L"]:
    """The query itself and the k - 1 best of its other visible keys."""
    return topk_mask(scores.masked_fill(_itself(scores), math.inf), mask, k)


def _scores(length: int) -> Float[Tensor, "2 2 L L"]:
    """Whole numbers in random order, so that no two scores of a row are equal."""
    numbers = torch.Generator().manual_seed(length)
    return torch.rand(2, 2, length, length, generator=numbers).argsort(dim=-1) - length / 2


check_keep_itself = Exercise(
    task="keep_itself(scores, mask, k): each query keeps itself and the k - 1 best of its other visible keys.",
    solution=keep_itself,
    cases=[
        (scale * _scores(length), mask.expand(2, 2, -1, -1), k)
        for length in (3, 4, 6)
        for mask in (causal_mask(length), local_mask(length, back=2, ahead=1))
        for k in (1, 2, 3, 5)
        for scale in (1, 1e10)  # beyond any finite fill
    ],
    mistakes={
        "Plain top-k: nothing makes a query keep itself. Give its own key a score that always wins.": topk_mask,
        "Chosen first, masked later: hidden keys take places, and what is left of the choice tells about the future. "
        "Hide them *before* the choice.": lambda scores, mask, k: keep_itself(scores, torch.ones_like(mask), k) & mask,
        "One key too many: the query itself is one of the k. Only k - 1 places are left for the others.": (
            lambda scores, mask, k: keep_itself(scores, mask, k + 1)
        ),
        "More places than keys: topk raises an error if k is larger than the number of keys. Ask for "
        "min(k, scores.shape[-1]).": lambda scores, mask, k: keep_itself(
            scores, mask, scores.topk(k, dim=-1).indices.shape[-1]
        ),
        "One sample and head only: each has scores of its own.": lambda scores, mask, k: torch.zeros_like(
            mask
        ).index_put((torch.tensor(0), torch.tensor(0)), keep_itself(scores, mask, k)[0, 0]),
        "Finite fill: a score may be larger or smaller than any number that you choose. math.inf always wins, and "
        "-math.inf never does.": lambda scores, mask, k: (
            topk_mask(scores.masked_fill(_itself(scores), 1e9).masked_fill(~mask, -1e9), mask | True, k) & mask
        ),
        "Added afterwards: the query is ORed to its k best keys, so it has k + 1 of them where it was not among the "
        "best.": lambda scores, mask, k: any_of(topk_mask(scores, mask, k), _itself(scores)[None, None]),
        "The worst, not the best: the places are filled with the lowest scores.": lambda scores, mask, k: keep_itself(
            -scores, mask, k
        ),
        POLARITY: flipped(keep_itself),
    },
)
