"""Attention against PyTorch and against deleted keys, in values and gradients; what a mask must not change."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from utils.attention import KeyValueCache, MultiHeadAttention, attention
from utils.conventions import to_multihead
from utils.masks import all_of, causal_mask, dead_rows, full_mask, padding_mask, valid_from_lengths

B, H, LQ, LK, HEAD_DIM, VALUE_DIM = 2, 3, 4, 5, 8, 6
MASK_SHAPES = list(product((1, B), (1, H), (1, LQ), (LK,)))
BOTH_PATHS = pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "fused"])


def random_inputs(dtype=torch.float64):
    """Query, key and value that ask for gradients."""
    torch.manual_seed(0)
    shapes = [(B, H, LQ, HEAD_DIM), (B, H, LK, HEAD_DIM), (B, H, LK, VALUE_DIM)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def random_mask(*shape):
    """A mask without structure; if it has several rows, one of them is dead."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    if mask[..., 0].numel() > 1:
        mask[-1, 0, 0] = False
    return mask


def with_deleted_keys(query, key, value, mask):
    """Attention one row at a time, without any masking: the blocked keys are taken out before the softmax."""
    output = query.new_zeros(B, H, LQ, VALUE_DIM)
    for b, h, i in product(range(B), range(H), range(LQ)):
        keys = mask.expand(B, H, LQ, LK)[b, h, i].nonzero().flatten()
        if len(keys):
            scores = key[b, h, keys] @ query[b, h, i] / HEAD_DIM**0.5
            output[b, h, i] = torch.softmax(scores, dim=0) @ value[b, h, keys]
    return output


def gradients(output, inputs):
    """Gradients of a fixed random projection of the output, which tells all its places apart."""
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return torch.autograd.grad(output, inputs, probe)


# --- values and gradients ---


@BOTH_PATHS
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_a_blocked_key_is_a_deleted_key(shape, need_weights):
    inputs, mask = random_inputs(), random_mask(*shape)
    output, _ = attention(*inputs, mask, need_weights=need_weights)
    expected = with_deleted_keys(*inputs, mask)
    assert_close(output, expected)
    assert_close(gradients(output, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*MASK_SHAPES, None], ids=str)
def test_equals_scaled_dot_product_attention(shape, dtype):
    inputs, mask = random_inputs(dtype), shape and random_mask(*shape)
    output, _ = attention(*inputs, mask)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    assert_close(output, expected)
    assert_close(gradients(output, inputs), gradients(expected, inputs))


@BOTH_PATHS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 4e-2)], ids=str)
def test_half_precision_is_near_double_precision(dtype, tolerance, need_weights):
    """The tolerance is four steps of the number format at 1."""
    inputs, mask = random_inputs(dtype), random_mask(B, 1, LQ, LK)
    output, _ = attention(*inputs, mask, need_weights=need_weights)
    assert output.dtype == dtype
    expected = with_deleted_keys(*(x.double() for x in inputs), mask)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    assert_close(output, expected, **close)
    assert_close(gradients(output, inputs), gradients(expected, inputs), **close)


@BOTH_PATHS
def test_large_products_do_not_overflow_in_half_precision(need_weights):
    """60 * 60 * 64 is more than float16 holds, an eighth of it is not."""
    query = torch.full((1, 1, 2, 64), 60.0, dtype=torch.float16)
    output, _ = attention(query, query, torch.ones_like(query), causal_mask(2), need_weights=need_weights)
    assert_close(output, torch.ones_like(output))


# --- weights ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_are_exactly_0_where_the_mask_is_false(dtype):
    mask = random_mask(B, H, LQ, LK)
    _, weights = attention(*random_inputs(dtype), mask)
    assert (weights[~mask] == 0).all()
    assert (weights[mask] > 0).all()


def test_a_blocked_key_gets_nothing_however_low_the_others_score():
    """A large negative number instead of -inf would lose against scores that are lower still."""
    query, key = torch.full((1, 1, 1, 1), 1e20), torch.tensor([-1.0, 0.0]).reshape(1, 1, 2, 1)
    _, weights = attention(query, key, key, torch.tensor([[[[True, False]]]]))
    assert weights.flatten().tolist() == [1.0, 0.0]


def test_weights_of_a_row_sum_to_1_and_of_a_dead_row_to_0():
    mask = random_mask(B, H, LQ, LK)
    _, weights = attention(*random_inputs(), mask)
    assert_close(weights.sum(dim=-1), (~dead_rows(mask)).double())


def test_the_weights_are_those_of_the_output_dropout_included():
    query, key, value = random_inputs()
    output, weights = attention(query, key, value, full_mask(LQ, LK), dropout_p=0.5)
    assert (weights == 0).any()
    assert_close(output, weights @ value)


def test_without_need_weights_there_are_none():
    assert attention(*random_inputs(), need_weights=False)[1] is None


# --- dead rows ---


