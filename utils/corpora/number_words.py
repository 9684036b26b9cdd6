"""Numbers in English and German words: a translation task with an answer key."""

import random

from num2words import num2words
from tqdm.auto import tqdm


def number_words(count: int, *, below: int = 1_000_000, seed: int = 0) -> tuple[list[str], list[str]]:
    """`count` different random numbers below `below`, in English and in German words.

    German turns the last two digits round: twenty-one is einundzwanzig, "one and twenty".
    The same seed gives the same numbers, and a larger count only adds to them.
    """
    if not 0 < count <= below:
        raise ValueError(f"count = {count}; there are only {below} different numbers below {below}.")
    numbers = random.Random(seed).sample(range(below), below)[:count]
    pairs = [(num2words(n, lang="en"), num2words(n, lang="de")) for n in tqdm(numbers, desc="number words")]
    english, german = zip(*pairs, strict=True)
    return list(english), list(german)
