"""Training speed as ratios in one run: this package, torch.nn.Transformer, unsorted batches, and dense attention.

    python benchmarks/training_speed.py --json result.json
    python benchmarks/training_speed.py --layers 3 --d-model 256
    python benchmarks/training_speed.py --variants --profile

All train the same sizes on Multi30k de-en with the same loss and optimizer, in turns of a few seconds and in a new
order each time, so that a busy machine slows all of them alike. Speed is counted in real target tokens a second;
padding earns nothing. Beside it stands which part of the machine's own matrix-product rate the training reaches.
With --variants the same model also runs in bfloat16 and compiled; --profile prints where the time goes.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import torch
from common import DEVICE, report, surroundings
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from utils.conventions import to_key_padding
from utils.corpora import BucketedPairs, Seq2SeqBatch, encode, load_multi30k, seq2seq_batch, train_tokenizer
from utils.masks import causal_mask
from utils.training import Loss, mixed_precision, seq2seq_loss, token_loss, train
from utils.transformer import Seq2SeqMasks, TokenEmbedding, Transformer, TransformerConfig, seq2seq_masks

DENSE_ROWS, DENSE_LEN = 32, 72
LARGE = 8192 if DEVICE == "cuda" else 2048  # side of a matrix; a smaller one would not fill a GPU
Contestant = tuple[nn.Module, Loss, list[Seq2SeqBatch]]


class TorchTransformer(nn.Module):
    """torch.nn.Transformer between the same embedding and output, called as its documentation says."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(config)
        layers = {"num_encoder_layers": config.num_layers, "num_decoder_layers": config.num_layers}
        sizes = {"d_model": config.d_model, "nhead": config.num_heads, "dim_feedforward": config.d_ff}
        self.transformer = nn.Transformer(**sizes, **layers, dropout=config.dropout, batch_first=True, norm_first=True)

    def forward(self, batch: Seq2SeqBatch) -> Tensor:
        blocked = ~causal_mask(batch.tgt.shape[1] - 1, device=batch.tgt.device)[0, 0]
        source_padding = to_key_padding(batch.src_valid)
        hidden = self.transformer(
            self.embedding(batch.src),
            self.embedding(batch.tgt[:, :-1]),
            tgt_mask=blocked,
            src_key_padding_mask=source_padding,
            tgt_key_padding_mask=to_key_padding(batch.tgt_valid[:, :-1]),
            memory_key_padding_mask=source_padding,
        )
        return self.embedding.logits(hidden)


def smoothed_loss(logits: Tensor, batch: Seq2SeqBatch) -> tuple[Tensor, int]:
    """What `seq2seq_loss` makes of its logits."""
    valid = batch.tgt_valid[:, 1:]
    return token_loss(logits, batch.tgt[:, 1:], valid, label_smoothing=0.1), int(valid.sum())


def torch_loss(model: TorchTransformer, batch: Seq2SeqBatch) -> tuple[Tensor, int]:
    """`seq2seq_loss` for torch.nn.Transformer."""
    return smoothed_loss(model(batch), batch)


