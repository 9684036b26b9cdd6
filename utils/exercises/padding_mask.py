"""Exercises of notebook 02, the padding mask."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.attention import attention
from utils.exercises.core import Exercise
from utils.exercises.mistakes import PADDED_QUERIES, POLARITY, WRONG_AXIS, flipped
from utils.masks import padding_mask, valid_from_lengths

LENGTHS = [torch.tensor(lengths) for lengths in ([2, 1], [1, 3, 2], [4, 4], [1], [3, 5, 1, 2])]
VALID = [valid_from_lengths(lengths) for lengths in LENGTHS]
LEFT_VALID = [valid.flip(1) for valid in VALID]  # padding on the left

check_three_rows = Exercise(
    task="The padding masks of three sentences of lengths 1, 3 and 2, one row for each sentence.",
    solution=valid_from_lengths(torch.tensor([1, 3, 2]))[None, None],
    mistakes={
        POLARITY: ~valid_from_lengths(torch.tensor([1, 3, 2]))[None, None],
        "Wrong side: here the padding stands behind the words, on the right. Left padding is section 9.": (
            valid_from_lengths(torch.tensor([1, 3, 2])).flip(1)[None, None]
        ),
        "Another shape: these are the right rows, one for each sample, [3, 1, 1, 3]. Draw them below each other.": (
            padding_mask(valid_from_lengths(torch.tensor([1, 3, 2])))
        ),
        "Transposed: a row is a sentence and a column is a place in it. You have drawn it the other way.": (
            valid_from_lengths(torch.tensor([1, 3, 2])).T[None, None]
        ),
        "Sorted: the rows are right, but they come in the order of the batch, 1, 3, 2. A mask must meet its own "
        "sentence.": valid_from_lengths(torch.tensor([1, 2, 3]))[None, None],
    },
)


def _rows_hidden(valid: Bool[Tensor, "B L"]) -> Tensor:
    return valid[:, None, :, None].expand(-1, 1, -1, valid.shape[1])


check_repaired = Exercise(
    task="The mask of a batch, [B, 1, 1, Lk] or [B, 1, Lq, Lk], which hides the padded keys and nothing else.",
    solution=padding_mask,
    cases=[(valid,) for valid in VALID + LEFT_VALID],
    mistakes={
        WRONG_AXIS: _rows_hidden,
        PADDED_QUERIES: lambda valid: _rows_hidden(valid) & padding_mask(valid),
        POLARITY: flipped(padding_mask),
        "OR instead of AND: a real query still sees padding, since its own flag opens the whole row. And no flag of a "
        "query belongs here: hide the keys alone.": lambda valid: _rows_hidden(valid) | padding_mask(valid),
    },
)


def max_pooling(states: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The largest value of each feature over the real tokens."""
    return states.masked_fill(~valid[:, :, None], float("-inf")).amax(dim=1)


def _states(valid: Bool[Tensor, "B L"], shift: float) -> Float[Tensor, "B L 2"]:
    """Rounded random states around `shift`: below 0, a 0 at padding would win, and far below, any finite fill."""
    numbers = torch.Generator().manual_seed(valid.numel())
    return (torch.randn(*valid.shape, 2, generator=numbers) + shift).round(decimals=1)


check_max_pooling = Exercise(
    task="max_pooling(states, valid): the largest value of each feature over the real tokens, [B, L, D] -> [B, D].",
    solution=max_pooling,
    cases=[(_states(valid, shift), valid) for valid in VALID + LEFT_VALID for shift in (-1e37, -3.0, 0.0, 3.0)],
    mistakes={
        "Zero wins: after the product padding holds 0, which beats every negative number. The number that never wins a "
        "maximum is -inf.": lambda states, valid: (states * valid[:, :, None]).amax(dim=1),
        "Finite fill: it wins as soon as all real values lie below it. -inf never does.": (
            lambda states, valid: states.masked_fill(~valid[:, :, None], -1e9).amax(dim=1)
        ),
        "No mask: the padding takes part in the maximum.": lambda states, valid: states.amax(dim=1),
        "Polarity: you have pooled over the padding. valid is True for the real tokens, so hide where ~valid.": (
            lambda states, valid: max_pooling(states, ~valid)
        ),
        "Wrong pooling: this is the mean over the real tokens, not the maximum.": (
            lambda states, valid: (states * valid[:, :, None]).sum(dim=1) / valid.sum(dim=1, keepdim=True)
        ),
        "Wrong axis: you have pooled over the features. The tokens are dimension 1 of [B, L, D].": (
            lambda states, valid: states.masked_fill(~valid[:, :, None], float("-inf")).amax(dim=2)
        ),
    },
)


def left_flags(lengths: Int[Tensor, " B"], max_len: int) -> Bool[Tensor, "B L"]:
    """True for the last `lengths[b]` of `max_len` places."""
    return torch.arange(max_len) >= max_len - lengths[:, None]


