"""Correct models, in which an audit must find nothing: our own, and PyTorch's when they are called correctly."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from utils.audit import Report, audit_decoder, audit_encoder, audit_seq2seq, gallery
from utils.conventions import to_additive
from utils.masks import all_of, causal_mask, local_mask, padding_mask, prefix_mask
from utils.transformer import DecoderOnly, Transformer, TransformerConfig, decoder_only_mask, seq2seq_masks

VOCAB = 40
LENGTHS = (1, 2, 3, 5, 8, 12, 17, 33)  # enough for layers that treat every length alike
SIZES = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "batch_first": True}
CONFIG = TransformerConfig(vocab_size=VOCAB, d_model=16, num_heads=2, d_ff=32, num_layers=2)


class Embedded(nn.Module):
    """Tokens in, logits out; `body(x, valid)` is what stands between."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(VOCAB, 16), nn.Embedding(128, 16), nn.Linear(16, VOCAB)
        self.layer, self.call = layer, call

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        positions = (valid.cumsum(1) - 1).clamp(min=0)
        return self.head(self.call(self.layer, self.tokens(tokens) + self.places(positions), valid))


class CausalConvolution(gallery.Tiny):
    """A convolution over the past alone, with the padding set to 0."""

    def make_extra(self, d_model: int) -> nn.Module:
        return nn.Conv1d(d_model, d_model, 3)

    def mix(self, x: Tensor, valid: Tensor) -> Tensor:
        return x + self.extra(nn.functional.pad((x * valid[..., None]).mT, (2, 0))).mT


class RunningMean(gallery.Tiny):
    """A mean of the real tokens so far."""

    def mix(self, x: Tensor, valid: Tensor) -> Tensor:
        return x + (x * valid[..., None]).cumsum(1) / valid.cumsum(1).clamp(min=1)[..., None]


class Additive(gallery.Tiny):
    """A float32 mask that is added, in whatever type the model computes."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=to_additive(mask))


class ReturnsFloat32(gallery.Tiny):
    """Half precision inside, float32 outside."""

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        return super().forward(tokens, valid).float()


class Autocast(gallery.Tiny):
    """Parameters in float32, matrix products in bfloat16."""

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(tokens, valid).float()


class Fading(gallery.Tiny):
    """The past fades, as in a recurrent net: after 60 tokens it is below the rounding of float32."""

    def mix(self, x: Tensor, valid: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        decay = (0.7 ** (place[:, None] - place)).tril().to(x.dtype)  # [L, L]
        return decay @ (x * valid[..., None])

    def mask(self, valid: Tensor, layer: int) -> Tensor:
        return all_of(local_mask(valid.shape[1], back=0), padding_mask(valid))


class Float32Attention(gallery.Tiny):
    """Attention in float32, whatever the rest computes in."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return gallery.naive_attention(query.float(), key.float(), value.float(), mask, -1e30).to(query.dtype)


class WritesIntoPadding(gallery.Tiny):
    """Puts a token of its own at the padding, in place."""

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        return super().forward(tokens.masked_fill_(~valid, 0), valid)


class TakesNoPadding(gallery.TinyCached):
    """A decoder that refuses padding."""

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        assert valid.all()
        return super().forward(tokens, valid)


class WithDropout(gallery.Tiny):
    """Dropout in three spellings: a module, a rate that is passed to a function, and one that stands in the call."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = 0.5

    def make_extra(self, d_model: int) -> nn.Module:
        return nn.Dropout(0.5)

    def mix(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.extra(nn.functional.dropout(x, self.dropout, self.training))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        rate = 0.1 if self.training else 0.0
        output = nn.functional.scaled_dot_product_attention(query, key, value, mask, rate)
        return nn.functional.dropout(output, 0.1, self.training)


class Forbids(gallery.Tiny):
    """Scores of special tokens that are always the same low number, so that no one draws them."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        return super().forward(tokens, valid).index_fill(-1, torch.tensor([0, 1, 3]), self.fill)


def ours() -> Iterator[tuple[str, Callable[[], Report]]]:
    """Our own models, and the sound ones of the gallery."""
    for model in (
        gallery.Tiny,
        gallery.TinyEncoder,
        gallery.TinyCached,
        gallery.TinyPacked,
        gallery.TinySeq2Seq,
        CausalConvolution,
        RunningMean,
        WithDropout,
        Additive,
        Autocast,
        Fading,
        Float32Attention,
        WritesIntoPadding,
    ):
        yield model.__name__, lambda model=model: model().audit()
    for fill in (-torch.inf, -1e9):
        yield f"tokens forbidden by {fill:g}", lambda fill=fill: Forbids(fill).audit()
    yield "bfloat16 that returns float32", lambda: ReturnsFloat32().bfloat16().audit()
    yield "without padding, with a cache", lambda: TakesNoPadding().audit(padded=False)
    yield "Tiny in bfloat16", lambda: gallery.Tiny().bfloat16().audit()
    yield "Tiny in float64", lambda: gallery.Tiny().double().audit()
    yield "Tiny without a module", lambda: audit_decoder(gallery.Tiny().eval(), vocab_size=VOCAB)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        yield kind.__name__, lambda kind=kind: _recurrent(kind, given=True)
        yield f"{kind.__name__} without a module", lambda kind=kind: _recurrent(kind, given=False)
    for need_weights in (False, True):
        yield f"DecoderOnly, need_weights={need_weights}", lambda w=need_weights: _decoder_only(need_weights=w)
    for name, mask, allowed in (
        ("window", lambda n: local_mask(n, back=2), lambda n: local_mask(n, back=4)),  # two layers double the window
        ("prefix", lambda n: prefix_mask(n, 3), lambda n: prefix_mask(n, 3)),
    ):
        yield f"DecoderOnly, {name}", lambda m=mask, a=allowed: _decoder_only(mask=m, allowed=a)
    for need_weights in (False, True):
        yield f"Transformer, need_weights={need_weights}", lambda w=need_weights: _transformer(w)


