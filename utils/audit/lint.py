"""`lint_mask`: what can be said about a bare mask, without the model that will read it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from utils.audit.report import Finding, Report

SPELLINGS = ("boolean", "additive", "multihead", "key_padding", "hugging_face")
FILLS = 4  # a mask has few fills; more low numbers than that are a bias for each distance, as in ALiBi
SAFE = 1e8  # a fill below -SAFE stays out of reach of scores; -1e4 has been reached


def lint_mask(
    mask: Tensor, *, kind: str | None = None, causal: bool | None = None, num_heads: int | None = None
) -> Report:
    """Find what is suspicious in a bare mask; a report like that of an audit, empty = nothing suspicious.

    kind       how its receiver reads it; None = by its dtype (bool: boolean, float: additive, int [B, L]: hugging_face)
        boolean       [..., Lq, Lk], True = may attend: scaled_dot_product_attention, this series
        additive      [..., Lq, Lk], added to the scores: 0 or -inf
        multihead     [Lq, Lk] or [B*H, Lq, Lk], True = blocked: attn_mask of nn.MultiheadAttention
        key_padding   [B, Lk], True = padding: key_padding_mask of nn.MultiheadAttention
        hugging_face  [B, Lk], 1 = real token: attention_mask of a tokenizer
    causal     True: later keys must be hidden; None = if it looks so
    num_heads  heads of a [B*H, Lq, Lk] mask, so that their order can be looked at

    Raises TypeError if `mask` is no tensor, ValueError for an unknown kind or a mask of less than 2 dimensions.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}; expected a tensor.")
    if mask.ndim < 2 or kind not in (None, *SPELLINGS):
        raise ValueError(
            f"mask has shape {list(mask.shape)}, kind is {kind!r}; expected [.., Lq, Lk], one of {SPELLINGS}."
        )
    kind = kind or _guess(mask)
    findings = list(_check_values(mask, kind))
    if findings and findings[0].rule in ("wrong-dtype", "added-flags", "not-a-number"):
        return Report(findings)
    visible = _visible(mask, kind)
    if kind in ("key_padding", "hugging_face"):
        findings += _check_flags(visible)
    else:
        findings += [*_check_rows(visible, causal), *_check_axes(visible, kind, num_heads)]
    return Report(findings)


def _guess(mask: Tensor) -> str:
    if mask.is_floating_point():
        return "additive"
    return "boolean" if mask.dtype == torch.bool else "hugging_face"


def _visible(mask: Tensor, kind: str) -> Tensor:
    """The same mask as booleans, True = may attend."""
    if kind == "additive":
        return mask > -100
    return ~mask.bool() if kind in ("multihead", "key_padding") else mask.bool()


def _check_values(mask: Tensor, kind: str) -> Iterator[Finding]:
    if mask.is_floating_point() and (mask.isnan() | (mask == torch.inf)).any():
        yield Finding("not-a-number", f"{int((mask.isnan() | (mask == torch.inf)).sum())} entries")
    elif kind != "hugging_face" and mask.is_floating_point():
        yield from _check_additive(mask)
    elif mask.dtype != torch.bool and kind != "hugging_face":
        yield Finding("wrong-dtype", f"{mask.dtype} read as {kind}", detail="mask.bool() converts 1/0 flags.")
    elif kind == "hugging_face" and not ((mask == 0) | (mask == 1)).all():
        yield Finding("wrong-dtype", f"values from {mask.min():g} to {mask.max():g}", detail="1 = real, 0 = padding.")


def _check_additive(mask: Tensor) -> Iterator[Finding]:
    lowest = torch.finfo(mask.dtype).min
    if (mask == 1).any() and ((mask == 0) | (mask == 1)).all():
        yield Finding("added-flags", f"{mask.dtype} with {int((mask == 1).sum())} ones")
        return
    fills = mask[(mask < -5) & mask.isfinite()].unique()
    safe = min(SAFE, -lowest / 2)
    if 0 < len(fills) <= FILLS and fills.max() > -safe:
        yield Finding("weak-fill", f"{fills.max():g} in {mask.dtype}", size=abs(fills.max().item()))
    summed = (mask == -torch.inf) & (mask == lowest).any()
    if summed.any():
        yield Finding("sum-overflow", f"{int(summed.sum())} entries are -inf beside entries of {lowest:.3g}")


