"""What the benchmarks share: flags, the training of models, scores of the saved file, what stands beside a number."""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from utils.corpora import BucketedPairs, encode, train_tokenizer
from utils.training import (
    CHECKPOINTS,
    History,
    Loss,
    Model,
    load_checkpoint,
    save_checkpoint,
    seq2seq_loss,
    train,
    write_text,
)
from utils.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "data" / "cache" / "runs"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FILES = ("data", "mail_data", "resume", "save", "evaluate", "json")
SCORING = ("split", "beam", "length_penalty", "reply_to_every", "models")
NO_PART_OF_TRAINING = (*FILES, *SCORING, "full")  # flags with which the same model is trained
Batches = Callable[[int], Iterable[Any]]  # the batches of an epoch


def common_arguments(description: str, data: str, splits: Sequence[str]) -> argparse.ArgumentParser:
    """The flags of every benchmark that trains a model; `data` says what its folder holds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"folder with {data}; default: download")
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes of training")
    parser.add_argument("--split", choices=splits, default=splits[-1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=2, help="layers of the encoder, and of the decoder")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument(
        "--resume", type=Path, help="file for the state of the run: saved each minute, and gone on from"
    )
    parser.add_argument("--save", type=Path, help="write the trained model there, .safetensors")
    parser.add_argument("--evaluate", type=Path, nargs=2, metavar=("SRC", "TGT"), help="score the shipped checkpoint")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument(
        "--full",
        action="store_true",
        help="train the shipped model: its settings, its state in data/cache/runs (a second call goes on from there), "
        "the model to data/checkpoints",
    )
    return parser


def parsed(
    parser: argparse.ArgumentParser, name: str, settings: dict[Any, Any], *, by: str | None = None
) -> argparse.Namespace:
    """The arguments; with --full, `settings` and the files of the shipped model are the defaults.

    `name` is that of the model's files; a {flag} in it stands for the value of that flag. With `by`, `settings` holds
    those of a model for each value of that flag.
    """
    args = parser.parse_args()
    if args.evaluate and (args.full or args.save):
        parser.error("--evaluate scores the shipped model and trains none; leave out --full and --save.")
    if args.save and args.save.suffix != ".safetensors":
        parser.error(f"--save {args.save}: expected a name that ends in .safetensors.")
    if not args.full:
        return args
    if by:
        if (value := getattr(args, by)) not in settings:
            parser.error(f"--full trains the models of --{by} {' and '.join(map(str, settings))}; got {value}.")
        settings = settings[value]
    name = name.format(**vars(args)).replace("-", "_")
    files = {"resume": RUNS / f"{name}.safetensors", "save": CHECKPOINTS / f"{name}.safetensors"}
    parser.set_defaults(**settings, **files)
    return parser.parse_args()


def training_arguments(description: str, data: str, splits: Sequence[str]) -> argparse.ArgumentParser:
    """The common flags, and those of models that read and write text."""
    parser = common_arguments(description, data, splits)
    parser.add_argument("--vocabulary", type=int, default=4000, help="joint byte-pair pieces")
    parser.add_argument("--max-tokens", type=int, default=2048, help="sentences times tokens of a batch")
    parser.add_argument("--d-ff", type=int, help="features inside the feed-forward part; default: as shipped")
    parser.add_argument("--beam", type=int, default=5, help="beam size; 1 is greedy")
    return parser


def run_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that make a training what it is: a state is gone on from with the same ones only."""
    return {name: value for name, value in vars(args).items() if name not in NO_PART_OF_TRAINING}


def training_record(
    args: argparse.Namespace, model: Model, history: History, batches: Batches, lines: Iterable[str]
) -> dict:
    """With which settings a model was trained, what the run did, and on which lines of text."""
    batches_in_epoch = sum(1 for _ in batches(history.epoch))
    return {
        "settings": run_settings(args),
        "minutes": round(history.seconds / 60, 2),
        "epochs": round(history.epoch + history.batch / batches_in_epoch, 2),
        "target_tokens": history.tokens,
        "target_tokens_per_second": round(history.tokens_per_second),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "final_loss": round(sum(history.losses[-100:]) / len(history.losses[-100:]), 3),
        "train_sha256": digest(lines),
    }


def plain(pairs: BucketedPairs, _: Tokenizer) -> tuple[Batches, Loss]:
    """The recipe without anything special: the pairs, again and again, and teacher forcing."""
    return pairs, seq2seq_loss