@BOTH_PATHS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_dead_row_gives_output_0_and_gradient_0(dtype, need_weights):
    inputs = random_inputs(dtype)
    output, _ = attention(*inputs, all_of(full_mask(LQ, LK), ~full_mask(1, LK)), need_weights=need_weights)
    assert (output == 0).all()
    for gradient in gradients(output, inputs):
        assert (gradient == 0).all()


def test_no_nan_appears_on_the_way_back_from_a_dead_row():
    """Not even one that a later step would remove: anomaly detection stops at the first."""
    inputs, mask = random_inputs(), random_mask(B, H, LQ, LK)
    with torch.autograd.set_detect_anomaly(True):
        gradients(attention(*inputs, mask)[0], inputs)


@BOTH_PATHS
def test_a_dead_row_leaves_the_other_rows_alone(need_weights):
    inputs, mask = random_inputs(), full_mask(LQ, LK)
    alive = attention(*inputs, mask, need_weights=need_weights)[0][:, :, 1:]
    mask[:, :, 0] = False
    output, _ = attention(*inputs, mask, need_weights=need_weights)
    assert (output[:, :, 0] == 0).all()
    assert_close(output[:, :, 1:], alive)
    assert_close(gradients(output[:, :, 1:], inputs), gradients(alive, inputs))


# --- what must change nothing ---


@BOTH_PATHS
def test_an_all_true_mask_is_no_mask(need_weights):
    inputs = random_inputs()
    output, _ = attention(*inputs, full_mask(LQ, LK), need_weights=need_weights)
    assert_close(output, attention(*inputs, need_weights=need_weights)[0])


@BOTH_PATHS
def test_left_padding_equals_right_padding(need_weights):
    query, key, value = random_inputs()
    valid = valid_from_lengths(torch.tensor([3, 3]), LK)
    right, _ = attention(query, key, value, padding_mask(valid), need_weights=need_weights)
    key, value = key.roll(2, dims=2), value.roll(2, dims=2)  # the two padded places go to the front
    left, _ = attention(query, key, value, padding_mask(valid.flip(1)), need_weights=need_weights)
    assert_close(left, right)


@BOTH_PATHS
def test_a_batch_equals_its_rows_alone(need_weights):
    inputs, mask = random_inputs(), random_mask(B, H, LQ, LK)
    output, _ = attention(*inputs, mask, need_weights=need_weights)
    for row in range(B):
        alone = slice(row, row + 1)
        expected, _ = attention(*(x[alone] for x in inputs), mask[alone], need_weights=need_weights)
        assert_close(output[alone], expected)


@BOTH_PATHS
def test_permuting_the_keys_with_their_mask_changes_nothing(need_weights):
    query, key, value = random_inputs()
    mask, order = random_mask(B, H, LQ, LK), torch.tensor([3, 0, 4, 1, 2])
    output, _ = attention(query, key, value, mask, need_weights=need_weights)
    permuted, _ = attention(query, key[:, :, order], value[:, :, order], mask[..., order], need_weights=need_weights)
    assert_close(permuted, output)


@BOTH_PATHS
def test_a_causal_mask_shows_no_query_its_future(need_weights):
    """The rule is written as numbers here, not taken from the mask: key k moves the output of the queries q >= k."""
    inputs = [x[:, :, :LQ] for x in random_inputs()]
    for changed in range(LQ):
        other = [x.clone() for x in inputs]
        other[1][:, :, changed] += 1.0
        other[2][:, :, changed] += 1.0
        outputs = [attention(*x, causal_mask(LQ), need_weights=need_weights)[0] for x in (inputs, other)]
        moved = (outputs[0] - outputs[1]).abs().amax(dim=(0, 1, 3)) > 1e-6
        assert moved.tolist() == [q >= changed for q in range(LQ)]


# --- multi-head attention ---


