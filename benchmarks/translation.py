"""Train a translation model on Multi30k and score it, or score the shipped one on files of your own.

    python benchmarks/translation.py --direction de-en --minutes 5 --json result.json
    python benchmarks/translation.py --direction en-de --full
    python benchmarks/translation.py --direction de-en --full
    python benchmarks/translation.py --direction en-de --evaluate my.en.gz my.de.gz

Without --data the corpus is downloaded. BLEU is counted in both usual ways: sacrebleu 13a lower-cased, and
lower-cased Moses tokens as in Wu et al. (2021). Choose settings with --split val; test_2016_flickr is for the end.
"""

import argparse
import hashlib
from collections.abc import Sequence
from functools import partial

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
from regularisation import LaterRDrop, ResegmentedPairs
from tokenizers import Tokenizer
from torch.optim.swa_utils import AveragedModel

from utils.corpora import BucketedPairs, encode, load_multi30k, read_lines
from utils.decoding import translate
from utils.scores import bleu_13a, bleu_moses
from utils.training import CHECKPOINTS, Loss, load_checkpoint, mean_loss, seq2seq_loss, write_text
from utils.transformer import Transformer

BOTH_WAYS = CHECKPOINTS / "translation_de_en.safetensors"  # the shipped model that was trained both ways
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
        "--from-both-ways", action="store_true", help="start with the weights of the shipped model trained both ways"
    )
    parser.add_argument(
        "--translated", action="store_true", help="train also on each side beside its translation by that model"
    )
    parser.add_argument("--length-penalty", type=float, default=1.0, help="of beam search; above 1: longer sentences")
    parser.add_argument("--bpe-dropout", type=float, default=0.0, help="share of merges left out, anew in each epoch")
    parser.add_argument("--r-drop", type=float, default=0.0, help="weight of the divergence between two dropouts")
    parser.add_argument("--r-drop-from", type=int, default=0, help="epoch in which R-Drop begins")
    parser.add_argument(
        "--models", type=int, default=1, help="train so many, from --seed on; the mean of their weights is the model"
    )
    args = parsed(parser, "translation_{direction}", FULL, by="direction")
    if args.models > 1 and not args.from_both_ways:
        parser.error("--models: only models that began with the same weights have a mean; add --from-both-ways.")
    return args


def regularised(
    pairs: BucketedPairs, tokenizer: Tokenizer, args: argparse.Namespace, texts: tuple[list[str], list[str]]
) -> tuple[Batches, Loss]:
    """The recipe: the regularisers that the flags ask for."""
    settings = {"dropout": args.bpe_dropout, "max_tokens": args.max_tokens, "seed": args.seed}
    batches = ResegmentedPairs(tokenizer, *texts, **settings) if args.bpe_dropout else pairs
    if not args.r_drop:
        return batches, seq2seq_loss
    later = LaterRDrop(batches, first=args.r_drop_from, weight=args.r_drop)
    return later.batches, later.loss


def translated(lines: list[str]) -> list[str]:
    """Lines of either language as the shipped model writes them in the other one, with beam 5.

    They are kept in data/cache/runs/, under a name made from that model and the lines.
    """
    model, tokenizer, _ = load_checkpoint(BOTH_WAYS)
    file = RUNS / f"translated_{digest([hashlib.sha256(BOTH_WAYS.read_bytes()).hexdigest(), *lines])[:16]}.txt"
    if not file.exists():
        write_text(file, "\n".join(translate(model.to(DEVICE), tokenizer, lines, beam_size=5)))
    return file.read_text(encoding="utf-8").split("\n")


