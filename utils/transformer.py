"""Encoder, decoder, encoder-decoder and decoder-only Transformer, and the only place where their masks are built.

The layers are those of Vaswani et al. (2017) with the normalisation in front of each part (Xiong et al., 2020),
dropout where section 5.4 puts it, and one embedding matrix for source, target and output (section 3.4).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from utils.attention import KeyValueCache, MultiHeadAttention
from utils.masks import all_of, causal_mask, padding_mask


class Seq2SeqMasks(NamedTuple):
    """The three masks of an encoder-decoder, each [B, 1, Lq|1, Lk] or None (every key is visible)."""

    encoder_self: Tensor | None
    decoder_self: Tensor | None
    decoder_cross: Tensor | None


class Seq2SeqWeights(NamedTuple):
    """Attention weights of one forward: for each part a tuple with [B, H, Lq, Lk] of every layer."""

    encoder_self: tuple[Tensor, ...]
    decoder_self: tuple[Tensor, ...]
    decoder_cross: tuple[Tensor, ...]


def seq2seq_masks(src_valid: Bool[Tensor, "B Ls"], tgt_valid: Bool[Tensor, "B Lt"], *, cached: int = 0) -> Seq2SeqMasks:
    """Build the masks of an encoder-decoder from the flags of the real tokens.

    encoder_self   source padding                     [B, 1, 1, Ls]
    decoder_self   causal and target padding          [B, 1, Lt, Lt], or [B, 1, Lt - cached, Lt]
    decoder_cross  *source* padding: the keys are the encoder's output, all of it known   [B, 1, 1, Ls]
    """
    source = padding_mask(src_valid)
    target = decoder_only_mask(tgt_valid, cached=cached)
    return Seq2SeqMasks(encoder_self=source, decoder_self=target, decoder_cross=source)


def decoder_only_mask(valid: Bool[Tensor, "B L"], *, cached: int = 0) -> Bool[Tensor, "B 1 Lq L"]:
    """Causal and padding: a real token sees itself and the real tokens before it.

    A padded one sees only the latter, so the row of padding on the left is dead.
    The first `cached` tokens are keys alone: only the other L - cached are queries, each with the row that it has
    in the whole mask.
    """
    causal = causal_mask(valid.shape[1] - cached, query_start=cached, device=valid.device)
    return all_of(causal, padding_mask(valid))


class DecoderCache:
    """What the layers of a decoder keep of the tokens that they have read: Pope et al. (2022), section 2.

    It is only right under a causal mask: then no token is changed by the ones after it. The caches of
    cross-attention hold the source; in a decoder-only model they stay empty.
    """

    def __init__(self, num_layers: int) -> None:
        self.self_attention = [KeyValueCache() for _ in range(num_layers)]
        self.cross_attention = [KeyValueCache() for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """The number of tokens read so far."""
        return self.self_attention[0].length

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        """Let row n go on from what row `rows[n]` has read. Both must have the same source, which stays in place."""
        for cache in self.self_attention:
            cache.reorder(rows)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a Transformer: `d_model` features, `d_ff` in the feed-forward part, `num_layers` of each kind."""

    vocab_size: int
    d_model: int = 128
    num_heads: int = 4
    d_ff: int = 256
    num_layers: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.d_model % 2 or self.d_model % self.num_heads:
            raise ValueError(
                f"d_model = {self.d_model} must be even and a multiple of num_heads = {self.num_heads}; "
                "even, because position encodings are pairs of a sine and a cosine."
            )


