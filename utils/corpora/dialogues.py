"""Dialogues as one sequence of tokens: speaker tokens in front of the turns, flags on what the bot writes."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from utils.corpora.tokens import SPECIAL_TOKENS, encode

SPEAKERS = ["[USER]", "[BOT]"]  # pass them to train_tokenizer as `markers`
USER, BOT = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + len(SPEAKERS))


def encode_turns(tokenizer: Tokenizer, turns: Sequence[str]) -> list[list[int]]:
    """Token ids of each turn: [USER] or [BOT], the words, [EOS]. Turns alternate, and the user begins.

    As in `encode`, nobody can write a speaker token: "[BOT]" becomes plain pieces.
    """
    return [[(USER, BOT)[number % 2], *ids] for number, ids in enumerate(encode(tokenizer, turns))]


def dialogue_tokens(turns: Sequence[Sequence[int]]) -> tuple[list[int], list[bool]]:
    """One sequence from the ids of its turns, and the loss mask: True for what the bot writes.

    That is the words of its turns and their [EOS]. The token [BOT] is given to it, and the user's turns are not its.
    """
    ids = [token for turn in turns for token in turn]
    scored = [turn[0] == BOT and place > 0 for turn in turns for place in range(len(turn))]
    return ids, scored


def dialogue_windows(
    tokenizer: Tokenizer, dialogues: Sequence[Sequence[str]], limit: int
) -> tuple[list[list[int]], list[list[bool]]]:
    """Dialogues in windows of at most `limit` tokens: (texts, scored), as `BucketedTexts` wants them.

    A long dialogue is cut between turns. Each window but the first starts with turns of the last one, half a window
    at most, which do not count again: so each turn of the bot counts once. Raises ValueError for a turn that is longer
    than a window.
    """
    texts, scored = [], []
    for dialogue in dialogues:
        turns, new = encode_turns(tokenizer, dialogue), 0
        while new < len(turns):
            history = latest(turns[:new], min(limit // 2, limit - len(turns[new])))
            size, end = sum(map(len, history)), new
            while end < len(turns) and (size := size + len(turns[end])) <= limit:
                end += 1
            if end == new:
                raise ValueError(f"a turn has {len(turns[new])} tokens; expected at most {limit}, a window.")
            ids, flags = dialogue_tokens([*history, *turns[new:end]])
            known = sum(map(len, history))
            texts.append(ids)
            scored.append([False] * known + flags[known:])
            new = end
    return texts, scored


def latest(turns: Sequence[list[int]], limit: int) -> list[list[int]]:
    """The last turns, as many as `limit` tokens hold."""
    start, size = len(turns), 0
    while start and (size := size + len(turns[start - 1])) <= limit:
        start -= 1
    return list(turns[start:])
