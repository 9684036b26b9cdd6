"""Train a dialogue model on Schema-Guided Dialogue and score it, or score the shipped one on dialogues of your own.

    python benchmarks/dialogue.py --minutes 5 --json result.json
    python benchmarks/dialogue.py --full
    python benchmarks/dialogue.py --evaluate user.txt assistant.txt

Without --data the corpus is downloaded. The scores are perplexity, of a piece and of a word (with its end mark), and
BLEU of greedy replies to the right history; beside them those of unigrams and of the most common reply of the training
data. Dropout and label smoothing are strong, because the services of dev and test are others than those of train, and
a model that is too sure of itself pays for it. With --mails N the model also reads the e-mails of AESLC, an N-th of
them in each epoch, which hold words that the dialogues of train do not. With --evaluate, each line of the first file is
answered by the same line of the second; an empty line in both ends a dialogue.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, compress
from pathlib import Path

import torch
from common import DEVICE, common_arguments, parsed, report, score_and_save, surroundings, trained, training_record
from tokenizers import Tokenizer

from utils.chat import replies
from utils.corpora import (
    SPEAKERS,
    BucketedTexts,
    TextBatch,
    dialogue_windows,
    encode,
    load_aeslc,
    load_schema_guided,
    read_lines,
    train_tokenizer,
)
from utils.scores import bleu_13a
from utils.training import CHECKPOINTS, language_loss, load_checkpoint, mean_loss
from utils.transformer import DecoderOnly, TransformerConfig

Dialogues = list[list[str]]
FULL = {"minutes": 26.0, "layers": 4, "dropout": 0.2, "vocabulary": 1000, "mails": 2, "max_tokens": 2048}


def arguments() -> argparse.Namespace:
    parser = common_arguments(__doc__, "the folders train, dev and test", ["test", "dev"])
    parser.set_defaults(layers=3, dropout=0.3)
    parser.add_argument("--vocabulary", type=int, default=1500, help="byte-pair pieces")
    parser.add_argument("--max-tokens", type=int, default=1024, help="windows times tokens of a batch")
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--context", type=int, default=256, help="tokens of a window")
    parser.add_argument("--mails", type=int, default=0, help="read an n-th of the e-mails in each epoch; 0: none")
    parser.add_argument("--mail-data", type=Path, help="folder with the archive of AESLC; default: download")
    parser.add_argument("--reply-to-every", type=int, default=1, help="BLEU on every n-th turn alone")
    return parsed(parser, "dialogue", FULL)


def assistant(args: argparse.Namespace, dialogues: Dialogues) -> tuple[DecoderOnly, Tokenizer, dict]:
    """A model trained on the turns of the assistant, its tokenizer, and the record of the training."""
    lines = [turn for dialogue in dialogues for turn in dialogue]
    mails = [" ".join(body) for body in load_aeslc("train", folder=args.mail_data)[0]] if args.mails else []
    tokenizer = train_tokenizer(lines + mails, args.vocabulary, markers=SPEAKERS)
    texts, scored = dialogue_windows(tokenizer, dialogues, args.context)
    pages = mail_windows(tokenizer, mails, args.context)
    sizes = {"d_model": args.d_model, "d_ff": 4 * args.d_model, "num_layers": args.layers, "dropout": args.dropout}
    torch.manual_seed(args.seed)
    model = DecoderOnly(TransformerConfig(args.vocabulary, **sizes)).to(DEVICE)

    def batches(epoch: int) -> Iterator[TextBatch]:
        share = pages[epoch % args.mails :: args.mails] if args.mails else []
        flags = [*scored, *([True] * len(page) for page in share)]
        return BucketedTexts(texts + share, flags, max_tokens=args.max_tokens, seed=args.seed)(epoch)

    loss_of = partial(language_loss, label_smoothing=args.label_smoothing)
    history = trained(args, model, loss_of, batches)
    record = training_record(args, model, history, batches, lines + mails)
    return model, tokenizer, {"context": args.context} | record


def mail_windows(tokenizer: Tokenizer, mails: Sequence[str], limit: int) -> list[list[int]]:
    """Token ids of e-mails, [BOS] to [EOS], cut after every `limit` tokens; an [EOS] that is left alone is dropped."""
    ids = encode(tokenizer, mails, bos=True)
    return [mail[start : start + limit] for mail in ids for start in range(0, len(mail) - 1, limit)]


def baselines(train_dialogues: Dialogues, tokenizer: Tokenizer, given: Dialogues, every: int, context: int) -> dict:
    """Perplexity of unigrams (plus one) over the bot's pieces, and BLEU of the most common reply."""
    counts = Counter(scored_pieces(train_dialogues, tokenizer, context))
    total = sum(counts.values()) + tokenizer.get_vocab_size()
    pieces = scored_pieces(given, tokenizer, context)
    nats = -sum(math.log((counts[piece] + 1) / total) for piece in pieces) / len(pieces)
    _, references = histories_and_replies(given, every)
    common = Counter(histories_and_replies(train_dialogues, 1)[1]).most_common(1)[0][0]
    bleu = bleu_13a([common] * len(references), references)
    return {
        "unigrams": {"perplexity_piece": round(math.exp(nats), 2)},
        "most_common_reply": {"text": common, "bleu_13a": round(bleu, 2)},
    }


