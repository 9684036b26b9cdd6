"""Exercises of notebook 07, summarization."""

import re
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from utils.corpora.appointments import PLACES
from utils.exercises.core import Exercise
from utils.exercises.mistakes import flipped

Write = Callable[[Sequence[str]], list[str]]

check_share_of_padding = Exercise(
    task="The share of padding in a batch of sources with 20, 40 and 300 tokens: a number from 0 to 1.",
    solution=0.6,
    tolerance=0.005,
    mistakes={
        "The other part: this is the share of real tokens, 360 of 900 places.": 0.4,
        "Texts counted, not places: two of three texts hold padding, but not in every place.": 2 / 3,
        "Divided by the real tokens: a share of the batch is taken of all its 3 x 300 places.": 1.5,
        "Per cent: a share of 60 % is 0.6.": 60,
    },
)

check_two_scores = Exercise(
    task="ROUGE-1 and ROUGE-2 of a sentence of 13 words with one wrong word inside: two numbers from 0 to 100.",
    solution=[100 * 12 / 13, 100 * 10 / 12],
    tolerance=0.005,
    mistakes={
        "One pair lost: a word inside a sentence belongs to *two* pairs, and both are wrong with it.": [
            100 * 12 / 13,
            100 * 11 / 12,
        ],
        "13 pairs: a sentence of 13 words has 12 pairs of neighbours.": [100 * 12 / 13, 100 * 11 / 13],
        "Scale: here ROUGE goes from 0 to 100.": [12 / 13, 10 / 12],
        "Exact match: ROUGE counts what is shared, and nearly everything is.": [0, 0],
        "The wrong words counted: ROUGE is high where much is *shared*.": [100 * 1 / 13, 100 * 2 / 12],
    },
)


def fooled(write: Write, dialogue: str, word: str, others: Sequence[str]) -> int:
    """How many of `others`, in the place of `word`, change the summary."""
    original, *changed = write([dialogue, *_exchanged(dialogue, word, others)])
    return sum(text != original for text in changed)


def _exchanged(dialogue: str, word: str, others: Sequence[str]) -> list[str]:
    """The dialogue with each of `others` in the place of the whole word."""
    return [re.sub(rf"\b{word}\b", other, dialogue) for other in others]


ANY_PLACE = rf"\b(?:{'|'.join(PLACES)})\b"


def last_place(texts: Sequence[str]) -> list[str]:
    """A summary with the place that is named last, accepted or not."""
    return [f"they meet in the {re.findall(ANY_PLACE, text)[-1]}." for text in texts]


def first_place(texts: Sequence[str]) -> list[str]:
    """A summary with the place that is named first; right if all changes are refused."""
    return [f"they meet in the {re.findall(ANY_PLACE, text)[0]}." for text in texts]


def afraid_of_long_words(texts: Sequence[str]) -> list[str]:
    """A summary that depends on whether the dialogue has a word of more than six letters."""
    return ["they do not meet." if re.search(r"\w{7}", text) else "they meet in the park." for text in texts]


REFUSED = (
    "anna: shall we meet in the park? ben: fine. anna: or in the {0}? ben: no, not the {0}, halls are cold. "
    "anna: see you then."
)


def _changed(write: Write, dialogue: str, word: str, others: Sequence[str]) -> list[str]:
    return write(_exchanged(dialogue, word, others))


def _fooled_inside_words(write: Write, dialogue: str, word: str, others: Sequence[str]) -> int:
    original, *changed = write([dialogue, *(dialogue.replace(word, other) for other in others)])
    return sum(text != original for text in changed)


check_fooled = Exercise(
    task="fooled(write, dialogue, word, others): how many of the other words change the summary: a whole number.",
    solution=fooled,
    cases=[
        (write, REFUSED.format(word), word, others)
        for write in (last_place, first_place, afraid_of_long_words)
        for word, others in (
            ("hall", ("garden", "museum")),
            ("library", ("hall", "garden", "kitchen")),
            ("office", ("office", "museum", "theatre", "library", "kitchen")),
        )
    ],
    mistakes={
        "Different summaries counted: two other words may give the same wrong summary, and one of all may be the "
        "right one. Compare each with the summary of the unchanged dialogue.": lambda write, dialogue, word, others: (
            len(set(_changed(write, dialogue, word, others)))
        ),
        'A part of a word exchanged: "hall" also stands inside "shall". Exchange whole words only.': (
            _fooled_inside_words
        ),
        "The steady ones counted: you counted the words that change nothing.": lambda write, dialogue, word, others: (
            len(others) - fooled(write, dialogue, word, others)
        ),
        "A share: the question is how many, not which part of them.": lambda write, dialogue, word, others: (
            fooled(write, dialogue, word, others) / len(others)
        ),
        "Compared with the dialogue: a summary never equals its dialogue, nor a list of summaries. Compare one summary "
        "with another.": (
            lambda write, dialogue, word, others: sum(
                text != dialogue for text in _changed(write, dialogue, word, others)
            )
        ),
    },
)


