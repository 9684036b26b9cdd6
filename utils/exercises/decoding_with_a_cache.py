"""Exercises of notebook 10, decoding with a cache."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.attention import attention
from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY
from utils.masks import causal_mask, full_mask, local_mask, mask_from_text, segment_mask

check_two_new_rows = Exercise(
    task="The mask of two new tokens after three cached ones, the first of which is padding: two rows of five signs.",
    solution=mask_from_text("⬚■■■⬚ / ⬚■■■■"),
    mistakes={
        "Padding forgotten: the rows are aligned, but column 0 is a padded key. It is hidden from the new tokens, "
        "too.": mask_from_text("■■■■⬚ / ■■■■■"),
        "Top-left: the triangle begins in the first column, as is_causal=True does it. The last new token is the last "
        "key, so align at the end.": mask_from_text("⬚⬚⬚⬚⬚ / ⬚■⬚⬚⬚"),
        "The future is open: the two new tokens arrive together, and the first must not see the second.": (
            mask_from_text("⬚■■■■ / ⬚■■■■")
        ),
        "The cached keys are missing: rows are the new tokens, but columns are *all* tokens.": mask_from_text(
            "■⬚ / ■■"
        ),
        POLARITY: mask_from_text("■⬚⬚⬚■ / ■⬚⬚⬚⬚"),
    },
)


def rows_of_new(whole: Bool[Tensor, "1 1 L L"], cached: int, new: int) -> Bool[Tensor, "1 1 Lq Lk"]:
    """The rows of the new tokens, up to the newest of them."""
    return whole[:, :, cached : cached + new, : cached + new]


check_rows_of_new = Exercise(
    task="rows_of_new(whole, cached, new): cut the mask of `new` tokens after `cached` ones out of the whole mask.",
    solution=rows_of_new,
    cases=[
        (whole, cached, new)
        for whole in (causal_mask(6), local_mask(6, back=1), segment_mask(torch.tensor([0, 0, 0, 1, 1, 2])))
        for cached in range(4)
        for new in range(1, 4)
    ],
    mistakes={
        "The cached keys are missing: your mask is new by new, and the keys in the cache have no column. With one new "
        "token it is 1 by 1, and whether its one flag is right for all keys is luck.": lambda whole, cached, new: whole[
            :, :, :new, :new
        ],
        "Top-left: the columns are right, the rows are those of the first tokens. The first new token stands at "
        "position `cached`.": lambda whole, cached, new: whole[:, :, :new, : cached + new],
        "Columns not cut: there are only cached + new keys so far, and the mask must have one column for each.": (
            lambda whole, cached, new: whole[:, :, cached : cached + new]
        ),
        "The last rows: they belong to the end of a full text. The new tokens follow the cached ones.": (
            lambda whole, cached, new: whole[:, :, -new:, : cached + new]
        ),
        "The last corner: it is the same as long as only distances count, in a causal mask or a window. The first new "
        "token stands at position `cached`.": lambda whole, cached, new: whole[:, :, -new:, -(cached + new) :],
    },
)

check_changed_layer = Exercise(
    task="The first layer in which the keys of old tokens change if a token is added under full_mask; 0 if in none.",
    solution=2,
    mistakes={
        "Layer 1 makes its keys of word and position alone, and both stay when another token follows. Its *outputs* "
        "change.": 1,
        "Too late: layer 3 changes, too, but ask what the layer before it works on.": 3,
        "They do change: section 1 shows that the results of the old tokens are others. Later layers make their keys "
        "of such results.": 0,
    },
)


def new_positions(valid: Bool[Tensor, "B L"], cached: int) -> Int[Tensor, "B Lnew"]:
    """The number of real tokens before each of the new ones."""
    return (valid.cumsum(dim=1) - 1).clamp(min=0)[:, cached:]


LEFT_PADDED = [
    torch.arange(length) >= torch.tensor(padding)[:, None]
    for length, padding in ((3, [0, 1]), (4, [2]), (5, [0, 3, 1]), (6, [4, 0]))
]

check_new_positions = Exercise(
    task="new_positions(valid, cached): positions of the tokens after the first `cached` columns, [B, L - cached].",
    solution=new_positions,
    cases=[(valid, cached) for valid in LEFT_PADDED for cached in range(valid.shape[1])],
    mistakes={
        "Column numbers: right for a row without padding, and for no other. Count the real tokens: "
        "valid.cumsum(dim=1).": lambda valid, cached: torch.arange(cached, valid.shape[1]).repeat(len(valid), 1),
        "Counted anew: each chunk begins at 0 again. Count over the whole row first, and cut off the cached part "
        "then.": lambda valid, cached: new_positions(valid[:, cached:], 0),
        "Off by one: counting begins at 0. The sum up to a token counts the token itself, too.": (
            lambda valid, cached: valid.cumsum(dim=1)[:, cached:]
        ),
        "Negative numbers: a padded place gets -1. Nobody reads it, but a table of positions has no row -1; clamp it "
        "at 0.": lambda valid, cached: (valid.cumsum(dim=1) - 1)[:, cached:],
    },
)


def cache_rows(parents: Int[Tensor, "N K"]) -> Int[Tensor, " NK"]:
    """The beams of sentence n begin at row n K of the cache."""
    sentences, beams = parents.shape
    return (parents + beams * torch.arange(sentences)[:, None]).flatten()


check_cache_rows = Exercise(
    task="cache_rows(parents): the beam that each beam goes on from, [N, K] -> the rows of the cache to take, [N * K].",
    solution=cache_rows,
    cases=[
        (torch.randint(beams, (count, beams), generator=torch.Generator().manual_seed(10 * count + beams)),)
        for count in (1, 2, 3, 4)
        for beams in (2, 3, 5)
    ]
    + [(torch.tensor([[0, 0], [0, 0]]),), (torch.tensor([[1, 0, 0], [0, 1, 1]]),)],  # the last beam died out
    mistakes={
        "Not shifted: all sentences go on from the beams of the first one. The beams of sentence n begin at row "
        "n * K.": torch.flatten,
        "Shifted too little: each sentence has K rows, so sentence n begins at row n * K and not at row n.": (
            lambda parents: (parents + torch.arange(len(parents))[:, None]).flatten()
        ),
        "Wrong axis: the shift depends on the sentence, which is the row of `parents`. You shift each beam.": (
            lambda parents: (parents + parents.shape[1] * torch.arange(parents.shape[1])).flatten()
        ),
        "Shifted by the largest number: nobody need go on from the last beam. K is the width of `parents`.": (
            lambda parents: (parents + (parents.max() + 1) * torch.arange(len(parents))[:, None]).flatten()
        ),
        "Not reordered: every beam keeps the keys of its own row, and so reads the past of another text.": (
            lambda parents: torch.arange(parents.numel())
        ),
        "Wrong order: the K beams of one sentence stand together in the cache. Flatten row by row.": (
            lambda parents: cache_rows(parents).view(parents.shape).T.flatten()
        ),
    },
)

Decode = Callable[[Tensor, int], Tensor]  # x: [B, H, L, Dh] and the size of a chunk -> [B, H, L, Dh]


def same_as_uncached(decode: Decode, x: Float[Tensor, "B H L Dh"]) -> bool:
    """Compare every token at every size of the chunks with one causal attention over all."""
    expected, _ = attention(x, x, x, causal_mask(x.shape[2]))
    return all(torch.allclose(decode(x, size), expected, atol=1e-5) for size in range(1, x.shape[2] + 1))


def _in_chunks(x: Tensor, size: int, mask_of: Callable[[int, int], Tensor]) -> Tensor:
    """Attention chunk by chunk; `mask_of` gets the number of new and of cached tokens."""
    outputs = []
    for cached in range(0, x.shape[2], size):
        new, seen = x[:, :, cached : cached + size], x[:, :, : cached + size]  # [B, H, Lq, Dh], [B, H, Lk, Dh]
        outputs.append(attention(new, seen, seen, mask_of(new.shape[2], cached))[0])
    return torch.cat(outputs, dim=2)


def correct(x: Tensor, size: int) -> Tensor:
    """A chunk sees the cache and itself up to the diagonal."""
    return _in_chunks(x, size, lambda new, cached: causal_mask(new, query_start=cached))


def no_mask(x: Tensor, size: int) -> Tensor:
    """The tokens of a chunk see one another: right for chunks of one token."""
    return _in_chunks(x, size, lambda new, cached: full_mask(new, cached + new))


def top_left(x: Tensor, size: int) -> Tensor:
    """The triangle is aligned at the first key: right for the first chunk."""
    return _in_chunks(x, size, lambda new, cached: causal_mask(new, cached + new))


def strangers(x: Tensor, size: int) -> Tensor:
    """A token sees the cache and itself, but not its chunk: right for chunks of one token."""
    return _in_chunks(x, size, lambda new, cached: torch.cat((full_mask(new, cached), local_mask(new, back=0)), dim=-1))


def short_sighted(x: Tensor, size: int) -> Tensor:
    """Of its chunk, a token sees itself and the one before it: right for chunks of one or two tokens."""
    return _in_chunks(x, size, lambda new, cached: torch.cat((full_mask(new, cached), local_mask(new, back=1)), dim=-1))


def top_left_chunks(x: Tensor, size: int) -> Tensor:
    """No mask for one token, is_causal=True for more: right for single tokens and for a chunk without a cache."""
    return _in_chunks(
        x, size, lambda new, cached: full_mask(1, cached + 1) if new == 1 else causal_mask(new, cached + new)
    )


def forgetful(x: Tensor, size: int) -> Tensor:
    """A token sees itself and the one before it, whatever the size: all sizes agree with one another."""
    return _in_chunks(x, size, lambda new, cached: local_mask(new, query_start=cached, back=1))


def first_cache(x: Tensor, size: int) -> Tensor:
    """All samples read the keys and values of the first."""
    first = x[:1].expand_as(x)
    return attention(x, first, first, causal_mask(x.shape[2]))[0]


def first_head(x: Tensor, size: int) -> Tensor:
    """All heads read the keys and values of the first."""
    first = x[:, :1].expand_as(x)
    return attention(x, first, first, causal_mask(x.shape[2]))[0]


def _compared_at(sizes: Callable[[int], Iterable[int]]) -> Callable[[Decode, Tensor], bool]:
    """The right comparison, but at some sizes only."""

    def wrong(decode: Decode, x: Tensor) -> bool:
        expected, _ = attention(x, x, x, causal_mask(x.shape[2]))
        return all(torch.allclose(decode(x, size), expected, atol=1e-5) for size in sizes(x.shape[2]))

    return wrong


def _newest_alone(decode: Decode, x: Tensor) -> bool:
    expected, _ = attention(x, x, x, causal_mask(x.shape[2]))
    sizes = range(1, x.shape[2] + 1)
    return all(torch.allclose(decode(x, size)[:, :, -1], expected[:, :, -1], atol=1e-5) for size in sizes)


def _without_a_mask(decode: Decode, x: Tensor) -> bool:
    expected, _ = attention(x, x, x)
    return all(torch.allclose(decode(x, size), expected, atol=1e-5) for size in range(1, x.shape[2] + 1))


DECODERS = (
    correct, no_mask, top_left, strangers, short_sighted, top_left_chunks, forgetful, first_cache, first_head
)  # fmt: skip
check_same_as_uncached = Exercise(
    task="same_as_uncached(decode, x) -> bool: does decode(x, size) agree with one causal attention at every size?",
    solution=same_as_uncached,
    cases=[
        (decode, torch.randn(2, 2, length, 2, generator=torch.Generator().manual_seed(length)).round(decimals=1))
        for decode in DECODERS
        for length in (2, 3, 5)
    ],
    mistakes={
        "One token at a time: at this size no mask is needed, so a chunk without a mask passes your test. Try larger "
        "chunks, too.": _compared_at(lambda length: [1]),
        "All at once: the first chunk is square and has no cache, so a wrong alignment passes your "
        "test. Try smaller chunks, too.": _compared_at(lambda length: [length]),
        "One by one and all at once: a chunk that comes after cached tokens is neither. Try the sizes between.": (
            _compared_at(lambda length: [1, length])
        ),
        "Small chunks alone: what sees too little of a long chunk passes your test. Try all sizes.": (
            _compared_at(lambda length: [1, 2])
        ),
        "Off by one: range(1, L) ends before L, so all tokens at once are never tried.": (
            _compared_at(lambda length: range(1, length))
        ),
        "Compared with itself: what is wrong at every size agrees. Compare with one causal attention over all.": (
            lambda decode, x: all(
                torch.allclose(decode(x, size), decode(x, x.shape[2]), atol=1e-5) for size in range(1, x.shape[2])
            )
        ),
        "The first sample alone: the others may read its cache. Compare all of them.": lambda decode, x: (
            same_as_uncached(lambda part, size: decode(x, size)[:1], x[:1])
        ),
        "The first head alone: the others may read its cache. Compare all of them.": lambda decode, x: same_as_uncached(
            lambda part, size: decode(x, size)[:, :1], x[:, :1]
        ),
        "The newest token alone: it may see everything, so an open future of the others passes your test. Compare all "
        "rows.": _newest_alone,
        "Wrong reference: without causal_mask the old tokens see the future, and no cache can give that.": (
            _without_a_mask
        ),
        "Always True: equal shapes say nothing about the numbers. Compare with torch.allclose.": lambda decode, x: (
            decode(x, 1).shape == x.shape
        ),
    },
)
