"""Two ways to make more of a small parallel corpus: new pieces in each epoch, and two dropouts that must agree."""

from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from utils.corpora import BucketedPairs, Seq2SeqBatch, encode
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


def r_drop_loss(
    model: Transformer, batch: Seq2SeqBatch, *, weight: float, label_smoothing: float = 0.1
) -> tuple[Tensor, int]:
    """Teacher forcing twice, with two draws of dropout, whose predictions must agree: R-Drop, Wu et al. (2021).

    Returns (loss, number of labels). The loss is the mean cross-entropy of both passes, plus `weight` times the mean
    of the two Kullback-Leibler divergences between them; the paper's alpha is twice this weight.
    """
    batch = Seq2SeqBatch(*(torch.cat((side, side)) for side in batch))
    masks = seq2seq_masks(batch.src_valid, batch.tgt_valid[:, :-1])
    labels, valid = batch.tgt[:, 1:], batch.tgt_valid[:, 1:]
    logits, _ = model(batch.src, batch.tgt[:, :-1], masks)
    log_p = logits.log_softmax(dim=-1)  # [2B, L, V]
    right = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    cross_entropy = -(1 - label_smoothing) * right - label_smoothing * log_p.mean(dim=-1)  # [2B, L]
    first, second = log_p.chunk(2)
    divergence = ((first.exp() - second.exp()) * (first - second)).sum(dim=-1) / 2  # [B, L]
    first_valid = valid.chunk(2)[0]
    loss = cross_entropy[valid].mean() + weight * divergence[first_valid].mean()
    return loss, int(first_valid.sum())