class Dropout(nn.Dropout):
    """nn.Dropout with cheaper random numbers on a CPU: 16 bits for each feature, compared with the rate.

    PyTorch's own take an eighth of a training step there (benchmarks/README.md). The rate is cut to a multiple of 2⁻¹⁶.
    """

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Set each feature to 0 with probability `p`, and divide the others by 1 - p; in eval mode return `x`."""
        plain = x.device.type != "cpu" or torch.compiler.is_compiling()  # no compiler takes in what follows
        if plain or not self.training or self.p in (0, 1):
            return super().forward(x)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # 64 bits in a draw
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # from -2¹⁵ to 2¹⁵ - 1
        kept = bits >= int(self.p * 2**16) - 2**15
        return x * (kept.to(x.dtype) / (1 - self.p))


def sinusoids(positions: Int[Tensor, "B L"], d_model: int) -> Float[Tensor, "B L D"]:
    """Position encodings of Vaswani et al. (2017), section 3.5: sines, then cosines, of falling frequency.

    Their order inside a vector differs from the paper (sines first instead of in turns); the model cannot tell.
    """
    steps = torch.arange(0, d_model, 2, device=positions.device)
    angles = positions.unsqueeze(-1) * torch.exp(-math.log(10_000) / d_model * steps)  # [B, L, D/2]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class TokenEmbedding(nn.Module):
    """Token vectors plus position encodings, and the way back from vectors to scores over the vocabulary."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.weight = nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, tokens: Int[Tensor, "B L"], positions: Int[Tensor, "#B L"] | None = None, *, start: int = 0
    ) -> Float[Tensor, "B L D"]:
        """Embed token ids; `positions` is [B|1, L]; by default start, start + 1, … (left padding needs its own)."""
        if positions is None:
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        vectors = nn.functional.embedding(tokens, self.weight) * math.sqrt(self.d_model)
        return self.dropout(vectors + sinusoids(positions, self.d_model).to(vectors.dtype))

    def logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Score every token of the vocabulary by its dot product with the hidden state."""
        return hidden @ self.weight.T


def feed_forward(config: TransformerConfig) -> nn.Sequential:
    """Two linear maps with a ReLU between them, applied to every place alone: section 3.3 of the paper."""
    return nn.Sequential(nn.Linear(config.d_model, config.d_ff), nn.ReLU(), nn.Linear(config.d_ff, config.d_model))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward. With a causal mask the same layer serves a decoder-only model."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.d_model, config.num_heads)
        self.feed_forward = feed_forward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(2))
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        mask: Tensor | None = None,
        *,
        cache: KeyValueCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "B L D"], Tensor | None]:
        """One layer: returns its output and the self-attention weights (None unless asked for)."""
        normed = self.norms[0](x)
        mixed, weights = self.self_attention(normed, normed, mask, cache=cache, need_weights=need_weights)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.feed_forward(self.norms[1](x))), weights


class DecoderLayer(nn.Module):
    """Self-attention over the target, cross-attention to the encoder's output, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.d_model, config.num_heads)
        self.cross_attention = MultiHeadAttention(config.d_model, config.num_heads)
        self.feed_forward = feed_forward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in range(3))
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B Lt D"],
        memory: Float[Tensor, "B Ls D"],
        masks: Seq2SeqMasks,
        *,
        self_cache: KeyValueCache | None = None,
        cross_cache: KeyValueCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "B Lt D"], Tensor | None, Tensor | None]:
        """One layer: returns its output, the self-attention and the cross-attention weights (None unless asked)."""
        normed = self.norms[0](x)
        mixed, self_weights = self.self_attention(
            normed, normed, masks.decoder_self, cache=self_cache, need_weights=need_weights
        )
        x = x + self.dropout(mixed)
        if cross_cache is not None:
            memory = memory[:, cross_cache.length :]  # all of it the first time, nothing later
        mixed, cross_weights = self.cross_attention(
            self.norms[1](x), memory, masks.decoder_cross, cache=cross_cache, need_weights=need_weights
        )
        x = x + self.dropout(mixed)
        return x + self.dropout(self.feed_forward(self.norms[2](x))), self_weights, cross_weights


def _initialise(module: nn.Module) -> None:
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)


