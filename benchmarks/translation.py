"""Train a translation model on Multi30k and score it, or score the shipped one on files of your own.

    python benchmarks/translation.py --direction de-en --minutes 5 --json result.json
    python benchmarks/translation.py --direction en-de --evaluate my.en.gz my.de.gz

Without --data the corpus is downloaded. BLEU is counted in both usual ways: sacrebleu 13a lower-cased, and
lower-cased Moses tokens as in Wu et al. (2021). Choose settings with --split val; test_2016_flickr is for the end.
"""

import argparse
from pathlib import Path

import torch
from common import digest, report, surroundings
from tokenizers import Tokenizer

from utils.corpora import BucketedPairs, encode, load_multi30k, read_lines, train_tokenizer
from utils.decoding import translate
from utils.scores import bleu_13a, bleu_moses
from utils.training import CHECKPOINTS, load_checkpoint, save_checkpoint, seq2seq_loss, train
from utils.transformer import Transformer, TransformerConfig


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.de.gz and so on; default: download")
    parser.add_argument("--direction", choices=["de-en", "en-de"], default="de-en")
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes of training")
    parser.add_argument("--split", choices=["val", "test_2016_flickr"], default="test_2016_flickr")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=2, help="layers of the encoder, and of the decoder")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--vocabulary", type=int, default=4000, help="joint byte-pair pieces")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--max-tokens", type=int, default=2048, help="sentences times tokens of a batch")
    parser.add_argument("--beam", type=int, default=5, help="beam size; 1 is greedy")
    parser.add_argument(
        "--resume", type=Path, help="file for the state of the run: saved each minute, and gone on from"
    )
    parser.add_argument("--save", type=Path, help="write the trained model there, .safetensors")
    parser.add_argument("--evaluate", type=Path, nargs=2, metavar=("SRC", "TGT"), help="score the shipped checkpoint")
    parser.add_argument("--json", type=Path, help="write the result there")
    return parser.parse_args()


def scores(model: Transformer, tokenizer: Tokenizer, sources: list[str], targets: list[str], language: str, beam: int):
    """BLEU of greedy and of beam search, both ways of counting."""
    result = {}
    for name, size in {"greedy": 1, f"beam {beam}": beam}.items():
        output = translate(model, tokenizer, sources, beam_size=size)
        result[name] = {
            "bleu_13a": round(bleu_13a(output, targets), 2),
            "bleu_moses": round(bleu_moses(output, targets, language), 2),
        }
    return result


def trained(args: argparse.Namespace, languages: list[str]) -> tuple[Transformer, Tokenizer, dict]:
    """A model trained on Multi30k, its tokenizer, and the record of the training."""
    sources, targets = load_multi30k("train", languages, folder=args.data)
    tokenizer = train_tokenizer(sources + targets, args.vocabulary)
    pairs = BucketedPairs(
        encode(tokenizer, sources), encode(tokenizer, targets, bos=True), max_tokens=args.max_tokens, seed=args.seed
    )
    torch.manual_seed(args.seed)
    config = TransformerConfig(
        args.vocabulary, args.d_model, d_ff=2 * args.d_model, num_layers=args.layers, dropout=args.dropout
    )
    model = Transformer(config).to("cuda" if torch.cuda.is_available() else "cpu")
    history = train(
        model, seq2seq_loss, pairs, minutes=args.minutes, learning_rate=args.learning_rate, checkpoint=args.resume
    )
    return (
        model,
        tokenizer,
        {
            "minutes": round(history.seconds / 60, 2),
            "epochs": round(history.tokens / sum(len(ids) - 1 for ids in pairs.targets), 2),
            "target_tokens": history.tokens,
            "target_tokens_per_second": round(history.tokens_per_second),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "final_loss": round(sum(history.losses[-100:]) / len(history.losses[-100:]), 3),
            "train_sha256": digest(sources + targets),
        },
    )


def main() -> None:
    args = arguments()
    languages = args.direction.split("-")
    result = {"task": f"Multi30k {args.direction}", "seed": args.seed} | surroundings()
    if args.evaluate:
        shipped = CHECKPOINTS / f"translation_{args.direction.replace('-', '_')}.safetensors"
        model, tokenizer, record = load_checkpoint(shipped)
        sources, targets = map(read_lines, args.evaluate)
        result["trained_by"] = record["command"]
    else:
        model, tokenizer, training = trained(args, languages)
        result |= training
        sources, targets = load_multi30k(args.split, languages, folder=args.data)
    if args.save:  # score what a reader will load: the file, in half precision
        save_checkpoint(args.save, model, tokenizer, result)
        model, tokenizer, _ = load_checkpoint(args.save)
    result["scored_on"] = "given files" if args.evaluate else f"{args.split}, {len(sources)} pairs"
    result["scores"] = scores(model, tokenizer, sources, targets, languages[1], args.beam)
    if args.save:
        save_checkpoint(args.save, model, tokenizer, result)
    report(result, args.json)


if __name__ == "__main__":
    main()
