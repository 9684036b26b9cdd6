"""Exercises of notebook 01, attention."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY, flipped
from utils.masks import causal_mask, full_mask

check_weights_left = Exercise(
    task="The four weights of a row whose scores are all 1, when the second key is removed by -inf.",
    solution=[1 / 3, 0.0, 1 / 3, 1 / 3],
    tolerance=0.005,
    mistakes={
        "Masked too late: these are the weights multiplied by 0 after the softmax. They do not sum to 1; -inf acts "
        "before the softmax, which shares the whole weight among the keys that stay.": [1 / 4, 0.0, 1 / 4, 1 / 4],
        "A score of 0: such a key still gets weight, since exp(0) is 1. Removed means a score of -inf.": (
            torch.softmax(torch.tensor([1.0, 0.0, 1.0, 1.0]), dim=-1).tolist()
        ),
        "No mask: the second key has its full share.": [1 / 4, 1 / 4, 1 / 4, 1 / 4],
        "Off by one: the second key is at place 1, since places are counted from 0.": [1 / 3, 1 / 3, 0.0, 1 / 3],
    },
)

check_own_outputs = Exercise(
    task="The outputs of four tokens with the values 10, 20, 30 and 40, when each query may see itself only.",
    solution=[10.0, 20.0, 30.0, 40.0],
    tolerance=0.005,
    mistakes={
        "No mask: each output is the mean of all values, as with four equal scores. Here all but one key are hidden.": [
            25.0,
            25.0,
            25.0,
            25.0,
        ],
        "One share of four: the softmax shares the whole weight among the *visible* keys, and there is one.": [
            2.5,
            5.0,
            7.5,
            10.0,
        ],
        "Opposite mask: each query sees the other three and not itself.": [30.0, 80 / 3, 70 / 3, 20.0],
        "Too much is visible: each query sees itself and all tokens before it.": [10.0, 15.0, 20.0, 25.0],
    },
)


def additive(keep: Float[Tensor, " Lk"]) -> Float[Tensor, " Lk"]:
    """0 where `keep` is 1, and -inf where it is 0."""
    return torch.zeros_like(keep).masked_fill(keep == 0, float("-inf"))


check_additive = Exercise(
    task="additive(keep): [Lk], 1 for a key that stays and 0 for one that goes -> [Lk], 0 and -inf.",
    solution=additive,
    cases=[(torch.tensor(keep),) for keep in ([1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0] * 3, [0.0] * 2)],
    mistakes={
        "NaN: where keep is 1 the product is 0 * -inf, and that is NaN. Fill with -inf, do not multiply with it.": (
            lambda keep: (1 - keep) * float("-inf")
        ),
        "Finite fill: -1e9 is not -inf. A hidden key wins as soon as the visible scores lie below the fill "
        "(section 8).": lambda keep: (1 - keep) * -1e9,
        "Opposite: the keys that stay are hidden. keep is 1 for what may be seen, and there the mask is 0.": (
            lambda keep: additive(1 - keep)
        ),
        "Too little: subtracting 1 from a score makes its weight smaller, by a factor of e. It does not remove it.": (
            lambda keep: keep - 1
        ),
    },
)


def others(length: int) -> Bool[Tensor, "1 1 L L"]:
    """Every query sees all keys but its own."""
    return ~torch.eye(length, dtype=torch.bool)[None, None]


check_others = Exercise(
    task="others(length): the mask 'everyone but myself', Bool[1, 1, length, length], True = may attend.",
    solution=others,
    cases=[(length,) for length in range(1, 7)],
    mistakes={
        POLARITY: flipped(others),
        "Nothing is hidden: every query sees its own key as well.": full_mask,
        "One side only: each query sees those before it. Those after it are others, too.": lambda length: (
            causal_mask(length) & others(length)
        ),
        "Two dimensions are missing: a mask has the four dimensions of the scores. Put [None, None] behind it.": (
            lambda length: others(length)[0, 0]
        ),
        "Additive: the places are right, but this is 0 and -inf. The masks of this series are boolean.": (
            lambda length: torch.zeros(1, 1, length, length).masked_fill(~others(length), float("-inf"))
        ),
    },
)


def split_heads(x: Float[Tensor, "B L D"], num_heads: int) -> Float[Tensor, "B H L Dh"]:
    """Cut the features of every token into blocks, one for each head."""
    batch, length, d_model = x.shape
    return x.view(batch, length, num_heads, d_model // num_heads).transpose(1, 2)


def _numbered(batch: int, length: int, d_model: int) -> Float[Tensor, "B L D"]:
    """Sample, token and feature can be read off a number: 123 is sample 1, token 2, feature 3."""
    return torch.tensor(
        [[[100.0 * b + 10 * i + feature for feature in range(d_model)] for i in range(length)] for b in range(batch)]
    )


check_split_heads = Exercise(
    task="split_heads(x, num_heads): cut [B, L, d_model] into heads, [B, H, L, head_dim].",
    solution=split_heads,
    cases=[(_numbered(*sizes), heads) for sizes in ((1, 2, 4), (2, 4, 8), (1, 3, 6), (2, 2, 4)) for heads in (1, 2)],
    mistakes={
        "Tokens are cut: view keeps the order of the numbers in memory, so a head gets whole tokens and no features of "
        "the others. Give every token its heads first, [B, L, H, head_dim], then exchange two dimensions.": (
            lambda x, num_heads: x.view(len(x), num_heads, x.shape[1], -1)
        ),
        "Not exchanged: this is [B, L, H, head_dim]. The heads come before the tokens: transpose(1, 2).": (
            lambda x, num_heads: split_heads(x, num_heads).transpose(1, 2)
        ),
        "Transposed: the features of a head stand where its tokens should be, [B, H, head_dim, L].": (
            lambda x, num_heads: split_heads(x, num_heads).transpose(2, 3)
        ),
        "Dealt out like cards: a head gets every H-th feature. A head is a block of neighbouring features, as the "
        "projections of the layer expect it.": lambda x, num_heads: x.view(*x.shape[:2], -1, num_heads).permute(
            0, 3, 1, 2
        ),
    },
)


def merged(
    scores_a: Float[Tensor, "Lq La"],
    output_a: Float[Tensor, "Lq D"],
    scores_b: Float[Tensor, "Lq Lb"],
    output_b: Float[Tensor, "Lq D"],
) -> Float[Tensor, "Lq D"]:
    """The output over all keys: each part counts with its share of the softmax's denominator."""
    sums = torch.stack((scores_a.logsumexp(dim=-1), scores_b.logsumexp(dim=-1)))  # [2, Lq]
    share_a, share_b = torch.softmax(sums, dim=0)[:, :, None]  # [Lq, 1] each
    return share_a * output_a + share_b * output_b


