"""What masks cost: time as ratios, memory and padding as counts. Small sizes on a CPU, large ones on a GPU.

    python benchmarks/cost_of_masks.py --json result.json
    python benchmarks/cost_of_masks.py --corpus multi30k --length 4096

Notebook 14 calls these functions and explains them.
"""

import argparse
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from utils.attention import attention
from utils.conventions import to_additive
from utils.corpora import appointments, buckets, load_multi30k
from utils.masks import causal_mask, full_mask, local_mask, padding_mask, segment_mask, valid_from_lengths
from utils.transformer import EncoderLayer, TransformerConfig

Name = TypeVar("Name")
Run = Callable[[], object]
Batch = list[list[int]]  # rows, each with the lengths of the documents that stand in it one behind the other

CUDA = torch.cuda.is_available()
# It is compiled by Triton, which PyTorch for Windows lacks; older GPUs were reported to fail: pytorch issue 164813.
FLEX = CUDA and torch.cuda.get_device_capability() >= (8, 0) and find_spec("triton") is not None
DEVICE = "cuda" if CUDA else "cpu"
LENGTH, NUM_HEADS = (4096, 16) if CUDA else (2048, 2)
DTYPE = torch.float16 if CUDA else torch.float32  # every GPU's fused kernels take float16


# --- time


