"""The Transformer against nn.Transformer, and what its masks promise: no future, no padding, in every mode."""

import math
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from utils.audit import audit_decoder
from utils.masks import causal_mask, dead_rows, valid_from_lengths
from utils.transformer import (
    DecoderCache,
    DecoderOnly,
    Dropout,
    Transformer,
    TransformerConfig,
    decoder_only_mask,
    seq2seq_masks,
    sinusoids,
)

CONFIG = TransformerConfig(vocab_size=11, d_model=16, num_heads=2, d_ff=32, num_layers=3)
SRC_VALID = valid_from_lengths(torch.tensor([6, 4, 2]))
TGT_VALID = valid_from_lengths(torch.tensor([3, 5, 4]))
MODELS = pytest.mark.parametrize("kind", [Transformer, DecoderOnly])
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
GRAD = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
BOTH_PATHS = pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "fused"])


def random_model(kind, training=False):
    """In double precision, so that rounding stays far below every effect; biases and norms are not trivial."""
    torch.manual_seed(0)
    model = kind(CONFIG).double().train(training)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return model


def random_tokens(*shape, seed=0):
    return torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def changed(tokens, places):
    """Other tokens where `places` is True."""
    return torch.where(places, (tokens + 1) % CONFIG.vocab_size, tokens)


def translate(model, src, tgt, src_valid=SRC_VALID, tgt_valid=TGT_VALID, *, need_weights=False):
    """Logits; the seed makes two calls in training mode drop the same places."""
    torch.manual_seed(0)
    return model(src, tgt, seq2seq_masks(src_valid, tgt_valid), need_weights=need_weights)[0]


def next_token_logits(model, tokens, need_weights=False):
    """Logits of either kind of model for tokens without padding; a Transformer also gets a source."""
    valid = torch.ones_like(tokens, dtype=torch.bool)
    if isinstance(model, Transformer):
        src = random_tokens(len(tokens), 6, seed=1)
        return translate(model, src, tokens, torch.ones_like(src, dtype=torch.bool), valid, need_weights=need_weights)
    torch.manual_seed(0)
    return model(tokens, decoder_only_mask(valid), need_weights=need_weights)[0]


def moved(before, after):
    """[B, L]: did the logits of this place change by more than rounding?"""
    return (before - after).abs().amax(dim=-1) > 1e-9


# --- masks ---


def test_seq2seq_masks_are_the_loops():
    src_valid, tgt_valid, causal = SRC_VALID.tolist(), TGT_VALID.tolist(), range(5)
    masks = seq2seq_masks(SRC_VALID, TGT_VALID)
    assert masks.encoder_self.tolist() == [[[row]] for row in src_valid]
    assert masks.decoder_cross.tolist() == [[[row]] for row in src_valid]
    expected = [[[[j <= i and row[j] for j in causal] for i in causal]] for row in tgt_valid]
    assert masks.decoder_self.tolist() == expected
    assert decoder_only_mask(TGT_VALID).tolist() == expected


# --- equality with PyTorch ---

RENAMED = {
    "self_attention.in_projection.": "self_attn.in_proj_",
    "self_attention.out_projection.": "self_attn.out_proj.",
    "cross_attention.in_projection.": "multihead_attn.in_proj_",
    "cross_attention.out_projection.": "multihead_attn.out_proj.",
    "feed_forward.0.": "linear1.",
    "feed_forward.2.": "linear2.",
    "norms.0.": "norm1.",
    "norms.1.": "norm2.",
    "norms.2.": "norm3.",
    "encoder.": "encoder.layers.",
    "decoder.": "decoder.layers.",
    "encoder_norm.": "encoder.norm.",
    "decoder_norm.": "decoder.norm.",
}


def pytorch_twin(model):
    """nn.Transformer with the weights of `model`, all but the embedding."""
    layers = CONFIG.num_layers
    twin = nn.Transformer(
        CONFIG.d_model, CONFIG.num_heads, layers, layers, CONFIG.d_ff, 0.0, batch_first=True, norm_first=True
    )
    state = {}
    for name, weight in model.state_dict().items():
        for ours, theirs in RENAMED.items():
            name = name.replace(ours, theirs)
        state[name] = weight
    del state["embedding.weight"]
    twin.double().load_state_dict(state)
    return twin.train(model.training)


