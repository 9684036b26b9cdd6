"""Exercises of notebook 15, the mask audit."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY, TRANSPOSED, flipped, transposed
from utils.masks import causal_mask, full_mask, local_mask

SQUARE = full_mask(5)

check_dependency_of_two = Exercise(
    task="The measured dependency on five tokens of two layers, each under tril(diagonal=1): five rows of five signs.",
    solution=SQUARE.tril(2),
    mistakes={
        "One layer counted: this is the mask of one layer. The second looks one token ahead as well, into states that "
        "have looked ahead already.": SQUARE.tril(1),
        "The rule, not the model: this is what a decoder promises, and this model breaks the promise.": causal_mask(5),
        "One too many: each layer *adds* one token ahead, so two layers look two ahead.": SQUARE.tril(3),
        "Everything seen: each layer looks only one token further, and there are two layers.": SQUARE,
        POLARITY: flipped(SQUARE.tril(2)),
        TRANSPOSED: transposed(SQUARE.tril(2)),
    },
)

check_broken_rule = Exercise(
    task="The rule that the audit names when an encoder hides padded queries and not padded keys: one word.",
    solution="padding-content",
    mistakes={
        "Amount before content: this rule is for padding whose content does not matter. Here real queries see the "
        "padded keys, so ask what happens when other tokens stand there.": "padding-amount",
        "A rule of decoders: an encoder may see what comes later.": "future-leak",
        "The other direction: real queries lose nothing. Their rows are fully open, and what is too much is "
        "padding.": "dead-connection",
        "No samples are mixed up: each has its own flags, only on the wrong axis.": "batch-neighbour",
        "The positions are right: nothing but the mask is wrong, and other tokens in the padding show it.": (
            "padding-side"
        ),
    },
)

check_leaky_mode = Exercise(
    task="The mode in which batch normalisation over the positions leaks: 'train', 'eval', 'both' or 'neither'.",
    solution="train",
    mistakes={
        "The other way round: in eval the mean and the spread are stored numbers, which no token moves.": ("eval"),
        "One of the two is safe: ask in which mode the mean is computed from the batch itself, and in which it is a "
        "stored number.": "both",
        "A mask guards attention only: a mean over the positions holds every token, later ones included.": "neither",
    },
)


def attend(layer: nn.MultiheadAttention, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """Causal self-attention with PyTorch's layer, which reads True as blocked."""
    blocked = ~causal_mask(x.shape[1])[0, 0]  # [Lq, Lk]
    return layer(x, x, x, attn_mask=blocked, need_weights=False)[0]


