"""Exercises of notebook 11, mask conventions."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from utils.conventions import from_hugging_face, to_multihead
from utils.exercises.core import Exercise
from utils.exercises.mistakes import ONE_AHEAD, POLARITY, flipped, one_ahead
from utils.masks import causal_mask, local_mask, padding_mask

check_added_row = Exercise(
    task="The row of weights that SDPA makes of equal scores and the float mask [1, 1, 0]: three numbers.",
    solution=torch.tensor([1.0, 1.0, 0.0]).softmax(dim=0).tolist(),
    tolerance=0.005,
    mistakes={
        "Read as flags: SDPA reads booleans so. A floating-point mask is *added* to the scores, whatever it holds.": [
            1 / 2,
            1 / 2,
            0.0,
        ],
        "Inverted and read as flags: this is True = blocked, as nn.MultiheadAttention reads booleans. Floating-point "
        "numbers are added, in both.": [0.0, 0.0, 1.0],
        "No mask: the three numbers do change the scores, which become 1, 1 and 0.": [1 / 3, 1 / 3, 1 / 3],
        "Multiplied after the softmax: the weights of a row add up to 1. The mask is added before the softmax.": [
            1 / 3,
            1 / 3,
            0.0,
        ],
    },
)


def ported(length: int, sliding_window: int) -> Bool[Tensor, "1 1 L L"]:
    """`sliding_window` keys with the query itself, so one fewer before it."""
    return local_mask(length, back=sliding_window - 1)


check_ported = Exercise(
    task="ported(length, sliding_window): the mask of a causal Hugging Face model with a window, [1, 1, L, L].",
    solution=ported,
    cases=[(length, window) for length in (3, 5, 8) for window in (1, 2, 3)],
    mistakes={
        "Off by one: one key too many. sliding_window counts the query itself, and back counts only what lies before "
        "it.": lambda length, sliding_window: local_mask(length, back=sliding_window),
        "Two-sided: the query sees what comes after it. The model is causal, so the window reaches back only.": (
            lambda length, sliding_window: local_mask(length, back=sliding_window - 1, ahead=sliding_window - 1)
        ),
        "No window: this is the plain causal mask, in which the oldest keys stay visible.": (
            lambda length, sliding_window: causal_mask(length)
        ),
        ONE_AHEAD: one_ahead(ported),
        POLARITY: flipped(ported),
    },
)

check_inverted_line = Exercise(
    task="The number of the line that shows what should be hidden: a number from 1 to 5.",
    solution=3,
    mistakes={
        "Line 1 is right: booleans, True = may attend, [B, 1, Lq, Lk].": 1,
        "Line 2 is right: 0 and -inf, added to the scores.": 2,
        "Line 4 is right, if by luck: bool() makes True of -inf, and in nn.MultiheadAttention True means blocked. "
        "to_multihead says what is meant.": 4,
        "Line 5 is right: flex_attention asks the mask itself about each pair.": 5,
    },
)


def repaired(flags: Int[Tensor, "B L"], num_heads: int) -> Bool[Tensor, "BH L L"]:
    """True = padded key, the heads of a sample side by side."""
    valid = from_hugging_face(flags)
    return to_multihead(padding_mask(valid).expand(-1, 1, valid.shape[1], -1), num_heads)


def _as_it_was(flags: Tensor, num_heads: int) -> Tensor:
    return padding_mask(flags.bool()).expand(-1, num_heads, flags.shape[1], -1).flatten(0, 1)


def _heads_first(flags: Tensor, num_heads: int) -> Tensor:
    hidden = ~padding_mask(flags.bool()).expand(-1, 1, flags.shape[1], -1)
    return hidden[:, 0].repeat(num_heads, 1, 1)


def _queries_too(flags: Tensor, num_heads: int) -> Tensor:
    hidden = repaired(flags, num_heads)
    return hidden | hidden.transpose(1, 2)


check_repaired = Exercise(
    task="repaired(flags, num_heads): 1/0 flags [B, L] -> attn_mask of nn.MultiheadAttention, [B * num_heads, L, L].",
    solution=repaired,
    cases=[
        (torch.tensor(flags), num_heads)
        for flags in ([[1, 0], [1, 1]], [[0, 1]], [[1, 1, 0], [0, 1, 1], [1, 1, 1]])
        for num_heads in (1, 2, 3)
    ],
    mistakes={
        "Polarity: True hides a key in nn.MultiheadAttention, and you give it True for the real tokens. Negate.": (
            _as_it_was
        ),
        "Wrong order: the heads of one sample stand side by side, so the samples must not take turns. Use expand and "
        "flatten, or repeat_interleave, and not repeat.": _heads_first,
        "Wrong axis: you hide the padded *queries*, whole rows. Of the two last axes the keys are the second.": (
            lambda flags, num_heads: repaired(flags, num_heads).transpose(1, 2)
        ),
        "Padded queries hidden as well: such a row has no key, and nn.MultiheadAttention makes NaN of it. Hide only "
        "the columns of the padding.": _queries_too,
    },
)


def meaning_of_one(attend: Callable[..., Tensor]) -> str:
    """What `attend` does with the floating-point flags 1 and 0: attend, blocked, added or ignored."""
    zeros, identity = torch.zeros(1, 1, 2, 2), torch.eye(2)[None, None]
    flags = torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2)
    first, second = attend(zeros, zeros, identity, flags)[0, 0, 0].tolist()
    if first == second:
        return "ignored"
    return {(1, 0): "attend", (0, 1): "blocked"}.get((first, second), "added")


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.mT / key.shape[-1] ** 0.5


def mystery_1(query: Tensor, key: Tensor, value: Tensor, given: Tensor) -> Tensor:
    """Reads 1 as may attend."""
    return _scores(query, key).masked_fill(given == 0, float("-inf")).softmax(dim=-1) @ value


def mystery_2(query: Tensor, key: Tensor, value: Tensor, given: Tensor) -> Tensor:
    """Reads 1 as blocked."""
    return _scores(query, key).masked_fill(given != 0, -1e4).softmax(dim=-1) @ value


def mystery_3(query: Tensor, key: Tensor, value: Tensor, given: Tensor) -> Tensor:
    """Adds the flags."""
    return (_scores(query, key) + given).softmax(dim=-1) @ value


def mystery_4(query: Tensor, key: Tensor, value: Tensor, given: Tensor) -> Tensor:
    """Never looks at the flags."""
    return _scores(query, key).softmax(dim=-1) @ value


def _polarity_only(attend: Callable[..., Tensor]) -> str:
    zeros, identity = torch.zeros(1, 1, 2, 2), torch.eye(2)[None, None]
    first, second = attend(zeros, zeros, identity, torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2))[0, 0, 0]
    return "attend" if first > second else "blocked"


check_meaning_of_one = Exercise(
    task='meaning_of_one(attend): "attend", "blocked", "added" or "ignored", for the floating-point flags 1 and 0.',
    solution=meaning_of_one,
    cases=[(mystery_1,), (mystery_2,), (mystery_3,), (mystery_4,)],
    mistakes={
        "Ignored is not added: flags that are added change the weights, 0.73 to 0.27. Equal weights say that the flags "
        "had no effect.": lambda attend: meaning_of_one(attend).replace("ignored", "added"),
        "Only compared: if the first weight is larger but not 1, nothing is blocked. Look at the numbers themselves.": (
            _polarity_only
        ),
        "Exchanged: the flags were [1, 0]. If all weight lies on the first key, then 1 means attend.": lambda attend: {
            "attend": "blocked",
            "blocked": "attend",
        }.get(meaning := meaning_of_one(attend), meaning),
    },
)