@TRAINING
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_transformer_equals_pytorch(training):
    model = random_model(Transformer, training)
    model.embedding.dropout.p = 0.0
    for layer in (*model.encoder, *model.decoder):
        layer.dropout.p = 0.0
    src, tgt = random_tokens(3, 6), random_tokens(3, 5)
    hidden = pytorch_twin(model)(
        model.embedding(src),
        model.embedding(tgt),
        tgt_mask=~causal_mask(5)[0, 0],
        src_key_padding_mask=~SRC_VALID,
        tgt_key_padding_mask=~TGT_VALID,
        memory_key_padding_mask=~SRC_VALID,
    )
    assert_close(translate(model, src, tgt), model.embedding.logits(hidden))


@pytest.mark.parametrize("place", [0, 1, 50])
def test_sinusoids_are_the_formula_of_the_paper(place):
    angles = [place / 10_000 ** (2 * i / 8) for i in range(4)]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert_close(sinusoids(torch.tensor([[place]]), 8)[0, 0], torch.tensor(expected))


def test_an_embedding_is_the_scaled_token_vector_plus_the_sinusoids():
    embedding = random_model(DecoderOnly).embedding
    expected = 4.0 * embedding.weight[7] + sinusoids(torch.tensor([[2]]), 16)[0, 0]  # 4 = sqrt(d_model)
    assert_close(embedding(torch.tensor([[7]]), torch.tensor([[2]]))[0, 0], expected)


def test_positions_count_from_0_by_default():
    model, tokens = random_model(DecoderOnly), random_tokens(2, 4)
    assert_close(model.embedding(tokens), model.embedding(tokens, torch.tensor([[0, 1, 2, 3]])))
    assert not torch.allclose(model.embedding(tokens), model.embedding(tokens, torch.tensor([[1, 2, 3, 4]])))


@MODELS
def test_the_layers_drop_in_training_only(kind):
    model, tokens = random_model(kind, training=True), random_tokens(2, 5)
    model.embedding.dropout.p = 0.0
    in_training = next_token_logits(model, tokens)
    assert not torch.allclose(in_training, next_token_logits(model.eval(), tokens))


# --- the future ---


@MODELS
@TRAINING
@GRAD
@BOTH_PATHS
def test_a_changed_token_moves_itself_and_what_follows_but_nothing_before(kind, training, grad, need_weights):
    model, tokens, length = random_model(kind, training), random_tokens(2, 5), 5
    with nullcontext() if grad else torch.no_grad():
        before = next_token_logits(model, tokens, need_weights)
        for place in range(length):
            after = next_token_logits(model, changed(tokens, torch.arange(length) == place), need_weights)
            assert moved(before, after).tolist() == [[i >= place for i in range(length)]] * 2


@MODELS
@TRAINING
@BOTH_PATHS
def test_no_gradient_flows_to_the_future(kind, training, need_weights):
    model, vectors = random_model(kind, training), []
    model.embedding.register_forward_hook(lambda module, args, output: vectors.append(output))
    logits = next_token_logits(model, random_tokens(1, 5), need_weights)
    for place in range(5):  # the last vectors embedded are those of the target
        (gradient,) = torch.autograd.grad(logits[0, place].square().sum(), vectors[-1], retain_graph=True)
        assert (gradient[0] != 0).any(dim=-1).tolist() == [i <= place for i in range(5)]


# --- padding ---


@TRAINING
@GRAD
@BOTH_PATHS
def test_the_content_of_padding_does_not_matter(training, grad, need_weights):
    model, src, tgt = random_model(Transformer, training), random_tokens(3, 6), random_tokens(3, 5)
    with nullcontext() if grad else torch.no_grad():
        before = translate(model, src, tgt, need_weights=need_weights)
        other_source = translate(model, changed(src, ~SRC_VALID), tgt, need_weights=need_weights)
        other_target = translate(model, src, changed(tgt, ~TGT_VALID), need_weights=need_weights)
    assert not moved(before, other_source).any()
    assert not moved(before, other_target)[TGT_VALID].any()