class Transformer(nn.Module):
    """The encoder-decoder. It builds no mask by itself: pass `seq2seq_masks(src_valid, tgt_valid)`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.encoder_norm = nn.LayerNorm(config.d_model)
        self.decoder_norm = nn.LayerNorm(config.d_model)
        _initialise(self)

    def forward(
        self, src: Int[Tensor, "B Ls"], tgt: Int[Tensor, "B Lt"], masks: Seq2SeqMasks, *, need_weights: bool = False
    ) -> tuple[Float[Tensor, "B Lt V"], Seq2SeqWeights | None]:
        """Logits over the vocabulary for the token after each target token, and the weights if asked for."""
        memory, encoder_weights = self.encode(src, masks, need_weights=need_weights)
        hidden, self_weights, cross_weights = self.decode(tgt, memory, masks, need_weights=need_weights)
        weights = Seq2SeqWeights(encoder_weights, self_weights, cross_weights) if need_weights else None
        return self.embedding.logits(hidden), weights

    def encode(
        self, src: Int[Tensor, "B Ls"], masks: Seq2SeqMasks, *, need_weights: bool = False
    ) -> tuple[Float[Tensor, "B Ls D"], tuple[Tensor | None, ...]]:
        """Read the source once: the memory that the decoder attends to, and the weights of every layer."""
        x, weights = self.embedding(src), []
        for layer in self.encoder:
            x, layer_weights = layer(x, masks.encoder_self, need_weights=need_weights)
            weights.append(layer_weights)
        return self.encoder_norm(x), tuple(weights)

    def decode(
        self,
        tgt: Int[Tensor, "B Lt"],
        memory: Float[Tensor, "B Ls D"],
        masks: Seq2SeqMasks,
        *,
        cache: DecoderCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "B Lt D"], tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Hidden states of the target (`embedding.logits` scores them), self- and cross-attention weights.

        With a `cache`, `tgt` holds only the tokens after those in the cache, and `masks` has rows for them alone.
        """
        x, weights = self.embedding(tgt, start=cache.length if cache else 0), []
        self_caches = cache.self_attention if cache else [None] * len(self.decoder)
        cross_caches = cache.cross_attention if cache else [None] * len(self.decoder)
        for layer, self_cache, cross_cache in zip(self.decoder, self_caches, cross_caches, strict=True):
            x, *layer_weights = layer(
                x, memory, masks, self_cache=self_cache, cross_cache=cross_cache, need_weights=need_weights
            )
            weights.append(layer_weights)
        self_weights, cross_weights = zip(*weights, strict=True)
        return self.decoder_norm(x), self_weights, cross_weights


class DecoderOnly(nn.Module):
    """A language model: encoder layers under whatever mask it is given. It builds none by itself.

    Pass `decoder_only_mask(valid)`, or any other mask [B|1, H|1, L, L] over `tokens`.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)
        _initialise(self)

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        mask: Tensor | None,
        *,
        positions: Int[Tensor, "#B L"] | None = None,
        cache: DecoderCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "B L V"], tuple[Tensor, ...] | None]:
        """Logits for the token after each token, and the weights of every layer if asked for.

        With a `cache`, `tokens` holds only the tokens after those in the cache, and `mask` has rows for them alone.
        """
        hidden, weights = self.decode(tokens, mask, positions=positions, cache=cache, need_weights=need_weights)
        return self.embedding.logits(hidden), weights if need_weights else None

    def decode(
        self,
        tokens: Int[Tensor, "B L"],
        mask: Tensor | None,
        *,
        positions: Int[Tensor, "#B L"] | None = None,
        cache: DecoderCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "B L D"], tuple[Tensor | None, ...]]:
        """The hidden states that `embedding.logits` scores, and the weights of every layer; all else as in forward."""
        x, weights = self.embedding(tokens, positions, start=cache.length if cache else 0), []
        caches = cache.self_attention if cache else [None] * len(self.layers)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x, layer_weights = layer(x, mask, cache=layer_cache, need_weights=need_weights)
            weights.append(layer_weights)
        return self.norm(x), tuple(weights)