def twins(d_model=12):
    """Our module and PyTorch's, with the same weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(d_model, H, batch_first=True, dtype=torch.float64)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = MultiHeadAttention(d_model, H).double()
    ours.in_projection.load_state_dict({"weight": theirs.in_proj_weight, "bias": theirs.in_proj_bias})
    ours.out_projection.load_state_dict(theirs.out_proj.state_dict())
    return ours, theirs


@BOTH_PATHS
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_multi_head_attention_equals_pytorch(kind, need_weights):
    ours, theirs = twins()
    query = torch.randn(B, LQ, 12, dtype=torch.float64, requires_grad=True)
    memory = query if kind == "self" else torch.randn(B, LK, 12, dtype=torch.float64, requires_grad=True)
    mask = random_mask(B, H, LQ, memory.shape[1])
    mask[..., 0] = True  # PyTorch's module gives NaN for a dead row when asked for its weights
    output, weights = ours(query, memory, mask, need_weights=need_weights)
    expected, expected_weights = theirs(
        query, memory, memory, attn_mask=to_multihead(mask, H), need_weights=need_weights, average_attn_weights=False
    )
    assert_close(output, expected)
    assert_close(weights, expected_weights)
    inputs = [query] if kind == "self" else [query, memory]
    assert_close(gradients(output, inputs), gradients(expected, inputs))


@BOTH_PATHS
def test_a_dead_row_of_multi_head_attention_is_the_output_bias(need_weights):
    ours, _ = twins()
    x = torch.randn(B, LQ, 12, dtype=torch.float64)
    output, _ = ours(x, x, ~full_mask(1, LQ), need_weights=need_weights)
    assert_close(output, ours.out_projection.bias.expand_as(output))


@BOTH_PATHS
def test_dropout_is_for_training_only(need_weights):
    module, x = MultiHeadAttention(12, H, dropout=0.5), torch.randn(B, LQ, 12)

    def twice():
        return [module(x, x, need_weights=need_weights)[0] for _ in range(2)]

    assert not torch.equal(*twice())
    module.eval()
    assert torch.equal(*twice())


# --- the key-value cache ---


@pytest.mark.parametrize("chunks", [[5], [1] * 5, [2, 3], [1, 1, 3], [4, 0, 1]])
def test_a_cache_returns_all_keys_and_values_in_order(chunks):
    key, value, cache = torch.randn(B, H, 5, HEAD_DIM), torch.randn(B, H, 5, HEAD_DIM), KeyValueCache()
    for new_key, new_value in zip(key.split(chunks, dim=2), value.split(chunks, dim=2), strict=True):
        both = cache.append(new_key, new_value)
        assert_close(both, (key[:, :, : cache.length], value[:, :, : cache.length]))
    assert cache.length == 5


def test_after_a_reordering_each_row_goes_on_from_its_parent():
    key, value, new, cache = *torch.randn(3, 3, H, 4, HEAD_DIM), KeyValueCache()
    cache.append(key, value)
    cache.reorder(torch.tensor([2, 0, 2]))
    all_keys, all_values = cache.append(new, new)
    assert_close(all_keys, torch.cat((key[[2, 0, 2]], new), dim=2))
    assert_close(all_values, torch.cat((value[[2, 0, 2]], new), dim=2))


@BOTH_PATHS
def test_with_a_cache_the_weights_are_the_rows_of_the_new_queries(need_weights):
    module, x, cache, mask = MultiHeadAttention(12, H), torch.randn(B, LK, 12), KeyValueCache(), causal_mask(LK)
    output, weights = module(x, x, mask, need_weights=need_weights)
    for start, stop in [(0, 2), (2, 3), (3, LK)]:
        new, rows = x[:, start:stop], mask[:, :, start:stop, :stop]
        mixed, seen = module(new, new, rows, cache=cache, need_weights=need_weights)
        assert_close(mixed, output[:, start:stop])
        assert_close(seen, weights[:, :, start:stop, :stop] if need_weights else None)


# --- errors ---


@BOTH_PATHS
@pytest.mark.usefixtures("raw_errors")
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(1, 1, LQ, LK), TypeError, "dtype torch.float32; expected torch.bool"),
        (torch.ones(1, 1, LQ, LK, dtype=torch.uint8), TypeError, "dtype torch.uint8; expected torch.bool"),
        (torch.ones(LQ, LK, dtype=torch.bool), ValueError, r"shape \[4, 5\]; expected 4 dimensions"),
        (torch.ones(B, LK, dtype=torch.bool), ValueError, r"shape \[2, 5\]; expected 4 dimensions"),
        (torch.ones(B, LQ, LK, dtype=torch.bool), ValueError, r"shape \[2, 4, 5\]; expected 4 dimensions"),
        (full_mask(LQ, LK).expand(3, 1, LQ, LK), ValueError, r"shape \[3, 1, 4, 5\], .* \[2\|1, 3\|1, 4\|1, 5\]"),
        (full_mask(LQ, LK).expand(1, 2, LQ, LK), ValueError, r"shape \[1, 2, 4, 5\], .* \[2\|1, 3\|1, 4\|1, 5\]"),
        (full_mask(LQ + 1, LK), ValueError, r"shape \[1, 1, 5, 5\], .* \[2\|1, 3\|1, 4\|1, 5\]"),
        (full_mask(LQ, LK - 1), ValueError, r"shape \[1, 1, 4, 4\], but query \[2, 3, 4, 8\] and key \[2, 3, 5, 8\]"),
        (full_mask(LQ, 1), ValueError, r"shape \[1, 1, 4, 1\], .* \[2\|1, 3\|1, 4\|1, 5\]"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, error, message, need_weights):
    with pytest.raises(error, match=message):
        attention(*random_inputs(), mask, need_weights=need_weights)


@BOTH_PATHS
@pytest.mark.usefixtures("raw_errors")
def test_a_query_without_heads_is_refused(need_weights):
    query = torch.randn(B, LQ, 8)
    with pytest.raises(ValueError, match=r"query has shape \[2, 4, 8\] .*; expected \[B, H, L, Dh\]"):
        attention(query, query, query, full_mask(LQ), need_weights=need_weights)


@pytest.mark.usefixtures("raw_errors")
def test_d_model_is_shared_out_evenly_among_the_heads():
    with pytest.raises(ValueError, match="d_model = 10 must be a multiple of num_heads = 3"):
        MultiHeadAttention(10, 3)
