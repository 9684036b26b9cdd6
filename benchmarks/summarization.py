"""Train a model that writes subject lines for e-mails (AESLC) and score it, or score the shipped one on your files.

    python benchmarks/summarization.py --minutes 5 --json result.json
    python benchmarks/summarization.py --full
    python benchmarks/summarization.py --evaluate bodies.txt subjects.txt

Without --data the corpus is downloaded. In the first epochs (--copying-epochs) the model writes a sentence of the
e-mail itself, which teaches it to copy; then the subject line. ROUGE F1 with stemming, beside that of the lead sentence
on the same split. Choose settings with --split dev; test is for the end.
"""

from functools import partial
from itertools import chain, islice

from common import Batches, parsed, report, score_and_save, surroundings, train_seq2seq, training_arguments
from tokenizers import Tokenizer

from utils.corpora import BucketedPairs, CopyingFirst, encode, load_aeslc, read_lines
from utils.decoding import summarize
from utils.scores import rouge
from utils.training import CHECKPOINTS, Loss, load_checkpoint, seq2seq_loss
from utils.transformer import Transformer

SOURCE_LIMIT = 128  # pieces of an e-mail that are read
SENTENCE_LIMIT = 24  # pieces of a sentence that are written in the epochs of copying
FIRST_SENTENCES = 6  # of an e-mail, from which one is drawn
FULL = {"minutes": 71.0, "max_tokens": 4096, "learning_rate": 2e-3, "copying_epochs": 6}


def rounded(hypotheses: list[str], references: list[str]) -> dict[str, float]:
    return {kind: round(score, 2) for kind, score in rouge(hypotheses, references).items()}


def scores(model: Transformer, tokenizer: Tokenizer, bodies: list[str], subjects: list[str], beam: int) -> dict:
    """ROUGE of greedy search, of the same without repeated pairs of pieces, and of beam search without them."""
    cases = {
        "greedy": {"beam_size": 1},
        "greedy, no pair twice": {"beam_size": 1, "no_repeat": 2},
        f"beam {beam}, no pair twice": {"beam_size": beam, "no_repeat": 2},
    }
    return {
        name: rounded(summarize(model, tokenizer, bodies, source_limit=SOURCE_LIMIT, **settings), subjects)
        for name, settings in cases.items()
    }


def copying_first(
    pairs: BucketedPairs, tokenizer: Tokenizer, sentences: list[list[str]], epochs: int
) -> tuple[Batches, Loss]:
    """The recipe: epochs of writing one of the first sentences of an e-mail, then the subject lines."""
    firsts = [body[:FIRST_SENTENCES] or [""] for body in sentences]
    ids = iter(encode(tokenizer, list(chain.from_iterable(firsts)), bos=True, limit=SENTENCE_LIMIT))
    return CopyingFirst(pairs, [list(islice(ids, len(body))) for body in firsts], epochs=epochs), seq2seq_loss


def main() -> None:
    parser = training_arguments(__doc__, "the archive of AESLC", ["dev", "test"])
    parser.add_argument("--copying-epochs", type=int, default=0, help="epochs of copying before the subjects")
    args = parsed(parser, "summarization", FULL)
    result = {"task": "AESLC e-mail to subject", "seed": args.seed} | surroundings()
    if args.evaluate:
        model, tokenizer, record = load_checkpoint(CHECKPOINTS / "summarization.safetensors")
        bodies, subjects = map(read_lines, args.evaluate)
        result["trained_by"] = record["command"]
    else:
        sentences, subjects = load_aeslc("train", folder=args.data)
        texts = [" ".join(body) for body in sentences], subjects
        given, subjects = load_aeslc(args.split, folder=args.data)  # before the training: what is missing shows now
        bodies = [" ".join(body) for body in given]
        result["lead_sentence"] = rounded([body[0] for body in given], subjects)
        recipe = partial(copying_first, sentences=sentences, epochs=args.copying_epochs)
        model, tokenizer, training = train_seq2seq(args, *texts, source_limit=SOURCE_LIMIT, recipe=recipe)
        result |= training
    result["scored_on"] = "given files" if args.evaluate else f"{args.split}, {len(bodies)} e-mails"
    score = partial(scores, bodies=bodies, subjects=subjects, beam=args.beam)
    score_and_save(result, model, tokenizer, args.save, score)
    report(result, args.json)


if __name__ == "__main__":
    main()
