"""Batches of similar lengths: little padding, and the same order again for the same seed and epoch."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from utils.corpora.tokens import pad


class Seq2SeqBatch(NamedTuple):
    """Padded sources and targets with the flags of their real tokens; a target runs from [BOS] to [EOS]."""

    src: Int[Tensor, "B Ls"]
    src_valid: Bool[Tensor, "B Ls"]
    tgt: Int[Tensor, "B Lt"]
    tgt_valid: Bool[Tensor, "B Lt"]

    def to(self, device: torch.device | str) -> "Seq2SeqBatch":
        """The same batch on another device."""
        return Seq2SeqBatch(*(tensor.to(device) for tensor in self))


def seq2seq_batch(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Seq2SeqBatch:
    """Pad token ids of sources and targets into one batch."""
    return Seq2SeqBatch(*pad(sources), *pad(targets))


def buckets(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Group indices by length, so that a group times its longest length stays within `max_tokens`.

    Neighbours in length share a batch: little padding, and as many sentences as the token budget allows.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[index] > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class TextBatch(NamedTuple):
    """Padded texts for a decoder-only model: real tokens (`valid`), and those that count in the loss (`scored`)."""

    tokens: Int[Tensor, "B L"]
    valid: Bool[Tensor, "B L"]
    scored: Bool[Tensor, "B L"]

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same batch on another device."""
        return TextBatch(*(tensor.to(device) for tensor in self))


def text_batch(texts: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]]) -> TextBatch:
    """Pad token ids and the flags of the tokens that count in the loss into one batch; padding never counts."""
    tokens, valid = pad(texts)
    flags, _ = pad([list(map(int, row)) for row in scored])
    return TextBatch(tokens, valid, flags.bool())


class _Bucketed:
    """Items in length-bucketed batches: calling it with an epoch gives the batches of that epoch in their order.

    The order depends only on `seed` and `epoch`, so that training can resume in the middle of an epoch.
    """

    def __init__(
        self, items: list[tuple], lengths: list[int], make_batch: Callable[..., Any], max_tokens: int, seed: int
    ) -> None:
        self.items, self.lengths, self.make_batch = items, lengths, make_batch
        self.max_tokens, self.seed = max_tokens, seed

    def __call__(self, epoch: int) -> Iterator[Any]:
        """The batches of one epoch, in random order."""
        shuffle = random.Random(f"{self.seed}-{epoch}")
        order = list(range(len(self.items)))
        shuffle.shuffle(order)  # sorting is stable: items of equal length meet other partners in each epoch
        groups = list(buckets([self.lengths[index] for index in order], self.max_tokens))
        shuffle.shuffle(groups)
        for group in groups:
            yield self.make_batch(*zip(*(self.items[order[place]] for place in group), strict=True))


class BucketedPairs(_Bucketed):
    """Pairs for an encoder-decoder in length-bucketed batches: `pairs(epoch)` gives the batches of an epoch.

    `sources` and `targets` are token ids; `max_tokens` bounds sentences times tokens on the longer side.
    """

    def __init__(self, sources: list[list[int]], targets: list[list[int]], *, max_tokens: int, seed: int = 0) -> None:
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets; expected equally many.")
        self.sources, self.targets = sources, targets
        pairs = list(zip(sources, targets, strict=True))
        lengths = [max(len(source), len(target)) for source, target in pairs]
        super().__init__(pairs, lengths, seq2seq_batch, max_tokens, seed)


class BucketedTexts(_Bucketed):
    """Texts for a decoder-only model in length-bucketed batches: `texts(epoch)` gives the batches of an epoch.

    `scored` flags the tokens that count in the loss, all of them by default; `max_tokens` bounds texts times tokens.
    """

    def __init__(
        self, texts: list[list[int]], scored: list[list[bool]] | None = None, *, max_tokens: int, seed: int = 0
    ) -> None:
        scored = [[True] * len(text) for text in texts] if scored is None else scored
        if [len(text) for text in texts] != [len(flags) for flags in scored]:
            raise ValueError("texts and scored must have the same lengths: one flag for each token.")
        items = list(zip(texts, scored, strict=True))
        super().__init__(items, [len(text) for text in texts], text_batch, max_tokens, seed)