def _decoder_only(need_weights: bool = False, mask: Callable | None = None, **options) -> Report:
    model = DecoderOnly(CONFIG)

    def forward(tokens: Tensor, valid: Tensor) -> Tensor:
        visible = all_of(mask(tokens.shape[1]), padding_mask(valid)) if mask else decoder_only_mask(valid)
        positions = (valid.cumsum(1) - 1).clamp(min=0)
        return model(tokens, visible, positions=positions, need_weights=need_weights)[0]

    # A prefix counts places, so padding on the left moves it.
    return audit_decoder(
        forward, vocab_size=VOCAB, module=model, sides=("right",) if mask else ("right", "left"), **options
    )


def _recurrent(kind: type[nn.Module], given: bool) -> Report:
    """What lies 60 steps back has faded below every rounding of a difference."""
    model = Embedded(kind(16, 16, batch_first=True), lambda layer, x, _: layer(x)[0])
    return audit_decoder(model, vocab_size=VOCAB, module=model if given else None, sides="right")


def _transformer(need_weights: bool) -> Report:
    model = Transformer(CONFIG)

    def forward(src: Tensor, src_valid: Tensor, tgt: Tensor, tgt_valid: Tensor) -> Tensor:
        return model(src, tgt, seq2seq_masks(src_valid, tgt_valid), need_weights=need_weights)[0]

    return audit_seq2seq(forward, src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, module=model, lengths=LENGTHS)


def pytorch() -> Iterator[tuple[str, Callable[[], Report]]]:
    """PyTorch's layers in their spellings, never with an empty sample, of which some of them make NaN in eval."""
    for norm_first in (False, True):
        for activation in ("relu", "gelu"):
            options = {"norm_first": norm_first, "activation": activation}
            name = ", ".join(f"{key}={value}" for key, value in options.items())
            for additive in (False, True):
                kind = f"{name}, {'float' if additive else 'boolean'} masks"
                yield f"TransformerEncoder, {kind}", lambda o=options, a=additive: _encoder(a, o)
                yield f"TransformerEncoder, causal, {kind}", lambda o=options, a=additive: _encoder(a, o, causal=True)
                yield f"Transformer, {kind}", lambda o=options, a=additive: _nn_transformer(a, o)
    yield "TransformerEncoder, no nested tensors", lambda: _encoder(False, {}, enable_nested_tensor=False)


def spell(blocked: Tensor, additive: bool) -> Tensor:
    """True = blocked, as it is or as 0/-inf."""
    return torch.zeros(blocked.shape).masked_fill(blocked, float("-inf")) if additive else blocked


def _encoder(additive: bool, options: dict, causal: bool = False, **outer) -> Report:
    def call(layer: nn.Module, x: Tensor, valid: Tensor) -> Tensor:
        dtype = {"src_key_padding_mask": spell(~valid, additive).to(x.dtype if additive else torch.bool)}
        square = spell(~causal_mask(x.shape[1])[0, 0], additive).to(x.dtype if additive else torch.bool)
        return layer(x, mask=square if causal else None, is_causal=causal, **dtype)

    model = Embedded(nn.TransformerEncoder(nn.TransformerEncoderLayer(**SIZES, **options), 2, **outer), call)
    run = audit_decoder if causal else audit_encoder
    return run(model, vocab_size=VOCAB, module=model, sides=("right",), lengths=LENGTHS, empty_samples=False)


def _nn_transformer(additive: bool, options: dict) -> Report:
    class Model(gallery.TinySeq2Seq):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **SIZES, **options)

        def masks(self, src_valid: Tensor, tgt_valid: Tensor) -> dict[str, Tensor]:
            masks = super().masks(src_valid, tgt_valid)
            dtype = self.head.weight.dtype if additive else torch.bool
            return {name: spell(mask, additive).to(dtype) for name, mask in masks.items()} | {"tgt_is_causal": True}

    return Model().audit(lengths=LENGTHS)


CORRECT = dict([*ours(), *pytorch()])