class WrittenOutAttention(nn.Module):
    """Multi-head attention as most tutorials write it: three projections, all scores, masked_fill, softmax."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query, self.key, self.value, self.output = (nn.Linear(config.d_model, config.d_model) for _ in range(4))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query_input: Tensor, key_value_input: Tensor, mask: Tensor, **_: object) -> tuple[Tensor, None]:
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, L, D] -> [B, H, L, Dh]
            for layer, x in ((self.query, query_input), (self.key, key_value_input), (self.value, key_value_input))
        )
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        weights = self.dropout(scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1))
        return self.output((weights @ value).transpose(1, 2).flatten(2)), None


def written_out(config: TransformerConfig) -> Transformer:
    """This package's Transformer with every attention written out, and PyTorch's own dropout."""
    model = Transformer(config)
    model.embedding.dropout = nn.Dropout(config.dropout)
    for layer in [*model.encoder, *model.decoder]:
        layer.self_attention, layer.dropout = WrittenOutAttention(config), nn.Dropout(config.dropout)
    for layer in model.decoder:
        layer.cross_attention = WrittenOutAttention(config)
    return model


def dense_loss(model: Transformer, batch: Seq2SeqBatch) -> tuple[Tensor, int]:
    """`seq2seq_loss` with every mask in full size, [B, 1, Lq, Lk]."""
    src_len, tgt_len = batch.src.shape[1], batch.tgt.shape[1] - 1
    lengths = Seq2SeqMasks(src_len, tgt_len, tgt_len)
    masks = seq2seq_masks(batch.src_valid, batch.tgt_valid[:, :-1])
    dense = [mask.expand(-1, -1, queries, -1).contiguous() for mask, queries in zip(masks, lengths, strict=True)]
    logits, _ = model(batch.src, batch.tgt[:, :-1], Seq2SeqMasks(*dense))
    return smoothed_loss(logits, batch)


def dense_batches(sources: Sequence[list[int]], targets: Sequence[list[int]]) -> list[Seq2SeqBatch]:
    """Unsorted batches of `DENSE_ROWS` sentences, each padded to `DENSE_LEN` tokens.

    Raises ValueError for a longer sentence.
    """

    def padded(side: Tensor) -> Tensor:
        if side.shape[1] > DENSE_LEN:
            raise ValueError(f"a sentence has {side.shape[1]} tokens, more than DENSE_LEN = {DENSE_LEN}; raise that.")
        return nn.functional.pad(side, (0, DENSE_LEN - side.shape[1]))  # PAD is 0, and False is not valid

    starts = range(0, len(sources), DENSE_ROWS)
    batches = (seq2seq_batch(sources[n : n + DENSE_ROWS], targets[n : n + DENSE_ROWS]) for n in starts)
    return [Seq2SeqBatch(*map(padded, batch)) for batch in batches]


def matrix_product_rate(size: int = LARGE, products: int = 10, rounds: int = 5) -> float:
    """What this machine reaches in large matrix products, in the precision of training: GFLOP/s, the best round."""
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=mixed_precision(torch.device(DEVICE)) or torch.float32)
    (a @ b).sum().item()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(products):
            product = a @ b
        product.sum().item()  # a GPU works on its own: only asking for a number waits for it
        seconds.append(time.perf_counter() - start)
    return products * 2 * size**3 / min(seconds) / 1e9


def flops_of_a_token(model: Transformer, batches: Sequence[Seq2SeqBatch]) -> float:
    """Floating-point operations of matrix products, forward and backward, for each real target token.

    The products inside of fused attention are not counted on a CPU.
    """
    labels = 0
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            loss, count = seq2seq_loss(model, batch.to(DEVICE))
            loss.backward()
            labels += count
    return counter.get_total_flops() / labels


def bfloat16_loss(model: Transformer, batch: Seq2SeqBatch) -> tuple[Tensor, int]:
    """`seq2seq_loss` in mixed precision, which `train` uses on a GPU alone."""
    with torch.autocast(DEVICE, torch.bfloat16):
        return seq2seq_loss(model, batch)


def print_profile(model: Transformer, batches: Sequence[Seq2SeqBatch]) -> None:
    """Where the time of training goes, by operation."""
    with profile() as profiler:
        train(model, seq2seq_loss, lambda _: batches, steps=len(batches), description="profile")
    table = profiler.key_averages().table(sort_by=f"self_{DEVICE}_time_total", row_limit=15, max_name_column_width=40)
    print(table, file=sys.stderr)


def speeds(contestants: dict[str, Contestant], rounds: int, steps: int) -> dict[str, list[float]]:
    """Target tokens a second of each contestant, once for each round, in a new order each time."""
    # every round goes on where the last one stopped, so that all meet the same mixture of lengths
    endless = {name: cycle(batches) for name, (_, _, batches) in contestants.items()}

    def run(name: str, steps: int, description: str) -> float:
        model, loss_of, _ = contestants[name]
        return train(model, loss_of, lambda _: endless[name], steps=steps, description=description).tokens_per_second

    for name in contestants:
        run(name, 3, "warm-up")
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in random.sample(list(contestants), len(contestants)):
            found[name].append(run(name, steps, name))
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.de.gz and so on; default: download")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25, help="steps of each contestant in a round")
    parser.add_argument("--variants", action="store_true", help="the same model in bfloat16 and compiled as well")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    sources, targets = load_multi30k("train", ["de", "en"], folder=args.data)
    tokenizer = train_tokenizer(sources + targets, 4000)
    sources, targets = encode(tokenizer, sources), encode(tokenizer, targets, bos=True)
    bucketed = list(BucketedPairs(sources, targets, max_tokens=2048)(0))
    unsorted = [seq2seq_batch(sources[n : n + 128], targets[n : n + 128]) for n in range(0, len(sources), 128)]
    dense = dense_batches(sources, targets)

    torch.manual_seed(0)
    config = TransformerConfig(4000, args.d_model, d_ff=2 * args.d_model, num_layers=args.layers)
    ours, theirs = Transformer(config).to(DEVICE), TorchTransformer(config).to(DEVICE)
    contestants: dict[str, Contestant] = {
        "ours, bucketed": (ours, seq2seq_loss, bucketed),
        "nn.Transformer, bucketed": (theirs, torch_loss, bucketed),
        "nn.Transformer, unsorted 128": (theirs, torch_loss, unsorted),
        "written out, dense masks, 32 padded to 72": (written_out(config).to(DEVICE), dense_loss, dense),
    }
    if args.variants:
        contestants["ours, bucketed, compiled"] = (torch.compile(ours, dynamic=True), seq2seq_loss, bucketed)
        if DEVICE == "cpu":  # on a GPU it would be the same contestant once more
            contestants["ours, bucketed, bfloat16"] = (ours, bfloat16_loss, bucketed)
    found = speeds(contestants, args.rounds, args.steps)

    result = {name: round(median(values)) for name, values in found.items()}
    ratios = {name: round(result["ours, bucketed"] / value, 2) for name, value in result.items()}
    flops, rate = flops_of_a_token(ours, list(islice(bucketed, args.steps))), matrix_product_rate()
    fraction = round(result["ours, bucketed"] * flops / (rate * 1e9), 3)
    report(
        surroundings()
        | {"d_model": args.d_model, "layers": args.layers, "matrix_product_gflops": round(rate)}
        | {"mflops_of_a_token": round(flops / 1e6, 1), "fraction_of_matrix_product_rate": fraction}
        | {"target_tokens_per_second": result, "ours_is_faster_by": ratios},
        args.json,
    )
    if args.profile:
        print_profile(ours, list(islice(bucketed, args.steps)))


if __name__ == "__main__":
    main()
