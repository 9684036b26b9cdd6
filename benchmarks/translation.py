"""Train a translation model on Multi30k and score it, or score the shipped one on files of your own.

    python benchmarks/translation.py --direction de-en --minutes 5 --json result.json
    python benchmarks/translation.py --direction en-de --full
    python benchmarks/translation.py --direction de-en --full
    python benchmarks/translation.py --direction en-de --evaluate my.en.gz my.de.gz
    python benchmarks/translation.py --evaluate my.en.gz my.de.gz --models translation_en_de translation_en_de_second

Without --data the corpus is downloaded. BLEU is counted in both usual ways: sacrebleu 13a lower-cased, and
lower-cased Moses tokens as in Wu et al. (2021). Choose settings with --split val; test_2016_flickr is for the end.
"""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common import (
    DEVICE,
    RUNS,
    Batches,
    digest,
    parsed,
    report,
    score_and_save,
    surroundings,
    train_seq2seq,
    training_arguments,
)
from invention import invented
from regularisation import LaterRDrop, ResegmentedPairs, TaughtPairs, distillation_loss, hiding_loss, specialised
from tokenizers import Tokenizer

from utils.corpora import BucketedPairs, encode, load_multi30k, read_lines
from utils.decoding import translate
from utils.scores import bleu_13a, bleu_moses
from utils.training import CHECKPOINTS, Loss, load_checkpoint, mean_loss, seq2seq_loss, write_text
from utils.transformer import Transformer

BOTH_WAYS = "translation_de_en"  # the shipped model that was trained both ways
Models = Transformer | Sequence[Transformer]  # several write together
SHIPPED = sorted(path.stem for path in CHECKPOINTS.glob("translation_*.safetensors"))
OWN_PAIRS = 29_000  # those of --direction stand in front, as many as train has lines
SAMPLE = 1500  # pairs of train on which the loss is counted after the training
COMMON = {"layers": 3, "learning_rate": 4e-3}
FULL = {
    "en-de": COMMON | {"minutes": 120.0, "dropout": 0.3},
    "de-en": COMMON | {"minutes": 108.0, "dropout": 0.25, "both_ways": True},
}


def arguments() -> argparse.Namespace:
    parser = training_arguments(__doc__, "train.de.gz and so on", ["val", "test_2016_flickr"])
    parser.add_argument("--direction", choices=["de-en", "en-de"], default="en-de")
    parser.add_argument(
        "--both-ways", action="store_true", help="train each pair in both directions: which is meant, the source shows"
    )
    parser.add_argument(
        "--start",
        metavar="NAME",
        choices=SHIPPED,
        help="start with the weights of a shipped model, say translation_de_en",
    )
    parser.add_argument(
        "--teachers",
        metavar="NAME",
        choices=SHIPPED,
        nargs="+",
        default=[],
        help="shipped models whose probabilities, their mean, take the place of the labels",
    )
    parser.add_argument(
        "--translated", action="store_true", help="train also on each side beside its translation by that model"
    )
    parser.add_argument(
        "--invented",
        type=int,
        default=0,
        metavar="N",
        help="draw N new sources from a language model of train; the teachers translate them",
    )
    parser.add_argument("--french", action="store_true", help="train also on French sources of the same targets")
    parser.add_argument(
        "--specialise-from", type=int, metavar="EPOCH", help="from this epoch on only the pairs of --direction"
    )
    parser.add_argument("--length-penalty", type=float, default=1.0, help="of beam search; above 1: longer sentences")
    parser.add_argument("--bpe-dropout", type=float, default=0.0, help="share of merges left out, anew in each epoch")
    parser.add_argument("--hide", type=float, default=0.0, help="share of tokens that the model reads as [UNK]")
    parser.add_argument("--r-drop", type=float, default=0.0, help="weight of the divergence between two dropouts")
    parser.add_argument("--r-drop-from", type=int, default=0, help="epoch in which R-Drop begins")
    parser.add_argument(
        "--models",
        metavar="NAME",
        choices=SHIPPED,
        nargs="+",
        help="shipped models that --evaluate scores, several as one; default: that of --direction",
    )
    args = parsed(parser, "translation_{direction}", FULL, by="direction")
    if args.models and not args.evaluate:
        parser.error("--models: says which shipped models are scored; add --evaluate SRC TGT.")
    if sum(map(bool, (args.teachers, args.hide, args.r_drop))) > 1:
        parser.error("--teachers, --hide and --r-drop are different losses; give one of them.")
    if args.invented and not (args.start and args.teachers):
        parser.error("--invented: new sentences are drawn in the pieces of --start and translated by --teachers.")
    if sum((args.specialise_from is not None, args.bpe_dropout > 0, bool(args.teachers))) > 1:
        parser.error("--specialise-from, --bpe-dropout and --teachers make the batches of an epoch; give one of them.")
    return args