def train_seq2seq(
    args: argparse.Namespace,
    sources: list[str],
    targets: list[str],
    *,
    source_limit: int | None = None,
    recipe: Callable[[BucketedPairs, Tokenizer], tuple[Batches, Loss]] = plain,
    start: tuple[Transformer, Tokenizer] | None = None,
) -> tuple[Transformer, Tokenizer, dict]:
    """An encoder-decoder trained on pairs of texts, its tokenizer, and the record of the training.

    `recipe` makes the batches of each epoch and the loss from the pairs and their tokenizer. With `start`, the
    training begins with the weights of that model, and with its pieces if --vocabulary asks for as many; ValueError if
    the flags ask for other sizes.
    """
    keeps = start and start[0].config.vocab_size == args.vocabulary
    tokenizer = start[1] if keeps else train_tokenizer(sources + targets, args.vocabulary)
    sides = encode(tokenizer, sources, limit=source_limit), encode(tokenizer, targets, bos=True)
    pairs = BucketedPairs(*sides, max_tokens=args.max_tokens, seed=args.seed)
    torch.manual_seed(args.seed)
    sizes = {"d_ff": args.d_ff or 2 * args.d_model, "num_layers": args.layers, "dropout": args.dropout}
    config = TransformerConfig(args.vocabulary, args.d_model, **sizes)
    model = (continued(*start, config, tokenizer) if start else Transformer(config)).to(DEVICE)
    batches, loss_of = recipe(pairs, tokenizer)
    history = trained(args, model, loss_of, batches)
    record = training_record(args, model, history, batches, sources + targets)
    return model, tokenizer, record | {"source_limit": source_limit}


def continued(start: Transformer, known: Tokenizer, config: TransformerConfig, pieces: Tokenizer) -> Transformer:
    """A model with the weights of `start` and the dropout of `config`; ValueError if the sizes of its layers differ.

    But its feed-forward parts may be wider: what comes in addition begins with no influence on the output, so the
    model begins as the same function (Chen et al., 2016). A piece that `start` knows keeps its vector also where the
    pieces are others; a new one begins at random.
    """
    free = {"dropout": config.dropout, "vocab_size": config.vocab_size, "d_ff": max(start.config.d_ff, config.d_ff)}
    if replace(start.config, **free) != config:
        raise ValueError(f"the model to start from is a {start.config}, and the flags ask for a {config}.")
    model = Transformer(config)
    weights, vectors = start.state_dict(), model.embedding.weight.detach().clone()
    known, pieces = known.get_vocab(), pieces.get_vocab()
    shared = sorted(known.keys() & pieces.keys())
    vectors[[pieces[piece] for piece in shared]] = weights["embedding.weight"][[known[piece] for piece in shared]]
    model.load_state_dict(widened(weights, model) | {"embedding.weight": vectors})
    return model


def widened(weights: dict[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """Weights for the wider feed-forward parts of `model`: it adds its own, but for the way back, where it adds 0."""
    result, own = dict(weights), model.state_dict()
    for name in (name for name in weights if ".feed_forward." in name):
        if name.endswith("feed_forward.2.weight"):  # [D, d_ff], back to the features of the model
            result[name] = F.pad(weights[name], (0, own[name].shape[1] - weights[name].shape[1]))
        elif not name.endswith("feed_forward.2.bias"):
            result[name] = torch.cat((weights[name], own[name][len(weights[name]) :]))
    return result


def trained(args: argparse.Namespace, model: nn.Module, loss_of: Loss, batches: Batches) -> History:
    """Train as the common flags say; the settings lie beside the state of the run."""
    budget = {"minutes": args.minutes, "learning_rate": args.learning_rate}
    return train(model, loss_of, batches, **budget, checkpoint=args.resume, settings=run_settings(args))


def score_and_save(
    result: dict, model: Model, tokenizer: Tokenizer, save: Path | None, scores: Callable[[Model, Tokenizer], dict]
) -> None:
    """Add the scores to the result, and save the model with it; what is scored is the saved file, as a reader's."""
    if save:
        save_checkpoint(save, model, tokenizer, result)
        model, tokenizer, _ = load_checkpoint(save)
    result["scores"] = scores(model.to(DEVICE), tokenizer)
    if save:
        save_checkpoint(save, model, tokenizer, result)


def surroundings() -> dict:
    """The command, the commit, the device and the versions that a number was measured with."""
    cuda = torch.cuda.is_available()
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *map(_plain, sys.argv[1:])]),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "sacrebleu")}
        | {"python": platform.python_version()},
    }


def commit() -> str | None:
    """The commit of the working tree, -dirty if it was changed; None outside of a clone or without git."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except FileNotFoundError:
        return None


def _plain(argument: str) -> str:
    """An argument without the folders of this machine."""
    return Path(argument).name if os.path.isabs(argument) else argument


def digest(lines: Iterable[str]) -> str:
    """sha256 over lines of text: names the data that a number was measured on."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def report(result: dict, path: Path | None) -> None:
    """Print a result, and write it to `path` if one is given."""
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if path:
        write_text(path, text + "\n")