def _blocking(diagonal: int, layer: nn.MultiheadAttention, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """Blocked from this diagonal on; 1 is right."""
    blocked = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(diagonal)
    return layer(x, x, x, attn_mask=blocked, need_weights=False)[0]


def _layer_and_input(length: int) -> tuple[nn.MultiheadAttention, Float[Tensor, "B L D"]]:
    """A layer in eval without gradients, and random vectors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(length)
        layer = nn.MultiheadAttention(4, 2, batch_first=True).eval().requires_grad_(False)
        x = torch.randn(1 + length % 2, length, 4).round(decimals=1)
    layer.__name__ = "nn.MultiheadAttention(4, 2, batch_first=True).eval()"  # what a failing case prints
    return layer, x


check_attend = Exercise(
    task="attend(layer, x): causal self-attention with an nn.MultiheadAttention, [B, L, D] -> [B, L, D].",
    solution=attend,
    cases=[_layer_and_input(length) for length in range(2, 8)],
    mistakes={
        "A hint is no mask: without attn_mask the layer sees everything, and is_causal=True changes nothing on this "
        "path.": lambda layer, x: layer(x, x, x, is_causal=True, need_weights=False)[0],
        "Polarity: nn.MultiheadAttention reads True as blocked, so this shows each query the future alone. The last "
        "one is a dead row.": lambda layer, x: layer(x, x, x, attn_mask=causal_mask(x.shape[1])[0, 0])[0],
        "One sample only: a mask of three dimensions is [B * num_heads, L, L]. What is the same for all may be "
        "[L, L].": lambda layer, x: layer(
            x, x, x, attn_mask=~causal_mask(x.shape[1])[0].expand(layer.num_heads, -1, -1)
        )[0],
        "Off by one: the diagonal is blocked, so no query sees itself, and the first one is a dead row. Block from "
        "triu(1) on.": lambda layer, x: _blocking(0, layer, x),
        "Off by one: each query sees one token ahead. Block from triu(1) on.": lambda layer, x: _blocking(2, layer, x),
    },
)


def compare(
    measured: Float[Tensor, "L L"], allowed: Bool[Tensor, "L L"], noise: float
) -> tuple[Bool[Tensor, "L L"], Bool[Tensor, "L L"]]:
    """Leaks and dead connections."""
    moved = measured > 10 * noise
    return moved & ~allowed, ~moved & allowed


def _measured(allowed: Bool[Tensor, "L L"], noise: float, seed: int) -> tuple[Tensor, Tensor, float]:
    """A dependency with one wrong entry in about five, and noise everywhere."""
    numbers = torch.Generator().manual_seed(seed)
    wrong = torch.rand(allowed.shape, generator=numbers) < 0.2
    size = noise * (11 + 300 * torch.rand(allowed.shape, generator=numbers) ** 4)  # many of them just above the limit
    below = 9 * noise * torch.rand(allowed.shape, generator=numbers)  # small, and often more than the noise itself
    return torch.where(allowed ^ wrong, size, below).round(decimals=4), allowed, noise


check_compare = Exercise(
    task="compare(measured, allowed, noise) -> two tensors Bool[L, L]: the leaks and the dead connections.",
    solution=compare,
    cases=[
        _measured(allowed, noise, seed)
        for length in (2, 3, 5)
        for allowed in (causal_mask(length)[0, 0], local_mask(length, back=1)[0, 0])
        for noise in (0.0, 0.001, 0.01)
        for seed in (length, length + 1)
    ],
    mistakes={
        "Noise taken for movement: two runs of a right model differ in the last digits, so compare with 10 * noise and "
        "not with 0.": lambda measured, allowed, noise: ((measured > 0) & ~allowed, ~(measured > 0) & allowed),
        "Too close to the noise: it is measured on few runs, and the next one may be larger. Ask for ten times as "
        "much.": lambda measured, allowed, noise: ((measured > noise) & ~allowed, ~(measured > noise) & allowed),
        "Another factor: what moves by more than ten times the noise has moved, and 11 times is enough.": (
            lambda measured, allowed, noise: ((measured > 20 * noise) & ~allowed, ~(measured > 20 * noise) & allowed)
        ),
        "At least instead of more than: without any noise every output moves by at least 10 * 0.": (
            lambda measured, allowed, noise: ((measured >= 10 * noise) & ~allowed, (measured < 10 * noise) & allowed)
        ),
        "Two limits: the audit calls a connection dead only within the noise. Here one limit serves both.": (
            lambda measured, allowed, noise: ((measured > 10 * noise) & ~allowed, (measured <= noise) & allowed)
        ),
        "Only one way: a model that ignores its input has no leak. What is allowed and does not move is a finding, "
        "too.": lambda measured, allowed, noise: (compare(measured, allowed, noise)[0], torch.zeros_like(allowed)),
        "Exchanged: the leaks come first, then the dead connections.": lambda measured, allowed, noise: compare(
            measured, allowed, noise
        )[::-1],
        "Both the same: you gave the places that differ from the promise twice. A leak is closed and moves, a dead "
        "connection is open and does not.": lambda measured, allowed, noise: (
            ((measured > 10 * noise) != allowed, (measured > 10 * noise) != allowed)
        ),
    },
)
