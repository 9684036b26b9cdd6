"""Training speed as ratios in one run: this package, torch.nn.Transformer, and unsorted batches.

    python benchmarks/training_speed.py --json result.json

All train the same sizes on Multi30k de-en with the same loss and optimizer, in turns of a few seconds, so that a
busy machine slows all of them alike. Speed is counted in real target tokens a second; padding earns nothing.
"""

import argparse
import time
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from common import report, surroundings
from torch import Tensor, nn

from utils.conventions import to_key_padding
from utils.corpora import BucketedPairs, Seq2SeqBatch, encode, load_multi30k, seq2seq_batch, train_tokenizer
from utils.masks import causal_mask
from utils.training import seq2seq_loss, token_loss, train
from utils.transformer import TokenEmbedding, Transformer, TransformerConfig


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


def torch_loss(model: TorchTransformer, batch: Seq2SeqBatch) -> tuple[Tensor, int]:
    """`seq2seq_loss` for torch.nn.Transformer."""
    valid = batch.tgt_valid[:, 1:]
    return token_loss(model(batch), batch.tgt[:, 1:], valid, label_smoothing=0.1), int(valid.sum())


def matrix_product_rate(size: int = 2048, rounds: int = 10) -> float:
    """What this machine reaches in large float32 matrix products, in GFLOP/s."""
    a, b = torch.randn(2, size, size)
    a @ b
    start = time.perf_counter()
    for _ in range(rounds):
        a @ b
    return rounds * 2 * size**3 / (time.perf_counter() - start) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.de.gz and so on; default: download")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25, help="steps of each contestant in a round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    sources, targets = load_multi30k("train", ["de", "en"], folder=args.data)
    tokenizer = train_tokenizer(sources + targets, 4000)
    sources, targets = encode(tokenizer, sources), encode(tokenizer, targets, bos=True)
    bucketed = BucketedPairs(sources, targets, max_tokens=2048)
    unsorted = [seq2seq_batch(sources[n : n + 128], targets[n : n + 128]) for n in range(0, len(sources), 128)]
    config = TransformerConfig(4000, args.d_model, d_ff=2 * args.d_model, num_layers=args.layers)

    torch.manual_seed(0)
    ours, theirs = Transformer(config), TorchTransformer(config)
    contestants = {
        "ours, bucketed": partial(train, ours, seq2seq_loss),
        "nn.Transformer, bucketed": partial(train, theirs, torch_loss),
        "nn.Transformer, unsorted 128": partial(train, theirs, torch_loss),
    }
    # every round goes on where the last one stopped, so that all meet the same mixture of lengths
    streams = {name: cycle(list(bucketed(0))) for name in contestants}
    streams["nn.Transformer, unsorted 128"] = cycle(unsorted)
    speeds = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, run in contestants.items():
            history = run(lambda _, name=name: streams[name], steps=args.steps, description=name)
            speeds[name].append(history.tokens_per_second)
    result = {name: round(median(values)) for name, values in speeds.items()}
    ratios = {name: round(result["ours, bucketed"] / value, 2) for name, value in result.items()}
    report(
        surroundings()
        | {"d_model": args.d_model, "layers": args.layers, "matrix_product_gflops": round(matrix_product_rate())}
        | {"target_tokens_per_second": result, "ours_is_faster_by": ratios},
        args.json,
    )


if __name__ == "__main__":
    main()
