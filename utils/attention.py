"""Scaled dot-product attention that can return its weights, and multi-head attention built on it."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from utils.masks import check_mask


def attention(
    query: Float[Tensor, "B H Lq Dh"],
    key: Float[Tensor, "B H Lk Dh"],
    value: Float[Tensor, "B H Lk Dv"],
    mask: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    need_weights: bool = True,
) -> tuple[Float[Tensor, "B H Lq Dv"], Float[Tensor, "B H Lq Lk"] | None]:
    """softmax(QKᵀ / √Dh) V over the keys that `mask` allows: Vaswani et al. (2017), equation 1.

    `mask` is boolean, [B|1, H|1, Lq|1, Lk], True = may attend; None = every key is visible. A query without any
    key (a dead row) gets output 0, weights 0 and gradients 0, as F.scaled_dot_product_attention gives them on a CPU.

    Returns (output, weights). The weights are the ones this very output was made with, after dropout; they are
    None if `need_weights` is False, and then PyTorch may run a fused kernel, which never holds the scores in memory
    (on a CPU it does so without dropout and where Dv is Dh).

    Raises TypeError for a mask that is not boolean and ValueError for one that is not 4-D or does not fit.
    """
    if mask is not None:
        _check_fit(mask, query, key)
    if not need_weights:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p), None
    # divided first: in float16 the undivided product overflows sooner
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)  # [B, H, Lq, Lk]
    weights = F.dropout(masked_softmax(scores, mask), dropout_p)
    return weights @ value, weights


def masked_softmax(scores: Float[Tensor, "B H Lq Lk"], mask: Tensor | None) -> Float[Tensor, "B H Lq Lk"]:
    """Softmax over the last dimension with weight exactly 0 where `mask` is False; a dead row is all 0.

    A row of nothing but -inf would give NaN, and repairing the output afterwards leaves a NaN on the way back. So a
    dead row keeps its finite scores through the softmax and is set to 0 after it.
    """
    if mask is None:
        return torch.softmax(scores, dim=-1)
    dead = ~mask.any(dim=-1, keepdim=True)  # [B|1, H|1, Lq|1, 1]
    weights = torch.softmax(scores.masked_fill(~(mask | dead), float("-inf")), dim=-1)
    return weights.masked_fill(dead, 0.0)


def _check_fit(mask: Tensor, query: Tensor, key: Tensor) -> None:
    if query.ndim != 4 or key.ndim != 4:
        raise ValueError(
            f"query has shape {list(query.shape)} and key {list(key.shape)}; expected [B, H, L, Dh] under a mask."
        )
    wanted = (*query.shape[:-1], key.shape[-2])  # [B, H, Lq, Lk]
    fits = all(size in (1, full) for size, full in zip(check_mask(mask).shape[:3], wanted, strict=False))
    if not fits or mask.shape[3] != wanted[3]:
        raise ValueError(
            f"mask has shape {list(mask.shape)}, but query {list(query.shape)} and key {list(key.shape)} need "
            f"[B|1, H|1, Lq|1, Lk] = [{wanted[0]}|1, {wanted[1]}|1, {wanted[2]}|1, {wanted[3]}]."
        )


class KeyValueCache:
    """The keys and values of the tokens that one attention has read, [B, H, L, Dh] each; `length` is L.

    They lie in a buffer with room to spare, which doubles when it is full. Joining the old and the new ones at each
    step would copy all of them for every token.
    """

    def __init__(self) -> None:
        self.length = 0
        self._buffer: Tensor | None = None  # [2, B, H, room, Dh], keys and values

    def append(
        self, key: Float[Tensor, "B H Lnew Dh"], value: Float[Tensor, "B H Lnew Dh"]
    ) -> tuple[Float[Tensor, "B H L Dh"], Float[Tensor, "B H L Dh"]]:
        """Keep the keys and values of new tokens behind those of the old ones, and return all of them."""
        start, self.length = self.length, self.length + key.shape[2]
        if self._buffer is None or self._buffer.shape[3] < self.length:
            larger = key.new_empty(2, *key.shape[:2], max(self.length, 2 * start), key.shape[3])
            if start:
                larger[:, :, :, :start] = self._buffer[:, :, :, :start]
            self._buffer = larger
        self._buffer[0, :, :, start : self.length] = key
        self._buffer[1, :, :, start : self.length] = value
        key, value = self._buffer[:, :, :, : self.length]
        return key, value

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        """Let row n go on from what row `rows[n]` has read, as a beam search needs that drops and doubles rows."""
        self._buffer = self._buffer[:, rows]


class MultiHeadAttention(nn.Module):
    """Attention in `num_heads` subspaces of size d_model / num_heads: Vaswani et al. (2017), section 3.2.2.

    Raises ValueError if `d_model` is not a multiple of `num_heads`.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model = {d_model} must be a multiple of num_heads = {num_heads}.")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_projection = nn.Linear(d_model, 3 * d_model)  # W^Q, W^K, W^V stacked: one product instead of three
        self.out_projection = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_projection.weight)
        nn.init.zeros_(self.in_projection.bias)
        nn.init.zeros_(self.out_projection.bias)

    def forward(
        self,
        query_input: Float[Tensor, "B Lq D"],
        key_value_input: Float[Tensor, "B Lnew D"],
        mask: Tensor | None = None,
        *,
        cache: KeyValueCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "B Lq D"], Float[Tensor, "B H Lq Lk"] | None]:
        """Let every place of `query_input` collect from `key_value_input`; the same tensor twice: self-attention.

        With a `cache`, `key_value_input` holds only what the cache does not: its keys and values are appended, and
        the queries meet all Lk of them. Without, Lk = Lnew. `mask`, the returned weights and the errors are those
        of `attention`.
        """
        query, key, value = (self._split_heads(x) for x in self._project(query_input, key_value_input))
        if cache is not None:
            key, value = cache.append(key, value)  # [B, H, Lnew, Dh] -> [B, H, Lk, Dh]
        dropout_p = self.dropout if self.training else 0.0
        output, weights = attention(query, key, value, mask, dropout_p=dropout_p, need_weights=need_weights)
        return self.out_projection(output.transpose(1, 2).flatten(2)), weights  # [B, H, Lq, Dh] -> [B, Lq, D]

    def _project(self, query_input: Tensor, key_value_input: Tensor) -> tuple[Tensor, ...]:
        weight, bias = self.in_projection.weight, self.in_projection.bias
        if query_input is key_value_input:
            return F.linear(query_input, weight, bias).chunk(3, dim=-1)
        d_model = query_input.shape[-1]
        query = F.linear(query_input, weight[:d_model], bias[:d_model])
        return query, *F.linear(key_value_input, weight[d_model:], bias[d_model:]).chunk(2, dim=-1)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, L, D] -> [B, H, L, Dh]
