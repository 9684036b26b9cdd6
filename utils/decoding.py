"""Writing with a trained model: greedy and beam search over any function that scores the next token."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor
from tqdm.auto import tqdm

from utils.corpora import BOS, EOS, PAD, buckets, encode, pad
from utils.transformer import Transformer, seq2seq_masks

# Int[N, L], the tokens so far -> Float[N, V], the logits of the next one
NextLogits = Callable[[Tensor], Tensor]


def greedy_search(next_logits: NextLogits, start: Int[Tensor, "N 1"], max_len: Int[Tensor, " N"]) -> list[list[int]]:
    """Take the likeliest token at each step until every sequence has written [EOS] or its `max_len` tokens.

    Returns the written ids of each sequence without [BOS] and [EOS].
    """
    tokens = start
    while not (finished := _finished(tokens, max_len)).all():
        newest = next_logits(tokens).argmax(dim=-1).masked_fill(finished, PAD)
        tokens = torch.cat((tokens, newest[:, None]), dim=1)
    return [_written(row) for row in tokens.tolist()]


def beam_search(
    next_logits: NextLogits,
    start: Int[Tensor, "NK 1"],
    max_len: Int[Tensor, " NK"],
    *,
    beam_size: int,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Keep the `beam_size` best beginnings of each sequence, and return the best that ended.

    `start` and `max_len` hold `beam_size` rows for each sequence, one after the other. Candidates are ranked by
    log-probability / length ** length_penalty, because a sum of logarithms alone prefers short ones.
    """
    tokens, count = start, len(start) // beam_size
    first_rows = beam_size * torch.arange(count, device=start.device)[:, None]
    scores = torch.full((count, beam_size), float("-inf"), device=start.device)
    scores[:, 0] = 0.0  # all beams start alike: let only the first one branch
    while not (finished := _finished(tokens, max_len)).all():
        log_probs = next_logits(tokens).float().log_softmax(dim=-1)  # [N*K, V]
        log_probs[finished] = float("-inf")
        log_probs[finished, PAD] = 0.0  # a finished beam goes on with padding, at no cost
        candidates = (scores.view(-1, 1) + log_probs).view(count, -1)  # [N, K*V]
        scores, choice = candidates.topk(beam_size, dim=-1)  # [N, K]
        parents, newest = choice // log_probs.shape[-1] + first_rows, choice % log_probs.shape[-1]
        tokens = torch.cat((tokens[parents.flatten()], newest.view(-1, 1)), dim=1)
    lengths = (tokens != PAD).sum(dim=1).view(count, beam_size)
    best = (scores / lengths**length_penalty).argmax(dim=-1, keepdim=True) + first_rows
    return [_written(row) for row in tokens[best.flatten()].tolist()]


def _finished(tokens: Int[Tensor, "N L"], max_len: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
    return (tokens == EOS).any(dim=1) | (tokens.shape[1] > max_len)


def _written(ids: list[int]) -> list[int]:
    return [token for token in ids if token not in (PAD, BOS, EOS)]


def seq2seq_next_logits(
    model: Transformer, src: Int[Tensor, "N Ls"], src_valid: Bool[Tensor, "N Ls"], *, beam_size: int = 1
) -> NextLogits:
    """Encode the sources once, and return the function that scores the next target token.

    With `beam_size` rows for each source, as `beam_search` wants them.
    """
    memory, _ = model.encode(src, seq2seq_masks(src_valid, src_valid))
    memory = memory.repeat_interleave(beam_size, dim=0)
    src_valid = src_valid.repeat_interleave(beam_size, dim=0)

    def next_logits(tgt: Tensor) -> Tensor:
        masks = seq2seq_masks(src_valid, torch.ones_like(tgt, dtype=torch.bool))
        hidden, _, _ = model.decode(tgt, memory, masks)
        return model.embedding.logits(hidden[:, -1])

    return next_logits


@torch.no_grad()
def translate(
    model: Transformer, tokenizer: Tokenizer, lines: Sequence[str], *, beam_size: int = 1, max_tokens: int = 4096
) -> list[str]:
    """Translate lines of text, in batches of similar length; `beam_size` 1 is greedy search.

    A translation has at most one and a half times as many tokens as its source, and ten.
    """
    model.eval()
    device, ids, results = model.embedding.weight.device, encode(tokenizer, lines), [""] * len(lines)
    with tqdm(total=len(lines), desc="translating", leave=False) as bar:
        for group in buckets([len(source) for source in ids], max_tokens // beam_size):
            src, src_valid = (tensor.to(device) for tensor in pad([ids[index] for index in group]))
            next_logits = seq2seq_next_logits(model, src, src_valid, beam_size=beam_size)
            max_len = (src_valid.sum(dim=1) * 3 // 2 + 10).repeat_interleave(beam_size)
            start = torch.full((len(max_len), 1), BOS, device=device)
            if beam_size == 1:
                outputs = greedy_search(next_logits, start, max_len)
            else:
                outputs = beam_search(next_logits, start, max_len, beam_size=beam_size)
            for index, text in zip(group, tokenizer.decode_batch(outputs), strict=True):
                results[index] = text
            bar.update(len(group))
    return results