def regularised(
    pairs: BucketedPairs, tokenizer: Tokenizer, args: argparse.Namespace, texts: tuple[list[str], list[str]]
) -> tuple[Batches, Loss]:
    """The recipe: the regularisers that the flags ask for."""
    settings = {"dropout": args.bpe_dropout, "max_tokens": args.max_tokens, "seed": args.seed}
    batches = ResegmentedPairs(tokenizer, *texts, **settings) if args.bpe_dropout else pairs
    if args.specialise_from is not None:
        batches = specialised(pairs, OWN_PAIRS, first=args.specialise_from)
    if args.teachers:
        return TaughtPairs(pairs, shipped(args.teachers, tokenizer)[0]), distillation_loss
    if args.hide:
        return batches, partial(hiding_loss, share=args.hide)
    if not args.r_drop:
        return batches, seq2seq_loss
    later = LaterRDrop(batches, first=args.r_drop_from, weight=args.r_drop)
    return later.batches, later.loss


def shipped(
    names: Sequence[str], tokenizer: Tokenizer | None = None
) -> tuple[list[Transformer], Tokenizer, list[dict]]:
    """Shipped models, by the names of their files without the ending, their tokenizer and their records.

    Raises ValueError if they do not all read the pieces of `tokenizer`, or those of the first.
    """
    models, tokenizers, records = zip(*(load_checkpoint(weights_of(name)) for name in names), strict=True)
    tokenizer = tokenizer or tokenizers[0]
    for name, own in zip(names, tokenizers, strict=True):
        if own.get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"{name} reads other pieces than the model beside it, or the one that it is to teach.")
    return [model.to(DEVICE) for model in models], tokenizer, list(records)


def weights_of(name: str) -> Path:
    """The file of a shipped model."""
    return CHECKPOINTS / f"{name}.safetensors"


def kept(made_from: Sequence[str], make: Callable[[], list[str]]) -> list[str]:
    """Lines that take minutes to make. They stay in data/cache/runs/, under a digest of what they are made from."""
    file = RUNS / f"lines_{digest(made_from)[:16]}.txt"
    if not file.exists():
        write_text(file, "\n".join(make()))
    return file.read_text(encoding="utf-8").split("\n")


def translated(lines: list[str], names: Sequence[str], *, beam_size: int) -> list[str]:
    """Lines as shipped models together write them in the other language."""

    def write() -> list[str]:
        models, tokenizer, _ = shipped(names)
        return translate(models, tokenizer, lines, beam_size=beam_size)

    weights = [hashlib.sha256(weights_of(name).read_bytes()).hexdigest() for name in names]
    return kept([*weights, f"beam {beam_size}", *lines], write)