def _check_rows(visible: Tensor, causal: bool | None) -> Iterator[Finding]:
    """Dead rows, and the diagonal of a causal mask; alignment is to the last key, as with a cache."""
    queries, keys = visible.shape[-2:]
    seen = visible.reshape(-1, queries, keys).any(0)  # a key counts as visible if any sample sees it
    later = torch.ones_like(seen).triu(keys - queries + 1)
    inside = seen & ~later
    if queries > 1 and (seen & later).any() and not inside.any():
        yield Finding("inverted-polarity", f"only later keys are visible: {int((seen & later).sum())} pairs")
        return
    inverted = ~seen
    if queries > 1 and (inverted & ~later).any() and not (inverted & later).any() and inverted.sum() == (~later).sum():
        yield Finding("inverted-polarity", "every earlier key is blocked, every later one visible")
        return
    if (dead := ~visible.any(-1)).any():
        yield Finding(
            "dead-rows", f"{int(dead.sum())} of {dead.numel()} rows, the first at {dead.nonzero()[0].tolist()}"
        )
    band = seen & later.triu(keys - queries + 2)
    both_ways = queries == keys and torch.equal(seen, seen.T)  # a window that looks ahead as far as back
    looks_causal = queries > 1 and keys > 1 and not band.any() and not seen.all() and not both_ways
    if not (causal if causal is not None else looks_causal) or queries == 1:
        return
    diagonal = seen.diagonal(keys - queries)
    if (seen & later).any():
        first = (seen & later).nonzero()[0].tolist()
        yield Finding("open-diagonal", f"query {first[0]} sees key {first[1]}, {int((seen & later).sum())} pairs")
    elif not diagonal.any():
        yield Finding("blocked-diagonal", f"no query of {queries} sees itself")


def _check_axes(visible: Tensor, kind: str, num_heads: int | None) -> Iterator[Finding]:
    """[B, L] flags where [Lq, Lk] is read, and [B*H, Lq, Lk] in the wrong order."""
    if visible.ndim == 2 and kind in ("boolean", "additive") and _looks_like_flags(visible):
        yield Finding("wrong-axis", f"shape {list(visible.shape)}: every row is one run of real tokens")
    if visible.ndim == 3 and num_heads and num_heads > 1 and len(visible) % num_heads == 0:
        samples = len(visible) // num_heads
        by_head = visible.unflatten(0, (samples, num_heads))
        by_batch = visible.unflatten(0, (num_heads, samples))
        if samples > 1 and (by_head != by_head[:, :1]).any() and (by_batch == by_batch[:1]).all():
            yield Finding("head-order", f"the {samples} masks repeat {num_heads} times, one after the other")


def _looks_like_flags(visible: Tensor) -> bool:
    """Is every row one run of real tokens that touches an end, and not a triangle or the same for all?

    Windows, documents and prefixes have such rows too, but there every token sees itself.
    """
    steps = (visible[:, 1:] != visible[:, :-1]).sum(-1)
    triangle = torch.ones_like(visible)
    known = [triangle.tril(k) for k in (-1, 0, 1)] + [triangle.triu(k) for k in (-1, 0, 1)]
    if visible.shape[0] < 2 or any(torch.equal(visible, one) for one in known) or (visible == visible[:1]).all():
        return False
    if visible.shape[0] == visible.shape[1] and visible.diagonal().all():
        return False
    return bool((steps <= 1).all()) and not (visible[:, 0].all() and (visible.sum(-1).diff() > 0).all())


def _check_flags(visible: Tensor) -> Iterator[Finding]:
    """Flags of real tokens, [B, L]: a batch in which nobody is full and somebody is empty is upside down."""
    full, empty = visible.all(-1), ~visible.any(-1)
    if empty.any() and not full.any():
        yield Finding("inverted-polarity", f"{int(empty.sum())} samples without a real token, none without padding")
    elif empty.any():
        yield Finding("dead-rows", f"sample {int(empty.nonzero()[0])} holds no real token")
