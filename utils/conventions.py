"""The same mask as other libraries spell it, and back: pairs of functions that undo each other."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from utils.masks import check_mask

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _check_bool(flags: Tensor, name: str) -> Tensor:
    if flags.dtype != torch.bool:  # ~ of the integer 1 is -2
        raise TypeError(f"{name} has dtype {flags.dtype}; expected torch.bool. From 1/0: {name}.bool().")
    return flags


def to_additive(mask: Tensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "B H Lq Lk"]:
    """0 where a query may attend, -inf where it may not: what is *added* to the scores before the softmax.

    The form of most papers. Same shape as `mask`; `dtype` is that of the scores.
    """
    return torch.zeros(check_mask(mask).shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))


def from_additive(scores: Float[Tensor, "B H Lq Lk"]) -> Bool[Tensor, "B H Lq Lk"]:
    """Undo `to_additive`; the lowest finite number of the dtype, as Hugging Face adds it, counts as -inf.

    Raises ValueError for any other value: a bias is not a mask, and 1/0 flags are not meant to be added. Raises
    TypeError for what is not floating-point.
    """
    if not scores.is_floating_point():
        raise TypeError(f"an additive mask holds the floats 0 and -inf, not {scores.dtype}. From flags: mask.bool().")
    visible = scores == 0
    blocked = scores <= torch.finfo(scores.dtype).min
    if not (visible | blocked).all():
        odd = scores[~(visible | blocked)].flatten()[0].item()
        raise ValueError(
            f"an additive mask holds 0 (may attend) and -inf (may not), but here is {odd:g}. "
            "Are these 1/0 flags? Then use mask.bool(). Is it a bias? Then it is not a mask."
        )
    return visible


def to_multihead(mask: Tensor, num_heads: int) -> Bool[Tensor, "BH Lq Lk"]:
    """`attn_mask` of nn.MultiheadAttention: [B*H, Lq, Lk] and True = *blocked*, heads of a sample side by side.

    `mask` is [B, H|1, Lq, Lk] in full size, except for the heads: nn.MultiheadAttention does not broadcast.

    Raises ValueError if the mask has another number of heads than 1 or `num_heads`.
    """
    batch, heads, query_len, key_len = check_mask(mask).shape
    if heads not in (1, num_heads):
        raise ValueError(f"mask has {heads} heads; expected 1 or num_heads = {num_heads}.")
    return ~mask.expand(batch, num_heads, query_len, key_len).reshape(-1, query_len, key_len)


def from_multihead(mask: Bool[Tensor, "BH Lq Lk"], num_heads: int) -> Bool[Tensor, "B H Lq Lk"]:
    """Undo `to_multihead`: [B*H, Lq, Lk], True = blocked -> [B, H, Lq, Lk], True = may attend.

    Raises ValueError if the first dimension is not a multiple of `num_heads`, TypeError if the mask is not boolean.
    """
    if mask.ndim != 3 or len(mask) % num_heads:
        raise ValueError(f"mask has shape {list(mask.shape)}; expected [B*H, Lq, Lk] with H = num_heads = {num_heads}.")
    return ~_check_bool(mask, "mask").unflatten(0, (-1, num_heads))


def to_key_padding(valid: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """`key_padding_mask` of nn.MultiheadAttention and nn.Transformer: True = *padding*, from True = real token.

    Raises TypeError, as its way back, for flags that are not boolean.
    """
    return ~_check_bool(valid, "valid")


def from_key_padding(mask: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Undo `to_key_padding`: True = padding -> True = real token."""
    return ~_check_bool(mask, "mask")


def to_hugging_face(valid: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """`attention_mask` of a Hugging Face tokenizer: 1 = real token, 0 = padding, int64."""
    return valid.long()


def from_hugging_face(mask: Tensor) -> Bool[Tensor, "B L"]:
    """Undo `to_hugging_face`: 1/0 in any dtype, [B, L] -> Bool[B, L], True = real token.

    Raises ValueError for another rank or for other values than 0 and 1.
    """
    if mask.ndim != 2 or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"a tokenizer's attention_mask is [B, L] with 1 = real and 0 = padding; got shape {list(mask.shape)} "
            f"with values from {mask.min().item():g} to {mask.max().item():g}."
        )
    return mask == 1


def to_keras(mask: Tensor) -> Bool[Tensor, "B Lq Lk"]:
    """`attention_mask` of keras.layers.MultiHeadAttention: [B|1, Lq|1, Lk] for all heads, True = may attend.

    Keras 3 also takes a mask with an axis for the heads, but then it lays a `value_mask` [B, Lk] along that axis.

    Raises ValueError for a mask that differs between heads: Keras documents no place for it.
    """
    if check_mask(mask).shape[1] != 1:
        raise ValueError(
            f"mask has {mask.shape[1]} heads; Keras has one mask for all heads, so expected [B|1, 1, Lq, Lk]."
        )
    return mask[:, 0]


def from_keras(mask: Bool[Tensor, "B Lq Lk"]) -> Bool[Tensor, "B 1 Lq Lk"]:
    """Undo `to_keras`: [B|1, Lq|1, Lk] -> [B|1, 1, Lq|1, Lk]."""
    return mask[:, None]


def to_lengths(valid: Bool[Tensor, "B L"]) -> Int[Tensor, " B"]:
    """Number of real tokens of each sample, int32: `key_value_seq_lengths` of jax.nn.dot_product_attention.

    `masks.valid_from_lengths(lengths, L)` undoes it.

    Raises ValueError if a real token follows padding: a length can only say "padded on the right".
    """
    if (valid[:, 1:] & ~valid[:, :-1]).any():
        raise ValueError("a real token follows padding; lengths describe padding on the right only, so pass a mask.")
    return valid.sum(dim=-1, dtype=torch.int32)


def to_mask_mod(mask: Tensor) -> MaskMod:
    """The `mask_mod(b, h, q_idx, kv_idx)` of FlexAttention that looks the answer up in `mask`; True = may attend.

    A dimension of size 1 answers for every index, as broadcasting does.
    """
    sizes = check_mask(mask).shape
    return lambda b, h, q_idx, kv_idx: mask[
        tuple(index if size > 1 else 0 * index for index, size in zip((b, h, q_idx, kv_idx), sizes, strict=True))
    ]


def from_mask_mod(
    mask_mod: MaskMod, B: int, H: int, Lq: int, Lk: int, *, device: torch.device | str = "cpu"
) -> Bool[Tensor, "B H Lq Lk"]:
    """Undo `to_mask_mod`: ask `mask_mod` about every index of [B, H, Lq, Lk]."""
    return create_mask(mask_mod, B, H, Lq, Lk, device=device)