def test_the_content_of_every_real_source_token_matters():
    model, src, tgt = random_model(Transformer), random_tokens(3, 6), random_tokens(3, 5)
    before = translate(model, src, tgt)
    for place in range(6):
        after = translate(model, changed(src, torch.arange(6) == place), tgt)
        assert torch.equal(moved(before, after), SRC_VALID[:, place, None].expand(-1, 5))


@GRAD
@BOTH_PATHS
def test_the_amount_of_padding_does_not_matter(grad, need_weights):
    model, src, tgt = random_model(Transformer), random_tokens(3, 6), random_tokens(3, 5)
    longer = torch.cat((src, random_tokens(3, 4)), dim=1), torch.cat((tgt, random_tokens(3, 2)), dim=1)
    valid = nn.functional.pad(SRC_VALID, (0, 4)), nn.functional.pad(TGT_VALID, (0, 2))
    with nullcontext() if grad else torch.no_grad():
        before = translate(model, src, tgt, need_weights=need_weights)
        after = translate(model, *longer, *valid, need_weights=need_weights)
    assert not moved(before, after[:, :5])[TGT_VALID].any()


@BOTH_PATHS
def test_a_batch_equals_its_rows_alone(need_weights):
    model, src, tgt = random_model(Transformer), random_tokens(3, 6), random_tokens(3, 5)
    together = translate(model, src, tgt, need_weights=need_weights)
    for b, (src_len, tgt_len) in enumerate(zip(SRC_VALID.sum(1), TGT_VALID.sum(1), strict=True)):
        sentences = src[b : b + 1, :src_len], tgt[b : b + 1, :tgt_len]
        valid = SRC_VALID[b : b + 1, :src_len], TGT_VALID[b : b + 1, :tgt_len]
        assert_close(together[b : b + 1, :tgt_len], translate(model, *sentences, *valid, need_weights=need_weights))


@BOTH_PATHS
def test_left_padding_with_its_own_positions_equals_right_padding(need_weights):
    model, tokens = random_model(DecoderOnly), random_tokens(3, 5)
    right, _ = model(tokens, decoder_only_mask(TGT_VALID), need_weights=need_weights)
    valid = TGT_VALID.flip(1)
    left_tokens = torch.zeros_like(tokens).masked_scatter(valid, tokens[TGT_VALID])
    positions = (valid.cumsum(1) - 1).clamp(min=0)
    left, _ = model(left_tokens, decoder_only_mask(valid), positions=positions, need_weights=need_weights)
    assert_close(left[valid], right[TGT_VALID])


@BOTH_PATHS
def test_dead_rows_leave_logits_and_gradients_finite(need_weights):
    """The first sample has no real source token at all; the target is padded on the left."""
    model, src, tgt = random_model(Transformer), random_tokens(2, 3), random_tokens(2, 4)
    src_valid, tgt_valid = valid_from_lengths(torch.tensor([0, 3])), valid_from_lengths(torch.tensor([2, 4])).flip(1)
    logits = translate(model, src, tgt, src_valid, tgt_valid, need_weights=need_weights)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# --- the cache ---

CHUNKS = pytest.mark.parametrize("chunks", [[1] * 5, [3, 1, 1], [2, 3], [1, 4], [5]], ids=str)


@pytest.mark.parametrize("cached", range(5))
def test_the_mask_of_the_new_tokens_is_their_rows_of_the_whole(cached):
    whole, rows = seq2seq_masks(SRC_VALID, TGT_VALID), seq2seq_masks(SRC_VALID, TGT_VALID, cached=cached)
    assert torch.equal(rows.decoder_self, whole.decoder_self[:, :, cached:])
    assert torch.equal(rows.decoder_cross, whole.decoder_cross)
    if cached == 4:  # the newest token may attend to every real one
        assert torch.equal(rows.decoder_self[:, 0, 0], TGT_VALID)


