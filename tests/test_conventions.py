"""The same mask through other libraries: there and back, and equal to the attention of this package."""

import os
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.testing import assert_close

from utils.attention import attention
from utils.conventions import (
    from_additive,
    from_hugging_face,
    from_keras,
    from_key_padding,
    from_mask_mod,
    from_multihead,
    to_additive,
    to_hugging_face,
    to_keras,
    to_key_padding,
    to_lengths,
    to_mask_mod,
    to_multihead,
)
from utils.masks import all_of, causal_mask, full_mask, padding_mask, valid_from_lengths

B, H, LQ, LK, HEAD_DIM = 2, 3, 4, 5, 8
D_MODEL = H * HEAD_DIM
VALID = torch.tensor([[True, True, True, True, True], [True, False, True, False, False]])
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def random_mask(*shape):
    """A mask without structure, so that a mixed-up axis shows; every query sees at least key 0."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[..., 0] = True
    return mask


MASK = random_mask(B, H, LQ, LK)
BROADCAST_SHAPES = list(product((1, B), (1, H), (1, LQ), (LK,)))


# --- additive: 0 / -inf ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_additive_and_back(dtype):
    additive = to_additive(MASK, dtype)
    assert additive.dtype == dtype
    assert additive.flatten().tolist() == [0.0 if visible else float("-inf") for visible in MASK.flatten().tolist()]
    assert torch.equal(from_additive(additive), MASK)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_lowest_finite_number_counts_as_blocked(dtype):
    lowest = to_additive(MASK, dtype).clamp(min=torch.finfo(dtype).min)
    assert torch.equal(from_additive(lowest), MASK)


def test_adding_it_before_the_softmax_is_the_boolean_mask():
    query, key, value = (torch.randn(B, H, length, HEAD_DIM) for length in (LQ, LK, LK))
    scores = query @ key.mT / HEAD_DIM**0.5 + to_additive(MASK)
    assert_close(torch.softmax(scores, dim=-1) @ value, attention(query, key, value, MASK)[0])


# --- nn.MultiheadAttention ---


def test_multihead_blocks_by_true_and_puts_the_heads_of_a_sample_side_by_side():
    blocked = to_multihead(MASK, H)
    assert blocked.shape == (B * H, LQ, LK)
    for b, h in product(range(B), range(H)):
        assert torch.equal(blocked[b * H + h], ~MASK[b, h])


def test_multihead_and_back():
    assert torch.equal(from_multihead(to_multihead(MASK, H), H), MASK)
    assert torch.equal(from_multihead(to_multihead(MASK[:, :1], H), H), MASK[:, :1].expand(-1, H, -1, -1))


def identity_multihead():
    """nn.MultiheadAttention whose projections do nothing, so that it is attention on the split features."""
    module = nn.MultiheadAttention(D_MODEL, H, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(D_MODEL).repeat(3, 1))
        module.out_proj.weight.copy_(torch.eye(D_MODEL))
    return module


def assert_multihead_equals(mask, **masks):
    """nn.MultiheadAttention with its own spelling of the mask gives our attention, weights and gradients."""
    torch.manual_seed(0)
    inputs = [torch.randn(B, length, D_MODEL, dtype=torch.float64, requires_grad=True) for length in (LQ, LK, LK)]
    output, weights = identity_multihead()(*inputs, average_attn_weights=False, **masks)
    ours, our_weights = attention(*(x.unflatten(-1, (H, HEAD_DIM)).transpose(1, 2) for x in inputs), mask)
    ours = ours.transpose(1, 2).flatten(2)
    assert_close(weights, our_weights)
    assert_close(output, ours)
    probe = torch.randn_like(output)
    assert_close(torch.autograd.grad(output, inputs, probe), torch.autograd.grad(ours, inputs, probe))


def test_multihead_attention_with_a_mask_for_each_head():
    assert_multihead_equals(MASK, attn_mask=to_multihead(MASK, H))


def test_multihead_attention_with_one_mask_for_all_heads():
    mask = random_mask(B, 1, LQ, LK)
    assert_multihead_equals(mask, attn_mask=to_multihead(mask, H))


def test_multihead_attention_with_key_padding():
    assert_multihead_equals(padding_mask(VALID), key_padding_mask=to_key_padding(VALID))


# --- nn.Transformer ---


def test_transformer_encoder_layer_with_key_padding_is_the_same_as_with_the_padding_mask():
    """Two spellings of one padding mask; `src_mask` is [B * H, L, L], `src_key_padding_mask` is [B, L]."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D_MODEL, H, 16, dropout=0.0, batch_first=True)
    x = torch.randn(B, LK, D_MODEL)
    by_mask = layer(x, src_mask=to_multihead(padding_mask(VALID).expand(-1, -1, LK, -1), H))
    assert_close(layer(x, src_key_padding_mask=to_key_padding(VALID)), by_mask)