def training_texts(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Both sides of train, and behind them what the flags ask for.

    That is their translations (Nguyen et al., 2020), the way back, the same targets with French sources, and new
    sources as the teachers translate them.
    """
    languages = [*args.direction.split("-"), *["fr"] * args.french]
    sources, own_targets, *french = load_multi30k("train", languages, folder=args.data)
    targets = own_targets
    if args.translated:
        there, back = (translated(side, [BOTH_WAYS], beam_size=5) for side in (sources, targets))
        sources, targets = sources + sources + back, targets + there + targets
    if args.both_ways:
        sources, targets = sources + targets, targets + sources
    if args.french:
        sources, targets = sources + french[0], targets + own_targets
    if args.invented:
        pieces, own = shipped([args.start])[1], sources[:OWN_PAIRS]
        made_from = [pieces.to_str(), f"{args.invented} drawn", *own]
        new = kept(made_from, partial(invented, pieces, own, args.invented))
        sources, targets = sources + new, targets + translated(new, args.teachers, beam_size=1)
    return sources, targets


def nats(model: Transformer, tokenizer: Tokenizer, texts: list[list[str]]) -> float:
    """Mean cross-entropy of a target piece without label smoothing."""
    sources, targets = texts
    pairs = BucketedPairs(encode(tokenizer, sources), encode(tokenizer, targets, bos=True), max_tokens=4096)
    return round(mean_loss(model, partial(seq2seq_loss, label_smoothing=0.0), pairs(0)), 3)


def scores(model: Models, tokenizer: Tokenizer, given: list[list[str]], args: argparse.Namespace) -> dict:
    """BLEU in the direction asked for and, of a model trained both ways, also back."""
    there, back = args.direction.split("-")
    result = bleu(model, tokenizer, given, back, args)
    if not args.both_ways:
        return result
    return result | {f"{back}-{there}": bleu(model, tokenizer, given[::-1], there, args)}


def bleu(model: Models, tokenizer: Tokenizer, given: list[list[str]], language: str, args: argparse.Namespace) -> dict:
    """BLEU of greedy and of beam search into `language`, both ways of counting."""
    (sources, targets), result = given, {}
    beam = f"beam {args.beam}, length penalty {args.length_penalty:g}"
    for name, size in {"greedy": 1, beam: args.beam}.items():
        output = translate(model, tokenizer, sources, beam_size=size, length_penalty=args.length_penalty)
        result[name] = {
            "bleu_13a": round(bleu_13a(output, targets), 2),
            "bleu_moses": round(bleu_moses(output, targets, language), 2),
        }
    return result


def evaluate(args: argparse.Namespace) -> dict:
    """The scores of what is shipped on files of the reader's own, and how it was trained."""
    models, tokenizer, records = shipped(args.models or [f"translation_{args.direction.replace('-', '_')}"])
    given = [read_lines(path) for path in args.evaluate]
    return {
        "trained_by": [record["command"] for record in records],
        "parameters": sum(weight.numel() for model in models for weight in model.parameters()),
        "scored_on": "given files",
        "scores": scores(models, tokenizer, given, args),
    }


def main() -> None:
    args = arguments()
    languages = args.direction.split("-")
    result = {"task": f"Multi30k {args.direction}", "seed": args.seed} | surroundings()
    if args.evaluate:
        report(result | evaluate(args), args.json)
        return
    given = load_multi30k(args.split, languages, folder=args.data)  # before the training: what is missing shows now
    texts, start = training_texts(args), None
    if args.start:
        (model,), tokenizer, _ = shipped([args.start])
        start = model, tokenizer
    recipe = partial(regularised, args=args, texts=texts)
    model, tokenizer, training = train_seq2seq(args, *texts, recipe=recipe, start=start)
    sides = {f"train, {SAMPLE} pairs": [side[:SAMPLE] for side in texts], args.split: given}
    result |= training | {"nats": {name: nats(model, tokenizer, side) for name, side in sides.items()}}
    result["scored_on"] = f"{args.split}, {len(given[0])} pairs"
    score_and_save(result, model, tokenizer, args.save, partial(scores, given=given, args=args))
    report(result, args.json)


if __name__ == "__main__":
    main()
