"""Time and memory of attention against length, for dense, causal, local and packed masks.

    python benchmarks/length.py --json result.json

Each mask runs as a dense boolean tensor and in the form that knows its structure: `is_causal`, blocks of a window,
one row for each packed document; on a GPU also as a block mask of FlexAttention. Memory is that of the mask and, on a
CPU, of the largest tensor that any operation of the call returns; on a GPU, of what the call needs at its peak.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from common import report, surroundings
from cost_of_masks import (
    CUDA,
    FLEX,
    NUM_HEADS,
    Run,
    flex_run,
    local_attention,
    measure,
    memory_bytes,
    operations,
    peak_bytes,
    random_qkv,
)
from torch import Tensor
from tqdm import tqdm

from utils.masks import all_of, causal_mask, local_mask, segment_mask

LENGTHS = [128, 512, 2048, 8192, 16384]


def packed_mask(length: int, document: int, device: torch.device) -> Tensor:
    """Causal attention inside documents of `document` tokens that stand in one row: [1, 1, L, L]."""
    return all_of(
        causal_mask(length, device=device), segment_mask(torch.arange(length, device=device)[None] // document)
    )


def as_rows(qkv: Tensor, *, document: int) -> Tensor:
    """The same attention with each document in a row of its own: documents of one length need no mask but causal."""
    query, key, value = (x[0].unflatten(1, (-1, document)).transpose(0, 1) for x in qkv)  # [documents, H, document, D]
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return output.transpose(0, 1).flatten(1, 2)[None]


def contestants(qkv: Tensor, block: int) -> dict[str, tuple[Run, int]]:
    """Each form of each mask: how to call it, and the bytes that its mask takes. Windows and documents: `block`."""
    length, device = qkv.shape[-2], qkv.device
    sdpa = partial(F.scaled_dot_product_attention, *qkv)
    dense = {
        "causal, dense mask": causal_mask(length, device=device),
        "local, dense mask": local_mask(length, back=block, device=device),
        "packed, dense mask": packed_mask(length, block, device),
    }
    structured = {
        "no mask": sdpa,
        "causal, is_causal": partial(sdpa, is_causal=True),
        "local, in blocks": partial(local_attention, *qkv, back=block),
        "packed, as rows": partial(as_rows, qkv, document=block),
    }
    result = {name: (partial(sdpa, attn_mask=mask), memory_bytes(mask)) for name, mask in dense.items()}
    result |= {name: (run, 0) for name, run in structured.items()}
    return result | (flex(qkv, block) if FLEX else {})


def flex(qkv: Tensor, block: int) -> dict[str, tuple[Run, int]]:
    """The three masks as block masks of FlexAttention, and the bytes of each."""
    torch.compiler.reset()  # it compiles so many lengths only, and then runs what is slower without a word
    rules: dict[str, Callable[..., Tensor]] = {
        "causal, block mask": lambda b, h, q, k: q >= k,
        "local, block mask": lambda b, h, q, k: (q >= k) & (q - k <= block),
        "packed, block mask": lambda b, h, q, k: (q >= k) & (q // block == k // block),
    }
    runs = {name: flex_run(qkv, rule) for name, rule in rules.items()}
    return {
        name: (run, memory_bytes(mask.kv_indices) + memory_bytes(mask.kv_num_blocks))
        for name, (run, mask) in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="multiples of --block")
    parser.add_argument("--block", type=int, default=128, help="keys of a window, tokens of a packed document")
    parser.add_argument("--json", type=Path, help="write the result there")
    args = parser.parse_args()
    if odd := [length for length in args.lengths if length % args.block]:
        parser.error(f"--lengths {odd} are no multiples of --block {args.block}.")

    milliseconds: dict[str, dict[int, float]] = {}
    megabytes: dict[str, dict[int, float]] = {}
    for length in tqdm(args.lengths, desc="lengths"):
        runs = contestants(random_qkv(length), args.block)
        for name, times in measure({name: run for name, (run, _) in runs.items()}).items():
            milliseconds.setdefault(name, {})[length] = round(1000 * min(times), 3)
        for name, (run, mask_bytes) in runs.items():
            call_bytes = peak_bytes(run) if CUDA else max(size for _, size in operations(run))
            megabytes.setdefault(name, {})[length] = round((mask_bytes + call_bytes) / 2**20, 2)
    sizes = {"num_heads": NUM_HEADS, "head_dim": 64, "block": args.block}
    report(surroundings() | sizes | {"milliseconds": milliseconds, "mebibytes": megabytes}, args.json)


if __name__ == "__main__":
    main()
