"""Train a model that writes subject lines for e-mails (AESLC) and score it, or score the shipped one on your files.

    python benchmarks/summarization.py --minutes 5 --json result.json
    python benchmarks/summarization.py --evaluate bodies.txt subjects.txt

Without --data the corpus is downloaded. ROUGE F1 with stemming, beside that of the lead sentence on the same split.
Choose settings with --split dev; test is for the end.
"""

from functools import partial

from common import report, score_and_save, surroundings, train_seq2seq, training_arguments
from tokenizers import Tokenizer

from utils.corpora import load_aeslc, read_lines
from utils.decoding import summarize
from utils.scores import rouge
from utils.training import CHECKPOINTS, load_checkpoint
from utils.transformer import Transformer

SOURCE_LIMIT = 256  # pieces of an e-mail that are read


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


def main() -> None:
    args = training_arguments(__doc__, "the archive of AESLC", ["dev", "test"]).parse_args()
    result = {"task": "AESLC e-mail to subject", "seed": args.seed} | surroundings()
    if args.evaluate:
        model, tokenizer, record = load_checkpoint(CHECKPOINTS / "summarization.safetensors")
        bodies, subjects = map(read_lines, args.evaluate)
        result["trained_by"] = record["command"]
    else:
        sentences, subjects = load_aeslc("train", folder=args.data)
        sources = [" ".join(body) for body in sentences]
        model, tokenizer, training = train_seq2seq(args, sources, subjects, source_limit=SOURCE_LIMIT)
        result |= training
        sentences, subjects = load_aeslc(args.split, folder=args.data)
        bodies = [" ".join(body) for body in sentences]
        result["lead_sentence"] = rounded([body[0] for body in sentences], subjects)
    result["scored_on"] = "given files" if args.evaluate else f"{args.split}, {len(bodies)} e-mails"
    score = partial(scores, bodies=bodies, subjects=subjects, beam=args.beam)
    score_and_save(result, model, tokenizer, args.save, score)
    report(result, args.json)


if __name__ == "__main__":
    main()
