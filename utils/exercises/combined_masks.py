"""Exercises of notebook 04, combining masks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from utils.conventions import to_additive
from utils.exercises.core import Exercise
from utils.exercises.mistakes import FINITE_FILL, POLARITY, TRANSPOSED, finite_fill, flipped, transposed
from utils.masks import all_of, any_of, causal_mask, dead_rows, padding_mask, prefix_mask, valid_from_lengths
from utils.transformer import decoder_only_mask

VALID = [valid_from_lengths(torch.tensor(lengths), 4) for lengths in ([4, 2], [1, 3, 2], [4], [1], [2, 2, 4, 3])]
LEFT_VALID = [valid.flip(1) for valid in VALID]  # padding on the left: with a causal mask, dead rows
A_DOG = torch.tensor([[False, False, False, True, True]])

check_five_rows = Exercise(
    task="The causal mask of 'a dog', padded on the left to five places: five rows of five signs.",
    solution=decoder_only_mask(A_DOG),
    mistakes={
        "Wrong side: the padding stands in front, so the keys are [PAD] [PAD] [PAD] a dog.": (
            decoder_only_mask(A_DOG.flip(1))
        ),
        "Padding forgotten: this is the causal mask alone. It lets 'a' and 'dog' see the [PAD]s before them.": (
            causal_mask(5)
        ),
        "Causality forgotten: this hides the padding alone, so 'a' sees 'dog', which comes later.": (
            padding_mask(A_DOG).expand(-1, -1, 5, -1)
        ),
        "OR instead of AND: a key must pass both masks, and here it needs only one of them.": (
            any_of(causal_mask(5), padding_mask(A_DOG))
        ),
        POLARITY: flipped(decoder_only_mask(A_DOG)),
        TRANSPOSED: transposed(decoder_only_mask(A_DOG)),
    },
)


def blocked_mask(valid: Bool[Tensor, "B L"]) -> Bool[Tensor, "B 1 L L"]:
    """True where a query must not look: at padding and at the future."""
    return any_of(~causal_mask(valid.shape[1]), ~padding_mask(valid))


check_blocked_mask = Exercise(
    task="blocked_mask(valid): causal and padding in one mask [B, 1, L, L] in which True means *blocked*.",
    solution=blocked_mask,
    cases=[(valid,) for valid in VALID + LEFT_VALID],
    mistakes={
        "Polarity: this is the mask of the series, True = may attend. The library wants the opposite.": (
            decoder_only_mask
        ),
        "AND instead of OR: this blocks only keys that are blocked twice. In this polarity *one* mask is enough to "
        "block a key.": lambda valid: all_of(~causal_mask(valid.shape[1]), ~padding_mask(valid)),
        "Padding not inverted: only the causal mask was turned round, so the real tokens are blocked.": (
            lambda valid: any_of(~causal_mask(valid.shape[1]), padding_mask(valid))
        ),
        "Causal not inverted: only the padding mask was turned round, so the past is blocked.": (
            lambda valid: any_of(causal_mask(valid.shape[1]), ~padding_mask(valid))
        ),
    },
)


def prefix_decoder(valid: Bool[Tensor, "B L"]) -> Bool[Tensor, "B 1 L L"]:
    """Two open tokens, causal after them, and never padding."""
    return all_of(prefix_mask(valid.shape[1], 2), padding_mask(valid))


def _first_two(length: int) -> Bool[Tensor, "1 1 1 L"]:
    return (torch.arange(length) < 2)[None, None, None, :]


check_prefix_decoder = Exercise(
    task="prefix_decoder(valid): the first two tokens are open to all, the rest is causal, padding is never seen.",
    solution=prefix_decoder,
    cases=[(valid,) for valid in [*VALID, torch.tensor([[True]])]],
    mistakes={
        "OR last: in a sentence of one token, key 1 is padding, and the prefix opens it again. What must hold in any "
        "case is ANDed last.": lambda valid: any_of(decoder_only_mask(valid), _first_two(valid.shape[1])),
        "AND instead of OR: a key must now be in the prefix *and* in the past, so nothing behind the prefix is seen.": (
            lambda valid: all_of(decoder_only_mask(valid), _first_two(valid.shape[1]))
        ),
        "Prefix forgotten: this is causal and padding alone. The first token must see the second.": decoder_only_mask,
        "Padding forgotten: this is the prefix mask alone.": lambda valid: prefix_mask(valid.shape[1], 2).expand(
            len(valid), -1, -1, -1
        ),
        POLARITY: flipped(prefix_decoder),
    },
)


def alive(mask: Bool[Tensor, "B 1 L L"]) -> Bool[Tensor, "B 1 L L"]:
    """The same mask, but a query without any key sees itself."""
    itself = torch.eye(mask.shape[-1], dtype=torch.bool)[None, None]
    return any_of(mask, all_of(dead_rows(mask)[..., None], itself))


check_alive = Exercise(
    task="alive(mask): the same mask [B, 1, L, L], but every dead row sees itself, and no other row is changed.",
    solution=alive,
    cases=[(decoder_only_mask(valid),) for valid in LEFT_VALID]
    + [(padding_mask(~valid).expand(-1, -1, 4, -1),) for valid in LEFT_VALID]  # with empty samples
    + [(causal_mask(length).tril(-1),) for length in (2, 3)],  # row 0 is dead, and no other row sees itself
    mistakes={
        "The diagonal opened everywhere: some rows are alive and do not see themselves, on purpose or not. Only dead "
        "rows are to change.": lambda mask: any_of(mask, torch.eye(mask.shape[-1], dtype=torch.bool)[None, None]),
        "Too much opened: a dead row now sees every key. It must not be NaN, and one key, itself, is enough for "
        "that.": lambda mask: any_of(mask, dead_rows(mask)[..., None]),
        "Broadcast to the wrong axis: the flags of the dead *queries* stand where the keys are, so whole columns open. "
        "They need a last dimension of 1: dead_rows(mask)[..., None].": (
            lambda mask: any_of(mask, dead_rows(mask)[:, :, None, :])
        ),
        "Nothing mended: the dead rows are still dead.": lambda mask: mask,
    },
)


def additive_mask(valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B 1 L L"]:
    """Causal and padding as 0 and -inf."""
    return to_additive(decoder_only_mask(valid))


def _summed(valid: Bool[Tensor, "B L"], padding: Float[Tensor, "B L"]) -> Float[Tensor, "B 1 L L"]:
    """The causal mask plus a row of numbers for each sample."""
    length = valid.shape[1]
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1) + padding[:, None, None, :]


check_additive_mask = Exercise(
    task="additive_mask(valid): causal and padding as 0 and -inf, [B, 1, L, L], to be added to the scores.",
    solution=additive_mask,
    cases=[(valid,) for valid in VALID + LEFT_VALID],
    mistakes={
        "1 is no fill: the padding gets 1 and so a *higher* score than the rest. Flags of 0 and 1 must not be added.": (
            lambda valid: _summed(valid, 1.0 - valid.float())
        ),
        "Two finite fills: where padding lies in the future, two times finfo.min overflow to -inf, and elsewhere they "
        "stay finite. Combine booleans and fill once, with -inf.": (
            lambda valid: _summed(valid, torch.where(valid, 0.0, torch.finfo(torch.float32).min))
        ),
        "Half mended: the padding is -inf now, but the future still holds finfo.min. Take one fill for both.": (
            lambda valid: _summed(valid, torch.where(valid, 0.0, float("-inf")))
        ),
        FINITE_FILL: finite_fill(additive_mask),
        "0 times -inf: the product is NaN, so every real key is NaN now. Fill with -inf instead of multiplying.": (
            lambda valid: additive_mask(valid) + ((1.0 - valid.float()) * float("-inf"))[:, None, None, :]
        ),
        "Polarity: -inf stands where a query may look, and 0 where it may not.": lambda valid: to_additive(
            ~decoder_only_mask(valid)
        ),
        "Not yet numbers: this is the boolean mask. Added to scores, True counts as 1 and hides nothing.": (
            decoder_only_mask
        ),
    },
)