check_left_flags = Exercise(
    task="left_flags(lengths, max_len): Bool[B, max_len], True for the real tokens of a left-padded batch.",
    solution=left_flags,
    cases=[(lengths, int(lengths.max()) + more) for lengths in LENGTHS for more in (0, 1, 3)],
    mistakes={
        "Wrong side: these are the flags of a batch with its padding on the right.": valid_from_lengths,
        "Off by one: the first real token is taken for padding. It stands at place max_len - length, and counting "
        "begins at 0, so compare with >=.": lambda lengths, max_len: torch.arange(max_len) > max_len - lengths[:, None],
        POLARITY: flipped(left_flags),
        "Counted as lengths of the padding: lengths[b] tells how many tokens are *real*.": (
            lambda lengths, max_len: torch.arange(max_len) >= lengths[:, None]
        ),
    },
)

check_shares = Exercise(
    task="Loss averaged over each sentence, then over the sentences: the share of one word in [the first, the second].",
    solution=[1 / 8, 1 / 4],
    tolerance=0.005,
    mistakes={
        "Averaged over words: this is the share in token_loss, where all six words count the same. Here each "
        "*sentence* has one half of the loss.": [1 / 6, 1 / 6],
        "Half way: this is the share of a word in its own sentence. There are two sentences to average over.": [
            1 / 4,
            1 / 2,
        ],
        "Exchanged: the sentence with *fewer* words gives each of them more.": [1 / 4, 1 / 8],
        "Padding counted: you divided by the four places of a row. The second sentence has two words.": [1 / 8, 1 / 8],
    },
)


def reads_padding(forward: Callable[[Tensor, Tensor], Tensor], x: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]):
    """Whether an output at a real token depends on the input at padding, found by the gradient."""
    x = x.clone().requires_grad_()
    forward(x, valid)[valid].square().sum().backward()
    return bool((x.grad[~valid] != 0).any())


def _gradient(of_output: Callable[[Tensor, Tensor], Tensor], forward: Callable, x: Tensor, valid: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    of_output(forward(x, valid), valid).square().sum().backward()
    return x.grad


def _reads(of_output: Callable[[Tensor, Tensor], Tensor], at: Callable[[Tensor], Tensor]) -> Callable[..., bool]:
    """The gradient test with another loss and other places where the gradient is looked at."""

    def wrong(forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, valid: Tensor) -> bool:
        return bool((_gradient(of_output, forward, x, valid)[at(valid)] != 0).any())

    return wrong


def _self_attention(x: Tensor, mask: Tensor | None) -> Tensor:
    x = x[:, None]  # [B, L, D] -> [B, 1, L, D]
    return attention(x, x, x, mask)[0][:, 0]


def correct(x: Tensor, valid: Tensor) -> Tensor:
    """Self-attention with the padding mask, in a residual connection."""
    return x + _self_attention(x, padding_mask(valid))


def no_mask(x: Tensor, valid: Tensor) -> Tensor:
    """Self-attention over all tokens."""
    return _self_attention(x, None)


def zeroed(x: Tensor, valid: Tensor) -> Tensor:
    """Self-attention over all tokens, where those of the padding are 0."""
    return no_mask(x * valid[:, :, None], valid)


def output_zeroed(x: Tensor, valid: Tensor) -> Tensor:
    """Self-attention over all tokens, with the outputs at padding set to 0 afterwards."""
    return no_mask(x, valid) * valid[:, :, None]


check_reads_padding = Exercise(
    task="reads_padding(forward, x, valid) -> bool: does an output at a real token depend on x at padding?",
    solution=reads_padding,
    cases=[
        (forward, _states(valid, 0.0), valid)
        for forward in (correct, no_mask, zeroed, output_zeroed)
        for valid in (VALID[0], LEFT_VALID[0], VALID[1], valid_from_lengths(torch.tensor([2, 0, 3])))
    ],
    mistakes={
        "All outputs counted: an output *at* padding may depend on padding, since nobody reads it. Choose the real "
        "outputs first: forward(x, valid)[valid].": _reads(lambda output, valid: output, at=torch.logical_not),
        "All instead of any: one number at padding that is read is enough.": lambda forward, x, valid: bool(
            (_gradient(lambda output, valid: output[valid], forward, x, valid)[~valid] != 0).all()
        ),
        "Wrong outputs: you looked at the outputs at padding. Nobody reads those; the rule is about the real ones.": (
            _reads(lambda output, valid: output[~valid], at=torch.logical_not)
        ),
        "Wrong inputs: you looked at the gradient of the real tokens, and on those every output depends. The gradient "
        "at padding is x.grad[~valid].": _reads(lambda output, valid: output[valid], at=lambda valid: valid),
    },
)
