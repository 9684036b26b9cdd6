"""Every mask constructor against nested loops over plain integers; the laws of the algebra; the errors."""

import re
from itertools import product

import pytest
import torch

from utils import masks
from utils.masks import (
    all_of,
    any_of,
    causal_mask,
    check_mask,
    dead_rows,
    full_mask,
    global_mask,
    graph_mask,
    hop_mask,
    local_mask,
    mask_from_text,
    mask_to_text,
    nothing_mask,
    padding_mask,
    pairwise_mask,
    prefix_mask,
    segment_mask,
    strided_mask,
    valid_from_lengths,
)

LENGTHS = range(6)
ALL_LENGTHS = pytest.mark.parametrize(("query_len", "key_len"), list(product(LENGTHS, LENGTHS)))


def looped(rule, query_len, key_len):
    """The mask that `rule(q, k)` says about plain integers, one pair at a time: [1, 1, Lq, Lk]."""
    rows = [[rule(q, k) for k in range(key_len)] for q in range(query_len)]
    return torch.tensor(rows, dtype=torch.bool).reshape(1, 1, query_len, key_len)


def every_flag(length):
    """All boolean vectors of this length: [2 ** length, length]."""
    return torch.tensor(list(product((False, True), repeat=length)), dtype=torch.bool).reshape(2**length, length)


# --- constructors ---


@ALL_LENGTHS
def test_full_and_nothing_are_all_and_no_pairs(query_len, key_len):
    assert torch.equal(full_mask(query_len, key_len), looped(lambda q, k: True, query_len, key_len))
    assert torch.equal(nothing_mask(query_len, key_len), looped(lambda q, k: False, query_len, key_len))


@ALL_LENGTHS
def test_causal_mask_is_the_loop(query_len, key_len):
    for start in LENGTHS:
        expected = looped(lambda q, k, start=start: k in range(start + q + 1), query_len, key_len)
        assert torch.equal(causal_mask(query_len, key_len, query_start=start), expected)