def read_in_chunks(
    model, tokens, valid, chunks, mask_of=decoder_only_mask, positions_of=lambda valid: valid.cumsum(1) - 1
):
    """Logits of a decoder-only model that reads so many tokens at a time."""
    cache, logits = DecoderCache(CONFIG.num_layers), []
    positions = positions_of(valid).clamp(min=0)
    for chunk in tokens.split(chunks, dim=1):
        start, stop = cache.length, cache.length + chunk.shape[1]
        mask = mask_of(valid[:, :stop], cached=start)
        logits.append(model(chunk, mask, positions=positions[:, start:stop], cache=cache)[0])
    return torch.cat(logits, dim=1)


@CHUNKS
@pytest.mark.parametrize("valid", [torch.ones_like(TGT_VALID), TGT_VALID.flip(1)], ids=["bare", "left"])
def test_a_decoder_only_model_reads_chunks_as_it_reads_the_whole(chunks, valid):
    model, tokens = random_model(DecoderOnly), random_tokens(3, 5)
    positions = (valid.cumsum(1) - 1).clamp(min=0)
    whole, _ = model(tokens, decoder_only_mask(valid), positions=positions)
    assert_close(read_in_chunks(model, tokens, valid, chunks)[valid], whole[valid])


@CHUNKS
def test_a_decoder_reads_chunks_as_it_reads_the_whole_and_the_source_once(chunks):
    model, src, tgt, valid = (
        random_model(Transformer),
        random_tokens(3, 6),
        random_tokens(3, 5),
        torch.ones(3, 5).bool(),
    )
    memory, _ = model.encode(src, seq2seq_masks(SRC_VALID, valid))
    whole, _, _ = model.decode(tgt, memory, seq2seq_masks(SRC_VALID, valid))
    cache, hidden = DecoderCache(CONFIG.num_layers), []
    for chunk in tgt.split(chunks, dim=1):
        stop = cache.length + chunk.shape[1]
        masks = seq2seq_masks(SRC_VALID, valid[:, :stop], cached=cache.length)
        hidden.append(model.decode(chunk, memory, masks, cache=cache)[0])
    assert_close(torch.cat(hidden, dim=1), whole)
    assert [layer.length for layer in cache.cross_attention] == [6] * CONFIG.num_layers


def test_positions_count_on_from_the_cache_by_default():
    model, tokens, cache = random_model(DecoderOnly), random_tokens(3, 5), DecoderCache(CONFIG.num_layers)
    whole, _ = model(tokens, causal_mask(5))
    model(tokens[:, :3], causal_mask(3), cache=cache)
    assert_close(model(tokens[:, 3:], causal_mask(2, query_start=3), cache=cache)[0], whole[:, 3:])


def aligned_to_the_first_key(valid, *, cached):
    """The bug of is_causal=True: the rows of the first queries in place of the last ones."""
    return decoder_only_mask(valid)[:, :, : valid.shape[1] - cached]


def places_in_the_chunk(valid):
    """The bug of positions that count padding."""
    return torch.arange(valid.shape[1]).expand(valid.shape)


@pytest.mark.parametrize(
    "bug", [{"mask_of": aligned_to_the_first_key}, {"positions_of": places_in_the_chunk}], ids=["mask", "positions"]
)
def test_a_wrong_row_or_position_is_seen(bug):
    model, tokens, valid = random_model(DecoderOnly), random_tokens(3, 5), TGT_VALID.flip(1)
    right, wrong = (read_in_chunks(model, tokens, valid, [3, 1, 1], **bugs) for bugs in ({}, bug))
    assert moved(right, wrong)[valid].any()