def _weighted(sums_of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The parts are weighted by sums_of(scores), divided by the total."""

    def wrong(scores_a: Tensor, output_a: Tensor, scores_b: Tensor, output_b: Tensor) -> Tensor:
        sum_a, sum_b = sums_of(scores_a)[:, None], sums_of(scores_b)[:, None]
        return (sum_a * output_a + sum_b * output_b) / (sum_a + sum_b)

    return wrong


def _in_two_parts(queries: int, first: int, second: int, step: float, apart: float = 0.0) -> tuple[Tensor, ...]:
    """Random scores and the output of each part over its own keys, of which there are `first` and `second`.

    The scores are `step` higher with each query, and `apart` higher in the second part.
    """
    numbers = torch.Generator().manual_seed(10 * first + second)
    steps = step * torch.arange(queries)[:, None]  # [Lq, 1]
    parts = []
    for keys, around in ((first, steps), (second, steps + apart)):
        scores = (2 * torch.randn(queries, keys, generator=numbers) + around).round(decimals=1)
        values = torch.randn(keys, 2, generator=numbers).round(decimals=1)
        parts += [scores, torch.softmax(scores, dim=-1) @ values]
    return tuple(parts)


check_merged = Exercise(
    task="merged(scores_a, output_a, scores_b, output_b): the output [Lq, D] over the keys of both parts together.",
    solution=merged,
    cases=[
        _in_two_parts(*case)
        for case in (
            (1, 1, 2, 0.0),
            (1, 2, 2, 0.0),
            (3, 2, 4, 1.0),
            (2, 2, 3, 1000.0),
            (1, 2, 3, 0.0, 1000.0),
            (1, 2, 3, 0.0, -1000.0),
        )
    ],
    mistakes={
        "Overflow: the shares are right, but exp(1000) is too large for a float32, and inf / inf is NaN. Stay with "
        "logarithms: logsumexp, then a softmax over the two parts.": _weighted(lambda scores: scores.exp().sum(dim=-1)),
        "Shifted by the first part alone: the second may be far larger, and then its exponentials overflow all the "
        "same.": lambda scores_a, output_a, scores_b, output_b: _weighted(
            lambda scores: (scores - scores_a.amax(dim=-1, keepdim=True)).exp().sum(dim=-1)
        )(scores_a, output_a, scores_b, output_b),
        "Mean: both parts count the same. The part with the larger exponentials counts more.": _weighted(
            lambda scores: torch.ones(len(scores))
        ),
        "Keys counted: a part with more keys counts more, but so does one with larger scores.": _weighted(
            lambda scores: torch.full((len(scores),), scores.shape[1])
        ),
        "Added: each output is a weighted mean already. Give each its share; the two shares sum to 1.": (
            lambda scores_a, output_a, scores_b, output_b: output_a + output_b
        ),
        "Only the largest score of each part counts: take the sum of all its exponentials, not the largest one.": (
            lambda scores_a, output_a, scores_b, output_b: merged(
                scores_a.amax(dim=-1, keepdim=True), output_a, scores_b.amax(dim=-1, keepdim=True), output_b
            )
        ),
    },
)