def test_transformer_with_key_padding_equals_the_shorter_sentence():
    """Padding that nn.Transformer is told of through `to_key_padding` is as good as deleted."""
    torch.manual_seed(0)
    model = nn.Transformer(D_MODEL, 2, 1, 1, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    src, tgt = (torch.randn(B, length, D_MODEL, dtype=torch.float64) for length in (LK, LQ))
    lengths = torch.tensor([LK, 2])
    padding = to_key_padding(valid_from_lengths(lengths))
    output = model(src, tgt, src_key_padding_mask=padding, memory_key_padding_mask=padding)
    for b, length in enumerate(lengths):
        assert_close(output[b : b + 1], model(src[b : b + 1, :length], tgt[b : b + 1]))


def test_key_padding_and_back():
    padding = to_key_padding(VALID)
    assert padding.flatten().tolist() == [not real for real in VALID.flatten().tolist()]
    assert torch.equal(from_key_padding(padding), VALID)


# --- Hugging Face ---


def test_hugging_face_and_back():
    attention_mask = to_hugging_face(VALID)
    assert attention_mask.dtype == torch.int64
    assert attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32):
        assert torch.equal(from_hugging_face(attention_mask.to(dtype)), VALID)


# --- Keras ---


def test_keras_and_back():
    for shape in [(B, 1, LQ, LK), (1, 1, LQ, LK), (B, 1, 1, LK)]:
        mask = random_mask(*shape)
        assert to_keras(mask).shape == (shape[0], *shape[2:])
        assert torch.equal(from_keras(to_keras(mask)), mask)


@pytest.fixture(scope="module")
def keras():
    """Keras on PyTorch. The backend is read once, at the import."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    return keras


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("shape", [(B, 1, LQ, LK), (1, 1, LQ, LK), (B, 1, 1, LK)], ids=str)
def test_keras_attention_equals_our_attention(keras, shape):
    torch.manual_seed(0)
    query, key, value = (torch.randn(B, H, length, HEAD_DIM) for length in (LQ, LK, LK))
    mask = random_mask(*shape)
    layer = keras.layers.MultiHeadAttention(H, HEAD_DIM, use_bias=False)
    merged = {name: x.mT.flatten(1, 2).mT for name, x in (("query", query), ("key", key), ("value", value))}
    layer.build(*(merged[name].shape for name in ("query", "value", "key")))
    layer.set_weights([torch.eye(D_MODEL).reshape(w.shape).numpy() for w in layer.get_weights()])
    output = layer(**merged, attention_mask=to_keras(mask))
    assert_close(output.unflatten(-1, (H, HEAD_DIM)).transpose(1, 2), attention(query, key, value, mask)[0])


# --- JAX ---


def test_lengths_and_back():
    lengths = torch.tensor([0, 1, 3, LK], dtype=torch.int32)
    assert_close(to_lengths(valid_from_lengths(lengths, LK)), lengths)


@pytest.fixture
def jax_attention():
    """jax.nn.dot_product_attention on tensors [B, H, L, Dh]; JAX has the heads behind the length."""
    import jax

    def call(query, key, value, **masks):
        inputs = [jax.numpy.asarray(x.transpose(1, 2).numpy()) for x in (query, key, value)]
        masks = {name: jax.numpy.asarray(mask.numpy()) for name, mask in masks.items()}
        output = jax.nn.dot_product_attention(*inputs, **masks)
        return torch.tensor(output.__array__()).transpose(1, 2)

    return call


def test_jax_takes_our_mask_as_it_is(jax_attention):
    torch.manual_seed(0)
    query, key, value = (torch.randn(B, H, length, HEAD_DIM) for length in (LQ, LK, LK))
    assert_close(jax_attention(query, key, value, mask=MASK), attention(query, key, value, MASK)[0])


def test_lengths_are_the_padding_of_jax(jax_attention):
    torch.manual_seed(0)
    query, key, value = (torch.randn(B, H, length, HEAD_DIM) for length in (LQ, LK, LK))
    valid = valid_from_lengths(torch.tensor([LK, 2]))
    by_lengths = jax_attention(query, key, value, key_value_seq_lengths=to_lengths(valid))
    assert_close(by_lengths, attention(query, key, value, padding_mask(valid))[0])


# --- FlexAttention ---


@pytest.mark.parametrize("shape", BROADCAST_SHAPES, ids=str)
def test_mask_mod_and_back(shape):
    mask = random_mask(*shape)
    assert torch.equal(from_mask_mod(to_mask_mod(mask), B, H, LQ, LK), mask.expand(B, H, LQ, LK))


def test_a_mask_mod_of_flex_attention_becomes_our_mask():
    mask = from_mask_mod(lambda b, h, q_idx, kv_idx: q_idx + h >= kv_idx, 1, 2, 3, 4)
    assert torch.equal(mask, torch.cat([causal_mask(3, 4), causal_mask(3, 4, query_start=1)], dim=1))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shape", BROADCAST_SHAPES, ids=str)
def test_flex_attention_equals_our_attention(shape):
    """Forward only: FlexAttention has no backward on the CPU."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(B, H, length, HEAD_DIM) for length in (LQ, LK, LK))
    mask = random_mask(*shape)
    if shape[2] > 1:
        mask[:, :, -1] = False  # a dead row
    block_mask = create_block_mask(to_mask_mod(mask), B, H, LQ, LK, device="cpu")
    assert_close(flex_attention(query, key, value, block_mask=block_mask), attention(query, key, value, mask)[0])