def test_the_audit_finds_nothing_wrong_with_the_cache():
    model = random_model(DecoderOnly)

    def forward(tokens, valid):
        return model(tokens, decoder_only_mask(valid), positions=(valid.cumsum(1) - 1).clamp(min=0))[0]

    def step(tokens, valid, cache):
        cache = cache or DecoderCache(CONFIG.num_layers)
        positions = (valid.cumsum(1) - 1).clamp(min=0)[:, cache.length :]
        logits, _ = model(tokens, decoder_only_mask(valid, cached=cache.length), positions=positions, cache=cache)
        return logits, cache

    assert not audit_decoder(forward, vocab_size=CONFIG.vocab_size, module=model, step=step, lengths=(1, 2, 5, 9))


# --- weights ---


@TRAINING
def test_the_logits_are_the_same_with_and_without_the_weights(training):
    model, src, tgt = random_model(Transformer, training), random_tokens(3, 6), random_tokens(3, 5)
    assert_close(translate(model, src, tgt, need_weights=True), translate(model, src, tgt))
    decoder = random_model(DecoderOnly, training)
    assert_close(next_token_logits(decoder, tgt, need_weights=True), next_token_logits(decoder, tgt))


def assert_weights_obey(weights, mask, shape):
    """In every layer: exactly 0 where the mask is False, more than 0 where it is True, rows that sum to 1."""
    assert len(weights) == CONFIG.num_layers
    for layer in weights:
        assert layer.shape == shape
        assert torch.equal(layer != 0, mask.expand(shape))
        assert_close(layer.sum(dim=-1), (~dead_rows(mask)).double().expand(shape[:-1]))


@TRAINING
@pytest.mark.parametrize(
    ("part", "query_len", "key_len"), [("encoder_self", 6, 6), ("decoder_self", 5, 5), ("decoder_cross", 5, 6)]
)
def test_the_weights_of_every_layer_obey_the_mask_of_their_part(part, query_len, key_len, training):
    model, masks = random_model(Transformer, training), seq2seq_masks(SRC_VALID, TGT_VALID)
    _, weights = model(random_tokens(3, 6), random_tokens(3, 5), masks, need_weights=True)
    assert_weights_obey(getattr(weights, part), getattr(masks, part), (3, CONFIG.num_heads, query_len, key_len))


@TRAINING
def test_the_weights_of_every_decoder_only_layer_obey_its_mask(training):
    model, mask = random_model(DecoderOnly, training), decoder_only_mask(TGT_VALID.flip(1))
    _, weights = model(random_tokens(3, 5), mask, need_weights=True)
    assert_weights_obey(weights, mask, (3, CONFIG.num_heads, 5, 5))


def test_without_need_weights_there_are_none():
    tokens, masks = random_tokens(3, 5), seq2seq_masks(TGT_VALID, TGT_VALID)
    assert random_model(Transformer)(tokens, tokens, masks)[1] is None
    assert random_model(DecoderOnly)(tokens, masks.decoder_self)[1] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 99, dtype=dtype, requires_grad=True)
    once, twice = (Dropout(0.3)(x) for _ in range(2))
    assert once.dtype == dtype and not torch.equal(once, twice)
    kept = once != 0
    for lane in range(4):  # four features share a draw: each of them must have the rate
        assert abs(kept.flatten()[lane::4].float().mean() - 0.7) < 0.01
    pairs = kept.flatten()[: 1001 * 96].view(-1, 4).float()
    assert (torch.corrcoef(pairs.T) - torch.eye(4)).abs().max() < 0.03
    assert_close(once[kept], torch.full_like(once[kept], 1 / 0.7))
    once.sum().backward()
    assert_close(x.grad, once)


def test_dropout_can_be_compiled_as_a_whole():
    """In a process of its own, because checking the shapes, as these tests do, cannot be compiled."""
    code = (
        "import torch; from utils.transformer import Dropout; "
        "compiled = torch.compile(Dropout(0.3), backend='eager', fullgraph=True); "
        "assert (compiled(torch.ones(1000)) == 0).any()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.3, False), (1.0, True)])
def test_dropout_at_its_ends_and_in_eval_mode(rate, training):
    x = torch.randn(3, 5)
    assert torch.equal(Dropout(rate).train(training)(x), torch.zeros(3, 5) if rate == 1 else x)
