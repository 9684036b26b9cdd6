"""Writing with a trained model: greedy search, beam search and sampling over any function that scores the next token.

Such a function takes all tokens so far. Those made here read each token once and keep its keys and values.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor
from tqdm.auto import tqdm

from utils.corpora import BOS, EOS, PAD, buckets, encode, pad
from utils.transformer import (
    DecoderCache,
    DecoderOnly,
    Seq2SeqMasks,
    Transformer,
    decoder_only_mask,
    seq2seq_masks,
)

# Int[N, L], the tokens so far -> Float[N, V], the logits of the next one
NextLogits = Callable[[Tensor], Tensor]
# Int[N, L], the tokens so far, and what is kept of the first ones or None -> Float[N, V], as above
Read = Callable[[Tensor, DecoderCache | None], Tensor]
# Bool[N, Ls] and Bool[N, Lt], the real tokens of source and target -> the masks of an encoder-decoder
BuildMasks = Callable[[Tensor, Tensor], Seq2SeqMasks]


def greedy_search(next_logits: NextLogits, start: Int[Tensor, "N L"], max_len: Int[Tensor, " N"]) -> list[list[int]]:
    """Take the likeliest token at each step, until [EOS] or `max_len` tokens after `start`.

    Returns the written ids of each sequence without `start` and [EOS].
    """
    tokens, start_len = start, start.shape[1]
    while not (finished := _finished(tokens, max_len, start_len)).all():
        newest = next_logits(tokens).argmax(dim=-1).masked_fill(finished, PAD)
        tokens = torch.cat((tokens, newest[:, None]), dim=1)
    return [_written(row) for row in tokens[:, start_len:].tolist()]


def beam_search(
    next_logits: NextLogits,
    start: Int[Tensor, "NK L"],
    max_len: Int[Tensor, " NK"],
    *,
    beam_size: int,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Keep the `beam_size` best beginnings of each sequence, and return the best that ended.

    `start` and `max_len` hold `beam_size` rows for each sequence, one after the other. A beginning that ended keeps its
    place among the best as long as its log-probability does. When all have ended, log-probability / length **
    length_penalty decides, because a sum of logarithms alone prefers short ones; the length counts what was written
    and one token of `start`. Returns the written ids without `start` and [EOS].

    Raises ValueError unless `start` holds each beginning `beam_size` times.
    """
    if len(start) % beam_size or not torch.equal(start, start[::beam_size].repeat_interleave(beam_size, dim=0)):
        raise ValueError(
            f"start has {len(start)} rows; expected beam_size = {beam_size} equal ones for each sequence, one after "
            "the other: start.repeat_interleave(beam_size, dim=0)."
        )
    tokens, start_len, count = start, start.shape[1], len(start) // beam_size
    first_rows = beam_size * torch.arange(count, device=start.device)[:, None]
    scores = torch.full((count, beam_size), float("-inf"), device=start.device)
    scores[:, 0] = 0.0  # all beams start alike: let only the first one branch
    while not (finished := _finished(tokens, max_len, start_len)).all():
        log_probs = next_logits(tokens).float().log_softmax(dim=-1)  # [N*K, V]
        log_probs[finished] = float("-inf")
        log_probs[finished, PAD] = 0.0  # a finished beam goes on with padding, at no cost
        candidates = (scores.view(-1, 1) + log_probs).view(count, -1)  # [N, K*V]
        scores, choice = candidates.topk(beam_size, dim=-1)  # [N, K]
        parents, newest = choice // log_probs.shape[-1] + first_rows, choice % log_probs.shape[-1]
        tokens = torch.cat((tokens[parents.flatten()], newest.view(-1, 1)), dim=1)
    written = tokens[:, start_len:]
    lengths = 1 + (written != PAD).sum(dim=1).view(count, beam_size)
    best = (scores / lengths**length_penalty).argmax(dim=-1, keepdim=True) + first_rows
    return [_written(row) for row in written[best.flatten()].tolist()]