# --- errors ---


@pytest.mark.usefixtures("raw_errors")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: to_additive(VALID), ValueError, r"mask has shape \[2, 5\]; expected 4 dimensions"),
        (lambda: to_additive(MASK.float()), TypeError, "mask has dtype torch.float32; expected torch.bool"),
        (lambda: from_additive(MASK.float()), ValueError, "0 .* and -inf .*, but here is 1. .*1/0 flags"),
        (lambda: from_additive(torch.full((1, 1, 1, 2), -1e4)), ValueError, "here is -10000"),
        (lambda: from_additive(MASK), TypeError, "the floats 0 and -inf, not torch.bool"),
        (lambda: to_key_padding(VALID.long()), TypeError, r"valid has dtype torch.int64; .* valid.bool\(\)"),
        (lambda: from_key_padding(VALID.long()), TypeError, "mask has dtype torch.int64"),
        (lambda: from_multihead(to_multihead(MASK, H).to(torch.uint8), H), TypeError, "mask has dtype torch.uint8"),
        (lambda: from_additive(torch.full((1, 1, 1, 2), float("nan"))), ValueError, "here is nan"),
        (lambda: to_multihead(MASK, 4), ValueError, "mask has 3 heads; expected 1 or num_heads = 4"),
        (lambda: to_multihead(MASK[0], 3), ValueError, r"mask has shape \[3, 4, 5\]; expected 4 dimensions"),
        (lambda: from_multihead(to_multihead(MASK, H), 4), ValueError, r"shape \[6, 4, 5\]; expected .* num_heads = 4"),
        (lambda: from_multihead(MASK, 1), ValueError, r"shape \[2, 3, 4, 5\]; expected \[B\*H, Lq, Lk\]"),
        (lambda: from_hugging_face(torch.tensor([[1, 2]])), ValueError, "values from 1 to 2"),
        (lambda: from_hugging_face(torch.tensor([1, 0])), ValueError, r"got shape \[2\]"),
        (lambda: to_keras(MASK), ValueError, "mask has 3 heads; Keras has one mask for all heads"),
        (lambda: to_keras(MASK[:, 0]), ValueError, r"mask has shape \[2, 4, 5\]; expected 4 dimensions"),
        (lambda: to_lengths(VALID), ValueError, "a real token follows padding; lengths describe padding on the right"),
        (lambda: to_mask_mod(VALID), ValueError, r"mask has shape \[2, 5\]; expected 4 dimensions"),
    ],
)
def test_an_error_says_what_came_and_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_nn_multihead_attention_does_not_broadcast_so_the_mask_must_be_full_size():
    """The reason for what `to_multihead` asks of its mask; a mask that broadcasts over samples is expanded first."""
    mask = all_of(causal_mask(LQ, LK), full_mask(LQ, LK))
    x, memory = torch.zeros(B, LQ, D_MODEL), torch.zeros(B, LK, D_MODEL)
    module = nn.MultiheadAttention(D_MODEL, H, batch_first=True)
    with pytest.raises(RuntimeError, match="shape of the 3D attn_mask"):
        module(x, memory, memory, attn_mask=to_multihead(mask, H))
    module(x, memory, memory, attn_mask=to_multihead(mask.expand(B, -1, -1, -1), H))
