"""A gallery of mask bugs, each planted in a few lines of a small model that is otherwise right.

Many of them were met in public code, and name the place with thanks; the others are common slips. The lines here are
our own; they rebuild the idea, not the code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.audit.audits import audit_decoder, audit_encoder, audit_seq2seq
from utils.audit.report import Report
from utils.masks import all_of, causal_mask, full_mask, padding_mask, segment_mask

VOCAB = 40


class Tiny(nn.Module):
    """A correct decoder in which every part that a bug can sit in is a method of its own."""

    causal = True
    residual = True
    kind = "decoder"

    def __init__(self, d_model: int = 16, num_heads: int = 2, num_layers: int = 2) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.tokens, self.places = nn.Embedding(VOCAB, d_model), nn.Embedding(128, d_model)
        self.projections = nn.ModuleList(nn.Linear(d_model, 3 * d_model) for _ in range(num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(num_layers))
        self.extra = self.make_extra(d_model)
        self.head = nn.Linear(d_model, VOCAB)

    def make_extra(self, d_model: int) -> nn.Module:
        """Another layer for `mix`, if a model needs one."""
        return nn.Identity()

    def positions(self, valid: Tensor) -> Tensor:
        """0, 1, 2, … for the real tokens, wherever the padding stands."""
        return (valid.cumsum(1) - 1).clamp(min=0)

    def mask(self, valid: Tensor, layer: int) -> Tensor:
        """May attend, [B, 1, L, L]: causal and padding."""
        length = valid.shape[1]
        return all_of(causal_mask(length) if self.causal else full_mask(length), padding_mask(valid))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Scaled dot-product attention, all [B, H, L, Dh]."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def mix(self, x: Tensor, valid: Tensor) -> Tensor:
        """Whatever else happens to the hidden states, [B, L, D]."""
        return x

    def heads(self, x: Tensor, layer: int) -> tuple[Tensor, ...]:
        """Query, key and value, each [B, H, L, Dh]."""
        projected = self.projections[layer](self.norms[layer](x)).chunk(3, dim=-1)
        return tuple(part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in projected)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Logits, [B, L, V]."""
        x = self.tokens(tokens) + self.places(self.positions(valid))
        for layer in range(len(self.projections)):
            mixed = self.attend(*self.heads(x, layer), self.mask(valid, layer)).transpose(1, 2).flatten(2)
            x = x + mixed if self.residual else mixed
        return self.head(self.mix(x, valid))

    def audit(self, **options) -> Report:
        """Audit this model."""
        run = audit_decoder if self.kind == "decoder" else audit_encoder
        return run(self, vocab_size=VOCAB, module=self, **options)


class TinyEncoder(Tiny):
    """A correct encoder: the same without the causal mask."""

    causal = False
    kind = "encoder"


