"""Ways to make more of a small parallel corpus: other pieces in each epoch, hidden tokens, agreement, teachers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from utils.corpora import BOS, EOS, UNK, BucketedPairs, Seq2SeqBatch, buckets, encode, seq2seq_batch
from utils.training import seq2seq_loss, teacher_forced, token_loss
from utils.transformer import Transformer, seq2seq_masks


class ResegmentedPairs:
    """Batches of an epoch in which words are cut into other pieces than in the last: Provilkov et al. (2020).

    Each merge of the byte-pair encoding is left out with probability `dropout`. The tokenizers library draws them
    from a random source that cannot be seeded, so two runs differ even with one seed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sources: Sequence[str],
        targets: Sequence[str],
        *,
        dropout: float,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.tokenizer, self.sources, self.targets = tokenizer, sources, targets
        self.dropout, self.max_tokens, self.seed = dropout, max_tokens, seed

    def __call__(self, epoch: int) -> Iterator[Seq2SeqBatch]:
        """The batches of one epoch, in random order."""
        self.tokenizer.model.dropout = self.dropout
        sides = encode(self.tokenizer, self.sources), encode(self.tokenizer, self.targets, bos=True)
        self.tokenizer.model.dropout = None
        return BucketedPairs(*sides, max_tokens=self.max_tokens, seed=self.seed)(epoch)


def specialised(pairs: BucketedPairs, count: int, *, first: int) -> Callable[[int], Iterable[Seq2SeqBatch]]:
    """The batches of all pairs in the epochs before `first`, then those of the first `count` pairs alone.

    A model that learns several languages together and then one of them, within one training: Dabre et al. (2019).
    """
    sides = pairs.sources[:count], pairs.targets[:count]
    own = BucketedPairs(*sides, max_tokens=pairs.max_tokens, seed=pairs.seed)
    return lambda epoch: (pairs if epoch < first else own)(epoch)


def hiding_loss(model: Transformer, batch: Seq2SeqBatch, *, share: float) -> tuple[Tensor, int]:
    """Teacher forcing in which the model reads [UNK] in place of a random share of the tokens; the labels stay.

    Returns (loss, number of labels). Word dropout on both sides, as in Sennrich & Zhang (2019), but for the vector:
    theirs is zero, the one of [UNK] is learned.
    """
    masks = seq2seq_masks(batch.src_valid, batch.tgt_valid[:, :-1])
    labels, valid = batch.tgt[:, 1:], batch.tgt_valid[:, 1:]
    logits, _ = model(hidden(batch.src, share), hidden(batch.tgt[:, :-1], share), masks)
    return token_loss(logits, labels, valid, label_smoothing=0.1), int(valid.sum())


def hidden(tokens: Tensor, share: float) -> Tensor:
    """Token ids with [UNK] in place of a random share of them; [BOS] and [EOS] stay."""
    drawn = torch.rand(tokens.shape, device=tokens.device) < share
    return tokens.masked_fill(drawn & (tokens != BOS) & (tokens != EOS), UNK)


def r_drop_loss(
    model: Transformer, batch: Seq2SeqBatch, *, weight: float, label_smoothing: float = 0.1
) -> tuple[Tensor, int]:
    """Teacher forcing twice, with two draws of dropout, whose predictions must agree: R-Drop, Wu et al. (2021).

    Returns (loss, number of labels). The loss is the mean cross-entropy of both passes, plus `weight` times the mean
    of the two Kullback-Leibler divergences between them; the paper's alpha is twice this weight.
    """
    batch = Seq2SeqBatch(*(torch.cat((side, side)) for side in batch))
    labels, valid = batch.tgt[:, 1:], batch.tgt_valid[:, 1:]
    log_p = teacher_forced(model, batch).log_softmax(dim=-1)  # [2B, L, V]
    right = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    cross_entropy = -(1 - label_smoothing) * right - label_smoothing * log_p.mean(dim=-1)  # [2B, L]
    first, second = log_p.chunk(2)
    divergence = ((first.exp() - second.exp()) * (first - second)).sum(dim=-1) / 2  # [B, L]
    first_valid = valid.chunk(2)[0]
    loss = cross_entropy[valid].mean() + weight * divergence[first_valid].mean()
    return loss, int(first_valid.sum())


