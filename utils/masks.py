"""Which keys a query may see: constructors and algebra of boolean masks.

A mask is a boolean tensor, True = may attend, always 4-D and broadcastable: [B|1, H|1, Lq|1, Lk]
(batch, heads, queries, keys). True in row i and column j means: query i may attend to key j.
In the drawings ■ is True (may attend) and ⬚ is False (may not); lists in their calls stand for tensors.
"""

from collections.abc import Callable
from functools import reduce
from operator import and_, or_

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


def check_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """Return `mask` if it is boolean and 4-D; otherwise say what came and how to get there.

    Raises TypeError for another dtype and ValueError for another rank.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} is a {type(mask).__name__}; expected a torch.bool tensor [B|1, H|1, Lq|1, Lk].")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{name} has dtype {mask.dtype}; expected torch.bool with True = may attend. "
            "From an additive 0/-inf mask: conventions.from_additive(mask). From 1 = keep, 0 = hide: mask.bool()."
        )
    if mask.ndim != 4:
        raise ValueError(
            f"{name} has shape {list(mask.shape)}; expected 4 dimensions [B|1, H|1, Lq|1, Lk]. "
            "From valid [B, Lk]: padding_mask(valid). From one square [Lq, Lk]: mask[None, None]. "
            "From [B, Lq, Lk]: mask[:, None]."
        )
    return mask


def _positions(length: int, start: int = 0, device: torch.device | str | None = None) -> Int[Tensor, " L"]:
    if length < 0 or start < 0:
        raise ValueError(
            f"lengths and starts count tokens, so they cannot be negative: length {length}, start {start}."
        )
    return torch.arange(start, start + length, device=device)


def pairwise_mask(
    rule: Callable[[Tensor, Tensor], Tensor], query: Shaped[Tensor, "..."], key: Shaped[Tensor, "..."]
) -> Bool[Tensor, "B H Lq Lk"]:
    """Compare every query with every key: `rule(q, k)` decides whether query q may attend to key k.

    `query` is [B|1, Lq] or [Lq], `key` is [B|1, Lk] or [Lk]: positions, segment ids, flags, whatever the rule
    compares. The rule gets them as [B|1, 1, Lq, 1] and [B|1, 1, 1, Lk] and returns a boolean tensor that
    broadcasts to [B, 1, Lq, Lk]; a rule that also compares with a tensor of its own, [1, H, 1, 1] say, gives
    one mask for each head. Idea: flax.linen.make_attention_mask.

    >>> print(mask_to_text(pairwise_mask(torch.ge, torch.arange(3), torch.arange(3))))
    ■⬚⬚
    ■■⬚
    ■■■

    Raises ValueError for inputs that are not 1-D or 2-D, TypeError for a rule that returns no boolean tensor.
    """
    for name, side in (("query", query), ("key", key)):
        if side.ndim not in (1, 2):
            raise ValueError(f"{name} has shape {list(side.shape)}; expected [length] or [batch, length].")
    q = torch.atleast_2d(query)[:, None, :, None]
    k = torch.atleast_2d(key)[:, None, None, :]
    if len(q) != len(k) and 1 not in (len(q), len(k)):
        raise ValueError(f"query has {len(q)} samples and key {len(k)}; expected equally many, or 1.")
    every_pair = (max(len(q), len(k)), 1, q.shape[2], k.shape[3])
    visible = rule(q, k)
    if not isinstance(visible, Tensor) or visible.dtype != torch.bool:
        got = visible.dtype if isinstance(visible, Tensor) else type(visible).__name__
        raise TypeError(
            f"the rule returned {got}; expected a boolean tensor, as `q >= k` gives (no `if`, `and`, `or`)."
        )
    return visible.expand(torch.broadcast_shapes(visible.shape, every_pair))


def full_mask(
    query_len: int, key_len: int | None = None, *, device: torch.device | str | None = None
) -> Bool[Tensor, "1 1 Lq Lk"]:
    """Every query sees every key. `key_len` defaults to `query_len`; both count tokens.

    ■■■
    ■■■
    ■■■
    """
    key_len = query_len if key_len is None else key_len
    return pairwise_mask(
        lambda q, k: (q >= 0) & (k >= 0), _positions(query_len, 0, device), _positions(key_len, 0, device)
    )


def nothing_mask(
    query_len: int, key_len: int | None = None, *, device: torch.device | str | None = None
) -> Bool[Tensor, "1 1 Lq Lk"]:
    """No query sees any key: every row is dead. The neutral element of `any_of`.

    ⬚⬚⬚
    ⬚⬚⬚
    ⬚⬚⬚
    """
    return ~full_mask(query_len, key_len, device=device)


def causal_mask(
    query_len: int, key_len: int | None = None, *, query_start: int = 0, device: torch.device | str | None = None
) -> Bool[Tensor, "1 1 Lq Lk"]:
    """A query sees itself and what came before it: the sequence mask of Vaswani et al. (2017), section 3.2.3.

    `query_start` is the position of the first query among the keys: 0 when queries and keys are the same tokens,
    the number of cached tokens when decoding goes on after them. `key_len` defaults to `query_start + query_len`,
    so that the last query sees every key.

    causal_mask(4):    causal_mask(2, query_start=2):
    ■⬚⬚⬚               ■■■⬚
    ■■⬚⬚               ■■■■
    ■■■⬚
    ■■■■
    """
    key_len = query_start + query_len if key_len is None else key_len
    return pairwise_mask(torch.ge, _positions(query_len, query_start, device), _positions(key_len, 0, device))


def local_mask(
    query_len: int,
    key_len: int | None = None,
    *,
    back: int,
    ahead: int = 0,
    query_start: int = 0,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "1 1 Lq Lk"]:
    """A query sees itself, `back` keys before it and `ahead` keys after it: `back + 1 + ahead` keys in all.

    Libraries count windows differently (with or without the query itself); here the count excludes it.
    The sliding window of Beltagy et al. (2020), Longformer.

    local_mask(5, back=1):    local_mask(5, back=1, ahead=1):
    ■⬚⬚⬚⬚                     ■■⬚⬚⬚
    ■■⬚⬚⬚                     ■■■⬚⬚
    ⬚■■⬚⬚                     ⬚■■■⬚
    ⬚⬚■■⬚                     ⬚⬚■■■
    ⬚⬚⬚■■                     ⬚⬚⬚■■

    Raises ValueError for a negative `back` or `ahead`.
    """
    if back < 0 or ahead < 0:
        raise ValueError(f"back and ahead count keys, so they cannot be negative: back {back}, ahead {ahead}.")
    key_len = query_start + query_len if key_len is None else key_len
    query, key = _positions(query_len, query_start, device), _positions(key_len, 0, device)
    return pairwise_mask(lambda q, k: (q - back <= k) & (k <= q + ahead), query, key)


def prefix_mask(
    query_len: int, prefix_len: int | Int[Tensor, " B"], *, device: torch.device | str | None = None
) -> Bool[Tensor, "B 1 Lq Lq"]:
    """Causal, but the first `prefix_len` keys are open to all: the prefix LM of Raffel et al. (2020), T5.

    `prefix_len` is one number of tokens, or Int[B] with one for each sample.

    prefix_mask(4, 2):
    ■■⬚⬚
    ■■⬚⬚
    ■■■⬚
    ■■■■
    """
    if isinstance(prefix_len, Tensor) and device is None:
        device = prefix_len.device
    prefix = torch.as_tensor(prefix_len, device=device).reshape(-1, 1, 1, 1)
    positions = _positions(query_len, 0, device)
    return pairwise_mask(lambda q, k: (k <= q) | (k < prefix), positions, positions)


def padding_mask(valid: Tensor) -> Bool[Tensor, "B 1 1 Lk"]:
    """No query sees a padded key. `valid` is Bool[B, Lk], True = real token.

    One row for each sample, which broadcasts over heads and queries. Padded *queries* are left alone: nobody
    reads their output, and a row without any key would be dead.

    padding_mask([[True, True, False], [True, False, False]]):
    ■■⬚    (sample 0, every query)
    ■⬚⬚    (sample 1, every query)

    Raises TypeError if `valid` is not boolean and ValueError if it is not 2-D.
    """
    if valid.dtype != torch.bool:
        raise TypeError(
            f"valid has dtype {valid.dtype}; expected torch.bool with True = real token. From token ids: "
            "tokens != pad_id. From a Hugging Face attention_mask: conventions.from_hugging_face(mask)."
        )
    if valid.ndim != 2:
        raise ValueError(f"valid has shape {list(valid.shape)}; expected [B, Lk], one flag for each token.")
    return valid[:, None, None, :]


def valid_from_lengths(lengths: Int[Tensor, " B"], max_len: int | None = None) -> Bool[Tensor, "B L"]:
    """Flags of the real tokens in a right-padded batch: True for the first `lengths[b]` of `max_len` places.

    `max_len` defaults to the longest length. valid_from_lengths([3, 1]) = [[■, ■, ■], [■, ⬚, ⬚]].

    Raises ValueError if a length is negative or exceeds `max_len`.
    """
    if not len(lengths):
        raise ValueError("lengths is empty; expected one length for each sample.")
    longest = int(lengths.max())
    max_len = longest if max_len is None else max_len
    if int(lengths.min()) < 0 or longest > max_len:
        raise ValueError(f"lengths go from {int(lengths.min())} to {longest}; expected 0 to max_len = {max_len}.")
    return _positions(max_len, 0, lengths.device) < lengths[:, None]


def segment_mask(
    query_segments: Int[Tensor, "..."], key_segments: Int[Tensor, "..."] | None = None
) -> Bool[Tensor, "B 1 Lq Lk"]:
    """A query sees only the keys of its own segment: documents packed into one row stay separate.

    Ids are [B, L] or [L]; `key_segments` defaults to `query_segments`.
    Krell et al. (2021), "Efficient sequence packing without cross-contamination".

    segment_mask([0, 0, 1, 1]):
    ■■⬚⬚
    ■■⬚⬚
    ⬚⬚■■
    ⬚⬚■■
    """
    return pairwise_mask(torch.eq, query_segments, query_segments if key_segments is None else key_segments)


def strided_mask(
    query_len: int,
    key_len: int | None = None,
    *,
    stride: int,
    query_start: int = 0,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "1 1 Lq Lk"]:
    """A query sees itself and every `stride`-th key before and after it: distances that are multiples of `stride`.

    With `causal_mask`, the second head of Child et al. (2019), Sparse Transformers, section 4. With `local_mask`,
    the dilated window of Beltagy et al. (2020), Longformer, section 3.1.

    strided_mask(5, stride=2):
    ■⬚■⬚■
    ⬚■⬚■⬚
    ■⬚■⬚■
    ⬚■⬚■⬚
    ■⬚■⬚■

    Raises ValueError for a `stride` below 1.
    """
    if stride < 1:
        raise ValueError(f"stride is a distance between keys, so it must be at least 1: stride {stride}.")
    key_len = query_start + query_len if key_len is None else key_len
    query, key = _positions(query_len, query_start, device), _positions(key_len, 0, device)
    return pairwise_mask(lambda q, k: (q - k) % stride == 0, query, key)


def global_mask(
    query_flags: Bool[Tensor, "..."], key_flags: Bool[Tensor, "..."] | None = None
) -> Bool[Tensor, "B 1 Lq Lk"]:
    """A flagged token sees every key and is seen by every query; no other pair is open. Meant for `any_of`.

    Flags are Bool [B, L] or [L], True = global; `key_flags` defaults to `query_flags`.
    The global attention of Beltagy et al. (2020), Longformer, section 3.1.

    global_mask([True, False, False, True]):
    ■■■■
    ■⬚⬚■
    ■⬚⬚■
    ■■■■
    """
    return pairwise_mask(torch.logical_or, query_flags, query_flags if key_flags is None else key_flags)


def graph_mask(edges: Int[Tensor, "E 2"], num_nodes: int) -> Bool[Tensor, "1 1 N N"]:
    """A node sees the nodes that have an edge to it. `edges` holds pairs (source, target) of nodes 0 to num_nodes - 1.

    The target attends to the source, so this is the *transpose* of an adjacency matrix [source, target]. An
    undirected edge is two pairs. A node sees itself only if its own pair (i, i) is in the list; for all of them:
    any_of(graph_mask(edges, n), local_mask(n, back=0)). Velickovic et al. (2018), Graph Attention Networks.

    graph_mask([[0, 1], [0, 2], [2, 3]], 4):
    ⬚⬚⬚⬚
    ■⬚⬚⬚
    ■⬚⬚⬚
    ⬚⬚■⬚

    Raises ValueError if `edges` is not a list of pairs or names a node that does not exist, TypeError if it holds no
    integers.
    """
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise ValueError(
            f"edges has shape {list(edges.shape)}; expected [E, 2], one pair (source, target) for each edge. "
            "From [2, E]: edges.T."
        )
    if edges.is_floating_point() or edges.dtype == torch.bool:
        raise TypeError(f"edges has dtype {edges.dtype}; expected integers, the numbers of nodes.")
    edges = edges.long()  # torch takes uint8 indices for flags
    nodes = _positions(num_nodes, 0, edges.device)
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < num_nodes:
        raise ValueError(
            f"edges name nodes from {int(edges.min())} to {int(edges.max())}; "
            f"expected 0 to num_nodes - 1 = {num_nodes - 1}."
        )
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.bool, device=edges.device)  # [source, target]
    adjacency[edges[:, 0], edges[:, 1]] = True
    return pairwise_mask(lambda q, k: adjacency[k, q], nodes, nodes)


def hop_mask(mask: Bool[Tensor, "B H L L"], hops: int) -> Bool[Tensor, "B H L L"]:
    """A query sees itself and every key at most `hops` steps away, where a step goes from a query to a key of `mask`.

    This is what reaches a query through `hops` layers, each under `mask` and with a residual connection: (A + I)^hops.

    hop_mask(local_mask(5, back=1), 2):
    ■⬚⬚⬚⬚
    ■■⬚⬚⬚
    ■■■⬚⬚
    ⬚■■■⬚
    ⬚⬚■■■

    Raises ValueError for a negative `hops` and for a mask that is not square.
    """
    if hops < 0 or check_mask(mask).shape[-2] != mask.shape[-1]:
        raise ValueError(
            f"mask has shape {list(mask.shape)} and hops is {hops}; expected [B, H, L, L], the queries being the keys, "
            "and 0 hops or more."
        )
    reached = local_mask(mask.shape[-1], back=0, device=mask.device).expand_as(mask)
    step = (mask | reached).float()
    for _ in range(hops):
        reached = step @ reached.float() > 0
    return reached


def _combine(operator: Callable[[Tensor, Tensor], Tensor], masks: tuple[Tensor, ...]) -> Tensor:
    if not masks:
        raise ValueError("no mask was given; expected at least one.")
    for number, mask in enumerate(masks):
        check_mask(mask, f"mask number {number + 1}")
    try:
        return reduce(operator, masks)
    except RuntimeError as error:
        if len(devices := {str(mask.device) for mask in masks}) > 1:
            raise ValueError(f"the masks lie on several devices, {sorted(devices)}; build them all on one.") from error
        shapes = ", ".join(str(list(mask.shape)) for mask in masks)
        raise ValueError(f"masks of shapes {shapes} do not broadcast; each dimension must agree or be 1.") from error


def all_of(*masks: Tensor) -> Bool[Tensor, "B H Lq Lk"]:
    """A key is visible if every mask allows it: AND, which broadcasts [B|1, H|1, Lq|1, Lk].

    Raises TypeError for a mask that is not boolean, ValueError for one that is not 4-D or does not fit the others.
    """
    return _combine(and_, masks)


def any_of(*masks: Tensor) -> Bool[Tensor, "B H Lq Lk"]:
    """A key is visible if at least one mask allows it: OR, with the shapes and errors of `all_of`."""
    return _combine(or_, masks)


def dead_rows(mask: Tensor) -> Bool[Tensor, "B H Lq"]:
    """True for each query that sees no key at all; [B|1, H|1, Lq|1, Lk] -> [B|1, H|1, Lq|1].

    Attention divides by the sum of a row, so such a row needs a decision: here its output is 0.
    """
    return ~check_mask(mask).any(dim=-1)


def mask_from_text(text: str) -> Bool[Tensor, "1 1 Lq Lk"]:
    """Read a drawn mask, rows separated by "/" or line ends: mask_from_text("■⬚ / ■■") = causal_mask(2).

    Raises ValueError for other signs than ■ and ⬚ and for rows of unequal length.
    """
    rows = ["".join(row.split()) for row in text.replace("/", "\n").splitlines() if row.strip()]
    if foreign := set("".join(rows)) - set("■⬚"):
        raise ValueError(f"a drawn mask holds only ■ (may attend) and ⬚ (may not), not {sorted(foreign)}.")
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError(f"the rows have lengths {[len(row) for row in rows]}; expected one length for all.")
    return torch.tensor([[sign == "■" for sign in row] for row in rows])[None, None]


def mask_to_text(mask: Tensor) -> str:
    """Draw a mask of one sample and one head, [1, 1, Lq, Lk], as lines of ■ and ⬚. Undoes `mask_from_text`.

    Raises ValueError if the mask holds several samples or heads: choose one by slicing, mask[b:b+1, h:h+1].
    """
    if check_mask(mask).shape[:2] != (1, 1):
        raise ValueError(f"mask has shape {list(mask.shape)}; choose one sample and head: mask[b:b+1, h:h+1].")
    return "\n".join("".join("■" if visible else "⬚" for visible in row) for row in mask[0, 0].tolist())