def scored_pieces(dialogues: Dialogues, tokenizer: Tokenizer, context: int) -> list[int]:
    """The ids of all pieces that the assistant writes."""
    texts, scored = dialogue_windows(tokenizer, dialogues, context)
    return list(compress(chain(*texts), chain(*scored)))


def histories_and_replies(dialogues: Dialogues, every: int) -> tuple[Dialogues, list[str]]:
    """What was said before each turn of the assistant, and that turn; of all of them every n-th."""
    cases = [(dialogue[:turn], dialogue[turn]) for dialogue in dialogues for turn in range(1, len(dialogue), 2)][
        ::every
    ]
    histories, references = zip(*cases, strict=True)
    return list(histories), list(references)


def scores(model: DecoderOnly, tokenizer: Tokenizer, dialogues: Dialogues, every: int, context: int) -> dict:
    """Perplexity of the assistant's turns, and BLEU of greedy replies."""
    texts, scored = dialogue_windows(tokenizer, dialogues, context)
    nats = mean_loss(model, language_loss, BucketedTexts(texts, scored, max_tokens=4096)(0))
    pieces = sum(map(sum, scored))
    words = sum(len(turn.split()) + 1 for dialogue in dialogues for turn in dialogue[1::2])  # 1: the end of the turn
    histories, references = histories_and_replies(dialogues, every)
    written = replies(model, tokenizer, histories, context=context)
    return {
        "perplexity_piece": round(math.exp(nats), 2),
        "perplexity_word": round(math.exp(nats * pieces / words), 1),
        "bleu_13a": round(bleu_13a(written, references), 2),
        "replies": len(references),
    }


def read_dialogues(paths: Sequence[Path]) -> Dialogues:
    """Dialogues from a file with the turns of the user and one with those of the assistant."""
    dialogues: Dialogues = [[]]
    for pair in zip(*map(read_lines, paths), strict=True):
        if any(pair):
            dialogues[-1] += pair
        else:
            dialogues.append([])
    return [dialogue for dialogue in dialogues if dialogue]


def main() -> None:
    args = arguments()
    result = {"task": "Schema-Guided Dialogue", "seed": args.seed} | surroundings()
    if args.evaluate:
        model, tokenizer, record = load_checkpoint(CHECKPOINTS / "dialogue.safetensors")
        args.context, given = record["context"], read_dialogues(args.evaluate)
        result["trained_by"] = record["command"]
    else:
        train_dialogues = load_schema_guided("train", folder=args.data)
        given = load_schema_guided(args.split, folder=args.data)  # before the training: what is missing shows now
        model, tokenizer, training = assistant(args, train_dialogues)
        result |= training
        result["baselines"] = baselines(train_dialogues, tokenizer, given, args.reply_to_every, args.context)
    result["scored_on"] = "given files" if args.evaluate else f"{args.split}, {len(given)} dialogues"
    score = partial(scores, dialogues=given, every=args.reply_to_every, context=args.context)
    score_and_save(result, model, tokenizer, args.save, score)
    report(result, args.json)


if __name__ == "__main__":
    main()