class LaterRDrop:
    """The plain loss in the first epochs, R-Drop from epoch `first` on: the plain one learns twice as fast at first.

    Give `batches` and `loss` to the same training: the first learns which epoch it is, and tells the second.
    """

    def __init__(self, pairs: Callable[[int], Iterable[Seq2SeqBatch]], *, first: int, weight: float) -> None:
        self.pairs, self.first, self.weight = pairs, first, weight

    def batches(self, epoch: int) -> Iterable[Seq2SeqBatch]:
        """The batches of one epoch, as `pairs` gives them."""
        self.on = epoch >= self.first
        return self.pairs(epoch)

    def loss(self, model: Transformer, batch: Seq2SeqBatch) -> tuple[Tensor, int]:
        """The loss of the epoch that `batches` was asked for last."""
        return r_drop_loss(model, batch, weight=self.weight) if self.on else seq2seq_loss(model, batch)


class TaughtBatch(NamedTuple):
    """A batch and, for each label, the tokens that trained models hold for the likeliest in its place."""

    pairs: Seq2SeqBatch
    tokens: Int[Tensor, "B L K"]
    probabilities: Float[Tensor, "B L K"]

    def to(self, device: torch.device | str) -> "TaughtBatch":
        """The same batch on another device."""
        return TaughtBatch(*(part.to(device) for part in self))


class TaughtPairs(BucketedPairs):
    """Pairs with what trained models say in the place of each label: the mean of their probabilities.

    The models, in eval mode, are asked once, before the training; the `likeliest` tokens of each place are kept, with
    probabilities that sum to 1. Hinton et al. (2015); for translation word by word: Kim & Rush (2016).
    """

    def __init__(self, pairs: BucketedPairs, teachers: Sequence[Transformer], *, likeliest: int = 32) -> None:
        super().__init__(pairs.sources, pairs.targets, max_tokens=pairs.max_tokens, seed=pairs.seed)
        self.items = [(*pair, *said) for pair, said in zip(self.items, self._asked(teachers, likeliest), strict=True)]
        self.make_batch = _taught_batch

    def _asked(self, teachers: Sequence[Transformer], likeliest: int) -> list[tuple[Tensor, Tensor]]:
        """For each pair the likeliest tokens in the place of each label and their probabilities, [L, K] both."""
        said: list[Any] = [None] * len(self.items)
        with tqdm(total=len(said), desc="asking the teachers") as bar:
            for group in buckets(self.lengths, 8192):
                batch = seq2seq_batch(
                    [self.sources[index] for index in group], [self.targets[index] for index in group]
                )
                for index, *both in zip(group, *_likeliest(batch, teachers, likeliest), strict=True):
                    said[index] = tuple(part[: len(self.targets[index]) - 1].clone() for part in both)
                bar.update(len(group))
        return said


@torch.no_grad()
def _likeliest(batch: Seq2SeqBatch, teachers: Sequence[Transformer], count: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in the place of each label and their probabilities, [B, L, K] both, on the CPU."""
    batch = batch.to(teachers[0].embedding.weight.device)
    mean = torch.stack([teacher_forced(one, batch).softmax(dim=-1) for one in teachers]).mean(dim=0)  # [B, L, V]
    probabilities, tokens = mean.topk(count)
    return tokens.int().cpu(), (probabilities / probabilities.sum(dim=-1, keepdim=True)).cpu()


def _taught_batch(
    sources: Sequence[list[int]],
    targets: Sequence[list[int]],
    tokens: Sequence[Tensor],
    probabilities: Sequence[Tensor],
) -> TaughtBatch:
    padded = (pad_sequence(part, batch_first=True) for part in (tokens, probabilities))
    return TaughtBatch(seq2seq_batch(sources, targets), *padded)


def distillation_loss(model: Transformer, batch: TaughtBatch) -> tuple[Tensor, int]:
    """Teacher forcing towards what trained models say, not towards the one right token: the mean cross-entropy.

    Returns (loss, number of labels).
    """
    valid = batch.pairs.tgt_valid[:, 1:]
    logits = teacher_forced(model, batch.pairs).float()  # half precision is too coarse for what follows
    expected = (batch.probabilities * logits.gather(-1, batch.tokens.long())).sum(dim=-1)  # [B, L]
    return (logits.logsumexp(dim=-1) - expected)[valid].mean(), int(valid.sum())