def training_texts(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Both sides of train; as the flags ask, beside them their translations (Nguyen et al., 2020), and the way back."""
    sources, targets = load_multi30k("train", args.direction.split("-"), folder=args.data)
    if args.translated:
        sources, targets = sources + sources + translated(targets), targets + translated(sources) + targets
    if args.both_ways:
        sources, targets = sources + targets, targets + sources
    return sources, targets


def nats(model: Transformer, tokenizer: Tokenizer, sides: dict[str, list[list[str]]]) -> dict:
    """Mean cross-entropy of a target piece of each of these texts, without label smoothing."""
    result = {}
    for name, (sources, targets) in sides.items():
        pairs = BucketedPairs(encode(tokenizer, sources), encode(tokenizer, targets, bos=True), max_tokens=4096)
        result[name] = round(mean_loss(model, partial(seq2seq_loss, label_smoothing=0.0), pairs(0)), 3)
    return {"nats": result}


def runs(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The flags of each training: those of the command, or of several models with a seed and a state for each."""
    settings = {name: value for name, value in vars(args).items() if name != "models"}
    if args.models == 1:
        return [argparse.Namespace(**settings)]
    seeds = range(args.seed, args.seed + args.models)
    states = [args.resume and args.resume.with_stem(f"{args.resume.stem}_{seed}") for seed in seeds]
    return [argparse.Namespace(**settings | {"seed": s, "resume": r}) for s, r in zip(seeds, states, strict=True)]


def train_models(args: argparse.Namespace, given: list[list[str]]) -> tuple[Transformer, Tokenizer, dict]:
    """The model that the flags ask for, and its record; of several models the mean of their weights.

    Such a mean is a good model if all began with the same trained weights (Wortsman et al., 2022).
    """
    texts, start = training_texts(args), load_checkpoint(BOTH_WAYS)[:2] if args.from_both_ways else None
    sides = {f"train, {SAMPLE} pairs": [side[:SAMPLE] for side in texts], args.split: given}
    found = []
    for run in runs(args):
        recipe = partial(regularised, args=run, texts=texts)
        found.append(train_seq2seq(run, *texts, recipe=recipe, start=start))
    for model, tokenizer, record in found:
        record |= nats(model, tokenizer, sides)
    if args.models == 1:
        return found[0]
    for model, tokenizer, record in found:
        record["scores"] = scores(model, tokenizer, given, args)
    models, tokenizers, records = zip(*found, strict=True)
    mean = mean_weights(models)
    record = {name: records[0][name] for name in ("parameters", "train_sha256")} | nats(mean, tokenizers[0], sides)
    record["seed"] = [one["settings"]["seed"] for one in records]
    record["minutes"] = round(sum(one["minutes"] for one in records), 2)
    return mean, tokenizers[0], record | {"mean_of": records}


def mean_weights(models: Sequence[Transformer]) -> Transformer:
    """A model with the means of the weights of several."""
    mean = AveragedModel(models[0])
    for model in models:
        mean.update_parameters(model)
    return mean.module


def scores(model: Transformer, tokenizer: Tokenizer, given: list[list[str]], args: argparse.Namespace) -> dict:
    """BLEU in the direction asked for and, of a model trained both ways, also back."""
    there, back = args.direction.split("-")
    result = bleu(model, tokenizer, given, back, args)
    if not args.both_ways:
        return result
    return result | {f"{back}-{there}": bleu(model, tokenizer, given[::-1], there, args)}


def bleu(
    model: Transformer, tokenizer: Tokenizer, given: list[list[str]], language: str, args: argparse.Namespace
) -> dict:
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


def main() -> None:
    args = arguments()
    languages = args.direction.split("-")
    result = {"task": f"Multi30k {args.direction}", "seed": args.seed} | surroundings()
    if args.evaluate:
        shipped = CHECKPOINTS / f"translation_{args.direction.replace('-', '_')}.safetensors"
        model, tokenizer, record = load_checkpoint(shipped)
        given = [read_lines(path) for path in args.evaluate]
        result["trained_by"] = record["command"]
    else:
        given = load_multi30k(args.split, languages, folder=args.data)  # before the training: what is missing shows now
        model, tokenizer, training = train_models(args, given)
        result |= training
    result["scored_on"] = "given files" if args.evaluate else f"{args.split}, {len(given[0])} pairs"
    score_and_save(result, model, tokenizer, args.save, partial(scores, given=given, args=args))
    report(result, args.json)


if __name__ == "__main__":
    main()
