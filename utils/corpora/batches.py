"""Batches of similar lengths: little padding, and the same order again for the same seed and epoch."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from utils.corpora.tokens import PAD, pad


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


def _check_flags(texts: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]]) -> None:
    if [len(text) for text in texts] != [len(flags) for flags in scored]:
        raise ValueError("texts and scored must have the same lengths; expected one flag for each token.")


def text_batch(texts: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]]) -> TextBatch:
    """Pad token ids and the flags of the tokens that count in the loss into one batch; padding never counts.

    Raises ValueError unless each token has its flag.
    """
    _check_flags(texts, scored)
    tokens, valid = pad(texts)
    flags, _ = pad([list(map(int, row)) for row in scored])
    return TextBatch(tokens, valid, flags.bool())


class PackedBatch(NamedTuple):
    """Several texts in each row, one behind the other, with what is needed to keep them apart.

    `segments` numbers the texts of a row, and padding is -1: a segment of its own, so that no query is without a key.
    `positions` starts again at 0 in each text. `scored` flags the tokens that count in the loss.
    """

    tokens: Int[Tensor, "B L"]
    segments: Int[Tensor, "B L"]
    positions: Int[Tensor, "B L"]
    scored: Bool[Tensor, "B L"]

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on another device."""
        return PackedBatch(*(tensor.to(device) for tensor in self))


def packed_batch(
    texts: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]], *, row_len: int | None = None
) -> PackedBatch:
    """Pack token ids and the flags of the tokens that count in the loss into rows of `row_len` tokens.

    The longest text comes first, and each goes into the first row with room for it; `row_len` None makes one row of
    all. The first token of a text never counts: before it stands another text, or nothing.

    Raises ValueError for a text that is longer than `row_len`.
    """
    row_len = sum(map(len, texts)) if row_len is None else row_len
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
        size = len(texts[index])
        if size > row_len:
            raise ValueError(f"a text has {size} tokens, and a row holds row_len = {row_len}.")
        row = next((row for row, free in enumerate(room) if free >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_len)
        rows[row].append(index)
        room[row] -= size
    return PackedBatch(*map(torch.stack, zip(*(_packed_row(texts, scored, row, row_len) for row in rows), strict=True)))


def _packed_row(
    texts: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]], row: list[int], row_len: int
) -> tuple[Tensor, ...]:
    """Tokens, segments, positions and flags of one row."""
    places = [
        (token, segment, position, bool(flag) and position > 0)
        for segment, index in enumerate(row)
        for position, (token, flag) in enumerate(zip(texts[index], scored[index], strict=True))
    ]
    padding = [(PAD, -1, position, False) for position in range(row_len - len(places))]
    tokens, segments, positions, flags = zip(*places, *padding, strict=True)
    return torch.tensor(tokens), torch.tensor(segments), torch.tensor(positions), torch.tensor(flags)


class _Bucketed:
    """Items in length-bucketed batches: calling it with an epoch gives the batches of that epoch in their order.

    Items of one length stand in the order of `ties`. The order of an epoch depends only on that, `seed` and `epoch`, so
    that training can resume in the middle of it.
    """

    def __init__(
        self,
        items: list[tuple],
        lengths: list[int],
        ties: list[int],
        make_batch: Callable[..., Any],
        max_tokens: int,
        seed: int,
    ) -> None:
        self.items, self.lengths, self.ties, self.make_batch = items, lengths, ties, make_batch
        self.max_tokens, self.seed = max_tokens, seed

    def __call__(self, epoch: int) -> Iterator[Any]:
        """The batches of one epoch, in random order."""
        shuffle = random.Random(f"{self.seed}-{epoch}")
        order = list(range(len(self.items)))
        shuffle.shuffle(order)  # sorting is stable: items of equal length meet other partners in each epoch
        order.sort(key=self.ties.__getitem__)
        groups = list(buckets([self.lengths[index] for index in order], self.max_tokens))
        shuffle.shuffle(groups)
        for group in groups:
            yield self.make_batch(*zip(*(self.items[order[place]] for place in group), strict=True))


class BucketedPairs(_Bucketed):
    """Pairs for an encoder-decoder in length-bucketed batches: `pairs(epoch)` gives the batches of an epoch.

    `sources` and `targets` are token ids; `max_tokens` bounds sentences times tokens on the longer side. Pairs whose
    longer side is alike are sorted by their shorter one, so both sides hold little padding.
    """

    def __init__(self, sources: list[list[int]], targets: list[list[int]], *, max_tokens: int, seed: int = 0) -> None:
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets; expected equally many.")
        self.sources, self.targets = sources, targets
        pairs = list(zip(sources, targets, strict=True))
        lengths = [max(len(source), len(target)) for source, target in pairs]
        differences = (len(source) - len(target) for source, target in pairs)
        # there and back again: a batch with the end of one length and the start of the next holds similar pairs, too
        ties = [size if length % 2 else -size for size, length in zip(differences, lengths, strict=True)]
        super().__init__(pairs, lengths, ties, seq2seq_batch, max_tokens, seed)


class CopyingFirst:
    """A curriculum for summaries: in the first `epochs` epochs, write a sentence of the source; then the real pairs.

    A model from scratch does not know that words may be copied, and short targets teach it slowly. `sentences` holds,
    for each source, token ids of its own sentences, [BOS] to [EOS]; one is drawn anew in each epoch. The idea of
    learning to write sentences of the text first is that of Zhang et al. (2020), PEGASUS.
    """

    def __init__(self, pairs: BucketedPairs, sentences: list[list[list[int]]], *, epochs: int) -> None:
        if len(sentences) != len(pairs.sources) or not all(sentences):
            raise ValueError(f"expected at least one sentence for each of the {len(pairs.sources)} sources.")
        self.pairs, self.sentences, self.epochs = pairs, sentences, epochs

    def __call__(self, epoch: int) -> Iterator[Seq2SeqBatch]:
        """The batches of one epoch, in random order."""
        if epoch >= self.epochs:
            return self.pairs(epoch)
        chance = random.Random(f"{self.pairs.seed}-copying-{epoch}")
        drawn = [chance.choice(own) for own in self.sentences]
        return BucketedPairs(self.pairs.sources, drawn, max_tokens=self.pairs.max_tokens, seed=self.pairs.seed)(epoch)


class BucketedTexts(_Bucketed):
    """Texts for a decoder-only model in length-bucketed batches: `texts(epoch)` gives the batches of an epoch.

    `scored` flags the tokens that count in the loss, all of them by default; `max_tokens` bounds texts times tokens.
    """

    def __init__(
        self, texts: list[list[int]], scored: list[list[bool]] | None = None, *, max_tokens: int, seed: int = 0
    ) -> None:
        scored = [[True] * len(text) for text in texts] if scored is None else scored
        _check_flags(texts, scored)  # here, before the training
        items = list(zip(texts, scored, strict=True))
        super().__init__(items, [len(text) for text in texts], [0] * len(texts), text_batch, max_tokens, seed)