def measure(contestants: Mapping[Name, Run], *, rounds: int = 3, seconds: float = 0.05) -> dict[Name, list[float]]:
    """Seconds of one call of each contestant, once for each round.

    In a round they run one after the other, `seconds` each and in a new order, so that other work on the machine,
    and what the one before has left in the caches, slows all alike.
    """
    # a Timer takes one thread unless it is told otherwise; it waits for the GPU by itself
    threads = torch.get_num_threads()
    timers = {name: Timer("run()", globals={"run": run}, num_threads=threads) for name, run in contestants.items()}
    for run in contestants.values():
        run()  # the first call also compiles and allocates
    times: dict[Name, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name in random.sample(list(timers), len(timers)):
            times[name].append(timers[name].blocked_autorange(min_run_time=seconds).median)
    return times


def ratios(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, float]:
    """How many times as long as `baseline` each contestant takes: the median over the rounds."""
    return {
        name: median(own / base for own, base in zip(values, times[baseline], strict=True))
        for name, values in times.items()
    }


def random_qkv(length: int, *, num_heads: int = NUM_HEADS, device: str = DEVICE) -> Tensor:
    """Random query, key and value, [3, 1, H, L, 64]."""
    return torch.randn(3, 1, num_heads, length, 64, device=device, dtype=DTYPE if device == "cuda" else torch.float32)


def mask_contestants(qkv: Tensor) -> dict[str, Run]:
    """The same attention without a mask and with masks in every form; "weights" returns the attention weights."""
    length, device = qkv.shape[-2], qkv.device
    causal = causal_mask(length, device=device)
    sdpa = partial(F.scaled_dot_product_attention, *qkv)
    return {
        "no mask": sdpa,
        "boolean, all True": partial(sdpa, attn_mask=full_mask(length, device=device)),
        "boolean, causal": partial(sdpa, attn_mask=causal),
        "additive, causal": partial(sdpa, attn_mask=to_additive(causal, qkv.dtype)),
        "is_causal": partial(sdpa, is_causal=True),
        "weights, no mask": partial(attention, *qkv),
        "weights, causal": partial(attention, *qkv, causal),
    }


def padding_contestants(qkv: Tensor) -> dict[str, Run]:
    """A batch whose second half is padding: not masked, masked, and cut off."""
    length = qkv.shape[-2]
    valid = valid_from_lengths(torch.tensor([length // 2], device=qkv.device), length)
    sdpa = F.scaled_dot_product_attention
    return {
        "no mask": partial(sdpa, *qkv),
        "half masked": partial(sdpa, *qkv, attn_mask=padding_mask(valid)),
        "half cut off": partial(sdpa, *qkv[..., : length // 2, :]),
    }


def local_attention(query: Tensor, key: Tensor, value: Tensor, *, back: int) -> Tensor:
    """Attention under `local_mask(L, back=back)` in blocks of `back` queries: 2·L·back scores instead of L².

    A block sees the keys of its own block and of the one before, which hold everything its window reaches.
    Tensors are [B, H, L, D]; L must be a multiple of `back`, else ValueError.
    """
    batch, _, length, _ = query.shape
    if length % back:
        raise ValueError(f"length {length} is not a multiple of back = {back}; pad the batch to one.")

    def with_the_block_before(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, back, 0)).unfold(2, 2 * back, back).transpose(-2, -1).flatten(0, 1)

    blocks = length // back
    mask = local_mask(back, 2 * back, back=back, query_start=back, device=query.device).repeat(1, blocks, 1, 1)
    mask[:, 0, :, :back] = False  # there is nothing before the first block
    query = query.unflatten(2, (blocks, back)).flatten(0, 1)  # [B, H, L, D] -> [B·H, blocks, back, D]
    output, _ = attention(query, with_the_block_before(key), with_the_block_before(value), mask, need_weights=False)
    return output.unflatten(0, (batch, -1)).flatten(2, 3)  # -> [B, H, L, D]


def growth(lengths: Sequence[int], *, back: int) -> dict[str, list[float]]:
    """Seconds against length: a window of `back` keys as a dense mask and in blocks, and no mask at all.

    All lengths are measured in the same rounds, and the fastest round counts, as the least disturbed one.
    """
    contestants: dict[tuple[str, int], Run] = {}
    for length in lengths:
        qkv = random_qkv(length)
        window = local_mask(length, back=back, device=qkv.device)
        contestants["no mask", length] = partial(F.scaled_dot_product_attention, *qkv)
        contestants["window, dense mask", length] = partial(F.scaled_dot_product_attention, *qkv, attn_mask=window)
        contestants["window, in blocks", length] = partial(local_attention, *qkv, back=back)
    seconds: dict[str, list[float]] = {}
    for (name, _), times in measure(contestants).items():
        seconds.setdefault(name, []).append(min(times))
    return seconds


def flex_contestants(qkv: Tensor, *, back: int) -> dict[str, Run]:
    """The same masks, dense and as the block masks of FlexAttention."""
    length, device = qkv.shape[-2], qkv.device
    sdpa = partial(F.scaled_dot_product_attention, *qkv)
    return {
        "causal, dense mask": partial(sdpa, attn_mask=causal_mask(length, device=device)),
        "causal, is_causal": partial(sdpa, is_causal=True),
        "causal, block mask": flex_run(qkv, lambda b, h, q, k: q >= k)[0],
        "window, dense mask": partial(sdpa, attn_mask=local_mask(length, back=back, device=device)),
        "window, block mask": flex_run(qkv, lambda b, h, q, k: (q - back <= k) & (k <= q))[0],
    }


def flex_run(qkv: Tensor, rule: Callable[..., Tensor]) -> tuple[Run, BlockMask]:
    """FlexAttention under a rule of (batch, head, query, key), compiled on a GPU, and the block mask of the rule.

    It is compiled for this very length; a kernel for any length would check its bounds in every block.
    """
    length, device = qkv.shape[-2], qkv.device.type
    block_mask = create_block_mask(rule, None, None, length, length, device=device)
    flex = torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
    return partial(flex, *qkv, block_mask=block_mask), block_mask


# --- kernels and memory


def memory_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements in memory; what is only broadcast is not there twice."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _Recorder(TorchDispatchMode):
    """Writes down each operation and the bytes of the largest tensor that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [item for item in (result if isinstance(result, tuple) else (result,)) if isinstance(item, Tensor)]
        self.operations.append((function.name().removeprefix("aten::"), max(map(memory_bytes, tensors), default=0)))
        return result


def operations(run: Run) -> list[tuple[str, int]]:
    """The operations that a call consists of, each with the bytes of the largest tensor that it returns."""
    with _Recorder() as recorder, torch.no_grad():
        run()
    return recorder.operations


def kernel(run: Run) -> str:
    """Which kernel SDPA chooses in this call: the name of the fused one, or "math" for separate operations."""
    names = [name for name, _ in operations(run)]
    return next((name.removeprefix("_scaled_dot_product_") for name in names if "_scaled_dot_product" in name), "math")


def backends(run: Run) -> list[str]:
    """The backends of SDPA that accept this call, found by trial: each is allowed alone."""
    accepted = []
    for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with warnings.catch_warnings(action="ignore"), sdpa_kernel(getattr(SDPBackend, backend)):
                run()
            accepted.append(backend)
        except RuntimeError:  # "No available kernel", with the reasons as warnings
            continue
    return accepted


def backend_cases(qkv: Tensor) -> dict[str, Run]:
    """Calls of SDPA that differ in their mask."""
    length, device = qkv.shape[-2], qkv.device
    causal = causal_mask(length, device=device)
    valid = valid_from_lengths(torch.tensor([length // 2], device=device), length)
    sdpa = partial(F.scaled_dot_product_attention, *qkv)
    return {
        "no mask": sdpa,
        "is_causal": partial(sdpa, is_causal=True),
        "boolean [1, 1, L, L]": partial(sdpa, attn_mask=causal),
        "padding [B, 1, 1, L]": partial(sdpa, attn_mask=padding_mask(valid)),
        "additive [1, 1, L, L]": partial(sdpa, attn_mask=to_additive(causal, qkv.dtype)),
        "learned bias": partial(sdpa, attn_mask=to_additive(causal, qkv.dtype).requires_grad_()),
        "boolean, dropout": partial(sdpa, attn_mask=causal, dropout_p=0.1),
    }


def peak_bytes(run: Run) -> int:
    """What a call needs on the GPU at its peak, beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# --- padding


class Bill(NamedTuple):
    """Places and query-key pairs that are computed, and how many of them hold something real."""

    tokens: int
    places: int
    needed_pairs: int
    pairs: int


def unsorted_batches(lengths: Sequence[int], max_tokens: int, *, seed: int = 0) -> Iterator[Batch]:
    """Random batches of one size, as many rows as the longest document allows within `max_tokens`."""
    shuffled = random.Random(seed).sample(lengths, len(lengths))
    size = max_tokens // max(lengths)
    for start in range(0, len(lengths), size):
        yield [[length] for length in shuffled[start : start + size]]


def bucketed_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[Batch]:
    """Batches of neighbours in length, each within `max_tokens`."""
    for group in buckets(lengths, max_tokens):
        yield [[lengths[index]] for index in group]


def pack(lengths: Sequence[int], row_len: int) -> list[list[int]]:
    """Rows of at most `row_len` tokens: longest document first, each into the fullest row with enough room.

    Best-fit decreasing, as in Krell et al. (2021). Raises ValueError if a document is longer than a row.
    """
    if max(lengths) > row_len:
        raise ValueError(f"a document of {max(lengths)} tokens does not fit into rows of {row_len}.")
    with_room: list[list[list[int]]] = [[] for _ in range(row_len + 1)]  # rows by the places they have left
    for length in sorted(lengths, reverse=True):
        room = next((room for room in range(length, row_len) if with_room[room]), row_len)
        row = with_room[room].pop() if with_room[room] else []
        with_room[room - length].append([*row, length])
    return [row for rows in with_room for row in rows]


def packed_batches(lengths: Sequence[int], max_tokens: int, *, row_len: int) -> Iterator[Batch]:
    """Batches of packed rows, each within `max_tokens`."""
    rows, size = pack(lengths, row_len), max_tokens // row_len
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def segments(batch: Batch) -> Tensor:
    """The number of its document for each place of a batch, from 0 in each row; -1 for padding. Int[B, L]."""
    ids = torch.full((len(batch), max(map(sum, batch))), -1)
    for row, lengths in zip(ids, batch, strict=True):
        row[: sum(lengths)] = torch.repeat_interleave(torch.tensor(lengths))
    return ids


def bill(batches: Sequence[Batch]) -> Bill:
    """What batches cost, counted: each batch is a rectangle as long as its longest row."""
    documents = [length for batch in batches for row in batch for length in row]
    shapes = [(len(batch), max(map(sum, batch))) for batch in batches]
    return Bill(
        tokens=sum(documents),
        places=sum(rows * length for rows, length in shapes),
        needed_pairs=sum(length**2 for length in documents),
        pairs=sum(rows * length**2 for rows, length in shapes),
    )


def layer_contestants(schemes: Mapping[str, Sequence[Batch]], *, device: str = DEVICE) -> dict[str, Run]:
    """One encoder layer over all batches of each scheme, with the mask that its rows need."""
    layer = EncoderLayer(TransformerConfig(vocab_size=1, d_model=128, dropout=0.0)).to(device).eval()

    def forward(inputs: list[tuple[Tensor, Tensor]]) -> None:
        with torch.no_grad():
            for x, mask in inputs:
                layer(x, mask)

    def prepared(batch: Batch) -> tuple[Tensor, Tensor]:
        ids = segments(batch).to(device)
        one_document_a_row = max(map(len, batch)) == 1
        return torch.randn(*ids.shape, 128, device=device), (
            padding_mask(ids >= 0) if one_document_a_row else segment_mask(ids)
        )

    return {name: partial(forward, [prepared(batch) for batch in batches]) for name, batches in schemes.items()}


def all_batches(lengths: Sequence[int], max_tokens: int, *, row_len: int) -> dict[str, list[Batch]]:
    """The three ways to put documents into batches of at most `max_tokens` places."""
    return {
        "unsorted": list(unsorted_batches(lengths, max_tokens)),
        "bucketed": list(bucketed_batches(lengths, max_tokens)),
        "packed": list(packed_batches(lengths, max_tokens, row_len=row_len)),
    }


def corpus_lengths(corpus: str, *, folder: Path | None = None) -> list[int]:
    """Words of each text: generated dialogues, or the English captions of Multi30k, downloaded or from `folder`."""
    texts = appointments(2000)[0] if corpus == "appointments" else load_multi30k("train", ["en"], folder=folder)[0]
    return [len(text.split()) for text in texts]


def rounded(values: Mapping[str, float], digits: int = 2) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def padding_result(lengths: Sequence[int], max_tokens: int, row_len: int) -> dict[str, dict]:
    """What each way to make batches computes, and the speed of an encoder layer in real tokens a second."""
    schemes = all_batches(lengths, max_tokens, row_len=row_len)
    times = measure(layer_contestants(schemes))
    return {
        name: bill(batches)._asdict() | {"tokens_per_second": round(sum(lengths) / median(times[name]))}
        for name, batches in schemes.items()
    }


def main() -> None:
    from common import report, surroundings  # beside a script it is found; a notebook has no need of it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=["appointments", "multi30k"], default="appointments")
    parser.add_argument("--data", type=Path, help="folder with train.en.gz; default: download")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--back", type=int, default=128, help="keys before the query in the local window")
    parser.add_argument("--max-tokens", type=int, default=2048, help="places of a batch")
    parser.add_argument("--row-len", type=int, default=128, help="places of a packed row")
    parser.add_argument("--json", type=Path, help="write the result there")
    args = parser.parse_args()

    if args.length % (4 * args.back):
        parser.error(f"--length {args.length} must be a multiple of 4 times --back, {4 * args.back}.")
    lengths = corpus_lengths(args.corpus, folder=args.data)
    if max(lengths) > min(args.max_tokens, args.row_len):
        parser.error(f"the longest text has {max(lengths)} words, more than --max-tokens or --row-len holds.")
    if args.row_len > args.max_tokens:
        parser.error(f"--row-len {args.row_len} is more than --max-tokens {args.max_tokens}: no row fits a batch.")
    qkv = random_qkv(args.length)
    masks, padding, cases = mask_contestants(qkv), padding_contestants(qkv), backend_cases(random_qkv(256))
    settings = {name: value for name, value in vars(args).items() if name not in ("data", "json")}
    result = surroundings() | settings | {"num_heads": NUM_HEADS, "dtype": str(DTYPE)}
    result["time_to_no_mask"] = rounded(ratios(measure(masks | padding), "no mask"))
    result["kernels"] = {name: {"chosen": kernel(run), "accepted": backends(run)} for name, run in cases.items()}
    result["largest_tensor_bytes"] = {name: max(size for _, size in operations(run)) for name, run in masks.items()}
    result["growth_seconds"] = growth([args.length // 4, args.length // 2, args.length], back=args.back)
    result["padding"] = padding_result(lengths, args.max_tokens, args.row_len)
    flex = flex_contestants(qkv, back=args.back) if FLEX else {}
    if FLEX:
        result["flex_to_is_causal"] = rounded(ratios(measure(flex), "causal, is_causal"))
    if CUDA:
        result["peak_bytes"] = {name: peak_bytes(run) for name, run in (masks | flex).items()}
    report(result, args.json)


if __name__ == "__main__":
    main()
