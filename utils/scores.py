"""How good a generated text is: corpus scores as they are published."""

from collections.abc import Sequence

import sacrebleu
from sacremoses import MosesTokenizer


def bleu_13a(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Lower-cased BLEU, 0 to 100, on sacrebleu's own 13a tokens: comparable between systems (Post, 2018)."""
    return sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True, tokenize="13a").score


def bleu_moses(hypotheses: Sequence[str], references: Sequence[str], language: str) -> float:
    """Lower-cased BLEU, 0 to 100, on Moses tokens of `language`, as papers on Multi30k count it."""
    split = MosesTokenizer(language).tokenize
    hypotheses, references = ([split(line.lower(), return_str=True) for line in x] for x in (hypotheses, references))
    return sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", force=True).score