def allowed_next(written: Int[Tensor, " L"], vocab_size: int) -> Bool[Tensor, " V"]:
    """True for each token that completes no pair which is written already."""
    allowed = torch.ones(vocab_size, dtype=torch.bool)
    allowed[written[1:][written[:-1] == written[-1]]] = False
    return allowed


def _without(banned: Int[Tensor, " N"], vocab_size: int) -> Bool[Tensor, " V"]:
    """True for all tokens but these."""
    return ~torch.isin(torch.arange(vocab_size), banned)


check_allowed_next = Exercise(
    task="allowed_next(written, vocab_size): Bool[vocab_size], True for each next token that repeats no pair.",
    solution=allowed_next,
    cases=[
        (torch.tensor(written), 5)
        for written in ([3, 1, 3], [2], [1, 1], [0, 1, 2, 3], [1, 2, 1, 3, 1], [2, 2, 2], [4, 0, 4, 0, 3, 0])
    ],
    mistakes={
        "Single tokens banned: a token may come twice, a *pair* may not. Ban what has followed the newest token "
        "before.": lambda written, vocab_size: _without(written, vocab_size),
        "Only the newest token banned: this stops 'the the', and not 'the cat the cat'.": lambda written, vocab_size: (
            _without(written[-1:], vocab_size)
        ),
        "The wrong neighbour: you banned what stood *before* the newest token. The next pair is (newest, next).": (
            lambda written, vocab_size: _without(written[:-1][written[1:] == written[-1]], vocab_size)
        ),
        "One pair only: the newest token may have had several followers, and all of them are banned.": (
            lambda written, vocab_size: _without(written[1:][written[:-1] == written[-1]][:1], vocab_size)
        ),
        "Polarity: True is to mean that a token may be written, so start with True and set what is banned to False.": (
            flipped(allowed_next)
        ),
    },
)


def depends_on_company(write: Write, texts: Sequence[str]) -> bool:
    """Whether what is written for a text changes with the other texts of its batch."""
    return write(texts) != [write([text])[0] for text in texts]


def own_words(texts: Sequence[str]) -> list[str]:
    """The first word of each text."""
    return [text.split()[0] for text in texts]


def reads_padding(texts: Sequence[str]) -> list[str]:
    """Goes wrong on each text that is shorter than half of the longest one, padding included."""
    longest = max(len(text.split()) for text in texts)
    return [text.split()[0] if 2 * len(text.split()) >= longest else "the the the" for text in texts]


def reads_neighbour(texts: Sequence[str]) -> list[str]:
    """The first word of the text before, in the order of the batch."""
    return own_words([*texts[-1:], *texts[:-1]])


def cut_to_the_shortest(texts: Sequence[str]) -> list[str]:
    """The last word of each text, after all were cut to the length of the shortest."""
    shortest = min(len(text.split()) for text in texts)
    return [text.split()[shortest - 1] for text in texts]


check_depends_on_company = Exercise(
    task="depends_on_company(write, texts) -> bool: does what is written for a text change with its neighbours?",
    solution=depends_on_company,
    cases=[
        (write, texts)
        for texts in (
            ("the cat", "a dog barked at the cat"),
            ("a cat sat down", "the dog barked"),
            ("one dog", "two cats", "no bird sang in the old park"),
            ("a long text comes before a short one", "the end"),
            ("alone",),
            ("the cat", "a black dog barked", "the cat sat by another cat"),
        )
        for write in (own_words, reads_padding, reads_neighbour, cut_to_the_shortest)
    ],
    mistakes={
        "The same company twice: in another order each text still stands beside the same long one, with as much "
        "padding. Compare it with the text *alone*.": lambda write, texts: write(texts) != write(texts[::-1])[::-1],
        "Only the longest text tried: it has no padding, so a missing mask does not touch it.": (
            lambda write, texts: write(texts)[texts.index(max(texts, key=len))] != write([max(texts, key=len)])[0]
        ),
        "Only the shortest text tried: what spoils the long ones leaves it as it is. Try all of them.": (
            lambda write, texts: write(texts)[texts.index(min(texts, key=len))] != write([min(texts, key=len)])[0]
        ),
        "Only the longest and the shortest tried: what lies between may be spoilt. Try all of them.": (
            lambda write, texts: any(
                write(texts)[texts.index(one)] != write([one])[0] for one in (max(texts, key=len), min(texts, key=len))
            )
        ),
        "Never True, as with copies for company: a batch of equal lengths holds no padding.": lambda write, texts: any(
            write([text, text]) != 2 * write([text]) for text in texts
        ),
        "The other way round: True is to mean that the company matters.": lambda write, texts: (
            not depends_on_company(write, texts)
        ),
    },
)
