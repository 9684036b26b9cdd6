"""Exercises of notebook 16, questions and glossary: the whole series once more."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY, TRANSPOSED, WRONG_AXIS, flipped, transposed
from utils.masks import all_of, any_of, causal_mask, local_mask, padding_mask, segment_mask, valid_from_lengths

LEFT = torch.tensor([[False, False, True, True]])  # two real tokens, padded on the left

check_left_padded = Exercise(
    task="The mask of a decoder-only model for two tokens that are padded on the left to four places.",
    solution=causal_mask(4) & padding_mask(LEFT),
    mistakes={
        "No padding mask: this is the causal mask alone. With padding on the left, real tokens have padding before "
        "them, so its columns must be hidden.": causal_mask(4),
        "Wrong side: you hid the columns on the right. The padding stands in front of the tokens.": (
            causal_mask(4) & padding_mask(~LEFT)
        ),
        "Not causal: the padding is hidden, but the first token sees the second.": padding_mask(LEFT).expand(
            1, 1, 4, 4
        ),
        "Dead rows repaired: a padded query may see nothing here, itself included, and nobody reads its row.": (
            (causal_mask(4) & padding_mask(LEFT)) | torch.eye(4, dtype=torch.bool)
        ),
        POLARITY: ~(causal_mask(4) & padding_mask(LEFT)),
        TRANSPOSED: (causal_mask(4) & padding_mask(LEFT)).mT,
    },
)

CLAIMS = [0, 0, 0, 1, 1, 1, 0, 1]
WHY_WRONG = (
    "Claim 1 is false: a padding mask says the same to every query, so one row for each sample is enough.",
    "Claim 2 is false: in cross-attention the keys are the source, so its padding counts.",
    "Claim 3 is false: validation data has its labels one step ahead too, so it leaks in the same way.",
    "Claim 4 is true: labels are shifted by one, so a token is not its own label.",
    "Claim 5 is true: there True means padding, which is to be ignored.",
    "Claim 6 is true: a sum is -inf where either mask is, and 0 where both allow the key.",
    "Claim 7 is false: a mask may be built in one mode only, so test each mode.",
    "Claim 8 is true: the padding lies in the future of every real token.",
)


def _one_wrong(place: int) -> list[int]:
    return [1 - flag if index == place else flag for index, flag in enumerate(CLAIMS)]


check_claims = Exercise(
    task="Eight claims of the series, 1 for a true one and 0 for a false one, in their order.",
    solution=CLAIMS,
    mistakes={
        **{advice: _one_wrong(place) for place, advice in enumerate(WHY_WRONG)},
        "Exchanged: write 1 for true and 0 for false. You have all eight the other way.": [1 - flag for flag in CLAIMS],
    },
)


def training_mask(valid: Bool[Tensor, "B L"], documents: Int[Tensor, "B L"]) -> Bool[Tensor, "B 1 L L"]:
    """Causal, the real keys, and the own document only."""
    return all_of(causal_mask(valid.shape[1]), padding_mask(valid), segment_mask(documents))


RIGHT_VALID = [valid_from_lengths(torch.tensor(lengths), 6) for lengths in ([6, 4], [5, 2], [3, 6])]
PACKED = [
    torch.tensor(rows) for rows in ([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]], [[0, 1, 1, 2, 2, 2], [3, 3, 0, 0, 0, 0]])
]

check_training_mask = Exercise(
    task="training_mask(valid, documents): causal, padding hidden, documents apart; [B, 1, L, L].",
    solution=training_mask,
    cases=[(flags, rows) for valid in RIGHT_VALID for flags in (valid, valid.flip(1)) for rows in PACKED],
    mistakes={
        "Documents mixed: a token sees the documents before its own. Add the rule that query and key have one "
        "number.": lambda valid, documents: causal_mask(valid.shape[1]) & padding_mask(valid),
        "Padding seen: padding has a document number too, so the numbers alone do not hide it.": (
            lambda valid, documents: causal_mask(valid.shape[1]) & segment_mask(documents)
        ),
        "Not causal: each document is kept apart, but its tokens see their own future.": (
            lambda valid, documents: padding_mask(valid) & segment_mask(documents)
        ),
        "OR instead of AND: a key is seen as soon as one rule allows it. All rules must agree.": (
            lambda valid, documents: any_of(causal_mask(valid.shape[1]), padding_mask(valid), segment_mask(documents))
        ),
        WRONG_AXIS: lambda valid, documents: (
            causal_mask(valid.shape[1]) & valid[:, None, :, None] & segment_mask(documents)
        ),
        TRANSPOSED: transposed(training_mask),
        POLARITY: flipped(training_mask),
    },
)

check_leaking_line = Exercise(
    task="The number of the line that makes the loss too good: a number from 1 to 5.",
    solution=3,
    mistakes={
        "Line 1 is right: the decoder reads all target tokens but the last, and its mask has their flags.": 1,
        "Line 2 is right: the source is known as a whole, so the encoder cannot leak the target.": 2,
        "Line 4 is right: it turns each hidden state into scores and mixes no places.": 4,
        "Line 5 is right: the labels are the tokens from the second on. Compare them with what the decoder reads.": 5,
    },
)


def from_torch(key_padding_mask: Bool[Tensor, "B Lk"], attn_mask: Bool[Tensor, "Lq Lk"]) -> Bool[Tensor, "B 1 Lq Lk"]:
    """Two masks with True = blocked as one with True = may attend."""
    return padding_mask(~key_padding_mask) & ~attn_mask[None, None]


check_from_torch = Exercise(
    task="from_torch(key_padding_mask, attn_mask): the masks of an nn.MultiheadAttention call as one, [B, 1, Lq, Lk].",
    solution=from_torch,
    cases=[
        (~valid_from_lengths(torch.tensor(lengths), size), ~causal_mask(queries, size)[0, 0])
        for lengths, queries, size in (([2, 1], 2, 2), ([3, 2], 3, 3), ([4, 1, 2], 4, 4), ([1, 3], 2, 3), ([5], 3, 5))
    ]
    + [(~valid_from_lengths(torch.tensor([2, 4])).flip(1), ~local_mask(4, back=1)[0, 0])],
    mistakes={
        POLARITY: flipped(from_torch),
        "Half negated: attn_mask still has True = blocked. Both masks of nn.MultiheadAttention do.": (
            lambda key_padding_mask, attn_mask: padding_mask(~key_padding_mask) & attn_mask[None, None]
        ),
        "Half negated: key_padding_mask still has True = padding. Both masks of nn.MultiheadAttention block.": (
            lambda key_padding_mask, attn_mask: padding_mask(key_padding_mask) & ~attn_mask[None, None]
        ),
        "OR of what is allowed: a key that one mask blocks is still seen if the other allows it. Blocked masks are "
        "joined with OR, allowed ones with AND.": (
            lambda key_padding_mask, attn_mask: padding_mask(~key_padding_mask) | ~attn_mask[None, None]
        ),
        "Always causal: attn_mask may block anything else. Take it as it is, negated.": (
            lambda key_padding_mask, attn_mask: padding_mask(~key_padding_mask) & causal_mask(*attn_mask.shape)
        ),
        "Padding forgotten: key_padding_mask has no effect.": (
            lambda key_padding_mask, attn_mask: ~attn_mask[None, None].expand(len(key_padding_mask), -1, -1, -1)
        ),
    },
)