def sample(
    next_logits: NextLogits,
    start: Int[Tensor, "N L"],
    max_len: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Draw each token at random, until [EOS] or `max_len` tokens after `start`.

    `temperature` below 1 sharpens the distribution; `top_p` keeps only the likeliest tokens that together have
    this probability (Holtzman et al., 2020). Returns the written ids without `start` and [EOS].

    Raises ValueError for a temperature of 0 or below, which `greedy_search` is the limit of, and a `top_p` that keeps
    nothing.
    """
    if temperature <= 0 or top_p <= 0:
        raise ValueError(f"expected a temperature and a top_p above 0; got {temperature} and {top_p}.")
    tokens = start
    while not (finished := _finished(tokens, max_len, start.shape[1])).all():
        probabilities = torch.softmax(next_logits(tokens).float() / temperature, dim=-1)
        if top_p < 1:
            probabilities = _nucleus(probabilities, top_p)
        newest = torch.multinomial(probabilities, 1, generator=generator)[:, 0].masked_fill(finished, PAD)
        tokens = torch.cat((tokens, newest[:, None]), dim=1)
    return [_written(row) for row in tokens[:, start.shape[1] :].tolist()]


def _nucleus(probabilities: Float[Tensor, "N V"], top_p: float) -> Float[Tensor, "N V"]:
    ranked, order = probabilities.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked  # the probability of all likelier tokens: 0 for the first, which stays
    return probabilities.masked_fill((before >= top_p).gather(-1, order.argsort(dim=-1)), 0.0)


def no_repeated_ngrams(next_logits: NextLogits, n: int) -> NextLogits:
    """Forbid every token that would complete a run of `n` tokens which the sequence already holds."""

    def blocked(tokens: Tensor) -> Tensor:
        logits = next_logits(tokens)
        if tokens.shape[1] < n:
            return logits
        runs = tokens.unfold(1, n, 1)  # [N, L - n + 1, n]
        newest = tokens[:, tokens.shape[1] - n + 1 :]  # [N, n - 1]: the start of the next run
        repeated = (runs[:, :, :-1] == newest[:, None]).all(dim=-1)  # [N, L - n + 1]
        counts = torch.zeros_like(logits).scatter_add(1, runs[:, :, -1], repeated.to(logits.dtype))
        return logits.masked_fill(counts > 0, float("-inf"))

    return blocked


def together(scorers: Sequence[NextLogits]) -> NextLogits:
    """Several models write as one: each token is as likely as the mean of their probabilities says."""
    return lambda tokens: torch.stack([score(tokens).float().log_softmax(dim=-1) for score in scorers]).logsumexp(dim=0)


def _finished(tokens: Int[Tensor, "N L"], max_len: Int[Tensor, " N"], start_len: int) -> Bool[Tensor, " N"]:
    written = tokens[:, start_len:]
    return (written == EOS).any(dim=1) | (written.shape[1] >= max_len)


def _written(ids: list[int]) -> list[int]:
    return [token for token in ids if token not in (PAD, BOS, EOS)]


class CachedNextLogits:
    """A `NextLogits` that reads each token once, with the results of one that reads all of them at each call.

    It stays a function of the tokens alone: of each text it looks up which one of the last call it goes on from, so
    a search may drop and double texts as it likes. `beam_size` rows that stand together are searched for one another's
    beginnings. A batch with a text that goes on from none is read from its first token. After the model has learned
    more, make a new one.
    """

    def __init__(self, read: Read, num_layers: int, beam_size: int) -> None:
        self.read, self.num_layers, self.beam_size = read, num_layers, beam_size
        self.cache, self.seen = DecoderCache(num_layers), None

    @torch.no_grad()  # a cache that remembers how it came about would keep the activations of every step
    def __call__(self, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N V"]:
        parents = self._parents(tokens)
        if parents is None:
            self.cache = DecoderCache(self.num_layers)
        elif self.beam_size > 1:
            self.cache.reorder(parents)
        self.seen = tokens.clone()  # the caller may write into its own
        return self.read(tokens, self.cache)

    def _parents(self, tokens: Int[Tensor, "N L"]) -> Int[Tensor, " N"] | None:
        """For each text the row of the last call that it begins with; None if a text begins with no such row."""
        if self.seen is None or len(self.seen) != len(tokens) or self.seen.shape[1] >= tokens.shape[1]:
            return None
        old = self.seen.unflatten(0, (-1, self.beam_size))  # [N / K, K, L of the last call]
        new = tokens[:, : self.seen.shape[1]].unflatten(0, (-1, self.beam_size))
        same = (new[:, :, None] == old[:, None]).all(dim=-1)  # [N / K, K, K]
        if not same.any(dim=-1).all():
            return None
        first_rows = torch.arange(0, len(tokens), self.beam_size, device=tokens.device)[:, None]
        return (same.int().argmax(dim=-1) + first_rows).flatten()


def seq2seq_next_logits(
    model: Transformer,
    src: Int[Tensor, "N Ls"],
    src_valid: Bool[Tensor, "N Ls"],
    *,
    beam_size: int = 1,
    build_masks: BuildMasks = seq2seq_masks,
    cached: bool = True,
) -> NextLogits:
    """Encode the sources once, and return the function that scores the next target token; for a model in eval mode.

    With `beam_size` rows for each source, as `beam_search` wants them. Give wrong masks to see what they do; then all
    tokens are read anew at each step, since only a causal mask allows a cache.
    """
    memory, _ = model.encode(src, build_masks(src_valid, src_valid))
    memory = memory.repeat_interleave(beam_size, dim=0)
    src_valid = src_valid.repeat_interleave(beam_size, dim=0)

    def read(tgt: Tensor, cache: DecoderCache | None) -> Tensor:
        start, valid = cache.length if cache else 0, torch.ones_like(tgt, dtype=torch.bool)
        masks = seq2seq_masks(src_valid, valid, cached=start) if cache else build_masks(src_valid, valid)
        hidden, _, _ = model.decode(tgt[:, start:], memory, masks, cache=cache)
        return model.embedding.logits(hidden[:, -1])

    cached = cached and build_masks is seq2seq_masks
    return CachedNextLogits(read, model.config.num_layers, beam_size) if cached else lambda tgt: read(tgt, None)


def decoder_only_next_logits(
    model: DecoderOnly, valid: Bool[Tensor, "N L"] | None = None, *, beam_size: int = 1, cached: bool = True
) -> NextLogits:
    """The function that scores the next token of texts, for a model in eval mode.

    `valid` marks the real tokens of prompts that are padded on the left; None: nothing is padded. What is written
    after them is real. With `beam_size` rows for each prompt, as `beam_search` wants them.

    Raises ValueError if a prompt ends with padding: its last token is the one that the next follows.
    """
    if valid is not None:
        if not valid[:, -1].all():
            raise ValueError("a prompt ends with padding; expected padding on the left: valid[:, -1] all True.")
        valid = valid.repeat_interleave(beam_size, dim=0)

    def read(tokens: Tensor, cache: DecoderCache | None) -> Tensor:
        start, real = cache.length if cache else 0, torch.ones_like(tokens, dtype=torch.bool)
        if valid is not None:
            real[:, : valid.shape[1]] = valid[:, : tokens.shape[1]]
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)  # the first real token is number 0, wherever it stands
        mask = decoder_only_mask(real, cached=start)
        hidden, _ = model.decode(tokens[:, start:], mask, positions=positions[:, start:], cache=cache)
        return model.embedding.logits(hidden[:, -1])

    return CachedNextLogits(read, model.config.num_layers, beam_size) if cached else lambda tokens: read(tokens, None)


def translate(
    model: Transformer | Sequence[Transformer],
    tokenizer: Tokenizer,
    lines: Sequence[str],
    *,
    beam_size: int = 1,
    length_penalty: float = 1.0,
    max_tokens: int = 4096,
) -> list[str]:
    """Translate lines of text, in batches of similar length; `beam_size` 1 is greedy search.

    A translation has at most one and a half times as many tokens as its source, and ten. `length_penalty` is that of
    `beam_search`. Several models, all with this tokenizer, write together.
    """
    ids = encode(tokenizer, lines)
    max_lens = [len(source) * 3 // 2 + 10 for source in ids]
    settings = {"beam_size": beam_size, "length_penalty": length_penalty, "max_tokens": max_tokens}
    return _write(model, tokenizer, ids, max_lens, **settings)


def summarize(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    source_limit: int = 256,
    max_len: int = 24,
    beam_size: int = 1,
    no_repeat: int | None = None,
    max_tokens: int = 16384,
    build_masks: BuildMasks = seq2seq_masks,
) -> list[str]:
    """Summarize texts in at most `max_len` tokens; of a text the first `source_limit` pieces are read.

    With `no_repeat`, no run of so many tokens is written twice. `max_tokens` bounds texts times tokens of a batch.
    """
    ids = encode(tokenizer, texts, limit=source_limit)
    settings = {"beam_size": beam_size, "max_tokens": max_tokens, "no_repeat": no_repeat, "build_masks": build_masks}
    return _write(model, tokenizer, ids, [max_len] * len(ids), **settings)


@torch.no_grad()
def _write(
    model: Transformer | Sequence[Transformer],
    tokenizer: Tokenizer,
    sources: list[list[int]],
    max_lens: list[int],
    *,
    beam_size: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    no_repeat: int | None = None,
    build_masks: BuildMasks = seq2seq_masks,
) -> list[str]:
    """What the model writes for each source, which has its own `max_lens`: no text depends on its batch."""
    models = [one.eval() for one in ([model] if isinstance(model, torch.nn.Module) else model)]
    device, results = models[0].embedding.weight.device, [""] * len(sources)
    settings = {"beam_size": beam_size, "build_masks": build_masks}
    with tqdm(total=len(sources), desc="writing", leave=False) as bar:
        for group in buckets([len(source) for source in sources], max_tokens // beam_size):
            src, src_valid = (tensor.to(device) for tensor in pad([sources[index] for index in group]))
            scorers = [seq2seq_next_logits(one, src, src_valid, **settings) for one in models]
            next_logits = together(scorers) if len(scorers) > 1 else scorers[0]
            if no_repeat:
                next_logits = no_repeated_ngrams(next_logits, no_repeat)
            max_len = torch.tensor([max_lens[index] for index in group], device=device).repeat_interleave(beam_size)
            start = torch.full((len(max_len), 1), BOS, device=device)
            if beam_size == 1:
                outputs = greedy_search(next_logits, start, max_len)
            else:
                outputs = beam_search(next_logits, start, max_len, beam_size=beam_size, length_penalty=length_penalty)
            for index, text in zip(group, tokenizer.decode_batch(outputs), strict=True):
                results[index] = text
            bar.update(len(group))
    return results
