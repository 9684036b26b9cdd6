"""What the benchmark of masks counts is right, and its contestants compute the same; no time is asserted."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from benchmarks import cost_of_masks as cost
from utils.attention import attention
from utils.masks import causal_mask, full_mask, local_mask

LENGTHS = [5, 1, 3, 3, 8, 2, 2, 7, 1, 4]
SCHEMES = cost.all_batches(LENGTHS, 16, row_len=8)


def output(run):
    """What a contestant computes, without the weights that some return."""
    result = run()
    return result[0] if isinstance(result, tuple) else result


def qkv(length):
    return cost.random_qkv(length, num_heads=2, device="cpu")


def test_all_forms_of_a_mask_compute_the_same():
    q, k, v = tensors = qkv(6)
    runs = cost.mask_contestants(tensors)
    for name, run in runs.items():
        mask = causal_mask(6) if "causal" in name else full_mask(6)
        assert_close(output(run), attention(q, k, v, mask)[0], msg=name)


def test_masked_padding_and_cut_padding_agree_on_the_real_half():
    runs = cost.padding_contestants(qkv(6))
    assert_close(output(runs["half masked"])[:, :, :3], output(runs["half cut off"]))
    assert not torch.allclose(output(runs["no mask"])[:, :, :3], output(runs["half cut off"]))


@pytest.mark.parametrize(("blocks", "back"), [(1, 4), (2, 1), (3, 4)])
def test_local_attention_in_blocks_equals_the_dense_window(blocks, back):
    q, k, v = torch.randn(3, 2, 3, blocks * back, 8)
    expected, _ = attention(q, k, v, local_mask(blocks * back, back=back))
    assert_close(cost.local_attention(q, k, v, back=back), expected)


def test_local_attention_refuses_a_length_that_its_blocks_do_not_fill():
    with pytest.raises(ValueError, match="length 7 is not a multiple of back = 2"):
        cost.local_attention(*torch.randn(3, 1, 1, 7, 4), back=2)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_block_masks_compute_the_same_as_dense_ones():
    runs = cost.flex_contestants(qkv(256), back=20)
    causal, fast, blocks, window, window_blocks = map(output, runs.values())
    assert_close(fast, causal)
    assert_close(blocks, causal)
    assert_close(window_blocks, window)


def test_every_contestant_is_measured_in_every_round():
    calls = []
    times = cost.measure({name: partial(calls.append, name) for name in "ab"}, rounds=3, seconds=1e-5)
    assert list(times) == ["a", "b"] and set(calls) == {"a", "b"}
    assert all(len(values) == 3 and min(values) > 0 for values in times.values())


def test_ratios_compare_within_a_round():
    """Round by round b takes twice as long; the medians alone, 2 and 2, would call them equal."""
    assert cost.ratios({"a": [1, 2, 9], "b": [2, 4, 1]}, "a") == {"a": 1, "b": 2}


def test_the_growth_has_one_number_for_each_length():
    seconds = cost.growth([8, 16], back=4)
    assert {len(values) for values in seconds.values()} == {2}


def test_operations_tell_the_largest_tensor():
    q, k, v = qkv(96)
    names, sizes = zip(*cost.operations(partial(attention, q, k, v, causal_mask(96))), strict=True)
    assert "_softmax" in names and max(sizes) == 2 * 96 * 96 * 4  # the scores of two heads in float32


def test_a_broadcast_tensor_takes_the_memory_of_what_it_repeats():
    assert cost.memory_bytes(torch.zeros(3, 1, 1, 5).expand(3, 2, 4, 5)) == 3 * 5 * 4
    assert cost.memory_bytes(torch.zeros(3, 8)[:1]) == 8 * 4


def test_the_kernel_is_the_one_that_was_forced():
    run = partial(F.scaled_dot_product_attention, *qkv(6))
    for backend, expected in ((SDPBackend.MATH, "math"), (SDPBackend.FLASH_ATTENTION, "flash_attention_for_cpu")):
        with sdpa_kernel(backend):
            assert cost.kernel(run) == expected


def test_a_refused_backend_is_not_listed():
    cases = cost.backend_cases(qkv(6))
    accepted = {name: cost.backends(run) for name, run in cases.items()}
    assert "FLASH_ATTENTION" in accepted["no mask"] and "FLASH_ATTENTION" not in accepted["learned bias"]
    assert all("MATH" in names for names in accepted.values())


def test_packing_keeps_every_document_and_fills_no_row_too_far():
    rows = cost.pack(LENGTHS, 8)
    assert sorted(length for row in rows for length in row) == sorted(LENGTHS)
    assert max(map(sum, rows)) <= 8
    assert len(rows) == 5  # 36 tokens cannot do with fewer rows of 8


def test_packing_takes_the_fullest_row_with_enough_room():
    assert sorted(cost.pack([2, 5, 6], 8)) == [[5], [6, 2]]


def test_packing_refuses_a_document_longer_than_a_row():
    with pytest.raises(ValueError, match="a document of 9 tokens does not fit into rows of 8"):
        cost.pack([3, 9], 8)


def test_segments_number_the_documents_of_a_row():
    assert cost.segments([[2, 1], [1]]).tolist() == [[0, 0, 1], [0, -1, -1]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_bill_equals_a_count_place_by_place(scheme):
    tokens = places = needed = pairs = 0
    for batch in SCHEMES[scheme]:
        for row in cost.segments(batch).tolist():
            for query in row:
                places, tokens = places + 1, tokens + (query >= 0)
                for key in row:
                    pairs, needed = pairs + 1, needed + (query == key >= 0)
    assert cost.bill(SCHEMES[scheme]) == (tokens, places, needed, pairs)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_holds_the_corpus_within_its_budget(scheme):
    batches = SCHEMES[scheme]
    assert sorted(length for batch in batches for row in batch for length in row) == sorted(LENGTHS)
    assert max(len(batch) * max(map(sum, batch)) for batch in batches) <= 16


def test_an_encoder_layer_takes_the_batches_of_every_scheme():
    for run in cost.layer_contestants(SCHEMES, device="cpu").values():
        run()


def test_the_corpus_needs_no_network():
    lengths = cost.corpus_lengths("appointments")
    assert len(lengths) == 2000 and min(lengths) > 0


def test_it_starts_as_a_script_from_anywhere(tmp_path):
    script = Path(cost.__file__)
    done = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--length" in done.stdout, done.stderr
