"""How good a generated text is: corpus scores as they are published."""

from collections.abc import Sequence

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacremoses import MosesTokenizer


def _check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"{len(hypotheses)} texts and {len(references)} references; expected equally many, and at least one."
        )


def bleu_13a(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Lower-cased BLEU, 0 to 100, on sacrebleu's own 13a tokens: comparable between systems (Post, 2018).

    Raises ValueError, as all scores here, unless each text has its reference.
    """
    _check_pairs(hypotheses, references)
    return sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True, tokenize="13a").score


def bleu_moses(hypotheses: Sequence[str], references: Sequence[str], language: str) -> float:
    """Lower-cased BLEU, 0 to 100, on Moses tokens of `language`, as papers on Multi30k count it."""
    _check_pairs(hypotheses, references)
    split = MosesTokenizer(language).tokenize
    hypotheses, references = ([split(line.lower(), return_str=True) for line in x] for x in (hypotheses, references))
    return sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", force=True).score


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004): the mean F1 of all pairs, 0 to 100, on stemmed English words.

    Shared single words, shared pairs of neighbours, and the longest common subsequence.
    """
    _check_pairs(hypotheses, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    pairs = [scorer.score(reference, output) for output, reference in zip(hypotheses, references, strict=True)]
    return {kind: 100 * sum(pair[kind].fmeasure for pair in pairs) / len(pairs) for kind in kinds}
