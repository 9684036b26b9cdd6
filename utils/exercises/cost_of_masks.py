"""Exercises of notebook 14, the cost of masks."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY, TRANSPOSED, flipped, transposed
from utils.masks import all_of, causal_mask, local_mask, segment_mask

check_mebibytes = Exercise(
    task="MiB of the padding mask, the causal mask, their AND, and that AND in bfloat16 with all heads written out.",
    solution=[1 / 16, 64, 512, 16_384],
    tolerance=0.01,
    mistakes={
        "Bits: PyTorch stores a flag in a whole byte.": [1 / 128, 8, 64, 16_384],
        "Bytes: divide by 2**20 for MiB.": [2**16, 2**26, 2**29, 2**34],
        "Batch forgotten: the texts end at different places, so their AND with the causal mask differs from text to "
        "text. It is [B, 1, L, L].": [1 / 16, 64, 64, 2048],
        "One causal mask for each text: the triangle is the same for all, so [1, 1, L, L] is enough.": [
            1 / 16,
            512,
            512,
            16_384,
        ],
        "Heads forgotten: the last tensor is contiguous over the heads, so each of the 16 has its own copy.": [
            1 / 16,
            64,
            512,
            1024,
        ],
        "Heads counted too early: the first three masks are the same for all heads and are stored once.": [
            1,
            1024,
            8192,
            16_384,
        ],
        "Four bytes: bfloat16 has 16 bits, which are two bytes.": [1 / 16, 64, 512, 32_768],
    },
)

check_wasteful_line = Exercise(
    task="The number of the line that fills memory for nothing: a number from 1 to 5.",
    solution=4,
    mistakes={
        "Line 1 only reads a shape.": 1,
        "Line 2 makes one triangle, [1, 1, L, L], for the whole batch.": 2,
        "Line 3 is needed: attention takes one mask, and both rules together are [B, 1, L, L].": 3,
        "Line 5 is the cheap call: without the weights, the fused kernel never holds all scores.": 5,
    },
)

check_growth_factors = Exercise(
    task="Factors by which the pairs grow: L doubles (dense, in blocks), then back doubles (dense, in blocks).",
    solution=[4, 2, 1, 2],
    mistakes={
        "Tokens counted, not pairs: twice the queries times twice the keys are four times the pairs of a dense call.": [
            2,
            2,
            1,
            2,
        ],
        "No limit in the blocks: a query there has 2 · back keys, however long the text is. Only the number of "
        "queries doubles.": [4, 4, 1, 2],
        "A window in a dense mask saves nothing: the pairs are computed, whether the band is narrow or wide.": [
            4,
            2,
            2,
            2,
        ],
        "Half as many blocks: each block has twice the queries and twice the keys, but there are fewer of them. "
        "2 · L · back holds back once.": [4, 2, 1, 4],
    },
)


def _batches(lengths: Sequence[int], size: int) -> list[Sequence[int]]:
    return [lengths[start : start + size] for start in range(0, len(lengths), size)]


def _share_in_this_order(lengths: Sequence[int], size: int) -> float:
    """The padding among all places of batches of `size` texts in the order that is given."""
    return 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in _batches(lengths, size))


def padding_share(lengths: Sequence[int], size: int) -> float:
    """The padding among all places if each batch is `size` neighbours in length, padded to its own longest text."""
    return _share_in_this_order(sorted(lengths), size)


def _filled_up(lengths: Sequence[int], size: int) -> float:
    """The last batch, too, has `size` rows."""
    return 1 - sum(lengths) / sum(size * max(batch) for batch in _batches(sorted(lengths), size))


def _mean_of_batches(lengths: Sequence[int], size: int) -> float:
    """Each batch counts the same, however many places it has."""
    batches = _batches(sorted(lengths), size)
    return sum(padding_share(batch, size) for batch in batches) / len(batches)


LENGTHS = [[3, 1], [4, 4, 4], [1, 5, 2], [9, 2, 7, 3], [6, 1, 8, 2, 5], [12, 3, 3, 7, 30, 5, 8]]

check_padding_share = Exercise(
    task="padding_share(lengths, size): padding in batches of `size` texts, the shortest first, from 0 to 1.",
    solution=padding_share,
    cases=[(lengths, size) for lengths in LENGTHS for size in (1, 2, 3)],
    mistakes={
        "Longest text of the corpus: a batch is only as long as the longest text *in it*, otherwise sorting would gain "
        "nothing.": lambda lengths, size: 1 - sum(lengths) / (len(lengths) * max(lengths)),
        "Not sorted: the long texts stretch the short ones beside them. Buckets hold neighbours in length.": (
            _share_in_this_order
        ),
        "Longest first: the short last batch is then another one. Begin with the shortest.": lambda lengths, size: (
            _share_in_this_order(sorted(lengths, reverse=True), size)
        ),
        "The other share: these are the real tokens among the places. Padding is what remains.": (
            lambda lengths, size: 1 - padding_share(lengths, size)
        ),
        "Filled up: the last batch may hold fewer than `size` texts, and its missing rows are not computed.": (
            _filled_up
        ),
        "Mean over the batches: a batch of short texts has fewer places and must count less. Add up tokens and places "
        "first, then divide.": _mean_of_batches,
    },
)


def leaking_pairs(ids: Int[Tensor, "B L"]) -> int:
    """Pairs that a causal mask alone opens although they join two texts."""
    return int((causal_mask(ids.shape[1]) & ~segment_mask(ids)).sum())


PACKED = [[[0, 0, 1, 1]], [[0, 0, 0, 0]], [[0, 1, 2]], [[0, 0, 0, 1, 1]], [[0, 0, 1, 1], [0, 1, 1, 1]], [[0, 1, 1, 2]]]

check_leaking_pairs = Exercise(
    task="leaking_pairs(ids): how many pairs of query and key does is_causal=True open between texts of a packed row?",
    solution=leaking_pairs,
    cases=[(torch.tensor(ids),) for ids in PACKED],
    mistakes={
        "Both directions: a text that comes later is hidden by the causal mask already. Only earlier texts leak.": (
            lambda ids: int((~segment_mask(ids)).sum())
        ),
        "Right pairs counted: these pairs lie within one text, and they are meant to be open.": (
            lambda ids: int(all_of(causal_mask(ids.shape[1]), segment_mask(ids)).sum())
        ),
        "Everything open counted: most of the pairs of the causal mask lie within one text. Take those away.": (
            lambda ids: len(ids) * int(causal_mask(ids.shape[1]).sum())
        ),
        "First row only: ids may hold several rows, and the segment mask has one matrix for each.": (
            lambda ids: leaking_pairs(ids[:1])
        ),
        "Queries counted, not pairs: a query of the second text sees *each* token of the first.": (
            lambda ids: int((causal_mask(ids.shape[1]) & ~segment_mask(ids)).any(dim=-1).sum())
        ),
    },
)


def reordered(mask: Bool[Tensor, "1 1 L L"], order: Int[Tensor, " L"]) -> Bool[Tensor, "1 1 L L"]:
    """Queries and keys in the new order."""
    return mask[:, :, order][..., order]


def _parity(length: int) -> Bool[Tensor, "1 1 L L"]:
    """Even places see even places, odd ones odd ones."""
    return segment_mask(torch.arange(length) % 2)


def _shuffled(length: int) -> Int[Tensor, " L"]:
    return torch.randperm(length, generator=torch.Generator().manual_seed(length))


def _turned(length: int) -> Int[Tensor, " L"]:
    """1, 2, ..., 0: not its own inverse from three tokens on."""
    return torch.arange(length).roll(-1)


check_reordered = Exercise(
    task="reordered(mask, order): the mask of the same tokens in a new order, [1, 1, L, L]; order[i] now stands at i.",
    solution=reordered,
    cases=[
        (mask, order)
        for length in (3, 4, 6)
        for mask in (causal_mask(length), local_mask(length, back=1), _parity(length))
        for order in (_turned(length), _shuffled(length))
    ],
    mistakes={
        "Queries only: the rows have moved and the columns have not. A token is a query and a key.": (
            lambda mask, order: mask[:, :, order]
        ),
        "Keys only: the columns have moved and the rows have not. A token is a query and a key.": (
            lambda mask, order: mask[..., order]
        ),
        "Inverse order: order[i] tells which old token stands at the new place i, not where the old token i goes.": (
            lambda mask, order: reordered(mask, order.argsort())
        ),
        "Picked one by one: two lists of indices side by side take the flags (order[0], order[0]), (order[1], "
        "order[1]), ..., a diagonal. Index twice.": lambda mask, order: mask[..., order, order],
        TRANSPOSED: transposed(reordered),
        POLARITY: flipped(reordered),
    },
)