@ALL_LENGTHS
def test_local_mask_is_the_loop(query_len, key_len):
    for back, ahead, start in product(range(4), range(4), range(4)):
        window = [range(start + q - back, start + q + ahead + 1) for q in range(query_len)]
        expected = looped(lambda q, k, window=window: k in window[q], query_len, key_len)
        assert torch.equal(local_mask(query_len, key_len, back=back, ahead=ahead, query_start=start), expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_prefix_mask_is_the_loop(length):
    prefixes = range(length + 2)
    expected = [looped(lambda q, k, p=p: k in range(max(p, q + 1)), length, length) for p in prefixes]
    for prefix, mask in zip(prefixes, expected, strict=True):
        assert torch.equal(prefix_mask(length, prefix), mask)
    assert torch.equal(prefix_mask(length, torch.tensor(prefixes)), torch.cat(expected))


@pytest.mark.parametrize("length", LENGTHS)
def test_padding_mask_shows_each_sample_its_real_keys(length):
    valid = every_flag(length)
    mask = padding_mask(valid)
    assert mask.shape == (len(valid), 1, 1, length)
    for query_len in LENGTHS:
        expected = torch.cat([looped(lambda q, k, row=row: row[k], query_len, length) for row in valid.tolist()])
        assert torch.equal(mask.expand(-1, -1, query_len, -1), expected)


@pytest.mark.parametrize("max_len", LENGTHS)
def test_valid_from_lengths_is_the_loop(max_len):
    lengths = range(max_len + 1)
    expected = torch.tensor([[place in range(n) for place in range(max_len)] for n in lengths], dtype=torch.bool)
    assert torch.equal(valid_from_lengths(torch.tensor(lengths), max_len), expected)
    assert torch.equal(valid_from_lengths(torch.tensor(lengths)), expected)  # the longest is max_len


@ALL_LENGTHS
def test_segment_mask_is_the_loop(query_len, key_len):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(3, (4, query_len), generator=generator)
    keys = torch.randint(3, (4, key_len), generator=generator)
    samples = list(zip(queries.tolist(), keys.tolist(), strict=True))
    expected = torch.cat([looped(lambda q, k, s=s, t=t: s[q] == t[k], query_len, key_len) for s, t in samples])
    assert torch.equal(segment_mask(queries, keys), expected)
    assert torch.equal(segment_mask(queries[0], keys[0]), expected[:1])


def test_segment_mask_compares_the_queries_with_themselves_by_default():
    ids = torch.tensor([[0, 0, 1, 2], [3, 1, 3, 3]])
    assert torch.equal(segment_mask(ids), segment_mask(ids, ids))


@ALL_LENGTHS
def test_strided_mask_is_the_loop(query_len, key_len):
    for stride, start in product(range(1, 5), range(4)):
        comb = [set(range((start + q) % stride, key_len, stride)) for q in range(query_len)]
        expected = looped(lambda q, k, comb=comb: k in comb[q], query_len, key_len)
        assert torch.equal(strided_mask(query_len, key_len, stride=stride, query_start=start), expected)


@ALL_LENGTHS
def test_global_mask_is_the_loop(query_len, key_len):
    for query_flags in every_flag(query_len):
        keys = every_flag(key_len)
        samples = [(query_flags.tolist(), flags) for flags in keys.tolist()]
        expected = torch.cat([looped(lambda q, k, s=s, t=t: s[q] or t[k], query_len, key_len) for s, t in samples])
        assert torch.equal(global_mask(query_flags, keys), expected)


def test_global_mask_takes_the_flags_of_the_queries_for_the_keys_by_default():
    flags = every_flag(3)
    assert torch.equal(global_mask(flags), global_mask(flags, flags))


def random_edges(num_nodes, num_edges, seed):
    """Directed edges [E, 2], with repetitions and self-loops."""
    return torch.randint(num_nodes, (num_edges, 2), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_nodes", range(1, 6))
def test_graph_mask_is_the_loop(num_nodes):
    for num_edges in LENGTHS:
        edges = random_edges(num_nodes, num_edges, seed=num_edges)
        pairs = edges.tolist()
        expected = looped(lambda q, k, pairs=pairs: [k, q] in pairs, num_nodes, num_nodes)
        assert torch.equal(graph_mask(edges, num_nodes), expected)


def nodes_in_reach(mask, start, hops):
    """The nodes at most `hops` steps from `start`, found by walking: mask is a list of rows."""
    reached = {start}
    for _ in range(hops):
        reached |= {key for node in reached for key, visible in enumerate(mask[node]) if visible}
    return reached


def test_hop_mask_is_the_walk():
    graphs = torch.cat([graph_mask(random_edges(6, 5, seed), 6) for seed in range(8)]).reshape(4, 2, 6, 6)
    for hops in range(7):
        mask = hop_mask(graphs, hops)
        for b, h in product(range(4), range(2)):
            reach = [nodes_in_reach(graphs[b, h].tolist(), node, hops) for node in range(6)]
            expected = looped(lambda q, k, reach=reach: k in reach[q], 6, 6)
            assert torch.equal(mask[b : b + 1, h : h + 1], expected)


@pytest.mark.parametrize("start", LENGTHS)
def test_by_default_the_keys_end_with_the_last_query(start):
    """So the mask of the queries that go on after a cache is the lower part of the whole mask."""
    whole = start + 3
    assert torch.equal(causal_mask(3, query_start=start), causal_mask(whole)[:, :, start:])
    late = local_mask(3, back=1, ahead=1, query_start=start)
    assert torch.equal(late, local_mask(whole, back=1, ahead=1)[:, :, start:])
    assert torch.equal(strided_mask(3, stride=2, query_start=start), strided_mask(whole, stride=2)[:, :, start:])


def test_full_and_nothing_are_square_by_default():
    assert torch.equal(full_mask(3), full_mask(3, 3))
    assert torch.equal(nothing_mask(3), nothing_mask(3, 3))


def test_pairwise_mask_broadcasts_samples_and_heads():
    positions, shift = torch.tensor([[0, 1, 2], [5, 6, 7]]), torch.tensor([0, 2, 4]).reshape(1, 3, 1, 1)
    mask = pairwise_mask(lambda q, k: q >= k + shift, positions, torch.arange(4))
    assert mask.shape == (2, 3, 3, 4)
    for b, h in product(range(2), range(3)):
        expected = looped(lambda q, k, b=b, h=h: 5 * b + q >= k + 2 * h, 3, 4)
        assert torch.equal(mask[b : b + 1, h : h + 1], expected)


def test_pairwise_mask_has_every_pair_when_the_rule_looks_at_one_side_only():
    assert torch.equal(pairwise_mask(lambda q, k: k < 1, torch.arange(2), torch.arange(3)), mask_from_text("■⬚⬚ / ■⬚⬚"))
    assert torch.equal(pairwise_mask(lambda q, k: q < 1, torch.arange(2), torch.arange(3)), mask_from_text("■■■ / ⬚⬚⬚"))


@pytest.mark.parametrize(
    "constructor",
    [
        lambda device: full_mask(3, device=device),
        lambda device: nothing_mask(3, device=device),
        lambda device: causal_mask(3, device=device),
        lambda device: local_mask(3, back=1, device=device),
        lambda device: strided_mask(3, stride=2, device=device),
        lambda device: prefix_mask(3, 2, device=device),
        lambda device: prefix_mask(3, torch.tensor([1, 2], device=device)),
    ],
    ids=["full", "nothing", "causal", "local", "strided", "prefix", "prefix tensor"],
)
def test_a_mask_is_made_on_the_device_asked_for(constructor):
    """The meta device holds shapes without numbers; every machine has it."""
    assert constructor("meta").device.type == "meta"


# --- algebra: a and b hold all 16 masks of 2 x 2 as samples and as heads, so that broadcasting forms every pair ---

EVERY = every_flag(4).reshape(16, 2, 2)
A, B = EVERY[:, None], EVERY[None]
C = [mask[None, None] for mask in EVERY]
BOTH = pytest.mark.parametrize(("op", "other"), [(all_of, any_of), (any_of, all_of)], ids=["all_of", "any_of"])


@pytest.mark.parametrize(("op", "python"), [(all_of, all), (any_of, any)], ids=["all_of", "any_of"])
def test_all_of_and_any_of_ask_all_and_any_of_the_masks(op, python):
    for c in C:
        combined = op(A, B, c)
        flat = torch.stack([mask.expand_as(combined) for mask in (A, B, c)], dim=-1).reshape(-1, 3)
        assert combined.flatten().tolist() == [python(flags) for flags in flat.tolist()]


@BOTH
def test_commutative(op, other):
    assert torch.equal(op(A, B), op(B, A))


@BOTH
def test_associative(op, other):
    for c in C:
        assert torch.equal(op(op(A, B), c), op(A, op(B, c)))


@BOTH
def test_idempotent(op, other):
    assert torch.equal(op(A, A), A)
    assert torch.equal(op(A), A)


@BOTH
def test_distributive(op, other):
    for c in C:
        assert torch.equal(op(A, other(B, c)), other(op(A, B), op(A, c)))


@BOTH
def test_de_morgan(op, other):
    assert torch.equal(~op(A, B), other(~A, ~B))


@pytest.mark.parametrize(
    ("op", "neutral", "absorbing"),
    [(all_of, full_mask(2), nothing_mask(2)), (any_of, nothing_mask(2), full_mask(2))],
    ids=["all_of", "any_of"],
)
def test_neutral_and_absorbing_elements(op, neutral, absorbing):
    assert torch.equal(op(A, neutral), A)
    assert torch.equal(op(A, absorbing), absorbing.expand_as(A))


def test_dead_rows_are_the_rows_without_any_key():
    expected = [[not any(row) for row in mask] for mask in EVERY.tolist()]
    assert dead_rows(A)[:, 0].tolist() == expected


# --- text ---


@pytest.mark.parametrize(("query_len", "key_len"), list(product(range(1, 4), range(1, 4))))
def test_text_and_back(query_len, key_len):
    for flags in every_flag(query_len * key_len):
        mask = flags.reshape(1, 1, query_len, key_len)
        assert torch.equal(mask_from_text(mask_to_text(mask)), mask)


def test_a_drawing_has_a_row_for_each_query_and_may_be_spaced():
    expected = torch.tensor([[[[True, False, False], [True, True, False]]]])
    assert mask_to_text(expected) == "■⬚⬚\n■■⬚"
    for text in ("■⬚⬚ / ■■⬚", "■⬚⬚/■■⬚", "\n  ■ ⬚ ⬚\n\n  ■ ■ ⬚\n"):
        assert torch.equal(mask_from_text(text), expected)


# What each call that a docstring draws gives; a drawing without a call above it stands under the function's name.
DRAWN = {
    "pairwise_mask": pairwise_mask(torch.ge, torch.arange(3), torch.arange(3)),
    "full_mask": full_mask(3),
    "nothing_mask": nothing_mask(3),
    "causal_mask(4)": causal_mask(4),
    "causal_mask(2, query_start=2)": causal_mask(2, query_start=2),
    "local_mask(5, back=1)": local_mask(5, back=1),
    "local_mask(5, back=1, ahead=1)": local_mask(5, back=1, ahead=1),
    "prefix_mask(4, 2)": prefix_mask(4, 2),
    "padding_mask([[True, True, False], [True, False, False]])": padding_mask(
        torch.tensor([[True, True, False], [True, False, False]])
    ).transpose(0, 2),  # drawn with a line for each sample
    "strided_mask(5, stride=2)": strided_mask(5, stride=2),
    "global_mask([True, False, False, True])": global_mask(torch.tensor([True, False, False, True])),
    "segment_mask([0, 0, 1, 1])": segment_mask(torch.tensor([0, 0, 1, 1])),
    "graph_mask([[0, 1], [0, 2], [2, 3]], 4)": graph_mask(torch.tensor([[0, 1], [0, 2], [2, 3]]), 4),
    "hop_mask(local_mask(5, back=1), 2)": hop_mask(local_mask(5, back=1), 2),
}


def drawings(docstring, name):
    """{call: drawing} of a docstring; calls stand side by side on one line, each over its own drawing."""
    found, calls = {}, [name]
    for line in docstring.splitlines():
        calls = re.findall(rf"({name}\(.*?\)):", line) or calls
        for call, row in zip(calls, re.findall(r"(?:^|\s)([■⬚]+)(?=\s|$)", line), strict=False):
            found.setdefault(call, []).append(row)
    return {call: "\n".join(rows) for call, rows in found.items()}


def test_the_docstrings_draw_what_the_functions_give():
    constructors = [name for name in vars(masks) if name.endswith("_mask") and name != "check_mask"]
    drawn = {}
    for name in constructors:
        drawn |= drawings(getattr(masks, name).__doc__, name)
    assert drawn == {call: mask_to_text(mask) for call, mask in DRAWN.items()}


# --- errors ---

SQUARE = torch.ones(3, 3, dtype=torch.bool)
FLAGS = torch.tensor([[1, 1, 0]])


@pytest.mark.usefixtures("raw_errors")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check_mask([[True]]), TypeError, "mask is a list; expected a torch.bool tensor"),
        (lambda: check_mask(causal_mask(3).float()), TypeError, "dtype torch.float32; .*from_additive"),
        (lambda: check_mask(SQUARE), ValueError, r"shape \[3, 3\]; .*mask\[None, None\]"),
        (lambda: all_of(causal_mask(3), SQUARE), ValueError, r"mask number 2 has shape \[3, 3\]"),
        (lambda: any_of(full_mask(3).int()), TypeError, "mask number 1 has dtype torch.int32"),
        (lambda: all_of(), ValueError, "no mask was given"),
        (lambda: all_of(full_mask(3), full_mask(2)), ValueError, r"\[1, 1, 3, 3\], \[1, 1, 2, 2\] do not broadcast"),
        (lambda: all_of(full_mask(3), full_mask(3).to("meta")), ValueError, r"several devices, \['cpu', 'meta'\]"),
        (lambda: dead_rows(SQUARE), ValueError, r"shape \[3, 3\]; expected 4 dimensions"),
        (lambda: pairwise_mask(torch.ge, SQUARE[None], SQUARE[0]), ValueError, r"query has shape \[1, 3, 3\]"),
        (lambda: pairwise_mask(torch.ge, SQUARE[0], SQUARE[0, 0]), ValueError, r"key has shape \[\]"),
        (lambda: pairwise_mask(torch.sub, FLAGS, FLAGS), TypeError, "rule returned torch.int64; .*boolean tensor"),
        (lambda: pairwise_mask(lambda q, k: True, FLAGS, FLAGS), TypeError, "rule returned bool;"),
        (lambda: causal_mask(-1), ValueError, "cannot be negative: length -1"),
        (lambda: causal_mask(2, 4, query_start=-2), ValueError, "cannot be negative: .*start -2"),
        (lambda: local_mask(3, back=-1), ValueError, "cannot be negative: back -1"),
        (lambda: local_mask(3, back=1, ahead=-2), ValueError, "cannot be negative: back 1, ahead -2"),
        (lambda: strided_mask(3, stride=0), ValueError, "must be at least 1: stride 0"),
        (lambda: padding_mask(FLAGS), TypeError, "valid has dtype torch.int64; .*from_hugging_face"),
        (lambda: padding_mask(SQUARE[0]), ValueError, r"valid has shape \[3\]; expected \[B, Lk\]"),
        (lambda: valid_from_lengths(torch.tensor([2, 5]), 4), ValueError, "from 2 to 5; expected 0 to max_len = 4"),
        (lambda: valid_from_lengths(torch.tensor([2, -1])), ValueError, "from -1 to 2; expected 0"),
        (lambda: graph_mask(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3), ValueError, r"shape \[2, 3\]; .*edges.T"),
        (lambda: graph_mask(torch.tensor([[0, 1], [1, 3]]), 3), ValueError, "from 0 to 3; expected 0 to .* = 2"),
        (lambda: graph_mask(torch.ones(3, 2), 3), TypeError, "edges has dtype torch.float32; expected integers"),
        (lambda: graph_mask(torch.tensor([[-1, 1]]), 3), ValueError, "from -1 to 1; expected 0 to .* = 2"),
        (lambda: hop_mask(full_mask(2, 3), 1), ValueError, r"shape \[1, 1, 2, 3\] .*; expected \[B, H, L, L\]"),
        (lambda: hop_mask(full_mask(2), -1), ValueError, "hops is -1; expected"),
        (lambda: mask_from_text("■1"), ValueError, r"only ■ \(may attend\) and ⬚ \(may not\), not \['1'\]"),
        (lambda: mask_from_text("■⬚ / ■"), ValueError, r"lengths \[2, 1\]; expected one length"),
        (lambda: mask_from_text(" "), ValueError, r"lengths \[\]"),
        (lambda: mask_to_text(full_mask(2).expand(3, 1, 2, 2)), ValueError, r"shape \[3, 1, 2, 2\]; choose one sample"),
        (lambda: mask_to_text(SQUARE), ValueError, r"shape \[3, 3\]; expected 4 dimensions"),
    ],
)
def test_an_error_says_what_came_and_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()