def naive_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, fill: float = -math.inf) -> Tensor:
    """Attention as papers write it: fill the forbidden scores, then softmax."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~mask, fill).softmax(dim=-1) @ value


@dataclass(frozen=True)
class Planted:
    """One planted bug: `model` builds it, `rules` are those that may name it (at least one must), `source` met it."""

    name: str
    model: Callable[[], nn.Module]
    rules: frozenset[str]
    source: str

    def audit(self, **options) -> Report:
        """Audit a fresh copy with fixed weights."""
        torch.manual_seed(0)
        return self.model().audit(**options)


PLANTED: list[Planted] = []


def planted(*rules: str, source: str = "a common slip") -> Callable[[type], type]:
    """Put a model into the gallery; the first line of its docstring is its name."""

    def register(model: type) -> type:
        PLANTED.append(Planted(model.__doc__.splitlines()[0], model, frozenset(rules), source))
        return model

    return register


# --- The future -----------------------------------------------------------------------------------------------


@planted("future-leak")
class NoCausalMask(Tiny):
    """a decoder without a causal mask"""

    causal = False


@planted("future-leak", source="rasbt/LLMs-from-scratch issue 1061, fixed 2026-08-10")
class OnlyTheFuture(Tiny):
    """triu(diagonal=1) given where True means may attend"""

    def mask(self, valid, layer):
        return torch.ones(valid.shape[1], valid.shape[1]).triu(1).bool()[None, None] & padding_mask(valid)


@planted("future-leak")
class OneTooMany(Tiny):
    """tril(diagonal=1): the next token is visible"""

    def mask(self, valid, layer):
        return torch.ones(valid.shape[1], valid.shape[1]).tril(1).bool()[None, None] & padding_mask(valid)


@planted("future-leak", source="pytorch/tutorials, scaled_dot_product_attention_tutorial.py; d2l-en, transformer.md")
class CausalInTraining(Tiny):
    """is_causal only while training"""

    def mask(self, valid, layer):
        return super().mask(valid, layer) if self.training else padding_mask(valid)


@planted("future-leak", source="the mirror of CausalInTraining")
class CausalInEval(Tiny):
    """causal only in eval"""

    def mask(self, valid, layer):
        return padding_mask(valid) if self.training else super().mask(valid, layer)


@planted("future-leak", source="a fast path that reads masks differently, as in nn.MultiheadAttention")
class FastPath(Tiny):
    """the path without gradients forgets the causal mask"""

    def mask(self, valid, layer):
        return super().mask(valid, layer) if torch.is_grad_enabled() else padding_mask(valid)


@planted("future-leak")
class OneHead(Tiny):
    """one head of the second layer sees everything"""

    def mask(self, valid, layer):
        mask = super().mask(valid, layer).repeat(1, 2, 1, 1)
        mask[:, 1] |= (layer == 1) & valid[:, None, :]
        return mask


@planted("future-leak", source="a buffer that was made for shorter sequences")
class BufferTooSmall(Tiny):
    """no causal mask from the 17th position on"""

    def mask(self, valid, layer):
        late = torch.arange(valid.shape[1]) >= 16
        return (causal_mask(valid.shape[1]) | late[:, None]) & padding_mask(valid)


@planted("future-leak", source="a slip at the boundary of two blocks")
class BlockBoundary(Tiny):
    """the last query of each block of 16 sees one key of the next block"""

    def mask(self, valid, layer):
        place = torch.arange(valid.shape[1])
        boundary = (place[:, None] % 16 == 15) & (place == place[:, None] + 1)
        return (causal_mask(valid.shape[1]) | boundary) & padding_mask(valid)


@planted("future-leak")
class PaddingReplacesCausal(Tiny):
    """the padding mask takes the place of the causal one when there is padding"""

    def mask(self, valid, layer):
        return causal_mask(valid.shape[1]) if valid.all() else padding_mask(valid)


@planted("future-leak")
class MeanOfAll(Tiny):
    """a mean over the whole sequence is added"""

    def mix(self, x, valid):
        real = valid[..., None]
        return x + (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)


@planted("future-leak")
class CentredConvolution(Tiny):
    """a convolution that looks one step ahead"""

    def make_extra(self, d_model):
        return nn.Conv1d(d_model, d_model, 3, padding=1)

    def mix(self, x, valid):
        return x + self.extra((x * valid[..., None]).mT).mT


@planted("future-leak")
class NormOverTime(Tiny):
    """BatchNorm over the positions of a decoder"""

    def make_extra(self, d_model):
        return nn.BatchNorm1d(d_model)

    def mix(self, x, valid):
        return self.extra(x.mT).mT


@planted("future-leak")
class KnowsTheLength(Tiny):
    """states are scaled by the length of the sequence"""

    def mix(self, x, valid):
        return x * valid.sum(1).clamp(min=1).sqrt()[:, None, None]


@planted("future-leak")
class FlagsMultiplied(Tiny):
    """scores are multiplied by 0 and 1 before the softmax"""

    def attend(self, query, key, value, mask):
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        return (scores * mask).softmax(-1) @ value


@planted("future-leak", source="diffusers issue 14342")
class FlagsAdded(Tiny):
    """a float mask of 0 and 1 is added to the scores"""

    def attend(self, query, key, value, mask):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype))


@planted("future-leak", source="a step on the way to the right mask in rasbt/LLMs-from-scratch, chapter 3")
class MaskAfterSoftmax(Tiny):
    """weights are zeroed after the softmax: the denominator still sees the future"""

    def attend(self, query, key, value, mask):
        return ((query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) * mask) @ value


class LargeScores(Tiny):
    """A correct model whose scores are large, as those of a trained one can be."""

    fill = -math.inf

    def attend(self, query, key, value, mask):
        """Naive attention with scores of some ten thousands; dead rows give 0."""
        dead = ~mask.any(-1, keepdim=True)
        return naive_attention(20_000 * query, key, value, mask | dead, self.fill).masked_fill(dead, 0.0)


@planted("future-leak", source="transformers PR 17306; ohdearquant/lattice PR 374")
class WeakFill(LargeScores):
    """-1e4 for -inf, with large scores"""

    fill = -1e4


@planted("future-leak", source="transformers PR 17306")
class WeakFillHalf(WeakFill):
    """-1e4 for -inf, with large scores, in bfloat16"""

    def __init__(self):
        super().__init__()
        self.bfloat16()


@planted("future-leak")
class SmallFill(Tiny):
    """-20 for -inf: weights of about 1e-9 remain"""

    def attend(self, query, key, value, mask):
        return naive_attention(query, key, value, mask, fill=-20.0)


@planted("future-leak", "mode-difference", source="pytorch issue 99282")
class WeightsAskedFor(Tiny):
    """asked for its weights, the layer ignores the causal mask"""

    need_weights = False

    def mask(self, valid, layer):
        return padding_mask(valid) if self.need_weights else super().mask(valid, layer)

    def with_weights(self, tokens, valid):
        """The forward that also returns the weights."""
        self.need_weights = True
        out = self(tokens, valid)
        self.need_weights = False
        return out

    def audit(self, **options):
        """Audit both paths."""
        return super().audit(variants={"with weights": self.with_weights}, **options)


# --- Too little is seen -----------------------------------------------------------------------------------------


@planted("dead-connection")
class BlockedDiagonal(Tiny):
    """tril(diagonal=-1), seen where no residual stands beside it"""

    residual = False

    def mask(self, valid, layer):
        strict = torch.ones(valid.shape[1], valid.shape[1]).tril(-1).bool()
        return strict[None, None] & padding_mask(valid)


@planted("future-leak")
class BlockedDiagonalFilled(BlockedDiagonal):
    """tril(diagonal=-1) with -1e9: output 0 takes the mean of all keys"""

    residual = True

    def attend(self, query, key, value, mask):
        return naive_attention(query, key, value, mask, fill=-1e9)


@planted("mode-difference", source="d2l-en, transformer.md: a mask that depends on self.training")
class BlockedDiagonalInEval(Tiny):
    """tril(diagonal=-1) in eval only: a residual hides it, and only the comparison of the modes shows it"""

    def mask(self, valid, layer):
        strict = torch.ones(valid.shape[1], valid.shape[1]).tril(-1).bool()
        return super().mask(valid, layer) & (strict | torch.tensor(self.training))


@planted("dead-connection")
class FirstTokenHidden(Tiny):
    """the first token is hidden from all later ones"""

    def mask(self, valid, layer):
        place = torch.arange(valid.shape[1])
        return super().mask(valid, layer) & ((place > 0) | (place[:, None] == 0))


@planted("dead-connection", source="windows of the wrong size: transformers issues 29623, 39408")
class ShortWindow(Tiny):
    """each layer sees 4 tokens back, the model was meant to see all"""

    def mask(self, valid, layer):
        place = torch.arange(valid.shape[1])
        return super().mask(valid, layer) & (place > place[:, None] - 5)


@planted("dead-connection")
class IgnoresItsInput(Tiny):
    """the output does not depend on the input at all, and passes every leak test"""

    def forward(self, tokens, valid):
        return super().forward(torch.zeros_like(tokens), valid)


@planted("dead-connection")
class CausalEncoder(TinyEncoder):
    """an encoder with a causal mask"""

    causal = True


# --- Padding ----------------------------------------------------------------------------------------------------


@planted("padding-content")
class NoPaddingMask(TinyEncoder):
    """an encoder without a padding mask"""

    def mask(self, valid, layer):
        return full_mask(valid.shape[1])


@planted("padding-content", "dead-connection", source="lucidrains/halonet-pytorch issue 4, fixed 2026")
class InvertedPadding(TinyEncoder):
    """an inverted padding mask: all attention on padding"""

    def mask(self, valid, layer):
        return padding_mask(~valid)


@planted("padding-content", source="a tokenizer's attention_mask as key_padding_mask of nn.MultiheadAttention")
class PaddingFlagsAdded(TinyEncoder):
    """1 for real and 0 for padding, added to the scores"""

    def attend(self, query, key, value, mask):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype))


@planted("padding-content", source="pytorch/audio issue 4205")
class ConvolutionOverPadding(TinyEncoder):
    """a convolution mixes padding into the last real token"""

    def make_extra(self, d_model):
        return nn.Conv1d(d_model, d_model, 3, padding=1)

    def mix(self, x, valid):
        return x + self.extra(x.mT).mT


@planted("padding-content", source="pytorch/audio issue 4205; transformers issue 47739")
class BatchNormOverPadding(TinyEncoder):
    """BatchNorm counts the padding in its mean, in training"""

    def make_extra(self, d_model):
        return nn.BatchNorm1d(d_model)

    def mix(self, x, valid):
        return self.extra(x.mT).mT


@planted("padding-content", source="transformers issue 17463; HazyResearch/m2 issue 43")
class MeanOverPadding(TinyEncoder):
    """a mean over the sequence counts the padding"""

    def mix(self, x, valid):
        return x + x.mean(1, keepdim=True)


@planted("padding-amount", source="transformers issue 17463")
class MeanDividesByAll(TinyEncoder):
    """the padding is zeroed, and the mean still divides by the full length"""

    def mix(self, x, valid):
        return x + (x * valid[..., None]).mean(1, keepdim=True)


@planted("padding-amount")
class ZeroedKeys(TinyEncoder):
    """padded keys and values are zeroed instead of masked"""

    def attend(self, query, key, value, mask):
        keep = mask[..., :1, :].mT
        return F.scaled_dot_product_attention(query, key * keep, value * keep)


@planted("padding-content")
class QueryAxis(TinyEncoder):
    """the padding mask hides the padded queries, not the keys"""

    def mask(self, valid, layer):
        return padding_mask(valid).mT


@planted("padding-content")
class SecondLayerForgets(TinyEncoder):
    """only the first layer gets the padding mask"""

    def mask(self, valid, layer):
        return padding_mask(valid) if layer == 0 else full_mask(valid.shape[1])


@planted("padding-content", source="transformers PR 46773")
class BatchOfOne(TinyEncoder):
    """the padding mask is skipped for a batch of one"""

    def mask(self, valid, layer):
        return padding_mask(valid) if len(valid) > 1 else full_mask(valid.shape[1])


@planted("padding-content")
class LargeBatch(TinyEncoder):
    """the padding mask is skipped for more than four samples"""

    def mask(self, valid, layer):
        return padding_mask(valid) if len(valid) <= 4 else full_mask(valid.shape[1])


@planted("padding-content")
class PaddingBufferTooSmall(TinyEncoder):
    """the buffer of the padding mask holds 16 places; what stands behind them is visible"""

    def mask(self, valid, layer):
        return padding_mask(torch.cat([valid[:, :16], torch.ones_like(valid[:, 16:])], dim=1))


@planted("padding-content", source="a kernel with a backward of its own")
class BackwardForgets(TinyEncoder):
    """the padding mask is known to the forward alone; the gradient flows through the padding"""

    def attend(self, query, key, value, mask):
        unmasked = super().attend(query, key, value, torch.ones_like(mask))
        return unmasked + (super().attend(query, key, value, mask) - unmasked).detach()


@planted("padding-content")
class LeftPaddingSeen(Tiny):
    """causal alone: enough for padding on the right, not on the left"""

    def mask(self, valid, layer):
        return causal_mask(valid.shape[1])


@planted("padding-content", "padding-side")
class LengthsNotFlags(Tiny):
    """the padding mask is made from lengths, as if all padding stood on the right"""

    def mask(self, valid, layer):
        prefix = torch.arange(valid.shape[1]) < valid.sum(1, keepdim=True)
        return all_of(causal_mask(valid.shape[1]), padding_mask(prefix))


@planted("padding-side", source="unslothai/unsloth issue 3699; nnsight issue 672")
class PositionsCountPadding(Tiny):
    """position ids count the padding on the left"""

    def positions(self, valid):
        return torch.arange(valid.shape[1]).expand_as(valid)


@planted("batch-neighbour", source="the [B*H, L, L] masks of nn.MultiheadAttention")
class HeadOrder(TinyEncoder):
    """masks repeated over the heads with repeat instead of repeat_interleave"""

    def mask(self, valid, layer):
        return padding_mask(valid).repeat(self.num_heads, 1, 1, 1).view(len(valid), self.num_heads, 1, -1)


@planted("batch-neighbour")
class FirstSampleForAll(TinyEncoder):
    """the padding mask of the first sample serves the whole batch"""

    def mask(self, valid, layer):
        return padding_mask(valid[:1])


@planted("batch-neighbour")
class EmptyNeighbour(TinyEncoder):
    """one sample of nothing but padding takes the mask from all"""

    def mask(self, valid, layer):
        return padding_mask(valid) if valid.any(dim=1).all() else full_mask(valid.shape[1])


# --- Dead rows --------------------------------------------------------------------------------------------------


@planted("not-finite", source="pytorch issues 41508, 103749")
class NaiveDeadRow(Tiny):
    """a softmax over nothing but -inf, from left padding under causality"""

    def attend(self, query, key, value, mask):
        return naive_attention(query, key, value, mask)


@planted("not-finite")
class BlockedDiagonalNaive(BlockedDiagonal):
    """tril(diagonal=-1) with -inf: output 0 is NaN"""

    residual = True

    def attend(self, query, key, value, mask):
        return naive_attention(query, key, value, mask)


@planted("gradient-not-finite", source="pytorch issue 41508")
class NaNOverwritten(Tiny):
    """NaN is replaced after the softmax: the forward is right, the gradient is NaN"""

    def attend(self, query, key, value, mask):
        added = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
        weights = (query @ key.mT / math.sqrt(query.shape[-1]) + added).softmax(-1)
        return torch.where(weights.isnan(), 0.0, weights) @ value


@planted("not-finite", source="NVIDIA-NeMo/Automodel PR 2658, 2026-06")
class TwoPlanes(TinyEncoder):
    """a plane for padded queries and one for padded keys, both of finfo.min, are added up"""

    def attend(self, query, key, value, mask):
        lowest = torch.finfo(query.dtype).min
        keys = torch.zeros_like(mask[:, :, :1], dtype=query.dtype).masked_fill(~mask[:, :, :1], lowest)
        return (query @ key.mT / math.sqrt(query.shape[-1]) + (keys + keys.mT)).softmax(-1) @ value


# --- Cache and packing ------------------------------------------------------------------------------------------


class TinyCached(Tiny):
    """A correct decoder that can go on from cached keys and values."""

    def step_positions(self, valid: Tensor, new: int) -> Tensor:
        """Positions of the new tokens."""
        return self.positions(valid)[:, -new:]

    def step_mask(self, valid: Tensor, new: int) -> Tensor:
        """The last `new` rows of the full mask, [B, 1, new, L]."""
        return self.mask(valid, 0)[:, :, -new:]

    def step(self, tokens: Tensor, valid: Tensor, cache: list | None) -> tuple[Tensor, list]:
        """Logits of the new tokens, [B, n, V], and the cache with their keys and values."""
        new, extended = tokens.shape[1], []
        x = self.tokens(tokens) + self.places(self.step_positions(valid, new))
        for layer in range(len(self.projections)):
            query, key, value = self.heads(x, layer)
            if cache:
                key, value = torch.cat([cache[layer][0], key], 2), torch.cat([cache[layer][1], value], 2)
            extended.append((key, value))
            x = x + self.attend(query, key, value, self.step_mask(valid, new)).transpose(1, 2).flatten(2)
        return self.head(x), extended

    def audit(self, **options):
        """Audit the cached path as well."""
        return super().audit(step=self.step, **options)


@planted("cache-difference", source="pytorch issue 108108: is_causal is aligned to the top left")
class TopLeftCache(TinyCached):
    """is_causal=True with a cache: new queries are aligned to the first keys"""

    def step_mask(self, valid, new):
        return all_of(causal_mask(new, valid.shape[1]), padding_mask(valid))


@planted("cache-difference", source="transformers: position_ids are not derived from a mask")
class PositionsStartAgain(TinyCached):
    """positions start again at every step"""

    def step_positions(self, valid, new):
        return torch.arange(new).expand(len(valid), -1)


@planted("cache-difference", source="rasbt/LLMs-from-scratch pull request 697")
class MaskCutToNew(TinyCached):
    """the mask is cut to the new tokens: one token sees one key"""

    def step_mask(self, valid, new):
        square = torch.zeros(new, valid.shape[1], dtype=torch.bool)
        square[:, :new] = causal_mask(new)[0, 0]
        return square[None, None] & padding_mask(valid)


@planted("cache-difference")
class ChunkSeesAhead(TinyCached):
    """a chunk of several tokens is decoded without a causal mask inside it"""

    def step_mask(self, valid, new):
        return padding_mask(valid)


@planted("cache-difference", source="a rolling cache that is shorter than what the model sees")
class CacheForgets(TinyCached):
    """the cache keeps 12 tokens and the full pass sees all"""

    def step_mask(self, valid, new):
        return super().step_mask(valid, new) & (torch.arange(valid.shape[1]) >= valid.shape[1] - new - 12)


class TinyPacked(Tiny):
    """A correct decoder that takes documents packed into one row."""

    segments: Tensor | None = None

    def positions(self, valid: Tensor) -> Tensor:
        """0, 1, 2, … in each document."""
        if self.segments is None:
            return super().positions(valid)
        place = torch.arange(valid.shape[1])
        same = self.segments[:, :, None] == self.segments[:, None]  # [B, L, L]
        return place - same.int().argmax(dim=-1)  # the first place of the own document

    def mask(self, valid: Tensor, layer: int) -> Tensor:
        """Causal, padding, and each document for itself."""
        mask = super().mask(valid, layer)
        return mask if self.segments is None else all_of(mask, segment_mask(self.segments))

    def packed(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """Logits of packed documents, [B, L, V]."""
        self.segments = segments
        out = self(tokens, torch.ones_like(tokens, dtype=torch.bool))
        self.segments = None
        return out

    def audit(self, **options):
        """Audit the packed path as well."""
        return super().audit(packed=self.packed, **options)


@planted("packing-leak", source="trl issues 784, 1230, 3067; nanoVLM PR 204")
class PositionsResetOnly(TinyPacked):
    """packed documents: positions start again, and no mask separates them"""

    def mask(self, valid, layer):
        return Tiny.mask(self, valid, layer)


@planted("packing-difference")
class PositionsCountOn(TinyPacked):
    """packed documents: a mask separates them, and positions count on over the row"""

    def positions(self, valid):
        return Tiny.positions(self, valid)


@planted("packing-difference", source="FirstSampleForAll, with packed documents")
class FirstRowForAll(TinyPacked):
    """the boundaries of the first row serve the whole batch"""

    def mask(self, valid, layer):
        mask = Tiny.mask(self, valid, layer)
        return mask if self.segments is None else all_of(mask, segment_mask(self.segments[:1]))


# --- Encoder and decoder ----------------------------------------------------------------------------------------


class TinySeq2Seq(nn.Module):
    """A correct nn.Transformer; its masks are a method, True = blocked as nn.Transformer reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.src, self.tgt, self.places = (nn.Embedding(n, 16) for n in (VOCAB, VOCAB, 128))
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, VOCAB)

    def masks(self, src_valid: Tensor, tgt_valid: Tensor) -> dict[str, Tensor]:
        """The keyword arguments of nn.Transformer that hold masks."""
        return {
            "tgt_mask": ~causal_mask(tgt_valid.shape[1])[0, 0],
            "src_key_padding_mask": ~src_valid,
            "memory_key_padding_mask": ~src_valid,
        }

    def forward(self, src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
        """Logits, [B, Lt, V]."""
        source, target = (
            embed(x) + self.places(torch.arange(x.shape[1])) for embed, x in ((self.src, src), (self.tgt, tgt))
        )
        return self.head(self.transformer(source, target, **self.masks(src_valid, tgt_valid)))

    def audit(self, **options) -> Report:
        """Audit this model. nn.Transformer makes NaN of an empty sample in eval, so none is tried unless asked for."""
        options = {"empty_samples": False} | options
        return audit_seq2seq(self, src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, module=self, **options)


@planted("padding-content", "padding-amount", source="nn.Transformer does not pass src_key_padding_mask on")
class MemoryMaskForgotten(TinySeq2Seq):
    """memory_key_padding_mask forgotten: in eval the nested path hides it from tests of the content"""

    def masks(self, src_valid, tgt_valid):
        return super().masks(src_valid, tgt_valid) | {"memory_key_padding_mask": None}


@planted("padding-content")
class SourceMaskForgotten(TinySeq2Seq):
    """src_key_padding_mask forgotten: the encoder mixes padding into the real source tokens"""

    def masks(self, src_valid, tgt_valid):
        return super().masks(src_valid, tgt_valid) | {"src_key_padding_mask": None}


@planted("future-leak", source="nn.Transformer is not causal by itself")
class TargetNotCausal(TinySeq2Seq):
    """tgt_mask forgotten"""

    def masks(self, src_valid, tgt_valid):
        return super().masks(src_valid, tgt_valid) | {"tgt_mask": None}


def _staircase(queries: int, keys: int) -> Tensor:
    """True = blocked, where key > query: causality, which has no place between target and source."""
    return torch.arange(keys) > torch.arange(queries)[:, None]


@planted(
    "dead-connection", source="Deep Learning Indaba 2022, attention_and_transformers.ipynb; transformers issue 48172"
)
class CausalCross(TinySeq2Seq):
    """the causal mask is passed to cross-attention too"""

    def forward(self, src, src_valid, tgt, tgt_valid):
        self.sizes = tgt.shape[1], src.shape[1]
        return super().forward(src, src_valid, tgt, tgt_valid)

    def masks(self, src_valid, tgt_valid):
        return super().masks(src_valid, tgt_valid) | {"memory_mask": _staircase(*self.sizes)}


@planted(
    "dead-connection",
    "padding-content",
    source="keras-io PR 1046; fchollet/deep-learning-with-python-notebooks issue 209",
)
class TargetPaddingOnSource(TinySeq2Seq):
    """cross-attention gets the target's padding mask, where the lengths agree"""

    def masks(self, src_valid, tgt_valid):
        fits = src_valid.shape == tgt_valid.shape
        return super().masks(src_valid, tgt_valid) | {"memory_key_padding_mask": ~(tgt_valid if fits else src_valid)}


@planted("future-leak", source="CausalInTraining, in an encoder-decoder")
class TargetCausalInTraining(TinySeq2Seq):
    """tgt_mask only while training, as in teacher forcing"""

    def masks(self, src_valid, tgt_valid):
        return super().masks(src_valid, tgt_valid) | ({} if self.training else {"tgt_mask": None})


@planted("padding-content", source="lucidrains/halonet-pytorch issue 4; tensorflow/text issue 938")
class SourcePaddingInverted(TinySeq2Seq):
    """True = real token, where nn.Transformer reads True = padding"""

    def masks(self, src_valid, tgt_valid):
        masks = super().masks(src_valid, tgt_valid)
        some = ~src_valid.all(1, keepdim=True) & src_valid
        return masks | {"src_key_padding_mask": some, "memory_key_padding_mask": some}
